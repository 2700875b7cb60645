"""Methods at equal cost: two knobs of the validation hull, mixed to meet a budget, and scored on test rows.

The weight is set so that the layers of the test rows meet the budget exactly, which reads no label, and full depth is
always the last vertex of the hull: all methods cost the same. A row takes the first knob with a fixed probability,
whatever its answer. "The best knob within a budget" would score a method that has no knob just below it far too low.

In generation a row is a prompt, costs are a decoded token's, and the hull is that of the knobs that test prompts were
decoded with: each half of the prompts is scored at the mixture that the other half has chosen (Stone, JRSS B 36, 1974),
since few validation prompts are replayed and none decoded. Times are those of the mixture of all prompts.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd

from benchmarks.analysis import statistics
from benchmarks.analysis.frames import (
    CURVE,
    NATS,
    REFERENCES,
    STATIC,
    TASK,
    Answers,
    Results,
    labels_of_role,
    role_of,
)
from benchmarks.analysis.statistics import Floats, interval
from benchmarks.specs.knob_choice import ROUNDING, Mixture, Reach, concave_hull, mixture_that_pays
from benchmarks.store.records import CellRecord

Task = tuple[str, str]
"""A task and a backbone."""

LAYERS = "layers"
"""The cost that is compared unless another is named."""
RESAMPLES = 10_000
BOUNDS = ("low", "high", "low_tasks", "high_tasks")
"""The 95% interval over these tasks, and the one when tasks are resampled, too."""
HEADLINE = (
    *("method", "exits", "budget", "points", *BOUNDS, "own_last_exit", "score"),
    *("layers", "flops_ratio", "training_cost", "seeds", "tasks"),
)
"""The first columns of the headline; docs/results.md explains them."""
ONE_LAYER = " at one layer"
"""Behind a label: its own exits with all rows at the layer of the budget, to tell what its exit rule gains."""


def _mixtures(results: Results, speedups: Sequence[float], cost: str) -> pd.DataFrame:
    """Choose a mixture of lines of ``knobs`` for every task, label, seed and speed-up.

    Columns: ``mixture``; ``halves``, the mixtures that each half of the prompts is scored at (without halves, the same
    twice); ``halved``, whether halves have chosen for each other; and ``deepest``, the line of full depth.
    """
    knobs, in_layers, of_texts = results.knobs, cost == LAYERS, results.kind == "generation"
    lines: list[dict[str, Any]] = []
    columns = [*CURVE, "seed", "speedup", "mixture", "halves", "halved", "deepest"]
    if cost not in knobs:
        return pd.DataFrame(columns=columns)
    known = knobs[knobs["layers"].notna() & knobs[cost].notna()]
    all_costs = results.column("validation_layers") if in_layers else 1 / results.column(cost)
    for key, group in known.groupby([*CURVE, "seed"], sort=False)["layers"]:
        index = group.index.to_numpy()
        costs = all_costs[index]
        quality = results.column("score" if of_texts else "validation_quality")[index]
        paid = group.to_numpy() if in_layers else costs
        deepest = int(np.lexsort((-quality, -costs))[0])
        texts = results.answers_at(index) if of_texts else None
        halved = texts is not None and len(texts[0]) > 1
        # Prompts 0, 2, ... are scored at what 1, 3, ... have chosen, and the reverse.
        chosen_by = [texts[1][:, half::2].mean(axis=1) for half in (1, 0)] if halved and texts else []
        hulls = [concave_hull(costs, scores) for scores in (quality, *chosen_by)]
        # Full depth is the last vertex, with which a method below a budget is mixed.
        hulls = [np.append(h, deepest) if costs[deepest] > costs[h[-1]] + ROUNDING else h for h in hulls]
        full_cost = float(results.column("num_layers")[index[0]]) if in_layers else 1.0
        for speedup in speedups:
            mixture, *halves = [mixture_that_pays(full_cost / speedup, costs, paid, hull, index) for hull in hulls]
            chosen = (speedup, mixture, halves or [mixture, mixture], halved, index[deepest])
            lines.append(dict(zip(columns, (*key, *chosen), strict=True)))
    return pd.DataFrame(lines, columns=columns)


def _mixed(mixtures: Iterable[Mixture], values: Floats) -> Floats:
    """Mix values of the lines of ``knobs``, for many mixtures at once."""
    parts = [(mixture.first, mixture.second, mixture.weight) for mixture in mixtures]
    first, second, weight = np.array(parts, dtype=float).reshape(-1, 3).T
    return np.asarray(weight * values[first.astype(int)] + (1 - weight) * values[second.astype(int)])


class EqualCost:
    """Every method of some results at equal cost.

    Args:
        results: what is compared, of one kind.
        speedups: budgets, as full cost / cost; by default those of the kind.
        cost: ``layers``; or a column of ``knobs`` with ratios full cost / cost.
        measure: see :meth:`Results.answers`.
    """

    def __init__(
        self,
        results: Results,
        speedups: Sequence[float] | None = None,
        *,
        cost: str = LAYERS,
        measure: str | None = None,
    ) -> None:
        self.results, self.measure = results, measure
        self.speedups = tuple(results.speedups if speedups is None else speedups)
        self._mixtures = _mixtures(results, self.speedups, cost)
        self._samples: dict[Task, dict[tuple[Any, ...], Floats]] = {}
        self._ratios = [str(name) for name in results.knobs if str(name).startswith(("flops_ratio", "speedup_b"))]

    @property
    def middle(self) -> float:
        """The budget that tables are sorted by."""
        return self.speedups[len(self.speedups) // 2]

    @cached_property
    def per_seed(self) -> pd.DataFrame:
        """The points of every label on every task with every seed.

        Columns: ``task``, ``backbone``, ``label``, ``seed``, ``speedup``, ``score``, ``points`` (score minus the full
        model's of the same seed, as a share: 0.01 is a point), ``own_last_exit`` (points against it), ``rule_gain``
        (against the method's own exit at the layer of the budget), ``full``, ``layers`` of test rows, ``reach``, and
        ratios full model / here: ``flops_ratio``, ``speedup_b1``, ....
        """
        frame, results = self._mixtures, self.results
        score = results.column(self.measure or "score").astype(float)
        full = results.full_scores(self.measure).to_dict()
        keys = zip(frame["task"], frame["backbone"], frame["seed"], strict=True)
        found = frame[[*CURVE, "seed", "speedup"]].assign(
            score=[self._score(line) for line in frame[["mixture", "halves", "halved"]].to_dict("records")],
            full=np.array([full.get(key, full.get((*key[:2], -1), np.nan)) for key in keys], dtype=float),
            layers=self._on_test_rows(results.column("layers")),
            reach=[mixture.reach for mixture in frame["mixture"]],
        )
        found["points"] = found["score"] - found["full"]
        found["own_last_exit"] = found["score"] - score[frame["deepest"].to_numpy(int)]
        found["rule_gain"] = found["score"] - [self._score_at_one_layer(line) for line in frame.to_dict("records")]
        at_full_depth = results.column("validation_layers") >= results.column("num_layers")
        for name in self._ratios:
            values = results.column(name)
            # Full depth that was not counted or timed counts as the full model.
            shares = 1 / np.where(np.isnan(values) & at_full_depth, 1.0, values)
            mixed = self._on_test_rows(shares) if name == "flops_ratio" else _mixed(frame["mixture"], shares)
            found[name] = 1 / mixed
        return found

    def _on_test_rows(self, values: Floats) -> Floats:
        """Mix values of the lines of ``knobs``; each half of the prompts counts half."""
        halves = self._mixtures["halves"]
        return (_mixed(halves.str[0], values) + _mixed(halves.str[1], values)) / 2

    def _metric(self, knob: int) -> str:
        if self.results.kind == "generation":
            return statistics.MEAN_BY_SIZE if self.measure == NATS else statistics.MEAN
        return str(self.results.column("metric")[knob])

    def _score(self, line: Mapping[Any, Any]) -> float:
        """Score a mixture on the weighted sample of both knobs' answers; of means over rows, that is their mixture."""
        mixture = line["mixture"]
        metric = self._metric(mixture.first)
        of_means = metric in ("accuracy", statistics.MEAN, statistics.MEAN_BY_SIZE) or mixture.first == mixture.second
        rows = self._answers(line) if line["halved"] or not of_means else None
        if rows is None:
            return mixture.of(self.results.column(self.measure or "score"))
        return statistics.score_of_mixture(metric, rows[0], (rows[1][0], rows[1][1]), mixture.weight)

    def _at_one_layer(self, line: Mapping[Any, Any]) -> Answers | None:
        """Return labels and answers of the exit at the layer of the budget, of the cell with the line's full depth."""
        cell, depth = (int(self.results.column(name)[line["deepest"]]) for name in ("cell", "num_layers"))
        columns, layer = self.results.predictions(cell) or {}, depth / line["speedup"]
        answers = columns.get(f"layer_prediction_{layer:g}")
        return None if answers is None else (columns["label"], answers)

    def _score_at_one_layer(self, line: Mapping[Any, Any]) -> float:
        if (rows := self._at_one_layer(line)) is None:
            return np.nan
        return statistics.score_of_mixture(self._metric(line["deepest"]), rows[0], (rows[1], rows[1]))

    def _answers(self, line: Mapping[Any, Any]) -> Answers | None:
        """Return labels [N] and the answers [2, N] that are mixed; of halves, twice the scores of mixed prompts."""
        knobs = [knob for half in line["halves"] for knob in (half.first, half.second)]
        rows = self.results.answers_at(knobs if line["halved"] else knobs[:2], self.measure)
        if rows is None or not line["halved"]:
            return rows
        mixed = np.empty(len(rows[0]))
        for half, mixture in enumerate(line["halves"]):
            first, second = rows[1][2 * half : 2 * half + 2, half::2]
            mixed[half::2] = mixture.weight * first + (1 - mixture.weight) * second
        return rows[0], np.stack([mixed, mixed])

    @cached_property
    def by_task(self) -> pd.DataFrame:
        """The means over seeds: a line for every task, label and speed-up.

        Columns: ``score``, ``full``, ``points``, ``own_last_exit``, ``rule_gain``, ``layers``, ``kept`` (score as a
        share of the full model's), ``seeds``, ``over``, ``under``, ``flops_ratio`` (NaN unless known of all seeds) and
        ``speedup_b1``, ... (of the seeds that were timed), geometric means.
        """
        ratios = self._ratios
        frame = self.per_seed.assign(
            over=self.per_seed["reach"] == Reach.OVER,
            under=self.per_seed["reach"] == Reach.UNDER,
            **{name: np.log(self.per_seed[name]) for name in ratios},
        )
        groups = frame.groupby([*CURVE, "speedup"], sort=False)
        found = groups[["score", "full", "points", "own_last_exit", "rule_gain", "layers"]].mean()
        found["kept"] = found["score"] / found["full"].where(found["full"] != 0)
        found["seeds"] = groups["seed"].nunique()
        found[["over", "under"]] = groups[["over", "under"]].any()
        found[ratios] = np.exp(groups[ratios].mean())
        if "flops_ratio" in ratios:
            found["flops_ratio"] = found["flops_ratio"].where(groups["flops_ratio"].count() == groups.size())
        return found.reset_index()

    def samples(self, task: Task, label: str, speedup: float, seeds: Collection[int] | None = None) -> Floats | None:
        """Return bootstrap samples of the points of a label on a task, over rows and seeds: [RESAMPLES].

        The same rows and seeds are drawn for all labels of a task, so that differences are paired. A seed without a
        full model is compared with the mean of those of other seeds, as in :attr:`per_seed`. None where the answers of
        some knob, or of all full models, were not kept, and for a score of ranks.
        """
        wanted = [seed for seed in self._seeds.get((*task, label), []) if seeds is None or seed in seeds]
        if task not in self._samples:
            self._samples[task] = self._resampled(task)
        found = [self._samples[task][key] for seed in wanted if (key := (label, speedup, seed)) in self._samples[task]]
        if not found or len(found) < len(wanted):
            return None
        return statistics.mean_over_drawn_seeds(np.stack(found), seed=crc32(f"{task[0]} {task[1]}".encode()))

    @cached_property
    def _seeds(self) -> dict[Any, list[int]]:
        found = {key: sorted(set(seeds)) for key, seeds in self._mixtures.groupby(CURVE)["seed"]}
        return found | {(*task, label + ONE_LAYER): seeds for (*task, label), seeds in found.items()}

    def _resampled(self, task: Task) -> dict[tuple[Any, ...], Floats]:
        """Resample a task by one matrix product over all answers that are mixed: samples by label, speed-up, seed."""
        of_task = (self._mixtures["task"] == task[0]) & (self._mixtures["backbone"] == task[1])
        lines = self._mixtures[of_task].to_dict("records")
        full = {seed: self.results.full_answers(task, seed, self.measure) for seed in {line["seed"] for line in lines}}
        known = {seed: rows for seed, rows in full.items() if rows is not None}
        if not known:
            return {}
        metric, labels = self._metric(lines[0]["mixture"].first), next(iter(known.values()))[0]
        known = {seed: rows for seed, rows in known.items() if np.array_equal(labels, rows[0])}
        if not statistics.can_resample(metric, labels):
            return {}
        # By their bytes: many knobs give the same answers, which are resampled once.
        answers = {rows[1].tobytes(): rows[1] for rows in known.values()}
        mixtures: dict[tuple[Any, ...], tuple[bytes, bytes, float]] = {}
        for line in lines:
            rows = self._answers(line)
            if rows is None or not np.array_equal(labels, rows[0]):
                continue
            first, second = (one.tobytes() for one in rows[1])
            answers |= {first: rows[1][0], second: rows[1][1]}
            mixtures[line["label"], line["speedup"], line["seed"]] = first, second, line["mixture"].weight
            if (own := self._at_one_layer(line)) is not None:
                answers[key := own[1].tobytes()] = own[1]
                mixtures[line["label"] + ONE_LAYER, line["speedup"], line["seed"]] = key, key, 1.0
        terms = np.stack([statistics.terms_of(metric, labels, one) for one in answers.values()])
        means = dict(zip(answers, statistics.resampled_means(terms, resamples=RESAMPLES), strict=True))
        of_full = {seed: statistics.score_of_means(metric, means[rows[1].tobytes()]) for seed, rows in known.items()}
        of_any_seed: Floats = np.mean(list(of_full.values()), axis=0)
        found: dict[tuple[Any, ...], Floats] = {}
        for curve, (first, second, weight) in mixtures.items():
            mixed = weight * means[first] + (1 - weight) * means[second]
            found[curve] = statistics.score_of_means(metric, mixed) - of_full.get(curve[-1], of_any_seed)
        return found

    def with_intervals(self, found: pd.DataFrame) -> pd.DataFrame:
        """Add ``low`` and ``high``, the 95% interval of the points, to lines of :attr:`by_task`."""
        keys = found[[*CURVE, "speedup"]].itertuples(index=False)
        samples = [self.samples((task, backbone), label, speedup) for task, backbone, label, speedup in keys]
        bounds = [(np.nan, np.nan) if sample is None else interval(sample) for sample in samples]
        return found.assign(low=[low for low, _ in bounds], high=[high for _, high in bounds])

    @cached_property
    def signs(self) -> pd.Series:
        """Comparisons of the lines of :attr:`by_task` with a static exit.

        1 is significantly better, -1 worse, 0 neither; NaN unknown, and of tasks that are not compared. What costs more
        than the budget is never better.
        """
        static = next(iter(labels_of_role(self.results.methods, STATIC)), "")
        signs = pd.Series(np.nan, self.by_task.index)
        for line, task, backbone, label, speedup, over in self.by_task[[*CURVE, "speedup", "over"]].itertuples():
            known = label != static and (task, backbone, static) in self._seeds and (task, backbone) in self.compared
            samples = self.difference((task, backbone), label, static, speedup)[1] if known else None
            if samples is not None:
                low, high = interval(samples)
                signs[line] = int(low > 0 and not over) - int(high < 0)
        return signs

    @cached_property
    def compared(self) -> list[Task]:
        """The tasks that means are over."""
        tasks = self.results.tasks
        return [(str(task), str(backbone)) for task, backbone in tasks.index[tasks["compared"]]]

    @cached_property
    def headline(self) -> pd.DataFrame:
        """The lines of :attr:`means` with ``better_than_static`` and ``worse_than_static``: on how many tasks."""
        better, worse = (self.signs == 1).rename("better_than_static"), (self.signs == -1).rename("worse_than_static")
        keys = [self.by_task["label"].rename("method"), self.by_task["speedup"].rename("budget")]
        counts = pd.concat([better, worse], axis=1).groupby(keys).sum()
        counts = counts.where(self.signs.groupby(keys).count() == len(self.compared))
        return self.means.merge(counts.reset_index(), on=["method", "budget"], how="left")

    @cached_property
    def means(self) -> pd.DataFrame:
        """Points of every label at every budget, means over the tasks that (nearly) all labels were run on.

        A line for every label that has all these tasks, best at the middle budget first, then those over the budget.
        Columns: those of :data:`HEADLINE`; ``kept`` in percent; ``knobs`` that differ in layers, a median number;
        ``rule_gain``, ``rule_low``, ``rule_high``; ``over`` and ``under`` (the budget); ratios, geometric means.
        """
        found = self.by_task.merge(self.training_costs, on=CURVE, how="left")
        of_compared = pd.MultiIndex.from_frame(found[TASK]).isin(self.compared)
        found = found[of_compared & found["label"].isin(self.results.labels_to_compare)]
        found = found[found.groupby("label")["task"].transform("size") == len(self.compared) * len(self.speedups)]
        found = found.rename(columns={"label": "method", "speedup": "budget"})
        groups = found.groupby(["method", "budget"])
        means = 100 * groups[["points", "own_last_exit", "score"]].mean()
        for name in ("kept", "rule_gain"):
            means[name] = 100 * groups[name].agg(lambda values: values.mean(skipna=False))
        means["training_cost"] = groups["training_cost"].agg(lambda costs: costs.mean(skipna=False))
        means[["tasks", "seeds"]] = groups.agg(tasks=("task", "size"), seeds=("seeds", "min"))
        means["layers"] = groups["layers"].mean()
        means[["over", "under"]] = groups[["over", "under"]].any()
        for name in self._ratios:
            means[name] = np.exp(groups[name].agg(lambda ratios: np.log(ratios).mean(skipna=False)))
        bounds = [self._bounds(label, budget) for label, budget in means.index]
        means[[*BOUNDS, "rule_low", "rule_high"]] = np.array(bounds, dtype=float).reshape(-1, 6)
        means = means.reset_index()
        knobs = self.results.knobs
        knobs = knobs[pd.MultiIndex.from_frame(knobs[TASK]).isin(self.compared)]
        layers = knobs.groupby([*CURVE, "seed"])["layers"]
        means["knobs"] = means["method"].map(layers.nunique().groupby("label").median())
        means["exits"] = means["method"].map(exit_networks(self.results.records))
        middle = means[means["budget"] == self.middle].fillna({"points": means["score"]})
        middle = middle.sort_values(["over", "points"], ascending=[True, False], kind="stable")
        place = {label: number for number, label in enumerate(middle["method"])}
        order = means.assign(place=means["method"].map(place)).sort_values(["place", "budget"]).drop(columns="place")
        return order[[*HEADLINE, *(name for name in order if name not in HEADLINE)]].reset_index(drop=True)

    @cached_property
    def training_costs(self) -> pd.DataFrame:
        """The cost of training every label on every task, as a multiple of the full model's with the same seed.

        Columns: ``task``, ``backbone``, ``label`` and ``training_cost``, a mean over the seeds of which it is known.
        Cost is that of :class:`consistentee.training.loop.TrainingLog`, of one model: the mean over a grid's cells.
        """
        lines = [(r.task, r.backbone, r.label, r.seed, r.trained_rows) for r in self.results.records]
        rows = pd.DataFrame(lines, columns=[*CURVE, "seed", "rows"]).astype({"rows": float})
        rows = rows.groupby([*CURVE, "seed"])["rows"].agg(lambda known: known.mean(skipna=False)).reset_index()
        full = self.results.tasks["full_label"].rename("label").reset_index()
        of_full = rows.merge(full, on=CURVE).drop(columns="label")
        found = rows.merge(of_full, on=[*TASK, "seed"], suffixes=("", "_of_full"))
        found["training_cost"] = found["rows"] / found["rows_of_full"].where(found["rows_of_full"] > 0)
        return found.groupby(CURVE)["training_cost"].mean().reset_index()

    def _bounds(self, label: str, budget: float) -> list[float]:
        """Compute the intervals over the compared tasks, over any task, and of the rule's gain; NaN where unknown."""
        points, own = (
            _of_all([self.samples(task, name, budget) for task in self.compared]) for name in (label, label + ONE_LAYER)
        )
        return [*_intervals(points), *_intervals(None if points is None or own is None else points - own)[:2]]

    def difference(self, task: Task, first: str, second: str, budget: float) -> tuple[float, Floats | None]:
        """Return the points of the first label minus the second's on a task, and its samples.

        They are of the seeds that both have, or of all seeds of both if there are none.
        """
        one, other = (set(self._seeds.get((*task, label), [])) for label in (first, second))
        seeds = one & other or one | other
        points, subtracted = (
            np.mean([self._points[key] for seed in seeds if (key := (*task, label, budget, seed)) in self._points])
            for label in (first, second)
        )
        found, others = (self.samples(task, label, budget, seeds) for label in (first, second))
        return float(points - subtracted), None if found is None or others is None else found - others

    @cached_property
    def _points(self) -> dict[Any, float]:
        return self.per_seed.set_index([*CURVE, "speedup", "seed"])["points"].to_dict()

    def contrasts(self, against: str) -> pd.DataFrame:
        """Test the differences of all labels from one at every budget, means over the compared tasks that both ran on.

        A line for each label and budget has ``method``, ``budget``, ``tasks``, ``points``, :data:`BOUNDS`, ``p``,
        ``p_holm`` (corrected for the labels on as many tasks) and ``wins / losses``: on how many tasks the label has
        more points / fewer, as text.
        """
        lines = []
        for label in self.results.labels_to_compare:
            both = {label, against}
            tasks = [task for task in self.compared if {(*task, x) for x in both} <= self._seeds.keys()]
            for budget in self.speedups if tasks and len(both) > 1 else ():
                found = [self.difference(task, label, against, budget) for task in tasks]
                points, samples = np.array([points for points, _ in found]), _of_all([drawn for _, drawn in found])
                p = np.nan if samples is None else statistics.p_value(samples.mean(axis=0))
                signs = f"{(points > 0).sum()} / {(points < 0).sum()}"
                lines.append([label, budget, len(tasks), 100 * points.mean(), *_intervals(samples), p, signs])
        tests = pd.DataFrame(lines, columns=["method", "budget", "tasks", "points", *BOUNDS, "p", "wins / losses"])
        return tests.assign(p_holm=tests.groupby(["budget", "tasks"])["p"].transform(statistics.holm))


def _of_all(samples: Sequence[Floats | None]) -> Floats | None:
    """Stack samples of tasks as points, [tasks, resamples]; None if those of some task are unknown."""
    known = [one for one in samples if one is not None]
    return 100 * np.stack(known) if 0 < len(known) == len(samples) else None


def _intervals(samples: Floats | None) -> list[float]:
    """Compute :data:`BOUNDS` of the mean of samples [tasks, resamples]; NaN where unknown."""
    any_task = None if samples is None else statistics.over_any_task(samples)
    means = [None if samples is None else samples.mean(axis=0), any_task]
    return [bound for mean in means for bound in ((np.nan, np.nan) if mean is None else interval(mean))]


def exit_networks(records: Iterable[Any]) -> dict[str, str]:
    """Name the network of the exits of every label, in classification; references are left out."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        if isinstance(record, CellRecord) and role_of(record.method) not in REFERENCES:
            found.setdefault(record.label, {})[record.exit_network or "not recorded"] = None
    return {label: " / ".join(kinds) for label, kinds in found.items()}


@lru_cache(maxsize=4)
def comparison_of(results: Results) -> EqualCost:
    """Compare all methods of some results at the budgets of their kind, once."""
    return EqualCost(results)


def headline(results: Results) -> pd.DataFrame:
    """Return points against the full model at every budget, means over tasks: see :attr:`EqualCost.headline`."""
    return comparison_of(results).headline
