"""Accelerate fine-tuned stock models of six tasks, and compare what was chosen with what needs no exits.

For each task a stock classifier is fine-tuned on 3,000 rows, as a user would have one, and given to
:func:`consistentee.accelerate`: ``python -m benchmarks.commands.instead --data DATA``. Finished tasks stay.
``runs/instead/TASK`` keeps the models. ``results/instead`` gets ``tried.csv``, a line for everything that was tried,
``promises.csv``, what was chosen, and ``table.md``.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from scipy.stats import gmean
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

from benchmarks.analysis.rendering import Column, Table, to_markdown
from benchmarks.commands.deploy import accelerate_model
from benchmarks.measure.environment import describe_environment
from benchmarks.tasks.loader import load_classification_task
from consistentee.backbones.catalog import resolve
from consistentee.data.tasks import Split, TaskData
from consistentee.deployment.accelerate import RECIPE, REPORT_FILE
from consistentee.deployment.timing import BATCH_SIZES
from consistentee.training.recipe import Recipe

TASKS = ["stackoverflow", "qnli", "movie-snippets", "mnli", "ag-news", "qqp"]
"""Tasks with enough test rows for a proof, on which no method was developed."""
PROOF_ROWS = 2000
_MAX_ROWS = 3000
_FINE_TUNING = replace(RECIPE, epochs=3, max_rows=_MAX_ROWS, max_length=64)


def main(
    tasks: Annotated[list[str] | None, typer.Option(help="Only these.")] = None,
    data: Annotated[Path | None, typer.Option(envvar="CONSISTENTEE_DATA", help="Folder with data files.")] = None,
    runs: Annotated[Path, typer.Option(help="Models and reports.")] = Path("runs/instead"),
    out: Annotated[Path, typer.Option(help="Tables.")] = Path("results/instead"),
) -> None:
    """Fine-tune a stock model a task, accelerate it, and write what was tried."""
    for name in tasks or TASKS:
        folder = runs / name
        if (folder / "accelerated" / REPORT_FILE).exists():
            continue
        task = load_classification_task(name, data)
        task = replace(task, test=task.test.capped(PROOF_ROWS, seed=0))
        if not (folder / "model" / "config.json").exists():
            fine_tune("minilm-l6", task, _FINE_TUNING, folder / "model")
        found = accelerate_model(str(folder / "model"), task, folder / "accelerated", {"max_rows": _MAX_ROWS})
        (folder / "environment.json").write_text(json.dumps(describe_environment(), indent=2), encoding="utf-8")
        print(f"{name}: {found.block}", flush=True)
    write_tables(runs, out)


def fine_tune(backbone: str, task: TaskData, recipe: Recipe, folder: Path) -> None:
    """Fine-tune the stock classifier of a backbone on a task, and save it as transformers does."""
    torch.manual_seed(recipe.seed)
    path = resolve(backbone).path
    labels = dict(enumerate(task.label_names))
    tokenizer = AutoTokenizer.from_pretrained(path, model_max_length=recipe.max_length)
    names = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    model = AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=len(labels), use_kernels=False, **names
    ).train()
    rows: Split = task.train.capped(recipe.max_rows, seed=0)
    steps = recipe.epochs * -(-len(rows) // recipe.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    for epoch in range(recipe.epochs):
        for batch in torch.randperm(len(rows)).split(recipe.batch_size):
            own = rows.select(batch.tolist())
            tokens = _tokens(tokenizer, own.texts)
            model(**tokens, labels=torch.tensor(own.labels)).loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        print(f"{task.name}: fine-tuned for {epoch + 1} of {recipe.epochs} epochs", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokens(tokenizer: AutoTokenizer, texts: Sequence[str | tuple[str, str]]) -> dict[str, torch.Tensor]:
    columns = [list(column) for column in zip(*texts, strict=True)] if isinstance(texts[0], tuple) else [list(texts)]
    return dict(tokenizer(*columns, padding=True, truncation=True, return_tensors="pt"))


def write_tables(runs: Path, out: Path) -> None:
    """Write what finished tasks tried, and what was chosen."""
    files = sorted(runs.glob(f"*/accelerated/{REPORT_FILE}"))
    reports = {file.parts[-3]: json.loads(file.read_text(encoding="utf-8")) for file in files}

    def of_all_tasks(key: str) -> pd.DataFrame:
        frames = [pd.json_normalize(report[key]).assign(task=task) for task, report in reports.items()]
        speeds = {f"speed.{size}": f"batch {size}" for size in BATCH_SIZES}
        return pd.concat(frames, ignore_index=True).rename(columns=speeds)

    tried, promises = of_all_tasks("tried"), of_all_tasks("promise")
    out.mkdir(parents=True, exist_ok=True)
    tried.set_index("task").to_csv(out / "tried.csv", float_format="%.4f")
    promises.set_index("task").drop(columns="model").to_csv(out / "promises.csv", float_format="%.4f")
    environment = next(runs.glob("*/environment.json"))
    (out / environment.name).write_text(environment.read_text(encoding="utf-8"), encoding="utf-8")
    (out / "table.md").write_text(to_markdown([what_to_pick(tried, promises), _chosen(promises)]), encoding="utf-8")


def what_to_pick(tried: pd.DataFrame, promises: pd.DataFrame) -> Table:
    """Average over tasks: your model, what needs no exits, the fastest exits on each of both models, what was chosen.

    The fastest exits are those that were estimated to be the fastest within the loss on the rows for choosing.
    """
    timed = tried[tried["timed"]].assign(speed=lambda lines: np.sqrt(lines["batch 1"] * lines["batch 32"]))
    timed["way"] = timed["on"] + ", " + timed["name"].mask(timed["exits"], "exits")
    fastest = timed.loc[timed.groupby(["task", "way"])["speed"].idxmax()]
    chosen = promises.rename(columns={"points_expected": "points", "average_layers": "layers"})
    lines = pd.concat([fastest, chosen.assign(way="chosen, with proof", proven=True)])
    frame = lines.groupby("way").agg(
        tasks=("task", "nunique"),
        layers=("layers", "mean"),
        points=("points", "mean"),
        worst=("points", "max"),
        proven=("proven", lambda flags: flags.eq(True).sum()),
        one=("batch 1", gmean),
        many=("batch 32", gmean),
    )
    columns = [
        Column("way"),
        Column("tasks", form="d"),
        Column("layers", form=".1f"),
        Column("points less", "points", "+.2f"),
        Column("worst task", "worst", "+.2f"),
        Column("proven", form="d"),
        Column("batch 1", "one", ".2f"),
        Column("batch 32", "many", ".2f"),
    ]
    notes = [
        "Points of accuracy lost against the fine-tuned model, on rows that chose nothing; speed in multiples of "
        f"its own, geometric means over tasks. {promises['machine'].iloc[0]}.",
        "Proven: on how many tasks at most the loss that was asked for, with the probability that was asked for.",
    ]
    return Table("What to pick", "instead", frame.sort_values("one").reset_index(), columns, notes)


def _chosen(promises: pd.DataFrame) -> Table:
    columns = [
        Column("task"),
        Column("accuracy", form=".1f"),
        Column("points less", "points_expected", "+.2f"),
        Column("layers", "average_layers", ".2f"),
        Column("rows of the proof", "proof_rows", "d"),
        Column("batch 1", form=".2f"),
        Column("batch 32", form=".2f"),
        Column("chosen"),
    ]
    return Table("Chosen, task by task", "chosen", promises, columns)


if __name__ == "__main__":
    typer.run(main)
