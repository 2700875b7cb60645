"""Train one model of either kind outside a suite, and save it. What is interrupted goes on later."""

import math
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from benchmarks.kinds import KINDS, Inputs
from benchmarks.measure.knobs import around_budgets
from benchmarks.run.cell import trained
from benchmarks.run.jobs import SECONDS_BETWEEN_LINES, in_words, throttled
from benchmarks.specs.base import BaseCellSpec
from benchmarks.specs.schema import validation_sentence
from benchmarks.specs.suites import expand
from benchmarks.tasks.loader import task_kind
from benchmarks.terminal import filled_table, print_line
from consistentee.deployment.risk_control import check_shares, control_risk
from consistentee.errors import UserError
from consistentee.extras import check_extra
from consistentee.files import make_folder
from consistentee.methods.method import code_file, get_method
from consistentee.models.encoder import MultiExitModel
from consistentee.progress import Listener, Position, StopAfterStepError, begin_stage, listening
from consistentee.traces.instance_trace import record_trace
from consistentee.versions import TaskKind

UNFINISHED = ".training"  # below the folder of the model
_USES = {"classification": "predict {} TEXT", "generation": "generate {} PROMPT"}


@contextmanager
def showing_stages(console: Console) -> Iterator[Listener]:
    """Show the progress of the block: a line that updates itself on a terminal, lines anywhere else.

    Yields the listener to report to.
    """
    with Status("starting", console=console) as status:

        def show(position: Position) -> None:
            if console.is_terminal:
                status.update(escape(in_words(position)))
            else:
                print_line(console, in_words(position))

        listener = throttled(show, 1.0 if console.is_terminal else SECONDS_BETWEEN_LINES)
        with listening(listener):
            yield listener


@contextmanager
def ending_after_a_step(listener: Listener) -> Iterator[Listener]:
    """Let Ctrl-C end a training after the step at work, which is kept; a second Ctrl-C ends it at once.

    Yields the listener to report to. Outside of the main thread, which alone hears signals, nothing changes.
    """
    asked = unfinished = False

    def on_interrupt(*_: object) -> None:
        nonlocal asked
        if asked or not unfinished:
            raise KeyboardInterrupt
        asked = True
        print("ending after this step; Ctrl-C again ends at once", file=sys.stderr)

    def listen(position: Position) -> None:
        nonlocal unfinished
        is_training = position.stage.startswith("training ")
        if is_training or not position.total:  # else a stage traces validation rows within a step
            unfinished = position.done < position.total
        if asked and is_training and unfinished:
            raise StopAfterStepError
        if asked and not is_training and not unfinished:  # the last step of a stage is kept as a finished stage
            raise KeyboardInterrupt
        listener(position)

    if threading.current_thread() is not threading.main_thread():
        yield listener
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield listen
    finally:
        signal.signal(signal.SIGINT, before)


def train_model(
    task_name: str,
    method_name: str,
    parameters: Mapping[str, Any],
    *,
    backbone: str | None,
    out: Path,
    settings: Mapping[str, Any],
    seed: int = 0,
    data_dir: Path | None = None,
    risk: float | None = None,
) -> Table:
    """Train one method on one task, save the model with the knob that validation data chose, and return its curve.

    Everything else has the defaults of a suite. With a ``risk``, :func:`consistentee.control_risk` chooses the knob.
    Finished stages and checkpoints are kept in ``out`` until the model is saved: the same arguments continue there,
    after Ctrl-C from the step that was reached; others begin anew. Raises UserError for unknown names, and if ``out``
    holds other files or cannot be written.
    """
    name: TaskKind = "generation" if task_kind(task_name) == "text" else "classification"
    if name == "generation":
        check_extra("bench", f"{task_name}, a task of texts,")  # which are scored by ROUGE
    kind = KINDS[name]
    method = get_method(method_name, **parameters)
    if method.replay_only:
        raise UserError(f"{method.name} reads the true labels: a saved model could predict nothing")
    if risk is not None:
        check_shares(risk=risk)
        if name != "classification":
            raise UserError("--risk is for tasks of labels")
        if method.learns_from_validation:
            raise UserError(f"{method.name} learns from validation rows, which --risk needs unseen for its proof")
    unfinished = out / UNFINISHED
    if out.is_dir() and any(out.iterdir()) and not (unfinished.is_dir() or (out / kind.model_file).is_file()):
        raise UserError(f"--out {out} is a folder that holds other files than a trained model; give a new one")
    fields: dict[str, list[object]] = {
        "tasks": [task_name],
        "backbones": [backbone or kind.usual_backbone],
        "seeds": [seed],
        "methods": [{"method": method_name, "parameters": dict(parameters)}],
    }
    spec, inputs = _one_cell(name, fields, settings), Inputs(data_dir)
    rows = inputs.rows(spec)
    method.check_task(rows.task)
    store = unfinished / inputs.parts(spec).key[:16]
    make_folder(store)  # before hours of training
    if any(store.glob("*.safetensors")):
        print(f"continuing the interrupted training in {unfinished}", file=sys.stderr)
    try:
        with showing_stages(Console(stderr=True)) as show, ending_after_a_step(show) as listener, listening(listener):
            begin_stage("loading the backbone")
            model = trained(spec, rows, method, store=store, keep_stages=True)
            begin_stage("sweeping the knob")
            evaluation = kind.evaluate(spec, rows, method, model, store)
            knob, why = evaluation.default_knob, ""
            if risk is not None:
                found = control_risk(method, model, record_trace(model, rows.task.validation, store=store), risk)
                knob, why = found.knob, " (full depth: no early exit is proven to lose as little)"
                if found.proven:
                    why = f" (at most {risk:.2%} of points lost, proven on {found.rows} rows)"
            curve = evaluation.curve
        model.description.default_knob = knob
        (out / kind.model_file).unlink(missing_ok=True)  # an old description does not fit the weights written next
        model.save_pretrained(out)
    except KeyboardInterrupt as error:
        kept = f"finished stages and checkpoints are kept in {unfinished}; the same command continues"
        raise KeyboardInterrupt(f"interrupted: {kept}") from error
    shutil.rmtree(unfinished, ignore_errors=True)
    command = _USES[name].format(out) + (" --allow-code" if code_file(method_name) else "")
    uses = f"`consistentee {command}` uses {method.knob.name}={knob:.4g}{why} unless --knob is given"
    num_layers = model.stock_layers if isinstance(model, MultiExitModel) else model.num_layers  # budgets are shares of
    numbers, lines = _around_budgets(curve, rows.task.metric, name, num_layers, knob)
    title = f"{method.name} on {rows.task.name}, saved in {out}"
    return filled_table([method.knob.name, ""], numbers, lines, title, uses)


def _one_cell(kind: TaskKind, fields: Mapping[str, Any], settings: Mapping[str, Any]) -> BaseCellSpec:
    suite = KINDS[kind].suite
    declared = type(suite.model_fields["recipe"].default)
    try:
        recipe = declared(**settings)
    except ValidationError as error:
        raise UserError(f"--set {validation_sentence(error, declared)}") from error
    described = {"name": "one-model", "description": "", "kind": kind, "recipe": recipe}
    (spec,) = expand(suite.model_validate(described | dict(fields)))
    return spec


def _around_budgets(
    curve: pd.DataFrame, metric: str, kind: TaskKind, num_layers: float, saved: float
) -> tuple[list[str], list[list[str]]]:
    """Return headings and lines of the saved knob and of those around the budgets, fewest layers first."""
    known = curve.dropna(subset="layers")
    places = {*known.index[around_budgets(known["layers"], num_layers, kind)], *curve.index[curve["knob"] == saved]}
    quality = metric if kind == "classification" else "agreement"
    headings = ["validation layers", f"validation {quality} %", "test layers", f"test {metric} %"]
    lines = []
    for point in curve.loc[sorted(places)].to_dict("records"):
        words = ["never exit" if math.isnan(point["knob"]) else f"{point['knob']:.4g}"]
        words += ["saved" if point["knob"] == saved else ""]
        words += [f"{point['validation_layers']:.2f}", f"{100 * point['validation_score']:.1f}"]
        words += ["", ""] if math.isnan(point["layers"]) else [f"{point['layers']:.2f}", f"{100 * point[metric]:.1f}"]
        lines.append(words)
    return headings, lines
