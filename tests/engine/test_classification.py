"""Batched early-exit inference: compaction, order, what is paid for; and what a rule of either kind is asked."""

from collections.abc import Callable

import pytest
import torch
from conftest import FAMILIES, random_prompts, random_texts
from torch import Tensor

from consistentee.engine.classify import classify
from consistentee.engine.generate import generate
from consistentee.errors import UserError
from consistentee.rules.exit_rule import ConsecutiveRule, ExitRule, NeverExit, ThresholdRule
from consistentee.signals import top_probability


class ByKey(ExitRule):
    """Rows leave at layers that their tokens alone decide."""

    def should_exit(self, view, state):
        return view.row_keys % view.num_layers < view.layer


@pytest.mark.parametrize("pairs", [False, True])
def test_answers_come_in_the_order_of_the_texts(tiny_model, pairs):
    model = tiny_model()
    texts = random_texts(23, pairs=pairs)
    together = classify(model, texts, ByKey(), batch_size=5)
    for i in (0, 7, 22):
        alone = classify(model, [texts[i]], ByKey())
        assert alone.exit_layers[0] == together.exit_layers[i]
        torch.testing.assert_close(alone.logits[0], together.logits[i], rtol=1e-4, atol=1e-5)
    assert together.exit_layers.unique().numel() > 1


def run_batches(model, monkeypatch) -> list[tuple[int, int]]:
    """Record layer and rows of every batch that runs."""
    ran: list[tuple[int, int]] = []
    step = model.stepper.step
    monkeypatch.setattr(
        model.stepper,
        "step",
        lambda layer, hidden, context: (ran.append((layer, len(hidden))), step(layer, hidden, context))[1],
    )
    return ran


class TestInFlight:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("rule", [ByKey(), ConsecutiveRule(ByKey(), 2)], ids=["by key", "with state"])
    def test_a_row_gets_what_it_gets_alone(self, tiny_model, family, rule):
        model = tiny_model(family)
        texts = random_texts(23, pairs=True)
        alone = classify(model, texts, rule, batch_size=1)
        assert len(alone.exit_layers.unique()) > 1
        for batch_size, in_flight in ((1, 1), (4, 4), (4, 9), (8, 100)):
            found = classify(model, texts, rule, batch_size=batch_size, in_flight=in_flight, sort_by_length=False)
            assert torch.equal(found.exit_layers, alone.exit_layers)
            torch.testing.assert_close(found.logits, alone.logits, rtol=1e-4, atol=1e-5)

    def test_batches_are_full_up_to_the_last_of_each_layer(self, tiny_model, monkeypatch):
        model, texts = tiny_model(), random_texts(60)
        ran = run_batches(model, monkeypatch)
        exits = classify(model, texts, ByKey(), batch_size=4, in_flight=24).exit_layers
        for layer in range(1, 5):
            sizes = [rows for number, rows in ran if number == layer]
            assert sum(sizes) == int((exits >= layer).sum()), "every row runs once"
            assert sorted(sizes)[1:] == [4] * (len(sizes) - 1)

    def test_a_rule_that_reads_history_finds_that_of_its_row(self, tiny_model):
        class FromHistory(ExitRule):
            reads_history = True

            def should_exit(self, view, state):
                return view.history.abs().sum(dim=(1, 2)) * 1000 % 4 < view.layer

        model, texts = tiny_model(), random_texts(30)
        alone = classify(model, texts, FromHistory(), batch_size=1).exit_layers
        assert torch.equal(classify(model, texts, FromHistory(), batch_size=4, in_flight=11).exit_layers, alone)

    def test_rooms_that_make_no_sense(self, tiny_model):
        assert len(classify(tiny_model(), [], NeverExit(), in_flight=32).predictions) == 0
        with pytest.raises(UserError, match="4 rows in flight are fewer than a batch, 8"):
            classify(tiny_model(), ["w1"], NeverExit(), batch_size=8, in_flight=4)


def test_rows_that_left_are_not_run(tiny_model, monkeypatch):
    model = tiny_model()
    widths = []
    step = model.stepper.step

    def record(layer, hidden, context):
        widths.append((layer, hidden.shape[0], hidden.shape[1]))
        return step(layer, hidden, context)

    monkeypatch.setattr(model.stepper, "step", record)
    texts = ["w1", "w2 w3", "w4 " * 15]

    class LongestLeavesFirst(ExitRule):
        def should_exit(self, view, state):
            lengths = view.padding_mask.sum(dim=1)
            return lengths == lengths.max()

    exits = classify(model, texts, LongestLeavesFirst(), batch_size=3).exit_layers
    assert exits.tolist() == [3, 2, 1]
    assert widths == [(1, 3, 17), (2, 2, 4), (3, 1, 3)], "rows and padding columns shrink together"


def test_nothing_in_nothing_out(tiny_model):
    out = classify(tiny_model(), [], NeverExit())
    assert len(out.predictions) == len(out.exit_layers) == len(out.logits) == 0


def test_a_rule_pays_only_for_what_it_reads(tiny_model, monkeypatch):
    model = tiny_model()
    asked = []
    real = model.classify
    monkeypatch.setattr(model, "classify", lambda layer, readable: (asked.append(layer), real(layer, readable))[1])
    classify(model, ["w1"], NeverExit())
    assert asked == [model.num_layers], "a rule that reads nothing pays for the last classifier alone"
    asked.clear()
    classify(model, ["w1"], ThresholdRule(top_probability, 2.0, exit_when="above"))
    assert asked == [1, 2, 3, 4]


@pytest.fixture(params=["instances", "tokens"])
def exits_of(request, tiny_model, tiny_decoder) -> Callable[..., Tensor]:
    """Return a function: (rule, number of texts, batch size) -> the exit layers of all rows."""

    def run(rule: ExitRule, texts: int = 2, batch_size: int = 16) -> Tensor:
        if request.param == "instances":
            return classify(tiny_model(), random_texts(texts), rule, batch_size=batch_size).exit_layers
        written = generate(tiny_decoder(), random_prompts(texts), rule, max_new_tokens=5, batch_size=batch_size)
        return torch.cat(written.exit_layers)

    return run


class CountingState(ExitRule):
    """Keeps each row's key in its state and checks at every layer that state and rows still belong together."""

    def start(self, rows, num_layers):
        return {"key": torch.full((rows,), -1)}

    def should_exit(self, view, state):
        assert view.layer == 1 or torch.equal(state["key"], view.row_keys)
        state["key"] = view.row_keys
        return view.row_keys % view.num_layers < view.layer


def test_state_follows_its_row(exits_of):
    assert exits_of(CountingState(), texts=40).unique().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("answer", [torch.tensor([1.0, 0.0]), torch.tensor(True), torch.tensor([True])], ids=str)
def test_a_rule_that_does_not_answer_each_row_is_named(exits_of, answer):
    class Sloppy(ExitRule):
        def should_exit(self, view, state):
            return answer

    with pytest.raises(ValueError, match=r"Sloppy.should_exit must return bool \[2\]"):
        exits_of(Sloppy())
