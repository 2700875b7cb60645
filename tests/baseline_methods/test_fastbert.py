"""FastBERT: students come near their teacher, no label is read, and the teacher's stage is shared."""

import os
import random
from dataclasses import replace

import pytest
import torch
from conftest import WORDS, make_task
from torch import Tensor

import baselines.fastbert
from baselines.deebert import DeeBERT
from baselines.fastbert import FastBERT
from benchmarks.tasks.loader import load_task
from consistentee.data.instances import Split, TaskData
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.traces.instance_trace import record_trace
from consistentee.training.recipe import Recipe
from consistentee.training.encoder import train_last_exit

RECIPE = Recipe(epochs=1, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=32, frozen_steps=100)
STUDENTS = ["attention", "linear"]


def topics(rows: int = 160) -> TaskData:
    """Return a task that is soon learned: a text of class c is written in the c-th third of the vocabulary."""
    generator = random.Random(0)

    def split(name: str) -> Split:
        labels = [generator.randrange(3) for _ in range(rows)]
        texts = [" ".join(generator.choices(WORDS[20 * c : 20 * c + 20], k=8)) for c in labels]
        return Split(name, texts, labels)

    return replace(make_task(), train=split("train"), test=split("test"))


def with_random_labels(task: TaskData) -> TaskData:
    labels = torch.randint(task.num_labels, (len(task.train),), generator=torch.Generator().manual_seed(4)).tolist()
    return replace(task, train=replace(task.train, labels=labels))


def accuracy_by_layer(model: MultiExitModel, split: Split) -> Tensor:
    trace = record_trace(model, split)
    return 100 * (trace.logits.argmax(-1) == trace.labels.unsqueeze(1)).double().mean(dim=0)


@pytest.mark.parametrize("classifier", STUDENTS)
def test_students_reach_their_teacher_without_labels(tiny_model, monkeypatch, classifier):
    """The teacher is fine-tuned on the labels; distillation sees random ones."""
    task = topics()
    monkeypatch.setattr(
        baselines.fastbert, "train_last_exit_on", lambda model, _, recipe: train_last_exit(model, task, recipe)
    )
    model = FastBERT(classifier).fit(tiny_model(pooling="mean"), with_random_labels(task), replace(RECIPE, epochs=3))
    *_, student, teacher = accuracy_by_layer(model, task.test).tolist()
    assert teacher > 90
    assert student > teacher - 2


@pytest.mark.parametrize(
    ("classifier", "pooling", "pooler"), [("attention", "mean", "none"), ("linear", "cls", "shared")]
)
def test_distillation_moves_the_students_and_nothing_else(tiny_model, monkeypatch, classifier, pooling, pooler):
    monkeypatch.setattr(baselines.fastbert, "train_last_exit_on", lambda *_: None)
    model = tiny_model(pooling=pooling, pooler=pooler)
    task = make_task()
    untouched = {name: weight.clone() for name, weight in model.state_dict().items()}
    trace = record_trace(model, task.test)
    FastBERT(classifier).fit(model, task, RECIPE)
    state = model.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in untouched.items() if name.startswith("backbone."))
    again = record_trace(model, task.test)
    assert torch.equal(again.logits[:, -1], trace.logits[:, -1]), "the teacher answers as it did"
    assert not torch.equal(again.logits[:, -2], trace.logits[:, -2])


def test_the_teacher_is_trained_once_for_deebert_too(tiny_model, tmp_path):
    recipe = replace(RECIPE, store=tmp_path)
    for method in (DeeBERT(), FastBERT()):
        method.fit(tiny_model(), make_task(), recipe)
    assert len(list(tmp_path.glob("last-exit-*.safetensors"))) == 1


@pytest.mark.real
def test_students_reach_their_teacher_on_mcid():
    if not os.environ.get("CONSISTENTEE_DATA"):
        pytest.skip("CONSISTENTEE_DATA is not set")
    task = load_task("mcid")
    model = MultiExitModel.from_backbone("minilm-l6", task.num_labels)
    model = FastBERT().fit(model, task, Recipe(epochs=3, max_length=64))
    *_, student, teacher = accuracy_by_layer(model, task.test).tolist()
    assert teacher > 80
    assert student > teacher - 2
