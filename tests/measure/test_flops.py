"""FLOPs: the counter against the closed formula, every family against its stock model, rules pay for what they read."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure.flops import ALL_LIVE, FlopModel, RowCost, count_operations, eager_attention
from benchmarks.testing.tiny import FAMILIES, TOKEN_EXIT_FAMILIES
from consistentee.backbones.token_exits import TokenExitStepper
from consistentee.data.encoding import Encoding
from consistentee.engine.classify import classify_encoded
from consistentee.models.base import HeadSpec
from consistentee.rules.exit_rule import NeverExit, StaticRule, ThresholdRule
from consistentee.signals import entropy, head_probability

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
    with eager_attention([model.backbone]), FlopCounterMode(display=False) as counter, torch.no_grad():
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
    with eager_attention([model.backbone]):
        operations, _ = count_operations(lambda: classify_encoded(model, [row], NeverExit(), batch_size=1))
    assert expected.tolist() == [operations]
