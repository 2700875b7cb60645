"""Train one model of either kind outside a suite, and save it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.commands.settings import checked_settings
from benchmarks.kinds import kind_named
from benchmarks.kinds.kind import TrainedCell
from benchmarks.run.cell import trained
from benchmarks.specs.suites import expand
from benchmarks.specs.targets import in_words
from benchmarks.tasks.loader import task_kind
from benchmarks.terminal import add_columns, add_row, plain_table
from consistentee.deployment.risk_control import control_risk
from consistentee.errors import UserError
from consistentee.methods.calibration import check_shares
from consistentee.methods.method import code_file, get_method
from consistentee.traces.instance_trace import record_trace

if TYPE_CHECKING:
    from rich.table import Table

_USES = {"classification": "predict {} TEXT", "generation": "generate {} PROMPT"}


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
) -> "Table":
    """Train one method on one task and save the model with the knob that validation data chose.

    Everything else has the defaults of a suite: exits, caps on what is decoded, budgets. With a ``risk``,
    :func:`consistentee.control_risk` chooses the knob on the validation rows: training has not seen them.

    Returns the operating points as a table. Raises UserError for unknown names, and if ``out`` holds other files.
    """
    if risk is not None:
        check_shares(risk=risk)
    name = "generation" if task_kind(task_name) == "text" else "classification"
    kind = kind_named(name)
    method = get_method(method_name, **parameters)
    if method.replay_only:
        raise UserError(f"{method.name} reads the true labels: a saved model could predict nothing")
    suite = kind.suite.model_validate(
        {
            "name": "one-model",
            "kind": name,
            "description": "",
            "tasks": [task_name],
            "backbones": [backbone or kind.usual_backbone],
            "seeds": [seed],
            "methods": [{"method": method_name, "parameters": dict(parameters)}],
            "recipe": checked_settings(type(kind.suite.model_fields["recipe"].default), settings),
        }
    )
    if risk is not None and name != "classification":
        raise UserError("--risk is for tasks of labels")
    if out.is_dir() and any(out.iterdir()) and not (out / kind.model_file).is_file():
        raise UserError(f"--out {out} is a folder that holds other files than a trained model; give a new one")
    (spec,) = expand(suite)
    rows = kind.load_rows(spec, data_dir)
    method.check_task(rows.task)
    model = trained(spec, rows, method, progress=True)
    chosen = kind.choose(TrainedCell(spec, rows, method, model))
    knob, why = chosen.default_knob, ""
    if risk is not None:
        found = control_risk(method, model, record_trace(model, rows.task.validation), risk)
        knob, why = found.knob, f" (at most {risk:.2%} of points lost, proven on {found.rows} rows)"
        if not found.proven:
            why = " (full depth: no early exit is proven to lose as little)"
    model.description.default_knob = knob
    model.save_pretrained(out)
    command = _USES[name].format(out) + (" --allow-code" if code_file(method_name) else "")
    uses = f"`consistentee {command}` uses {method.knob.name}={knob:.4g}{why} unless --knob is given"
    points = chosen.columns()
    table = plain_table(f"{method.name} on {rows.task.name}, saved in {out}", uses)
    add_columns(table, method.knob.name, "chosen for")
    add_columns(table, *points[0][2], numbers=True)
    for point, targets, numbers in points:
        add_row(table, f"{point:.4g}", in_words(targets), *numbers.values())
    return table
