"""Networks of exits (E2CM, GPFEE, ZTW, product of experts): their answers and losses by hand."""

from typing import cast

import pytest
import torch
from torch.nn import functional

from baselines.e2cm import ClassMeansClassifier, put_means
from baselines.gpfee import imitation_loss
from baselines.product_of_experts import ProductOfExperts
from benchmarks.testing.cases import RECIPE
from benchmarks.testing.tiny import make_task
from consistentee.methods.method import get_method
from consistentee.models.classifiers import ClassifierSpec, RecordedLayer
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.traces.instance_trace import record_trace
from consistentee.training import encoder


def first_exit(model: MultiExitModel) -> ClassMeansClassifier:
    model.use_classifier(ClassifierSpec("class-means", at_last_layer=False))
    return cast(ClassMeansClassifier, model.classifier(1))


def on_a_line(model: MultiExitModel, *places: float) -> torch.Tensor:
    vectors = torch.zeros(len(places), model.width)
    vectors[:, 0] = torch.tensor(places)
    return vectors


@pytest.mark.parametrize("far", [0, 4096])
def test_distances_are_divided_by_their_mean_over_all_rows(tiny_model, far):
    """Means at 1 and 6; the rows are 1, 1, 4 and 6 from the first on average 3, from the second 3; also far from 0."""
    model = tiny_model(num_labels=2)
    classifier = first_exit(model)
    put_means(classifier, far + on_a_line(model, 0, 2, 5, 7), torch.tensor([0, 0, 1, 1]))
    assert classifier.means[:, 0].tolist() == [far + 1, far + 6]
    assert classifier.mean_distances.tolist() == [(1 + 1 + 4 + 6) / 4, (6 + 4 + 1 + 1) / 4]
    said = classifier(RecordedLayer(far + on_a_line(model, 4).unsqueeze(1)))
    torch.testing.assert_close(said, torch.tensor([[-3 / 3, -2 / 3]]))


def test_a_class_without_rows_is_never_answered(tiny_model):
    model = tiny_model()
    classifier = first_exit(model)
    put_means(classifier, on_a_line(model, 1, 3), torch.tensor([0, 2]))
    said = classifier(RecordedLayer(on_a_line(model, 0.01, 2.9).unsqueeze(1)))
    assert said.softmax(dim=-1)[:, 1].tolist() == [0, 0]
    assert said.argmax(dim=-1).tolist() == [0, 2]


def test_imitation_is_one_minus_the_cosine_over_all_pairs(tiny_model):
    model = tiny_model()
    model.use_classifier(ClassifierSpec("past-future", width=16))
    pooled = torch.randn(5, model.num_layers, model.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for t in range(1, model.num_layers):
            for parameter in model.classifier(t).predictor.parameters():
                parameter.zero_()  # every later state is predicted to be the current one
    cosine = functional.cosine_similarity(pooled[:, :, None], pooled[:, None], dim=-1)
    pairs = [1 - cosine[:, t, later] for t in range(4) for later in range(t + 1, 4)]
    torch.testing.assert_close(imitation_loss(model, pooled), torch.stack(pairs).mean())


@torch.no_grad()
def test_ensembles_of_ztw_answer_as_a_plain_loop(tiny_model):
    model, generator = tiny_model(), torch.Generator().manual_seed(0)
    model.use_classifier(ClassifierSpec("ensemble", at_last_layer=False))
    for weight in model.classifiers.parameters():
        weight.normal_(generator=generator)  # far from those that they start with
    pooled = torch.randn(model.num_layers, model.width, generator=generator)  # of one row
    said, before = [], None
    for layer in range(1, model.num_layers):
        weights, inputs = model.classifier(layer).state_dict(), pooled[layer - 1]
        if before is not None:
            spread = (before - before.mean()) / (before.var(correction=0) + 1e-5).sqrt()
            inputs = torch.cat([inputs, spread])
        before = weights["output.weight"] @ inputs + weights["output.bias"]
        said.append(before.log_softmax(dim=0))
        total = sum(weights["exponents"][j].exp() * said[j] for j in range(layer))
        answer = model.classifier(layer)(RecordedLayer(pooled[None, :layer]))[0]
        torch.testing.assert_close(answer, total / layer + weights["bias"])


def test_a_product_multiplies_the_exits_so_far(tiny_model):
    model = ProductOfExperts().fit(tiny_model(), make_task(), RECIPE)
    joint = get_method("pabee").fit(tiny_model(), make_task(), RECIPE)
    history = torch.randn(5, 3, model.width)
    said = torch.stack([joint.classifier(t)(RecordedLayer(history[:, :t])) for t in (1, 2, 3)], dim=1)
    weighted = functional.softplus(said) ** torch.tensor([1 / 4, 2 / 4, 3 / 4]).view(1, 3, 1)
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


@pytest.mark.parametrize("network", ["linear", "mlp", "attention"])
@pytest.mark.parametrize("name", ["deebert", "fastbert", "pabee", "mixed"])
def test_the_network_of_exits_is_a_parameter_and_layer_l_keeps_its_own(tiny_model, name, network):
    task = make_task()
    model = get_method(name, classifier=network).fit(tiny_model(), task, RECIPE)
    kinds = [type(classifier).__name__.removesuffix("Classifier").lower() for classifier in model.classifiers]
    assert kinds == [network] * 3 + ["linear"]
    if name in ("deebert", "fastbert"):
        full = get_method("full").fit(tiny_model(), task, RECIPE)
        last = [record_trace(each, task.test, max_length=32).logits[:, -1] for each in (model, full)]
        assert torch.equal(*last)


def test_students_of_fastbert_may_have_a_rate_of_their_own(tiny_model, monkeypatch):
    rates = {}
    monkeypatch.setattr(encoder, "run_stage", lambda *given: rates.update({given[2].name: given[2].learning_rate}))
    get_method("fastbert", learning_rate=2e-4).fit(tiny_model(), make_task(), RECIPE)
    assert rates == {"last-exit": RECIPE.learning_rate, "self-distillation": 2e-4}
