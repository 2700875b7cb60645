"""Tables of decoding: cost and quality of texts; and batches, of classification too."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.analysis.comparison import Comparison, comparison_of
from benchmarks.analysis.frames import MATCH, NATS, TASK, TO_FULL, Results
from benchmarks.analysis.rendering import MARKS_NOTE, MISSING, Column, Table


def cost_table(results: Results) -> Table | None:
    """Return the score kept in generation where layers, operations or time are equal; None without a full model."""
    comparison = comparison_of(results)
    if comparison.headline["points"].isna().all():
        return None
    costs = {"FLOPs": "flops_ratio", **{f"clock b{size}": f"speedup_b{size}" for size in results.batch_sizes}}
    by_cost = {"layers": comparison} | {name: Comparison(results, cost=cost) for name, cost in costs.items()}
    frame = pd.DataFrame({"method": comparison.headline["method"].unique()})
    for heading, equal in by_cost.items():
        found = dict(iter(equal.by_task.groupby(["label", "speedup"])))
        frame[heading] = [
            " / ".join(_kept(found.get((label, speedup)), len(comparison.compared)) for speedup in results.speedups)
            for label in frame["method"]
        ]
    budgets = " / ".join(f"{speedup:g}x" for speedup in results.speedups)
    return Table(
        title=f"Score kept at {budgets}, by what is equal",
        name="costs",
        frame=frame,
        columns=[Column("method"), *(Column(heading) for heading in by_cost)],
        notes=[
            f"Percent of the full model's score at {budgets} less of what the column names: layers, "
            "operations of decoding, or stock generate's time of a decoded token (of the knobs that were timed; b = "
            f"batch size, all of one knob). {MARKS_NOTE}"
        ],
    )


def _kept(found: pd.DataFrame | None, tasks: int) -> str:
    if found is None or len(found) < tasks or found["kept"].isna().any():
        return MISSING
    return f"{100 * found['kept'].mean():.1f}{'†' * int(found['over'].any())}{'‡' * int(found['under'].any())}"


def text_scores(results: Results) -> pd.DataFrame:
    """Return how texts agree with the full model's, in percent, and the perplexity of the references.

    A line for every label and budget, means over the compared tasks; perplexity is unknown if a task lacks it.
    """
    found: dict[str, pd.Series] = {}
    for measure in (TO_FULL, MATCH, NATS):
        by_task = Comparison(results, measure=measure).by_task
        of_compared = pd.MultiIndex.from_frame(by_task[TASK]).isin(comparison_of(results).compared)
        groups = by_task[of_compared].groupby(["label", "speedup"])
        if measure == NATS:
            names = {"score": "perplexity", "points": "times_full_perplexity"}
            nats = groups[list(names)].agg(lambda values: values.mean(skipna=False))
            found |= {name: np.exp(nats[column]) for column, name in names.items()}
        else:
            found[measure] = 100 * groups["score"].mean()
    return pd.DataFrame(found)


_LATENCY_NOTE = "Latency: seconds until a text has ended since all in flight were asked: median / 90th percentile."


def batches(results: Results) -> pd.DataFrame:
    """Return how fast everything timed is at every batch, in step and regrouped: medians over the rounds.

    ``of_allowed`` is the time of a token or text that the layers allow / the measured one: the stock model's at the
    same batch, its layers cut to those called; of decoding, embedding and LM head are left.
    """
    times = results.times[results.times["label"].isin(results.methods) | (results.times["key"] == "")]
    in_step = times[(times["key"] == "") & ~times["regroups"]]
    by_round = ["timing", "batch_size", "round"]
    same = in_step[[*by_round, "seconds", "head_seconds"]].rename(columns={"seconds": "full", "head_seconds": "head"})
    found = times.drop(columns="head_seconds").merge(same.drop_duplicates(by_round), on=by_round, how="left")
    layers = found.groupby(TASK)["layers"].transform("max")
    found["allowed"] = (found["head"] + (found["full"] - found["head"]) * found["layers"] / layers) / found["seconds"]
    found["ratio"], found["per_second"] = found["stock_seconds"] / found["seconds"], 1 / found["seconds"]
    keys = [*TASK, "timing", "label", "key", "knob", "in_flight", "batch_size"]
    groups = found.groupby(keys, dropna=False, sort=False)
    medians = groups[["per_second", "ratio", "allowed"]].median()
    medians["layers"] = groups["layers"].mean()
    texts = groups["completed"].agg(
        lambda rounds: np.concatenate([[], *(x for x in rounds if isinstance(x, list | np.ndarray))])
    )
    for name, quantile in (("latency", 50), ("latency_p90", 90)):
        medians[name] = [np.percentile(seconds, quantile) if len(seconds) else np.nan for seconds in texts]
    return medians.rename(columns={"ratio": "speedup", "allowed": "of_allowed"}).reset_index()


def batch_table(results: Results, task: tuple[str, str]) -> Table | None:
    """Return the times of all that was timed; None where no batch was regrouped."""
    times = results.times
    if not times.loc[(times["task"] == task[0]) & (times["backbone"] == task[1]), "regroups"].any():
        return None
    found = batches(results)
    found = found[(found["task"] == task[0]) & (found["backbone"] == task[1])].rename(columns={"label": "method"})
    names = dict(zip(results.knobs["label"], results.knobs["knob_name"], strict=True))
    knobs = zip(found["method"], found["knob"], strict=True)
    found["at"] = ["full depth" if np.isnan(knob) else f"{names[label]}={knob:.3g}" for label, knob in knobs]
    found["place"] = found["method"].map({label: place for place, label in enumerate(results.methods)}).fillna(-1)
    curves = ["place", "method", "at", "timing"]
    sizes = zip(found["batch_size"], found["in_flight"], strict=True)
    found["name"] = [f"{size}" if size == under_way else f"{size} of {under_way:.0f}" for size, under_way in sizes]
    ordered = list(found.sort_values(["batch_size", "in_flight"])["name"].unique())
    lines = found.to_dict("records")
    texts = found.assign(batch=list(map(_speed, lines)), latency=list(map(_latency, lines)))
    frame = texts.pivot(index=curves, columns="name", values=["batch", "latency"])
    frame.columns = [" ".join(names) for names in frame.columns]
    frame["layers"] = found.groupby(curves)["layers"].mean()
    of_texts = results.kind == "generation"
    kinds, unit, stock, rows = ["batch"], "texts", "the stock model", "texts"
    if of_texts:
        kinds, unit, stock, rows = ["batch", "latency"], "decoded tokens", "stock generate", "prompts"
    return Table(
        title=f"Batches in step and regrouped · {' · '.join(task)}",
        name=f"batches-{results.file_name_of(task)}",
        frame=frame.reset_index().sort_values(["place", "layers"]).replace({np.nan: None}),
        columns=[
            *(Column("method"), Column("knob", "at"), Column("layers", form=".2f")),
            *(Column(f"{kind} {name}") for kind in kinds for name in ordered),
        ],
        notes=[
            f"Batch: {unit} a second (x {stock}'s with as many {rows} in flight; share of the speed that the layers "
            f"allow), medians over rounds. 8 of 32: of 32 {rows} in flight, 8 run at a time; the others are in step.",
            *([_LATENCY_NOTE] if of_texts else []),
        ],
    )


def _speed(row: Mapping[Any, Any]) -> str:
    more = [f"{row['speedup']:.2f}x"] if not np.isnan(row["speedup"]) else []
    more += [f"{row['of_allowed']:.2f}"] if not np.isnan(row["of_allowed"]) else []
    return f"{row['per_second']:.1f}" + (f" ({'; '.join(more)})" if more else "")


def _latency(row: Mapping[Any, Any]) -> str | None:
    return None if np.isnan(row["latency"]) else f"{row['latency']:.2f} / {row['latency_p90']:.2f}"
