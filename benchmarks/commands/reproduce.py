"""Figures that papers print, as quoted in ``benchmarks/papers/results.csv``, and ours: paper by paper."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import Field

from benchmarks.analysis.comparison import Comparison
from benchmarks.analysis.frames import FULL, Results, load_results
from benchmarks.analysis.promises import chosen_knobs
from benchmarks.analysis.rendering import MISSING, Column, Table, over_or_under
from benchmarks.specs.base import short_name
from benchmarks.specs.schema import Strict, load_named, yaml_files
from benchmarks.specs.suites import load_suite
from benchmarks.store.records import AnyRecord
from benchmarks.store.results_folder import kind_of_results
from consistentee.errors import UserError
from consistentee.methods.method import available_methods

_FOLDER = Path(__file__).parents[1] / "papers"
_NUMBER = r"^([-+]?\d+(?:\.\d+)?)"
"""A printed score; the first number of ``83.9/83.0``, matched and mismatched, counts."""
PAPER = "paper"
_NO_LOSS_NOTE = "No loss: the fastest knob that loses nothing on validation rows, else full depth; points on test rows."


class PaperColumn(Strict):
    """A task of the table."""

    printed: str = Field(description="its name in results.csv")
    task: str = Field(description="ours")
    metric: str = Field(description="ours, by which our knobs are chosen and scored")
    printed_metrics: tuple[str, ...] = Field(min_length=1, description="what the paper calls it, method by method")


class PaperMethod(Strict):
    """A method of the table."""

    printed: str = Field(description="its name in results.csv")
    backbone: str = Field(description="as printed")
    full: str = Field(description="the printed name of the model that it is measured against")
    ours: tuple[str, ...] = Field(min_length=1, description="our curves, by label")


class PaperSetting(Strict):
    """A backbone of ours and the suite that trains it."""

    backbone: str
    suite: str


class PaperTable(Strict):
    """A table that ``consistentee reproduce`` knows by name."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[\w.-]+$")
    title: str
    table: str = Field(description="as the column of that name in results.csv says")
    speed: Literal["layers", "time saved", "not stated"] = Field(
        description="what its speed-ups are: L / average layers, a share of the wall time, or a ratio of something"
    )
    values: Literal["score", "points"] = Field("score", description="points: the score minus the full model's")
    columns: tuple[PaperColumn, ...] = Field(min_length=1)
    methods: tuple[PaperMethod, ...] = Field(min_length=1)
    settings: tuple[PaperSetting, ...] = Field(min_length=1, description="whose results are shown unasked")
    paper_setting: PaperSetting = Field(description="the paper's backbone; its suite trains any backbone not listed")
    at_no_loss: bool = Field(False, description="its speed-ups are the largest without loss: show ours as well")
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(label for method in self.methods for label in method.ours))

    def setting_for(self, backbone: str) -> PaperSetting:
        known = {setting.backbone: setting for setting in (*self.settings, self.paper_setting)}
        return known.get(backbone, PaperSetting(backbone=backbone, suite=self.paper_setting.suite))


def list_papers() -> dict[str, Path]:
    """Return the tables that come with the package: name -> file."""
    return yaml_files(_FOLDER / "tables")


def load_paper(name_or_path: str | Path) -> PaperTable:
    """Read a table, by its name or as the path of a YAML file.

    Raises UserError for an unknown name, and for a file that is not a valid table (the field is named).
    """
    return load_named("paper table", name_or_path, list_papers(), lambda fields: PaperTable)


@cache
def published_results() -> pd.DataFrame:
    """Read all printed figures, as text: quoted, not converted; ``number`` and ``ratio`` are value and speed-up."""
    found = pd.read_csv(_FOLDER / "results.csv", dtype=str, keep_default_na=False).apply(lambda text: text.str.strip())
    numbers = {to: found[name].str.extract(_NUMBER)[0] for to, name in (("number", "value"), ("ratio", "speedup"))}
    return found.assign(**{name: texts.astype(float) for name, texts in numbers.items()})


@cache
def names() -> dict[str, dict[str, str]]:
    """Read what the tables of ``results.csv`` say of their ``splits``, and their ``speedup_definitions`` in words."""
    return dict(yaml.safe_load((_FOLDER / "names.yaml").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class PaperComparison:
    """A paper's table, our records of one backbone, and the table's curves that there can be on it.

    ``command`` makes the records that are missing.
    """

    table: PaperTable
    backbone: str
    results: Results | None
    labels: tuple[str, ...]
    command: str

    @property
    def records(self) -> list[AnyRecord]:
        return [] if self.results is None else self.results.records

    def has(self, task: str, label: str | None = None) -> bool:
        """Return whether there are records of a task, or of a label on it."""
        return any(record.task == task and label in {None, record.label} for record in self.records)


def compare_with_ours(
    name: str, backbones: Sequence[str] | None = None, folder: Path | None = None
) -> tuple[list[PaperComparison], list[str]]:
    """Return a paper's table with our records of every backbone, and the faults of these records.

    Without ``backbones`` these are the backbones that have records of a method of the table. The records are those in
    ``folder``, by default the published ones of each backbone's suite.
    """
    table = load_paper(name)
    settings = (*table.settings, table.paper_setting) if backbones is None else map(table.setting_for, backbones)
    found: list[PaperComparison] = []
    faults: dict[str, None] = {}
    tasks = [column.task for column in table.columns]
    for setting in settings:
        place, backbone, results = folder or Path("results") / setting.suite, short_name(setting.backbone), None
        if kind_of_results(place) == "classification":
            results = load_results(place)
            results = results.where([r.task in tasks and r.backbone == backbone for r in results.records])
        suite = load_suite(setting.suite)
        known = {*(entry.label for entry in suite.methods), *available_methods(suite.method_group)}
        labels = tuple(label for label in table.labels if label in known)
        if not labels:
            raise UserError(f"suite {suite.name!r} has none of the methods of {table.name}: {', '.join(table.labels)}")
        command = f"consistentee run {setting.suite} --tasks {' '.join(tasks)} --methods {' '.join([FULL, *labels])}"
        command += f" --backbones {setting.backbone} --data DATA"
        found.append(PaperComparison(table, backbone, results, labels, command))
        faults |= dict.fromkeys([] if results is None else results.faults)
    with_ours = [one for one in found if {record.label for record in one.records}.intersection(one.labels)]
    return found if backbones is not None else with_ours or found[:1], list(faults)


def compare(comparison: PaperComparison) -> pd.DataFrame:
    """Return a line for every printed operating point and label of ours; scores and points are shares.

    What the paper prints is ``printed_...`` and ``their_...``; ``label``, ``score``, ``our_points`` with its interval,
    ``layers`` and ``spent`` (the speed-up in layers) are ours.
    """
    printed = [
        _printed_points(comparison.table, method, column).assign(label=label)
        for method in comparison.table.methods
        for column in comparison.table.columns
        for label in [label for label in method.ours if label in comparison.labels] or [""]
    ]
    frame = pd.concat(printed, ignore_index=True)
    keys = ["our_task", "label", "speedup"]
    columns = [*keys, "score", "our_points", "low", "high", "layers", "spent", "over", "under"]
    ours = [_ours(comparison, column, frame) for column in comparison.table.columns]
    known = [pd.DataFrame(columns=columns), *(one[columns] for one in ours if one is not None)]
    found = pd.concat(known).infer_objects()
    return frame.merge(found.drop_duplicates(keys), on=keys, how="left")


def _ours(comparison: PaperComparison, column: PaperColumn, printed: pd.DataFrame) -> pd.DataFrame | None:
    """Return what our curves reach at the printed speed-ups of a task, scored by the metric of the column."""
    if not comparison.has(column.task) or comparison.results is None:
        return None
    results, wanted = comparison.results.only(tasks=[column.task]), printed[printed["our_task"] == column.task]
    if (results.cells["metric"] != column.metric).any():
        curve = results.frame("curve")
        if column.metric not in curve or curve[column.metric].isna().any():
            return None
        results = results.scored_by(column.metric)
    if wanted.empty:
        return None
    found = Comparison(results, sorted(set(wanted["speedup"])))
    frame = found.by_task.merge(wanted[["label", "speedup"]].drop_duplicates(), on=["label", "speedup"])
    frame["spent"] = results.records[0].num_layers / frame["layers"]
    return found.with_intervals(frame).rename(columns={"task": "our_task", "points": "our_points"})


def _printed_points(table: PaperTable, method: PaperMethod, column: PaperColumn) -> pd.DataFrame:
    found = _printed(table, method.printed, method.backbone, column).dropna(subset=["number", "ratio"])
    names_here = {"metric": "printed_metric", "value": "printed_value", "speedup": "printed_speedup"}
    found = found.rename(columns={**names_here, "speedup_definition": "definition"})
    found = found.assign(printed_backbone=method.backbone, our_task=column.task, our_metric=column.metric)
    of_points, saved = table.values == "points", table.speed == "time saved"
    found["speedup"] = 1 / (1 + found["ratio"] / 100) if saved else found["ratio"]  # -21% is a fifth of the time saved
    found["their_score"] = np.nan if of_points else found["number"] / 100
    full = 0.0 if of_points else printed_full(table, method, column)
    found["their_points"] = (found["number"] - full) / 100
    columns = ["method", "printed_backbone", "task", "our_task", "our_metric", *names_here.values(), "definition"]
    columns += ["speedup", "their_score", "their_points", "source", "url"]
    return found[columns].assign(number=range(1, len(found) + 1), points=len(found))


def printed_full(table: PaperTable, method: PaperMethod, column: PaperColumn) -> float:
    """Return the printed score of the full model of a method, in percent; NaN where there is none in this metric."""
    values = _printed(table, method.full, method.backbone, column)["number"].dropna()
    return float(values.iloc[0]) if len(values) else np.nan


def _printed(table: PaperTable, method: str, backbone: str, column: PaperColumn) -> pd.DataFrame:
    found = published_results()
    own = (found["table"] == table.table) & (found["method"] == method) & (found["backbone"] == backbone)
    return found[own & (found["task"] == column.printed) & found["metric"].isin(column.printed_metrics)]


def paper_table(comparison: PaperComparison) -> Table:
    """Return the table of one backbone of ours, in the paper's shape: of every method the paper's line and ours."""
    table, found = comparison.table, compare(comparison)
    full: dict[tuple[str, str], dict[str, float]] = {
        (method.full, PAPER): {column.printed: printed_full(table, method, column) for column in table.columns}
        for method in table.methods
    }
    full[FULL, "ours"] = {column.printed: 100 * _our_full(comparison, column) for column in table.columns}
    lines: list[dict[str, Any]] = [
        {"method": name, "whose": whose} | {task: f"{score:.1f}" for task, score in scores.items() if pd.notna(score)}
        for (name, whose), scores in full.items()
    ]
    found["theirs"] = _texts(table, found["their_score"], found["their_points"], found["speedup"])
    marks = over_or_under(found)
    found["ours"] = _texts(table, found["score"], found["our_points"], found["spent"], marks)
    backbones = found.groupby("method")["printed_backbone"].nunique()
    groups = found.groupby(["method", "printed_backbone", "number"], sort=False)
    for block, ((name, backbone, number), own) in enumerate(groups):
        words = f"{name}, {backbone}" if backbones[name] > 1 else str(name)
        words += f", point {number}" if own["points"].max() > 1 else ""
        theirs = own.drop_duplicates("task").set_index("task")["theirs"]
        lines.append({"block": block, "method": words, "whose": PAPER} | theirs.to_dict())
        for label, ours in own[own["label"] != ""].groupby("label", sort=False):
            lines.append({"block": block, "method": label, "whose": "ours"} | ours.set_index("task")["ours"].to_dict())
    for label, texts in _at_no_loss(comparison).items():
        lines.append({"block": len(groups), "method": label, "whose": "ours, no loss"} | texts)
    meanings = sorted({names()["speedup_definitions"][text] for text in found["definition"]})
    return Table(
        title=f"{table.title}. {_setting(comparison)}",
        name=f"{table.name}-{comparison.backbone}",
        frame=pd.DataFrame(lines).fillna({"block": -1}),
        columns=[Column("method"), Column("whose"), *(Column(column.printed) for column in table.columns)],
        notes=[
            *_missing(comparison, found),
            *([_NO_LOSS_NOTE] if table.at_no_loss else []),
            f"Speed-up: theirs {', '.join(meanings)}; ours L / average layers.",
            *table.notes,
            f"Quoted from: {'; '.join(sorted(set(found['source'] + ', ' + found['url'])))}.",
        ],
        blocks="block",
    )


def _at_no_loss(comparison: PaperComparison) -> dict[str, dict[str, str]]:
    """Return, by label and task as printed, the speed-up that validation rows promise and the points on test rows."""
    if not comparison.table.at_no_loss or comparison.results is None:
        return {}
    chosen = chosen_knobs(comparison.results, 0.0)
    means = chosen.assign(layers=1 / chosen["promised"]).groupby(["label", "task"])[["layers", "lost"]].mean()
    printed = {column.task: column.printed for column in comparison.table.columns}
    return {
        label: {
            printed[task]: f"{1 / mean['layers']:.2f}x, {-mean['lost']:+.1f}"
            for task, mean in means.loc[label].iterrows()
            if task in printed
        }
        for label in comparison.labels
        if label in means.index.get_level_values("label")
    }


def _texts(table: PaperTable, score: pd.Series, points: pd.Series, speedup: pd.Series, marks: Any = "") -> pd.Series:
    """Write scores, or points where the paper prints these, with their speed-ups: ``69.0 @ 1.85x``."""
    of_points = table.values == "points"
    values = (100 * (points if of_points else score).astype(float)).round(1) + 0.0  # no -0.0
    texts = values.map(("{:+.1f}" if of_points else "{:.1f}").format) + speedup.map(" @ {:.2f}x".format) + marks
    return texts.where(values.notna(), None)


def _setting(comparison: PaperComparison) -> str:
    table = comparison.table
    printed = ", ".join(dict.fromkeys(method.backbone for method in table.methods))
    ours, rows = [comparison.backbone], [record.train_rows for record in comparison.records]
    if rows:
        all_dev = all("GLUE dev" in record.task_notes for record in comparison.records)
        counts = " to ".join(f"{count:,}" for count in sorted({min(rows), max(rows)}))
        ours += ["GLUE dev" if all_dev else "test splits", f"{counts} training rows a task"]
    return f"Paper: {printed}, {names()['splits'][table.table]}; ours: {', '.join(ours)}"


def _our_full(comparison: PaperComparison, column: PaperColumn) -> float:
    """Return the full model's score, with the seeds that the methods of the table have."""
    if comparison.results is None:
        return np.nan
    own = comparison.results.knobs.query("task == @column.task")
    with_ours = own.loc[own["label"].isin(comparison.labels), "seed"].unique()
    full = own[(own["method"] == FULL) & own["knob"].isna() & (own["seed"].isin(with_ours) | (len(with_ours) == 0))]
    return float(full[column.metric].mean()) if column.metric in full and len(full) else np.nan


def _missing(comparison: PaperComparison, found: pd.DataFrame) -> list[str]:
    wanted = found.loc[found["label"] != "", ["label", "task", "our_task"]].drop_duplicates()
    known = [comparison.has(line.our_task, line.label) for line in wanted.itertuples()]
    missing = wanted[np.invert(known)].groupby("label", sort=False)["task"].agg(", ".join)
    texts = [f"{label} on {tasks}" for label, tasks in missing.items()]
    return [f"{MISSING}: no records of {'; '.join(texts)}; `{comparison.command}` makes them."] if texts else []


def paper_csv(comparisons: Sequence[PaperComparison]) -> pd.DataFrame:
    """Return a line for every printed point and curve of ours, in percent."""
    frames = []
    for comparison in comparisons:
        found = compare(comparison)
        full = {column.task: _our_full(comparison, column) for column in comparison.table.columns}
        found.insert(0, "table", comparison.table.name)
        found["our_backbone"], found["our_full"] = comparison.backbone, found["our_task"].map(full)
        differences = ["difference", "difference_low", "difference_high"]
        found[differences] = found[["our_points", "low", "high"]].sub(found["their_points"], axis=0)
        shares = ["their_score", "their_points", "score", "our_points", "low", "high", "our_full", *differences]
        found[shares] = 100 * found[shares].astype(float)
        frames.append(found[found["label"] != ""].rename(columns={"label": "our_method", "score": "our_score"}))
    return pd.concat(frames, ignore_index=True).drop(columns=["number", "points", "definition"])
