"""Records and frames as a run would leave them, made up from a few numbers, for tests of the store and the analysis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from documents import ROOT
from numpy.typing import NDArray

from benchmarks.analysis.frames import Part, Results
from benchmarks.measure.knobs import around_budgets
from benchmarks.run.timing import knobs_to_time
from benchmarks.specs.base import CellSpec, folder_name, short_hash
from benchmarks.store.folders import write_cell, write_timing
from benchmarks.store.frames import AnyFrameName
from benchmarks.store.records import AnyRecord, CellRecord, GenerationRecord, KeyParts, TimedKnob, TimingRecord
from benchmarks.store.results_folder import StoredResults
from consistentee.training.recipe import RecipeSettings
from consistentee.versions import TaskKind

DECODING = ROOT / "results" / "decoding-closing-layers"
"""Published results of generation."""
LAYERS = 6
ROWS = 200
LAYER_ACCURACY = np.array([0.42, 0.60, 0.74, 0.85, 0.89, 0.91])
SHIFTS = {"consistentee": 0.9, "deebert": 0.1, "pabee": 0.3, "berxit": 0.45, "calm-softmax": 0.6, "calm-state": -0.1}
SHIFTS |= {"calm-classifier": 0.55, "static": 0.0, "random": -0.25, "oracle": 2.2}
"""By how many layers the exits of a method are ahead of LAYER_ACCURACY."""
LABELS = ("full", "majority", *SHIFTS)
ENVIRONMENT: dict[str, object] = {
    "cpu": "Made-up CPU",
    "cores_usable": 2,
    "os": "Linux 6",
    "python": "3.11",
    "libraries": {"torch": "2.13", "transformers": "5.24"},
    "threads": {"torch": 2},
    "commit": "0123456789abcdef",
    "time": "2026-01-01T00:00:00+00:00",
}
Frames = Mapping[str, pd.DataFrame]
Cell = tuple[AnyRecord, Frames]


def parts_by_hand(rows: str = "rows", kind: TaskKind = "classification", **settings: object) -> KeyParts:
    versions = {"method_version": 1, "engine_version": 1, "training_version": 1}
    return KeyParts(kind=kind, settings=settings, rows=rows, backbone={"files": {}}, **versions)


def cell_spec(**changes: object) -> CellSpec:
    values = {"task": "sst2", "backbone": "minilm-l6", "method": "deebert", "label": "deebert", "parameters": {}}
    values |= {"seed": 0, "recipe": RecipeSettings(), "validation_rows": None, "test_rows": None}
    return CellSpec.model_validate({**values, **changes})


def cell(label: str, **changes: object) -> CellRecord:
    return CellRecord.model_validate(_shared_fields(label, "classification", "accuracy", changes))


def decoding_cell(label: str, **changes: object) -> GenerationRecord:
    own = {"train_task": "alpaca", "exit_layers": [1, 3, 6], "max_prompt_tokens": 8, "max_new_tokens": 4}
    own |= {"kv": "propagated", "truncated_prompts": 0, "test_rows": 2, "validation_rows": 2, "task": "alpaca"}
    return GenerationRecord.model_validate(_shared_fields(label, "generation", "rougeL", {**own, **changes}))


def _shared_fields(label: str, kind: TaskKind, metric: str, changes: Mapping[str, object]) -> dict[str, object]:
    fields: dict[str, object] = {"task": "mcid", "task_version": 1, "metric": metric, "task_notes": ""}
    fields |= {"backbone": "minilm-l6", "method": label, "label": label, "parameters": {}, "knob_name": "threshold"}
    fields |= {"seed": 0, "num_layers": LAYERS, "train_rows": 1000, "validation_rows": ROWS, "test_rows": ROWS}
    fields |= {"train_seconds": 1.0, "command": "consistentee run made-up", "environment": ENVIRONMENT}
    fields |= {"finished_at": "2026-01-01T00:01:00+00:00", **changes}
    parts = parts_by_hand(kind=kind, **{name: fields[name] for name in ("task", "label", "parameters", "seed")})
    return {"key": parts.key, "key_parts": parts, **fields}


# ---------------------------------------------------------------------------------------------- frames


def exit_layers(average: float) -> NDArray[np.int_]:
    """Return the exit layers of ROWS rows, half of them below ``average`` and half above it."""
    low, high = max(1, int(np.floor(average)) - 1), min(LAYERS, int(np.ceil(average)) + 1)
    late = round(ROWS * (average - low) / (high - low)) if high > low else 0
    return np.repeat([low, high], [ROWS - late, late])


def right_answers(label: str) -> NDArray[np.bool_]:
    """Return whether each exit of a made-up cell answers a row rightly, [ROWS, LAYERS]; later exits then do so, too."""
    layers, half = np.arange(1, LAYERS + 1), ROWS // 2
    accuracy = 0.2 if label == "majority" else np.interp(layers + SHIFTS.get(label, 0), layers, LAYER_ACCURACY)
    difficulty = (np.arange(ROWS) * 77 % half * 2 + np.arange(ROWS) // half + 0.5) / ROWS  # both halves are alike
    return difficulty[:, None] < np.broadcast_to(accuracy, LAYERS)


def curve_by_hand(
    layers: Sequence[float], scores: Sequence[float], knobs: Sequence[float] | None = None, live: bool = True
) -> pd.DataFrame:
    """Return a curve whose validation and test sides are equal; the last point is "never exit", which has no knob."""
    places = np.arange(len(layers))
    curve = pd.DataFrame(
        {
            "place": places,
            "knob": [*(places[:-1] / max(len(places) - 2, 1) if knobs is None else knobs), np.nan],
            "validation_layers": layers,
            "validation_score": scores,
            "layers": layers,
            "accuracy": scores,
            "exit_histogram": [np.bincount(exit_layers(one), minlength=LAYERS + 1)[1:] for one in layers],
        }
    )
    curve["flops"], curve["full_flops"] = 1e9 * curve["layers"], 1e9 * LAYERS
    return curve.assign(live_rows=float(ROWS), live_disagreements=0.0) if live else curve


def frames_by_hand(label: str, averages: Sequence[float] | None = None) -> dict[str, pd.DataFrame]:
    """Return frames that agree with each other; ``averages`` are the layers of the knobs, 21 of them by default."""
    if averages is None:
        averages = {"full": [float(LAYERS)], "majority": [1.0]}.get(label, np.linspace(1.0, LAYERS, 21).tolist())
    number, right = np.arange(ROWS), right_answers(label)
    exits = [*map(exit_layers, averages), np.full(ROWS, LAYERS)]
    layers, scores = [float(one.mean()) for one in exits], [float(right[number, one - 1].mean()) for one in exits]
    labels, rows = number % 4, pd.DataFrame({"row": number, "label": number % 4})
    answers = [rows[["row"]].assign(layer=t, answer=np.where(right[:, t - 1], labels, 4)) for t in range(1, LAYERS + 1)]
    mixed = around_budgets(layers, LAYERS, "classification")
    training = [("joint", "loss", [1.0, 0.5, 0.25, 0.125]), ("heads", "loss", [2.0, len(label) / 10])]
    training.append(("joint", "validation score", [0.5, 0.75]))
    lines = [(*names, step, value) for *names, values in training for step, value in enumerate(values, start=1)]
    return {
        "rows": rows,
        "curve": curve_by_hand(layers, scores, live=label != "oracle"),
        "answers": pd.concat(answers, ignore_index=True),
        "exits": pd.concat([rows[["row"]].assign(place=place, exit_layer=exits[place]) for place in sorted(mixed)]),
        "training": pd.DataFrame(lines, columns=["stage", "curve", "step", "value"]),
    }


def decoding_frames(layers: Sequence[int] = (1, 3)) -> dict[str, pd.DataFrame]:
    """Return frames of two texts, decoded at exits of some layers and at full depth; all texts are the full model's."""
    points, curve, texts = [*layers, LAYERS], [], []
    for place, layer in enumerate(points):
        knob = np.nan if place == len(layers) else float(layer)
        scores = {"rougeL": layer / LAYERS, "rougeL_to_full": 1.0, "match": 1.0, "nats": 2.0}
        point = {"place": place, "knob": knob, "validation_layers": layer, "validation_score": 1.0, "layers": layer}
        point |= {**scores, "new_tokens": 6.0, "decoded_tokens": 4.0, "flops": 1e9 * layer, "full_flops": 1e9 * LAYERS}
        counts = np.bincount([layer] * 4, minlength=LAYERS + 1)[1:]
        curve.append({**point, "exit_histogram": counts})
        for row in (0, 1):
            exits = [LAYERS, layer, layer]
            text = {"row": row, "place": place, "tokens": [row, 7, 8], "exit_layers": exits}
            texts.append({**text, **scores, "nats": 4.0})
    rows = {"row": [0, 1], "truncated": [False, False], "prompt_tokens": [3, 8], "reference_tokens": [2, 2]}
    return {"rows": pd.DataFrame(rows), "curve": pd.DataFrame(curve), "texts": pd.DataFrame(texts)}


def timing(cells: Sequence[Cell]) -> tuple[TimingRecord, pd.DataFrame]:
    """Time cells: their share of the time is their share of the layers; later rounds are slower for all.

    The stock model takes 8 milliseconds for a row or token alone, and 2 in a batch of 32.
    """
    first = cells[0][0]
    timed, lines = [TimedKnob(cell_key="", label="stock", knob=None, average_layers=LAYERS)], []
    knobs = knobs_to_time((record, frames["curve"]) for record, frames in cells)
    for record, frames in cells:
        layers = frames["curve"].set_index("knob")["layers"]
        timed += [
            TimedKnob(cell_key=record.key, label=record.label, knob=knob, average_layers=layers[knob])
            for knob in knobs[record.key]
        ]
    for (number, one), (size, milliseconds), place in product(enumerate(timed), ((1, 8.0), (32, 2.0)), range(3)):
        seconds = one.average_layers / LAYERS * milliseconds * size / 1000 * (1 + 0.02 * place)
        line = {"timed": number, "batch_size": size, "in_flight": size, "round": place}
        line |= {"seconds": seconds, "units": size, "layer_calls": one.average_layers * size}
        lines += [{**line, "batch": batch} for batch in range(64 // size)]
    fields = {"environment_before": ENVIRONMENT, "environment_after": ENVIRONMENT, "rounds": 3, "timed": timed}
    fields |= {"command": "consistentee run made-up", "finished_at": "2026-01-01T00:02:00+00:00", "key": "timing"}
    record = TimingRecord(**first.model_dump(include={"kind", "task", "backbone", "seed"}), **fields)
    return record, pd.DataFrame(lines)


# ---------------------------------------------------------------------------------------------- folders


def made_up_suite(seed: int = 0, task: str = "mcid", labels: Sequence[str] = LABELS) -> list[Cell]:
    """Return a cell of every kind of method, or of those with the given labels."""
    return [(cell(label, seed=seed, task=task, dev_as_test=True), frames_by_hand(label)) for label in labels]


def write_cells(out_dir: Path, cells: Sequence[Cell]) -> None:
    """Write cells of one task, backbone and seed, and their timing, as a run does."""
    for record, frames in cells:
        group = Path(folder_name(record.task), folder_name(record.backbone))
        parameters = "default" if not record.parameters else short_hash(record.parameters)
        write_cell(out_dir / "cells" / group / record.label / parameters / f"seed{record.seed}", record, frames)
    write_timing(out_dir / "timings" / group / f"seed{record.seed}" / "timing.json", *timing(cells))


def write_results(
    out_dir: Path, tasks: Sequence[str] = ("mcid",), seeds: Sequence[int] = (0,), labels: Sequence[str] = LABELS
) -> None:
    for task, seed in product(tasks, seeds):
        write_cells(out_dir, made_up_suite(seed, task, labels))


def write_decoding_results(out_dir: Path) -> None:
    full = decoding_cell("token-full"), decoding_frames([LAYERS])
    write_cells(out_dir, [full, (decoding_cell("token-static"), decoding_frames())])


@dataclass(frozen=True, eq=False)
class InMemory(StoredResults):
    frames: Frames = field(default_factory=dict)

    def frame(self, name: AnyFrameName, columns: tuple[str, ...] | None = None) -> pd.DataFrame:
        return self.frames.get(name, pd.DataFrame(columns=["timing" if name == "times" else "cell"]))


def results_of(cells: Sequence[Cell], timings: Sequence[tuple[TimingRecord, pd.DataFrame]] = ()) -> Results:
    """Return the results of cells as if they had been written and read."""
    names = dict.fromkeys(name for _, frames in cells for name in frames)
    frames = {
        name: pd.concat(
            [own[name].assign(cell=n) for n, (_, own) in enumerate(cells) if name in own], ignore_index=True
        )
        for name in names
    }
    if times := [taken.assign(timing=number) for number, (_, taken) in enumerate(timings)]:
        frames["times"] = pd.concat(times, ignore_index=True)
    stored = InMemory(
        Path("made-up"),
        cells[0][0].kind,
        {str(number): record for number, (record, _) in enumerate(cells)},
        {str(number): record for number, (record, _) in enumerate(timings)},
        frames=frames,
    )
    return Results(Path("made-up"), stored.kind, [Part(stored, range(len(stored.cells)), range(len(stored.timings)))])
