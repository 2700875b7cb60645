"""Make a fine-tuned classifier faster, with a promise about the points that this loses.

The incoming model does not change. Exits are trained on its frozen layers, in float32 and on an int8 copy; rules of
published methods, and what needs no exits (int8 alone, fewer layers), compete. Three groups of rows are kept apart:

1. on rows for training, exits learn to answer as the last one does, and shorter models are tuned;
2. on rows for choosing, every way is replayed. For each way of computing, float32, int8 and fewer layers, the one that
   is estimated to be the fastest within the loss goes on, with the more cautious values of its knob;
3. on rows for the proof, which were used for nothing before, these go through one sequence of tests, from the safest
   on the rows for choosing to the least safe, until the first one fails; a way is not tested if another is safer and
   faster. With the probability asked for, all that passed lose at most the loss. Those are timed.

The loss is that of accuracy against the incoming model, row by row: points lost less points won.

Sources: Angelopoulos et al., Learn then Test, 2021, arXiv 2110.01052 (fixed sequence testing); Waudby-Smith and Ramdas,
Estimating means of bounded random variables by betting, 2023, arXiv 2010.09686. A test is a bet against a larger loss,
whose stake was learnt on the rows for choosing.
"""

import copy
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from consistentee.arguments import checked
from consistentee.backbones.cascade import first_layers
from consistentee.backbones.encoders import stepper_for
from consistentee.backbones.int8 import has_int8_kernel
from consistentee.data.encoding import Encoding
from consistentee.data.instances import Split, TaskData
from consistentee.deployment.timing import (
    BATCH_SIZES,
    Run,
    classified,
    describe_machine,
    speed_ups,
    stock_model,
    time_runs,
)
from consistentee.errors import UserError, reason_of
from consistentee.methods.consistent_ee.held_out import ConsistentEEHeldOut, train_policy
from consistentee.methods.method import Method, get_method
from consistentee.models.base import chosen_device
from consistentee.models.encoder.multi_exit_model import MultiExitModel, take_pooler
from consistentee.progress import begin_stage
from consistentee.rules.exit_rule import ExitRule, NeverExit, SomeLayersRule, ThresholdRule
from consistentee.signals import top_probability
from consistentee.traces.instance_trace import Trace, record_logits, record_trace
from consistentee.traces.walk import sweep
from consistentee.training.encoder import (
    TokenBatch,
    TokenSource,
    label_tensor,
    layer_losses,
    student_loss,
    token_stage,
    train_early_exits,
)
from consistentee.training.loop import run_stage
from consistentee.training.recipe import ExitNetwork, Recipe

Losses = NDArray[np.float64]
"""1 for a point lost against the incoming model, -1 for one won, 0 otherwise: [rows]."""

REPORT_FILE = "accelerated.json"
_STOCK = "your model"
_COMPILED = "torch.compile"
_FINALISTS = 3
_MODELS = {"none": "your model", "int8": "the int8 model"}
_MAX_KNOBS = 30
_STEPS_TOWARDS_THE_KNOB = 8
"""Values of a knob, more cautious than the one chosen, that are tested before it."""
_CALIBRATION_ROWS = 256
_STAKES = np.linspace(0.02, 0.98, 49)
RECIPE = Recipe(frozen_steps=1000, max_rows=5000, epochs=3, group_by_length=True)


@dataclass(frozen=True)
class Rows:
    """Rows as tokens, with their labels."""

    encodings: Sequence[Encoding]
    split: Split

    def __len__(self) -> int:
        return len(self.encodings)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        return np.asarray(self.split.labels)


@dataclass(frozen=True)
class Cost:
    """Seconds of a row by batch size: for all layers, and for one question of an exit rule."""

    layers: Mapping[int, float]
    question: Mapping[int, float]


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


@dataclass(frozen=True)
class Family:
    """A rule on a trained model, before knob and asked layers are chosen; ``words``: its name with the knob's value."""

    words: str
    on: str
    model: MultiExitModel
    method: Method
    cost: Cost
    choosing: Trace

    def ways(self, incoming: "Incoming") -> Iterator[list[Way]]:
        """Yield for each choice of asked layers the ways with different knobs, from the most cautious one on."""
        layers = self.choosing.num_layers
        rules = self._rules()
        whole = sweep([rule for _, rule in rules], self.choosing)
        depths = whole.double().mean(dim=1)
        order = sorted(range(len(rules)), key=lambda index: -float(depths[index]))
        step = (layers - 1) / _MAX_KNOBS
        kept = [
            index
            for place, index in enumerate(order)
            if not place or _is_first_of_its_depth(depths, order, place, step)
        ]
        is_static = self.method.name == "static"  # nothing is computed to decide
        for asked in [tuple(range(1, layers))] if is_static else _asked_layers(layers):
            found = []
            exits = sweep([SomeLayersRule(rules[index][1], *asked) for index in kept], self.choosing)
            for index, at in zip(kept, exits, strict=True):
                knob = rules[index][0]
                questions = float(sum((at >= layer).double().mean() for layer in asked)) * (not is_static)
                found.append(
                    Way(
                        name=self.words.format(f"{knob:.3g}"),
                        on=self.on,
                        model=self.model,
                        method=self.method,
                        knob=knob,
                        asked=asked,
                        choosing=incoming.losses(self.choosing.predictions(at).numpy(), incoming.choosing),
                        layers=float(at.double().mean()),
                        speed=incoming.estimate(self.cost, float(at.double().mean()) / layers, questions),
                    )
                )
            yield sorted(found, key=lambda way: -way.layers)

    def _rules(self) -> list[tuple[float, ExitRule]]:
        return [(float(knob), self.method.rule(self.model, knob)) for knob in self.method.knob_values(self.model)]


def _is_first_of_its_depth(depths: Tensor, order: Sequence[int], place: int, step: float) -> bool:
    """Return whether a knob is the first one in its part of the range of depths."""
    before, here = (int(float(depths[order[i]]) / step) for i in (place - 1, place))
    return before != here


def _asked_layers(layers: int) -> list[tuple[int, ...]]:
    """List choices of layers at which a rule is asked: all from one on, or every other."""
    firsts = range(1, max(2, layers // 2 + 1))
    options = [tuple(range(first, layers, stride)) for first in firsts for stride in (1, 2)]
    return list(dict.fromkeys(option for option in options if option))


class Incoming:
    """The incoming model: its answers on all rows, its speed, and the comparison of other answers with them.

    Rows are in random order, which the proof takes for granted; at most ``max_rows`` are for training.
    """

    def __init__(self, path: str, task: TaskData, max_rows: int | None) -> None:
        self.model = MultiExitModel.from_classifier(path)
        self.model.to(chosen_device())
        self.path = path
        given = (task.train.capped(max_rows, seed=0), task.validation, task.test)
        splits = [_shuffled(_in_labels_of(self.model, task, split)) for split in given]
        self.training, self.choosing, self.proof = (Rows(self.model.tokenize(s.texts), s) for s in splits)
        self.is_wrong: dict[int, Losses] = {}
        self.seconds: dict[int, float] = {}

    def answer(self, rows: Rows) -> None:
        """Keep which of the rows the model answers wrongly."""
        answers = record_logits(self.model, rows.encodings)[:, -1].argmax(dim=-1).numpy()
        self.is_wrong[id(rows)] = (answers != rows.labels).astype(float)

    def losses(self, answers: NDArray[np.int64], rows: Rows) -> Losses:
        """Compare answers with the model's on rows that it has answered."""
        return (answers != rows.labels).astype(float) - self.is_wrong[id(rows)]

    def estimate(self, cost: Cost, share: float, questions: float) -> float:
        """Estimate the speed of a way that runs a share of its layers and asks its rule some questions a row."""
        ratios = [
            self.seconds[size] / (cost.layers[size] * share + cost.question[size] * questions) for size in self.seconds
        ]
        return math.exp(float(np.mean(np.log(ratios))))


def _shuffled(split: Split) -> Split:
    return split.select(random.Random(0).sample(range(len(split)), len(split)))


def _in_labels_of(model: MultiExitModel, task: TaskData, split: Split) -> Split:
    """Return a split with the numbers that the model gives to its labels. Raises UserError for labels it lacks."""
    names = list(model.description.label_names)
    if task.regression or len(task.label_names) > len(names):
        raise UserError(f"{model.description.backbone_name} knows {len(names)} labels, and the task has others")
    lower = [name.lower() for name in names]
    if all(name.lower() in lower for name in task.label_names):
        numbers = [lower.index(name.lower()) for name in task.label_names]
    elif all(name == f"LABEL_{number}" for number, name in enumerate(names)):
        numbers = list(range(len(task.label_names)))  # the model was saved without names
    else:
        missing = next(name for name in task.label_names if name.lower() not in lower)
        raise UserError(f"the model does not know the label {missing!r}; it knows {', '.join(names[:20])}")
    return replace(split, labels=[numbers[int(label)] for label in split.labels])


def rows_needed(loss: float, probability: float, choosing: int) -> int:
    """Return how many rows a proof takes if nothing at all is lost, for a loss in points and rows for choosing."""
    stake = float(_bets(np.zeros((choosing, 1)), loss)[0][0])
    return math.ceil(math.log(1 / (1 - probability)) / math.log1p(stake * loss / 100))


# ------------------------------------------------------------------------------------------------ models


def _exits_on(
    incoming: Incoming, base: MultiExitModel, network: ExitNetwork, recipe: Recipe
) -> tuple[MultiExitModel, list[tuple[str, Method]]]:
    """Train exits of a network on a frozen model, and return what can be asked of them: words and methods."""
    model = base.fresh(recipe.seed)
    rows = incoming.training
    source = TokenSource(model, rows.encodings, label_tensor(rows.split.labels))
    train_early_exits(model, source, student_loss, recipe, name=f"exits, {network}", network=network)
    policy = ConsistentEEHeldOut(classifier=network)
    texts = TokenSource(model, incoming.choosing.encodings, label_tensor(incoming.choosing.split.labels))
    answers = record_logits(model, texts.encodings)[:, -1].argmax(dim=-1)
    train_policy(model, replace(texts, labels=answers), recipe)
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


def _ensemble_on(
    incoming: Incoming, base: MultiExitModel, task: TaskData, recipe: Recipe
) -> tuple[MultiExitModel, list[tuple[str, Method]]]:
    """Train ZTW's ensembles on a frozen model; see :func:`_exits_on`."""
    model, method = base.fresh(recipe.seed), get_method("ztw")
    method.fit(model, replace(task, train=incoming.training.split), recipe)
    return model, [("confidence of the ensemble above {}", method)]


def _cut(incoming: Incoming, layers: int, recipe: Recipe, *, distilled: bool) -> MultiExitModel:
    """Return a model of the first layers with a copy of the head, tuned on labels, or half on the model's answers."""
    full = incoming.model
    backbone = first_layers(stepper_for(full.backbone), layers)
    take_pooler(backbone)
    model = MultiExitModel(stepper_for(backbone), full.tokenizer, replace(full.description, heads={}))
    model.classifiers[-1] = copy.deepcopy(full.classifiers[-1])
    model.to(full.device)
    rows = incoming.training
    source = TokenSource(model, rows.encodings, label_tensor(rows.split.labels))
    teacher = record_logits(full, rows.encodings)[:, -1].log_softmax(dim=-1) if distilled else None
    name = f"{layers} layers, {'distilled' if distilled else 'tuned'}"
    run_stage(model, source, token_stage(name, partial(_cut_loss, teacher), recipe), recipe)
    return model


def _cut_loss(teacher: Tensor | None, model: MultiExitModel, batch: TokenBatch) -> Tensor:
    logits = model.stock_logits(batch.tokens)
    loss = layer_losses(logits.unsqueeze(1), batch.labels).mean()
    if teacher is None:
        return loss
    target = teacher[batch.rows].to(logits.device)
    return (loss + functional.kl_div(logits.log_softmax(dim=-1), target, log_target=True, reduction="batchmean")) / 2


# ------------------------------------------------------------------------------------------------ choice and proof


def _without_exits(name: str, on: str, model: MultiExitModel, incoming: Incoming, seconds: Mapping[int, float]) -> Way:
    """Return a way that runs all layers of a model on every row."""
    answers = record_logits(model, incoming.choosing.encodings)[:, -1].argmax(dim=-1).numpy()
    losses = incoming.losses(answers, incoming.choosing)
    cost = Cost(seconds, dict.fromkeys(seconds, 0.0))
    layers, full = float(model.num_layers), get_method("full")
    return Way(name, on, model, full, layers, (), losses, layers, incoming.estimate(cost, 1.0, 0.0))


def proven(choosing: Losses, proof: Losses, loss: float, probability: float) -> list[int]:
    """Test ways one after the other until one fails; with ``probability`` all that passed lose at most ``loss`` points.

    The rows for the proof are in random order: a bet may be ended at its highest wealth.

    Args:
        choosing: losses of the ways on rows that determine the order, the safest first: [rows, ways].
        proof: on rows that were used for nothing else: [rows, ways].

    Returns:
        The numbers of the ways that passed, in the order in which they were tested.
    """
    stakes, evidence = _bets(choosing, loss)
    order = np.argsort(-evidence, kind="stable")
    wealth = np.log1p(-stakes * (proof - loss / 100)).cumsum(axis=0).max(axis=0)
    passed = wealth[order] >= math.log(1 / (1 - probability))
    return order[: int(np.cumprod(passed).sum())].tolist()


def _bets(losses: Losses, loss: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Choose for each way how much to bet against "it loses more than ``loss`` points", on losses [rows, ways].

    A bet multiplies its wealth by ``1 - stake * (loss of a row - loss)``, on average at most 1 if that is true. Half a
    row that loses is added, because a few rows without a loss would stake everything.

    Returns:
        The stakes, and the logarithms of the wealth that they would have had: [ways] each.
    """
    risk = loss / 100
    wealth = np.stack([np.log1p(-s * (losses - risk)).sum(axis=0) + np.log1p(-s * (1 - risk)) / 2 for s in _STAKES])
    return _STAKES[wealth.argmax(axis=0)], wealth.max(axis=0)


def _path(paths: Sequence[Sequence[Way]], loss: float, probability: float) -> list[Way]:
    """Return the ways that lead to the fastest one within the loss on the rows for choosing, itself included.

    Where the bound accepts none, the fastest one with that mean loss is returned alone.
    """
    best: list[Way] = []
    for ways in paths:
        evidence = _bets(np.stack([way.choosing for way in ways], axis=1), loss)[1]
        accepted = evidence >= math.log(1 / (1 - probability))
        last = int(np.cumprod(accepted).sum())
        if last and (not best or ways[last - 1].speed > best[-1].speed):
            best = list(ways[max(0, last - _STEPS_TOWARDS_THE_KNOB) : last])
    if best:
        return best
    within = [way for ways in paths for way in ways if way.choosing.mean() <= loss / 100]
    return [max(within or [ways[0] for ways in paths], key=lambda way: way.speed)]


def _worth_testing(ways: Sequence[Way], loss: float) -> list[Way]:
    """Leave out ways that another one beats in safety and in speed; a failure ends the tests, so each one is a risk."""
    safety = _bets(np.stack([way.choosing for way in ways], axis=1), loss)[1]
    both = np.stack([safety, [way.speed for way in ways]], axis=1)  # [ways, 2]
    other, own = both[None], both[:, None]
    beaten = ((other >= own).all(axis=2) & (other > own).any(axis=2)).any(axis=1)
    return [way for way, is_beaten in zip(ways, beaten, strict=True) if not is_beaten]


@dataclass(frozen=True)
class Tried:
    """A line of the table.

    Attributes:
        points: accuracy lost against the incoming model on the rows for the proof, in points.
        proven: whether the loss is proven to be small enough; None if it was not tested.
        speed: how many times as fast as the incoming model, by batch size.
        timed: whether by the clock; else it is an estimate of both batch sizes.
        exits: whether some rows leave before the last layer.
    """

    name: str
    on: str
    layers: float
    points: float
    proven: bool | None
    speed: dict[int, float]
    timed: bool = True
    exits: bool = False


@dataclass(frozen=True)
class Accelerated:
    """An accelerated model, what is promised of it, and everything that was tried.

    Attributes:
        model, method, knob: for :func:`consistentee.classify`.
        block: what was chosen, in words.
        tried: the table.
        notes: ways that could not be tried, with the reason.
        promise: the numbers of the block, the share of rows by exit layer and the machine.
    """

    model: MultiExitModel = field(repr=False)
    method: Method
    knob: float
    block: str
    tried: list[Tried]
    notes: list[str]
    promise: dict[str, Any]

    def save(self, folder: str | Path) -> None:
        """Write the model and its report into a folder, for ``ee.pipeline`` and ``consistentee predict``."""
        self.method.save(self.model, self.knob, folder)
        report = {"promise": self.promise, "block": self.block, "tried": [asdict(line) for line in self.tried]}
        text = json.dumps({**report, "notes": self.notes}, indent=2)
        (Path(folder) / REPORT_FILE).write_text(text, encoding="utf-8")


@checked
def accelerate(
    model: str | Path,
    task: TaskData,
    *,
    loss: Annotated[float, Field(gt=0, lt=100)] = 0.5,
    probability: Annotated[float, Field(gt=0, lt=1)] = 0.9,
    compiles: bool = True,
    recipe: Recipe = RECIPE,
) -> Accelerated:
    """Make a fine-tuned classifier faster, and prove that this loses at most ``loss`` points of accuracy.

    Args:
        model: folder or hub id of a ``*ForSequenceClassification`` of a supported family; its weights do not change.
        task: rows like those to come: ``train`` for training exits, ``validation`` for choosing, ``test`` for the
            proof. The model must not have been trained on the last two.
        loss: points of accuracy that you accept to lose against the model.
        probability: of the promise.
        compiles: also try ``torch.compile``, which takes a compiler and a minute or two.
        recipe: for the training of exits and of shorter models.

    Raises UserError for a model or labels that do not fit, and for too few rows.
    """
    needed = rows_needed(loss, probability, len(task.validation))
    if len(task.test) < needed:
        raise UserError(
            f"{len(task.test)} rows are too few for a proof: with probability {probability:g} at most {loss:g} points "
            f"less takes {needed:,} rows even if nothing is lost, after {len(task.validation):,} rows for choosing"
        )
    begin_stage("loading the model")
    incoming = Incoming(str(model), task, recipe.max_rows)
    recipe = replace(recipe, max_length=incoming.model.description.max_length)
    return _Search(incoming, task, recipe, loss=loss, probability=probability, compiles=compiles).run()


class _Search:
    """Train, choose, prove and time."""

    def __init__(
        self, incoming: Incoming, task: TaskData, recipe: Recipe, *, loss: float, probability: float, compiles: bool
    ) -> None:
        self.incoming, self.task, self.recipe = incoming, task, recipe
        self.loss, self.probability, self.compiles = loss, probability, compiles
        self.notes: list[str] = []
        self.on_proof: dict[int, tuple[Losses, NDArray[np.int64]]] = {}
        self.stock = stock_model(incoming.path, incoming.model.device)

    def run(self) -> Accelerated:
        incoming = self.incoming
        for rows in (incoming.choosing, incoming.proof):
            incoming.answer(rows)
        trained = list(self._train())
        alone = self._models_without_exits()
        costs, seconds = self._costs(trained, alone)
        begin_stage("choosing")
        families = [
            Family(words, _MODELS[model.description.quantize], model, method, cost, trace)
            for (model, methods), cost in zip(trained, costs, strict=True)
            for trace in [record_trace(model, incoming.choosing.split)]
            for words, method in methods
        ]
        by_family = [list(family.ways(incoming)) for family in families]
        singles = [_without_exits(name, on, model, incoming, seconds[name + on]) for name, on, model in alone]
        best = [_path(found, self.loss, self.probability)[-1] for found in by_family]
        chain = list(singles)
        for on in dict.fromkeys(family.on for family in families):
            own = [ways for family, found in zip(families, by_family, strict=True) if family.on == on for ways in found]
            chain += _path(own, self.loss, self.probability)
        chain = _worth_testing(chain, self.loss)
        self._answer_proof([*chain, *singles, *best])
        passed = self._prove(chain)
        return self._report(chain, passed, singles, best)

    def _train(self) -> Iterator[tuple[MultiExitModel, list[tuple[str, Method]]]]:
        if self._int8 is None:
            self.notes.append("int8: torch has no fast kernel for it on this machine")
        for base in (self.incoming.model.fresh(), self._int8):
            if base is None:
                continue
            for network in ("linear", "attention"):
                yield _exits_on(self.incoming, base, network, self.recipe)
            yield _ensemble_on(self.incoming, base, self.task, self.recipe)

    @cached_property
    def _int8(self) -> MultiExitModel | None:
        """The incoming model with int8 layers; None where they would not be faster."""
        if self.incoming.model.device.type != "cpu" or not has_int8_kernel():
            return None
        begin_stage("quantising")
        return self.incoming.model.quantized(self._calibration)

    @property
    def _calibration(self) -> Sequence[Encoding]:
        return self.incoming.training.encodings[:_CALIBRATION_ROWS]

    def _models_without_exits(self) -> list[tuple[str, str, MultiExitModel]]:
        incoming, layers = self.incoming, max(1, self.incoming.model.num_layers // 2)
        tuned = _cut(incoming, layers, self.recipe, distilled=False)
        distilled = _cut(incoming, layers, self.recipe, distilled=True)
        found = [
            ("tuned", f"your first {layers} layers", tuned),
            ("distilled from your model", f"your first {layers} layers", distilled),
        ]
        if self._int8 is not None:
            shorter = distilled.quantized(self._calibration)
            found.append(("no exits", _MODELS["int8"], self._int8))
            found.append(("distilled from your model", f"your first {layers} layers in int8", shorter))
        return found

    def _run_stock(self, stock: Any, batch: Sequence[Encoding]) -> Tensor:
        return stock(**self.incoming.model.collate(batch).model_inputs).logits.cpu()  # waits for the device

    def _costs(
        self, trained: Sequence[tuple[MultiExitModel, object]], alone: Sequence[tuple[str, str, MultiExitModel]]
    ) -> tuple[list[Cost], dict[str, dict[int, float]]]:
        """Time layers and questions once, roughly, for estimates."""
        runs: dict[str, Run] = {_STOCK: partial(self._run_stock, self.stock)}
        never, asking = SomeLayersRule(NeverExit()), ThresholdRule(top_probability, 2.0, "above")
        for number, (model, _) in enumerate(trained):
            runs[f"{number} never"] = partial(classified, model, never)
            runs[f"{number} asking"] = partial(classified, model, asking)
        runs |= {name + on: partial(classified, model, never) for name, on, model in alone}
        taken = time_runs(runs, self.incoming.choosing.encodings, rounds=2, share=0.5)
        best = {name: {size: min(rounds) for size, rounds in by_size.items()} for name, by_size in taken.items()}
        self.incoming.seconds = best[_STOCK]
        costs = []
        for number, (model, _) in enumerate(trained):
            never_s, asking_s = best[f"{number} never"], best[f"{number} asking"]
            question = {s: max(0.0, asking_s[s] - never_s[s]) / (model.num_layers - 1) for s in BATCH_SIZES}
            costs.append(Cost(never_s, question))
        return costs, best

    def _answer_proof(self, ways: Sequence[Way]) -> None:
        """Keep losses and exit layers of ways on the rows for the proof."""
        begin_stage("proving")
        for model in {id(way.model): way.model for way in ways}.values():
            trace = record_trace(model, self.incoming.proof.split)
            for way in (way for way in ways if way.model is model):
                exits = sweep([way.rule], trace)[0]
                losses = self.incoming.losses(trace.predictions(exits).numpy(), self.incoming.proof)
                self.on_proof[id(way)] = losses, exits.numpy()

    def _prove(self, chain: Sequence[Way]) -> list[Way]:
        """Test ways on the rows for the proof, the safest ones first, until one fails; return those that passed."""
        choosing = np.stack([way.choosing for way in chain], axis=1)
        proof = np.stack([self.on_proof[id(way)][0] for way in chain], axis=1)
        return [chain[index] for index in proven(choosing, proof, self.loss, self.probability)]

    def _compiled(self) -> dict[str, Run]:
        """Return the stock model behind ``torch.compile``, warmed up; nothing where it does not work."""
        if not self.compiles:
            return {}
        begin_stage("compiling your model")
        try:
            compiled = torch.compile(self.stock, dynamic=True)
            with torch.inference_mode():
                for size in BATCH_SIZES:
                    batch = self.incoming.choosing.encodings[:size]
                    found, wanted = self._run_stock(compiled, batch), self._run_stock(self.stock, batch)
                    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
        except Exception as error:  # no compiler, or one of many faults of generated code
            self.notes.append(f"torch.compile: {reason_of(error)}")
            return {}
        return {_COMPILED: partial(self._run_stock, compiled)}

    def _report(
        self, chain: Sequence[Way], passed: Sequence[Way], singles: Sequence[Way], best: Sequence[Way]
    ) -> Accelerated:
        incoming = self.incoming
        finalists = sorted((way for way in passed if way.speed > 1), key=lambda way: -way.speed)[:_FINALISTS]
        fastest = {id(way.model): way for way in sorted(best, key=lambda way: way.speed)}.values()
        timed = {id(way): way for way in [*singles, *finalists, *fastest]}
        compiled = self._compiled()
        runs: dict[str, Run] = {_STOCK: partial(self._run_stock, self.stock), **compiled}
        speed = speed_ups(
            time_runs(runs | {str(i): way.run for i, way in timed.items()}, incoming.proof.encodings), _STOCK
        )
        full = float(incoming.model.num_layers)
        nothing = Way("no exits", _STOCK, incoming.model, get_method("full"), full, (), np.zeros(1), full, 1.0)
        chosen = max(finalists, key=lambda way: _mean(speed[str(id(way))]), default=nothing)
        if chosen is not nothing and _mean(speed[str(id(chosen))]) <= 1:
            chosen = nothing
        rows = [Tried("as it is", _STOCK, full, 0.0, None, speed[_STOCK])]
        rows += [Tried("torch.compile", _STOCK, full, 0.0, None, speed[name]) for name in compiled]
        for way in {id(way): way for way in [*singles, *best, *finalists]}.values():
            is_timed = id(way) in timed
            rows.append(
                Tried(
                    f"{way.name}{_layers_in_words(way)}",
                    way.on,
                    float(self.on_proof[id(way)][1].mean()),
                    100 * float(self.on_proof[id(way)][0].mean()),
                    way in passed if way in chain else None,
                    speed[str(id(way))] if is_timed else dict.fromkeys(BATCH_SIZES, way.speed),
                    is_timed,
                    exits=way.method.name != "full",
                )
            )
        promise = self._promise(chosen, speed.get(str(id(chosen)), dict.fromkeys(BATCH_SIZES, 1.0)))
        chosen.model.description.asked_layers = chosen.asked
        block = self._block(chosen, promise, rows)
        return Accelerated(chosen.model, chosen.method, chosen.knob, block, rows, self.notes, promise)

    def _promise(self, chosen: Way, speed: Mapping[int, float]) -> dict[str, Any]:
        incoming = self.incoming
        wrong = incoming.is_wrong[id(incoming.proof)]
        layers = incoming.model.num_layers
        losses, exits = self.on_proof.get(id(chosen), (np.zeros(1), np.full(1, layers)))
        shares = np.bincount(exits, minlength=chosen.model.num_layers + 1)[1:] / len(exits)
        return {
            "model": incoming.path,
            "chosen": _way_in_words(chosen),
            "accuracy": 100 * float(1 - wrong.mean()),
            "points_expected": 100 * float(losses.mean()),
            "points_at_most": self.loss,
            "probability": self.probability,
            "proof_rows": len(incoming.proof),
            "average_layers": float(exits.mean()),
            "share_by_exit_layer": [round(float(share), 4) for share in shares],
            "speed": {str(size): ratio for size, ratio in speed.items()},
            "machine": describe_machine(incoming.model.device),
        }

    def _block(self, chosen: Way, promise: Mapping[str, Any], rows: Sequence[Tried]) -> str:
        accuracy, lost = promise["accuracy"], promise["points_expected"]
        lines = [f"Your model: {accuracy:.1f}% ({promise['proof_rows']:,} rows)."]
        if id(chosen) not in self.on_proof:
            lines.append(f"Chosen: your model as it is; nothing faster loses at most {self.loss:g} points with proof.")
            lines.append(f"More rows, or a larger --loss, make a proof easier (it had {promise['proof_rows']:,} rows).")
        else:
            layers = f"{promise['average_layers']:.1f} of {self.incoming.model.num_layers} on average"
            needs_exits = chosen.method.name != "full"
            lines.append(f"Chosen: {promise['chosen']}{f', {layers}' if needs_exits else '; exits are not needed'}.")
            less = f"{lost:.1f} points less" if lost >= 0 else f"{-lost:.1f} points more"
            lines.append(
                f"{accuracy - lost:.1f}% expected, {less}; with probability {self.probability:g} at most {self.loss:g} "
                f"points less on texts like these (proof on {promise['proof_rows']:,} rows that chose nothing)."
            )
            one, many = (f"{promise['speed'][str(size)]:.1f}" for size in BATCH_SIZES)
            lines.append(f"{one} times as fast at batch 1, {many} at batch 32 on this machine.")
        speed = _mean({int(size): ratio for size, ratio in promise["speed"].items()})
        for row in rows:
            if row.name == "torch.compile" and _mean(row.speed) > speed:
                lines.append(f"torch.compile alone is faster, and loses nothing: {_times(row.speed)}.")
        return "\n".join(lines)


def _mean(speed: Mapping[int, float]) -> float:
    """Return the geometric mean over batch sizes."""
    return math.exp(float(np.mean(np.log(list(speed.values())))))


def _times(speed: Mapping[int, float]) -> str:
    return ", ".join(f"{ratio:.1f} times at batch {size}" for size, ratio in speed.items())


def _way_in_words(way: Way) -> str:
    if way.method.name == "full":
        return f"{way.on}, {way.name}"
    return f"{way.name} on {way.on}{_layers_in_words(way)}"


def _layers_in_words(way: Way) -> str:
    """Return where a way may exit; nothing if it has no choice."""
    if not way.asked or way.method.name == "static":
        return ""
    layers = [*way.asked, way.model.num_layers]
    if layers == list(range(layers[0], layers[-1] + 1)):
        return f", exits at layers {layers[0]} to {layers[-1]}"
    return f", exits at layers {', '.join(map(str, layers[:-1]))} and {layers[-1]}"
