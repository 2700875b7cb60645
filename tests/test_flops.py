"""FLOPs: the counter against the closed formula, every family against its stock model, rules pay for what they read."""

import numpy as np
import pytest
import torch
from conftest import FAMILIES
from torch.utils.flop_counter import FlopCounterMode

from baselines.references import OracleRule, StaticRule
from benchmarks.harness.flops import TOKEN_COUNTS, FlopModel, TokenPolynomial
from consistentee.encoding import Encoding
from consistentee.exits import NeverExit, ThresholdRule, entropy, head_probability
from consistentee.heads import HeadSpec

WIDTH, INNER, CLASSES = 32, 64, 3


def bert_layer(n: int) -> int:
    """Two operations a multiply-add: four projections, scores and mixing of the attention, two dense layers."""
    return 4 * 2 * n * WIDTH**2 + 2 * 2 * n * n * WIDTH + 2 * 2 * n * WIDTH * INNER


@pytest.mark.parametrize("n", [1, 5, 20])
def test_bert_layer_is_the_closed_formula(tiny_model, n):
    flops = FlopModel(tiny_model("bert"))
    assert flops.embedding(n) == 0
    assert [polynomial(n) for polynomial in flops.layers] == [bert_layer(n)] * 4


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_full_depth_is_what_the_counter_sees_in_the_stock_model(tiny_model, family, pooling):
    model = tiny_model(family, pooling=pooling)
    tokens = 17
    types = [0] * tokens if model.stepper.uses_token_types else None
    flops = FlopModel(model)
    usual = model.backbone.config._attn_implementation
    model.backbone.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.stock_logits(model.collate([Encoding([5] * tokens, types)]))
    model.backbone.set_attn_implementation(usual)
    assert flops.full_flops([tokens]).tolist() == [counter.get_total_flops()]


def test_attention_is_left_as_it_was(tiny_model):
    model = tiny_model("bert")
    before = model.backbone.config._attn_implementation
    FlopModel(model)
    assert model.backbone.config._attn_implementation == before


def test_rules_pay_for_what_they_read(tiny_model):
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


def test_rows_add_up_whatever_they_are_beside(tiny_model):
    flops = FlopModel(tiny_model("bert"))
    rule = ThresholdRule(entropy, 0.5, "below")
    lengths, exits = np.array([3, 9, 30, 12]), np.array([1, 4, 2, 3])
    together = flops.row_flops(lengths, exits, rule)
    alone = [flops.row_flops([n], [e], rule)[0] for n, e in zip(lengths, exits, strict=True)]
    assert together.tolist() == alone


def test_a_rule_that_reads_labels_is_refused_live(tiny_model):
    with pytest.raises(Exception, match="reads the true labels"):
        FlopModel(tiny_model("bert")).rule_cost(OracleRule(1))


def test_counts_off_the_polynomial_are_noticed():
    cubic = [n**3 for n in TOKEN_COUNTS]
    with pytest.raises(ValueError, match="not quadratic"):
        TokenPolynomial.fit(cubic)
    assert TokenPolynomial.fit([5 + 2 * n + 7 * n * n for n in TOKEN_COUNTS]) == TokenPolynomial(5, 2, 7)
