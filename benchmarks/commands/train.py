"""Train one model of either kind outside a suite, and save it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.commands.settings import checked_settings
from benchmarks.kinds import kind_named
from benchmarks.kinds.kind import CellRows, Chosen, TrainedCell
from benchmarks.run.cell import trained
from benchmarks.specs.suites import expand
from benchmarks.specs.targets import in_words
from benchmarks.tasks.loader import task_kind
from benchmarks.terminal import add_columns, add_row, plain_table
from consistentee.deployment.risk_control import check_names, control_risk
from consistentee.errors import UserError
from consistentee.methods.calibration import check_shares
from consistentee.methods.method import AnyMethod, code_file, get_method
from consistentee.traces.instance_trace import record_trace

if TYPE_CHECKING:
    from rich.table import Table

_USES = {"classification": "predict {} TEXT", "generation": "generate {} PROMPT"}


@dataclass(frozen=True)
class Tolerance:
    """The loss that early exits may cost, see :func:`consistentee.control_risk`; errors as there."""

    risk: float
    delta: float = 0.1
    bound: str = "ucb"
    loss: str = "gap"

    def __post_init__(self) -> None:
        check_shares(risk=self.risk, delta=self.delta)
        check_names(self.bound, self.loss)


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
    tolerance: Tolerance | None = None,
) -> "Table":
    """Train one method on one task and save the model with the knob that validation data chose.

    Everything else has the defaults of a suite: exits, caps on what is decoded, budgets.

    Args:
        task_name: a task's name, or its YAML file.
        method_name, parameters: see :func:`consistentee.methods.method.get_method`.
        backbone: catalogue name, directory or hub id; by default the usual one for this kind of task.
        out: folder of the saved model.
        settings: fields of :mod:`consistentee.training.recipe` that differ from their defaults.
        seed, data_dir: as in the command.
        tolerance: let risk control choose the knob, on the validation rows: training has not seen them.

    Returns the operating points as a table for the terminal. Raises UserError if a name, a parameter or a setting is
    unknown, or ``out`` is not a folder that may be written.
    """
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
    if tolerance and name != "classification":
        raise UserError("--risk is for tasks of labels")
    _check_out(out, kind.model_file)
    (spec,) = expand(suite)
    rows = kind.load_rows(spec, data_dir)
    method.check_task(rows.task)
    model = trained(spec, rows, method, progress=True)
    chosen = kind.choose(TrainedCell(spec, rows, method, model))
    knob, why = chosen.default_knob, ""
    if tolerance:
        knob, why = _controlled(tolerance, model, method, rows)
    model.description.default_knob = knob
    model.save_pretrained(out)
    command = _USES[name].format(out) + (" --allow-code" if code_file(method_name) else "")
    uses = f"`consistentee {command}` uses {method.knob.name}={knob:.4g}{why} unless --knob is given"
    return _operating_points(chosen, method, f"{method.name} on {rows.task.name}, saved in {out}", uses)


def _controlled(tolerance: Tolerance, model: Any, method: AnyMethod, rows: CellRows[Any]) -> tuple[float, str]:
    """Return the knob that risk control chooses, and why it is this one."""
    found = control_risk(method, model, record_trace(model, rows.task.validation), **asdict(tolerance))
    promise = f"{tolerance.loss} loss of at most {tolerance.risk:g}, by {tolerance.bound} on {found.rows} rows"
    if not found.proven:
        return found.knob, f" (full depth: no early exit is proven to keep a {promise})"
    return found.knob, f" ({promise}; {found.average_layers:.2f} layers there)"


def _check_out(out: Path, model_file: str) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / model_file).is_file():
        raise UserError(f"--out {out} is a folder that holds other files than a trained model; give a new one")


def _operating_points(chosen: Chosen, method: AnyMethod, title: str, uses: str) -> "Table":
    points = chosen.columns()
    table = plain_table(title, uses)
    add_columns(table, method.knob.name, "chosen for")
    add_columns(table, *points[0][2], numbers=True)
    for knob, targets, numbers in points:
        add_row(table, f"{knob:.4g}", in_words(targets), *numbers.values())
    return table
