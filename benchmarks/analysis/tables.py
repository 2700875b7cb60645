"""Tables as pandas expressions over the frames of results, and the pages made of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.analysis.equal_cost import choose, comparison_of, headline
from benchmarks.analysis.frames import (
    FULL,
    MATCH,
    TASK,
    TO_FULL,
    Results,
    first_timings,
    load_results,
    merge,
    role_of,
    varied_parameters,
)
from benchmarks.analysis.generation_tables import batch_table, cost_table, text_scores, text_table
from benchmarks.analysis.provenance import provenance_table
from benchmarks.analysis.rendering import (
    INTERVALS_NOTE,
    METRIC_NAMES,
    MOST_LINES,
    OVER_NOTE,
    STOCK,
    UNDER_NOTE,
    Column,
    Table,
    to_csv,
    to_latex,
    to_markdown,
)
from benchmarks.analysis.statistics import interval_over_rows_and_seeds
from benchmarks.specs.targets import Target, in_order, in_words
from consistentee.errors import UserError, unknown_name
from consistentee.files import replacing

_BOUNDS = ("", "_low", "_high")


def headline_table(results: Results) -> Table | None:
    """Return points against the full model at every budget, means over tasks; None without a full model."""
    comparison = comparison_of(results)
    found, of_texts = comparison.headline, results.kind == "generation"
    if found["points"].isna().all():
        return None
    frame = marked(found)
    middle, tasks = comparison.middle, len(comparison.compared)
    one = " · ".join(comparison.compared[0])
    missing = sorted(set(results.labels_to_compare) - set(found["method"]))
    seeds = [Column("seeds", f"seeds {middle:g}x", ".0f")] if frame[f"seeds {middle:g}x"].nunique() > 1 else []
    return Table(
        title=f"Points against the full model at equal cost, {f'mean of {tasks} tasks' if tasks > 1 else one}",
        name="headline",
        frame=frame,
        columns=[
            Column("method"),
            *seeds,
            *(
                Column(f"at {s:g}x", f"points {s:g}x", "+.1f", f"low {s:g}x", f"high {s:g}x", f"mark {s:g}x", best=True)
                for s in comparison.speedups
            ),
            *([Column(f"{middle:g}x, any task", f"any {middle:g}x")] if tasks > 1 else []),
            Column(f"own last exit {middle:g}x", f"own_last_exit {middle:g}x", "+.1f"),
            Column(f"score % {middle:g}x", f"score {middle:g}x", ".1f"),
            *([Column(f"kept % {middle:g}x", f"kept {middle:g}x", ".1f")] if of_texts else []),
            Column(f"FLOPs {middle:g}x", f"flops_ratio {middle:g}x", ".2f"),
            *(
                Column(f"clock {middle:g}x b{size}", f"speedup_b{size} {middle:g}x", ".2f")
                for size in results.batch_sizes
            ),
            Column(f"vs. static {middle:g}x", f"static {middle:g}x"),
        ],
        notes=[
            *([f"Tasks: {', '.join(task for task, _ in comparison.compared)}."] if tasks > 1 else []),
            *([f"Some task lacks {', '.join(missing)}."] if missing else []),
            *(
                ["Seeds: of the task that has fewest; points are against the full model of the same seed."]
                if seeds
                else []
            ),
            "At s times the speed, the two knobs of the validation hull around L / s layers (full depth is its last "
            "vertex) are mixed so that test rows run exactly that"
            + ("; each half of the prompts at what the other half has chosen." if of_texts else "."),
            f"{INTERVALS_NOTE if found['low'].notna().any() else 'The answers that intervals need were not kept.'} "
            f"Any task: tasks are resampled, too. {OVER_NOTE}",
            "Own last exit: points against it. FLOPs, clock: full model / method, b = batch size; full depth that was "
            "not counted or timed counts as the full model. vs. static: tasks on which it is significantly better / "
            "worse than a static exit.",
        ],
    )


def marked(found: pd.DataFrame) -> pd.DataFrame:
    """Return a line a method, with columns such as ``points 2x``, in the order of the headline."""
    counts = found[["better_than_static", "worse_than_static"]]
    known = counts.notna().all(axis=1)
    static = [f"{b:.0f} / {w:.0f}" if ok else None for (b, w), ok in zip(counts.to_numpy(), known, strict=True)]
    bounds = found[["low_tasks", "high_tasks"]].to_numpy()
    any_task = [None if np.isnan(low) else f"[{low:+.1f}, {high:+.1f}]" for low, high in bounds]
    marked = found.assign(mark=found["over"].map({True: "†", False: ""}), static=static, any=any_task)
    order = marked["method"].drop_duplicates()
    wide = marked.pivot(index="method", columns="budget").loc[order]
    wide.columns = [f"{name} {budget:g}x" for name, budget in wide.columns]
    return wide.reset_index()


def task_table(results: Results) -> Table | None:
    """Return points at the middle budget, task by task; None without a full model."""
    comparison = comparison_of(results)
    middle, tasks = comparison.middle, list(results.tasks.index[results.tasks["full_label"].notna()])
    found = comparison.by_task()
    found = found[(found["speedup"] == middle) & found["label"].isin(results.labels_to_compare)]
    if not tasks or found.empty:
        return None
    names = task_names(tasks)
    found = found[pd.MultiIndex.from_frame(found[TASK]).isin(tasks)]
    found["name"] = [names[task] for task in zip(found["task"], found["backbone"], strict=True)]
    found["mark"] = [
        "*" * abs(comparison.against_static((line["task"], line["backbone"]), line["label"], middle) or 0)
        + "†" * line["over"]
        + "‡" * line["under"]
        for line in found.to_dict("records")
    ]
    wide = found.assign(points=100 * found["points"]).pivot(index="label", columns="name", values=["points", "mark"])
    wide.columns = [name if kind == "points" else f"{name} mark" for kind, name in wide.columns]
    first = {label: place for place, label in enumerate(dict.fromkeys(comparison.headline["method"]))}
    order = sorted(dict.fromkeys(found["label"]), key=lambda label: first.get(label, len(first)))
    frame = wide.loc[order].rename_axis("method").reset_index()
    return Table(
        title=f"Points against the full model at {middle:g}x, task by task",
        name="tasks",
        frame=frame,
        columns=[
            Column("method"),
            *(Column(name, name, "+.1f", mark=f"{name} mark", best=True) for name in names.values() if name in frame),
        ],
        notes=[f"*: significantly better or worse than a static exit at the same budget. {OVER_NOTE} {UNDER_NOTE}"],
    )


def task_names(tasks: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the heading of every task: with the backbone where there are several."""
    found = list(tasks)
    several = len({backbone for _, backbone in found}) > 1
    return {(task, backbone): f"{task} · {backbone}" if several else task for task, backbone in found}


def contrast_table(results: Results) -> Table | None:
    """Return the tests of ConsistentEE's variants against peers at the middle budget; None where there is no pair."""
    comparison = comparison_of(results)
    pairs = comparison.core_pairs() if comparison.headline["points"].notna().any() else []
    if not pairs:
        return None
    found = comparison.contrasts(pairs)
    found["tasks"] = [f"{wins} / {losses}" for wins, losses in zip(found["wins"], found["losses"], strict=True)]
    return Table(
        title=f"Tests at {comparison.middle:g}x",
        name="tests",
        frame=found,
        columns=[
            *(Column("method"), Column("against")),
            Column("points", "points", "+.1f", "low", "high"),
            Column("p", form=".3f"),
            Column("p (Holm)", "p_holm", ".3f"),
            Column("wins / losses", "tasks"),
        ],
        notes=[
            "Points: difference of the means over tasks, of the seeds that both have. p: paired bootstrap over rows "
            f"and seeds of these tasks, two-sided; corrected by Holm's procedure for {len(found)} tests. The last "
            "line is the best variant with the best other method by these very scores, which flatters both."
        ],
    )


@lru_cache(maxsize=4)
def chosen_knobs(results: Results) -> pd.DataFrame:
    """Return a line for every task, label and knob that validation rows chose for a target.

    Columns: ``task``, ``backbone``, ``label``, ``method``, ``chosen`` (one knob a seed, as lines of ``knobs``),
    ``targets``, ``layers`` and ``num_layers``.
    """
    lines = []
    last = results.knobs.groupby([*TASK, "label", "seed", "cell"])["validation_quality"].last()
    references = last.groupby([*TASK, "label", "seed"]).max().to_dict()
    points = results.knobs[results.knobs["point"].notna()]
    by_curve = {key: list(own.groupby("seed")) for key, own in points.groupby([*TASK, "label"])}
    for task in results.tasks.index:
        full = results.tasks.loc[task, "full_label"]
        for label, method in results.methods.items():
            seeds = by_curve.get((*task, label), [])
            knobs = [
                (of.index, of["validation_layers"].to_numpy(), of["validation_quality"].to_numpy()) for _, of in seeds
            ]
            reference = [references.get((*task, full, seed), references[*task, label, seed]) for seed, _ in seeds]
            depth = int(results.tasks.loc[task, "num_layers"])
            chosen: dict[tuple[int, ...], list[Target]] = {}
            for target in in_order(target for _, of in seeds for targets in of["targets"] for target in targets):
                picks = [
                    (index, choose(target, layers, quality, num_layers=depth, reference=score))
                    for (index, layers, quality), score in zip(knobs, reference, strict=True)
                ]
                found = tuple(int(index[pick]) for index, pick in picks if pick is not None)
                if found:
                    chosen.setdefault(found, []).append(target)
            head = {"task": task[0], "backbone": task[1], "label": label, "method": method, "num_layers": depth}
            own = [
                head | {"chosen": found, "targets": targets, "layers": results.column("layers")[list(found)].mean()}
                for found, targets in chosen.items()
            ]
            lines += sorted(own, key=lambda line: line["layers"])
    columns = [*TASK, "label", "method", "num_layers", "chosen", "targets", "layers"]
    return pd.DataFrame(lines, columns=columns)


def operating_points(results: Results) -> pd.DataFrame:
    """Return the lines of :func:`chosen_knobs` with what they score and cost on test rows, averaged over seeds.

    Scores, their intervals and points against the full model of the same seeds are shares; ``ms_b1`` is milliseconds a
    row (in generation ``tokens_per_second_b1``), ``speedup_b1`` stock / method, ``spread_b1`` (slowest - fastest round)
    / median. In generation the first line of a task is stock ``generate``.
    """
    found = chosen_knobs(results)
    picked = found["chosen"].explode().astype(int)
    knobs = results.knobs.loc[picked].assign(line=picked.index)
    full, varied = results.full_scores().to_dict(), varied_parameters(results.records)
    keys = list(zip(knobs["task"], knobs["backbone"], knobs["seed"], strict=True))
    knobs["full"], knobs["mean_full"] = (
        [full.get(key, np.nan) for key in of] for of in (keys, [(*k[:2], -1) for k in keys])
    )
    knobs["varied"] = [varied[cell] for cell in knobs["cell"]]
    groups = knobs.groupby("line")
    flops = groups[["flops", "full_flops"]].sum()
    points = found.assign(
        parameters=groups["varied"].agg(lambda texts: "; ".join(dict.fromkeys(filter(None, texts)))),
        knob_name=groups["knob_name"].first(),
        knob=groups["knob"].agg(
            lambda values: " to ".join(dict.fromkeys(f"{v:.3g}" for v in (values.min(), values.max())))
        ),
        seeds=groups["seed"].agg(lambda seeds: " ".join(map(str, seeds))),
        chosen_for=found["targets"].map(in_words),
        short=found["targets"].map(lambda targets: ", ".join(target.short for target in targets)),
        metric=groups["metric"].first(),
        score=groups["score"].mean(),
        score_std=groups["score"].std(),
        saved=1 - found["layers"] / found["num_layers"],
        flops_ratio=flops["full_flops"] / flops["flops"].where(flops["flops"] > 0),
    )
    of_seeds = groups["full"].agg(lambda scores: scores.mean(skipna=False))
    points["points"] = points["score"] - of_seeds.fillna(groups["mean_full"].first())
    if results.kind == "classification":
        points[["score_low", "score_high"]] = [_interval(results, chosen) for chosen in points["chosen"]]
        return points.join(groups[["live_rows", "live_disagreements"]].sum()).join(_clocks(results, points))
    names = [f"{name}{bound}" for name in (*results.records[0].full_scores, TO_FULL, MATCH) for bound in _BOUNDS]
    points[names] = groups[names].mean()
    drafts = groups[["accepted", "drafted"]].sum()
    points["acceptance"] = drafts["accepted"] / drafts["drafted"].where(drafts["drafted"] > 0)
    for bound in ("_low", "_high"):
        own = points["metric"] + bound
        points[f"score{bound}"] = [points.at[line, name] for line, name in own.items()]
    points = points.join(_clocks(results, points))
    stock = pd.DataFrame([_stock_line(results, task) for task in results.tasks.index])
    return pd.concat([stock, points], ignore_index=True).sort_values("task", kind="stable", ignore_index=True)


def _range(values: pd.Series) -> str:
    return " to ".join(dict.fromkeys(f"{value:.3g}" for value in (values.min(), values.max())))


def _interval(results: Results, chosen: Sequence[int]) -> tuple[float, float]:
    """Return the interval of the score: over rows of one seed as recorded, over rows and seeds of several."""
    answers = [results.answers(knob) for knob in chosen] if len(chosen) > 1 else []
    known = [rows for rows in answers if rows is not None]
    if known and len(known) == len(answers) and all(np.array_equal(rows[0], known[0][0]) for rows in known):
        metric = results.column("metric")[chosen[0]]
        return interval_over_rows_and_seeds(metric, known[0][0], np.stack([rows[1] for rows in known]))
    low, high = (float(results.column(name)[list(chosen)].mean()) for name in ("score_low", "score_high"))
    return low, high


def _stock_line(results: Results, task: tuple[str, str]) -> dict[str, Any]:
    """Return the operating point of stock ``generate``: the full model's texts, and its own times."""
    own = [record for record in results.records if (record.task, record.backbone) == task]
    record = next((one for one in own if role_of(one.method) == FULL), own[0])
    line: dict[str, Any] = {"task": task[0], "backbone": task[1], "label": STOCK, "method": STOCK, "parameters": ""}
    line |= {"knob_name": "full depth", "knob": "", "seeds": "", "chosen_for": "", "short": "", "targets": ()}
    for name, mean in record.full_scores.items():
        line |= {name: mean.value, f"{name}_low": mean.interval[0], f"{name}_high": mean.interval[1]}
    line |= {f"{name}{bound}": 1.0 for name in (TO_FULL, MATCH) for bound in _BOUNDS}
    line |= {f"score{bound}": line[f"{record.metric}{bound}"] for bound in _BOUNDS}
    line |= {"metric": record.metric, "layers": float(record.num_layers), "num_layers": record.num_layers}
    stock = _stock_times(results)
    stock = stock[(stock["task"] == task[0]) & (stock["backbone"] == task[1])].assign(line=0)
    return (
        line
        | {"points": 0.0, "saved": 0.0, "flops_ratio": 1.0}
        | (_medians(results, stock).loc[0].to_dict() if len(stock) else {})
    )


def _stock_times(results: Results) -> pd.DataFrame:
    """Return the stock model's times, rows in step: of the first timing of every task and seed."""
    stock = results.times[(results.times["key"] == "") & ~results.times["regroups"].astype(bool)]
    return stock[stock["timing"] == stock.groupby([*TASK, "seed"])["timing"].transform("min")]


def _clocks(results: Results, points: pd.DataFrame) -> pd.DataFrame:
    """Return what the clock recorded of operating points; the full model of classification stands for the stock one."""
    picks = points["chosen"].explode().astype(int)
    keys = pd.DataFrame({name: results.column(name)[picks] for name in (*TASK, "seed", "key", "knob", "method")})
    keys["line"] = picks.index
    full = keys["method"] == FULL
    stock = keys[full].drop(columns=["key", "knob"]).merge(_stock_times(results), on=[*TASK, "seed"])
    timed = keys[~full][["line", "key", "knob"]].merge(first_timings(results.times), on=["key", "knob"])
    return _medians(results, pd.concat([stock, timed[~timed["regroups"].astype(bool)]], ignore_index=True))


def _medians(results: Results, timed: pd.DataFrame) -> pd.DataFrame:
    """Return medians over the rounds of every ``line``, with a column for every batch size."""
    timed = timed.assign(ratio=timed["stock_seconds"] / timed["seconds"])
    groups = timed.groupby(["line", "batch_size"])
    found = pd.DataFrame({"speedup": groups["ratio"].median()})
    by_seed = timed.groupby(["line", "batch_size", "seed"])["seconds"]
    found["spread"] = ((by_seed.max() - by_seed.min()) / by_seed.median()).groupby(level=[0, 1]).max()
    if results.kind == "generation":
        found["tokens_per_second"] = 1 / groups["seconds"].median()
        found["prefill_ms"] = 1000 * groups["prefill_seconds"].median()
    else:
        found["ms"] = 1000 * groups["seconds"].median()
    wide = found.unstack("batch_size")
    wide.columns = [f"{name}_b{size:.0f}" for name, size in wide.columns]
    return wide


def operating_table(results: Results, points: pd.DataFrame, task: tuple[str, str] | None = None) -> Table:
    """Return the operating points of one task, or of all."""
    of_task = (points["task"] == task[0]) & (points["backbone"] == task[1]) if task else slice(None)
    own, of_texts, sizes = points.loc[of_task].copy(), results.kind == "generation", results.batch_sizes
    shares = ["score", "score_low", "score_high", "score_std", "saved", TO_FULL, MATCH]
    own[[name for name in shares if name in own]] *= 100
    own["shown_knob"] = [knob_text(line) for line in own.to_dict("records")]
    names = task_names(results.tasks.index)
    own["shown_task"] = [names[one] for one in zip(own["task"], own["backbone"], strict=True)]
    metric = own["metric"].iloc[0] if task else "score"
    several = task and "score_std" in own and own["score_std"].notna().any()
    return Table(
        title=" · ".join(task) if task else f"{len(own)} operating points",
        name=f"points-{task[0]}" if task else "points",
        frame=own.rename(columns={"label": "method", "method": "implementation"}),
        columns=[
            Column("method"),
            Column("knob", "shown_knob") if task else Column("task", "shown_task"),
            Column(f"{METRIC_NAMES.get(metric, metric)} % [95%]", "score", ".1f", "score_low", "score_high", best=True),
            *([Column("± seeds", "score_std", ".1f")] if several else []),
            *([Column("ROUGE-L to full %", TO_FULL, ".1f"), Column("match %", MATCH, ".1f")] if of_texts else []),
            Column("layers", form=".2f"),
            Column("saved %", "saved", ".0f"),
            Column("FLOPs ratio", "flops_ratio", ".2f"),
            *(Column(f"tokens/s b{size}", f"tokens_per_second_b{size}", ".1f") for size in sizes if of_texts),
            *(Column(f"ms/row b{size}", f"ms_b{size}", ".2f") for size in sizes if not of_texts),
            *(Column(f"speed-up b{size}", f"speedup_b{size}", ".2f") for size in sizes),
            Column("chosen for", "short"),
            *([] if task else [Column("knob", "shown_knob")]),
        ],
        notes=[
            "Knobs are chosen on validation data and reported on test data: the best within a share of the layers "
            "(≤50%), or the fewest layers within a point of the full model (-1 pt) or with so many answers of the full "
            "model's. Saved = 1 - layers / L; FLOPs ratio and speed-up = full model / method; b = batch size.",
            *(_operating_notes(results, task, own) if task else []),
        ],
    )


def knob_text(line: Mapping[str, Any]) -> str:
    """Return the knob and parameters of an operating point: ``threshold=0.1 to 0.3 · alpha=0.1``."""
    if line["method"] in (FULL, STOCK):
        return "full depth"
    drafts = line.get("acceptance", np.nan)
    more = "" if np.isnan(drafts) else f"{100 * drafts:.0f}% of drafts accepted"
    return " · ".join(filter(None, [f"{line['knob_name']}={line['knob']}", line["parameters"], more]))


def _operating_notes(results: Results, task: tuple[str, str], own: pd.DataFrame) -> list[str]:
    records = [record for record in results.records if (record.task, record.backbone) == task]
    record = next((one for one in records if role_of(one.method) == FULL), records[0])
    unit = "prompts" if results.kind == "generation" else "rows"
    times = results.times[(results.times["task"] == task[0]) & (results.times["backbone"] == task[1])]
    live = own[["live_rows", "live_disagreements"]].sum() if "live_rows" in own else None
    seeds = sorted({one.seed for one in records})
    notes = [
        f"{record.train_rows} training rows, {record.validation_rows} validation and {record.test_rows} test {unit}; "
        f"seeds {', '.join(map(str, seeds))}; intervals: bootstrap over "
        f"{unit}{' and seeds' if len(seeds) > 1 else ''}. L = {record.num_layers}. {_timing_note(times, own, unit)}"
    ]
    if live is not None and live["live_rows"]:
        differ = f"{live['live_disagreements']:.0f} of {live['live_rows']:.0f}"
        notes.append(f"Live runs and replays differ in {differ} exits and answers.")
    return [*notes, *([f"Task: {record.task_notes.rstrip('.')}."] if record.task_notes else [])]


def _timing_note(times: pd.DataFrame, own: pd.DataFrame, unit: str) -> str:
    if times.empty:
        return "Not timed."
    rounds, rows = times.groupby("timing")["round"].max().max() + 1, int(times["rows"].max())
    spread = own[[name for name in own if str(name).startswith("spread_b")]].max().max()
    timed = times.loc[times["key"] != ""].groupby("label")["seed"].agg(lambda seeds: tuple(sorted(set(seeds))))
    has = own.groupby("label")["seeds"].agg(lambda seeds: {int(s) for text in seeds for s in text.split()})
    few: dict[tuple[int, ...], list[str]] = {}
    for label, seeds in timed.items():
        if set(seeds) < has.get(label, set()):
            few.setdefault(seeds, []).append(str(label))
    only = "".join(
        f"; of seed {', '.join(map(str, seeds))} alone: {', '.join(labels)}" for seeds, labels in few.items()
    )
    return (
        f"Times: medians of {rounds} rounds on {rows} {unit}, interleaved with the stock model; rounds spread by up to "
        f"{100 * spread:.0f}%{only}."
    )


def first_tables(results: Results) -> list[Table]:
    """Return what a reader needs most: methods at equal cost, task by task, tests."""
    of_texts = results.kind == "generation"
    tasks = list(results.tasks.index)
    found = [headline_table(results), *([cost_table(results)] if of_texts else [])]
    found += [next((t for task in tasks if (t := batch_table(results, task, middle=True))), None)] if of_texts else []
    found += [task_table(results) if len(tasks) > 1 else None, contrast_table(results)]
    return [table for table in found if table is not None]


def further_tables(results: Results, points: pd.DataFrame | None = None) -> list[Table]:
    """Return the tables of every task; ``points`` are :func:`operating_points`, if they are known."""
    points = operating_points(results) if points is None else points
    of_texts, found = results.kind == "generation", list[Table | None]()
    scores = text_scores(results) if of_texts and len(comparison_of(results).per_seed) else None
    for task in results.tasks.index:
        found += [operating_table(results, points, task)] if (points["task"] == task[0]).any() else []
        found += [text_table(results, scores, task)] if scores is not None else []
        found += [batch_table(results, task)] if of_texts else []
    return [table for table in found if table is not None]


def terminal_tables(results: Results) -> list[Table]:
    """Return what the terminal shows: methods at equal cost, and of a single task its operating points before that."""
    first = first_tables(results)
    return [*(further_tables(results) if len(results.tasks) == 1 or not first else []), *first]


def page(results: Results) -> str:
    """Return the Markdown page: as many tables as fit, and where the numbers come from."""
    last = [to_markdown([provenance_table(results)]), "All tables: `consistentee table DIR --format all`.\n"]
    left = MOST_LINES - sum(len(text.splitlines()) + 1 for text in last)
    shown = []
    for table in (
        *(first := first_tables(results)),
        *(() if first and len(results.tasks) > 1 else further_tables(results)),
    ):
        text = to_markdown([table])
        left -= len(text.splitlines()) + 1
        if left < 0:
            break
        shown.append(text)
    return "\n".join([*shown, *last])


def _all(results: Results) -> list[Table]:
    return [*first_tables(results), *further_tables(results), provenance_table(results)]


FORMATS: dict[str, tuple[str, Callable[[Results], str]]] = {
    "md": (".md", page),
    "all": ("-all.md", lambda results: to_markdown(_all(results))),
    "latex": (".tex", lambda results: to_latex([*first_tables(results), *further_tables(results)])),
    "csv": (".csv", lambda results: to_csv(operating_points(results).drop(columns=["chosen", "short", "targets"]))),
    "long": ("-long.csv", lambda results: str(results.knobs.to_csv(index=False, lineterminator="\n"))),
}
"""Format -> (ending of the file, text)."""


def render(results: Results, table_format: str) -> str:
    """Render the tables of results in one format. Raises UserError for an unknown one."""
    if table_format not in FORMATS:
        raise unknown_name("table format", table_format, FORMATS)
    return FORMATS[table_format][1](results)


def render_leaderboard(results: Results, table_format: str) -> str:
    """Render the headline over several folders as md, csv or latex. Raises UserError for another format."""
    writers = {"md": to_markdown, "csv": lambda _: headline_csv(results), "latex": to_latex}
    if table_format not in writers:
        raise unknown_name("format of a leaderboard", table_format, writers)
    return str(writers[table_format](leaderboard_tables(results)))


def headline_csv(results: Results) -> str:
    """Return ``headline.csv``: a line for every method and budget, points and percent rounded to four decimals."""
    found = headline(results)
    if results.kind == "generation" and not found.empty:
        scores = text_scores(results)
        of_compared = pd.MultiIndex.from_frame(scores[TASK]).isin(comparison_of(results).compared)
        groups = scores[of_compared].groupby(["label", "speedup"])
        more = groups[[TO_FULL, MATCH]].mean()
        for name in ("perplexity", "times_full"):
            more[name] = groups[name].agg(lambda values: np.exp(np.log(values).mean(skipna=False)))
        more = more.reset_index().rename(
            columns={"label": "method", "speedup": "budget", "times_full": "times_full_perplexity"}
        )
        found = found.merge(more, on=["method", "budget"], how="left")
    return str(found.round(4).to_csv(index=False, lineterminator="\n"))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_summary(results: Results, folder: Path) -> list[Path]:
    """Write ``table.md`` and, where the full model was run, ``headline.csv``; return the files."""
    texts = {"table.md": page(results)} | (
        {"headline.csv": headline_csv(results)} if headline(results)["points"].notna().any() else {}
    )
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def load_leaderboard(folders: Sequence[Path]) -> Results:
    """Read several folders of classification as one, the first folder first. Raises UserError if none can be read."""
    found: list[Results] = []
    faults: list[str] = []
    for folder in dict.fromkeys(folders):
        try:
            results = load_results(folder)
        except UserError as error:
            faults.append(str(error))
            continue
        if found and results.kind != found[0].kind:
            faults.append(f"{folder} holds results of {results.kind}, {found[0].folder} of {found[0].kind}")
        else:
            found.append(results)
    if not found:
        raise UserError(f"no results to compare; {'; '.join(faults[:3])}")
    merged = merge(found)
    merged.faults[:0] = faults
    return merged


def leaderboard_tables(results: Results) -> list[Table]:
    """Return the headline over several folders, and the points task by task."""
    found = [headline_table(results), task_table(results)]
    return [table for table in found if table is not None]
