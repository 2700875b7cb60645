"""The mixed regime, SWEET, product of experts and CAP: gradients, products and scores by hand."""

from functools import partial

import pytest
import torch
from conftest import make_task

from baselines.cap_nsp import CAP, NullSpaces
from baselines.mixed import Mixed
from baselines.product_of_experts import ProductOfExperts
from baselines.sweet import SWEET, exit_layers, separate_loss
from consistentee.methods.method import get_method
from consistentee.models.classifiers import RecordedLayer
from consistentee.traces.instance_trace import record_trace
from consistentee.traces.walk import sweep
from consistentee.training.encoder import TokenBatch
from consistentee.training.recipe import Recipe

RECIPE = Recipe(epochs=1, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=32, seed=1)


def batch_of(model) -> TokenBatch:
    train = make_task().train
    rows = torch.arange(8)
    return TokenBatch(model.collate(model.tokenize(train.texts[:8])), torch.tensor(train.labels[:8]), rows, 0)


def test_mixed_training_starts_from_the_full_model(tiny_model, tmp_path):
    """The first stage is the stored one of the full model, or there would be two of it."""
    recipe, task = Recipe(**{**vars(RECIPE), "store": tmp_path}), make_task()
    get_method("full").fit(tiny_model(), task, recipe)
    Mixed().fit(tiny_model(), task, recipe)
    stages = sorted(path.name.rpartition("-")[0] for path in tmp_path.glob("*.safetensors"))
    assert stages.count("last-exit") == 1
    assert stages.count("joint") == 1


class TestSWEET:
    def test_an_exit_trains_only_the_layers_since_the_one_before(self, tiny_model):
        model = tiny_model()
        assert exit_layers(model) == (1, 2, 4)
        losses = partial(separate_loss, exit_layers(model))
        losses(model, batch_of(model)).backward()
        gradients = [self.gradient_of(model, layer) for layer in range(1, 5)]
        assert all(gradient.any() for gradient in gradients)
        for classifier in (model.classifiers[1], model.classifiers[3]):  # without these exits nothing reaches 2 to 4
            torch.nn.init.zeros_(classifier.weight)
        model.zero_grad()
        losses(model, batch_of(model)).backward()
        assert [bool(self.gradient_of(model, layer).any()) for layer in range(1, 5)] == [True, False, False, False]
        assert torch.equal(self.gradient_of(model, 1), gradients[0])

    @staticmethod
    def gradient_of(model, layer: int) -> torch.Tensor:
        weights = model.stepper.layer_module(layer).parameters()
        return torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])

    def test_rows_exit_at_trained_exits_alone(self, tiny_model):
        model = SWEET().fit(tiny_model(), make_task(), RECIPE)
        trace = record_trace(model, make_task().test, max_length=32)
        exits = sweep([SWEET().rule(model, knob) for knob in SWEET().knob_values(model)], trace)
        assert set(exits.unique().tolist()) <= {1, 2, 4}


def test_a_product_multiplies_the_exits_so_far(tiny_model):
    model = ProductOfExperts().fit(tiny_model(), make_task(), RECIPE)
    joint = get_method("pabee").fit(tiny_model(), make_task(), RECIPE)
    history = torch.randn(5, 3, model.width)
    said = torch.stack([joint.classify(t, RecordedLayer(history[:, :t])) for t in (1, 2, 3)], dim=1)
    weighted = torch.nn.functional.softplus(said) ** torch.tensor([1 / 4, 2 / 4, 3 / 4]).view(1, 3, 1)
    products = weighted.prod(dim=1)
    answers = model.classifier(3)(RecordedLayer(history)).softmax(dim=-1)
    torch.testing.assert_close(answers, products / products.sum(dim=-1, keepdim=True))


@pytest.mark.parametrize("logit", [-20.0, -200.0])
def test_a_product_is_finite_far_below_zero(tiny_model, logit):
    model = ProductOfExperts().fit(tiny_model(), make_task(), RECIPE)
    with torch.no_grad():
        model.classifier(1).weight.zero_()
        model.classifier(1).bias.copy_(torch.tensor([logit, 0.0, 0.0]))
    answer = model.classifier(1)(RecordedLayer(torch.zeros(1, 1, model.width)))
    torch.testing.assert_close(answer[0, 0].item(), logit / 4)


def test_the_score_is_the_share_that_no_class_reads(tiny_model):
    """A classifier that reads the first two inputs, with weights 2 and 4 and biases 6 and 8: its origin is (3, 2)."""
    model = tiny_model(num_labels=2)
    with torch.no_grad():
        classifier = model.classifier(1)
        classifier.weight.zero_()
        classifier.weight[0, 0], classifier.weight[1, 1] = 2.0, 4.0
        classifier.bias.copy_(torch.tensor([6.0, 8.0]))
    inputs = torch.zeros(2, model.width)
    inputs[0, 2] = 13**0.5  # as long as the origin: half of the squared length is not read
    scores = NullSpaces(model).score(1, inputs)
    torch.testing.assert_close(scores, torch.tensor([0.5**0.5, 0.0]))
    assert CAP().scale == 0.1


@pytest.mark.parametrize("network", ["linear", "mlp", "attention"])
@pytest.mark.parametrize("name", ["deebert", "fastbert", "pabee", "mixed"])
def test_the_network_of_exits_is_a_parameter_and_layer_l_keeps_its_own(tiny_model, name, network):
    recipe, task = Recipe(**{**vars(RECIPE), "frozen_steps": 4}), make_task()
    model = get_method(name, classifier=network).fit(tiny_model(), task, recipe)
    kinds = [type(classifier).__name__.removesuffix("Classifier").lower() for classifier in model.classifiers]
    assert kinds == [network] * 3 + ["linear"]
    if name in ("deebert", "fastbert"):
        full = get_method("full").fit(tiny_model(), task, recipe)
        last = [record_trace(each, task.test, max_length=32).logits[:, -1] for each in (model, full)]
        assert torch.equal(*last)


def test_berxit_exits_by_confidence_too(tiny_model):
    model = get_method("berxit").fit(tiny_model(), make_task(), RECIPE)
    trace = record_trace(model, make_task().test, max_length=32)
    exits = sweep([get_method("berxit", exit_when="confident").rule(model, 0.6)], trace)[0]
    confident = trace.logits.softmax(dim=-1).amax(dim=-1)[:, :-1] > 0.4
    expected = torch.where(confident.any(dim=1), confident.int().argmax(dim=1) + 1, 4)
    assert exits.tolist() == expected.tolist()
