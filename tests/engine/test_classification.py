"""Batched early-exit inference: regrouping, compaction, what is paid for; and what a rule must answer."""

import pytest
import torch

from baselines.references import RandomRule
from benchmarks.testing.tiny import random_prompts, random_texts
from consistentee import ExitRule, NeverExit, classify, generate


def run_batches(model, monkeypatch) -> list[tuple[int, int, int]]:
    """Record layer, rows and columns of every batch that runs."""
    ran: list[tuple[int, int, int]] = []
    step = model.stepper.step

    def record(layer, hidden, context):
        ran.append((layer, *hidden.shape[:2]))
        return step(layer, hidden, context)

    monkeypatch.setattr(model.stepper, "step", record)
    return ran


def test_batches_in_flight_are_full_up_to_the_last_of_each_layer(tiny_model, monkeypatch):
    model, texts = tiny_model(), random_texts(60)
    ran = run_batches(model, monkeypatch)
    exits = classify(model, texts, RandomRule(2.5, seed=1), batch_size=4, in_flight=24).exit_layers
    for layer in range(1, 5):
        sizes = [rows for number, rows, _ in ran if number == layer]
        assert sum(sizes) == int((exits >= layer).sum()), "every row runs once"
        assert sorted(sizes)[1:] == [4] * (len(sizes) - 1)


class FromHistory(ExitRule):
    reads_history = True

    def should_exit(self, view, state):
        return view.history.abs().sum(dim=(1, 2)) * 10 % 4 < view.layer


@pytest.mark.parametrize(("batch_size", "in_flight"), [(1, 1), (4, 4), (4, 11), (8, 100)])
def test_a_rule_that_reads_history_finds_that_of_its_row(tiny_model, batch_size, in_flight):
    """The contract regroups rows of every family."""
    model, texts = tiny_model(), random_texts(30, pairs=True)
    alone = classify(model, texts, FromHistory(), batch_size=1)
    assert len(alone.exit_layers.unique()) > 1
    found = classify(model, texts, FromHistory(), batch_size=batch_size, in_flight=in_flight)
    assert torch.equal(found.exit_layers, alone.exit_layers)
    torch.testing.assert_close(found.logits, alone.logits, rtol=1e-4, atol=1e-5)


def test_rows_that_left_are_not_run(tiny_model, monkeypatch):
    class LongestLeavesFirst(ExitRule):
        def should_exit(self, view, state):
            lengths = view.padding_mask.sum(dim=1)
            return lengths == lengths.max()

    model = tiny_model()
    ran = run_batches(model, monkeypatch)
    exits = classify(model, ["w1", "w2 w3", "w4 " * 15], LongestLeavesFirst(), batch_size=3).exit_layers
    assert exits.tolist() == [3, 2, 1]
    assert ran == [(1, 3, 17), (2, 2, 4), (3, 1, 3)], "rows and padding columns shrink together"


@pytest.mark.parametrize("options", [{}, {"in_flight": 32}], ids=str)
def test_nothing_in_nothing_out(tiny_model, options):
    out = classify(tiny_model(), [], NeverExit(), **options)
    assert len(out.predictions) == len(out.exit_layers) == len(out.logits) == 0


@pytest.mark.parametrize("answer", [torch.tensor([1.0, 0.0]), torch.tensor(True), torch.tensor([True])], ids=str)
def test_a_rule_that_does_not_answer_each_row_is_named(tiny_model, tiny_decoder, answer):
    class Sloppy(ExitRule):
        def should_exit(self, view, state):
            return answer

    with pytest.raises(ValueError, match=r"Sloppy.should_exit must return bool \[2\]"):
        classify(tiny_model(), random_texts(2), Sloppy())
    with pytest.raises(ValueError, match=r"Sloppy.should_exit must return bool \[2\]"):
        generate(tiny_decoder(), random_prompts(2), Sloppy(), max_new_tokens=5)
