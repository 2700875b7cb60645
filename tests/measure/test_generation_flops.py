"""Operations of decoding against closed formulas of the architecture, and against torch's counter on a whole pass."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from baselines.skipdecode import ScheduledRule
from benchmarks.measure.flops import DecodingFlops
from benchmarks.testing.tiny import random_prompts
from consistentee.engine.generate import generate
from consistentee.engine.speculation import generate_speculatively
from consistentee.models.decoder.branches import BranchSpec
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule, NeverExit, ThresholdRule
from consistentee.signals import margin

WIDTH, INNER, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 32, 48, 4, 2, 8, 4
RANK = 16


@pytest.fixture(scope="module")
def model(tiny_decoder: Callable[..., MultiExitDecoder]) -> MultiExitDecoder:
    return tiny_decoder("llama")


@pytest.fixture(scope="module")
def flops(model: MultiExitDecoder) -> DecodingFlops:
    return DecodingFlops(model)


def layer_formula(columns: int) -> int:
    """Return the operations of a Llama layer on one token that attends to so many columns."""
    attention = 2 * WIDTH * HEADS * HEAD_DIM * 2 + 2 * WIDTH * KV_HEADS * HEAD_DIM * 2
    scores = 2 * 2 * HEADS * HEAD_DIM * columns
    return attention + scores + 3 * 2 * WIDTH * INNER


def exit_formula(model: MultiExitDecoder, layer: int) -> int:
    """Return the operations of an exit: the LM head, and a low-rank adapter below the last layer."""
    head = 2 * WIDTH * model.stepper.vocabulary
    return head + (0 if layer == LAYERS else 2 * 2 * WIDTH * RANK)


def test_layers_and_exits_cost_what_the_formula_says(model, flops):
    for columns in (1, 3, 17):
        assert [layer(1, columns) for layer in flops.layers] == [layer_formula(columns)] * LAYERS
    assert flops.filling == [2 * 2 * WIDTH * KV_HEADS * HEAD_DIM] * LAYERS
    asked = flops.exit_cost(ThresholdRule(margin, 0.5, "above"), step=1)
    assert asked.reading == {layer: exit_formula(model, layer) if layer < LAYERS else 0 for layer in range(1, 5)}
    assert asked.answering == {1: 0, 2: 0, 3: 0, LAYERS: exit_formula(model, LAYERS)}
    unasked = flops.exit_cost(NeverExit(), step=1)
    assert set(unasked.reading.values()) == {0}
    assert unasked.answering == {layer: exit_formula(model, layer) for layer in range(1, 5)}


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_a_pass_over_a_prompt_costs_what_the_counter_counts(tiny_decoder, family):
    model = tiny_decoder(family)
    model.backbone.set_attn_implementation("eager")
    tokens = torch.arange(4, 11).unsqueeze(0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.backbone(tokens, use_cache=False, logits_to_keep=1)
    flops = DecodingFlops(model)
    assert sum(layer(7, 7 * 7) for layer in flops.layers) + flops.head == counter.get_total_flops()


@pytest.mark.parametrize("kv", ["propagate", "exact"])
def test_decoding_adds_up_layers_exits_and_late_keys_and_values(model, flops, kv):
    rule = ScheduledRule([4, 3, 1, 3, 1, 3])  # it reads nothing
    written = generate(model, random_prompts(3, seed=1), rule, max_new_tokens=6, kv=kv)
    expected = 0
    for prompt, exits, late in zip(written.prompt_tokens, written.exit_layers, written.late_layers, strict=True):
        for step in range(1, len(exits)):
            left, filled = int(exits[step]), int(late[step])
            expected += left * layer_formula(prompt + step) + exit_formula(model, left)
            a_fill = 2 * 2 * WIDTH * KV_HEADS * HEAD_DIM if kv == "propagate" else layer_formula(prompt + step)
            expected += filled * a_fill
    assert flops.decoding(written, rule, kv) == expected
    assert any(int(late.sum()) for late in written.late_layers)


class ReadsInTheMiddle(ExitRule):
    """Reads what layer 2 says, of the third new token alone, and leaves nowhere."""

    def should_exit(self, view, state):
        if view.layer == 2 and view.places[0] == 2:
            view.logits  # noqa: B018 (reading is what costs)
        return torch.zeros(view.rows, dtype=torch.bool)


def test_exits_read_at_one_place_are_counted(model, flops):
    written = generate(model, random_prompts(3, seed=1), ReadsInTheMiddle(), max_new_tokens=6)
    readings = sum(len(tokens) > 2 for tokens in written.tokens)
    assert readings
    reading = readings * exit_formula(model, 2)
    assert flops.decoding(written, ReadsInTheMiddle(), "propagate") == flops.full_decoding(written) + reading


def test_a_branch_that_drafts_is_counted(tiny_decoder):
    """Attention without an MLP; and behind it, the LM head alone."""
    model = tiny_decoder("llama")
    model.add_branch(2, BranchSpec(copied_layer=3, with_mlp=False))
    flops = DecodingFlops(model)
    written = generate_speculatively(model, random_prompts(1, seed=4), draft_layer=2, max_new_tokens=6)
    (prompt,), read = written.prompt_tokens, written.drafted[0] + written.passes[0]
    attention = layer_formula(0) - 3 * 2 * WIDTH * INNER
    a_column = layer_formula(1) - layer_formula(0)
    columns = round(read * (prompt + len(written.tokens[0]) / 2))
    layers = LAYERS * layer_formula(0) + attention
    head = exit_formula(model, LAYERS)
    assert flops.speculating(written) == layers * read + (LAYERS + 1) * a_column * columns + head * (
        read + written.drafted[0]
    )
