"""Tests of training, replaying, classifying and decoding on an accelerator. ``test_second_device.py`` runs them.

``pytest tests/devices/on_device.py`` runs them on a machine with a GPU. What is counted needs the second device.
"""

from collections.abc import Callable

import pytest
import second_device
import torch
from known_exits import KnownRandomRule

from benchmarks.testing.tiny import random_prompts, random_texts
from consistentee import TokenTrace, chosen_device, classify, generate_encoded, record_tokens, sweep
from consistentee.rules.exit_rule import ExitRule, NeverExit, StaticRule, ThresholdRule
from consistentee.signals import margin

DEVICE = chosen_device()
counts = pytest.mark.skipif(DEVICE.type != second_device.NAME, reason="only the second device counts")
ROWS, BATCH = 32, 8


def test_the_device_is_an_accelerator():
    assert DEVICE.type != "cpu", "there is no accelerator: what these tests say holds on a CPU anyway"


class TestDevice:
    @pytest.mark.parametrize(
        "mix",
        [
            lambda ours, cpu: cpu + ours,
            lambda ours, cpu: ours.index_select(0, cpu.long()),
            lambda ours, cpu: cpu[ours.long()],
            lambda ours, cpu: ours.index_put_((ours.long(),), cpu),
            lambda ours, _: ours.normal_(generator=torch.Generator()),
        ],
    )
    def test_tensors_of_two_devices_do_not_mix(self, mix):
        with pytest.raises((RuntimeError, IndexError), match="device"):
            mix(torch.zeros(3, device=DEVICE), torch.zeros(3))

    @counts
    @pytest.mark.parametrize(
        ("act", "expected"),
        [
            (lambda ours: ours[1:3] + torch.tensor(1.0), {}),
            (lambda ours: ours.tolist(), {"to host": 1}),
            (lambda ours: bool(ours.any()), {"reads": 1}),
            (lambda ours: ours[ours > 1], {"reads": 1}),
            (lambda ours: ours[torch.tensor([2, 0])], {"to device": 1}),
            (lambda ours: ours.masked_fill(ours > 1, 0), {}),
            (lambda ours: torch.zeros(3).to(ours), {"to device": 1}),
        ],
    )
    def test_copies_and_reads_are_counted(self, act, expected):
        ours = torch.arange(4.0, device=DEVICE)
        with second_device.counted() as work:
            act(ours)
        del work["operations"]
        assert work == expected


class HalfLeaves(ExitRule):
    """Every other row of a batch leaves at every exit; counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def should_exit(self, view, state):
        self.asked += 1
        return torch.arange(view.rows, device=view.device) % 2 == 0


def work_of(run: Callable[[], object]) -> dict[str, int]:
    """Return the copies and reads of a run."""
    with second_device.counted() as work:
        run()
    return {name: work[name] for name in ("to device", "to host", "reads")}


@counts
class TestWork:
    def test_a_batch_is_copied_once_and_read_once_where_its_rule_is_asked(self, tiny_models):
        """The last copy to the host is that of the answers."""
        model, texts, half = tiny_models.model("bert").to(DEVICE), random_texts(ROWS), HalfLeaves()
        for rule, reads in ((NeverExit(), 0), (StaticRule(2), 1), (half, model.num_layers - 1)):
            work = work_of(lambda rule=rule: classify(model, texts, rule, batch_size=ROWS))
            assert work == {"to device": 1, "to host": reads + 1, "reads": 0}
        texts, half.asked = random_texts(4 * ROWS), 0
        work = work_of(lambda: classify(model, texts, half, batch_size=ROWS, in_flight=2 * ROWS))
        assert (work["to host"], work["reads"]) == (half.asked + 1, 0)
        assert 4 <= work["to device"] <= 4 + half.asked, "rows that are chosen from those that wait, besides the texts"

    def test_a_decoding_step_copies_and_is_read_once_an_exit(self, tiny_decoders):
        """Numbers of rows and columns are copied to the device, answers of the rule and new tokens to the host."""
        model = tiny_decoders.model("llama").to(DEVICE)
        prompts, options = model.encode(random_prompts(BATCH)), {"batch_size": BATCH, "end_at_eos": False}

        def work_of_steps(rule: ExitRule, steps: int) -> dict[str, int]:
            return work_of(lambda: generate_encoded(model, prompts, rule, max_new_tokens=1 + steps, **options))

        assert work_of_steps(NeverExit(), 0) == {"to device": 1, "to host": 1, "reads": 0}, "prompts, in one pass"
        for rule in (NeverExit(), StaticRule(2)):
            assert work_of_steps(rule, 5) == {"to device": 6, "to host": 6, "reads": 0}
        known = KnownRandomRule(seed=1)
        assert work_of_steps(known, 5)["to host"] == 6, "exits that are known before the first layer"
        work, exits = work_of_steps(HalfLeaves(), 5), len(model.exit_layers)
        assert work["to device"] <= 1 + 5 * exits
        assert (work["to host"], work["reads"]) == (1 + 5 * exits, 0)

    def test_a_replay_is_copied_once_for_all_rules(self, tiny_decoders):
        model = tiny_decoders.model("llama").to(DEVICE)
        rows = [(prompt, [5, 6, 7, 8]) for prompt in model.encode(random_prompts(BATCH))]
        traces: list[TokenTrace] = []
        assert work_of(lambda: traces.append(record_tokens(model, rows)))["to host"] == 1
        rules = [ThresholdRule(margin, threshold, "above") for threshold in (0.1, 0.3, 0.5)]
        work = work_of(lambda: sweep(rules, traces[0]))
        assert (work["to host"], work["reads"]) == (3, 0), "one a step that may exit early"
