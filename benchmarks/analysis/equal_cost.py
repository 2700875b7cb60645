"""Methods at equal cost: two knobs of the validation hull, mixed to meet a budget, and scored on test rows.

Knobs are chosen on validation rows. The weight is set so that the layers of the test rows meet the budget exactly,
which reads no label, and full depth is always the last vertex of the hull: all methods cost the same. A row takes the
first knob with a fixed probability, whatever its answer: a rule that anyone can run. "The best knob within a budget"
would score a method that has no knob just below the budget far too low.

In generation a row is a prompt, costs are a decoded token's, and the hull is that of the knobs that test prompts were
decoded with: each half of the prompts is scored at the mixture that the other half has chosen (Stone, JRSS B 36, 1974),
since few validation prompts are replayed and none decoded. Times are those of the mixture of all prompts.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from benchmarks.analysis import statistics
from benchmarks.analysis.frames import (
    CURVE,
    REFERENCES,
    STATIC,
    TASK,
    Answers,
    Results,
    is_core,
    labels_of_role,
    role_of,
)
from benchmarks.analysis.statistics import Floats, interval
from benchmarks.specs.targets import Agreement, Budget, Target
from consistentee.data.metrics import score

Task = tuple[str, str]
"""A task and a backbone."""

ROUNDING = 1e-9
"""Costs and scores are means of counts: what differs by less is equal."""
RESAMPLES = 10_000
PEERS = ("deebert", "pabee", "berxit", "calm-tokens-softmax", "calm-tokens-state", "free")
"""The methods that variants of ConsistentEE are tested against by name, where they were run."""


def choose(
    target: Target, layers: ArrayLike, quality: ArrayLike, *, num_layers: int, reference: float | None = None
) -> int | None:
    """Return the index of the knob that meets a target best, of ``layers`` [K] and ``quality`` [K] on validation data.

    Within a budget: the best quality, of equal ones the fewest layers. For the other targets: the fewest layers of
    those that are good enough, of equal ones the best quality. Of equal knobs the first.

    Args:
        target: what is wanted.
        layers: average layers of each knob.
        quality: of each knob; for an agreement, the share of rows answered as in the full model.
        num_layers: of the stock model, L: budgets are shares of it.
        reference: the score that :class:`PointsLost` is measured against; other targets need none.

    Returns:
        The index, or None if no knob meets the target.
    """
    cost, good = np.asarray(layers, dtype=float), np.asarray(quality, dtype=float)
    cheapest_first = np.lexsort((-good, cost))
    if isinstance(target, Budget):
        return _first(np.lexsort((cost, -good)), cost <= target.layers_at_most * num_layers + ROUNDING)
    if isinstance(target, Agreement):
        return _first(cheapest_first, good >= target.agreement_at_least - ROUNDING)
    if reference is None:
        raise ValueError(f"'{target}' needs the score that points are lost against")
    return _first(cheapest_first, good >= reference - target.lost_at_most - ROUNDING)


def _first(order: NDArray[np.intp], allowed: NDArray[np.bool_]) -> int | None:
    return next((int(index) for index in order if allowed[index]), None)


def choose_all(
    targets: Sequence[Target], layers: ArrayLike, quality: ArrayLike, *, num_layers: int, reference: float | None = None
) -> dict[int, list[Target]]:
    """Choose for several targets: index of the knob -> what it was chosen for, by rising index; see :func:`choose`."""
    chosen: dict[int, list[Target]] = {}
    for target in targets:
        index = choose(target, layers, quality, num_layers=num_layers, reference=reference)
        if index is not None:
            chosen.setdefault(index, []).append(target)
    return dict(sorted(chosen.items()))


class Reach(StrEnum):
    """Whether points can be mixed to a budget."""

    MET = "met"
    OVER = "over"
    """Even the cheapest point costs more; that point is taken."""
    UNDER = "under"
    """Even the best point costs less; that point is taken."""


@dataclass(frozen=True)
class Mixture:
    """Two knobs, the first of which a row takes with probability ``weight``.

    Attributes:
        first, second: indices of the two hull vertices around the budget, the cheaper one first; equal where one knob
            meets it alone, or where it is beyond the ends of the hull.
        weight: share of the first.
        reach: whether the budget is met.
    """

    first: int
    second: int
    weight: float
    reach: Reach = Reach.MET

    def of(self, values: ArrayLike) -> float:
        """Mix values [K] of the points: costs, and scores that are means over rows."""
        known = np.asarray(values, dtype=float)
        return float(self.weight * known[self.first] + (1 - self.weight) * known[self.second])


def concave_hull(costs: ArrayLike, scores: ArrayLike) -> NDArray[np.intp]:
    """Find the points on the upper concave hull, from the cheapest to the best one: what mixing two knobs reaches.

    Points that cost more than the best one are left out. Collinear points and ties are dropped: of points on the line
    between two others the ends are kept, of equal points the first. Differences below :data:`ROUNDING` are none.

    Args:
        costs, scores: [K].

    Returns:
        Indices by rising cost; scores rise too, by less and less per unit of cost.
    """
    cost, score_ = (np.round(np.asarray(values, dtype=float), 9) for values in (costs, scores))
    hull: list[int] = []
    for index in map(int, np.lexsort((-score_, cost))):
        if hull and score_[index] <= score_[hull[-1]] + ROUNDING:
            continue  # dominated
        while len(hull) > 1:
            left, middle = hull[-2], hull[-1]
            slope = (score_[index] - score_[left]) / (cost[index] - cost[left])
            if score_[middle] > score_[left] + slope * (cost[middle] - cost[left]) + ROUNDING:
                break
            hull.pop()
        hull.append(index)
    return np.array(hull, dtype=np.intp)


def mixture_at(budget: float, costs: ArrayLike, scores: ArrayLike) -> Mixture:
    """Find the two points on the concave hull whose mixture costs exactly ``budget``; beyond the hull, its end.

    Args:
        budget: cost that is allowed.
        costs, scores: [K], of every knob of every cell of a method's grid: on validation data, or on texts that are not
            those to be scored.

    Raises:
        ValueError: there are no points.
    """
    hull = concave_hull(costs, scores)
    if hull.size == 0:
        raise ValueError("nothing to mix: there are no points")
    return _on_hull(budget, np.asarray(costs, dtype=float), hull)


def _on_hull(budget: float, cost: Floats, hull: NDArray[np.intp]) -> Mixture:
    place = int(np.searchsorted(cost[hull], budget))
    if place == hull.size:
        end = int(hull[-1])
        return Mixture(end, end, 1.0, Reach.UNDER)
    above = int(hull[place])
    alone = cost[above] <= budget + ROUNDING
    if alone or place == 0:
        return Mixture(above, above, 1.0, Reach.MET if alone else Reach.OVER)
    below = int(hull[place - 1])
    return Mixture(below, above, float((cost[above] - budget) / (cost[above] - cost[below])))


def mixtures(results: Results, speedups: Sequence[float], cost: str = "layers") -> pd.DataFrame:
    """Choose a mixture for every task, label, seed and speed-up.

    Args:
        results: of one kind.
        speedups: budgets, as full cost / cost.
        cost: ``layers``; or a column of ``knobs`` with ratios full cost / cost.

    Returns:
        A line for each, with ``mixture``, the mixtures that rows are ``scored`` at (in generation one for each half of
        the prompts) and ``index``: the lines of ``knobs`` that their numbers mean.
    """
    knobs = results.knobs[results.knobs["layers"].notna()]
    lines: list[dict[str, Any]] = []
    for key, group in knobs.groupby([*CURVE, "seed"], sort=False) if cost in knobs else ():
        known = group if cost == "layers" else group[group[cost].notna()]
        if known.empty:
            continue
        in_layers = cost == "layers"
        costs = known["validation_layers"].to_numpy(float) if in_layers else 1 / known[cost].to_numpy(float)
        texts = _scores_of_texts(results, known.index.to_numpy()) if results.kind == "generation" else None
        quality = known["score"] if results.kind == "generation" else known["validation_quality"]
        paid = known["layers"].to_numpy(float) if in_layers else costs
        deepest = int(np.lexsort((-np.asarray(quality, dtype=float), -costs))[0])
        hull = _to_full_depth(concave_hull(costs, quality), costs, deepest)
        # Prompts 0, 2, ... are scored at what 1, 3, ... have chosen, and the reverse.
        scores = [] if texts is None else [texts[:, half::2].mean(axis=1) for half in (1, 0)]
        of_halves = [_to_full_depth(concave_hull(costs, score_), costs, deepest) for score_ in scores]
        for speedup in speedups:
            budget = (known["num_layers"].iloc[0] if in_layers else 1) / speedup
            mixture = _exactly(budget, costs, paid, hull)
            scored = tuple(_exactly(budget, costs, paid, half) for half in of_halves) or (mixture,)
            line = dict(zip([*CURVE, "seed"], key, strict=True)) | {"speedup": speedup, "mixture": mixture}
            index = known.index.to_numpy()
            lines.append(line | {"scored": scored, "index": index, "deepest": index[deepest]})
    return pd.DataFrame(lines, columns=[*CURVE, "seed", "speedup", "mixture", "scored", "index", "deepest"])


def _to_full_depth(hull: NDArray[np.intp], costs: Floats, deepest: int) -> NDArray[np.intp]:
    """Add full depth as the last vertex of a hull, with which a method below a budget is mixed."""
    return np.append(hull, deepest) if costs[deepest] > costs[hull[-1]] + ROUNDING else hull


def _exactly(budget: float, costs: Floats, paid: Floats, hull: NDArray[np.intp]) -> Mixture:
    """Mix the two vertices around a budget so that test rows pay exactly that.

    The vertices are those around the budget in ``costs``, or the nearest ones around it in what is ``paid``: both
    count layers and read no label.
    """
    place = int(np.clip(np.searchsorted(costs[hull], budget), 1, max(hull.size - 1, 1)))
    while place > 1 and paid[hull[place - 1]] > budget + ROUNDING:
        place -= 1
    while place < hull.size - 1 and paid[hull[place]] < budget:
        place += 1
    below, above = int(hull[place - 1]), int(hull[min(place, hull.size - 1)])
    if paid[below] > budget + ROUNDING:
        return Mixture(below, below, 1.0, Reach.OVER)
    if paid[above] <= budget + ROUNDING:
        reach = Reach.MET if paid[above] >= budget - ROUNDING else Reach.UNDER
        return Mixture(above, above, 1.0, reach)
    return Mixture(below, above, float((paid[above] - budget) / (paid[above] - paid[below])))


def _scores_of_texts(results: Results, index: NDArray[np.intp]) -> Floats | None:
    """Return what every test prompt scores at decoded knobs, [knobs, prompts]; None if unknown."""
    found = _answers_at(results, index)
    return None if found is None or len(found[0]) < 2 else found[1]


def _answers_at(results: Results, index: NDArray[np.intp], measure: str | None = None) -> Answers | None:
    """Return labels [rows] and answers [knobs, rows] at some knobs; None unless all are known, of the same rows."""
    found = [results.answers(knob, measure) for knob in index]
    known = [answers for answers in found if answers is not None]
    if len(known) < len(found) or not all(np.array_equal(known[0][0], labels) for labels, _ in known):
        return None
    return known[0][0], np.stack([answers for _, answers in known])


class EqualCost:
    """Every method of some results at equal cost.

    Args:
        results: what is compared.
        speedups: budgets; by default those of the kind.
        cost, measure: see :func:`mixtures` and :meth:`Results.answers`.
    """

    def __init__(
        self,
        results: Results,
        speedups: Sequence[float] | None = None,
        *,
        cost: str = "layers",
        measure: str | None = None,
    ) -> None:
        self.results, self.measure = results, measure
        self.speedups = tuple(results.speedups if speedups is None else speedups)
        self._mixtures = mixtures(results, self.speedups, cost)
        self._samples: dict[Task, dict[tuple[str, float], dict[int, Floats]]] = {}

    @property
    def middle(self) -> float:
        """The budget that tables are sorted by."""
        return self.speedups[len(self.speedups) // 2]

    @cached_property
    def per_seed(self) -> pd.DataFrame:
        """Compute the points of every label on every task with every seed.

        Columns besides those of :func:`mixtures`: ``score``, ``points`` (score minus the full model's of the same seed,
        as a share: 0.01 is a point), ``full``, ``layers`` of test rows, ``reach``, and costs as shares of the full
        model's: ``share_flops_ratio``, ``share_speedup_b1``, ....
        """
        full = self.results.full_scores(self.measure).to_dict()
        ratios = [str(n) for n in self.results.knobs if str(n).startswith(("flops_ratio", "speedup_b"))]
        values = {name: self.results.column(name) for name in ("layers", *ratios)}
        values["score"] = self.results.column(self.measure or "score")
        depth, lines = self.results.column("num_layers"), []
        for name in ratios:  # full depth that was not counted or timed counts as the full model
            at_full_depth = np.isnan(values[name]) & (self.results.column("validation_layers") >= depth)
            values[name] = np.where(at_full_depth, 1.0, values[name])
        for line in self._mixtures.to_dict("records"):
            task, index, scored = (line["task"], line["backbone"]), line["index"], line["scored"]
            own = full.get((*task, line["seed"]), full.get((*task, -1), np.nan))
            reached = self._score(line)
            costs = {
                f"share_{name}": np.mean(
                    [m.of(1 / values[name][index]) for m in (scored if name == "flops_ratio" else [line["mixture"]])]
                )
                for name in ratios
            }
            layers = np.mean([mixture.of(values["layers"][index]) for mixture in scored])
            reach = line["mixture"].reach
            found = {"score": reached, "full": own, "points": reached - own, "layers": layers, "reach": reach}
            found["own_last_exit"] = reached - values["score"][line["deepest"]]
            lines.append(found | costs)
        return pd.concat([self._mixtures, pd.DataFrame(lines, index=self._mixtures.index)], axis=1)

    def _score(self, line: dict[str, Any]) -> float:
        """Score a mixture on the weighted sample of both knobs' answers; of means over rows, that is their mixture."""
        index, mixture, scored = line["index"], line["mixture"], line["scored"]
        if len(scored) > 1:
            rows = self._texts(line)
            if rows is not None:
                return statistics.score_of_rows(self._metric(line), *rows)
        linear = mixture.of(self.results.column(self.measure or "score")[index])
        metric = self.results.column("metric")[index[0]]
        if self.results.kind == "generation" or metric == "accuracy" or mixture.first == mixture.second:
            return linear
        found = [self.results.answers(index[place]) for place in (mixture.first, mixture.second)]
        if found[0] is None or found[1] is None:
            return linear
        (labels, answers), (other_labels, other_answers) = found[0], found[1]
        shares = np.repeat([mixture.weight, 1 - mixture.weight], [len(labels), len(other_labels)])
        every = np.concatenate([labels, other_labels]), np.concatenate([answers, other_answers])
        return score(metric, *every, shares)

    def _metric(self, line: dict[str, Any]) -> str:
        if self.results.kind == "generation":
            return statistics.MEAN_BY_SIZE if self.measure == "nats" else statistics.MEAN
        return str(self.results.column("metric")[line["index"][0]])

    def _texts(self, line: dict[str, Any]) -> Answers | None:
        """Return labels and scores of prompts, each half at the mixture that the other half has chosen."""
        halves = line["scored"]
        places = sorted({place for mixture in halves for place in (mixture.first, mixture.second)})
        rows = _answers_at(self.results, line["index"][places], self.measure)
        if rows is None:
            return None
        at = dict(zip(places, rows[1], strict=True))
        mixed = np.empty(len(rows[0]))
        for half, mixture in enumerate(halves):
            second = slice(half, None, 2)
            mixed[second] = (
                mixture.weight * at[mixture.first][second] + (1 - mixture.weight) * at[mixture.second][second]
            )
        return rows[0], mixed

    def by_task(self, seeds: Collection[int] | None = None) -> pd.DataFrame:
        """Average over seeds: a line for every task, label and speed-up.

        Columns: ``score``, ``full``, ``points``, ``layers``, ``kept`` (score as a share of the full model's),
        ``seeds``, ``over``, ``under``, ``flops_ratio`` (NaN unless known of all seeds) and ``speedup_b1``, ... (of the
        seeds that were timed), geometric means.
        """
        frame = self.per_seed if seeds is None else self.per_seed[self.per_seed["seed"].isin(seeds)]
        groups = frame.groupby([*CURVE, "speedup"], sort=False)
        found = groups[["score", "full", "points", "own_last_exit", "layers"]].mean()
        found["kept"] = found["score"] / found["full"].where(found["full"] != 0)
        found["seeds"] = groups["seed"].nunique()
        found["over"] = groups["reach"].agg(lambda reach: Reach.OVER in set(reach))
        found["under"] = groups["reach"].agg(lambda reach: Reach.UNDER in set(reach))
        for name in [str(name) for name in frame if str(name).startswith("share_")]:
            logs = np.log(frame[name]).groupby([frame[column] for column in (*CURVE, "speedup")], sort=False)
            known = logs.count() == groups.size() if name == "share_flops_ratio" else logs.count() > 0
            found[name.removeprefix("share_")] = np.exp(-logs.mean()).where(known)
        return found.reset_index()

    def samples(self, task: Task, label: str, speedup: float, seeds: Collection[int] | None = None) -> Floats | None:
        """Return bootstrap samples of the points of a label on a task, over rows and seeds: [RESAMPLES].

        The same rows and seeds are drawn for all labels of a task, so that differences are paired. None where the
        answers of some knob, or of the full model with the same seed, were not kept, and for a score of ranks.
        """
        if task not in self._samples:
            self._samples[task] = self._resampled(task)
        found = self._samples[task].get((label, speedup), {})
        own = self._seeds(task, label)
        wanted = [seed for seed in own if seeds is None or seed in seeds]
        if not wanted or not set(wanted) <= found.keys():
            return None
        drawn = crc32(f"{task[0]} {task[1]}".encode())
        return statistics.mean_over_drawn_seeds(np.stack([found[seed] for seed in wanted], axis=1), seed=drawn)

    def _seeds(self, task: Task, label: str) -> list[int]:
        return self._seeds_of.get((*task, label), [])

    @cached_property
    def _seeds_of(self) -> dict[Any, list[int]]:
        return (
            self._mixtures.groupby(["task", "backbone", "label"])["seed"]
            .agg(lambda seeds: sorted(set(seeds)))
            .to_dict()
        )

    def _resampled(self, task: Task) -> dict[tuple[str, float], dict[int, Floats]]:
        """Compute the samples of all labels, speed-ups and seeds of a task by one matrix product."""
        curves = self._mixtures
        lines = curves[(curves["task"] == task[0]) & (curves["backbone"] == task[1])].to_dict("records")
        answers: dict[Any, Answers | None] = {}
        parts: list[tuple[Any, Any, float]] = []
        for line in lines:
            mixture, index = line["mixture"], line["index"]
            if len(line["scored"]) > 1:
                first = second = (line["label"], line["speedup"], line["seed"])
                answers[first] = self._texts(line)
            else:
                first, second = index[mixture.first], index[mixture.second]
                answers |= {k: self.results.answers(k, self.measure) for k in (first, second) if k not in answers}
            parts.append((first, second, 1.0 if first == second else mixture.weight))
        for seed in {line["seed"] for line in lines}:
            answers["full", seed] = self.results.full_answers(task, seed, self.measure)
        known = {key: rows for key, rows in answers.items() if rows is not None}
        if not known:
            return {}
        labels, metric = next(iter(known.values()))[0], self._metric(lines[0])
        known = {key: rows for key, rows in known.items() if np.array_equal(labels, rows[0])}
        if not statistics.can_resample(metric, labels):
            return {}
        terms = statistics.resampled_terms(
            metric, labels, np.stack([rows[1] for rows in known.values()]), resamples=RESAMPLES
        )
        place = {key: number for number, key in enumerate(known)}
        found: dict[tuple[str, float], dict[int, Floats]] = {}
        for line, (first, second, weight) in zip(lines, parts, strict=True):
            full = ("full", line["seed"])
            if first in place and second in place and full in place:
                mixed = weight * terms[:, place[first]] + (1 - weight) * terms[:, place[second]]
                points = statistics.score_of_terms(metric, mixed) - statistics.score_of_terms(
                    metric, terms[:, place[full]]
                )
                found.setdefault((line["label"], line["speedup"]), {})[line["seed"]] = points
        return found

    def with_intervals(self, found: pd.DataFrame) -> pd.DataFrame:
        """Add ``low`` and ``high``, the 95% interval of the points, to lines of :meth:`by_task`."""
        samples = [
            self.samples((line["task"], line["backbone"]), line["label"], line["speedup"])
            for line in found.to_dict("records")
        ]
        bounds = [(np.nan, np.nan) if sample is None else interval(sample) for sample in samples]
        return found.assign(low=[low for low, _ in bounds], high=[high for _, high in bounds])

    @cached_property
    def compared(self) -> list[Task]:
        """The tasks that means are over."""
        tasks = self.results.tasks
        return [(str(task), str(backbone)) for task, backbone in tasks.index[tasks["compared"]]]

    @cached_property
    def headline(self) -> pd.DataFrame:
        """Points of every label at every budget, means over the tasks that (nearly) all labels were run on.

        A line for every label that has all these tasks, best at the middle budget first, then those over the budget.
        Columns: ``method`` (the label), ``budget``, ``points``, ``low`` and ``high`` (95% interval over these tasks),
        ``low_tasks`` and ``high_tasks`` (over any task), ``own_last_exit`` (points against it), ``score``, ``kept``
        in percent, ``tasks``, ``seeds`` (of the task with fewest), ``layers``, ``over``, ``better_than_static`` and
        ``worse_than_static`` (on how many tasks, significantly), and geometric means of measured ratios.
        """
        found = self.by_task()
        of_compared = pd.MultiIndex.from_frame(found[TASK]).isin(self.compared)
        found = found[of_compared & found["label"].isin(self.results.labels_to_compare)]
        complete = found.groupby("label")[TASK[0]].transform("size") == len(self.compared) * len(self.speedups)
        groups = found[complete].rename(columns={"label": "method", "speedup": "budget"}).groupby(["method", "budget"])
        means = 100 * groups[["points", "own_last_exit", "score"]].mean()
        means["kept"] = 100 * groups["kept"].agg(lambda kept: kept.mean() if kept.notna().all() else np.nan)
        means[["tasks", "seeds"]] = groups.agg(tasks=("task", "size"), seeds=("seeds", "min"))
        means["layers"], means["over"] = groups["layers"].mean(), groups["over"].any()
        for name in [str(name) for name in found if str(name).startswith(("flops_ratio", "speedup_b"))]:
            known = groups[name].agg(lambda ratios: np.exp(np.log(ratios).mean()) if ratios.notna().all() else np.nan)
            means[name] = known
        means = means.reset_index()
        return self._ordered(means.assign(**self._intervals(means), **self._against_static(means)))

    def _ordered(self, means: pd.DataFrame) -> pd.DataFrame:
        middle = means[means["budget"] == self.middle].fillna({"points": means["score"]})
        middle = middle.sort_values(["over", "points"], ascending=[True, False], kind="stable")
        place = {label: number for number, label in enumerate(middle["method"])}
        order = means.assign(place=means["method"].map(place)).sort_values(["place", "budget"])
        first = ["method", "budget", "points", "low", "high", "low_tasks", "high_tasks", "own_last_exit", "score"]
        return order[[*first, *(n for n in means if n not in first)]].reset_index(drop=True)

    def _intervals(self, means: pd.DataFrame) -> dict[str, list[float]]:
        """Compute the intervals over these tasks, and over any task: tasks are resampled as well."""
        bounds: dict[str, list[float]] = {"low": [], "high": [], "low_tasks": [], "high_tasks": []}
        for label, budget in zip(means["method"], means["budget"], strict=True):
            samples = self._task_samples(label, budget)
            here, anywhere = (
                (np.nan, np.nan) if one is None else interval(100 * one)
                for one in (None if samples is None else samples.mean(axis=0), statistics.over_any_task(samples))
            )
            for name, bound in zip(bounds, (*here, *anywhere), strict=True):
                bounds[name].append(bound)
        return bounds

    def _task_samples(self, label: str, budget: float) -> Floats | None:
        """Return the samples of a label on every compared task, [tasks, resamples]; None if some are unknown."""
        samples = [self.samples(task, label, budget) for task in self.compared]
        known = [one for one in samples if one is not None]
        return np.stack(known) if known and len(known) == len(samples) else None

    def common_seeds(self, task: Task, first: str, second: str) -> list[int]:
        """Return the seeds that both of two labels have on a task; all of both if there are none."""
        one, other = set(self._seeds(task, first)), set(self._seeds(task, second))
        return sorted(one & other or one | other)

    def difference(self, task: Task, first: str, second: str, budget: float) -> tuple[float, Floats | None]:
        """Return the points of the first label minus the second's on a task, of the seeds of both, and its samples."""
        seeds = self.common_seeds(task, first, second)
        means = [
            np.mean([self._points[key] for seed in seeds if (key := (*task, label, budget, seed)) in self._points])
            for label in (first, second)
        ]
        samples = [self.samples(task, label, budget, seeds) for label in (first, second)]
        known = None if samples[0] is None or samples[1] is None else samples[0] - samples[1]
        return float(means[0] - means[1]), known

    @cached_property
    def _points(self) -> dict[Any, float]:
        return self.per_seed.set_index(["task", "backbone", "label", "speedup", "seed"])["points"].to_dict()

    def against_static(self, task: Task, label: str, budget: float) -> int | None:
        """Return 1 or -1 if a label is significantly better or worse than a static exit, else 0; None if unknown.

        What costs more than the budget is never better.
        """
        static = self._static
        if static is None or label == static or not self._seeds(task, static):
            return None
        _, samples = self.difference(task, label, static, budget)
        if samples is None:
            return None
        low, high = interval(samples)
        return int(low > 0 and not self._over.get((*task, label, budget), False)) - int(high < 0)

    @cached_property
    def _static(self) -> str | None:
        return next(iter(labels_of_role(self.results.methods, STATIC)), None)

    @cached_property
    def _over(self) -> dict[Any, bool]:
        return self.by_task().set_index(["task", "backbone", "label", "speedup"])["over"].to_dict()

    def _against_static(self, means: pd.DataFrame) -> dict[str, list[float]]:
        found = [
            [self.against_static(task, label, budget) for task in self.compared]
            for label, budget in zip(means["method"], means["budget"], strict=True)
        ]
        counts = {"better_than_static": 1, "worse_than_static": -1}
        return {name: [np.nan if None in one else one.count(sign) for one in found] for name, sign in counts.items()}

    def contrasts(self, pairs: Sequence[tuple[str, str]], budget: float | None = None) -> pd.DataFrame:
        """Test pairs of labels at one budget, means over tasks, corrected for their number by Holm's procedure.

        Returns:
            A line for each pair: ``method``, ``against``, ``points``, ``low``, ``high``, ``p``, ``p_holm``, ``wins``,
            ``losses`` (tasks where the first has more points, fewer).
        """
        lines = []
        for first, second in pairs:
            found = [self.difference(task, first, second, budget or self.middle) for task in self.compared]
            points = np.array([difference for difference, _ in found])
            known = [samples for _, samples in found if samples is not None]
            samples = np.mean(known, axis=0) if len(known) == len(found) else None
            low, high = (np.nan, np.nan) if samples is None else interval(100 * samples)
            line = {"method": first, "against": second, "points": 100 * points.mean(), "low": low, "high": high}
            line["p"] = np.nan if samples is None else statistics.p_value(samples)
            lines.append(line | {"wins": int((points > 0).sum()), "losses": int((points < 0).sum())})
        tests = pd.DataFrame(lines, columns=["method", "against", "points", "low", "high", "p", "wins", "losses"])
        tests.insert(6, "p_holm", statistics.holm(tests["p"]))
        return tests

    def core_pairs(self) -> list[tuple[str, str]]:
        """Return every variant of ConsistentEE with every named peer, and the best variant with the best other method.

        The best are those of the middle budget's own test scores, which flatters both.
        """
        methods = self.results.methods
        ranked = list(dict.fromkeys(self.headline["method"]))  # best first
        variants = [label for label in ranked if is_core(methods[label])]
        others = [x for x in ranked if x not in variants and role_of(methods[x]) not in REFERENCES]
        pairs = [(variant, peer) for variant in variants for peer in others if methods[peer] in PEERS]
        if variants and others:
            best = variants[0], others[0]
            pairs = [*(pair for pair in pairs if pair != best), best]
        return pairs


@lru_cache(maxsize=4)
def comparison_of(results: Results) -> EqualCost:
    """Compare all methods of some results at the budgets of their kind, once."""
    return EqualCost(results)


def headline(results: Results) -> pd.DataFrame:
    """Return points against the full model at every budget, means over tasks: see :attr:`EqualCost.headline`."""
    return comparison_of(results).headline
