"""Risk control of one saved model: the knobs that are proven safe, and whether such promises are kept."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.tasks.loader import load_classification_task
from benchmarks.terminal import add_columns, add_row, plain_table
from consistentee.deployment.pipeline import load_saved
from consistentee.deployment.risk_control import BOUNDS, KnobRisks, check_names, knob_risks
from consistentee.errors import UserError
from consistentee.methods.calibration import Losses, SplitStudy, split_study
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.traces.instance_trace import record_trace

if TYPE_CHECKING:
    from rich.table import Table

CALIBRATION_SHARE = 0.2
"""Of the rows of a study: the held-out ones are so many that their mean is near the risk itself."""


_Replayed = dict[str, tuple[KnobRisks, KnobRisks]]
"""By loss: a model at all knobs, on the rows that choose and on those that check."""


def risk_table(
    folder: Path,
    task_name: str,
    risks: Sequence[float],
    *,
    delta: float = 0.1,
    losses: Sequence[str] = ("gap", "consistency"),
    splits: int | None = None,
    data_dir: Path | None = None,
    allow_code: bool = False,
) -> "Table":
    """Choose a saved model's knob by every bound on a task's validation rows, and look at the test rows.

    Args:
        folder: written by :func:`benchmarks.commands.one_model.single_model.train_model`, or by a run of a suite.
        task_name: the task that it was trained for: a name, or a YAML file.
        risks: the mean losses that are tolerated.
        delta: the chance of a broken promise that is tolerated.
        losses: names of :data:`consistentee.deployment.risk_control.RISK_LOSSES`.
        splits: choose on so many random fifths of validation and test rows instead, and count broken promises on the
            others.
        data_dir: where data files are looked for first.
        allow_code: import the file that the folder names as its method.

    Raises:
        UserError: the folder holds no trained model of this task, or an argument is unknown or out of its range.
    """
    for loss in losses:
        check_names(loss=loss)
    model, method, _ = load_saved(folder, MultiExitModel, allow_code=allow_code)
    task = load_classification_task(task_name, data_dir)
    if model.description.task_name != task.name:
        raise UserError(f"{folder} was trained for task {model.description.task_name!r}, not for {task.name!r}")
    traces = record_trace(model, task.validation), record_trace(model, task.test)
    replayed = {
        loss: (knob_risks(method, model, traces[0], loss), knob_risks(method, model, traces[1], loss))
        for loss in losses
    }
    title = f"{method.name} on {task.name}, {method.knob.name} by risk control, delta={delta:g}"
    if splits is None:
        return _choices(title, model.num_layers, replayed, risks, delta, knob_name=method.knob.name)
    return _studies(title, model.num_layers, replayed, risks, delta, splits=splits)


def _choices(
    title: str, num_layers: int, replayed: _Replayed, risks: Sequence[float], delta: float, *, knob_name: str
) -> "Table":
    table = plain_table(title, "chosen on validation rows; (none): nothing is proven, so all rows run all layers")
    add_columns(table, "loss", "bound")
    headings = "risk tolerated %", knob_name, "validation loss %", "test loss %", f"test layers of {num_layers}"
    add_columns(table, *headings, numbers=True)
    for (loss, (validation, test)), risk, name in product(replayed.items(), risks, BOUNDS):
        found = BOUNDS[name](validation.losses, risk, delta, validation.highest)
        index = max(found, 0)
        knob = f"{validation.knobs[index]:.4g}" if found >= 0 else "(none)"
        means = validation.losses[:, index].mean(), test.losses[:, index].mean()
        numbers = *(f"{100 * mean:.2f}" for mean in means), f"{test.layers[index]:.2f}"
        add_row(table, loss, name, f"{100 * risk:g}", knob, *numbers)
    return table


def _studies(
    title: str, num_layers: int, replayed: _Replayed, risks: Sequence[float], delta: float, *, splits: int
) -> "Table":
    pools = {loss: validation.joined(test) for loss, (validation, test) in replayed.items()}
    rows = len(next(iter(pools.values())).losses)
    calibrating = round(CALIBRATION_SHARE * rows)
    table = plain_table(
        title,
        f"{splits} random splits of validation and test rows: {calibrating} choose, {rows - calibrating} are held out; "
        "ucb and ltt promise a share of broken splits, crc a mean loss",
    )
    add_columns(table, "loss", "bound")
    add_columns(table, "risk tolerated %", "broken %", "held-out loss %", f"layers of {num_layers}", numbers=True)
    add_columns(table, "promise")
    for (loss, pool), risk, name in product(pools.items(), risks, BOUNDS):
        study = study_promise(pool, name, risk, delta, splits=splits)
        shares = f"{100 * study.share:.0f}", f"{100 * study.risks.mean():.2f}"
        kept = "kept" if promise_is_kept(study, name, risk, delta) else "broken"
        add_row(table, loss, name, f"{100 * risk:g}", *shares, f"{pool.layers[study.chosen].mean():.2f}", kept)
    return table


def study_promise(
    pool: KnobRisks, bound: str, risk: float, delta: float, *, splits: int = 100, seed: int = 0
) -> SplitStudy:
    """Choose a knob on a random part of the rows, look at the loss of the others, many times over."""

    def pick(part: Losses, tolerated: float, chance: float) -> int:
        return max(BOUNDS[bound](part, tolerated, chance, pool.highest), 0)

    return split_study(pool.losses, risk, delta, splits, seed, calibration_share=CALIBRATION_SHARE, pick=pick)


def promise_is_kept(study: SplitStudy, bound: str, risk: float, delta: float) -> bool:
    """Check whether a study agrees with the guarantee of a bound, up to the sampling error of its splits."""
    if bound != "crc":
        return study.share <= delta + study.sampling_error
    return float(study.risks.mean()) <= risk + 1.645 * float(study.risks.std()) / len(study.risks) ** 0.5
