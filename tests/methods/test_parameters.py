"""Parameters that no method can be trained or run with are refused when it is made, by name."""

import pytest

from consistentee.errors import UserError
from consistentee.methods.method import get_method

REFUSED = [
    ("balcony", {"layers": 1}, "unknown parameter"),
    ("beem", {"held_out": 1.0}, "held_out"),
    ("calm-tokens-classifier", {"horizon": 0}, "horizon"),
    ("calm-tokens-softmax", {"candidates": 1}, "at least 2 candidates"),
    ("calm-tokens-softmax", {"tau": -1.0}, "tau"),
    ("calm-tokens-state", {"horizon": 0}, "horizon"),
    ("cascade-bert", {"folds": 1}, "folds"),
    ("cascade-bert", {"margin": -0.1}, "margin"),
    ("cascade-bert", {"margin_weight": -1.0}, "margin"),
    ("consistentee", {"alpha": "a lot"}, "'alpha'"),
    ("consistentee", {"alpha": -0.1}, "alpha"),
    ("consistentee", {"estimator": "reinforce", "rollouts": 1}, "at least 2 rollouts"),
    ("consistentee", {"folds": 0}, "folds"),
    ("consistentee", {"joint_epochs": -1}, "joint_epochs"),
    ("consistentee", {"joint_learning_rate": -1e-5}, "joint_learning_rate"),
    ("consistentee", {"reward": "hardnes"}, "'reward'"),
    ("consistentee-distilled", {"at_exit": 1.5}, "at_exit"),
    ("consistentee-distilled", {"backbone_rate": 0.0}, "backbone_rate"),
    ("consistentee-distilled", {"distilled": -0.1}, "distilled"),
    ("consistentee-ladder", {"lowest_price": 0.0}, "ladder"),
    ("consistentee-ladder", {"lowest_price": 2.0, "highest_price": 1.0}, "ladder"),
    ("consistentee-ladder", {"rungs": 1}, "ladder"),
    ("consistentee-tokens", {"alpha": -0.1}, "alpha"),
    ("consistentee-tokens", {"candidates": 8}, "vocabulary"),
    ("consistentee-tokens", {"estimator": "reinforce", "rollouts": 1}, "at least 2 rollouts"),
    ("consistentee-tokens-curve", {"lowest_alpha": 2.0}, "lowest_alpha"),
    ("consistentee-tokens-ladder", {"price_rise": 0.0}, "price_rise"),
    ("consistentee-tokens-ladder", {"price_rise": 2.0, "horizon": 0}, "horizon"),
    ("consistentee-tokens-ladder", {"rungs": 1}, "ladder"),
    ("consistentee-tokens-tuned", {"at_exit": 1.5}, "at_exit"),
    ("consistentee-tokens-tuned", {"steps": 0}, "steps"),
    ("cosee", {"margin": -0.1}, "margin"),
    ("cosee", {"thresholds": 0}, "threshold"),
    ("de3-bert", {"balance": -0.1}, "balance"),
    ("de3-bert", {"regularised": -1.0}, "regularised"),
    ("de3-bert", {"width": 1}, "2 dimensions"),
    ("eenet", {"budget": 3}, "budget"),
    ("f-pabee", {"patience": 0}, "patience"),
    ("jei-dnn", {"price": -1}, "price"),
    ("kangaroo", {"draft_tokens": 0}, "at least 1 token"),
    ("layerskip", {"dropout": 1.0}, "dropout"),
    ("leebert", {"held_out": 1.0}, "held_out"),
    ("leebert", {"weight_every": 0}, "weight_every"),
    ("palbert", {"rate": 1.0}, "rate"),
    ("pcee-bert", {"patience": 0}, "patience"),
    ("skipdecode", {"horizon": -3}, "horizon"),
    ("swift", {"search_tokens": 1}, "at least one set"),
    ("token-entropy", {"candidates": 1}, "at least 2 candidates"),
    ("token-patience", {"candidates": 1}, "at least 2 candidates"),
]


@pytest.mark.parametrize(("name", "parameters", "word"), REFUSED, ids=str)
def test_a_parameter_out_of_range_is_refused(name, parameters, word):
    with pytest.raises(UserError, match=word):
        get_method(name, **parameters)
