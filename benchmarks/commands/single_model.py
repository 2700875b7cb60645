"""One model outside a suite: train it for a task, and use it on texts."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.commands.settings import checked_settings
from benchmarks.kinds.classification import Evaluation, default_knob, trace_and_choose
from benchmarks.kinds.kind import kind_named
from benchmarks.store.targets import in_words
from benchmarks.tasks.loader import load_classification_task
from benchmarks.terminal import add_columns, add_row, plain_table
from consistentee.data.instances import Text
from consistentee.engine.classify import classify
from consistentee.errors import UserError
from consistentee.methods.method import Method, get_method, train_method
from consistentee.models.encoder import MultiExitModel
from consistentee.models.encoder_description import ModelDescription
from consistentee.rules.exit_rule import ExitRule
from consistentee.training.recipe import RecipeSettings

if TYPE_CHECKING:
    from rich.table import Table

_BUDGETS = (0.25, 0.5, 0.75)


def train_model(
    task_name: str,
    method_name: str,
    parameters: Mapping[str, Any],
    *,
    backbone: str,
    out: Path,
    settings: Mapping[str, Any],
    seed: int = 0,
    data_dir: Path | None = None,
) -> "Table":
    """Train one method on one task and save the model with the knob that validation data chose.

    Args:
        task_name: a task's name, or its YAML file.
        method_name, parameters: see :func:`consistentee.methods.method.get_method`.
        backbone: catalogue name, directory or hub id.
        out: folder of the saved model.
        settings: fields of :class:`consistentee.training.recipe.RecipeSettings`, where they are not as usual.
        seed: of the training.
        data_dir: where data files are looked for first.

    Returns:
        The operating points as a table for the terminal.

    Raises:
        UserError: a name, a parameter or a setting is unknown, or ``out`` is not a folder that may be written.
    """
    method = get_method(method_name, **parameters)
    if method.replay_only:
        raise UserError(f"{method.name} reads the true labels: a saved model could predict nothing")
    recipe = checked_settings(RecipeSettings, settings).to_recipe(seed, progress=True)
    _check_out(out)
    task = load_classification_task(task_name, data_dir)
    method.check_task(task)
    model = MultiExitModel.from_backbone(backbone, task.num_labels, label_names=task.label_names, seed=seed)
    torch.manual_seed(seed)
    model = train_method(method, method_name, model, task, recipe).eval()
    done = trace_and_choose(task, method, model, _BUDGETS)
    model.description.default_knob = default_knob(done)
    model.save_pretrained(out)
    return _operating_points(done, out)


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "multi_exit.json").is_file():
        raise UserError(f"--out {out} is a folder that holds other files than a trained model; give a new one")


def _operating_points(done: Evaluation, out: Path) -> "Table":
    metric, knob_name = done.task.metric, done.method.knob.name
    table = plain_table(
        f"{done.method.name} on {done.task.name}, saved in {out}",
        f"`consistentee predict {out} TEXT` uses {knob_name}={default_knob(done):.4g} unless --knob says otherwise",
    )
    add_columns(table, knob_name, "chosen for")
    add_columns(table, f"validation {metric} %", f"test {metric} %", "test layers", numbers=True)
    for index, targets in done.chosen.items():
        validation, test = done.validation.points[index], done.test.points[index]
        add_row(
            table,
            f"{done.knobs[index]:.4g}",
            in_words(targets),
            f"{100 * validation.scores[metric]:.1f}",
            f"{100 * test.scores[metric]:.1f}",
            f"{test.average_layers:.2f} of {done.model.stock_layers}",
        )
    return table


def rows_of(texts: Sequence[str], pair: bool) -> list[Text]:
    """Turn words of the command line into rows: a tab parts the texts of a pair; ``pair`` joins every two texts.

    Raises UserError for an odd number of texts, or a text with more than one tab.
    """
    if pair:
        if len(texts) % 2:
            raise UserError(f"--pair takes an even number of texts, got {len(texts)}")
        return list(zip(texts[::2], texts[1::2], strict=True))
    rows: list[Text] = []
    for text in texts:
        parts = text.split("\t")
        if len(parts) > 2:
            raise UserError(f"a pair has one tab between its texts, got {len(parts) - 1} in {text!r}")
        rows.append((parts[0], parts[1]) if len(parts) == 2 else text)
    if not all(part.strip() for row in rows for part in (row if isinstance(row, tuple) else (row,))):
        raise UserError("an empty text cannot be classified")
    return rows


def predict_texts(folder: Path, rows: Sequence[Text], knob: float | None = None) -> "Table":
    """Classify texts one by one with a saved model: label, probability, exit layer, milliseconds.

    Args:
        folder: written by :func:`train_model`.
        rows: single texts, or pairs.
        knob: of the method; by default the one chosen in training.

    Raises:
        UserError: the folder holds no trained model, or the knob is out of range.
    """
    if not folder.is_dir():
        raise UserError(f"no such model folder: {folder}; `consistentee train` makes one")
    if (folder / kind_named("generation").model_file).is_file():
        raise UserError(f"{folder} holds a decoder, which labels no text; see `consistentee generate`")
    method = _method_of(folder)  # before the model, which may need the kind of classifiers that its file enters
    model = MultiExitModel.from_pretrained(folder)
    knob = _knob_of(model, method, knob)
    rule = method.rule(model, knob)
    classify(model, rows[:1], rule, batch_size=1)  # the first call of a process pays for more than itself
    table = plain_table(f"{method.name}, {method.knob.name}={knob:.4g}", "ms: one text alone, tokenising included")
    add_columns(table, "text", *(["value"] if model.num_labels == 1 else ["label", "probability"]))
    add_columns(table, f"exit layer of {model.num_layers}", "ms", numbers=True)
    for row in rows:
        add_row(table, *_prediction_cells(model, row, rule))
    return table


def _method_of(folder: Path) -> Method:
    description = ModelDescription.read(folder)
    if description.method_name is None:
        raise UserError(f"{folder} does not say which method trained it, so there is no exit rule to use")
    method = get_method(description.method_name, **description.method_parameters)
    if method.replay_only:
        raise UserError(f"{method.name} reads the true labels, so it cannot predict")
    return method


def _knob_of(model: MultiExitModel, method: Method, knob: float | None) -> float:
    values = list(method.knob_values(model))
    chosen = next((value for value in (knob, model.description.default_knob) if value is not None), None)
    if chosen is None:
        return float(values[len(values) // 2])
    method.check_knob(model, chosen)
    return float(chosen)


def _prediction_cells(model: MultiExitModel, row: Text, rule: ExitRule) -> list[str]:
    start = time.perf_counter()
    answer = classify(model, [row], rule, batch_size=1)
    milliseconds = 1000 * (time.perf_counter() - start)
    text = " | ".join(row) if isinstance(row, tuple) else row
    layer_and_time = [str(int(answer.exit_layers[0])), f"{milliseconds:.1f}"]
    if model.num_labels == 1:
        return [text, f"{float(answer.predictions[0]):.3f}", *layer_and_time]
    label = int(answer.predictions[0])
    name = model.label_names[label] if model.label_names else str(label)
    probability = float(answer.logits[0].softmax(dim=-1).max())
    return [text, name, f"{probability:.3f}", *layer_and_time]
