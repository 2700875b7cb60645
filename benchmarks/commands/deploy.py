"""Accelerate a user's model, time a saved one, and label files of texts."""

import csv
import random
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.commands.train import showing_stages
from benchmarks.specs.schema import TABLES
from benchmarks.tasks.check import normalised
from benchmarks.tasks.data_files import Columns, find_columns, labelled_rows, read_table, texts_of
from benchmarks.tasks.loader import load_classification_task
from benchmarks.terminal import filled_table, print_line
from consistentee.backbones.catalog import resolve
from consistentee.backbones.pretrained import read_config
from consistentee.data.tasks import Split, TaskData, Text
from consistentee.deployment import timing
from consistentee.deployment.accelerate import RECIPE, Accelerated, accelerate
from consistentee.deployment.pipeline import Classifier, load_saved
from consistentee.engine.classify import classify_encoded
from consistentee.errors import UserError
from consistentee.models.classifiers import check_classifier
from consistentee.models.encoder import MultiExitModel


def is_file(data: str) -> bool:
    """Return whether DATA is a table, and not the name or the YAML of a task."""
    return Path(data).suffix.lower() in TABLES or data == "-"


def rows_of(
    model: str,
    data: str,
    *,
    train: Path | None = None,
    text: Sequence[str] = (),
    label: str | None = None,
    data_dir: Path | None = None,
) -> tuple[TaskData, list[str]]:
    """Return the rows of a table or a task for training, choosing and the proof, and sentences about them."""
    if not is_file(data):
        task = load_classification_task(data, data_dir)
        counts = [f"{len(split):,} {split.name}" for split in (task.train, task.validation, task.test)]
        return task, [f"Rows: {counts[0]} for exits, {counts[1]} for choosing, {counts[2]} for the proof."]
    config = read_config(resolve(model).path)
    check_classifier(model, config)
    names = tuple(str(config.id2label[number]) for number in range(config.num_labels))
    if len(set(names)) < len(names):
        raise UserError(f"{model} gives two labels the same name ({', '.join(names[:20])}); change id2label")
    split, columns = _labelled(Path(data), text, label, names)
    order = random.Random(0).sample(range(len(split)), len(split))
    second = round(len(split) / 3)
    first = second if train is None else 0
    if min(second, len(split) - first - second) < 1:
        raise UserError(f"{data} holds {len(split)} rows, which are too few to choose and to prove")
    notes = []
    if train is None:
        training = split.select(order[:first])
    else:
        given, of_data = _labelled(train, text, label, names)[0], set(map(normalised, split.texts))
        new = [row for row, one in enumerate(given.texts) if normalised(one) not in of_data]
        if not new:
            raise UserError(f"every text of {train} is in {data} too: nothing is left to train exits on")
        training = given.select(new)
        if left_out := len(given) - len(new):
            notes = [f"Left out: {left_out:,} rows of {train}, whose texts are in {data} too."]
    choosing, proof = split.select(order[first : first + second]), split.select(order[first + second :])
    task = TaskData(Path(data).stem, 1, training, choosing, proof, names, ("accuracy",))
    shares = f"{len(training):,} for exits, {len(choosing):,} for choosing, {len(proof):,} for the proof"
    return task, [f"Columns: {columns}.", f"Rows: {shares}.", *notes]


def _labelled(path: Path, text: Sequence[str], label: str | None, names: Sequence[str]) -> tuple[Split, Columns]:
    table = read_table(path)
    columns = find_columns(table, path, text, label)
    return labelled_rows(table, columns, path, names), columns


def accelerate_model(model: str, task: TaskData, out: Path, fields: Mapping[str, Any], **options: Any) -> Accelerated:
    """Run :func:`consistentee.accelerate` with progress, and save what it finds in a new folder.

    ``fields``: changes of the default recipe.
    """
    recipe = replace(RECIPE, **fields)
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {out} is a folder that holds files; give a new one")
    with showing_stages(Console(stderr=True)):
        found = accelerate(model, task, recipe=recipe, **options)
        found.save(out)
    return found


def table_of(found: Accelerated) -> Table:
    """Return the table of everything that was tried."""
    proven = {True: "proven", False: "not proven", None: ""}
    lines = []
    for way in found.tried:
        about = "" if way.timed else "~"
        speed = [f"{about}{ratio:.2f}" for ratio in way.speed.values()]
        lines.append([way.name, way.on, f"{way.layers:.1f}", f"{way.points:+.2f}", proven[way.proven], *speed])
    numbers = ["layers", "points less", "loss", *(f"batch {size}" for size in timing.BATCH_SIZES)]
    notes = "".join(f"\nnot tried: {note}" for note in found.notes)
    caption = f"speed as multiples of your model's, ~ estimated; {timing.describe_machine(found.model.device)}{notes}"
    return filled_table(["way", "on"], numbers, lines, "Everything that was tried", caption)


def time_model(
    folder: Path, data: str, text: Sequence[str], *, knob: float | None, allow_code: bool, data_dir: Path | None
) -> Table:
    """Time a saved model at its knob against its full depth, and against the model that it was made of."""
    model, method, knob = load_saved(folder, MultiExitModel, knob, allow_code=allow_code)
    texts = texts_for(Path(data), text)[0] if is_file(data) else load_classification_task(data, data_dir).test.texts
    rows = model.tokenize(texts)
    rule = method.rule(model, knob)
    name, made_of = f"{method.name}, {method.knob.name}={knob:.4g}", "the model that it was made of"
    full_depth = "its own full depth"
    runs: dict[str, timing.Run] = {}
    layers: dict[str, float] = {}
    if model.description.keeps_head:
        with suppress(UserError):  # it may not be where it was
            stock = timing.stock_model(model.description.backbone_name, model.device)
            runs[made_of] = partial(timing.classified_by_stock, stock, model)
            layers[made_of] = stock.config.num_hidden_layers  # a shorter model has fewer
    runs[full_depth] = lambda batch: model.stock_logits(model.collate(batch)).cpu()
    runs[name] = partial(timing.classified, model, rule)
    layers[full_depth] = model.num_layers
    with showing_stages(Console(stderr=True)):
        taken = timing.time_runs(runs, rows)
    layers[name] = float(classify_encoded(model, rows[:256], rule, batch_size=32).layers_run.double().mean())
    speed = timing.speed_ups(taken, next(iter(runs)))
    lines = [[way, f"{layers[way]:.1f}", *(f"{ratio:.2f}" for ratio in speed[way].values())] for way in runs]
    heads = ["layers", *(f"times as fast at batch {size}" for size in timing.BATCH_SIZES)]
    caption = f"medians of rounds; {timing.describe_machine(model.device)}"
    return filled_table([str(folder)], heads, lines, caption=caption)


def texts_for(path: Path, text: Sequence[str]) -> tuple[list[Text], Columns]:
    """Return the texts of a table, labelled or not."""
    table = read_table(path)
    columns = find_columns(table, path, text, labelled=False)
    return texts_of(table, columns, path), columns


def label_file(classifier: Classifier, path: Path, out: Path | None, text: Sequence[str]) -> None:
    """Write a CSV with text, label, probability and exit layer of every row of a table, as the rows are answered."""
    texts, columns = texts_for(path, text)
    print_line(Console(stderr=True), f"{len(texts):,} rows, {columns}")
    with nullcontext(sys.stdout) if out is None else out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*columns.texts, "label", "probability", "exit_layer"])
        for start in range(0, len(texts), 512):
            part = texts[start : start + 512]
            for one, answer in zip(part, classifier(part), strict=True):
                cells = [one] if isinstance(one, str) else list(one)
                writer.writerow([*cells, answer.get("label", ""), f"{answer['score']:.4f}", answer["exit_layer"]])
