"""Tables of decoding: cost and quality of texts; and batches, of classification too."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.analysis.comparison import Comparison, comparison_of
from benchmarks.analysis.frames import MATCH, NATS, TASK, TO_FULL, Results
from benchmarks.analysis.rendering import MISSING, Column, Table, over_or_under
from benchmarks.analysis.statistics import known_mean


def cost_table(results: Results) -> Table | None:
    """Return the score kept in generation where layers, operations or time are equal; None without a full model."""
    comparison = comparison_of(results)
    if comparison.headline["points"].isna().all():
        return None
    costs = {"FLOPs": "flops_ratio", **{f"clock b{size}": f"speedup_b{size}" for size in results.batch_sizes}}
    by_cost = {"layers": comparison} | {name: Comparison(results, cost=cost) for name, cost in costs.items()}
    frame = pd.DataFrame({"method": comparison.headline["method"].unique()})
    for heading, equal in by_cost.items():
        groups = equal.of_compared.groupby(["label", "speedup"])
        kept = groups["kept"].agg(known_mean)
        texts = (100 * kept).map("{:.1f}".format) + over_or_under(groups[["over", "under"]].any())
        texts = texts.where(kept.notna(), MISSING).unstack().agg(" / ".join, axis=1)
        frame[heading] = frame["method"].map(texts)
    budgets = " / ".join(f"{speedup:g}x" for speedup in results.speedups)
    return Table(
        title=f"Score kept at {budgets}, by what is equal",
        name="costs",
        frame=frame,
        columns=[Column("method"), *(Column(heading) for heading in by_cost)],
        notes=[
            f"Percent of the full model's score at {budgets} less of what the column names: layers, "
            "operations of decoding, or stock generate's time of a decoded token (of the knobs that were timed; b = "
            "batch size, all of one knob)."
        ],
    )


def text_scores(results: Results) -> pd.DataFrame:
    """Return how texts agree with the full model's, in percent, and the perplexity of the references.

    A line for every label and budget, means over the compared tasks; perplexity is unknown if a task lacks it.
    """
    by_task = {measure: Comparison(results, measure=measure).by_task for measure in (TO_FULL, MATCH, NATS)}
    groups = {
        measure: comparison_of(results).in_means(found).groupby(["label", "speedup"])
        for measure, found in by_task.items()
    }
    agreement = {measure: 100 * groups[measure]["score"].mean() for measure in (TO_FULL, MATCH)}
    nats = np.exp(groups[NATS][["score", "points"]].agg(known_mean))
    return pd.DataFrame({**agreement, "perplexity": nats["score"], "times_full_perplexity": nats["points"]})


_LATENCY_NOTE = "Latency: seconds until a text has ended since all in flight were asked: median / 90th percentile."


def batch_table(results: Results) -> Table | None:
    """Return how fast everything timed is at every batch, in step and regrouped, medians over the rounds.

    The share of the speed that the layers allow is of the stock model's time at the same batch, its layers cut to those
    called; of decoding, embedding and LM head are left. None where no batch was regrouped.
    """
    times, of_texts = results.times, results.kind == "generation"
    if not times["regroups"].any():
        return None
    times = times[times["label"].isin(results.methods) | (times["key"] == "")]
    in_step, by_round = times[(times["key"] == "") & ~times["regroups"]], ["timing", "batch_size", "round"]
    same = in_step[[*by_round, "seconds", "head_seconds"]].rename(columns={"seconds": "full", "head_seconds": "head"})
    found = times.drop(columns="head_seconds").merge(same.drop_duplicates(by_round), on=by_round, how="left")
    layers = results.tasks["num_layers"].loc[pd.MultiIndex.from_frame(found[TASK])].to_numpy()
    found["allowed"] = (found["head"] + (found["full"] - found["head"]) * found["layers"] / layers) / found["seconds"]
    found["ratio"], found["per_second"] = found["stock_seconds"] / found["seconds"], 1 / found["seconds"]
    keys = [*TASK, "timing", "label", "key", "knob", "in_flight", "batch_size"]
    groups = found.groupby(keys, dropna=False, sort=False)
    lines = groups[["per_second", "ratio", "allowed"]].median().assign(layers=groups["layers"].mean())
    lines["latency"] = groups["completed"].agg(_latency)
    lines = lines.reset_index().rename(columns={"label": "method"})
    names = dict(zip(results.knobs["label"], results.knobs["knob_name"], strict=True))
    knobs = zip(lines["method"], lines["knob"], strict=True)
    lines["at"] = ["full depth" if np.isnan(knob) else f"{names[label]}={knob:.3g}" for label, knob in knobs]
    lines["place"] = lines["method"].map({label: place for place, label in enumerate(results.methods)}).fillna(-1)
    lines["batch"] = list(map(_speed, lines.to_dict("records")))
    sizes = zip(lines["batch_size"], lines["in_flight"], strict=True)
    lines["name"] = [f"{size}" if size == under_way else f"{size} of {under_way:.0f}" for size, under_way in sizes]
    ordered, curves = lines.sort_values(["batch_size", "in_flight"]), ["task", "place", "method", "at", "timing"]
    words = ("decoded tokens", "stock generate", "prompts") if of_texts else ("texts", "the stock model", "texts")
    (unit, stock, rows), kinds = words, ["batch", "latency"]
    frame = lines.pivot(index=curves, columns="name", values=kinds)
    frame.columns = [" ".join(names) for names in frame.columns]
    frame["layers"] = lines.groupby(curves)["layers"].mean()
    return Table(
        title=f"Batches in step and regrouped · {' · '.join(dict.fromkeys(lines['task']))}",
        name="batches",
        frame=frame.reset_index().sort_values(["task", "place", "layers"]).replace({np.nan: None}),
        columns=[
            *(Column("method"), Column("knob", "at"), Column("layers", form=".2f")),
            *([Column("task")] if lines["task"].nunique() > 1 else []),
            *(Column(f"{kind} {name}") for kind in kinds for name in ordered["name"].unique()),
        ],
        notes=[
            f"Batch: {unit} a second (x {stock}'s with as many {rows} in flight; share of the speed that the layers "
            f"allow), medians over rounds. 8 of 32: of 32 {rows} in flight, 8 run at a time; the others are in step.",
            *([_LATENCY_NOTE] if of_texts else []),
        ],
    )


def _speed(row: Mapping[Any, Any]) -> str:
    more = [] if np.isnan(row["ratio"]) else [f"{row['ratio']:.2f}x"]
    more += [] if np.isnan(row["allowed"]) else [f"{row['allowed']:.2f}"]
    return f"{row['per_second']:.1f}" + (f" ({'; '.join(more)})" if more else "")


def _latency(rounds: pd.Series) -> str | None:
    seconds = np.concatenate([[], *(x for x in rounds if isinstance(x, list | np.ndarray))])
    return "{:.2f} / {:.2f}".format(*np.percentile(seconds, [50, 90])) if len(seconds) else None
