"""MultiExitModel: pooling, texts, heads (see test_dtypes.py and test_saved_models.py for models of both kinds)."""

import pytest
import torch

from consistentee.engine.classify import classify
from consistentee.errors import UserError
from consistentee.models.heads import HeadSpec
from consistentee.rules.exit_rule import NeverExit


def test_mean_pooling_ignores_padding(tiny_model):
    model = tiny_model(pooling="mean", pooler="none")
    hidden = torch.randn(2, 5, model.width)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    pooled = model.pool(1, hidden, mask)
    torch.testing.assert_close(pooled[0], hidden[0].mean(0))
    torch.testing.assert_close(pooled[1], hidden[1, :2].mean(0))


def test_poolers_one_an_exit_start_from_the_shared_one(tiny_model):
    model = tiny_model(pooling="cls", pooler="shared")
    shared = model.poolers[0].weight.clone()
    model.use_pooler("per_exit")
    assert len(model.poolers) == model.num_layers
    assert all(torch.equal(dense.weight, shared) for dense in model.poolers)


def test_heads_check_their_extra_inputs(tiny_model):
    model = tiny_model()
    head = model.add_head("policy", HeadSpec(extra_inputs=2, outputs=1))
    pooled = torch.randn(3, model.width)
    assert head(1, pooled, torch.zeros(3, 2)).shape == (3,)
    with pytest.raises(ValueError, match="takes 2 extra inputs"):
        head(1, pooled)


def test_mixed_singles_and_pairs_are_refused(tiny_model):
    with pytest.raises(UserError, match="all pairs"):
        tiny_model().tokenize(["w1", ("w1", "w2")])
    with pytest.raises(UserError, match="a tuple is a pair of texts"):
        tiny_model().tokenize([("w1", "w2", "w3")])


def test_long_texts_are_cut_to_what_the_model_can_read(tiny_model):
    for family in ("bert", "roberta"):
        model = tiny_model(family)
        (encoding,) = model.tokenize(["w1 " * 500], max_length=1000)
        assert len(encoding) == {"bert": 66, "roberta": 64}[family]
        classify(model, ["w1 " * 500], NeverExit(), max_length=1000)
