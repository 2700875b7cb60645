"""FastBERT: students come near their teacher, no label is read, and the teacher's stage is shared."""

import random
from dataclasses import replace

import pytest
import torch
from conftest import WORDS, make_task
from torch import Tensor

import baselines.fastbert
from baselines.fastbert import FastBERT
from consistentee.data.instances import Split, TaskData
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.traces.instance_trace import record_trace
from consistentee.training.encoder import train_last_exit
from consistentee.training.recipe import Recipe

LAST = "classifiers.3."
RECIPE = Recipe(epochs=3, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=32, frozen_steps=100)


def topics(rows: int = 112) -> TaskData:
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


@pytest.mark.parametrize("classifier", ["attention", "linear"])
def test_students_reach_their_teacher_without_labels(tiny_model, monkeypatch, classifier):
    """The teacher is fine-tuned on the labels; distillation sees random ones."""
    task = topics()
    fine_tuned = {}

    def fine_tune(model, _, recipe):
        train_last_exit(model, task, recipe)
        fine_tuned.update({n: w.clone() for n, w in model.state_dict().items() if n.startswith(("backbone.", LAST))})

    monkeypatch.setattr(baselines.fastbert, "train_last_exit_on", fine_tune)
    model = FastBERT(classifier).fit(tiny_model(pooling="mean"), with_random_labels(task), RECIPE)
    weights = model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in fine_tuned.items()), "only students are distilled"
    *_, student, teacher = accuracy_by_layer(model, task.test).tolist()
    assert teacher > 90
    assert student > teacher - 2
