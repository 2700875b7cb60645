"""The search of a task's recipe: how long and how fast to train, until a model has converged.

One search serves all methods of a task, so that methods are compared and not recipes: the full model and joint training
of all exits are each trained for long at every rate, and scored on validation rows after every epoch. What was seen is
kept as a table, one line an epoch; what follows from it is written into the suite by hand.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from benchmarks.kinds.kind import kind_named
from benchmarks.kinds.rows import CellRows
from benchmarks.run.jobs.cell import trained
from benchmarks.specs.base import BaseCellSpec, SuiteSpec, short_hash
from benchmarks.specs.suites import Filters, expand
from benchmarks.store.folders import write_text
from consistentee.methods.method import get_method
from consistentee.training.recipe import RecipeSettings

SEARCHED = {"full": "last-exit", "static": "joint"}
"""Methods that are nothing but a stage of training, and the stage: what other methods build on."""

CONVERGED = 0.005
"""A model has converged where its score is within half a point of the best epoch of a longer run; or within one
validation row of it, where a row is more."""

RUN = ["task", "backbone", "train_rows", "validation_rows", "stage", "recipe", "learning_rate", "epochs"]
"""What tells one run of a search from another; its lines have ``epoch`` and ``score`` beside.

``recipe`` is a short hash of all that the suite says of training beside rate and epochs."""

UNKNOWN = "unknown"
"""The recipe of runs in files that are older than this column: like each other, and like no run of today."""

_LIKE = ["train_rows", "validation_rows", "recipe", "epochs"]
"""What runs have in common that are compared with each other."""


def search(
    suite: SuiteSpec, filters: Filters, rates: Sequence[float], epochs: int, *, data_dir: Path | None, out: Path
) -> Iterator[pd.DataFrame]:
    """Train both stages of every task at every rate, and yield all epochs so far; runs in ``out`` are not done again.

    Args:
        suite: whose recipes are searched.
        filters: which of its tasks, backbones and seeds.
        rates: peak learning rates of the backbone.
        epochs: of every run: more than a recipe will have.
        data_dir: where rows are.
        out: a CSV file, written anew after every run.
    """
    seen = read_epochs(out)
    for spec in expand(suite, replace(filters, methods=list(SEARCHED))):
        rows = kind_named(spec.kind).load_rows(spec, data_dir)
        for rate in rates:
            recipe = RecipeSettings(**asdict(spec.recipe) | {"learning_rate": rate, "epochs": epochs})
            tried = spec.model_copy(update={"recipe": recipe})
            run = _run_of(tried, rows)
            if not (seen[RUN] == [run[name] for name in RUN]).all(axis=1).any():
                found = pd.DataFrame([run | epoch for epoch in _epochs_of(tried, rows)])
                seen = pd.concat([seen, found], ignore_index=True) if len(seen) else found
                write_text(out, seen.to_csv(index=False))
            yield seen


def _run_of(spec: BaseCellSpec, rows: CellRows[Any]) -> dict[str, object]:
    searched = {name: getattr(spec.recipe, name) for name in ("learning_rate", "epochs")}
    return {
        "task": spec.task,
        "backbone": spec.backbone,
        "train_rows": rows.trained_on(spec.recipe),
        "validation_rows": len(rows.task.validation),
        "stage": SEARCHED[spec.method],
        "recipe": short_hash({name: value for name, value in asdict(spec.recipe).items() if name not in searched}),
        **searched,
    }


def _epochs_of(spec: BaseCellSpec, rows: CellRows[Any]) -> list[dict[str, object]]:
    with TemporaryDirectory() as store:  # checkpoints and weights are of no use to anyone else
        model = trained(spec, rows, get_method(spec.method), store=Path(store), progress=True)
    scores = model.description.validation_by_epoch[SEARCHED[spec.method]]
    return [{"epoch": number, "score": score} for number, score in enumerate(scores, start=1)]


def read_epochs(path: Path) -> pd.DataFrame:
    """Read what a search has written; no line where there is no such file."""
    if not path.is_file():
        return pd.DataFrame(columns=[*RUN, "epoch", "score"])
    seen = pd.read_csv(path, dtype={"recipe": str})  # a hash of digits is no number
    return seen if "recipe" in seen else seen.assign(recipe=UNKNOWN)[[*RUN, "epoch", "score"]]


def choose(epochs: pd.DataFrame) -> pd.DataFrame:
    """Return the recipe of every task and backbone, chosen on validation rows.

    The rate is that of the best epochs, mean of both stages; the number of epochs is the least at which both stages of
    the long run at this rate have converged. One line a task and stage: the scores there, and the best at any rate.
    Where a file has runs of several lengths or recipes, or on other rows, those like the last one count.
    """
    chosen = []
    for (task, backbone), seen in epochs.groupby(["task", "backbone"], sort=False):
        lines = seen[(seen[_LIKE] == seen[_LIKE].iloc[-1]).all(axis=1)]
        best = lines.groupby(["learning_rate", "stage"])["score"].max().unstack()
        rate = best.dropna().mean(axis=1).idxmax()
        runs = lines[lines["learning_rate"] == rate].pivot_table(index="epoch", columns="stage", values="score")
        tolerance = max(CONVERGED, 1.001 / lines["validation_rows"].min())
        converged = (runs >= runs.max() - tolerance).all(axis=1)
        last = converged.idxmax() if converged.any() else runs.index.max()
        chosen += [
            {
                "task": task,
                "backbone": backbone,
                "stage": stage,
                "learning_rate": rate,
                "epochs": last,
                "score": runs.at[last, stage],
                "best": best[stage].max(),
            }
            for stage in runs.columns
        ]
    return pd.DataFrame(chosen)
