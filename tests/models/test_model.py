"""MultiExitModel: pooling, texts, layers in bfloat16 (test_saved_models.py: what holds of decoders too)."""

import pytest
import torch
from conftest import FAMILIES, random_texts

from consistentee.backbones.token_exits import TokenExitStepper
from consistentee.data.encoding import Batch
from consistentee.engine.classify import classify
from consistentee.errors import UserError
from consistentee.models.classifiers import ClassifierSpec
from consistentee.models.encoder.cascade import add_companion, companion_of_first_layers
from consistentee.models.encoder.multi_exit_model import MultiExitModel
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


def batch_of(model: MultiExitModel) -> Batch:
    return model.collate(model.tokenize(random_texts(6)))


class TestLayersInBfloat16:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_layers_alone_are_computed_in_it(self, tiny_model, family):
        model = tiny_model(family)
        batch = batch_of(model)
        plain = model(batch)
        with model.layers_in("bfloat16"):
            rough, stock = model(batch), model.stock_logits(batch)
        assert {rough.vectors.dtype, rough.logits.dtype, stock.dtype} == {torch.float32}
        assert not torch.equal(rough.vectors, plain.vectors)
        torch.testing.assert_close(rough.vectors, plain.vectors, atol=0.1, rtol=0.05)
        assert torch.equal(rough.logits, model.read_vectors(rough.vectors).logits), "classifiers stay in float32"
        torch.testing.assert_close(stock, rough.logits[:, -1], atol=0.05, rtol=0.05)
        rough.logits.sum().backward()
        gradients = [p.grad for p in model.backbone.parameters() if p.grad is not None]
        assert gradients
        assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in gradients)

    @pytest.mark.parametrize("kind", ["token exits", "companion", "attention", "past-future"])
    def test_whatever_runs_or_reads_the_layers(self, tiny_model, kind):
        model = tiny_model()
        if kind == "token exits":
            schedule = torch.arange(model.backbone.config.vocab_size) % model.num_layers + 1
            model.use_stepper(TokenExitStepper.over(model.stepper, schedule))
        elif kind == "companion":
            add_companion(model, companion_of_first_layers(model, 2))
        else:
            model.use_classifier(ClassifierSpec(kind))
        batch = batch_of(model)
        with model.layers_in("bfloat16"):
            rough = model(batch)
        torch.testing.assert_close(rough.logits, model(batch).logits, atol=0.1, rtol=0.1)
        rough.logits.sum().backward()

    def test_only_for_the_time_being_and_never_at_inference(self, tiny_model):
        model = tiny_model()
        batch = batch_of(model)
        plain, answers = model(batch), classify(model, random_texts(6), NeverExit()).logits
        with model.layers_in("bfloat16"):
            assert torch.equal(classify(model, random_texts(6), NeverExit()).logits, answers)
        assert torch.equal(model(batch).logits, plain.logits)
        with pytest.raises(RuntimeError, match="in between"), model.layers_in("bfloat16"):
            raise RuntimeError("in between")
        assert torch.equal(model(batch).logits, plain.logits)
