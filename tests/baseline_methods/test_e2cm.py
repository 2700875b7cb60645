"""E2CM: means and distances by hand, and an untouched full model."""

from typing import cast

import torch
from conftest import make_task

from baselines.e2cm import E2CM, put_means
from consistentee.methods.method import get_method
from consistentee.models.classifiers import ClassifierSpec, ClassMeansClassifier, RecordedLayer
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.traces.instance_trace import record_trace
from consistentee.training.recipe import Recipe

RECIPE = Recipe(epochs=1, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=32, seed=1)


def first_exit(model: MultiExitModel) -> ClassMeansClassifier:
    model.use_classifier(ClassifierSpec("class-means", at_last_layer=False))
    return cast(ClassMeansClassifier, model.classifier(1))


def on_a_line(model: MultiExitModel, *places: float) -> torch.Tensor:
    vectors = torch.zeros(len(places), model.width)
    vectors[:, 0] = torch.tensor(places)
    return vectors


def test_distances_are_divided_by_their_mean_over_all_rows(tiny_model):
    """Means at 1 and 6; the rows are 1, 1, 4 and 6 from the first on average 3, from the second 2.75."""
    model = tiny_model(num_labels=2)
    classifier = first_exit(model)
    put_means(classifier, on_a_line(model, 0, 2, 5, 7), torch.tensor([0, 0, 1, 1]))
    assert classifier.means[:, 0].tolist() == [1, 6]
    assert classifier.mean_distances.tolist() == [(1 + 1 + 4 + 6) / 4, (6 + 4 + 1 + 1) / 4]
    said = classifier(RecordedLayer(on_a_line(model, 4).unsqueeze(1)))
    torch.testing.assert_close(said, torch.tensor([[-3 / 3, -2 / 3]]))


def test_a_class_without_rows_is_never_answered(tiny_model):
    model = tiny_model()
    classifier = first_exit(model)
    put_means(classifier, on_a_line(model, 1, 3), torch.tensor([0, 2]))
    said = classifier(RecordedLayer(on_a_line(model, 0.01, 2.9).unsqueeze(1)))
    assert said.softmax(dim=-1)[:, 1].tolist() == [0, 0]
    assert said.argmax(dim=-1).tolist() == [0, 2]


def test_exits_are_the_class_means_of_the_full_model(tiny_model):
    task = make_task()
    model = E2CM().fit(tiny_model().double(), task, RECIPE)  # float32 rounds small distances of large vectors
    full = get_method("full").fit(tiny_model().double(), task, RECIPE)
    trace, of_full = (record_trace(each, task.train, max_length=32) for each in (model, full))
    assert torch.equal(trace.logits[:, -1], of_full.logits[:, -1])
    for layer in range(1, model.num_layers):
        pooled = of_full.signals["pooled"][:, layer - 1]
        means = torch.stack([pooled[of_full.labels == label].mean(dim=0) for label in range(3)])
        distances = (pooled.unsqueeze(1) - means).norm(dim=-1)
        torch.testing.assert_close(trace.logits[:, layer - 1], -distances / distances.mean(dim=0))
