"""Batched early-exit inference: compaction, order, what is paid for; and what a rule of either kind is asked."""

from collections.abc import Callable

import pytest
import torch
from conftest import random_prompts, random_texts
from torch import Tensor

from consistentee.engine.classify import classify
from consistentee.engine.generate import generate
from consistentee.rules.exit_rule import ExitRule, NeverExit, ThresholdRule
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
