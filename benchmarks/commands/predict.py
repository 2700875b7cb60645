"""Use a saved classifier: label texts one by one, and choose its knob by risk control."""

import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.tasks.loader import load_classification_task
from benchmarks.terminal import add_columns, add_row, plain_table
from consistentee.data.instances import Text
from consistentee.deployment.pipeline import Classifier, load_saved
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


def rows_of(texts: Sequence[str], pair: bool) -> list[Text]:
    """Turn words of the command line into rows: a tab parts the texts of a pair; ``pair`` joins every two texts.

    Raises UserError for an odd number of texts, a text with more than one tab, or an empty one.
    """
    if pair and len(texts) % 2:
        raise UserError(f"--pair takes an even number of texts, got {len(texts)}")
    rows: list[Text] = list(zip(texts[::2], texts[1::2], strict=True)) if pair else list(map(_row_of, texts))
    if not all(part.strip() for row in rows for part in (row if isinstance(row, tuple) else (row,))):
        raise UserError("an empty text cannot be classified")
    return rows


def _row_of(text: str) -> Text:
    parts = text.split("\t")
    if len(parts) > 2:
        raise UserError(f"a pair has one tab between its texts, got {len(parts) - 1} in {text!r}")
    return (parts[0], parts[1]) if len(parts) == 2 else text


def predict_texts(
    folder: Path, rows: Sequence[Text], knob: float | None = None, *, allow_code: bool = False
) -> "Table":
    """Classify texts or pairs one by one with a saved model: label, probability, exit layer, milliseconds.

    Raises UserError if the folder holds no trained model, or the knob is out of range.
    """
    model, method, knob = load_saved(folder, MultiExitModel, knob, allow_code=allow_code)
    classifier = Classifier(model, method.rule(model, knob))
    classifier(rows[:1])  # the first call of a process pays for more than itself
    table = plain_table(f"{method.name}, {method.knob.name}={knob:.4g}", "ms: one text alone, tokenising included")
    add_columns(table, "text", *(["value"] if model.num_labels == 1 else ["label", "probability"]))
    add_columns(table, f"exit layer of {model.num_layers}", "ms", numbers=True)
    for row in rows:
        start = time.perf_counter()
        (answer,) = classifier(row)
        milliseconds = 1000 * (time.perf_counter() - start)
        text = " | ".join(row) if isinstance(row, tuple) else row
        label = [answer["label"]] if "label" in answer else []
        add_row(table, text, *label, f"{answer['score']:.3f}", answer["exit_layer"], f"{milliseconds:.1f}")
    return table


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
        folder: written by ``train``, or by a run of a suite.
        task_name: the task that it was trained for: a name, or a YAML file.
        risks: the mean losses that are tolerated.
        delta: the chance of a broken promise that is tolerated.
        losses: names of :data:`consistentee.deployment.risk_control.RISK_LOSSES`.
        splits: choose on so many random fifths of validation and test rows instead, and count broken promises on the
            others.
        data_dir, allow_code: as in the command.

    Raises UserError if the folder holds no trained model of this task, or an argument is unknown or out of its range.
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
