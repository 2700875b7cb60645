"""Results folders as three DataFrames: `knobs`, `rows` and `times`. Tables, figures and the report are made of them.

`knobs` has a line for every value of the knob of every cell: ``task``, ``backbone``, ``label``, ``method``,
``parameters``, ``seed``, ``cell`` (its number), ``key``, ``place`` (of the knob in the curve), ``knob_name``, ``knob``,
``metric``, ``num_layers``, ``validation_layers``, ``validation_quality`` (the score, or in generation the agreement
with the full model, by which knobs are chosen), ``layers`` (average, of test rows), ``score`` and every other metric by
its name, ``exit_histogram``. Operating points also have ``point`` (their number), ``targets``, ``score_low`` and
``score_high``; these and the knobs of the validation hull (``hull``) have ``flops_ratio``, and ``speedup_b1``, ...
where they were timed. In generation only operating points were decoded: other knobs have no test columns.

`rows` has a line for every test row at every knob whose answers were kept. `times` has a line for everything that was
timed, batch size and round: ``seconds`` (a row, or a decoded token), ``stock_seconds`` (the stock model in the same
round) and what else the clock recorded. A fourth frame, ``training``, has the curves of training.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.specs.base import folder_name
from benchmarks.specs.schema import canonical_json
from benchmarks.specs.targets import SPEEDUPS, Speedups
from benchmarks.store.folders import PREDICTIONS_FILE
from benchmarks.store.generation_records import DecodingPoint
from benchmarks.store.records import BaseRecord, CellRecord, CurvePoint, OperatingPoint
from benchmarks.store.stored_results import StoredCell, open_results
from benchmarks.store.timings import DecodingSamples, TimingSamples
from consistentee.errors import UserError, unknown_name
from consistentee.versions import Kind

FULL, ORACLE, MAJORITY, STATIC = "full", "oracle", "majority", "static"
REFERENCES = (STATIC, "random", ORACLE, MAJORITY)
"""Methods that are yardsticks and no competitors: they come last in tables and are grey in figures."""
CORE_METHOD = "consistentee"
"""Names of its variants begin with it."""
TASK = ["task", "backbone"]
CURVE = [*TASK, "label"]
NATS, TO_FULL, MATCH = "nats", "rougeL_to_full", "match"
"""Scores of texts besides the task's: the loss of a reference's token, and agreement with the full model's text."""

Answers = tuple[NDArray[Any], NDArray[Any]]
"""Labels and answers of the test rows, as :mod:`benchmarks.analysis.statistics` takes them."""
Columns = dict[str, NDArray[Any]]
"""The columns of a cell's test rows."""
_Line = dict[str, Any]


@dataclass(eq=False)
class Results:
    """The results of one or several folders; ``faults`` name what could not be read or compared."""

    folder: Path
    kind: Kind
    cells: list[StoredCell]
    timings: list[Any]
    faults: list[str] = field(default_factory=list)
    _predictions: dict[int, Columns | None] = field(default_factory=dict, init=False, repr=False)

    @property
    def speedups(self) -> Speedups:
        """The budgets at which methods are compared, as full cost / cost."""
        return SPEEDUPS[self.kind]

    @property
    def records(self) -> list[Any]:
        """The records of all cells."""
        return [cell.record for cell in self.cells]

    @cached_property
    def knobs(self) -> pd.DataFrame:
        """A line for every knob of every cell."""
        lines = [line for number, record in enumerate(self.records) for line in _knob_lines(number, record)]
        knobs = pd.DataFrame(lines)
        names = ("layers", "score", "flops_ratio", "flops", "full_flops", "score_low", "score_high")
        knobs = knobs.assign(**{name: np.nan for name in names if name not in knobs})
        return _with_clocks(knobs, self.times, self.kind == "classification")

    @cached_property
    def times(self) -> pd.DataFrame:
        """A line for everything that was timed, batch size and round."""
        times = pd.DataFrame(_time_lines(self.timings), columns=_TIME_COLUMNS)
        times = times.astype({"knob": float})  # without any knob it would be a column of objects
        in_step = times[(times["key"] == "") & ~times["regroups"].astype(bool)]
        by_round = ["timing", "in_flight", "round"]
        stock = in_step[[*by_round, "seconds"]].rename(columns={"seconds": "stock_seconds"}).drop_duplicates(by_round)
        return times.merge(stock, on=by_round, how="left")

    @cached_property
    def rows(self) -> pd.DataFrame:
        """A line for every test row at every knob whose answers were kept; made when it is asked for."""
        frames = []
        for index, knob in self.knobs.dropna(subset=["point", "hull"], how="all").iterrows():
            columns, found = self.predictions(knob["cell"]), self.answers(index)
            if columns is None or found is None:
                continue
            places = (("exit_layer", "point"), ("exit_layers", "point"), ("hull_exit_layer", "hull"))
            exits = [columns.get(f"{name}_{knob[place]:.0f}") for name, place in places]
            frame = pd.DataFrame({"row": columns["row"], "answer": found[1], "true_label": found[0]})
            frame["exit_layer"] = next((layers for layers in exits if layers is not None), None)
            frames.append(frame.assign(**{name: knob[name] for name in (*CURVE, "seed", "cell", "place", "knob")}))
        rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["answer", "true_label"])
        whole = [name for name in ("answer", "true_label") if (rows[name] % 1 == 0).all()]
        return rows.astype(dict.fromkeys(whole, int))

    @cached_property
    def training(self) -> pd.DataFrame:
        """A line for every point of the curves of training; a stage that methods share is there once.

        Columns: ``task``, ``backbone``, ``seed``, ``stage`` (with a method, where methods differ in it), ``curve``
        (loss, or validation score), ``run`` (a number for each curve), ``done`` (percent of the stage) and ``value``.
        """
        keys = [*TASK, "seed", "stage", "curve"]
        lines = [
            (record.task, record.backbone, record.seed, stage, curve, record.label, tuple(values))
            for record in self.records
            for curve, stages in (("loss", record.losses), ("validation score", record.validation_by_epoch))
            for stage, values in stages.items()
        ]
        runs = pd.DataFrame(lines, columns=[*keys, "label", "value"]).drop_duplicates([*keys, "value"])
        differ = (runs.groupby(keys)["label"].transform("size") > 1).groupby(runs["stage"]).transform("any")
        runs["stage"] = runs["stage"].where(~differ, runs["stage"] + " · " + runs.pop("label"))
        found = runs.assign(run=range(len(runs))).explode("value", ignore_index=True).astype({"value": float})
        place = found.groupby("run").cumcount() + np.where(found["curve"] == "loss", 0.5, 1)
        return found.assign(done=100 * place / found.groupby("run")["run"].transform("size"))

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
        """
        columns = [*CURVE, "method", "metric", "num_layers"]
        cells = pd.DataFrame([[getattr(record, name) for name in columns] for record in self.records], columns=columns)
        groups = cells.groupby(TASK)
        found = groups.agg(metric=("metric", "first"), num_layers=("num_layers", "first"))
        full = [labels_of_role(dict(zip(own["label"], own["method"], strict=True)), FULL) for _, own in groups]
        found["full_label"] = [labels[0] if labels else None for labels in full]
        known = found.index[found["full_label"].notna()] if found["full_label"].notna().any() else found.index
        runs = cells[cells["label"].isin(self.labels_to_compare)].drop_duplicates([*TASK, "label"]).set_index(TASK)
        runs = runs[runs.index.isin(known)]
        tasks_of = runs["label"].value_counts()
        common = tasks_of.index[2 * tasks_of >= tasks_of.max()]
        found["labels"] = runs["label"].isin(common).groupby(TASK).sum().reindex(found.index, fill_value=0)
        enough = found.index[2 * found["labels"] >= len(common)].intersection(known)
        found["compared"] = found.index.isin(enough if len(enough) else known)
        return found

    @property
    def batch_sizes(self) -> list[int]:
        """The batch sizes that were timed, rows in step."""
        return sorted(map(int, self.times.loc[~self.times["regroups"].astype(bool), "batch_size"].unique()))

    def file_name_of(self, task: tuple[str, str]) -> str:
        """Return a task's name for files and labels, with the backbone where there are several."""
        several = self.tasks.index.unique("backbone").size > 1
        return "-".join(map(folder_name, task if several else task[:1]))

    @cached_property
    def _columns(self) -> dict[Any, NDArray[Any]]:
        return {name: values.to_numpy() for name, values in self.knobs.items()}

    def column(self, name: str) -> NDArray[Any]:
        """Return a column of :attr:`knobs` as an array."""
        return self._columns[name]

    def predictions(self, cell: int) -> Columns | None:
        """Return the columns of a cell's test rows, in order; None where they cannot be read."""
        if cell not in self._predictions:
            try:
                table = self.cells[cell].table(PREDICTIONS_FILE, own_types=False)
            except UserError:  # the rows are gone; what the record holds still stands
                table = None
            # A DataFrame would take twice as long.
            columns = None if table is None else {name: table[name].to_numpy() for name in table.column_names}
            self._predictions[cell] = columns
        return self._predictions[cell]

    def answers(self, knob: Any, measure: str | None = None) -> Answers | None:
        """Return labels and answers of the test rows at a line of :attr:`knobs`; None where they were not kept.

        ``measure`` is, in generation, the score of texts; by default the task's.
        """
        columns = self.predictions(int(self.column("cell")[knob]))
        if columns is None:
            return None
        point, hull = self.column("point")[knob], self.column("hull")[knob]
        if self.kind == "generation":
            return _texts(columns, f"{measure or self.column('metric')[knob]}_{point:.0f}", measure)
        exits = None
        if point >= 0:
            exits = columns.get(f"exit_layer_{point:.0f}")
        elif hull >= 0:
            exits = columns.get(f"hull_exit_layer_{hull:.0f}")
        elif self.column("validation_layers")[knob] >= self.column("num_layers")[knob]:
            # All validation rows run all layers: the answers are those of the last exit, but for a few test rows. In a
            # cascade it lies beyond the layers of the stock model.
            last = sum(name.startswith("layer_prediction_") for name in columns)
            exits = np.full(len(columns["label"]), last)
        answers = None if exits is None else _answers_at(columns, exits)
        return None if answers is None else (columns["label"], answers)

    def answers_at(self, knobs: Iterable[Any], measure: str | None = None) -> Answers | None:
        """Return labels [rows] and answers [knobs, rows] at some knobs; None unless all are known, of the same rows."""
        found = [self.answers(knob, measure) for knob in knobs]
        known = [answers for answers in found if answers is not None]
        if len(known) < len(found) or not all(np.array_equal(known[0][0], labels) for labels, _ in known):
            return None
        return known[0][0], np.stack([answers for _, answers in known])

    def full_answers(self, task: tuple[str, str], seed: int, measure: str | None = None) -> Answers | None:
        """Return the same of the full model trained with a seed."""
        key = (*task, self.tasks.loc[task, "full_label"], seed)
        own = [number for number, r in enumerate(self.records) if (r.task, r.backbone, r.label, r.seed) == key]
        if self.kind == "classification" and own:
            return self.answers(self.knobs.index[self.knobs["cell"] == own[-1]][-1])
        columns = self.predictions(own[0]) if own else None
        if columns is None:
            return None
        if measure in (TO_FULL, MATCH):
            return columns["row"], np.ones(len(columns["row"]))
        return _texts(columns, f"full_{measure or self.records[own[0]].metric}", measure)

    def full_scores(self, measure: str | None = None) -> pd.Series:
        """Return the full model's score by task, backbone and seed (-1: the mean of its seeds)."""
        full = self.tasks["full_label"]
        own = [r for r in self.records if full[r.task, r.backbone] == r.label]
        lines = [(r.task, r.backbone, seed, _full_score(r, measure)) for r in own for seed in (r.seed, -1)]
        scores = pd.DataFrame(lines, columns=[*TASK, "seed", "score"]).astype({"score": float})
        return scores.groupby([*TASK, "seed"])["score"].mean()

    def only(self, labels: Collection[str] | None = None, tasks: Collection[str] | None = None) -> "Results":
        """Return the results of some labels (or all of a method) and tasks; the full model always stays.

        Raises UserError for a label or a task that is not there.
        """
        for task in tasks or ():
            if task not in (known := {record.task for record in self.records}):
                raise unknown_name("task in these results", task, known)
        named = {record.label for record in self.records}
        for label in labels or ():
            if label not in (known := named | set(self.methods.values())):
                raise unknown_name("method in these results", label, known)
        whole_methods = {FULL, MAJORITY, *(label for label in labels or () if label not in named)}

        def stays(record: BaseRecord) -> bool:
            names = {role_of(record.method), record.method} & whole_methods
            of_label = labels is None or record.label in labels or bool(names)
            return of_label and (tasks is None or record.task in tasks)

        return self.with_cells([cell for cell in self.cells if stays(cell.record)])

    def with_cells(self, cells: Iterable[StoredCell]) -> "Results":
        """Return the same results with other cells."""
        return replace(self, cells=list(cells))


def load_results(
    folder: Path | str, labels: Collection[str] | None = None, tasks: Collection[str] | None = None
) -> Results:
    """Read a results folder, of a run or published; only some labels and tasks if given, see :meth:`Results.only`.

    Raises UserError if there are no results that can be read, or none of a label or task.
    """
    root = Path(folder)
    found = open_results(root)
    if not found.cells:
        raise UserError(f"{found.faults[0]}, and {root} holds no other finished cell; run the suite again")
    results = Results(root, found.kind, found.cells, list(found.timings.values()), list(map(str, found.faults)))
    return results.only(labels, tasks)


def protocol(record: BaseRecord) -> dict[str, object]:
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
    cells: dict[tuple[str, ...], list[StoredCell]] = {}
    owners: dict[tuple[str, str], tuple[Path, dict[str, object]]] = {}
    faults = dict.fromkeys(fault for results in found for fault in results.faults)
    for results in found:
        taken = set(cells)
        for cell in results.cells:
            record = cell.record
            task, own = (record.task, record.backbone), protocol(record)
            curve = (*task, record.label, str(record.seed))
            owner, wanted = owners.setdefault(task, (results.folder, own))
            other = [name for name, value in own.items() if value != wanted[name]]
            if other and owner != results.folder:
                words = " and ".join(other)
                faults[f"{', '.join(task)} of {results.folder} differs from that of {owner} in {words}"] = None
            elif curve not in taken:
                cells.setdefault(curve, []).append(cell)
    kept = [cell for of_curve in cells.values() for cell in of_curve]
    keys = {cell.record.key for cell in kept}
    timings = [t for results in found for t in results.timings if any(c.cell_key in keys for c in t.contenders)]
    return Results(found[0].folder, found[0].kind, kept, timings, list(faults))


def role_of(method: str) -> str:
    """Return the name of a reference whatever its rows are (``token-static`` is ``static``), else the method's own."""
    role = method.removeprefix("token-")
    return role if role in (FULL, *REFERENCES) else method


def labels_of_role(methods: Mapping[str, str], role: str) -> list[str]:
    """Return the labels of a role; the one under its method's own name is first."""
    found = [label for label, method in methods.items() if role_of(method) == role]
    return sorted(found, key=lambda label: (label != methods[label], label))


def is_core(method: str) -> bool:
    """Return whether a method is ConsistentEE or a variant of it."""
    return method.startswith(CORE_METHOD)


def varied_parameters(records: Sequence[BaseRecord]) -> list[str]:
    """Return of every record the parameters that differ among the cells of its label: ``alpha=0.05``."""
    frame = pd.DataFrame([{name: repr(value) for name, value in record.parameters.items()} for record in records])
    curves = [[getattr(record, name) for record in records] for name in CURVE]
    varied = frame.groupby(curves).transform("nunique", dropna=False).to_dict("records")
    return [
        ", ".join(
            f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in sorted(record.parameters.items())
            if different[name] > 1
        )
        for record, different in zip(records, varied, strict=True)
    ]


def parameters_in_words(record: BaseRecord) -> str:
    """Return all parameters as text: ``alpha=0.05, epochs=3``."""
    return ", ".join(f"{name}={value}" for name, value in sorted(record.parameters.items()))


def _knob_lines(number: int, record: Any) -> Iterator[_Line]:
    common: _Line = {name: getattr(record, name) for name in (*CURVE, "method", "seed", "key", "knob_name", "metric")}
    common |= {"cell": number, "num_layers": record.num_layers, "parameters": parameters_in_words(record)}
    points = {point.knob: (place, point) for place, point in enumerate(record.operating_points)}
    hull = {point.place: (place, point) for place, point in enumerate(getattr(record, "hull", []))}
    of_instances = isinstance(record, CellRecord)
    for place, validation in enumerate(record.curve_validation):
        point_number, point = points.get(validation.knob, (np.nan, None))
        hull_number, on_hull = hull.get(place, (np.nan, None))
        line = common | {
            "place": place,
            "knob": validation.knob,
            "validation_layers": validation.average_layers,
            "validation_quality": validation.scores[record.metric] if of_instances else validation.agreement,
            "point": point_number,
            "hull": hull_number,
            "targets": () if point is None else tuple(point.targets),
        }
        if of_instances:
            line |= _test_of_instances(record, record.curve_test[place], point, on_hull)
        elif point is not None:
            line |= _test_of_texts(point, record.metric)
        yield line


def _test_of_instances(record: CellRecord, test: CurvePoint, point: OperatingPoint | None, on_hull: Any) -> _Line:
    line: _Line = {**test.scores, "layers": test.average_layers, "score": test.scores[record.metric]}
    line["exit_histogram"] = test.exit_histogram
    if on_hull is not None:
        line["flops_ratio"] = record.full_flops / on_hull.flops
    if point is not None:
        line["score_low"], line["score_high"] = point.score_interval
        line |= {name: getattr(point, name) for name in ("flops", "live_rows", "live_disagreements")}
        line["full_flops"] = record.full_flops
        line["flops_ratio"] = record.full_flops / point.flops if point.flops else np.nan
    return line


def _test_of_texts(point: DecodingPoint, metric: str) -> _Line:
    means = {**point.scores, TO_FULL: point.full_text_score, MATCH: point.token_match, "score": point.scores[metric]}
    line: _Line = {}
    for name, mean in means.items():
        line |= dict(zip((name, f"{name}_low", f"{name}_high"), (mean.value, *mean.interval), strict=True))
    drafts, chosen = point.speculation, point.validation.draft
    return line | {
        "layers": point.average_layers,
        "exit_histogram": point.exit_histogram,
        NATS: np.nan if point.references is None else point.references.nats,
        "flops": point.decode_flops,
        "full_flops": point.full_decode_flops,
        "flops_ratio": point.full_decode_flops / point.decode_flops if point.decode_flops else np.nan,
        "accepted": np.nan if drafts is None else drafts.accepted,
        "drafted": np.nan if drafts is None else drafts.drafted,
        "draft": "" if chosen is None else f"drafts of {chosen[0]}" + (f" above {chosen[1]:g}" if chosen[1] else ""),
    }


_TIME_COLUMNS = [
    *("task", "backbone", "seed", "timing", "label", "key", "knob", "layers", "batch_size", "in_flight", "regroups"),
    *("round", "seconds", "rows", "head_seconds", "completed_seconds"),
]


def _time_lines(timings: Iterable[Any]) -> Iterator[_Line]:
    """Yield a line for everything that was timed, batch size and round; the stock model has no key."""
    for number, timing in enumerate(timings):
        of_task = {name: getattr(timing, name) for name in (*TASK, "seed")} | {"timing": number}
        for one in timing.contenders:
            line = of_task | {"label": one.label, "key": one.cell_key, "knob": one.knob, "layers": one.average_layers}
            for sample in one.samples:
                line |= {"batch_size": sample.batch_size, "in_flight": sample.in_flight or sample.batch_size}
                line["regroups"] = sample.in_flight is not None  # it is compared with no other batch of its size
                for place, seconds in enumerate(sample.round_seconds):
                    yield line | {"round": place, "seconds": seconds} | _sample(sample, place)


def _sample(sample: TimingSamples | DecodingSamples, place: int) -> _Line:
    if isinstance(sample, TimingSamples):  # every second is spent on layers and exits
        return {"rows": sample.rows, "head_seconds": 0.0, "completed_seconds": []}
    head = sum(sample.head_seconds[place]) / sum(sample.decoded_tokens) if sample.head_seconds else np.nan
    completed = sample.completed_seconds[place] if sample.completed_seconds else []
    line: _Line = {"rows": sample.prompts, "head_seconds": head, "completed_seconds": completed}
    return line | ({} if sample.layers_a_token is None else {"layers": sample.layers_a_token})


def first_timings(times: pd.DataFrame) -> pd.DataFrame:
    """Keep of every knob the first timing that has it: the latest one, in the order of the store."""
    return times[times["timing"] == times.groupby(["key", "knob"])["timing"].transform("min")]


def _with_clocks(knobs: pd.DataFrame, times: pd.DataFrame, of_instances: bool) -> pd.DataFrame:
    """Add the medians over rounds, rows in step: ``speedup_b1`` (stock model / here), ``seconds_b1`` and so on.

    The timed instances, a few of the test rows, run a little more or less layers than all: a time counts in proportion.
    """
    timed = first_timings(times[(times["key"] != "") & ~times["regroups"].astype(bool)])
    if timed.empty:
        return knobs
    timed = timed.assign(speedup=timed["stock_seconds"] / timed["seconds"])
    clocks = timed.groupby(["key", "knob", "batch_size"])[["speedup", "seconds"]].median().unstack()
    clocks.columns = [f"{name}_b{size}" for name, size in clocks.columns]
    clocks["timed_layers"] = timed.groupby(["key", "knob"])["layers"].first()
    found = knobs.merge(clocks.reset_index(), on=["key", "knob"], how="left")
    share = found.pop("timed_layers") / found["layers"]
    if of_instances:
        for name in clocks.columns.drop("timed_layers"):
            found[name] *= share if name.startswith("speedup") else 1 / share
    return found


def _texts(columns: Columns, name: str, measure: str | None) -> Answers | None:
    sizes = "reference_tokens" if measure == NATS else "row"
    if name not in columns or sizes not in columns:
        return None
    return columns[sizes].astype(float), columns[name].astype(float)


def _answers_at(columns: Columns, exits: NDArray[Any]) -> NDArray[Any] | None:
    """Return the answer of each row at the layer where it exits; None if the answers of a layer were not kept."""
    layers = [columns.get(f"layer_prediction_{layer + 1}") for layer in range(int(exits.max()))]
    known = [answers for answers in layers if answers is not None]
    return np.stack(known)[exits.astype(int) - 1, np.arange(exits.size)] if len(known) == len(layers) else None


def _full_score(record: Any, measure: str | None) -> float:
    if isinstance(record, CellRecord):
        return record.curve_test[-1].scores[record.metric]
    if measure == NATS:
        return np.nan if record.full_reference_nats is None else float(record.full_reference_nats)
    return 1.0 if measure in (TO_FULL, MATCH) else float(record.full_scores[measure or record.metric].value)
