"""Run one cell of any kind: train, evaluate, save the model, write the rows, and last the record."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import set_seed

from benchmarks.kinds import kind_named
from benchmarks.kinds.kind import CellRows, TrainedCell
from benchmarks.run.environment import describe_environment, now
from benchmarks.specs.base import BaseCellSpec, short_name
from benchmarks.store.folders import LOG_FILE, RECORD_FILE, RunFolder, seal_model, write_cell
from benchmarks.store.hashes import share_weights
from benchmarks.store.keys import code_hash
from benchmarks.store.records import BaseRecord, KeyParts
from consistentee.files import replacing
from consistentee.methods.method import AnyMethod, get_method, train_method
from consistentee.progress import begin_stage
from consistentee.training.loop import logged_training

_logger = logging.getLogger(__name__)


def run_cell(
    spec: BaseCellSpec, parts: KeyParts, rows: CellRows[Any], folder: RunFolder, *, command: str
) -> BaseRecord:
    """Run one cell and write its folder: predictions, log, trained model, and last the record that makes it done."""
    kind, cell = kind_named(spec.kind), folder.cell(spec)
    method = get_method(spec.method, **spec.parameters)
    begin_stage("loading the backbone")
    with _log_to(cell / LOG_FILE):
        _logger.info("%s, key %s", spec.name, parts.key)
        started = time.perf_counter()
        with logged_training() as log:
            model = trained(spec, rows, method, store=folder.stages)
        train_seconds = time.perf_counter() - started
        _logger.info("trained in %.1f s", train_seconds)
        begin_stage("choosing knobs")
        chosen = kind.choose(TrainedCell(spec, rows, method, model, parts.key, folder.stages))
        begin_stage("measuring")
        findings = chosen.findings()
        model.description.default_knob = chosen.default_knob
        record = kind.record.model_validate(
            {
                **_common_fields(spec, parts, rows, method),
                **findings,
                "train_seconds": train_seconds,
                "validation_by_epoch": model.description.validation_by_epoch,
                "losses": log.losses,
                "trained_rows": log.rows,
                "command": command,
                "environment": describe_environment(),
                "finished_at": now(),
            }
        )
        (cell / RECORD_FILE).unlink(missing_ok=True)  # an old record does not describe the model written next
        with replacing(folder.model(parts.key)) as temporary:
            model.save_pretrained(temporary)
            share_weights(temporary, folder.weights)
            seal_model(temporary, parts.key)
        tables = chosen.tables()
    write_cell(cell, record, tables)
    return record


def trained(
    spec: BaseCellSpec, rows: CellRows[Any], method: AnyMethod, *, store: Path | None = None, keep_stages: bool = False
) -> Any:
    """Train the model of a cell; ``store`` is the folder of the stages that cells share, or of all its stages."""
    set_seed(spec.seed)  # methods may draw from the global generators
    model = kind_named(spec.kind).build_model(spec, rows)
    recipe = spec.recipe.to_recipe(spec.seed, store, keep_stages=keep_stages)
    return train_method(method, model, rows.training, recipe).eval()


def _common_fields(spec: BaseCellSpec, parts: KeyParts, rows: CellRows[Any], method: AnyMethod) -> dict[str, Any]:
    task = rows.task
    return {
        "key": parts.key,
        "key_parts": parts,
        "code_hash": code_hash(),
        "task": task.name,
        "task_version": task.version,
        "metric": task.metric,
        "task_notes": task.notes,
        "backbone": short_name(spec.backbone),
        "method": short_name(spec.method),
        "label": spec.label,
        "parameters": method.parameters,
        "knob_name": method.knob.name,
        "seed": spec.seed,
        "train_rows": rows.trained_on(spec.recipe),
        "validation_rows": len(task.validation),
        "test_rows": len(task.test),
    }


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
