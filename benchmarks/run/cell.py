"""Run one cell of either kind: train, evaluate, save the model, write the frames, and last the record."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks.kinds import KINDS, Inputs
from benchmarks.kinds.kind import CellRows
from benchmarks.measure.environment import describe_environment, now
from benchmarks.measure.knobs import SPEEDUPS, neighbours
from benchmarks.measure.terms import score_of_means
from benchmarks.run.jobs import Job, RunContext
from benchmarks.specs.base import BaseCellSpec, short_name
from benchmarks.store.folders import LOG_FILE, RECORD_FILE, RunFolder, frame_file, read_cell, seal_model, write_cell
from benchmarks.store.hashes import share_weights
from benchmarks.store.keys import code_hash, stale_reason
from benchmarks.store.records import AnyRecord, KeyParts
from consistentee.errors import UserError
from consistentee.files import replacing
from consistentee.methods.method import AnyMethod, get_method, train_method
from consistentee.progress import begin_stage

if TYPE_CHECKING:
    from benchmarks.run.plan import PlannedCell

_logger = logging.getLogger(__name__)


class CellJob(Job[AnyRecord]):
    """One cell."""

    def __init__(self, context: RunContext, cell: "PlannedCell") -> None:
        self.cell = cell
        super().__init__(context, cell.spec.name, cell.key, cell.spec.group, context.folder.cell(cell.spec))

    def read(self) -> AnyRecord | None:
        return read_cell(self.place, self.cell.parts)[0]

    def compute(self) -> None:
        """Run the cell. Raises UserError if its key is no longer the planned one."""
        inputs, spec, parts = Inputs(self.context.data_dir), self.cell.spec, self.cell.parts
        if changed := stale_reason(parts, inputs.parts(spec)):
            raise UserError(f"changed since the run began, run it again: {changed}")
        run_cell(spec, parts, inputs.rows(spec), self.context.folder, command=self.context.command)

    def describe(self, found: AnyRecord) -> list[str]:
        from benchmarks.store.frames import read_frame  # pyarrow, which `consistentee train` does without

        curve = read_frame(self.place / frame_file("curve"))
        full = self.cell.spec.model_copy(update={"label": KINDS[found.kind].full_method, "parameters": {}})
        of_full = self.context.folder.cell(full) / frame_file("curve")
        against = float(read_frame(of_full)[found.metric].iloc[-1]) if of_full.exists() else None
        return [reached(found, curve, against), *live_differences(curve)]


def reached(record: AnyRecord, curve: pd.DataFrame, full_score: float | None) -> str:
    """Describe a cell at the middle budget: points against the full model if it is there, and the score."""
    known, speedup = curve.dropna(subset="layers"), SPEEDUPS[record.kind][1]
    mixture = neighbours(known["layers"], record.num_layers / speedup)
    first, second, weight, reach = (part[0] for part in mixture)

    def mixed(column: str) -> np.ndarray:
        values = np.stack(known[column].to_numpy())
        return np.asarray(weight * values[first] + (1 - weight) * values[second])

    terms = f"{record.metric}_terms"
    score = float(score_of_means(record.metric, mixed(terms)) if terms in known else mixed(record.metric))
    points = "" if full_score is None else f"{100 * (score - full_score):+.1f} points, "
    place = f"{speedup:g}x" if reach == "met" else f"{float(mixed('layers')):.2f} of {record.num_layers} layers"
    return f"{points}{record.metric} {100 * score:.1f} at {place}"


def live_differences(curve: pd.DataFrame) -> list[str]:
    """List the knobs at which some row exits or answers otherwise live than in the replay."""
    differ = curve[curve.get("live_disagreements", pd.Series(0, curve.index)) > 0].to_dict("records")
    words = "{live_disagreements:.0f} of {live_rows:.0f} rows differ live at knob {knob:g}"
    return [words.format_map(point) for point in differ]


def run_cell(spec: BaseCellSpec, parts: KeyParts, rows: CellRows[Any], folder: RunFolder, *, command: str) -> AnyRecord:
    """Run one cell and write its folder: frames, log, trained model, and last the record that makes it done."""
    from consistentee.training.loop import logged_training

    cell, task, trainable = folder.cell(spec), rows.task, len(rows.training.train)
    method = get_method(spec.method, **spec.parameters)
    begin_stage("loading the backbone")
    with _log_to(cell / LOG_FILE):
        _logger.info("%s, key %s", spec.name, parts.key)
        started = time.perf_counter()
        with logged_training() as log:
            model = trained(spec, rows, method, store=folder.stages)
        train_seconds = time.perf_counter() - started
        _logger.info("trained in %.1f s", train_seconds)
        begin_stage("sweeping the knob")
        evaluation = KINDS[spec.kind].evaluate(spec, rows, method, model, folder.stages)
        begin_stage("measuring")
        frames = {**evaluation.frames(), "training": training_frame(log.losses, model.description.validation_by_epoch)}
        record = evaluation.record(
            key=parts.key,
            key_parts=parts,
            code_hash=code_hash(),
            task=task.name,
            task_version=task.version,
            metric=task.metric,
            task_notes=task.notes,
            dev_as_test=task.dev_as_test,
            backbone=short_name(spec.backbone),
            method=short_name(spec.method),
            label=spec.label,
            parameters=method.parameters,
            knob_name=method.knob.name,
            seed=spec.seed,
            train_rows=min(trainable, spec.recipe.max_rows or trainable),
            validation_rows=len(task.validation),
            test_rows=len(task.test),
            train_seconds=train_seconds,
            trained_rows=log.rows,
            command=command,
            environment=describe_environment(),
            finished_at=now(),
        )
        model.description.default_knob = evaluation.default_knob
        (cell / RECORD_FILE).unlink(missing_ok=True)  # an old record does not describe the model written next
        with replacing(folder.model(parts.key)) as temporary:
            model.save_pretrained(temporary)
            share_weights(temporary, folder.weights)
            seal_model(temporary, parts.key)
    write_cell(cell, record, frames)
    return record


def trained(
    spec: BaseCellSpec, rows: CellRows[Any], method: AnyMethod, *, store: Path | None = None, keep_stages: bool = False
) -> Any:
    """Train the model of a cell; ``store`` is the folder of the stages that cells share, or of all its stages."""
    from transformers import set_seed

    set_seed(spec.seed)  # methods may draw from the global generators
    model = KINDS[spec.kind].build_model(spec, rows)
    recipe = spec.recipe.to_recipe(seed=spec.seed, store=store, keep_stages=keep_stages)
    return train_method(method, model, rows.training, recipe).eval()


def training_frame(losses: Mapping[str, Sequence[float]], validation: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """Build the frame ``training``: losses in equal parts of a stage, and validation scores after its epochs."""
    lines = [
        (stage, curve, step, value)
        for curve, stages in (("loss", losses), ("validation score", validation))
        for stage, values in stages.items()
        for step, value in enumerate(values, start=1)
    ]
    return pd.DataFrame(lines, columns=["stage", "curve", "step", "value"]).astype({"value": "float32"})


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Write the log of this project and Python's warnings into a file, which appears if the block succeeds."""
    loggers = [logging.getLogger(name) for name in ("consistentee", "baselines", "benchmarks", "py.warnings")]
    with replacing(path) as temporary:
        handler = logging.FileHandler(temporary, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.captureWarnings(True)
        for logger in loggers:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(handler)
            handler.close()
            logging.captureWarnings(False)
