"""Tables as pandas expressions over the frames of results, and the pages made of them."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from benchmarks.analysis.comparison import Comparison, comparison_of, headline
from benchmarks.analysis.equal_cost import LAYERS
from benchmarks.analysis.frames import (
    CURVE,
    FULL,
    MAJORITY,
    MATCH,
    STATIC,
    TASK,
    TO_FULL,
    Results,
    Task,
    labels_of_role,
    role_of,
)
from benchmarks.analysis.generation_tables import batch_table, cost_table, text_scores
from benchmarks.analysis.own_layers import own_layers_table
from benchmarks.analysis.promises import promise_table
from benchmarks.analysis.provenance import provenance_table
from benchmarks.analysis.rendering import (
    INTERVALS_NOTE,
    METRIC_NAMES,
    MOST_LINES,
    OWN,
    Column,
    Table,
    Width,
    over_or_under,
    to_markdown,
)
from consistentee.errors import unknown_name

PRINTED_SPEEDUPS = (1.5, 2.0)
"""Speed-ups of the scores task by task."""

_ANY_TASK = "Any task: the interval when tasks are resampled, too."
_AREA = "Area: mean points from 1x to 3x, of methods that meet every budget."
_NO_RULE = "No rule: points of all rows at one layer of the same exits."
_OWN_LAST_EXIT = "Own last exit: points against it."
_TRAINING = "Training: passes of rows through the backbone, over the full model's; of one model, if a grid trains many."
_RATIOS = (
    "FLOPs, clock: full model / method, b = batch size; full depth that was not counted or timed counts as the full "
    "model."
)
_SEEDS = "Seeds: of the task with fewest; points are against the full model of the seed, else the mean of all."
_OF_SCORES = "Seeds: of the task with fewest. Where they differ, compare points, not scores."
_AGAINST_STATIC = "vs. static: tasks on which it is significantly better / worse than a static exit."


def headline_table(results: Results) -> Table | None:
    """Return points against the full model at every budget, means over tasks; None without a full model."""
    comparison = comparison_of(results)
    found, of_texts = comparison.headline, results.kind == "generation"
    if found["points"].isna().all():
        return None
    frame = marked(found)
    middle, tasks = comparison.middle, len(comparison.compared)
    missing = sorted(set(results.labels_to_compare) - set(found["method"]))
    differ = frame[f"seeds {middle:g}x"].nunique() > 1
    brackets = INTERVALS_NOTE if found["low"].notna().any() else "Intervals need answers that were not kept."
    rule = f"rule {middle:g}x", f"rule_gain {middle:g}x", "+.1f", f"rule_low {middle:g}x", f"rule_high {middle:g}x"
    return Table(
        title=f"Points against the full model at equal cost, {mean_of(comparison.compared)}",
        name="headline",
        frame=frame,
        columns=[
            *(_method_column(results, frame), Column("exits", f"exits {middle:g}x", fits="page")),
            *([Column("seeds", f"seeds {middle:g}x", ".0f", note=_SEEDS, fits=None)] if differ else []),
            *_point_columns(comparison, brackets, best=True),
            *([Column(f"{middle:g}x, any task", f"any {middle:g}x", note=_ANY_TASK, fits=None)] if tasks > 2 else []),
            Column("area", form="+.1f", note=_AREA, fits="page"),
            Column(f"own last exit {middle:g}x", f"own_last_exit {middle:g}x", "+.1f", note=_OWN_LAST_EXIT, fits=None),
            Column(f"no rule {middle:g}x", f"no_rule {middle:g}x", "+.1f", note=_NO_RULE, fits=None),
            Column(*rule, note="Rule: what its rule gains over that.", fits="page"),
            Column("training", f"training_cost {middle:g}x", ".2f", note=_TRAINING, fits=None),
            *([Column(f"kept % {middle:g}x", f"kept {middle:g}x", ".1f", fits="page")] if of_texts else []),
            Column(f"FLOPs {middle:g}x", f"flops_ratio {middle:g}x", ".2f", note=_RATIOS, fits="page"),
            *(
                Column(f"clock {middle:g}x b{size}", f"speedup_b{size} {middle:g}x", ".2f", note=_RATIOS, fits=None)
                for size in results.batch_sizes
            ),
            Column(f"vs. static {middle:g}x", f"static {middle:g}x", note=_AGAINST_STATIC, fits=None),
        ],
        notes=[
            *_notes_of_tasks(results),
            "At s times the speed, the two neighbouring knobs around L / s layers are mixed so that test rows run "
            "exactly that; no score is read.",
        ],
        left_out=f"Some task lacks {', '.join(missing)}." if missing else "",
    )


def _point_columns(comparison: Comparison, note: str, *, best: bool = False) -> list[Column]:
    """Return a column of points for every budget; a narrow table has the interval of the middle one alone."""
    columns = []
    for budget in comparison.speedups:
        points, low, high, mark = (f"{name} {budget:g}x" for name in ("points", "low", "high", "mark"))
        interval: Width = "column" if budget == comparison.middle else "page"
        column = Column(f"at {budget:g}x", points, "+.1f", low, high, mark, best=best, note=note, interval=interval)
        columns.append(column)
    return columns


def mean_of(tasks: Sequence[Task]) -> str:
    """Return a mean's name: the number of its tasks, or of a single task its name and backbone."""
    return f"mean of {len(tasks)} tasks" if len(tasks) > 1 else " · ".join(tasks[0])


def _notes_of_tasks(results: Results, *, named: bool = True) -> list[str]:
    """Name the tasks of a mean over several, and those in no mean."""
    tasks = results.tasks.reset_index()
    means, noise = tasks.loc[tasks["compared"], "task"], tasks.loc[tasks["noise"] & ~tasks["compared"], "task"]
    words = "In no mean, for the full model is within noise of the majority class"
    return [
        *([f"Tasks: {', '.join(means)}."] if named and len(means) > 1 else []),
        *([f"{words}: {', '.join(noise)}."] if len(noise) else []),
    ]


def _method_column(results: Results, frame: pd.DataFrame) -> Column:
    """Return the column of methods; those of a run have a mark if they stand among published ones."""
    if not results.own_labels:
        return Column("method")
    frame["own"] = frame["method"].isin(list(results.own_labels)).map({True: OWN, False: ""})
    return Column("method", mark="own")


def marked(found: pd.DataFrame) -> pd.DataFrame:
    """Return a line a method, with columns such as ``points 2x``, in the order of the headline."""
    counts = found[["better_than_static", "worse_than_static"]]
    static = counts.map("{:.0f}".format).agg(" / ".join, axis=1).where(counts.notna().all(axis=1))
    marked = found.assign(mark=over_or_under(found), static=static, any=any_task)
    wide = marked.pivot(index="method", columns="budget").loc[marked["method"].unique()]
    wide.columns = [f"{name} {budget:g}x" for name, budget in wide.columns]
    return wide.assign(area=marked.groupby("method")["area"].first()).reset_index()


def any_task(found: pd.DataFrame) -> pd.Series:
    """Return the intervals when tasks are resampled as text."""
    bounds = found[["low_tasks", "high_tasks"]]
    return ("[" + bounds.map("{:+.1f}".format).agg(", ".join, axis=1) + "]").where(bounds.notna().all(axis=1))


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
            *(_method_column(results, frame), Column("at"), *seeds),
            *(Column(name, form=".1f", mark=f"{name} mark", best=True) for name in names),
        ],
        notes=[
            f"Percent: {', '.join([usual, *others])}. At: the speed-up in layers, exactly equal for all but †, whose "
            "own follows @. *: differs significantly from a static exit.",
        ],
        left_out=f"Ran on fewer than two thirds of the tasks: {', '.join(left_out)}." if left_out else "",
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
    own = found.drop_duplicates(TASK).set_index(TASK)["full"]
    seeds = results.cells[results.cells["method"].map(role_of) == FULL].groupby(TASK)["seed"].nunique()
    full = tasks.assign(label=FULL, speedup=1.0, score=own, seeds=seeds, over=False)
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
    """Return the differences of all labels from one, tested, at equal ``cost``: see :class:`Comparison`.

    None if no other label and no full model ran on its tasks. Raises UserError for an unknown label or cost.
    """
    labels = results.labels_to_compare
    if against not in labels:
        raise unknown_name("method to compare with", against, labels)
    if cost not in (costs := [LAYERS, *comparison_of(results).ratios]):
        raise unknown_name("cost", cost, costs)
    comparison = comparison_of(results) if cost == LAYERS else Comparison(results, cost=cost)
    found = comparison.contrasts(against)
    if found["points"].isna().all():
        return None
    found = found.assign(mark=found["over"].map({True: "†"}).fillna(""))
    budgets = found.pivot(index="method", columns="budget", values=["points", "low", "high", "mark"])
    budgets.columns = [f"{name} {budget:g}x" for name, budget in budgets.columns]
    frame = found[found["budget"] == comparison.middle].join(budgets, on="method").assign(any=any_task)
    frame = frame.sort_values(["tasks", "points"], ascending=False)
    middle, tasks = f"{comparison.middle:g}x", comparison.compared
    alike = (frame["tasks"] == len(tasks)).all()
    smallest = frame.loc[frame["tasks"] == frame["tasks"].max(), "detectable"].median()
    power = f"The smallest difference that is found with 80% power, before the correction: {smallest:.1f} points"
    return Table(
        title=f"Points against {against} at equal cost"
        + ("" if cost == LAYERS else f" by {cost}")
        + (f", {mean_of(tasks)}" if alike else ""),
        name="tests",
        frame=frame,
        columns=[
            *(_method_column(results, frame), Column("tasks", form="d", fits="page" if alike else "column")),
            *_point_columns(comparison, INTERVALS_NOTE),
            Column(f"{middle}, any task", "any", note=_ANY_TASK, fits=None),
            *(Column("p", form=".2g", fits="page"), Column("p (Holm)", "p_holm", ".2g")),
            Column("wins / losses", fits="page"),
        ],
        notes=[
            *_notes_of_tasks(results, named=alike),
            "Points: difference of the means over tasks, of the seeds that both have. p: paired bootstrap over rows "
            "and seeds of these tasks, two-sided; corrected by Holm's procedure for methods on as many tasks. "
            f"p and wins: at {middle}. A lead at more than the budget is no win and has no p.",
            *([] if np.isnan(smallest) else [f"{power} (median)."]),
        ],
        blocks="tasks",
    )


@lru_cache(maxsize=4)
def budget_lines(results: Results) -> pd.DataFrame:
    """Return a line for every task, label and budget: scores and points with their intervals, costs and knobs.

    Columns: those of :attr:`Comparison.by_task`, ``method``, ``metric``, ``num_layers``, ``low`` and ``high`` (of the
    points), ``knob`` (those that are mixed, of all seeds, as text); in generation also the other scores of texts.
    """
    comparison = comparison_of(results)
    found = comparison.with_intervals(comparison.by_task)
    roles = found["label"].map(results.methods).map(role_of)
    is_full = roles == FULL  # which costs as much at every budget, and stands there once
    found = found[(roles != MAJORITY) & (~is_full | (found["speedup"] == comparison.middle))]
    found = found.assign(speedup=found["speedup"].where(~is_full, 1.0), over=found["over"] & ~is_full)
    found = found.merge(results.tasks[["metric", "num_layers"]], left_on=TASK, right_index=True)
    knobs = _knob_texts(results, comparison.per_seed)
    found = found.assign(method=found["label"].map(results.methods)).merge(knobs, on=[*CURVE, "speedup"], how="left")
    for measure in (TO_FULL, MATCH) if results.kind == "generation" else ():
        other = Comparison(results, measure=measure).by_task[[*CURVE, "speedup", "score"]]
        found = found.merge(other.rename(columns={"score": measure}), on=[*CURVE, "speedup"], how="left")
    place = {label: number for number, label in enumerate(results.methods)}
    return found.sort_values(
        [*TASK, "speedup", "label"], key=lambda values: values.map(place) if values.name == "label" else values
    ).reset_index(drop=True)


def _knob_texts(results: Results, per_seed: pd.DataFrame) -> pd.DataFrame:
    """Name the mixed knobs of every task, label and speed-up: ``threshold=0.1 to 0.3 · alpha=0.1``."""
    knobs = results.knobs
    ends = per_seed.melt([*CURVE, "speedup"], ["first", "second"], value_name="line").astype({"line": int})
    ends = ends.join(knobs[["knob", "knob_name", "parameters"]], on="line")
    groups = ends.groupby([*CURVE, "speedup"], sort=False)
    lowest, highest = groups["knob"].min().map("{:.3g}".format), groups["knob"].max().map("{:.3g}".format)
    text = groups["knob_name"].first() + "=" + lowest.where(lowest == highest, lowest + " to " + highest)
    text = text.where(groups["knob"].count() > 0)
    grid = groups["parameters"].agg(lambda texts: ", ".join(dict.fromkeys(filter(None, texts))))
    return text.where(grid == "", text + " · " + grid).rename("knob").reset_index()


def point_table(results: Results) -> Table:
    """Return what every method reaches on every task at every budget; of one task in a block for every budget."""
    own, of_texts, sizes = budget_lines(results).copy(), results.kind == "generation", results.batch_sizes
    tasks = list(own[TASK].drop_duplicates().itertuples(index=False, name=None))
    own["shown_task"] = task_names(results, own)
    own[own.columns.intersection(["score", "points", "low", "high", TO_FULL, MATCH])] *= 100
    for size in sizes:
        seconds = own[f"seconds_b{size}"]
        own[f"speed_b{size}"] = 1 / seconds if of_texts else 1000 * seconds
    own["at"], own["mark"] = own["speedup"].map("{:g}x".format), over_or_under(own)
    metrics, unit = list(own["metric"].unique()), "tokens/s" if of_texts else "ms/row"
    metric = METRIC_NAMES.get(metrics[0], metrics[0]) if len(metrics) == 1 else "score"
    return Table(
        title="Every task and budget" if len(tasks) > 1 else " · ".join(tasks[0]),
        name="points",
        frame=own.drop(columns="method").rename(columns={"label": "method"}),
        columns=[
            *(Column("method"), *([Column("task", "shown_task")] if len(tasks) > 1 else []), Column("at")),
            Column(f"{metric} %", "score", ".1f", mark="mark", best=len(tasks) == 1),
            Column("points [95%]", "points", "+.1f", "low", "high", interval="column"),
            *(Column("ROUGE-L to full %", TO_FULL, ".1f"), Column("match %", MATCH, ".1f")),
            Column("layers", form=".2f"),
            Column("FLOPs ratio", "flops_ratio", ".2f", fits="page"),
            *(Column(f"{unit} b{size}", f"speed_b{size}", ".1f" if of_texts else ".2f", fits=None) for size in sizes),
            *(Column(f"speed-up b{size}", f"speedup_b{size}", ".2f", fits="page") for size in sizes),
            Column("knobs", "knob", fits=None),
        ],
        notes=[
            "Two neighbouring knobs are mixed so that test rows run L / s layers. FLOPs ratio and speed-up: full "
            "model / method, of the knobs around the budget that were counted or timed; b = batch size.",
            *(_notes_of_task(results) if len(tasks) == 1 else []),
        ],
        blocks="speedup" if len(tasks) == 1 else "",
    )


def _notes_of_task(results: Results) -> list[str]:
    record, unit = results.records[0], "prompts" if results.kind == "generation" else "rows"
    seeds, times = ", ".join(map(str, sorted(results.cells["seed"].unique()))), results.times
    rounds = f"medians of {times['round'].max() + 1} rounds, interleaved with the stock model" if len(times) else "none"
    return [
        f"{record.train_rows} training rows, {record.validation_rows} validation and {record.test_rows} test {unit}; "
        f"seeds {seeds}; intervals: bootstrap over {unit} and, of several, over seeds. L = {record.num_layers}. "
        f"Times: {rounds}.",
        *([f"Task: {record.task_notes.rstrip('.')}."] if record.task_notes else []),
    ]


def tables_of(results: Results) -> list[Table]:
    """Return what a reader needs, most needed first: methods at equal cost, task by task, tests against a static exit.

    Of a single task, or without a full model, all budgets as well.
    """
    several, of_texts, first = len(results.tasks) > 1, results.kind == "generation", headline_table(results)
    found = [first, cost_table(results) if of_texts else None, batch_table(results)]
    found += [score_table(results) if several else None]
    found += [table_against(results, label) for label in labels_of_role(results.methods, STATIC)[:1] if first]
    found += [point_table(results) if not several or first is None else None]
    return [table for table in found if table is not None]


def table_named(results: Results, name: str) -> Table:
    """Build one table of results, by its name. Raises UserError for an unknown one."""
    built = {
        "own-layers": own_layers_table,
        "points": point_table,
        "promises": promise_table,
        "provenance": provenance_table,
    }
    if name in built:
        return built[name](results)
    found = {table.name: table for table in tables_of(results)}
    if name not in found:
        raise unknown_name("table of these results", name, {*found, *built})
    return found[name]


def page(results: Results) -> str:
    """Return the Markdown page: the tables that fit, and where the numbers come from."""
    last = [to_markdown([provenance_table(results)]), "All tables: `consistentee table DIR --format md`.\n"]
    left = MOST_LINES - sum(len(text.splitlines()) + 1 for text in last)
    shown = []
    for text in (to_markdown([table]) for table in tables_of(results)):
        if (lines := len(text.splitlines()) + 1) <= left:
            shown.append(text)
            left -= lines
    return "\n".join([*shown, *last])


def headline_csv(results: Results) -> str:
    """Return ``headline.csv``: a line for every method and budget, points and percent rounded to four decimals.

    Empty without a full model.
    """
    found = headline(results).drop(columns="under")
    if found["points"].isna().all():
        return ""
    if results.kind == "generation":
        found = found.drop(columns=["no_rule", "rule_gain", "rule_low", "rule_high"])
        found = found.merge(text_scores(results), left_on=["method", "budget"], right_index=True, how="left")
    return str(found.round(4).to_csv(index=False, lineterminator="\n"))
