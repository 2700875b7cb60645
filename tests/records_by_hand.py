"""Records as a run would leave them, made up from a few numbers, for the tests of tables and plots."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from documents import ROOT
from numpy.typing import NDArray

from benchmarks.analysis.frames import Results
from benchmarks.specs.base import CellSpec
from benchmarks.specs.targets import WITHIN_ONE_POINT, Budget
from benchmarks.store.folders import write_record, write_rows
from benchmarks.store.records import CellRecord, CurvePoint, KeyParts, OperatingPoint
from benchmarks.store.stored_results import StoredCell
from benchmarks.store.timings import Contender, TimingRecord, TimingSamples
from consistentee.training.recipe import RecipeSettings

DECODING = ROOT / "results" / "decoding-closing-layers"
"""Published results of generation, of which none are made up."""
LAYERS = 6
ROWS = 200
BUDGETS = [Budget(layers_at_most=share) for share in (0.25, 0.5, 0.75)]
TARGETS = {str(target): target for target in (WITHIN_ONE_POINT, *BUDGETS)}
"""Budgets by words such as ``budget 0.50``; and ``within 1 point``."""
LAYER_ACCURACY = np.array([0.42, 0.60, 0.74, 0.85, 0.89, 0.91])
SHIFTS = {"consistentee": 0.9, "deebert": 0.1, "pabee": 0.3, "berxit": 0.45, "calm-softmax": 0.6, "calm-state": -0.1}
SHIFTS |= {"calm-classifier": 0.55, "static": 0.0, "random": -0.25, "oracle": 2.2}
"""By how many layers the exits of a method are ahead of LAYER_ACCURACY."""
ENVIRONMENT = {
    "cpu": "Made-up CPU",
    "cores_usable": 2,
    "os": "Linux 6",
    "python": "3.11",
    "libraries": {"torch": "2.13", "transformers": "5.24"},
    "threads": {"torch": 2},
    "commit": "0123456789abcdef",
}


def parts_by_hand(rows: str = "rows") -> KeyParts:
    """Return the parts of a key; ``rows`` tells one from another."""
    return KeyParts(
        kind="classification",
        settings={"method": "pabee"},
        rows=rows,
        backbone={"files": {}},
        method_version=1,
        engine_version=1,
        training_version=1,
    )


def cell_spec(**changes: object) -> CellSpec:
    """Return a cell of a suite as planned."""
    values = {"task": "sst2", "backbone": "minilm-l6", "method": "deebert", "label": "deebert", "parameters": {}}
    values |= {"seed": 0, "recipe": RecipeSettings(), "validation_rows": None, "test_rows": None}
    return CellSpec.model_validate({**values, "budgets": (0.5,), "bootstrap_resamples": 100, **changes})


def histogram(average: float) -> list[int]:
    """Return exits of ROWS rows, half of them below ``average`` and half above it."""
    low, high = max(1, int(np.floor(average)) - 1), min(LAYERS, int(np.ceil(average)) + 1)
    counts = np.zeros(LAYERS, dtype=int)
    late = round(ROWS * (average - low) / (high - low)) if high > low else 0
    counts[high - 1] += late
    counts[low - 1] += ROWS - late
    return counts.tolist()


def curve_point(knob: float, average: float, score: float) -> CurvePoint:
    return CurvePoint(knob=knob, scores={"accuracy": score}, exit_histogram=histogram(average))


def operating_point(knob: float, targets: str, average: float, score: float) -> OperatingPoint:
    """Return a point whose validation and test sides are equal; of ``targets``, see TARGETS."""
    point = curve_point(knob, average, score)
    return OperatingPoint(
        knob=knob,
        targets=[TARGETS[word] for word in targets.split(", ")],
        validation=point,
        test=point,
        score_interval=(score - 0.03, score + 0.03),
        flops=1e9 * average,
        live_rows=ROWS,
        live_disagreements=0,
    )


def cell(
    label: str,
    points: Sequence[OperatingPoint],
    *,
    method: str = "",
    curve: Sequence[CurvePoint] = (),
    seed: int = 0,
    parameters: dict[str, object] | None = None,
    task: str = "mcid",
) -> CellRecord:
    """Return a cell's record; without a curve, its operating points are the curve."""
    curve = list(curve) or [point.test for point in points]
    return CellRecord(
        key=f"{task}/{label}/{parameters}/{seed}",
        key_parts=parts_by_hand(),
        task=task,
        task_version=1,
        metric="accuracy",
        task_notes="dev is the test split",
        backbone="minilm-l6",
        method=method or label,
        label=label,
        parameters=parameters or {},
        knob_name="threshold",
        seed=seed,
        num_layers=LAYERS,
        train_rows=1000,
        validation_rows=ROWS,
        test_rows=ROWS,
        full_flops=1e9 * LAYERS,
        curve_validation=curve,
        curve_test=curve,
        operating_points=list(points),
        train_seconds=1.0,
        validation_by_epoch={"joint": [0.5, 0.75]},
        losses={"joint": [1.0, 0.5, 0.25, 0.125], "heads": [2.0, len(label) / 10]},
        command="consistentee run made-up",
        environment=ENVIRONMENT,
        finished_at="2026-01-01T00:00:00+00:00",
    )


def results_of(records: Sequence[CellRecord], timings: Sequence[TimingRecord] = ()) -> Results:
    """Return results in memory, whose rows are gone."""
    cells = [StoredCell(record, Path("nowhere"), "") for record in records]
    return Results(Path("nowhere"), "classification", cells, list(timings))


def contender(cell_key: str, label: str, knob: float | None, share: float, rounds: int = 3) -> Contender:
    """Return a contender that takes ``share`` of the stock model's time; later rounds are slower for all."""
    samples = []
    for batch_size, milliseconds in ((1, 8.0), (32, 2.0)):
        seconds = [share * milliseconds * 64 / 1000 * (1 + 0.02 * i) for i in range(rounds)]
        batches = 64 // batch_size
        samples.append(
            TimingSamples(
                batch_size=batch_size,
                rows=64,
                seconds_per_round=seconds,
                seconds_per_batch=[[total / batches] * batches for total in seconds],
            )
        )
    return Contender(cell_key=cell_key, label=label, knob=knob, average_layers=share * LAYERS, samples=samples)


def timing(cells: Sequence[CellRecord], seed: int = 0, task: str = "mcid") -> TimingRecord:
    """Time all operating points: their share of the time is their share of the layers."""
    contenders = [contender("", "stock", None, 1.0)]
    for record in cells:
        for point in record.operating_points:
            share = point.test.average_layers / LAYERS
            contenders.append(contender(record.key, record.label, point.knob, share))
    return TimingRecord(
        key="timing",
        task=task,
        backbone="minilm-l6",
        seed=seed,
        rounds=3,
        contenders=contenders,
        environment_before=ENVIRONMENT,
        environment_after=ENVIRONMENT,
        command="consistentee run made-up",
        finished_at="2026-01-01T00:00:00+00:00",
    )


def right_answers(label: str) -> NDArray[np.bool_]:
    """Return whether each exit of a made-up cell answers a row rightly, [ROWS, LAYERS]; later exits then do so, too."""
    layers, half = np.arange(1, LAYERS + 1), ROWS // 2
    accuracy = 0.2 if label == "majority" else np.interp(layers + SHIFTS.get(label, 0), layers, LAYER_ACCURACY)
    difficulty = (np.arange(ROWS) * 77 % half * 2 + np.arange(ROWS) // half + 0.5) / ROWS  # both halves are alike
    return difficulty[:, None] < np.broadcast_to(accuracy, LAYERS)


def _smooth_curve(label: str, knobs: int = 21) -> list[CurvePoint]:
    curve, right = [], right_answers(label)
    for knob, average in enumerate(np.linspace(1.0, LAYERS, knobs).tolist()):
        score = right[np.arange(ROWS), np.repeat(np.arange(LAYERS), histogram(average))].mean()
        curve.append(curve_point(knob / (knobs - 1), average, float(score)))
    return curve


def _chosen(curve: Sequence[CurvePoint]) -> list[OperatingPoint]:
    chosen: dict[float, tuple[CurvePoint, list[str]]] = {}
    for budget in BUDGETS:
        allowed = [p for p in curve if p.average_layers <= budget.layers_at_most * LAYERS]
        if allowed:
            best = max(allowed, key=lambda p: p.scores["accuracy"])
            chosen.setdefault(best.knob, (best, []))[1].append(str(budget))
    within = next(p for p in curve if p.scores["accuracy"] >= curve[-1].scores["accuracy"] - 0.01)
    chosen.setdefault(within.knob, (within, []))[1].append("within 1 point")
    return [
        operating_point(k, ", ".join(why), p.average_layers, p.scores["accuracy"]) for k, (p, why) in chosen.items()
    ]


def made_up_suite(seed: int = 0, task: str = "mcid") -> list[CellRecord]:
    """Return a cell of every kind of method."""
    full = operating_point(LAYERS, "within 1 point", LAYERS, LAYER_ACCURACY[-1])
    majority = operating_point(1, "budget 0.25", 1, 0.2)
    cells = [cell("full", [full], task=task, seed=seed), cell("majority", [majority], task=task, seed=seed)]
    for label in SHIFTS:
        curve = _smooth_curve(label)
        cells.append(cell(label, _chosen(curve), curve=curve, task=task, seed=seed))
    return cells


def write_results(out_dir: Path, tasks: Sequence[str] = ("mcid",), seeds: Sequence[int] = (0,)) -> None:
    """Write cells, predictions and timings of a made-up suite, as a run does."""
    for task, seed in product(tasks, seeds):
        cells, group = made_up_suite(task=task, seed=seed), Path(task, "minilm-l6")
        for record in cells:
            folder = out_dir / "cells" / group / record.label / "default" / f"seed{seed}"
            write_record(folder / "record.json", record)
            write_rows(folder / "predictions.parquet", _predictions(record))
        taken = timing([record for record in cells if record.method != "oracle"], seed=seed, task=task)
        write_record(out_dir / "timings" / group / f"seed{seed}" / "timing.json", taken)


def _predictions(record: CellRecord) -> pd.DataFrame:
    columns = {"row": np.arange(ROWS), "label": np.arange(ROWS) % 4}
    for t, right in enumerate(right_answers(record.label).T, start=1):
        columns[f"layer_prediction_{t}"] = np.where(right, columns["label"], 4)
    for i, point in enumerate(record.operating_points):
        columns[f"exit_layer_{i}"] = np.repeat(np.arange(1, LAYERS + 1), point.test.exit_histogram)
    return pd.DataFrame(columns)
