"""FLOPs of rows and of decoding: closed formulas, the counter on stock models, and what rules and drafts read."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from baselines.skipdecode import ScheduledRule
from benchmarks.measure.flops import ALL_LIVE, DecodingFlops, FlopModel, RowCost, count_operations
from benchmarks.testing.tiny import FAMILIES, TOKEN_EXIT_FAMILIES, random_prompts
from consistentee import BranchSpec, HeadSpec, MultiExitDecoder, TokenExitStepper, generate, generate_speculatively
from consistentee.data.encoding import Encoding
from consistentee.engine.classify import classify_encoded
from consistentee.rules.exit_rule import ExitRule, NeverExit, StaticRule, ThresholdRule
from consistentee.signals import entropy, head_probability, margin

WIDTH, INNER, CLASSES = 32, 64, 3


def bert_layer(n: int) -> int:
    """Two operations a multiply-add: four projections, scores and mixing of the attention, two dense layers."""
    return 4 * 2 * n * WIDTH**2 + 2 * 2 * n * n * WIDTH + 2 * 2 * n * WIDTH * INNER


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_full_depth_is_what_the_counter_sees_in_the_stock_model(tiny_model, family, pooling):
    model = tiny_model(family, pooling=pooling)
    tokens = 17
    types = [0] * tokens if model.stepper.uses_token_types else None
    flops = FlopModel(model)
    model.backbone.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.stock_logits(model.collate([Encoding([5] * tokens, types)]))
    assert flops.full_flops([tokens]).tolist() == [counter.get_total_flops()]


def test_rules_cost_what_they_read(tiny_model):
    model = tiny_model("bert", pooler="none", pooling="cls")
    model.add_head("policy", HeadSpec(hidden=8))
    flops = FlopModel(model)
    n, classifier, policy = 10, 2 * WIDTH * CLASSES, 2 * (WIDTH * 8 + 8)
    layers = bert_layer(n)
    cases = [
        (StaticRule(2), 2, 2 * layers + classifier),  # reads nothing, then one classifier answers
        (ThresholdRule(entropy, 0.5, "below"), 2, 2 * (layers + classifier)),  # the answer was read already
        (ThresholdRule(entropy, 0.5, "below"), 4, 4 * (layers + classifier)),
        (ThresholdRule(head_probability("policy"), 0.5, "above"), 3, 3 * (layers + policy) + classifier),
        (NeverExit(), 4, 4 * layers + classifier),
        (None, 3, 3 * layers + classifier),  # a bound that knows without reading
    ]
    for rule, exit_layer, expected in cases:
        assert flops.row_flops([n], [exit_layer], rule).tolist() == [expected], rule


def test_counts_off_the_polynomial_are_noticed():
    with pytest.raises(ValueError, match="do not follow from the numbers of tokens"):
        RowCost.fit([n**3 for n, _ in ALL_LIVE])
    assert RowCost.fit([5 + 2 * n + 7 * n * n for n, _ in ALL_LIVE]) == RowCost(5, 2, 7)
    points = [*ALL_LIVE, (8, 3), (12, 5)]
    assert RowCost.fit([5 + 2 * m + 7 * n * m + 4 * (n - m) for n, m in points], points) == RowCost(5, 2, 7, 4)


@pytest.mark.parametrize("family", TOKEN_EXIT_FAMILIES)
def test_operations_of_a_row_whose_tokens_exit_are_what_the_counter_sees(tiny_model, family):
    model = tiny_model(family)
    schedule = torch.randint(1, 4, (64,), generator=torch.Generator().manual_seed(2))
    model.use_stepper(TokenExitStepper.over(model.stepper, schedule))
    row = Encoding(list(range(2, 19)), [0] * 17 if model.stepper.uses_token_types else None)
    expected = FlopModel(model).row_flops([17], [4], NeverExit(), model.stepper.live_tokens([row]))
    operations, _ = count_operations(lambda: classify_encoded(model, [row], NeverExit(), batch_size=1))
    assert expected.tolist() == [operations]


MLP, HEADS, KV_HEADS, HEAD_DIM, LAYERS, RANK = 48, 4, 2, 8, 4, 16
"""The width of the tiny Llama, which is as wide as the tiny BERT."""


@pytest.fixture(scope="module")
def flops(model: MultiExitDecoder) -> DecodingFlops:
    return DecodingFlops(model)


def layer_formula(columns: int) -> int:
    """Return the operations of a Llama layer on one token that attends to so many columns."""
    attention = 2 * WIDTH * HEADS * HEAD_DIM * 2 + 2 * WIDTH * KV_HEADS * HEAD_DIM * 2
    scores = 2 * 2 * HEADS * HEAD_DIM * columns
    return attention + scores + 3 * 2 * WIDTH * MLP


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
    attention = layer_formula(0) - 3 * 2 * WIDTH * MLP
    a_column = layer_formula(1) - layer_formula(0)
    columns = round(read * (prompt + len(written.tokens[0]) / 2))
    layers = LAYERS * layer_formula(0) + attention
    head = exit_formula(model, LAYERS)
    assert flops.speculating(written) == layers * read + (LAYERS + 1) * a_column * columns + head * (
        read + written.drafted[0]
    )
