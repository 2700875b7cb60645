"""Make a fine-tuned classifier faster, with a promise about the points that this loses.

The incoming model does not change. Exits on its frozen layers, in float32 and on an int8 copy, with rules of published
methods, and what needs no exits (int8 alone, fewer layers) compete. Three groups of rows are kept apart:

1. on rows for training, exits learn to answer as the last one does, and shorter models are tuned;
2. on rows for choosing, every way (:mod:`~consistentee.deployment.ways`) is replayed. In float32, in int8 and with
   fewer layers, the one estimated to be the fastest within the loss goes on, with more cautious values of its knob;
3. on rows for the proof, which were used for nothing before, these are tested from the safest to the least safe, until
   one fails (:mod:`~consistentee.deployment.risk_control`). With the probability asked for, all that passed lose at
   most the loss. Those are timed.

The loss is that of accuracy against the incoming model, row by row: points lost less points won.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import geometric_mean
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from consistentee.arguments import checked
from consistentee.backbones.int8 import has_int8_kernel
from consistentee.data.encoding import Encoding
from consistentee.data.tasks import TaskData
from consistentee.deployment import timing
from consistentee.deployment.risk_control import Losses, proven, rows_needed
from consistentee.deployment.ways import (
    MODELS,
    Cost,
    Incoming,
    Way,
    cut,
    ensemble_on,
    exits_on,
    path,
    ways_of,
    without_exits,
    worth_testing,
)
from consistentee.errors import UserError, reason_of
from consistentee.methods.method import Method, get_method
from consistentee.models.encoder import MultiExitModel
from consistentee.progress import begin_stage
from consistentee.rules.exit_rule import NeverExit, SomeLayersRule, ThresholdRule
from consistentee.signals import top_probability
from consistentee.traces.instance_trace import record_trace
from consistentee.traces.walk import sweep
from consistentee.training.recipe import Recipe

REPORT_FILE = "accelerated.json"
_STOCK = MODELS["none"]
_COMPILED = "torch.compile"
_FINALISTS = 3
_CLEARLY_FASTER = 1.05  # clocks of the same model differ by a few percent
_CALIBRATION_ROWS = 256
RECIPE = Recipe(frozen_steps=1000, max_rows=5000, epochs=3, group_by_length=True)


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
        self.on_proof: dict[Way, tuple[Losses, NDArray[np.int64]]] = {}
        self.stock = timing.stock_model(incoming.path, incoming.model.device)
        self.by_stock = partial(timing.classified_by_stock, self.stock, incoming.model)

    def run(self) -> Accelerated:
        incoming = self.incoming
        trained = list(self._train())
        alone = self._models_without_exits()
        costs = self._costs([model for model, _ in trained], [model for _, _, model in alone])
        begin_stage("choosing")
        singles = [without_exits(name, on, model, incoming, costs[model]) for name, on, model in alone]
        best: list[Way] = []
        by_weights: dict[str, list[list[Way]]] = {}
        for model, methods in trained:
            trace = record_trace(model, incoming.choosing.split)
            for words, method in methods:
                paths = list(ways_of(model, method, words, incoming, cost=costs[model], trace=trace))
                best.append(path(paths, self.loss, self.probability)[-1])
                by_weights.setdefault(best[-1].on, []).extend(paths)
        chain = list(singles)
        for paths in by_weights.values():
            chain += path(paths, self.loss, self.probability)
        chain = worth_testing(chain, self.loss)
        passed = self._prove(chain, [*singles, *best])
        return self._report(chain, passed, singles, best)

    def _train(self) -> Iterator[tuple[MultiExitModel, list[tuple[str, Method]]]]:
        if self._int8 is None:
            self.notes.append("int8: torch has no fast kernel for it on this machine")
        for base in (self.incoming.model.fresh(), self._int8):
            if base is None:
                continue
            for network in ("linear", "attention"):
                yield exits_on(self.incoming, base, network, self.recipe)
            yield ensemble_on(self.incoming, base, self.recipe)

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
        tuned = cut(incoming, layers, self.recipe, distilled=False)
        distilled = cut(incoming, layers, self.recipe, distilled=True)
        found = [
            ("tuned", f"your first {layers} layers", tuned),
            ("distilled from your model", f"your first {layers} layers", distilled),
        ]
        if self._int8 is not None:
            shorter = distilled.quantized(self._calibration)
            found.append(("no exits", MODELS["int8"], self._int8))
            found.append(("distilled from your model", f"your first {layers} layers in int8", shorter))
        return found

    def _costs(
        self, with_exits: Sequence[MultiExitModel], without: Sequence[MultiExitModel]
    ) -> dict[MultiExitModel, Cost]:
        """Time layers and questions once, roughly, for estimates."""
        never, asking = SomeLayersRule(NeverExit()), ThresholdRule(top_probability, 2.0, "above")
        models = [*with_exits, *without]
        runs: dict[Any, timing.Run] = {_STOCK: self.by_stock}
        runs |= {(model, never): partial(timing.classified, model, never) for model in models}
        runs |= {(model, asking): partial(timing.classified, model, asking) for model in with_exits}
        taken = timing.time_runs(runs, self.incoming.choosing.encodings, rounds=2, share=0.5)
        best = {name: {size: min(rounds) for size, rounds in by_size.items()} for name, by_size in taken.items()}
        costs = {}
        for model in models:
            layers, questions = best[model, never], max(1, model.num_layers - 1)
            asked = best.get((model, asking), layers)
            question = {size: max(0.0, asked[size] - layers[size]) / questions for size in layers}
            costs[model] = Cost(best[_STOCK], layers, question)
        return costs

    def _prove(self, chain: Sequence[Way], others: Sequence[Way]) -> list[Way]:
        """Answer the rows for the proof, and return the ways of the chain that pass before the first that fails."""
        begin_stage("proving")
        ways = dict.fromkeys([*chain, *others])
        for model in dict.fromkeys(way.model for way in ways):
            trace = record_trace(model, self.incoming.proof.split)
            for way in (way for way in ways if way.model is model):
                exits = sweep([way.rule], trace)[0]
                losses = self.incoming.proof.losses(trace.predictions(exits).numpy())
                self.on_proof[way] = losses, exits.numpy()
        choosing = np.stack([way.choosing for way in chain], axis=1)
        proof = np.stack([self.on_proof[way][0] for way in chain], axis=1)
        return [chain[index] for index in proven(choosing, proof, self.loss, self.probability)]

    def _compiled(self) -> dict[str, timing.Run]:
        """Return the stock model behind ``torch.compile``, warmed up; nothing where it does not work."""
        if not self.compiles:
            return {}
        begin_stage("compiling your model")
        try:
            run = partial(timing.classified_by_stock, torch.compile(self.stock, dynamic=True), self.incoming.model)
            with torch.inference_mode():
                for size in timing.BATCH_SIZES:
                    batch = self.incoming.choosing.encodings[:size]
                    torch.testing.assert_close(run(batch), self.by_stock(batch), rtol=1e-3, atol=1e-3)
        except Exception as error:  # no compiler, or one of many faults of generated code
            self.notes.append(f"torch.compile: {reason_of(error)}")
            return {}
        return {_COMPILED: run}

    def _report(
        self, chain: Sequence[Way], passed: Sequence[Way], singles: Sequence[Way], best: Sequence[Way]
    ) -> Accelerated:
        model = self.incoming.model
        finalists = sorted((way for way in passed if way.speed > 1), key=lambda way: -way.speed)[:_FINALISTS]
        fastest = {way.model: way for way in sorted(best, key=lambda way: way.speed)}.values()
        compiled = self._compiled()
        runs: dict[Any, timing.Run] = {_STOCK: self.by_stock, **compiled}
        runs |= {way: way.run for way in [*singles, *finalists, *fastest]}
        speed = timing.speed_ups(timing.time_runs(runs, self.incoming.proof.encodings), _STOCK)
        full = float(model.num_layers)
        nothing = Way("no exits", _STOCK, model, get_method("full"), full, (), np.zeros(1), full, 1.0)
        self.on_proof[nothing], speed[nothing] = (np.zeros(1), np.full(1, model.num_layers)), speed[_STOCK]
        chosen = max([nothing, *finalists], key=lambda way: geometric_mean(speed[way].values()))
        rows = [Tried("as it is", _STOCK, full, 0.0, None, speed[_STOCK])]
        rows += [Tried(_COMPILED, _STOCK, full, 0.0, None, speed[name]) for name in compiled]
        for way in dict.fromkeys([*singles, *best, *finalists]):
            losses, exits = self.on_proof[way]
            rows.append(
                Tried(
                    name=f"{way.name}{_layers_in_words(way)}",
                    on=way.on,
                    layers=float(exits.mean()),
                    points=100 * float(losses.mean()),
                    proven=way in passed if way in chain else None,
                    speed=speed.get(way, dict.fromkeys(timing.BATCH_SIZES, way.speed)),
                    timed=way in speed,
                    exits=way.method.name != "full",
                )
            )
        promise = self._promise(chosen, speed[chosen])
        chosen.model.description.asked_layers = chosen.asked
        block = self._block(chosen, promise, rows)
        return Accelerated(chosen.model, chosen.method, chosen.knob, block, rows, self.notes, promise)

    def _promise(self, chosen: Way, speed: Mapping[int, float]) -> dict[str, Any]:
        incoming = self.incoming
        losses, exits = self.on_proof[chosen]
        shares = np.bincount(exits, minlength=chosen.model.num_layers + 1)[1:] / len(exits)
        return {
            "model": incoming.path,
            "chosen": _way_in_words(chosen),
            "accuracy": 100 * float(1 - incoming.proof.wrong.mean()),
            "points_expected": 100 * float(losses.mean()),
            "points_at_most": self.loss,
            "probability": self.probability,
            "proof_rows": len(incoming.proof),
            "average_layers": float(exits.mean()),
            "share_by_exit_layer": [round(float(share), 4) for share in shares],
            "speed": {str(size): ratio for size, ratio in speed.items()},
            "machine": timing.describe_machine(incoming.model.device),
        }

    def _block(self, chosen: Way, promise: Mapping[str, Any], rows: Sequence[Tried]) -> str:
        accuracy, lost = promise["accuracy"], promise["points_expected"]
        lines = [f"Your model: {accuracy:.1f}% ({promise['proof_rows']:,} rows)."]
        if chosen.model is self.incoming.model:
            lines.append(f"Chosen: your model as it is; nothing faster loses at most {self.loss:g} points with proof.")
            lines.append(f"More rows, or a larger --loss, make a proof easier (it had {promise['proof_rows']:,} rows).")
        else:
            layers = f"{promise['average_layers']:.1f} of {self.incoming.model.num_layers} on average"
            needs_exits = chosen.method.name != "full"
            lines.append(f"Chosen: {promise['chosen']}{f', {layers}' if needs_exits else '; exits are not needed'}.")
            at_most = f"with probability {self.probability:g} at most {self.loss:g} points less on texts like these"
            rows_in_words = f"(proof on {promise['proof_rows']:,} rows that chose nothing)"
            lines.append(f"{accuracy - lost:.1f}% expected, {_points_in_words(lost)}; {at_most} {rows_in_words}.")
            one, many = (f"{promise['speed'][str(size)]:.1f}" for size in timing.BATCH_SIZES)
            lines.append(f"{one} times as fast at batch 1, {many} at batch 32 on this machine.")
        speed = geometric_mean(promise["speed"].values())
        faster = sorted(
            (row for row in rows if row.timed and geometric_mean(row.speed.values()) > _CLEARLY_FASTER * speed),
            key=lambda row: -geometric_mean(row.speed.values()),
        )
        for row in faster:
            if row.name == _COMPILED:
                lines.append(f"torch.compile alone is faster, and loses nothing: {_times(row.speed)}.")
        for row in [row for row in faster if row.name != _COMPILED and row.points <= self.loss and not row.proven][:1]:
            what = f"{row.name} on {row.on}, {_times(row.speed)}, {_points_in_words(row.points)} on these rows"
            lines.append(f"Faster, but not proven, which takes more rows: {what}.")
        return "\n".join(lines)


def _points_in_words(lost: float) -> str:
    return f"{lost:.1f} points less" if lost >= 0 else f"{-lost:.1f} points more"


def _times(speed: Mapping[int, float]) -> str:
    return ", ".join(f"{ratio:.1f} times at batch {size}" for size, ratio in speed.items())


def _way_in_words(way: Way) -> str:
    if way.method.name == "full":
        return f"{way.on}, {way.name}"
    return f"{way.name} on {way.on}{_layers_in_words(way)}"


def _layers_in_words(way: Way) -> str:
    """Return which exits a way has and where it may exit; nothing if it has none."""
    if not way.asked:
        return ""
    exits, layers = f", {way.model.description.classifier.kind} exits", [*way.asked, way.model.num_layers]
    if way.method.name == "static":
        return exits
    if layers == list(range(layers[0], layers[-1] + 1)):
        return f"{exits} at layers {layers[0]} to {layers[-1]}"
    return f"{exits} at layers {', '.join(map(str, layers[:-1]))} and {layers[-1]}"
