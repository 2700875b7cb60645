"""FastBERT: students learn from their teacher alone, and change nothing else."""

from dataclasses import replace

import pytest
import torch
from conftest import make_task

import baselines.fastbert
from baselines.fastbert import FastBERT
from consistentee.training.recipe import Recipe

RECIPE = Recipe(epochs=1, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=32, frozen_steps=8)


@pytest.mark.parametrize("classifier", ["attention", "linear"])
def test_students_read_no_label_and_leave_the_fine_tuned_model_alone(tiny_model, monkeypatch, classifier):
    monkeypatch.setattr(baselines.fastbert, "train_last_exit", lambda model, source, recipe: None)
    task, method = make_task(), FastBERT(classifier)
    others = replace(task, train=replace(task.train, labels=[(label + 1) % 3 for label in task.train.labels]))
    first, second = (method.fit(tiny_model(), each, RECIPE).state_dict() for each in (task, others))
    assert all(torch.equal(second[name], weight) for name, weight in first.items())
    stock = tiny_model().state_dict()
    frozen = [name for name in first if name.startswith(("backbone.", "classifiers.3."))]
    assert all(torch.equal(first[name], stock[name]) for name in frozen)
    assert classifier == "attention" or not torch.equal(first["classifiers.0.weight"], stock["classifiers.0.weight"])
