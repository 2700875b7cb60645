"""Results folders as long DataFrames. Tables, figures and the report are made of them.

Every frame has a column ``cell``, the number of its record. ``knobs`` is the frame of curves with what is known of
their cells: ``task``, ``backbone``, ``label``, ``method``, ``seed``, ``key``, ``knob_name``, ``parameters`` (those that
differ in the label's cells), ``metric``, ``num_layers``; ``score`` (its metric), ``flops_ratio`` (full model / here)
and, where knobs were timed, ``speedup_b1``, ``seconds_b1``, .... The last line of a cell is "never exit" (knob NaN).
``times`` has a line for everything that was timed, batch size and round. :mod:`benchmarks.store.frames` has the others.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.measure.knobs import SPEEDUPS, Speedups
from benchmarks.specs.schema import canonical_json
from benchmarks.store.frames import AnyFrameName, FrameName
from benchmarks.store.records import AnyRecord, CellRecord, TimingRecord
from benchmarks.store.results_folder import (
    CELL_COLUMN,
    TIMING_COLUMN,
    StoredResults,
    is_published,
    kind_of_results,
    open_results,
)
from consistentee.errors import UserError, unknown_name
from consistentee.versions import TaskKind

FULL, ORACLE, MAJORITY, STATIC = "full", "oracle", "majority", "static"
REFERENCES = (STATIC, "random", ORACLE, MAJORITY)
"""Methods that are yardsticks: they come last in lists of methods and are grey in figures."""
TASK = ["task", "backbone"]
CURVE = [*TASK, "label"]
NATS, TO_FULL, MATCH = "nats", "rougeL_to_full", "match"
"""Scores of texts besides the task's: the loss of a reference's token, and agreement with the full model's text."""

Task: TypeAlias = tuple[str, str]
"""A task and a backbone."""
Array: TypeAlias = NDArray[np.floating]
_OF_CLASSES = ("accuracy", "f1", "matthews")
_COLUMNS_READ: Mapping[AnyFrameName, tuple[str, ...]] = {"answers": ("answer",), "exits": ("place", "exit_layer")}
"""The columns of the largest frames that are used here."""
_CELL_COLUMNS = (*CURVE, "method", "seed", "key", "knob_name", "metric", "num_layers")


@dataclass(frozen=True, eq=False)
class Part:
    """The cells and timings of a results folder that count, by their numbers there."""

    stored: StoredResults
    cells: Sequence[int]
    timings: Sequence[int]

    def frame(self, name: AnyFrameName, first: int) -> pd.DataFrame:
        """Read a frame of these cells (or timings), which get the numbers from ``first`` on."""
        frame = self.stored.frame(name, _COLUMNS_READ.get(name))
        column, wanted, known = CELL_COLUMN, self.cells, len(self.stored.cells)
        if name == "times":
            column, wanted, known = TIMING_COLUMN, self.timings, len(self.stored.timings)
        if len(wanted) == known and first == 0:
            return frame
        numbers = np.full(known, -1, dtype=np.int32)
        numbers[list(wanted)] = first + np.arange(len(wanted))
        own = numbers[frame[column].to_numpy(dtype=int)]
        return frame.assign(**{column: own})[own >= 0]


@dataclass(eq=False)
class Results:
    """The results of one or several folders.

    ``faults`` name what could not be read or compared; ``own_labels`` are those of a run among published ones.
    """

    folder: Path
    kind: TaskKind
    parts: list[Part]
    faults: list[str] = field(default_factory=list)
    own_labels: Collection[str] = ()
    _frames: dict[str, pd.DataFrame] = field(default_factory=dict, init=False, repr=False)
    _columns: dict[tuple[str, str], list[Array]] = field(default_factory=dict, init=False, repr=False)
    _exits: dict[int, dict[int, NDArray]] = field(default_factory=dict, init=False, repr=False)

    @property
    def speedups(self) -> Speedups:
        """The budgets at which methods are compared, as full cost / cost."""
        return SPEEDUPS[self.kind]

    @cached_property
    def records(self) -> list[AnyRecord]:
        """The records of all cells; a cell's number is its place."""
        of_parts = ((list(part.stored.cells.values()), part.cells) for part in self.parts)
        return [records[number] for records, numbers in of_parts for number in numbers]

    @cached_property
    def timings(self) -> list[TimingRecord]:
        of_parts = ((list(part.stored.timings.values()), part.timings) for part in self.parts)
        return [records[number] for records, numbers in of_parts for number in numbers]

    def frame(self, name: AnyFrameName) -> pd.DataFrame:
        """Return a frame of all cells (or timings), in the order of their numbers."""
        if name not in self._frames:
            sizes = [len(part.timings if name == "times" else part.cells) for part in self.parts]
            firsts = np.cumsum([0, *sizes])
            found = [part.frame(name, int(first)) for part, first in zip(self.parts, firsts, strict=False)]
            known = [frame for frame in found if len(frame)] or found[:1]
            self._frames[name] = known[0] if len(known) == 1 else pd.concat(known, ignore_index=True)
        return self._frames[name]

    @cached_property
    def cells(self) -> pd.DataFrame:
        """A line for every cell."""
        lines = [[getattr(record, name) for name in _CELL_COLUMNS] for record in self.records]
        found = pd.DataFrame(lines, columns=list(_CELL_COLUMNS))
        return found.assign(parameters=varied_parameters(self.records))

    @cached_property
    def knobs(self) -> pd.DataFrame:
        """A line for every knob of every cell."""
        found = self.frame("curve").merge(self.cells, left_on=CELL_COLUMN, right_index=True, how="left")
        found = found.sort_values(["cell", "place"], ignore_index=True)
        metrics = [metric for metric in found["metric"].unique() if metric in found]
        found["score"] = np.select([found["metric"] == x for x in metrics], [found[x] for x in metrics], np.nan)
        counted = found["full_flops"] / found["flops"].where(found["flops"] > 0)
        found["flops_ratio"] = _with_full_depth(found, counted)
        return _with_clocks(found, self.times, self.kind)

    @cached_property
    def times(self) -> pd.DataFrame:
        """A line for everything that was timed, batch size and round; the stock model has no key.

        Columns: ``task``, ``backbone``, ``seed``, ``timing``, ``label``, ``key``, ``knob``, ``layers`` (of the timed
        rows), ``batch_size``, ``in_flight``, ``regroups``, ``round``, ``seconds`` (a row, or a decoded token),
        ``head_seconds`` likewise, ``rows``, ``completed`` (list of seconds), and ``stock_seconds``.
        """
        taken = self.frame("times").reindex(columns=_BATCH_COLUMNS)
        taken["in_flight"] = taken["in_flight"].fillna(taken["batch_size"])  # rows in step
        taken = taken.astype(dict.fromkeys(_TIMED_BY, int))
        return _by_round(taken, _timed_knobs(self.timings), self.kind)

    @cached_property
    def methods(self) -> dict[str, str]:
        """The method of every label: the full model first, then by name, references last."""
        found = {record.label: record.method for record in self.records}
        rank = {FULL: 0} | {role: 2 + place for place, role in enumerate(REFERENCES)}
        return dict(sorted(found.items(), key=lambda item: (rank.get(role_of(item[1]), 1), item[0])))

    @property
    def labels_to_compare(self) -> list[str]:
        """The labels that are compared: all but the full model, the oracle and the majority class."""
        return [x for x, method in self.methods.items() if role_of(method) not in (FULL, ORACLE, MAJORITY)]

    @cached_property
    def tasks(self) -> pd.DataFrame:
        """Tasks with their ``metric``, ``num_layers``, ``full_label`` and whether they count in means (``compared``).

        A task counts if half of the labels were run on it that are compared on many tasks, half as many as any label:
        most methods need classes, so that with a regression among the tasks no other method would be defined on all.
        If published results stand beside a run, the labels of the run decide. A task does not count if its full model
        is within noise of the majority class (``noise``).
        """
        cells = self.cells
        groups = cells.groupby(TASK)
        found = groups.agg(metric=("metric", "first"), num_layers=("num_layers", "first"))
        full = [labels_of_role(dict(zip(own["label"], own["method"], strict=True)), FULL) for _, own in groups]
        found["full_label"] = [labels[0] if labels else None for labels in full]
        known = found.index[found["full_label"].notna()] if found["full_label"].notna().any() else found.index
        deciding = [x for x in self.labels_to_compare if x in self.own_labels] or self.labels_to_compare
        runs = cells[cells["label"].isin(deciding)].drop_duplicates([*TASK, "label"]).set_index(TASK)
        runs = runs[runs.index.isin(known)]
        tasks_of = runs["label"].value_counts()
        common = tasks_of.index[2 * tasks_of >= tasks_of.max()]
        found["labels"] = runs["label"].isin(common).groupby(TASK).sum().reindex(found.index, fill_value=0)
        enough = found.index[2 * found["labels"] >= len(common)].intersection(known)
        found["noise"] = [self._within_noise(task, label) for task, label in found["full_label"].items()]
        clear = enough.difference(found.index[found["noise"]])
        found["compared"] = found.index.isin(next((tasks for tasks in (clear, enough) if len(tasks)), known))
        return found

    def _within_noise(self, task: Task, full_label: str | None) -> bool:
        """Check whether a full model is less than 1.96 standard errors, of rows, more accurate than the majority class.

        Regressions and texts have no majority class.
        """
        own = self.cells.index[(self.cells[CURVE] == [*task, full_label]).all(axis=1)]
        gains = []
        for cell in own[self.cells["metric"][own].isin(_OF_CLASSES)]:
            labels, answers = self.labels(cell), self.answers_by_layer(cell)
            if len(answers):
                majority = pd.Series(labels).mode().iloc[0]
                right = (answers[-1] == labels).astype(float) - (labels == majority)
                gains.append(pd.Series(right, self.column("rows", "row", cell)))
        if not gains:
            return False
        of_rows = pd.concat(gains, axis=1).mean(axis=1)  # over seeds
        return bool(of_rows.mean() <= 1.96 * of_rows.sem(ddof=0))

    @property
    def batch_sizes(self) -> list[int]:
        """The batch sizes that were timed, rows in step."""
        return sorted(map(int, self.times.loc[~self.times["regroups"], "batch_size"].unique()))

    def column(self, name: FrameName, column: str, cell: int) -> Array:
        """Return a column of one cell in a frame; empty where nothing was kept."""
        if (name, column) not in self._columns:
            frame = self.frame(name)
            values = frame[column].to_numpy() if column in frame else np.empty(0)
            firsts = np.searchsorted(frame["cell"].to_numpy(), np.arange(1, len(self.records), dtype=np.int32))
            self._columns[name, column] = np.split(values, firsts)  # the numbers of cells rise
        return self._columns[name, column][cell]

    def labels(self, cell: int) -> Array:
        """Return the labels of a cell's test rows, [N]."""
        return self.column("rows", "label", cell)

    def answers_by_layer(self, cell: int) -> Array:
        """Return the answers of a cell's test rows at every layer, [layers, N]; a cascade has more layers than L."""
        rows = max(1, len(self.column("rows", "row", cell)))
        return self.column("answers", "answer", cell).reshape(-1, rows)

    def exits(self, cell: int) -> dict[int, NDArray]:
        """Return the exit layers [N] of a cell by the place of its knob.

        They are known where they were kept, and where all rows exit at one layer.
        """
        if cell not in self._exits:
            rows = len(self.column("rows", "row", cell))
            places = self.column("exits", "place", cell)[:: max(1, rows)]
            layers = self.column("exits", "exit_layer", cell).reshape(len(places), max(1, rows))
            found = dict(zip(map(int, places), layers, strict=True))
            counts = self.exit_histograms(cell)
            for line in np.flatnonzero(counts.max(axis=1) == rows) if rows else ():
                place = int(self.column("curve", "place", cell)[line])
                found.setdefault(place, np.full(rows, counts[line].argmax() + 1))
            self._exits[cell] = found
        return self._exits[cell]

    def exit_histograms(self, cell: int) -> NDArray[np.int64]:
        """Return how many test rows (or tokens) of a cell exit at each layer, [knobs, layers]."""
        return np.array(self.column("curve", "exit_histogram", cell).tolist(), dtype=np.int64)

    def has_exit(self, cell: int, layer: int) -> bool:
        """Return whether a cell has an exit at a layer, by the rows of its label that exit there at any knob and task.

        A cell with one knob and full depth has all.
        """
        return len(self.exit_histograms(cell)) <= 2 or layer in self._exit_layers[self.records[cell].label]

    @cached_property
    def _exit_layers(self) -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        for cell, record in enumerate(self.records):
            layers = np.flatnonzero(self.exit_histograms(cell).any(axis=0)) + 1
            found.setdefault(record.label, set()).update(layers.tolist())
        return found

    def only(self, labels: Collection[str] | None = None, tasks: Collection[str] | None = None) -> "Results":
        """Return the results of some labels (or all of a method) and tasks; the full model always stays.

        Tasks on which some of the ``labels`` did not run are left out, and named in ``faults``. Raises UserError for a
        label or a task that is not there, and if no task has all labels.
        """
        cells = self.cells
        # The name of a method stands for all its labels, unless it is one of the labels.
        methods = cells["method"].mask(cells["method"].isin(cells["label"]), cells["label"])
        names = pd.concat([cells[TASK].assign(name=cells["label"]), cells[TASK].assign(name=methods)])
        for what, wanted, known in (("task", tasks, set(cells["task"])), ("method", labels, set(names["name"]))):
            for unknown in [name for name in wanted or () if name not in known]:
                raise unknown_name(f"{what} in these results", unknown, known)
        ran = names[names["task"].isin(names["task"] if tasks is None else tasks)]
        ran = ran.groupby(TASK, sort=False)["name"].agg(set)
        once = list(dict.fromkeys(labels or ()))  # --against may be among --methods, too
        lacking = {task: [label for label in once if label not in own] for task, own in ran.items()}
        kept = [task for task, missing in lacking.items() if not missing]
        if not kept:
            raise UserError(f"no task has all of {', '.join(labels or ())}: compare fewer methods")
        stay = pd.MultiIndex.from_frame(cells[TASK]).isin(kept)
        if labels is not None:
            stay &= (
                cells["label"].isin(labels) | methods.isin(labels) | cells["method"].map(role_of).isin([FULL, MAJORITY])
            )
        found = self.where(list(stay))
        texts = {", ".join(task): " and ".join(missing) for task, missing in lacking.items() if missing}
        found.faults += [f"{task}: {missing} did not run on it" for task, missing in texts.items()]
        return found

    def where(self, stay: Sequence[bool]) -> "Results":
        """Return the results of the cells that stay, by their numbers."""
        kept = iter(stay)
        parts = [replace(part, cells=[n for n in part.cells if next(kept)]) for part in self.parts]
        return replace(self, parts=parts, faults=list(self.faults))

    def scored_by(self, metric: str) -> "Results":
        """Return the results with another metric of the records as their score."""
        found = replace(self, faults=list(self.faults))
        found.cells = self.cells.assign(metric=metric)
        return found


_TIMED_BY = ["timing", "timed", "batch_size", "in_flight", "round"]
_BATCH_COLUMNS = [*_TIMED_BY, "seconds", "units", "head_seconds", "layer_calls", "completed"]


def load_results(folder: Path | str) -> Results:
    """Read a results folder, of a run or published.

    Raises UserError if there are no results that can be read.
    """
    root = Path(folder)
    found = open_results(root)
    if not found.cells:
        raise UserError(f"{found.faults[0]}, and {root} holds no other finished cell; run the suite again")
    whole = Part(found, range(len(found.cells)), range(len(found.timings)))
    return Results(root, found.kind, [whole], list(map(str, found.faults)))


def load_folders(folders: Sequence[Path], published: Iterable[Path] = ()) -> Results:
    """Read results folders as one, see :func:`merge`.

    Runs alone are joined by what is comparable in ``published`` folders.
    Raises UserError for a folder that cannot be read, and for folders of both kinds.
    """
    found = [load_results(folder) for folder in dict.fromkeys(folders)]
    for other in found[1:]:
        if other.kind != found[0].kind:
            raise UserError(f"{other.folder} holds results of {other.kind}, {found[0].folder} of {found[0].kind}")
    own = merge(found)
    return own if any(part.stored.published for part in own.parts) else with_published(own, published)


def published_folders() -> list[Path]:
    """Return the folders of published results, of the working directory and of the package's repository."""
    roots = dict.fromkeys(root.resolve() for root in (Path("results"), Path(__file__).parents[2] / "results"))
    return [place for root in roots for place in sorted(root.glob("*")) if is_published(place)]


def with_published(own: Results, folders: Iterable[Path]) -> Results:
    """Merge a run with what is published and comparable: same task, backbone, seed and :func:`protocol`.

    A curve of the run takes the place of a published one. Times of other processors than the run's are left out. What a
    run took from published results does not count as its own.
    """
    wanted = {_identity(record) for record in own.records}
    curves = {(record.task, record.label) for record in own.records}
    processors = {record.environment.get("cpu") for record in own.records}
    parts, faults, published = list(own.parts), list(own.faults), set()
    for folder in folders:
        try:
            if kind_of_results(folder) != own.kind:
                continue
            stored = load_results(folder)
        except UserError as error:
            faults.append(str(error))
            continue
        stay = [_identity(r) in wanted and (r.task, r.label) not in curves for r in stored.records]
        published |= {(record.key, record.finished_at) for record in stored.records}
        (part,) = stored.where(stay).parts
        curves |= {(record.task, record.label) for record, stays in zip(stored.records, stay, strict=True) if stays}
        timings = [n for n, t in enumerate(stored.timings) if t.environment_before.get("cpu") in processors]
        parts += [replace(part, timings=timings)] if any(stay) else []
    # Alone it is read and resampled already.
    found = own if len(parts) == len(own.parts) else Results(own.folder, own.kind, parts)
    mine = {record.label for record in own.records if (record.key, record.finished_at) not in published}
    found.faults, found.own_labels = faults, mine if len(mine) < len(found.methods) else ()
    return found


def _identity(record: AnyRecord) -> str:
    return canonical_json([record.task, record.backbone, record.seed, protocol(record)])


def protocol(record: AnyRecord) -> dict[str, object]:
    """Return what two records of a task must have in common, so that only their methods differ."""
    parts = record.key_parts
    return {
        "rows": parts.rows,
        "recipe": canonical_json(parts.settings.get("recipe")),
        "files of the backbone": canonical_json(parts.backbone),
        "version of the engine": parts.engine_version,
        "version of training": parts.training_version,
    }


def merge(found: Sequence[Results]) -> Results:
    """Merge the results of several folders: a curve with a seed is taken from the first folder that has it.

    Recipes are never mixed: a folder whose records of a task follow another protocol than those of the first folder
    that has the task is left out for this task, and named in ``faults``.
    """
    curves: dict[tuple[str, ...], Path] = {}
    owners: dict[Task, tuple[Path, dict[str, object]]] = {}
    faults = dict.fromkeys(fault for results in found for fault in results.faults)
    parts: list[Part] = []
    for results in found:
        stay = []
        for record in results.records:
            task, own = (record.task, record.backbone), protocol(record)
            owner, wanted = owners.setdefault(task, (results.folder, own))
            other = [name for name, value in own.items() if value != wanted[name]]
            if other and owner != results.folder:
                words = " and ".join(other)
                faults[f"{', '.join(task)} of {results.folder} differs from that of {owner} in {words}"] = None
                stay.append(False)
            else:
                curve = (*task, record.label, str(record.seed))
                stay.append(curves.setdefault(curve, results.folder) == results.folder)
        parts += results.where(stay).parts
    return Results(found[0].folder, found[0].kind, parts, list(faults))


def role_of(method: str) -> str:
    """Return the name of a reference whatever its rows are (``token-static`` is ``static``), else the method's own."""
    role = method.removeprefix("token-")
    return role if role in (FULL, *REFERENCES) else method


def labels_of_role(methods: Mapping[str, str], role: str) -> list[str]:
    """Return the labels of a role; the one under its method's own name is first."""
    found = [label for label, method in methods.items() if role_of(method) == role]
    return sorted(found, key=lambda label: (label != methods[label], label))


def varied_parameters(records: Sequence[AnyRecord]) -> list[str]:
    """Return of every record the parameters that differ among the cells of its label: ``alpha=0.05``."""
    values: dict[tuple[str, str], set[str]] = {}
    for record in records:
        for name, value in record.parameters.items():
            values.setdefault((record.label, name), set()).add(repr(value))
    return [
        ", ".join(f"{name}={value}" for name, value in sorted(r.parameters.items()) if len(values[r.label, name]) > 1)
        for r in records
    ]


def exit_networks(records: Iterable[AnyRecord]) -> dict[str, str]:
    """Name the network of the exits of every label, in classification; references are left out."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        if isinstance(record, CellRecord) and role_of(record.method) not in REFERENCES:
            found.setdefault(record.label, {})[record.exit_network or "not recorded"] = None
    return {label: " / ".join(kinds) for label, kinds in found.items()}


def _timed_knobs(timings: Iterable[TimingRecord]) -> pd.DataFrame:
    lines = [
        (number, place, t.task, t.backbone, t.seed, one.label, one.cell_key, one.knob, one.average_layers)
        for number, t in enumerate(timings)
        for place, one in enumerate(t.timed)
    ]
    columns = ["timing", "timed", *TASK, "seed", "label", "key", "knob", "layers"]
    return pd.DataFrame(lines, columns=columns).astype({"timing": int, "timed": int, "knob": float})


def _by_round(batches: pd.DataFrame, timed: pd.DataFrame, kind: TaskKind) -> pd.DataFrame:
    """Add up the batches of every round, and put the stock model's time of the same round beside."""
    groups = batches.groupby(_TIMED_BY, sort=False)
    spent = groups[["seconds", "head_seconds", "layer_calls", "units"]].sum(min_count=1).astype(float)
    found = spent[["seconds", "head_seconds", "layer_calls"]].div(spent["units"], axis=0)
    completed = batches.dropna(subset="completed").groupby(_TIMED_BY)["completed"].agg(lambda lists: [*chain(*lists)])
    found = found.assign(rows=spent["units"], completed=completed)
    found = found.reset_index().merge(timed, on=["timing", "timed"], how="left")
    if kind == "classification":
        found["head_seconds"] = 0.0  # every second is spent on layers and exits
    found["layers"] = found.pop("layer_calls").fillna(found["layers"])
    found["regroups"] = found["in_flight"] != found["batch_size"]
    by_round = ["timing", "in_flight", "round"]
    stock = found.loc[(found["key"] == "") & ~found["regroups"], [*by_round, "seconds"]].drop_duplicates(by_round)
    return found.merge(stock.rename(columns={"seconds": "stock_seconds"}), on=by_round, how="left")


def _with_clocks(knobs: pd.DataFrame, times: pd.DataFrame, kind: TaskKind) -> pd.DataFrame:
    """Add the medians over rounds, rows in step: ``speedup_b1`` (stock model / here), ``seconds_b1`` and so on.

    Of several timings the first that has a knob counts: the latest one. The timed instances, a few of the test rows,
    run a little more or less layers than all: a time counts in proportion.
    """
    timed = times[(times["key"] != "") & ~times["regroups"]]
    if timed.empty:
        return knobs
    timed = timed[timed["timing"] == timed.groupby(["key", "knob"], dropna=False)["timing"].transform("min")]
    timed = timed.assign(speedup=timed["stock_seconds"] / timed["seconds"])
    clocks = timed.groupby(["key", "knob", "batch_size"])[["speedup", "seconds"]].median().unstack()
    clocks.columns = [f"{name}_b{size}" for name, size in clocks.columns]
    clocks["timed_layers"] = timed.groupby(["key", "knob"])["layers"].first()
    found = knobs.merge(clocks.reset_index(), on=["key", "knob"], how="left")
    share = found.pop("timed_layers") / found["layers"]
    for name in clocks.columns.drop("timed_layers"):
        if kind == "classification":
            found[name] *= share if name.startswith("speedup") else 1 / share
        if name.startswith("speedup"):
            found[name] = _with_full_depth(found, found[name])
    return found


def _with_full_depth(knobs: pd.DataFrame, ratios: pd.Series) -> pd.Series:
    """Let full depth that was not counted or timed cost as much as the full model, where some knob was."""
    some = ratios.notna().groupby(knobs["cell"]).transform("any")
    full = knobs["knob"].isna() & (knobs["layers"] >= knobs["num_layers"])
    return ratios.mask(some & ratios.isna() & full, 1.0)
