"""Ways to answer faster than a fine-tuned model: exits on its frozen layers with a rule and a knob, or a shorter model.

The ways of a method differ in the knob and in the layers at which its rule is asked. Whether a way keeps the loss is
known of the rows for choosing alone.
"""

import copy
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import groupby
from statistics import geometric_mean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consistentee.backbones.int8 import Quantize
from consistentee.data.encoding import Encoding
from consistentee.data.tasks import Split, TaskData
from consistentee.deployment.risk_control import Losses, bets, leading
from consistentee.deployment.timing import classified
from consistentee.errors import UserError
from consistentee.methods.consistent_ee.held_out import ConsistentEEHeldOut, train_policy
from consistentee.methods.method import Method, get_method
from consistentee.models.base import chosen_device
from consistentee.models.encoder import MultiExitModel
from consistentee.rules.exit_rule import ExitRule, SomeLayersRule
from consistentee.traces.instance_trace import Trace, record_logits
from consistentee.traces.walk import sweep
from consistentee.training.encoder import (
    TokenBatch,
    TokenSource,
    distillation_loss,
    label_tensor,
    layer_losses,
    student_loss,
    token_stage,
    train_early_exits,
)
from consistentee.training.loop import run_stage
from consistentee.training.recipe import ExitNetwork, Recipe

_ATTENTION_STEPS = 0.4
"""Steps of attention exits, as a share of those of linear ones."""
_MAX_KNOBS = 30
MODELS: Mapping[Quantize, str] = {"none": "your model", "int8": "the int8 model"}
_STEPS_TOWARDS_THE_KNOB = 8
"""Values of a knob, more cautious than the one chosen, that are tested before it."""


@dataclass(frozen=True)
class Rows:
    """Rows, and the incoming model, with whose answers others are compared."""

    model: MultiExitModel
    split: Split

    def __len__(self) -> int:
        return len(self.split)

    @cached_property
    def encodings(self) -> Sequence[Encoding]:
        return self.model.tokenize(self.split.texts)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        return np.asarray(self.split.labels)

    @cached_property
    def wrong(self) -> Losses:
        """1 for each row that the incoming model answers wrongly."""
        return (answers_of(self.model, self) != self.labels).astype(float)

    def losses(self, answers: NDArray[np.int64]) -> Losses:
        """Compare answers with the incoming model's."""
        return (answers != self.labels).astype(float) - self.wrong


@dataclass(frozen=True)
class Cost:
    """Seconds of a row by batch size: of the incoming model, of all layers, and of one question of an exit rule."""

    incoming: Mapping[int, float]
    layers: Mapping[int, float]
    question: Mapping[int, float]

    def speed(self, share: float, questions: float) -> float:
        """Estimate the speed of a way that runs a share of the layers and asks its rule some questions a row."""
        return geometric_mean(
            seconds / (self.layers[size] * share + self.question[size] * questions)
            for size, seconds in self.incoming.items()
        )


@dataclass(frozen=True, eq=False)
class Way:
    """One way to answer: a model, its method, the knob, the layers at which its rule is asked.

    Attributes:
        name: such as "entropy below 0.51".
        on: the weights it runs on, such as "the int8 model".
        choosing: its losses on the rows for choosing.
        layers: average exit layer on these rows.
        speed: how many times as fast as the incoming model it is estimated to be.
    """

    name: str
    on: str
    model: MultiExitModel
    method: Method
    knob: float
    asked: tuple[int, ...]
    choosing: Losses
    layers: float
    speed: float

    @property
    def rule(self) -> ExitRule:
        return SomeLayersRule(self.method.rule(self.model, self.knob), *self.asked)

    def run(self, batch: Sequence[Encoding]) -> object:
        """Answer a batch, for the clock."""
        return classified(self.model, self.rule, batch)


class Incoming:
    """The incoming model, and its answers on rows for training, for choosing and for the proof.

    Rows are in random order, which the proof takes for granted; at most ``max_rows`` are for training.
    """

    def __init__(self, path: str, task: TaskData, max_rows: int | None) -> None:
        self.model = MultiExitModel.from_classifier(path)
        self.model.to(chosen_device())
        self.path = path
        given = (task.train.capped(max_rows, seed=0), task.validation, task.test)
        train, validation, test = (_shuffled(_in_labels_of(self.model, task, split)) for split in given)
        names = tuple(self.model.description.label_names)
        self.task = replace(task, train=train, validation=validation, test=test, label_names=names)
        self.training, self.choosing, self.proof = (Rows(self.model, split) for split in (train, validation, test))


def answers_of(model: MultiExitModel, rows: Rows) -> NDArray[np.int64]:
    """Return the classes that a model gives at full depth."""
    return record_logits(model, rows.encodings)[:, -1].argmax(dim=-1).numpy()


def _shuffled(split: Split) -> Split:
    return split.select(random.Random(0).sample(range(len(split)), len(split)))


def _in_labels_of(model: MultiExitModel, task: TaskData, split: Split) -> Split:
    """Return a split with the numbers that the model gives to its labels. Raises UserError for labels it lacks."""
    names = list(model.description.label_names)
    if task.regression or len(task.label_names) > len(names):
        raise UserError(f"{model.description.backbone_name} knows {len(names)} labels, and the task has others")
    lower = [name.lower() for name in names]
    if set(task.label_names) <= set(names):
        numbers = [names.index(name) for name in task.label_names]
    elif all(lower.count(name.lower()) == 1 for name in task.label_names):
        numbers = [lower.index(name.lower()) for name in task.label_names]
    elif all(name == f"LABEL_{number}" for number, name in enumerate(names)):
        numbers = list(range(len(task.label_names)))  # the model was saved without names
    else:
        missing = next(name for name in task.label_names if name.lower() not in lower)
        raise UserError(f"the model does not know the label {missing!r}; it knows {', '.join(names[:20])}")
    return replace(split, labels=[numbers[int(label)] for label in split.labels])


# ------------------------------------------------------------------------------------------------ models


def exits_on(
    incoming: Incoming, base: MultiExitModel, network: ExitNetwork, recipe: Recipe
) -> tuple[MultiExitModel, list[tuple[str, Method]]]:
    """Train exits of a network on a frozen model, and return what can be asked of them: words and methods."""
    model = base.fresh(recipe.seed)
    rows = incoming.training
    if network == "attention":
        recipe = replace(recipe, frozen_steps=math.ceil(_ATTENTION_STEPS * recipe.frozen_steps))
    source = TokenSource(model, rows.encodings, label_tensor(rows.split.labels))
    train_early_exits(model, source, student_loss, recipe, name=f"exits, {network}", network=network)
    policy = ConsistentEEHeldOut(classifier=network)
    answers = torch.from_numpy(answers_of(model, incoming.choosing))
    train_policy(model, TokenSource(model, incoming.choosing.encodings, answers), recipe)
    rules = {
        "entropy below {}": "deebert",
        "margin above {}": "calm-softmax",
        "same answer, repeated {} times": "pabee",
        "every text exits at layer {}": "static",
    }
    if model.num_labels == 2:
        del rules["margin above {}"]  # the same order of rows as by entropy
    return model, [
        *((words, get_method(name, classifier=network)) for words, name in rules.items()),
        ("learned policy at a price of {}", policy),
    ]


def ensemble_on(
    incoming: Incoming, base: MultiExitModel, recipe: Recipe
) -> tuple[MultiExitModel, list[tuple[str, Method]]]:
    """Train ZTW's ensembles on a frozen model; see :func:`exits_on`."""
    model, method = base.fresh(recipe.seed), get_method("ztw")
    method.fit(model, incoming.task, recipe)
    return model, [("confidence of the ensemble above {}", method)]


def cut(incoming: Incoming, layers: int, recipe: Recipe, *, distilled: bool) -> MultiExitModel:
    """Return a model of the first layers with a copy of the head, tuned on labels, or half on the model's answers."""
    full = incoming.model
    model = full.first_layers(layers)
    model.description = replace(full.description, heads={})
    model.classifiers[-1] = copy.deepcopy(full.classifiers[-1])
    rows = incoming.training
    source = TokenSource(model, rows.encodings, label_tensor(rows.split.labels))
    teacher = record_logits(full, rows.encodings)[:, -1] if distilled else None
    name = f"{layers} layers, {'distilled' if distilled else 'tuned'}"
    run_stage(model, source, token_stage(name, partial(_cut_loss, teacher), recipe), recipe)
    return model


def _cut_loss(teacher: Tensor | None, model: MultiExitModel, batch: TokenBatch) -> Tensor:
    logits = model.stock_logits(batch.tokens)
    loss = layer_losses(logits.unsqueeze(1), batch.labels).mean()
    if teacher is None:
        return loss
    return (loss + distillation_loss(torch.stack([logits, teacher[batch.rows].to(logits.device)], dim=1))) / 2


# ------------------------------------------------------------------------------------------------ choice


def ways_of(
    model: MultiExitModel, method: Method, words: str, incoming: Incoming, *, cost: Cost, trace: Trace
) -> Iterator[list[Way]]:
    """Yield for each choice of asked layers the ways of a method with different knobs, from the most cautious one on.

    ``words``: their name, with a place for the knob's value. ``trace``: of the rows for choosing.
    """
    layers = trace.num_layers
    rules = [(float(knob), method.rule(model, knob)) for knob in method.knob_values(model)]
    depths = sweep([rule for _, rule in rules], trace).double().mean(dim=1).tolist()
    order = sorted(range(len(rules)), key=lambda index: -depths[index])
    step = (layers - 1) / _MAX_KNOBS
    kept = [rules[next(alike)] for _, alike in groupby(order, key=lambda index: int(depths[index] / step))]
    is_static = method.name == "static"  # nothing is computed to decide
    for asked in [tuple(range(1, layers))] if is_static else _asked_layers(layers):
        found = []
        exits = sweep([SomeLayersRule(rule, *asked) for _, rule in kept], trace)
        for (knob, _), at in zip(kept, exits, strict=True):
            questions = float(sum((at >= layer).double().mean() for layer in asked)) * (not is_static)
            depth = float(at.double().mean())
            losses = incoming.choosing.losses(trace.predictions(at).numpy())
            speed = cost.speed(depth / layers, questions)
            name, on = words.format(f"{knob:.3g}"), MODELS[model.description.quantize]
            found.append(Way(name, on, model, method, knob, asked, losses, depth, speed))
        yield sorted(found, key=lambda way: -way.layers)


def _asked_layers(layers: int) -> list[tuple[int, ...]]:
    """List choices of layers at which a rule is asked: all from one on, or every other."""
    firsts = range(1, max(2, layers // 2 + 1))
    options = [tuple(range(first, layers, stride)) for first in firsts for stride in (1, 2)]
    return list(dict.fromkeys(option for option in options if option))


def without_exits(name: str, on: str, model: MultiExitModel, incoming: Incoming, cost: Cost) -> Way:
    """Return a way that runs all layers of a model on every row."""
    losses = incoming.choosing.losses(answers_of(model, incoming.choosing))
    layers, full = float(model.num_layers), get_method("full")
    return Way(name, on, model, full, layers, (), losses, layers, cost.speed(1.0, 0.0))


def path(paths: Sequence[Sequence[Way]], loss: float, probability: float) -> list[Way]:
    """Return the ways that lead to the fastest one within the loss on the rows for choosing, itself included.

    Where the bound accepts none, the fastest one with that mean loss is returned alone.
    """
    best: list[Way] = []
    for ways in paths:
        evidence = bets(np.stack([way.choosing for way in ways], axis=1), loss)[1]
        last = leading(evidence >= math.log(1 / (1 - probability)))
        if last and (not best or ways[last - 1].speed > best[-1].speed):
            best = list(ways[max(0, last - _STEPS_TOWARDS_THE_KNOB) : last])
    if best:
        return best
    within = [way for ways in paths for way in ways if way.choosing.mean() <= loss / 100]
    return [max(within or [ways[0] for ways in paths], key=lambda way: way.speed)]


def worth_testing(ways: Sequence[Way], loss: float) -> list[Way]:
    """Leave out ways that another one beats in safety and in speed; a failure ends the tests, so each one is a risk."""
    safety = bets(np.stack([way.choosing for way in ways], axis=1), loss)[1]
    both = np.stack([safety, [way.speed for way in ways]], axis=1)  # [ways, 2]
    beaten = [bool(((both >= own).all(axis=1) & (both > own).any(axis=1)).any()) for own in both]
    return [way for way, is_beaten in zip(ways, beaten, strict=True) if not is_beaten]
