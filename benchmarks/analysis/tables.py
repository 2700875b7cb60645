"""Tables: pandas expressions over the frames of results, and one renderer to terminal, Markdown, CSV and LaTeX."""

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks.analysis.equal_cost import EqualCost, choose, comparison_of, headline
from benchmarks.analysis.frames import (
    FULL,
    MATCH,
    NATS,
    TASK,
    TO_FULL,
    Results,
    first_timings,
    load_results,
    merge,
    role_of,
    varied_parameters,
)
from benchmarks.analysis.statistics import interval_over_rows_and_seeds
from benchmarks.specs.targets import Target, in_order, in_words
from benchmarks.store.stored_results import failed_cells
from benchmarks.terminal import add_columns, add_row, plain_table
from consistentee.errors import UserError, unknown_name
from consistentee.files import replacing

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

MISSING = "n/a"
STOCK = "stock generate"
MOST_LINES = 100
"""Lines of ``table.md``, a page that people read."""
OVER_NOTE = "†: even the cheapest knob costs more than the budget."
UNDER_NOTE = "‡: even the best knob costs less; it is shown."
_INTERVALS = "In brackets: 95% paired bootstrap intervals over rows within tasks and over seeds."

_NAMES = {
    "full": "Full model",
    "token-full": "Full model",
    "consistentee": "ConsistentEE",
    "deebert": "DeeBERT",
    "de3-bert": "DE$^3$-BERT",
    "pabee": "PABEE",
    "f-pabee": "F-PABEE",
    "berxit": "BERxiT",
    "calm-tokens": "CALM",
    "calm": "CALM",
    "fastbert": "FastBERT",
    "cascade-bert": "CascadeBERT",
    "pcee-bert": "PCEE-BERT",
    "leebert": "LeeBERT",
    "palbert": "PALBERT",
    "hashee": "HashEE",
    "jei-dnn": "JEI-DNN",
    "eenet": "EENet",
    "skipdecode": "SkipDecode",
    "layerskip": "LayerSkip",
    "kangaroo": "Kangaroo",
    "balcony": "Balcony",
    "static": "Static exit",
    "random": "Random exit",
    "majority": "Majority class",
    "oracle": "Oracle",
    **{
        name: name.upper()
        for name in ("ztw", "e2cm", "gpfee", "beem", "cosee", "free", "lite", "soft", "swift", "sweet")
    },
}


def display_name(label: str) -> str:
    """Return the name of a label in print: ``calm-softmax`` is ``CALM (softmax)``."""
    known = label.removeprefix("token-") if role_of(label) != label else label
    stem = max((name for name in _NAMES if known == name or known.startswith(f"{name}-")), key=len, default=None)
    if stem is None:
        return label
    rest = known.removeprefix(stem).strip("-").replace("-", " ")
    return f"{_NAMES[stem]} ({rest})" if rest else _NAMES[stem]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: its title.
        value: the column of the frame, or a function of a row.
        form: of numbers; empty for words, which are set to the left.
        low, high: columns of an interval.
        mark: column of what is written behind the number.
        best: whether the largest number is the best one.
    """

    heading: str
    value: str | Callable[[Mapping[str, Any]], object]
    form: str = ""
    low: str = ""
    high: str = ""
    mark: str = ""
    best: bool = False

    def text(self, row: Mapping[str, Any]) -> str:
        """Return the text of a row."""
        value = self.value(row) if callable(self.value) else row.get(self.value)
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return MISSING
        words = f"{value:{self.form}}" if self.form else str(value)
        if self.form and float(words.rstrip("%x")) == 0:
            words = words.replace("-", "+" if "+" in self.form else "")
        words += str(row[self.mark]) if self.mark else ""
        low, high = (row.get(name, np.nan) if name else np.nan for name in (self.low, self.high))
        return words if np.isnan(low) else f"{words} [{low:{self.form}}, {high:{self.form}}]"


@dataclass(frozen=True)
class Table:
    """A table: numbers, how they are written, and what a reader must know.

    Attributes:
        title: its caption.
        name: of its label in LaTeX, ``tab:NAME``.
        frame: a line each row.
        columns: what is shown of it.
        notes: below it.
        labels: the column that holds labels of methods, which have display names in print.
    """

    title: str
    name: str
    frame: pd.DataFrame
    columns: Sequence[Column]
    notes: Sequence[str] = ()
    labels: str = "method"

    @property
    def cells(self) -> pd.DataFrame:
        """The texts, by heading; columns of which nothing is known are left out."""
        rows = self.frame.to_dict("records")
        found = {column.heading: [column.text(row) for row in rows] for column in self.columns}
        return pd.DataFrame({name: texts for name, texts in found.items() if set(texts) - {MISSING} or not rows})

    @property
    def words(self) -> set[str]:
        """Headings of the columns of words."""
        return {column.heading for column in self.columns if not column.form}

    def bold(self, heading: str) -> list[bool]:
        """Return which rows are best in a column, as it is printed."""
        column = next(column for column in self.columns if column.heading == heading)
        if not column.best or len(self.frame) < 2:
            return [False] * len(self.frame)
        numbers = [float(t.split(" ")[0].rstrip("†‡*")) if t != MISSING else -np.inf for t in self.cells[heading]]
        over = [bool(column.mark) and "†" in str(mark) for mark in self.frame.get(column.mark, [""] * len(numbers))]
        best = max((n for n, o in zip(numbers, over, strict=True) if not o), default=np.inf)
        return [n == best and not o for n, o in zip(numbers, over, strict=True)]


# ---------------------------------------------------------------------------------------------- rendering


def to_terminal(tables: Iterable[Table], faults: Sequence[str] = ()) -> "Group":
    """Render tables for a terminal."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [
        part for table in tables for part in (Text(table.title, style="bold"), _rich(table), *_dim(table.notes), "")
    ]
    return Group(*parts, *(Text(f"left out: {fault}", style="yellow") for fault in faults))


def _rich(table: Table) -> "RichTable":
    shown, cells = plain_table(), table.cells
    for heading in cells:
        add_columns(shown, str(heading), numbers=heading not in table.words)
    for row in cells.itertuples(index=False):
        add_row(shown, *row)
    return shown


def _dim(notes: Iterable[str]) -> "list[Text]":
    from rich.text import Text

    return [Text(note, style="dim") for note in notes]


def to_markdown(tables: Iterable[Table]) -> str:
    """Render tables as Markdown."""
    return "\n".join(map(_markdown, tables))


def _markdown(table: Table) -> str:
    def line(cells: Iterable[object]) -> str:
        return f"| {' | '.join(_escape_markdown(str(cell)) for cell in cells)} |"

    cells = table.cells
    rule = ["---" if heading in table.words else "---:" for heading in cells]
    lines = [f"## {_escape_markdown(table.title)}", "", line(cells), f"| {' | '.join(rule)} |"]
    lines += [line(row) for row in cells.itertuples(index=False)]
    return "\n".join([*lines, "", *(f"- {_escape_markdown(note)}" for note in table.notes), ""])


def _escape_markdown(text: str) -> str:
    # Names and notes may come from a user's files: they must stay text.
    return re.sub(r"([\\|`*_])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


_LATEX = {c: "\\" + c for c in "&%#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    **{
        c: f"${word}$"
        for c, word in {"·": r"\cdot", "≤": r"\le", "≥": r"\ge", "†": r"^\dagger", "‡": r"^\ddagger"}.items()
    },
    **{c: f"${c}$" for c in "<>|"},
    "×": r"$\times$",
    "±": r"$\pm$",
}


def escape_latex(text: str) -> str:
    """Escape what LaTeX would read as commands; ``$^3$`` of a display name stays."""
    parts = re.split(r"(\$\^\d\$)", text)
    return "".join(
        part if re.fullmatch(r"\$\^\d\$", part) else "".join(_LATEX.get(c, r"\$" if c == "$" else c) for c in part)
        for part in parts
    )


def to_latex(tables: Iterable[Table]) -> str:
    """Render tables as LaTeX: booktabs, a caption, a label, the best numbers bold, methods by their display names."""
    return "% needs \\usepackage{booktabs}\n" + "\n".join(map(_latex, tables))


def _latex(table: Table) -> str:
    cells = table.cells
    names = {c.heading for c in table.columns if c.value in {table.labels, "against"}}
    for heading in cells:
        texts = [escape_latex(display_name(text) if heading in names else text) for text in cells[heading]]
        texts = [re.sub(r"^-(?=[\d.])", "$-$", text).replace("[-", "[$-$").replace(", -", ", $-$") for text in texts]
        bold = table.bold(str(heading))
        cells[heading] = [rf"\textbf{{{text}}}" if best else text for text, best in zip(texts, bold, strict=True)]
    lines = ["\\begin{table}", "\\centering\\small", f"\\caption{{{escape_latex(table.title)}.}}"]
    lines += [
        f"\\label{{tab:{table.name}}}",
        f"\\begin{{tabular}}{{{''.join('l' if h in table.words else 'r' for h in cells)}}}",
    ]
    lines += ["\\toprule", " & ".join(map(escape_latex, map(str, cells))) + r" \\", "\\midrule"]
    lines += [" & ".join(row) + r" \\" for row in cells.itertuples(index=False)]
    lines += ["\\bottomrule", "\\end{tabular}"]
    return "\n".join(
        [*lines, *(rf"\par\footnotesize {escape_latex(note)}" for note in table.notes), "\\end{table}", ""]
    )


def to_csv(frame: pd.DataFrame) -> str:
    """Render a frame as CSV, numbers rounded to six significant decimals."""
    return str(frame.round(6).to_csv(index=False, lineterminator="\n"))


# ---------------------------------------------------------------------------------------------- equal cost


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
            Column("method", "method"),
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
            f"{_INTERVALS if found['low'].notna().any() else 'The answers that intervals need were not kept.'} "
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
    lines: dict[str, dict[str, Any]] = {}
    for line in found.to_dict("records"):
        task = line["task"], line["backbone"]
        if task in names:
            sign = comparison.against_static(task, line["label"], middle)
            marks = "*" * abs(sign or 0) + "†" * line["over"] + "‡" * line["under"]
            row = lines.setdefault(line["label"], {"method": line["label"]})
            row |= {names[task]: 100 * line["points"], f"{names[task]} mark": marks}
    first = {label: place for place, label in enumerate(dict.fromkeys(comparison.headline["method"]))}
    order = sorted(lines, key=lambda label: first.get(label, len(first)))
    frame = pd.DataFrame([lines[label] for label in order])
    return Table(
        title=f"Points against the full model at {middle:g}x, task by task",
        name="tasks",
        frame=frame,
        columns=[
            Column("method", "method"),
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
            Column("method", "method"),
            Column("against", "against"),
            Column("points", "points", "+.1f", "low", "high"),
            Column("p", "p", ".3f"),
            Column("p (Holm)", "p_holm", ".3f"),
            Column("wins / losses", "tasks"),
        ],
        notes=[
            "Points: difference of the means over tasks, of the seeds that both have. p: paired bootstrap over rows "
            "and "
            f"seeds of these tasks, two-sided; corrected by Holm's procedure for {len(found)} tests. The last line "
            "is the "
            "best variant with the best other method by these very scores, which flatters both."
        ],
    )


# ---------------------------------------------------------------------------------------------- operating points


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

    Scores and their intervals are shares; ``ms_b1`` is milliseconds a row (in generation ``tokens_per_second_b1``),
    ``speedup_b1`` stock / method, ``spread_b1`` (slowest - fastest round) / median. In generation the first line of a
    task is stock ``generate``.
    """
    found = chosen_knobs(results)
    siblings: dict[tuple[str, ...], list[Any]] = {}
    for record in results.records:
        siblings.setdefault((record.task, record.backbone, record.label), []).append(record)
    lines = [_operating_line(results, line, siblings) for line in found.to_dict("records")]
    points = found.assign(**pd.DataFrame(lines, index=found.index).drop(columns="layers", errors="ignore"))
    points = points.join(_clocks(results, points))
    if results.kind == "generation":
        stock = pd.DataFrame([_stock_line(results, task) for task in results.tasks.index])
        points = pd.concat([stock, points], ignore_index=True).sort_values("task", kind="stable", ignore_index=True)
    return points


def _operating_line(
    results: Results, head: Mapping[str, Any], siblings: Mapping[tuple[str, ...], Sequence[Any]]
) -> dict[str, Any]:
    chosen = list(head["chosen"])

    def of(name: str) -> Any:
        return results.column(name)[chosen]

    own = siblings[head["task"], head["backbone"], head["label"]]
    varied = [varied_parameters(results.records[cell], own) for cell in of("cell")]
    low, high = (f"{bound(of('knob')):.3g}" for bound in (np.min, np.max))
    line: dict[str, Any] = {
        "parameters": "; ".join(dict.fromkeys(filter(None, varied))),
        "knob_name": of("knob_name")[0],
        "knob": low if low == high else f"{low} to {high}",
        "seeds": " ".join(map(str, of("seed"))),
        "chosen_for": in_words(head["targets"]),
        "short": ", ".join(target.short for target in head["targets"]),
        "metric": of("metric")[0],
        "score": of("score").mean(),
        "score_std": of("score").std(ddof=1) if len(chosen) > 1 else np.nan,
        "saved": 1 - head["layers"] / head["num_layers"],
        "flops_ratio": of("full_flops").sum() / flops if (flops := of("flops").sum()) else np.nan,
    }
    if results.kind == "generation":
        return line | _text_scores(results, of)
    line["score_low"], line["score_high"] = _interval(results, chosen)
    return line | {name: of(name).sum() for name in ("live_rows", "live_disagreements")}


def _interval(results: Results, chosen: Sequence[int]) -> tuple[float, float]:
    """Return the interval of the score: over rows of one seed as recorded, over rows and seeds of several."""
    answers = [results.answers(knob) for knob in chosen] if len(chosen) > 1 else []
    known = [rows for rows in answers if rows is not None]
    if known and len(known) == len(answers) and all(np.array_equal(rows[0], known[0][0]) for rows in known):
        metric = results.column("metric")[chosen[0]]
        return interval_over_rows_and_seeds(metric, known[0][0], np.stack([rows[1] for rows in known]))
    low, high = (float(results.column(name)[list(chosen)].mean()) for name in ("score_low", "score_high"))
    return low, high


def _text_scores(results: Results, of: Callable[[str], Any]) -> dict[str, float]:
    names = [*results.records[0].full_scores, TO_FULL, MATCH]
    found = {f"{n}{bound}": of(f"{n}{bound}").mean() for n in names for bound in ("", "_low", "_high")}
    found |= {f"score{bound}": found[f"{of('metric')[0]}{bound}"] for bound in ("_low", "_high")}
    drafted, accepted = np.nansum(of("drafted")), np.nansum(of("accepted"))
    return found | {"acceptance": accepted / drafted if drafted else np.nan}


def _stock_line(results: Results, task: tuple[str, str]) -> dict[str, Any]:
    """Return the operating point of stock ``generate``: the full model's texts, and its own times."""
    own = [record for record in results.records if (record.task, record.backbone) == task]
    record = next((one for one in own if role_of(one.method) == FULL), own[0])
    line: dict[str, Any] = {"task": task[0], "backbone": task[1], "label": STOCK, "method": STOCK, "parameters": ""}
    line |= {"knob_name": "full depth", "knob": "", "seeds": "", "chosen_for": "", "short": "", "targets": ()}
    for name, mean in record.full_scores.items():
        line |= {name: mean.value, f"{name}_low": mean.interval[0], f"{name}_high": mean.interval[1]}
    line |= {f"{name}{bound}": 1.0 for name in (TO_FULL, MATCH) for bound in ("", "_low", "_high")}
    line |= {f"score{bound}": line[f"{record.metric}{bound}"] for bound in ("", "_low", "_high")}
    line |= {"metric": record.metric, "layers": float(record.num_layers), "num_layers": record.num_layers}
    stock = _stock_times(results)
    stock = stock[(stock["task"] == task[0]) & (stock["backbone"] == task[1])].assign(line=0)
    return line | {"saved": 0.0, "flops_ratio": 1.0} | (_medians(results, stock).loc[0].to_dict() if len(stock) else {})


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


def operating_table(results: Results, points: pd.DataFrame, task: tuple[str, str]) -> Table:
    """Return the operating points of one task."""
    own = points[(points["task"] == task[0]) & (points["backbone"] == task[1])].copy()
    of_texts = results.kind == "generation"
    shares = ["score", "score_low", "score_high", "score_std", "saved", TO_FULL, MATCH]
    own[[name for name in shares if name in own]] *= 100
    metric, sizes = own["metric"].iloc[0], results.batch_sizes
    own["shown_knob"] = [knob_text(line) for line in own.to_dict("records")]
    several = own["score_std"].notna().any() if "score_std" in own else False
    return Table(
        title=" · ".join(task),
        name=f"points-{task[0]}",
        frame=own.rename(columns={"label": "method", "method": "implementation"}),
        columns=[
            Column("method", "method"),
            Column("knob", "shown_knob"),
            Column(f"{_METRICS.get(metric, metric)} % [95%]", "score", ".1f", "score_low", "score_high", best=True),
            *([Column("± seeds", "score_std", ".1f")] if several else []),
            *([Column("ROUGE-L to full %", TO_FULL, ".1f"), Column("match %", MATCH, ".1f")] if of_texts else []),
            Column("layers", "layers", ".2f"),
            Column("saved %", "saved", ".0f"),
            Column("FLOPs ratio", "flops_ratio", ".2f"),
            *(Column(f"tokens/s b{size}", f"tokens_per_second_b{size}", ".1f") for size in sizes if of_texts),
            *(Column(f"ms/row b{size}", f"ms_b{size}", ".2f") for size in sizes if not of_texts),
            *(Column(f"speed-up b{size}", f"speedup_b{size}", ".2f") for size in sizes),
            Column("chosen for", "short"),
        ],
        notes=_operating_notes(results, task, own),
    )


_METRICS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


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
        "Knobs are chosen on validation data and reported on test data: the best within a share of the layers "
        "(≤50%), or "
        "the fewest layers within a point of the full model (-1 pt) or with so many answers of the full model's.",
        f"{record.train_rows} training rows, {record.validation_rows} validation and {record.test_rows} test {unit}; "
        f"seeds {', '.join(map(str, seeds))}; intervals: bootstrap over "
        f"{unit}{' and seeds' if len(seeds) > 1 else ''}.",
        f"Layers of {record.num_layers}; saved = 1 - layers / {record.num_layers}; FLOPs ratio and speed-up = full "
        "model / "
        f"method; b = batch size. {_timing_note(times, own, unit)}",
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


# ---------------------------------------------------------------------------------------------- generation


def cost_table(results: Results) -> Table | None:
    """Return the score kept in generation where layers, operations or time are equal; None without a full model."""
    if comparison_of(results).headline["points"].isna().all():
        return None
    sizes = results.batch_sizes
    costs = {"layers": "layers", "FLOPs": "flops_ratio", **{f"clock b{size}": f"speedup_b{size}" for size in sizes}}
    labels = list(dict.fromkeys(comparison_of(results).headline["method"]))
    frame = pd.DataFrame({"method": labels})
    for heading, cost in costs.items():
        comparison = comparison_of(results) if cost == "layers" else EqualCost(results, cost=cost)
        found = comparison.by_task() if len(comparison.per_seed) else pd.DataFrame(columns=["label", "speedup", "kept"])
        by_curve = dict(iter(found.groupby(["label", "speedup"])))
        frame[heading] = [
            " / ".join(_kept(by_curve.get((label, s)), len(comparison_of(results).compared)) for s in results.speedups)
            for label in labels
        ]
    budgets = " / ".join(f"{speedup:g}x" for speedup in results.speedups)
    return Table(
        title=f"Score kept at {budgets}, by what is equal",
        name="costs",
        frame=frame,
        columns=[Column("method", "method"), *(Column(heading, heading) for heading in costs)],
        notes=[
            f"Percent of the full model's score at {budgets} less of what the column says: layers on validation "
            "prompts; operations of decoding, or stock generate's time of a decoded token, on test prompts (of the "
            "knobs "
            f"that were timed; b = batch size, all of one knob). {OVER_NOTE} {UNDER_NOTE}"
        ],
    )


def _kept(found: pd.DataFrame | None, tasks: int) -> str:
    if found is None or len(found) < tasks or found["kept"].isna().any():
        return MISSING
    return f"{100 * found['kept'].mean():.1f}{'†' * int(found['over'].any())}{'‡' * int(found['under'].any())}"


def text_scores(results: Results) -> pd.DataFrame:
    """Return all that is scored in generation, by task, label and budget; percent, and perplexity of the references."""
    keys = [*TASK, "label", "speedup"]
    found = comparison_of(results).with_intervals(comparison_of(results).by_task()).set_index(keys)
    found[["points", "low", "high", "kept"]] *= 100
    for measure in (TO_FULL, MATCH):
        comparison = EqualCost(results, measure=measure)
        own = comparison.with_intervals(comparison.by_task()).set_index(keys)
        found[measure], found[f"{measure}_low"] = 100 * own["score"], 100 * (1 + own["low"])
        found[f"{measure}_high"] = 100 * (1 + own["high"])
    comparison = EqualCost(results, measure=NATS)
    own = comparison.with_intervals(comparison.by_task()).set_index(keys)
    found["perplexity"], found["times_full"] = np.exp(own["score"]), np.exp(own["points"])
    found["times_full_low"], found["times_full_high"] = np.exp(own["low"]), np.exp(own["high"])
    found = found.reset_index()
    return found[found["label"].isin(results.labels_to_compare)]


def text_table(results: Results, scores: pd.DataFrame, task: tuple[str, str]) -> Table | None:
    """Return all that is scored of one task of generation at every budget; None without a full model."""
    own = scores[(scores["task"] == task[0]) & (scores["backbone"] == task[1])].dropna(subset=["points"])
    if own.empty:
        return None
    marks = own["over"].map({True: "†", False: ""}) + own["under"].map({True: "‡", False: ""})
    metric = _METRICS.get(results.tasks.loc[task, "metric"], results.tasks.loc[task, "metric"])
    order = {label: place for place, label in enumerate(dict.fromkeys(comparison_of(results).headline["method"]))}
    own = own.assign(at=own["speedup"].map("{:g}x".format) + marks, place=own["label"].map(order).fillna(len(order)))
    return Table(
        title=f"At equal cost · {' · '.join(task)}",
        name=f"texts-{task[0]}",
        frame=own.sort_values(["place", "label", "speedup"]).rename(columns={"label": "method"}),
        columns=[
            Column("method", "method"),
            Column("at", "at"),
            Column(f"{metric}, points [95%]", "points", "+.1f", "low", "high"),
            Column("kept %", "kept", ".1f"),
            Column("ROUGE-L to full % [95%]", TO_FULL, ".1f", f"{TO_FULL}_low", f"{TO_FULL}_high"),
            Column("match % [95%]", MATCH, ".1f", f"{MATCH}_low", f"{MATCH}_high"),
            Column("perplexity", "perplexity", ".2f"),
            Column("times full [95%]", "times_full", ".2f", "times_full_low", "times_full_high"),
            Column("layers", "layers", ".2f"),
            Column("FLOPs ratio", "flops_ratio", ".2f"),
            *(Column(f"speed-up b{size}", f"speedup_b{size}", ".2f") for size in results.batch_sizes),
        ],
        notes=[
            "ROUGE-L to full and match: agreement with full depth of the same weights. Perplexity of the "
            "references: each "
            "token but the first is read at the exit where the rule lets it leave; times full: over the full model's. "
            f"In brackets: 95% paired bootstrap over prompts and seeds. {OVER_NOTE} {UNDER_NOTE}"
        ],
    )


def batches(results: Results) -> pd.DataFrame:
    """Return how fast everything timed decodes at every batch, in step and regrouped: medians over the rounds.

    ``of_allowed`` is the time of a token that the layers allow / the measured one: stock ``generate`` at the same
    batch, its layers cut to those called, embedding and LM head left.
    """
    times = results.times[results.times["label"].isin(results.methods) | (results.times["key"] == "")]
    in_step = times[(times["key"] == "") & ~times["regroups"].astype(bool)]
    by_round = ["timing", "batch_size", "round"]
    same = in_step[[*by_round, "seconds", "head_seconds"]].rename(columns={"seconds": "full", "head_seconds": "head"})
    found = times.drop(columns="head_seconds").merge(same.drop_duplicates(by_round), on=by_round, how="left")
    layers = (
        found.groupby(TASK)["layers"]
        .transform("max")
        .where(found["key"] == "")
        .groupby(found["timing"])
        .transform("max")
    )
    found["allowed"] = (found["head"] + (found["full"] - found["head"]) * found["layers"] / layers) / found["seconds"]
    found["ratio"], found["tokens_per_second"] = found["stock_seconds"] / found["seconds"], 1 / found["seconds"]
    keys = [*TASK, "timing", "label", "key", "knob", "in_flight", "batch_size"]
    groups = found.groupby(keys, dropna=False, sort=False)
    medians = groups[["tokens_per_second", "ratio", "allowed"]].median()
    medians["layers"] = groups["layers"].mean()
    texts = groups["completed_seconds"].agg(lambda rounds: np.concatenate([[], *rounds]))
    for name, quantile in (("latency", 50), ("latency_p90", 90)):
        medians[name] = [np.percentile(seconds, quantile) if len(seconds) else np.nan for seconds in texts]
    return medians.rename(columns={"ratio": "speedup", "allowed": "of_allowed"}).reset_index()


def batch_table(results: Results, task: tuple[str, str], *, middle: bool = False) -> Table | None:
    """Return the times of all that was timed; None where no batch was regrouped.

    ``middle``: of one knob a label, the one nearest to the layers of the middle budget.
    """
    if results.times.empty or not results.times["regroups"].astype(bool).any():
        return None
    found = batches(results)
    found = found[(found["task"] == task[0]) & (found["backbone"] == task[1])]
    if not (found["in_flight"] > found["batch_size"]).any():
        return None
    curves = ["label", "key", "knob", "timing"]
    points = found.groupby(curves, dropna=False, sort=False)["layers"].mean().reset_index()
    places = {label: place for place, label in enumerate(results.methods)}
    points["place"] = points["label"].map(places).where(points["key"] != "", -1)
    if middle:
        wanted = results.tasks.loc[task, "num_layers"] / results.speedups[1]
        points = points.loc[(points["layers"] - wanted).abs().sort_values(kind="stable").index]
        points = points.drop_duplicates("label")
    points = points.sort_values(["place", "layers"])
    names = dict(zip(results.knobs["label"], results.knobs["knob_name"], strict=True))
    points["at"] = [
        "full depth" if np.isnan(knob) else f"{names[label]}={knob:.3g}"
        for label, knob in zip(points["label"], points["knob"].astype(float), strict=True)
    ]
    columns = [Column("method", "label"), Column("knob", "at"), Column("layers", "layers", ".2f")]
    latencies = []
    for (size, under_way), of_batch in found.assign(knob=found["knob"].astype(float)).groupby(
        ["batch_size", "in_flight"]
    ):
        name = f"{size}" if size == under_way else f"{size} of {under_way:.0f}"
        cells = {(curve, knob): (_speed(row), _latency(row)) for curve, knob, row in _by_curve(of_batch)}
        keys = list(zip(points["label"], points["key"], strict=True))
        knobs = points["knob"].astype(float).fillna(-1)
        for place, kind in enumerate(("batch", "latency")):
            points[f"{kind} {name}"] = [cells.get(at, (None, None))[place] for at in zip(keys, knobs, strict=True)]
        columns.append(Column(f"batch {name}", f"batch {name}"))
        latencies.append(Column(f"latency {name}", f"latency {name}"))
    return Table(
        title=f"Batches in step and regrouped · {' · '.join(task)}",
        name=f"batches-{task[0]}",
        frame=points,
        columns=[*columns, *latencies],
        notes=[
            "Batch: tokens a second of decoding (x stock generate's with as many prompts under way; share of the "
            "speed that "
            "the layers allow). 8 of 32: of 32 prompts under way, 8 run at a time; the others are in step. Latency: "
            "seconds "
            "until a text has ended since all under way were asked: median / 90th percentile. Medians over rounds."
        ],
        labels="label",
    )


def _by_curve(found: pd.DataFrame) -> Iterable[tuple[tuple[str, str], float, dict[str, Any]]]:
    for row in found.to_dict("records"):
        yield (row["label"], row["key"]), -1 if np.isnan(row["knob"]) else row["knob"], row


def _speed(row: Mapping[str, Any]) -> str:
    more = [f"{row['speedup']:.2f}x"] if not np.isnan(row["speedup"]) else []
    more += [f"{row['of_allowed']:.2f}"] if not np.isnan(row["of_allowed"]) else []
    return f"{row['tokens_per_second']:.1f}" + (f" ({'; '.join(more)})" if more else "")


def _latency(row: Mapping[str, Any]) -> str | None:
    return None if np.isnan(row["latency"]) else f"{row['latency']:.2f} / {row['latency_p90']:.2f}"


def calibration_table(results: Results) -> Table | None:
    """Return whether calibrated thresholds kept their promises; None where no cell studied any."""
    lines = [
        {
            "method": record.label,
            "task": record.task,
            **result.model_dump(),
            "broken": 100 * result.broken_share,
            "allowed": 100 * (result.epsilon + result.sampling_error),
            "kept": "no"
            if result.broken_share > result.epsilon + result.sampling_error
            else "by caution alone"
            if result.mean_lambda == record.calibration.lambdas[0]
            else "yes",
        }
        for record in results.records
        if getattr(record, "calibration", None) is not None
        for result in record.calibration.results
    ]
    if not lines:
        return None
    return Table(
        title="Calibrated thresholds",
        name="calibration",
        frame=pd.DataFrame(lines),
        columns=[
            Column("method", "method"),
            Column("task", "task"),
            Column("promise", "loss"),
            Column("delta", "delta", "g"),
            Column("broken %", "broken", ".0f"),
            Column("allowed %", "allowed", ".0f"),
            Column("kept", "kept"),
            Column("mean lambda", "mean_lambda", ".2f"),
            Column("layers", "mean_layers", ".2f"),
            Column("held-out risk", "mean_risk", ".3f"),
        ],
        notes=[
            "Learn-then-Test chooses lambda on a random half of the pooled prompts. Broken: splits in which the "
            "mean loss of "
            "the other half exceeds delta; allowed: epsilon plus the sampling error of so many splits. Textual: 1 - "
            "ROUGE-L "
            "to the full model's text; risk: ROUGE-L lost against the reference. By caution alone: on no half was a "
            "lambda "
            "below the most cautious one proven."
        ],
    )


# ---------------------------------------------------------------------------------------------- provenance


def machine(environment: Mapping[str, Any], *, with_commit: bool = True) -> str:
    """Describe the machine of a record in one line."""
    libraries = environment.get("libraries") or {}
    threads = (environment.get("threads") or {}).get("torch")
    commit = environment.get("commit") if with_commit else None
    parts = [
        *(environment.get("gpus") or []),
        environment.get("cpu"),
        f"{environment['cores_usable']} usable cores" if environment.get("cores_usable") else None,
        f"{threads} thread{'' if threads == 1 else 's'}" if threads else None,
        environment.get("os"),
        f"Python {environment['python']}" if environment.get("python") else None,
        *(f"{name} {libraries[name]}" for name in ("torch", "transformers") if libraries.get(name)),
        f"commit {commit[:10]}{' with changes' if environment.get('uncommitted_changes') else ''}" if commit else None,
    ]
    return ", ".join(str(part) for part in parts if part) or "not recorded"


def records_frame(results: Results) -> pd.DataFrame:
    """Return a line for every record: what it is of, when, where and by which command it was made."""
    return pd.DataFrame(
        {
            "task": record.task,
            "backbone": record.backbone,
            "method": record.label,
            "parameters": ", ".join(f"{name}={value}" for name, value in sorted(record.parameters.items()))
            or "defaults",
            "seed": record.seed,
            "train_seconds": record.train_seconds,
            "precision": record.training_precision,
            "finished": record.finished_at[:19].replace("T", " "),
            "commit": str(record.environment.get("commit") or MISSING)[:10],
            "key": record.key[:12],
            "command": record.command,
            "machine": machine(record.environment, with_commit=False),
        }
        for record in results.records
    )


def provenance_table(results: Results) -> Table:
    """Return the machines on which records were made, and from how many commits."""
    records = records_frame(results)
    found = records.groupby("machine", sort=False).agg(
        records=("key", "size"), commits=("commit", "nunique"), first=("finished", "min"), last=("finished", "max")
    )
    found[["first", "last"]] = found[["first", "last"]].apply(lambda texts: texts.str[:10])
    precisions = records.groupby(TASK)["precision"].nunique()
    mixed = [" · ".join(task) for task in precisions.index[precisions > 1]]
    return Table(
        title="Provenance",
        name="provenance",
        frame=found.reset_index(),
        columns=[
            Column("machine", "machine"),
            Column("records", "records", "d"),
            Column("commits", "commits", "d"),
            Column("first", "first"),
            Column("last", "last"),
        ],
        notes=[
            f"{len(records)} records of {records['task'].nunique()} tasks; seeds "
            f"{', '.join(map(str, sorted(records['seed'].unique())))}; from {records['commit'].nunique()} commits. "
            "The report "
            "names the command, commit and key of every record.",
            *(
                [f"Trained in float32 and in bfloat16, by what was faster: records of {', '.join(mixed)}."]
                if mixed
                else []
            ),
            *(f"{subject}: {text}" for subject, text in caveats(results)),
        ],
    )


NOISY_SPREAD = 0.2
"""(slowest - fastest round) / median, above which times are called noisy."""
FEW_SEEDS = 3
_AFTER_TRAINING = 0.5
"""By so much the load average is above the number of cores when training, on all of them, has just ended."""


def caveats(results: Results) -> list[tuple[str, str]]:
    """Return what a reader should know before trusting the results: subject and sentence, the gravest first."""
    found = [("left out", f"{fault}.") for fault in results.faults]
    found += [("set aside", f"{path.name} in {path.parent} was not used.") for path in _set_aside(results.folder)]
    found += [("no result", f"{cell}: {error}.") for cell, error in failed_cells(results.folder).items()]
    return found + clock_caveats(results) + _record_caveats(results)


def _set_aside(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted((folder / "cells").rglob("seed*.*-*"))
        if re.search(r"\.(damaged|stale)-\d+$", path.name)
    ]


def clock_caveats(results: Results) -> list[tuple[str, str]]:
    """Return what a reader should know of the times."""
    times, timed = results.times, {(timing.task, timing.backbone) for timing in results.timings}
    found = []
    if not timed:
        return [("not timed", "no times were taken.")]
    if missing := [task for task, backbone in results.tasks.index if (task, backbone) not in timed]:
        found.append(("not timed", f"{', '.join(missing)}."))
    rounds = times.groupby(["timing", "key", "knob", "batch_size", "in_flight"], dropna=False)["seconds"]
    spread = (rounds.max() - rounds.min()) / rounds.median()
    if (spread > NOISY_SPREAD).any():
        words = (
            f"{(spread > NOISY_SPREAD).sum()} of {len(spread)} clocks spread over more than {100 * NOISY_SPREAD:.0f}%"
        )
        found.append(("noisy timing", f"{words}, at most {100 * spread.max():.0f}%."))
    for timing in results.timings:
        load, cores = timing.environment_before.get("load_average"), timing.environment_before.get("cores_usable")
        cores = cores or results.records[0].environment.get("cores_usable")
        if isinstance(load, list) and load and isinstance(cores, int) and load[0] > cores + _AFTER_TRAINING:
            where = f"{timing.task}, seed {timing.seed}"
            found.append(("busy machine", f"{where}: a load average of {load[0]:g} on {cores} cores before timing."))
    return found


def _record_caveats(results: Results) -> list[tuple[str, str]]:
    records, found = results.records, []
    seeds = results.knobs.groupby("task")["seed"].nunique()
    dev = sorted(
        {record.task for record in records if re.search(r"\bdev\w*( set)? is the test split", record.task_notes)}
    )
    differ = int(results.knobs["live_disagreements"].sum()) if "live_disagreements" in results.knobs else 0
    commits = {str(r.environment.get("commit"))[:10] for r in records if r.environment.get("commit")}
    machines = {(r.environment.get("cpu"), str(r.environment.get("gpus"))) for r in records}
    changed = sum(bool(r.environment.get("uncommitted_changes")) for r in records)
    cut = {r.task: r.truncated_prompts for r in records if getattr(r, "truncated_prompts", 0)}
    if dev:
        found.append(("dev as test", f"{', '.join(dev)}: not the numbers of the GLUE server."))
    if differ:
        found.append(("live differs", f"{differ} live exits or answers differ from the replay."))
    if results.tasks["full_label"].isna().any():
        without = results.tasks.index[results.tasks["full_label"].isna()]
        found.append(("no full model", f"{', '.join(task for task, _ in without)}: nothing to compare with."))
    if (seeds < FEW_SEEDS).any():
        few = ", ".join(map(str, seeds.index[seeds < FEW_SEEDS]))
        found.append(("few seeds", f"fewer than {FEW_SEEDS} on {few}: intervals hold little of the noise of training."))
    found += [("prompts cut", f"{count} of {task}.") for task, count in cut.items()]
    if len(commits) > 1:
        found.append(("several commits", f"records come from {len(commits)} commits."))
    if changed:
        found.append(("local changes", f"{changed} of {len(records)} records were made with uncommitted changes."))
    if len(machines) > 1:
        found.append(("several machines", f"records come from {len(machines)} kinds of machine."))
    return found


# ---------------------------------------------------------------------------------------------- pages and files


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
    return [table for table in [*found, calibration_table(results)] if table is not None]


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
    "csv": (
        ".csv",
        lambda results: to_csv(operating_points(results).drop(columns=["chosen", "short", "targets"])),
    ),
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
