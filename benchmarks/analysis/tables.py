"""Tables as pandas expressions over the frames of results, and the pages made of them."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.analysis.equal_cost import LAYERS, EqualCost, comparison_of, headline
from benchmarks.analysis.frames import (
    CURVE,
    FULL,
    MATCH,
    STATIC,
    TASK,
    TO_FULL,
    Answers,
    Results,
    labels_of_role,
    load_results,
    merge,
    role_of,
    varied_parameters,
)
from benchmarks.analysis.generation_tables import batch_table, cost_table, text_scores
from benchmarks.analysis.provenance import provenance_table
from benchmarks.analysis.rendering import (
    INTERVALS_NOTE,
    METRIC_NAMES,
    MOST_LINES,
    Column,
    Table,
    note_on_marks,
    over_or_under,
    to_csv,
    to_latex,
    to_markdown,
)
from benchmarks.analysis.statistics import score_intervals
from benchmarks.specs.knob_choice import choose
from benchmarks.specs.targets import Target, in_order, in_words
from benchmarks.store.hashes import write_text
from consistentee.errors import UserError, unknown_name

PRINTED_SPEEDUPS = (1.5, 2.0)
"""Speed-ups of the scores task by task."""

_BOUNDS = ("", "_low", "_high")
_ANY_TASK = "Any task: the interval when tasks are resampled, too."
_OWN_LAST_EXIT = "Own last exit: points against it."
_TRAINING = "Training: passes of rows through the backbone, over the full model's; of one model, if a grid trains many."
_RATIOS = (
    "FLOPs, clock: full model / method, b = batch size; full depth that was not counted or timed counts as the full "
    "model."
)
_SEEDS = "Seeds: of the task with fewest; points are against the full model of the seed, else the mean of all."
_OF_SCORES = "Seeds: of the task with fewest. Where they differ, compare points, not scores."
_OF_DRAFTS = "A method that drafts is shown at the draft that takes the fewest layers, even if those are more than L."
_AGAINST_STATIC = "vs. static: tasks on which it is significantly better / worse than a static exit."


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
    differ = frame[f"seeds {middle:g}x"].nunique() > 1
    return Table(
        title=f"Points against the full model at equal cost, {f'mean of {tasks} tasks' if tasks > 1 else one}",
        name="headline",
        frame=frame,
        columns=[
            *(Column("method"), Column("exits", f"exits {middle:g}x")),
            *([Column("seeds", f"seeds {middle:g}x", ".0f", note=_SEEDS)] if differ else []),
            *(
                Column(f"at {s:g}x", f"points {s:g}x", "+.1f", f"low {s:g}x", f"high {s:g}x", f"mark {s:g}x", best=True)
                for s in comparison.speedups
            ),
            *([Column(f"{middle:g}x, any task", f"any {middle:g}x", note=_ANY_TASK)] if tasks > 2 else []),
            Column(f"own last exit {middle:g}x", f"own_last_exit {middle:g}x", "+.1f", note=_OWN_LAST_EXIT),
            Column(
                f"rule {middle:g}x",
                f"rule_gain {middle:g}x",
                "+.1f",
                f"rule_low {middle:g}x",
                f"rule_high {middle:g}x",
                note="Rule: points against all rows at one layer of the same exits.",
            ),
            Column("training", f"training_cost {middle:g}x", ".2f", note=_TRAINING),
            Column(f"score % {middle:g}x", f"score {middle:g}x", ".1f"),
            *([Column(f"kept % {middle:g}x", f"kept {middle:g}x", ".1f")] if of_texts else []),
            Column(f"FLOPs {middle:g}x", f"flops_ratio {middle:g}x", ".2f", note=_RATIOS),
            *(
                Column(f"clock {middle:g}x b{size}", f"speedup_b{size} {middle:g}x", ".2f", note=_RATIOS)
                for size in results.batch_sizes
            ),
            Column(f"vs. static {middle:g}x", f"static {middle:g}x", note=_AGAINST_STATIC),
        ],
        notes=[
            *([f"Tasks: {', '.join(task for task, _ in comparison.compared)}."] if tasks > 1 else []),
            *([f"Some task lacks {', '.join(missing)}."] if missing else []),
            "At s times the speed, the two knobs of the validation hull around L / s layers (full depth is its last "
            "vertex) are mixed so that test rows run exactly that"
            + ("; each half of the prompts at what the other half has chosen." if of_texts else "."),
            (INTERVALS_NOTE if found["low"].notna().any() else "Intervals need answers that were not kept.")
            + f" {note_on_marks(found)}",
        ],
    )


def marked(found: pd.DataFrame) -> pd.DataFrame:
    """Return a line a method, with columns such as ``points 2x``, in the order of the headline."""
    counts = found[["better_than_static", "worse_than_static"]]
    known = counts.notna().all(axis=1)
    static = [f"{b:.0f} / {w:.0f}" if ok else None for (b, w), ok in zip(counts.to_numpy(), known, strict=True)]
    marked = found.assign(mark=over_or_under(found), static=static, any=any_task)
    order = marked["method"].drop_duplicates()
    wide = marked.pivot(index="method", columns="budget").loc[order]
    wide.columns = [f"{name} {budget:g}x" for name, budget in wide.columns]
    return wide.reset_index()


def any_task(found: pd.DataFrame) -> list[str | None]:
    """Return the intervals when tasks are resampled as text."""
    bounds = found[["low_tasks", "high_tasks"]].to_numpy()
    return [None if np.isnan(low) else f"[{low:+.1f}, {high:+.1f}]" for low, high in bounds]


def score_table(results: Results) -> Table | None:
    """Return scores task by task as papers print them: the full model, then a block of lines for every speed-up.

    Tasks are those that means are over; a label that ran on fewer than two thirds of them is left out. None without
    a full model.
    """
    lines = _score_lines(results)
    if lines.empty:
        return None
    enough = 3 * lines.groupby("label")["name"].transform("nunique") >= 2 * len(comparison_of(results).compared)
    shown, names = lines[enough], list(dict.fromkeys(lines["name"]))
    order = dict.fromkeys([FULL, *comparison_of(results).headline["method"], *shown["label"]])
    place = shown["label"].map({label: number for number, label in enumerate(order)})
    keys = ["speedup", "place", "label"]
    wide = shown.assign(place=place).pivot(index=keys, columns="name", values=["score", "mark"]).sort_index()
    wide.columns = [name if kind == "score" else f"{name} mark" for kind, name in wide.columns]
    frame = wide.reset_index().rename(columns={"label": "method"}).astype(dict.fromkeys(names, float))
    frame["at"] = frame["speedup"].map("{:g}x".format)
    frame["seeds"] = frame["method"].map(lines.groupby("label")["seeds"].min())
    seeds = [Column("seeds", form=".0f", note=_OF_SCORES)] if frame["seeds"].nunique() > 1 else []
    metrics = lines.dropna(subset=["metric"]).groupby("name")["metric"].first().map(lambda x: METRIC_NAMES.get(x, x))
    usual = metrics.mode()[0]
    others = [f"{metric} of {task}" for task, metric in metrics.items() if metric != usual]
    left_out = sorted(set(lines["label"]) - set(shown["label"]))
    return Table(
        title=f"Scores at {' and '.join(frame['at'].unique()[1:])}, task by task",
        name="scores",
        frame=frame,
        columns=[
            *(Column("method"), Column("at"), *seeds),
            *(Column(name, form=".1f", mark=f"{name} mark", best=True) for name in names),
        ],
        notes=[
            f"Percent: {', '.join([usual, *others])}. At: the speed-up in layers, exactly equal for all but †.",
            "†: even the cheapest knob costs more; @ is its speed-up. *: differs significantly from a static exit.",
            *([f"Ran on fewer than two thirds of the tasks: {', '.join(left_out)}."] if left_out else []),
        ],
        blocks="speedup",
    )


def _score_lines(results: Results) -> pd.DataFrame:
    """Return the scores of :func:`score_table`, a line each: of every task, and the averages of all of them."""
    comparison, tasks = comparison_of(results), results.tasks[results.tasks["compared"]]
    found = comparison.by_task.assign(star=comparison.signs.map({1: "*", -1: "*"}))
    found = found[found["label"].isin(results.labels_to_compare) & found["speedup"].isin(PRINTED_SPEEDUPS)]
    found = found.join(tasks[["metric", "num_layers"]], on=TASK, how="inner")
    if found["full"].isna().all():
        return found.iloc[:0]
    scores = results.full_scores().drop(index=-1, level="seed").groupby(TASK).agg(["mean", "count"])
    full = tasks.assign(label=FULL, speedup=1.0, score=scores["mean"], seeds=scores["count"], over=False)
    lines = pd.concat([full.reset_index(), found], ignore_index=True)
    lines["name"] = task_names(results, lines)
    if len(tasks) > 1:
        groups = lines.groupby(["label", "speedup"])
        average = groups[["score", "layers", "num_layers", "seeds"]].mean().join(groups["over"].any())
        average = average[groups.size() == len(tasks)].reset_index().assign(name="average")
        lines = pd.concat([lines, average], ignore_index=True)
    spent = (lines["num_layers"] / lines["layers"]).map(" @ {:.2f}x†".format)
    lines["mark"] = lines["star"].fillna("") + spent.where(lines["over"].astype(bool), "")
    return lines.assign(score=100 * lines["score"])


def task_names(results: Results, found: pd.DataFrame) -> pd.Series:
    """Return the task of every line, with the backbone where there are several."""
    several = results.tasks.index.unique("backbone").size > 1
    return found["task"] + " · " + found["backbone"] if several else found["task"]


def table_against(results: Results, against: str, cost: str = LAYERS) -> Table | None:
    """Return the differences of all labels from one, tested, at equal ``cost``: see :class:`EqualCost`.

    None if no other label and no full model ran on its tasks. Raises UserError for an unknown label or cost.
    """
    labels = results.labels_to_compare
    if against not in labels:
        raise unknown_name("method to compare with", against, labels)
    if cost not in (costs := [LAYERS, *map(str, results.knobs.filter(regex="^(flops_ratio|speedup_b)"))]):
        raise unknown_name("cost", cost, costs)
    comparison = comparison_of(results) if cost == LAYERS else EqualCost(results, cost=cost)
    found = comparison.contrasts(against)
    if found["points"].isna().all():
        return None
    budgets = found.pivot(index="method", columns="budget", values=["points", "low", "high"])
    budgets.columns = [f"{name} {budget:g}x" for name, budget in budgets.columns]
    frame = found[found["budget"] == comparison.middle].join(budgets, on="method").assign(any=any_task)
    middle, shown = f"{comparison.middle:g}x", [f"{speedup:g}x" for speedup in comparison.speedups]
    return Table(
        title=f"Points against {against} at equal cost" + ("" if cost == LAYERS else f" by {cost}"),
        name="tests",
        frame=frame.sort_values(["tasks", "points"], ascending=False),
        columns=[
            *(Column("method"), Column("tasks", form="d")),
            *(Column(f"at {s}", f"points {s}", "+.1f", f"low {s}", f"high {s}") for s in shown),
            *([Column(f"{middle}, any task", "any", note=_ANY_TASK)] if frame["any"].notna().any() else []),
            *(Column("p", form=".3f"), Column("p (Holm)", "p_holm", ".3f"), Column("wins / losses")),
        ],
        notes=[
            "Points: difference of the means over tasks, of the seeds that both have. p: paired bootstrap over rows "
            "and seeds of these tasks, two-sided; corrected by Holm's procedure for methods on as many tasks. "
            f"p and wins: at {middle}."
        ],
        blocks="tasks",
    )


@lru_cache(maxsize=4)
def chosen_knobs(results: Results) -> pd.DataFrame:
    """Return a line for every task, label and knob that validation rows chose for a target.

    Columns: ``task``, ``backbone``, ``label``, ``method``, ``chosen`` (one knob a seed, as lines of ``knobs``),
    ``targets``, ``layers`` and ``num_layers``.
    """
    last = results.knobs.groupby([*CURVE, "seed", "cell"])["validation_quality"].last()
    references = last.groupby([*CURVE, "seed"]).max().to_dict()
    about = results.tasks[["full_label", "num_layers"]].T.to_dict("list")
    layers, quality, targets = (results.column(x) for x in ("validation_layers", "validation_quality", "targets"))
    curves: dict[tuple[str, ...], dict[int, NDArray[Any]]] = {}
    for (*names, seed), own in results.knobs.dropna(subset=["point"]).groupby([*CURVE, "seed"])["point"]:
        curves.setdefault(tuple(names), {})[seed] = own.index.to_numpy()
    lines = []
    for (task, backbone, label), by_seed in curves.items():
        full, depth = about[task, backbone]
        chosen: dict[tuple[int, ...], list[Target]] = {}
        for target in in_order(target for knobs in by_seed.values() for knob in knobs for target in targets[knob]):
            picks = []
            for seed, knobs in by_seed.items():
                last_exit = references[task, backbone, label, seed]
                reference = references.get((task, backbone, full, seed), last_exit)
                pick = choose(target, layers[knobs], quality[knobs], num_layers=depth, reference=reference)
                picks += [] if pick is None else [int(knobs[pick])]
            if picks:
                chosen.setdefault(tuple(picks), []).append(target)
        curve = [task, backbone, label, results.methods[label], depth]
        lines += [[*curve, x, found_for, results.column("layers")[list(x)].mean()] for x, found_for in chosen.items()]
    columns = [*TASK, "label", "method", "num_layers", "chosen", "targets", "layers"]
    found = pd.DataFrame(lines, columns=columns)
    place = found["label"].map(list(results.methods).index)
    return found.assign(place=place).sort_values([*TASK, "place", "layers"], ignore_index=True).drop(columns="place")


@lru_cache(maxsize=4)
def operating_points(results: Results) -> pd.DataFrame:
    """Return the lines of :func:`chosen_knobs` with what they score and cost on test rows, averaged over seeds.

    Scores, their intervals and points against the full model of the same seeds are shares; ``ms_b1`` is milliseconds a
    row (in generation ``tokens_per_second_b1``), ``speedup_b1`` stock / method.
    """
    found, of_texts = chosen_knobs(results), results.kind == "generation"
    picked = found["chosen"].explode().astype(int)
    knobs = results.knobs.loc[picked].assign(line=picked.index)
    full, varied = results.full_scores().to_dict(), varied_parameters(results.records)
    keys = list(zip(knobs["task"], knobs["backbone"], knobs["seed"], strict=True))
    knobs["full"] = [full.get(key, full.get((*key[:2], -1), np.nan)) for key in keys]
    knobs["varied"] = [varied[cell] for cell in knobs["cell"]]
    groups = knobs.groupby("line")
    flops = groups[["flops", "full_flops"]].sum()
    lowest, highest = groups["knob"].min().map("{:.3g}".format), groups["knob"].max().map("{:.3g}".format)
    points = found.assign(
        parameters=groups["varied"].agg(lambda texts: "; ".join(dict.fromkeys(filter(None, texts)))),
        knob_name=groups["knob_name"].first(),
        knob=lowest.where(lowest == highest, lowest + " to " + highest),
        seeds=groups["seed"].agg(lambda seeds: " ".join(map(str, seeds))),
        chosen_for=found["targets"].map(in_words),
        short=found["targets"].map(lambda targets: ", ".join(target.short for target in targets)),
        metric=groups["metric"].first(),
        score=groups["score"].mean(),
        score_std=groups["score"].std(),
        saved=1 - found["layers"] / found["num_layers"],
        flops_ratio=flops["full_flops"] / flops["flops"].where(flops["flops"] > 0),
        points=groups["score"].mean() - groups["full"].mean(),
    )
    for name in (str(name) for name in knobs if str(name).startswith(("speedup_b", "seconds_b"))):
        points[name] = groups[name].mean()
        if name.startswith("seconds_b") and of_texts:
            points[name.replace("seconds", "tokens_per_second")] = 1 / points.pop(name)
        elif name.startswith("seconds_b"):
            points[name.replace("seconds", "ms")] = 1000 * points.pop(name)
    if not of_texts:
        points[["score_low", "score_high"]] = _intervals(results, points)
        return points.join(groups[["live_rows", "live_disagreements"]].sum())
    names = [f"{name}{bound}" for name in (*results.records[0].full_scores, TO_FULL, MATCH) for bound in _BOUNDS]
    points[names] = groups[names].mean()
    for bound in ("_low", "_high"):
        points[f"score{bound}"] = [points.at[line, f"{metric}{bound}"] for line, metric in points["metric"].items()]
    drafts = groups[["accepted", "drafted"]].sum()
    points["acceptance"] = drafts["accepted"] / drafts["drafted"].where(drafts["drafted"] > 0)
    points["draft"] = groups["draft"].agg(lambda texts: " and ".join(dict.fromkeys(texts)))
    return points


def _intervals(results: Results, points: pd.DataFrame) -> NDArray[np.float64]:
    """Return the intervals of scores: over rows of one seed as recorded, over rows and seeds of several."""
    recorded = np.stack([results.column("score_low"), results.column("score_high")], axis=1)
    found = np.stack([recorded[list(chosen)].mean(axis=0) for chosen in points["chosen"]])
    of_same_rows: dict[tuple[str, bytes], list[tuple[int, Answers]]] = {}
    for line, (chosen, metric) in enumerate(zip(points["chosen"], points["metric"], strict=True)):
        rows = results.answers_at(chosen) if len(chosen) > 1 else None
        if rows is not None:
            of_same_rows.setdefault((metric, rows[0].tobytes()), []).append((line, rows))
    for (metric, _), own in of_same_rows.items():
        lines, answers = [line for line, _ in own], [rows[1] for _, rows in own]
        found[lines] = score_intervals(metric, own[0][1][0], answers)
    return found


def operating_table(results: Results, points: pd.DataFrame, task: tuple[str, str] | None = None) -> Table:
    """Return the operating points of one task, or of all."""
    of_task = (points["task"] == task[0]) & (points["backbone"] == task[1]) if task else slice(None)
    own, of_texts, sizes = points.loc[of_task].copy(), results.kind == "generation", results.batch_sizes
    shares = ["score", "score_low", "score_high", "score_std", "saved", TO_FULL, MATCH]
    own[[name for name in shares if name in own]] *= 100
    own["shown_knob"] = [knob_text(line) for line in own.to_dict("records")]
    own["shown_task"] = task_names(results, own)
    metric = own["metric"].iloc[0] if task else "score"
    return Table(
        title=" · ".join(task) if task else f"{len(own)} operating points",
        name=f"points-{results.file_name_of(task)}" if task else "points",
        frame=own.rename(columns={"label": "method", "method": "implementation"}),
        columns=[
            Column("method"),
            Column("knob", "shown_knob") if task else Column("task", "shown_task"),
            Column(f"{METRIC_NAMES.get(metric, metric)} % [95%]", "score", ".1f", "score_low", "score_high", best=True),
            *([Column("± seeds", "score_std", ".1f")] if task else []),
            *([Column("ROUGE-L to full %", TO_FULL, ".1f"), Column("match %", MATCH, ".1f")] if of_texts else []),
            Column("layers", form=".2f"),
            Column("saved %", "saved", ".0f"),
            Column("FLOPs ratio", "flops_ratio", ".2f"),
            *(Column(f"tokens/s b{size}", f"tokens_per_second_b{size}", ".1f") for size in sizes),
            *(Column(f"ms/row b{size}", f"ms_b{size}", ".2f") for size in sizes),
            *(Column(f"speed-up b{size}", f"speedup_b{size}", ".2f") for size in sizes),
            Column("chosen for", "short"),
            *([] if task else [Column("knob", "shown_knob")]),
        ],
        notes=[
            "Knobs are chosen on validation data and reported on test data: the best within a share of the layers "
            "(≤50%), or the fewest layers within a point of the full model (-1 pt) or with so many answers of the full "
            "model's. Saved = 1 - layers / L; FLOPs ratio and speed-up = full model / method; b = batch size.",
            *([_OF_DRAFTS] if of_texts and own["acceptance"].notna().any() else []),
            *(_notes_of_task(results, task) if task else []),
        ],
    )


def knob_text(line: Mapping[str, Any]) -> str:
    """Return the knob and parameters of an operating point: ``threshold=0.1 to 0.3 · alpha=0.1``."""
    if role_of(line["method"]) == FULL:
        return "full depth"
    accepted = line.get("acceptance", np.nan)
    more = "" if np.isnan(accepted) else f"{line['draft'] or 'drafts'}, {100 * accepted:.0f}% accepted"
    return " · ".join(filter(None, [f"{line['knob_name']}={line['knob']}", line["parameters"], more]))


def _notes_of_task(results: Results, task: tuple[str, str]) -> list[str]:
    records = [record for record in results.records if (record.task, record.backbone) == task]
    record, unit = records[0], "prompts" if results.kind == "generation" else "rows"
    seeds = ", ".join(map(str, sorted({one.seed for one in records})))
    times = results.times[(results.times["task"] == task[0]) & (results.times["backbone"] == task[1])]
    timed = "Not timed."
    if len(times):
        rounds, rows = times["round"].max() + 1, int(times["rows"].max())
        timed = f"Times: medians of {rounds} rounds on {rows} {unit}, interleaved with the stock model."
    notes = [
        f"{record.train_rows} training rows, {record.validation_rows} validation and {record.test_rows} test {unit}; "
        f"seeds {seeds}; intervals: bootstrap over {unit} and, of several, over seeds. L = {record.num_layers}. {timed}"
    ]
    return [*notes, *([f"Task: {record.task_notes.rstrip('.')}."] if record.task_notes else [])]


def first_tables(results: Results) -> list[Table]:
    """Return what a reader needs most: methods at equal cost, batches, task by task, tests against a static exit."""
    tasks, of_texts = list(results.tasks.index), results.kind == "generation"
    found = [headline_table(results)]
    found += [cost_table(results) if of_texts else None, *(batch_table(results, task) for task in tasks)]
    found += [score_table(results) if len(tasks) > 1 else None]
    found += [table_against(results, label) for label in labels_of_role(results.methods, STATIC)[:1] if found[0]]
    return [table for table in found if table is not None]


def further_tables(results: Results) -> list[Table]:
    """Return the operating points of every task."""
    points = operating_points(results)
    known = set(zip(points["task"], points["backbone"], strict=True))
    return [operating_table(results, points, task) for task in results.tasks.index if task in known]


def _tables_of_all_records(results: Results) -> list[Table]:
    return [operating_table(results, operating_points(results)), provenance_table(results)]


def table_named(results: Results, name: str, columns: Sequence[str] | None = None) -> Table:
    """Build one table of results, by its name; keep the first column and ``columns``. Raises UserError."""
    seen = []
    for build in (first_tables, further_tables, _tables_of_all_records):
        for table in build(results):
            if table.name == name:
                return table if columns is None else table.only(columns)
            seen.append(table.name)
    raise unknown_name("table of these results", name, seen)


def terminal_tables(results: Results) -> list[Table]:
    """Return what the terminal shows: methods at equal cost, and of a single task its operating points before that."""
    first = first_tables(results)
    return [*(further_tables(results) if len(results.tasks) == 1 or not first else []), *first]


def page(results: Results) -> str:
    """Return the Markdown page: as many tables as fit, and where the numbers come from."""
    last = [to_markdown([provenance_table(results)]), "All tables: `consistentee table DIR --format all`.\n"]
    left = MOST_LINES - sum(len(text.splitlines()) + 1 for text in last)
    shown, first = [], first_tables(results)
    for table in first if first and len(results.tasks) > 1 else [*first, *further_tables(results)]:
        text = to_markdown([table])
        left -= len(text.splitlines()) + 1
        if left < 0:
            break
        shown.append(text)
    return "\n".join([*shown, *last])


def all_tables(results: Results) -> list[Table]:
    """Return all tables of methods."""
    return [*first_tables(results), *further_tables(results)]


FORMATS: dict[str, Callable[[Results], str]] = {
    "md": page,
    "all": lambda results: to_markdown([*all_tables(results), provenance_table(results)]),
    "latex": lambda results: to_latex(all_tables(results)),
    "csv": lambda results: to_csv(operating_points(results).drop(columns=["chosen", "short", "targets"])),
    "long": lambda results: str(results.knobs.to_csv(index=False, lineterminator="\n")),
}


def render(results: Results, table_format: str) -> str:
    """Render the tables of results in one format. Raises UserError for an unknown one."""
    if table_format not in FORMATS:
        raise unknown_name("table format", table_format, FORMATS)
    return FORMATS[table_format](results)


def headline_csv(results: Results) -> str:
    """Return ``headline.csv``: a line for every method and budget, points and percent rounded to four decimals."""
    found = headline(results).drop(columns="under")
    if results.kind == "generation" and not found.empty:
        found = found.drop(columns=["rule_gain", "rule_low", "rule_high"])
        found = found.merge(text_scores(results), left_on=["method", "budget"], right_index=True, how="left")
    return str(found.round(4).to_csv(index=False, lineterminator="\n"))


def write_summary(results: Results, folder: Path) -> list[Path]:
    """Write ``table.md`` and, where the full model was run, ``headline.csv``; return the files."""
    texts = {"table.md": page(results)}
    if headline(results)["points"].notna().any():
        texts["headline.csv"] = headline_csv(results)
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def load_folders(
    folders: Sequence[Path], labels: Sequence[str] | None = None, tasks: Sequence[str] | None = None
) -> Results:
    """Read results folders as one, see :func:`benchmarks.analysis.frames.merge`; keep some ``labels`` and ``tasks``.

    Raises UserError for a folder that cannot be read, and for folders of both kinds.
    """
    found = [load_results(folder) for folder in dict.fromkeys(folders)]
    for other in found[1:]:
        if other.kind != found[0].kind:
            raise UserError(f"{other.folder} holds results of {other.kind}, {found[0].folder} of {found[0].kind}")
    return (merge(found) if len(found) > 1 else found[0]).only(labels, tasks)
