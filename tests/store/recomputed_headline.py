"""Compute a published headline again, from its Parquet files by pandas alone: no code of this project is used.

`python tests/store/recomputed_headline.py results/cpu-6-layers-float32` prints how far headline.csv is off.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

CURVE = ["task", "backbone", "label", "seed"]


def matthews(true: float, positive: float, both: float) -> float:
    """Compute Matthews' correlation of two classes from the means of truth, answers and their product."""
    spread = np.sqrt(max((true - true**2) * (positive - positive**2), 0.0))
    return (both - true * positive) / spread if spread > 1e-12 else 0.0


def mixture(knobs: pd.DataFrame, budget: float) -> dict[str, float]:
    """Mix the neighbours around a budget in layers: score, layers, whether it is exceeded, and validation score."""
    order = knobs.sort_values("layers", kind="stable")
    below, above = order[order["layers"] <= budget + 1e-9], order[order["layers"] >= budget - 1e-9]
    cheap, dear = (below.iloc[-1], above.iloc[0]) if len(below) and len(above) else (order.iloc[0],) * 2
    if len(below) and not len(above):
        cheap = dear = order.iloc[-1]
    if abs(dear["layers"] - budget) < 1e-9 or (len(below) and abs(cheap["layers"] - budget) < 1e-9):
        cheap = dear = order[np.isclose(order["layers"], budget, rtol=0, atol=1e-9)].iloc[0]
    gap = dear["layers"] - cheap["layers"]
    weight = (dear["layers"] - budget) / gap if gap > 1e-9 else 1.0
    cheap = order[np.isclose(order["layers"], cheap["layers"], rtol=0, atol=1e-9)].iloc[0]  # of equal layers the first
    parts = [(weight, cheap), (1 - weight, dear)] if weight < 1 else [(1.0, cheap)]
    if cheap["metric"] == "matthews":
        score = matthews(*sum(share * np.asarray(knob["matthews_terms"]) for share, knob in parts))
    else:
        score = sum(share * knob[cheap["metric"]] for share, knob in parts)
    values = {name: sum(share * knob[name] for share, knob in parts) for name in ("layers", "validation_score")}
    return values | {"score": score, "over": not len(below)}


def within_noise(folder: Path, cells: pd.DataFrame) -> list[str]:
    """Return the tasks whose full model is less than 1.96 standard errors more accurate than the majority class."""
    full = cells[cells["method"] == "full"]
    rows = pd.read_parquet(folder / "rows.parquet").merge(full[["cell", "task"]], on="cell")
    answers = pd.read_parquet(folder / "answers.parquet").merge(full[["cell", "num_layers"]], on="cell")
    rows = rows.merge(answers[answers["layer"] == answers["num_layers"]], on=["cell", "row"])
    majority = rows["task"].map(rows.groupby("task")["label"].agg(lambda labels: labels.mode()[0]))
    rows["gain"] = (rows["answer"] == rows["label"]).astype(float) - (rows["label"] == majority)
    of_rows = rows.groupby(["task", "row"])["gain"].mean().groupby("task")
    z = of_rows.mean() / (of_rows.std(ddof=0) / np.sqrt(of_rows.size()))
    return list(z.index[z < 1.96])


def headline(folder: Path) -> pd.DataFrame:
    """Return mean points and layers of every label and budget that ran on all compared tasks."""
    cells = pd.read_parquet(folder / "cells.parquet").reset_index(names="cell")
    knobs = pd.read_parquet(folder / "curve.parquet").merge(cells, on="cell")
    published = pd.read_csv(folder / "headline.csv")
    full = knobs[(knobs["method"] == "full") & knobs["knob"].isna()]
    full = full.assign(full=[line[line["metric"]] for _, line in full.iterrows()])
    lines = []
    for key, own in knobs[knobs["label"].isin(published["method"])].groupby(CURVE, sort=False):
        by_cell = [cell for _, cell in own.groupby("cell")]
        if all(cell["knob"].notna().sum() <= 1 for cell in by_cell):  # one curve through the models of a grid
            deepest = max(by_cell, key=lambda cell: cell.loc[cell["knob"].notna(), "layers"].max())
            by_cell = [own[own["knob"].notna() | (own["cell"] == deepest["cell"].iloc[0])]]
        for budget in published["budget"].unique():
            found = [mixture(cell, own["num_layers"].iloc[0] / budget) for cell in by_cell]
            best = min(found, key=lambda one: (one["over"], -one["validation_score"]))
            lines.append(dict(zip(CURVE, key, strict=True)) | best | {"budget": budget})
    frame = pd.DataFrame(lines).merge(
        full[["task", "backbone", "seed", "full"]], how="left", on=["task", "backbone", "seed"]
    )
    frame["full"] = frame["full"].fillna(frame["task"].map(full.groupby("task")["full"].mean()))
    frame["points"] = 100 * (frame["score"] - frame["full"])
    by_task = frame.groupby(["label", "budget", "task"])[["points", "layers"]].mean()
    tasks = set(frame.groupby("task")["label"].nunique().loc[lambda counts: counts == frame["label"].nunique()].index)
    tasks -= set(within_noise(folder, cells))
    means = by_task[by_task.index.get_level_values("task").isin(tasks)].groupby(["label", "budget"]).mean()
    again = means.add_suffix(" again").rename_axis(["method", "budget"])
    return published.set_index(["method", "budget"])[["points", "layers"]].join(again)


def largest_difference(folder: Path) -> float:
    found = headline(folder)
    return float(max((found[name] - found[f"{name} again"]).abs().max() for name in ("points", "layers")))


if __name__ == "__main__":
    for place in sys.argv[1:]:
        print(place, f"{largest_difference(Path(place)):.6f}")
