"""Compare the methods of some results at equal cost: by seed, by task, in the mean, and from one method.

Every frame is a group-by over the lines of :func:`benchmarks.analysis.equal_cost.points`.
"""

from collections.abc import Collection, Sequence
from functools import cached_property, lru_cache
from zlib import crc32

import numpy as np
import pandas as pd

from benchmarks.analysis import statistics
from benchmarks.analysis.equal_cost import LAYERS, at_one_layer, mix, mixed, points, resample
from benchmarks.analysis.frames import CURVE, STATIC, TASK, Array, Results, Task, exit_networks, labels_of_role
from benchmarks.analysis.statistics import interval, known_mean

BOUNDS = ("low", "high", "low_tasks", "high_tasks")
"""The 95% interval over these tasks, and the one when tasks are resampled, too."""
HEADLINE = (
    *("method", "exits", "budget", "points", *BOUNDS, "area", "own_last_exit", "score"),
    *("layers", "flops_ratio", "training_cost", "seeds", "tasks"),
)
"""The first columns of the headline; docs/results.md explains them."""
_AREA = tuple(np.linspace(1, 3, 21))
"""The speed-ups whose mean is the area under a curve."""


class Comparison:
    """All methods of some results at equal cost.

    Args:
        results: what is compared, of one kind.
        speedups: budgets, as full cost / cost; by default those of the kind.
        cost: see :func:`benchmarks.analysis.equal_cost.mix`.
        measure: see :func:`benchmarks.analysis.equal_cost.points`.
    """

    def __init__(
        self,
        results: Results,
        speedups: Sequence[float] | None = None,
        *,
        cost: str = LAYERS,
        measure: str | None = None,
    ) -> None:
        self.results, self.cost, self.measure = results, cost, measure
        self.speedups = tuple(results.speedups if speedups is None else speedups)
        self.ratios = list(results.knobs.filter(regex="^(flops_ratio|speedup_b)"))
        self.seconds = list(results.knobs.filter(regex="^seconds_b"))
        self._drawn: dict[Task, dict[int, tuple[Array, Array]]] = {}
        self._means: dict[tuple[tuple[int, ...], bool], Array] = {}

    @property
    def middle(self) -> float:
        """The budget that tables are sorted by."""
        return self.speedups[len(self.speedups) // 2]

    @cached_property
    def compared(self) -> list[Task]:
        """The tasks that means are over."""
        tasks = self.results.tasks
        return [(str(task), str(backbone)) for task, backbone in tasks.index[tasks["compared"]]]

    def in_means(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the lines of the tasks that means are over."""
        return frame[pd.MultiIndex.from_frame(frame[TASK]).isin(self.compared)]

    @cached_property
    def per_seed(self) -> pd.DataFrame:
        """The lines of :func:`points`, with ``rule_gain`` (points against all rows at one layer of the same exits).

        Ratios full model / here (``flops_ratio``, ``speedup_b1``, ...) and times (``seconds_b1``, ...) are those of
        the neighbouring knobs of which they are known.
        """
        knobs = self.results.knobs
        found = points(self.results, mix(knobs, self.speedups, self.cost), self.measure)
        found["rule_gain"] = found["score"] - at_one_layer(self.results, found)
        keys = [*CURVE, "seed", "speedup"]
        for name in (*self.ratios, *self.seconds):
            own, power = mix(knobs[knobs[name].notna()], self.speedups), 1 if name in self.seconds else -1
            own[name] = mixed(own, knobs[name].to_numpy(dtype=float) ** power, "cost_weight") ** power
            found = found.merge(own[[*keys, "reach", name]], on=[*keys, "reach"], how="left")
        return found

    @cached_property
    def by_task(self) -> pd.DataFrame:
        """The means over seeds: a line for every task, label and speed-up.

        Columns: ``score``, ``full``, ``points``, ``own_last_exit``, ``rule_gain``, ``layers``, ``kept`` (score as a
        share of the full model's), ``seeds``, ``over``, ``under``, ratios (geometric means of known seeds) and times.
        """
        frame = self.per_seed.assign(
            over=self.per_seed["reach"] == "over",
            under=self.per_seed["reach"] == "under",
            **{name: np.log(self.per_seed[name]) for name in self.ratios},
        )
        groups = frame.groupby([*CURVE, "speedup"], sort=False)
        found = groups[["score", "full", "points", "own_last_exit", "rule_gain", "layers", *self.seconds]].mean()
        found["kept"] = found["score"] / found["full"].where(found["full"] != 0)
        found["seeds"] = groups["seed"].nunique()
        found[["over", "under"]] = groups[["over", "under"]].any()
        found[self.ratios] = np.exp(groups[self.ratios].mean())
        return found.reset_index()

    @cached_property
    def _lines(self) -> dict[tuple[object, ...], dict[int, int]]:
        """The lines of :attr:`per_seed`: task, backbone, label and speed-up -> seed -> number of the line."""
        found: dict[tuple[object, ...], dict[int, int]] = {}
        for line in self.per_seed.sort_values("seed").itertuples():
            found.setdefault((line.task, line.backbone, line.label, line.speedup), {})[line.seed] = line.Index
        return found

    def drawn(
        self, task: Task, label: str, speedup: float, seeds: Collection[int] | None = None, *, one_layer: bool = False
    ) -> Array:
        """Return bootstrap samples of the points of a label on a task, over rows and seeds: [resamples].

        ``one_layer``: of all rows at one layer of its exits. NaN where the samples of some seed are unknown.
        """
        known = self._lines.get((*task, label, speedup), {})
        lines = tuple(line for seed, line in known.items() if seeds is None or seed in seeds)
        if not lines:
            return statistics.UNKNOWN
        if (lines, one_layer) not in self._means:
            if task not in self._drawn:
                self._drawn[task] = resample(self.results, task, self.per_seed, self.measure)
            samples = [self._drawn[task][line][int(one_layer)] for line in lines]
            seed = crc32(f"{task[0]} {task[1]}".encode())
            self._means[lines, one_layer] = statistics.mean_over_drawn_seeds(samples, seed=seed)
        return self._means[lines, one_layer]

    def with_intervals(self, found: pd.DataFrame) -> pd.DataFrame:
        """Add ``low`` and ``high``, the 95% interval of the points, to lines of :attr:`by_task`."""
        keys = found[[*CURVE, "speedup"]].itertuples(index=False)
        bounds = [interval(self.drawn((task, backbone), label, speedup)) for task, backbone, label, speedup in keys]
        return found.join(pd.DataFrame(bounds, found.index, ["low", "high"]))

    @cached_property
    def signs(self) -> pd.Series:
        """Comparisons of the lines of :attr:`by_task` with a static exit.

        1 is significantly better, -1 worse, 0 neither; NaN unknown, and of tasks that are not compared. What costs more
        than the budget is never better.
        """
        static = next(iter(labels_of_role(self.results.methods, STATIC)), "")
        signs = pd.Series(np.nan, self.by_task.index)
        for line in self.in_means(self.by_task).itertuples():
            if line.label != static and (line.task, line.backbone, static, line.speedup) in self._lines:
                _, samples = self.difference((line.task, line.backbone), line.label, static, line.speedup)
                low, high = interval(samples)
                signs[line.Index] = np.nan if np.isnan(low) else int(low > 0 and not line.over) - int(high < 0)
        return signs

    @cached_property
    def of_compared(self) -> pd.DataFrame:
        """The lines of :attr:`by_task` of the labels that have all compared tasks, with ``training_cost``."""
        found = self.in_means(self.by_task.merge(training_costs(self.results), on=CURVE, how="left"))
        found = found[found["label"].isin(self.results.labels_to_compare)]
        return found[found.groupby("label")["task"].transform("size") == len(self.compared) * len(self.speedups)]

    @cached_property
    def means(self) -> pd.DataFrame:
        """Points of every label at every budget, means over the compared tasks, in points and percent.

        A line for every label that has all these tasks, best at the middle budget first, then those over the budget.
        Columns: those of :data:`HEADLINE` but ``area``; ``kept``; ``no_rule`` (points of all rows at one layer of the
        same exits), ``rule_gain``, ``rule_low``, ``rule_high`` (over that), NaN at more than the budget; ``over`` and
        ``under`` (the budget); ``knobs`` that differ in layers, a median number; ratios, geometric means.
        """
        found = self.of_compared.rename(columns={"label": "method", "speedup": "budget"})
        found[self.ratios] = np.log(found[self.ratios])
        groups = found.groupby(["method", "budget"])
        means = 100 * groups[["points", "own_last_exit", "score"]].mean()
        means[["kept", "rule_gain"]] = 100 * groups[["kept", "rule_gain"]].agg(known_mean)
        means["training_cost"] = groups["training_cost"].agg(known_mean)
        means[["tasks", "seeds"]] = groups.agg(tasks=("task", "size"), seeds=("seeds", "min"))
        means["layers"] = groups["layers"].mean()
        means[["over", "under"]] = groups[["over", "under"]].any()
        means[self.ratios] = np.exp(groups[self.ratios].agg(known_mean))
        bounds = [self._bounds(label, budget) for label, budget in means.index]
        means[[*BOUNDS, "rule_low", "rule_high"]] = np.array(bounds, dtype=float).reshape(-1, 6)
        means["no_rule"] = means["points"] - means["rule_gain"]
        of_rule = ["no_rule", "rule_gain", "rule_low", "rule_high"]
        means[of_rule] = means[of_rule].mask(means["over"])  # rows at one layer cost less than these
        means = means.reset_index()
        layers = self.in_means(self.results.knobs).groupby([*CURVE, "seed"])["layers"]
        means["knobs"] = means["method"].map(layers.nunique().groupby("label").median())
        means["exits"] = means["method"].map(exit_networks(self.results.records))
        middle = means[means["budget"] == self.middle].fillna({"points": means["score"]})
        middle = middle.sort_values(["over", "points"], ascending=[True, False], kind="stable")
        return means.set_index("method").loc[middle["method"]].reset_index()

    @cached_property
    def headline(self) -> pd.DataFrame:
        """The lines of :attr:`means` with ``area`` (mean points from 1x to 3x), and how often better than static.

        ``better_than_static`` and ``worse_than_static`` count tasks. The area of a method that misses a budget is NaN.
        """
        better, worse = (self.signs == 1).rename("better_than_static"), (self.signs == -1).rename("worse_than_static")
        keys = [self.by_task["label"].rename("method"), self.by_task["speedup"].rename("budget")]
        counts = pd.concat([better, worse], axis=1).groupby(keys).sum()
        counts = counts.where(self.signs.groupby(keys).count() == len(self.compared))
        found = self.means.merge(counts.reset_index(), on=["method", "budget"], how="left")
        found["area"] = found["method"].map(self.areas)
        return found[[*HEADLINE, *(name for name in found if name not in HEADLINE)]]

    @cached_property
    def areas(self) -> pd.Series:
        """The mean points from 1x to 3x of the labels that meet every budget, means over the compared tasks.

        Empty for texts.
        """
        if self.results.kind == "generation":
            return pd.Series(dtype=float)
        dense = self.in_means(points(self.results, mix(self.results.knobs, _AREA, self.cost)))
        dense["points"] = dense["points"].mask((dense["reach"] == "over").groupby(dense["label"]).transform("any"))
        by_task = dense.groupby([*CURVE, "speedup"])["points"].mean().groupby(["label", "task"]).mean()
        return 100 * by_task.groupby("label").mean()

    def _bounds(self, label: str, budget: float) -> list[float]:
        """Compute the intervals over the compared tasks, over any task, and of the rule's gain; NaN where unknown."""
        drawn, no_rule = (
            100 * np.stack([self.drawn(task, label, budget, one_layer=one_layer) for task in self.compared])
            for one_layer in (False, True)
        )
        return [*_intervals(drawn), *interval((drawn - no_rule).mean(axis=0))]

    def difference(self, task: Task, first: str, second: str, budget: float) -> tuple[float, Array]:
        """Return the points of the first label minus the second's on a task, and its samples; NaN where unknown.

        They are of the seeds that both have, or of all seeds of both if there are none.
        """
        one, other = (self._lines.get((*task, label, budget), {}) for label in (first, second))
        seeds = one.keys() & other.keys() or one.keys() | other.keys()
        known = self.per_seed["points"]
        exact, subtracted = (
            np.mean([known[line] for seed, line in lines.items() if seed in seeds]) for lines in (one, other)
        )
        samples = self.drawn(task, first, budget, seeds) - self.drawn(task, second, budget, seeds)
        return float(exact - subtracted), samples

    def contrasts(self, against: str) -> pd.DataFrame:
        """Test the differences of all labels from one at every budget, means over the compared tasks that both ran on.

        A line for each label and budget has ``method``, ``budget``, ``tasks``, ``points``, :data:`BOUNDS`, ``p``,
        ``p_holm`` (corrected for the labels on as many tasks), ``detectable`` (the smallest difference that is found
        with 80% power), ``over`` (the budget on some task) and ``wins / losses``: on how many tasks the label has more
        points / fewer, as text. What costs more than the budget wins nothing: such a lead is not counted and has no p.
        """
        lines = []
        over = self.by_task.set_index([*CURVE, "speedup"])["over"]
        ran = set(self.by_task[CURVE].itertuples(index=False, name=None))
        for label in self.results.labels_to_compare:
            tasks = [task for task in self.compared if {(*task, label), (*task, against)} <= ran]
            for budget in self.speedups if tasks and label != against else ():
                found = [self.difference(task, label, against, budget) for task in tasks]
                exact, samples = np.array([one for one, _ in found]), 100 * np.stack([drawn for _, drawn in found])
                mean = samples.mean(axis=0)
                own, other = (np.array([over[*task, one, budget] for task in tasks]) for one in (label, against))
                p = np.nan if (own if exact.mean() > 0 else other).any() else statistics.p_value(mean)
                signs = f"{((exact > 0) & ~own).sum()} / {((exact < 0) & ~other).sum()}"
                values = [len(tasks), 100 * exact.mean(), *_intervals(samples), p, statistics.POWER * mean.std(), signs]
                lines.append([label, budget, *values, bool(own.any() or other.any())])
        columns = ["method", "budget", "tasks", "points", *BOUNDS, "p", "detectable", "wins / losses", "over"]
        tests = pd.DataFrame(lines, columns=columns)
        return tests.assign(p_holm=tests.groupby(["budget", "tasks"])["p"].transform(statistics.holm))


def training_costs(results: Results) -> pd.DataFrame:
    """Return the cost of training every label on every task, as a multiple of the full model's with the same seed.

    Columns: ``task``, ``backbone``, ``label`` and ``training_cost``, a mean over the seeds of which it is known.
    Cost is that of :class:`consistentee.training.loop.TrainingLog`, of one model: the mean over a grid's cells.
    """
    lines = [(r.task, r.backbone, r.label, r.seed, r.trained_rows) for r in results.records]
    rows = pd.DataFrame(lines, columns=[*CURVE, "seed", "rows"]).astype({"rows": float})
    rows = rows.groupby([*CURVE, "seed"])["rows"].agg(known_mean).reset_index()
    full = results.tasks["full_label"].rename("label").reset_index()
    of_full = rows.merge(full, on=CURVE).drop(columns="label")
    found = rows.merge(of_full, on=[*TASK, "seed"], suffixes=("", "_of_full"))
    found["training_cost"] = found["rows"] / found["rows_of_full"].where(found["rows_of_full"] > 0)
    return found.groupby(CURVE)["training_cost"].mean().reset_index()


def _intervals(samples: Array) -> list[float]:
    """Compute :data:`BOUNDS` of the mean of samples [tasks, resamples]."""
    return [*interval(samples.mean(axis=0)), *interval(statistics.over_any_task(samples))]


@lru_cache(maxsize=4)
def comparison_of(results: Results) -> Comparison:
    """Compare all methods of some results at the budgets of their kind, once."""
    return Comparison(results)


def headline(results: Results) -> pd.DataFrame:
    """Return points against the full model at every budget, means over tasks: see :attr:`Comparison.headline`."""
    return comparison_of(results).headline
