"""Methods at equal cost: two neighbouring knobs of a curve are mixed to meet a budget, and scored on test rows.

A row takes the first knob with a fixed probability, whatever its answer. The weight is set so that the layers of the
test rows meet the budget exactly. No label is read: the knobs are neighbours in the order of their layers. Only between
the models of a grid (of patience, say) does the validation score at that budget choose. Models with one knob each, such
as the paper's, are one curve together. What cannot spend a budget is mixed with its own full depth.

Three functions do it: :func:`mix` finds the knobs, :func:`points` scores them, :func:`resample` draws rows anew.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from benchmarks.analysis import statistics
from benchmarks.analysis.frames import CURVE, NATS, TASK, Array, Results, Task
from benchmarks.measure.knobs import neighbours
from benchmarks.measure.terms import MEAN, MEAN_BY_SIZE, has_terms, is_mean, score_of_means, terms_of

LAYERS = "layers"
"""The cost that is compared unless another is named; the others are ratios full cost / cost, columns of knobs."""


def mix(knobs: pd.DataFrame, speedups: Sequence[float], cost: str = LAYERS) -> pd.DataFrame:
    """Mix two neighbouring knobs of every curve for every speed-up; knobs whose cost is unknown are left out.

    Args:
        knobs: the frame :attr:`Results.knobs`, or a part of its lines.
        speedups: budgets, as full cost / cost.
        cost: :data:`LAYERS`, or a column with ratios full cost / cost.

    Returns:
        A line for every task, backbone, label, seed and speed-up: ``first`` and ``second``, two lines of ``knobs``,
        ``weight`` (the share of rows, in generation of prompts, that take the first), ``cost_weight`` (its share of
        decoded tokens, of which costs are means) and ``reach``, see :class:`benchmarks.measure.knobs.Mixtures`.
    """
    columns = [*CURVE, "seed", "speedup", "first", "second", "weight", "cost_weight", "reach"]
    known = knobs.dropna(subset=["layers", cost]) if cost in knobs else knobs.iloc[:0]
    if known.empty:
        return pd.DataFrame(columns=columns)
    curves = _curves(known).dropna().astype(int)
    known = known.loc[curves.index]
    shares = (known["layers"] / known["num_layers"] if cost == LAYERS else 1 / known[cost]).to_numpy(dtype=float)
    quality, lines, budgets = known["validation_score"].to_numpy(), known.index.to_numpy(), 1 / np.asarray(speedups)
    units, of_curves = _units(known, cost), known.groupby(curves.to_numpy(), sort=True).indices
    mixtures = []
    for own in of_curves.values():
        first, second, share, reach = neighbours(shares[own], budgets)
        one, other = share / units[own][first], (1 - share) / units[own][second]
        weight = one / (one + other)
        validation = weight * quality[own][first] + (1 - weight) * quality[own][second]
        mixtures.append((lines[own][first], lines[own][second], weight, share, reach, validation))
    whose = known.iloc[[own[0] for own in of_curves.values()]][[*CURVE, "seed"]]
    every = whose.loc[whose.index.repeat(len(budgets))].reset_index(drop=True)
    every["speedup"] = np.tile(speedups, len(of_curves))
    for name, values in zip([*columns[-5:], "validation"], zip(*mixtures, strict=True), strict=True):
        every[name] = np.concatenate(values)
    order = every.assign(over=every["reach"] == "over").sort_values(
        ["over", "validation"], ascending=[True, False], kind="stable"
    )
    best = order.drop_duplicates([*CURVE, "seed", "speedup"]).sort_index()
    return best[columns].reset_index(drop=True)


def _units(knobs: pd.DataFrame, cost: str) -> Array:
    """Return by how many decoded tokens (or full operations) every knob's cost is divided: knobs write other texts.

    In classification all knobs have as many rows.
    """
    if "decoded_tokens" not in knobs:
        return np.ones(len(knobs))
    units = knobs["full_flops" if cost == "flops_ratio" else "decoded_tokens"].to_numpy(dtype=float)
    return np.where(units > 0, units, 1.0)


def _curves(knobs: pd.DataFrame) -> pd.Series:
    """Return the number of every knob's curve: its cell, or of cells with one knob each the first of their label.

    Of such a curve only the cell with the most layers has full depth.
    """
    cells, real = knobs["cell"], knobs["knob"].notna()
    one = real.groupby(cells).sum() <= 1
    groups = [knobs[name] for name in (*CURVE, "seed")]
    together = cells.map(one).groupby(groups).transform("all")
    first = cells.groupby(groups).transform("min")
    deepest = knobs["layers"].where(real).groupby(cells).transform("max")
    most = deepest.groupby(groups).transform("max")
    dropped = together & ~real & (deepest < most)
    return pd.Series(np.where(together, first, cells), knobs.index).where(~dropped)


def mixed(mixtures: pd.DataFrame, values: Array, by: str = "weight") -> Array:
    """Mix values [K] or [K, terms] of the lines of knobs, ``by`` the share of rows or ``cost_weight``."""
    weight = mixtures[by].to_numpy(dtype=float).reshape(-1, *[1] * (values.ndim - 1))
    first, second = (values[mixtures[name].to_numpy(dtype=int)] for name in ("first", "second"))
    return np.asarray(np.where(weight == 1, first, weight * first + (1 - weight) * second))


def points(results: Results, mixtures: pd.DataFrame, measure: str | None = None) -> pd.DataFrame:
    """Score mixtures on test rows: the metric of the weighted sample of both knobs' answers.

    Returns:
        The lines of ``mixtures`` with ``score``, ``full`` (the full model's of the same seed, else the mean of its
        seeds), ``points`` (the difference, as a share: 0.01 is a point), ``own_last_exit`` (points against the
        method's own full depth) and ``layers`` of test rows. ``measure`` is another score of texts.
    """
    knobs = results.knobs
    score = scores_of_mixtures(results, mixtures, measure)
    own = knobs[measure or "score"].where(knobs["knob"].isna()).groupby(knobs["cell"]).transform("last").to_numpy()
    of_full = of_full_model(results, mixtures, measure or "score")
    return mixtures.assign(
        score=score,
        full=of_full,
        points=score - of_full,
        own_last_exit=score - own[mixtures["second"].to_numpy(dtype=int)],
        layers=mixed(mixtures, knobs["layers"].to_numpy(), "cost_weight"),
    )


def of_full_model(results: Results, lines: pd.DataFrame, column: str) -> Array:
    """Return a column of the full model's full depth for every line: of the same seed, else the mean of its seeds."""
    places = full_lines(results)
    full = results.knobs[column].loc[places].astype(float).set_axis(places.index)
    of_any = full.groupby(TASK).mean().reindex(pd.MultiIndex.from_frame(lines[TASK])).to_numpy()
    of_seed = full.reindex(pd.MultiIndex.from_frame(lines[[*TASK, "seed"]])).to_numpy()
    return np.where(np.isnan(of_seed), of_any, of_seed)


def scores_of_mixtures(results: Results, mixtures: pd.DataFrame, measure: str | None = None) -> Array:
    """Compute the score of every mixture from the scores of its knobs, or from the means of their terms."""
    knobs = results.knobs
    found = mixed(mixtures, knobs[measure or "score"].to_numpy(dtype=float))
    metrics = knobs["metric"].to_numpy()[mixtures["first"].to_numpy(dtype=int)]
    for metric in () if measure else set(metrics):
        terms = knobs.get(f"{metric}_terms")
        if terms is None or is_mean(metric):
            continue
        known = np.stack(list(terms.dropna()))
        values = np.full((len(terms), known.shape[1]), np.nan)
        values[terms.notna()] = known
        own = mixtures[metrics == metric]
        of_terms = score_of_means(metric, mixed(own, values))
        found[metrics == metric] = np.where(np.isnan(of_terms), found[metrics == metric], of_terms)
    return found


def resample(
    results: Results, task: Task, scored: pd.DataFrame, measure: str | None = None
) -> dict[int, tuple[Array, Array]]:
    """Draw the test rows of a task anew, alike for all methods, so that differences are paired.

    All different answers are resampled by one matrix product.

    Args:
        results: what was scored.
        task: the task.
        scored: the lines of :func:`points`, of all tasks.
        measure: another score of texts.

    Returns:
        For the number of every line of the task bootstrap samples [RESAMPLES] of its points, and of the points of all
        rows at one layer of the same exits. They are NaN without answers, for scores of ranks, and where no exit stands
        on the budget. A seed without a full model is compared with the mean of those of other seeds.
    """
    terms, full_places, kept = _terms_of_task(results, task, measure), full_lines(results), kept_lines(results)
    own = scored[(scored["task"] == task[0]) & (scored["backbone"] == task[1])]
    full_at = {seed: terms.at(line) for seed, line in full_places.get(task, full_places.iloc[:0]).items()}
    lines = kept.to_numpy()[own[["first", "second"]].to_numpy(dtype=int)]
    places = {line: terms.at(line) for line in pd.unique(lines.ravel())}
    layers = _places_at_one_layer(results, terms, task, own)
    if all(place is None for place in full_at.values()):
        return dict.fromkeys(own.index, (statistics.UNKNOWN, statistics.UNKNOWN))
    stacked = np.stack(terms.kept)
    # The last sample is that of all rows.
    all_rows = stacked.mean(axis=1, keepdims=True, dtype=float)
    resampled = np.concatenate([statistics.resampled_means(stacked), all_rows], axis=1)
    means: dict[int | None, Array] = {None: np.full_like(resampled[0], np.nan), **dict(enumerate(resampled))}
    full = {seed: terms.score(means[place]) for seed, place in full_at.items() if place is not None}
    of_others: Array = np.mean(list(full.values()), axis=0)
    found: dict[int, tuple[Array, Array]] = {}
    for line, (first, second), layer in zip(own.itertuples(), lines, layers, strict=True):
        of_full = full.get(line.seed, of_others)
        mixed_means = line.weight * means[places[first]] + (1 - line.weight) * means[places[second]]
        samples = terms.score(mixed_means) - of_full
        # Where the exits of other knobs stand in, the samples are moved to the points of the mixed ones.
        found[line.Index] = samples[:-1] + (line.points - samples[-1]), (terms.score(means[layer]) - of_full)[:-1]
    return found


@lru_cache(maxsize=4)
def full_lines(results: Results) -> pd.Series:
    """Return the line of the full model's full depth by task, backbone and seed."""
    own = results.knobs[results.knobs["knob"].isna()]
    full = results.tasks["full_label"].reindex(pd.MultiIndex.from_frame(own[TASK])).to_numpy()
    own = own[own["label"].to_numpy() == full].drop_duplicates([*TASK, "seed"], keep="last")
    return pd.Series(own.index, pd.MultiIndex.from_frame(own[[*TASK, "seed"]])).sort_index()


@lru_cache(maxsize=4)
def kept_lines(results: Results) -> pd.Series:
    """Map every line of knobs to the nearest one of its cell, in layers, whose exits are known.

    Cells keep the exits of the knobs that are mixed at the budgets of their kind: there the nearest is the line itself.
    At other budgets, and in cells published before, the nearest stands in.
    """
    knobs = results.knobs
    found = knobs.index.to_numpy().copy()
    layers, places = knobs["layers"].to_numpy(), knobs["place"].to_numpy()
    for cell, lines in () if results.kind == "generation" else knobs.groupby("cell", sort=False).indices.items():
        # The last line of a cell is "never exit", whose answers are those of the last layer.
        kept = lines[np.isin(places[lines], list(results.exits(cell))) | (lines == lines[-1])]
        found[lines] = kept[np.abs(layers[lines][:, None] - layers[kept]).argmin(axis=1)]
    return pd.Series(found, knobs.index)


class _Terms:
    """All different answers of a task: ``kept`` has the terms [N, terms] of each once, as many knobs give the same."""

    def __init__(self, results: Results, task: Task, measure: str | None) -> None:
        self._results, self._measure = results, measure
        metric = str(results.tasks.loc[task, "metric"])
        self._metric = metric if results.kind == "classification" else MEAN_BY_SIZE if measure == NATS else MEAN
        self._knobs = [results.knobs[name].to_numpy() for name in ("cell", "place", "knob")]
        self._places: dict[bytes, int] = {}
        self._labels: Array | None = None
        self.kept: list[Array] = []

    def at(self, line: int) -> int | None:
        """Return the place of the answers at a line of knobs; None where they were not kept."""
        results, (cell, place, knob) = self._results, (values[line] for values in self._knobs)
        if results.kind == "generation":
            # The answer of a text is its score; its label is the size of the reference, which weights losses of tokens.
            sizes = results.column("rows", "reference_tokens" if self._measure == NATS else "row", cell)
            scores = results.column("texts", self._measure or str(results.cells.at[cell, "metric"]), cell)
            own = scores[results.column("texts", "place", cell) == place]
            return self._place(sizes.astype(float), own.astype(float)) if len(own) else None
        by_layer = results.answers_by_layer(cell)
        if not len(by_layer):
            return None
        if np.isnan(knob):
            return self._place(results.labels(cell), by_layer[-1])
        exits = results.exits(cell).get(place)
        return None if exits is None else self._place(results.labels(cell), by_layer[exits - 1, np.arange(exits.size)])

    def at_layer(self, cell: int, layer: float) -> int | None:
        """Return the place of the answers of a cell's exit at a layer; None where it has none."""
        if self._results.kind == "generation" or layer != int(layer):
            return None
        answers, place = self._results.answers_by_layer(cell), int(layer) - 1
        if len(answers) <= place or not self._results.has_exit(cell, int(layer)):
            return None
        return self._place(self._results.labels(cell), answers[place])

    def _place(self, labels: Array, answers: Array) -> int | None:
        if self._labels is None and has_terms(self._metric, labels):
            self._labels = labels
        if self._labels is None or not np.array_equal(self._labels, labels):
            return None
        key = answers.tobytes()
        if key not in self._places:
            self._places[key] = len(self.kept)
            self.kept.append(terms_of(self._metric, labels, answers))
        return self._places[key]

    def score(self, means: Array) -> Array:
        return score_of_means(self._metric, means)


_terms_of_task = lru_cache(maxsize=32)(_Terms)


def _places_at_one_layer(results: Results, terms: _Terms, task: Task, scored: pd.DataFrame) -> list[int | None]:
    """Return the places of the answers of all rows at the layer of the budget, by the exits of the mixed knobs."""
    cells = results.knobs["cell"].to_numpy()[scored["second"].to_numpy(dtype=int)]
    layers = results.tasks.at[task, "num_layers"] / scored["speedup"]
    return [terms.at_layer(cell, layer) for cell, layer in zip(cells, layers, strict=True)]


def at_one_layer(results: Results, scored: pd.DataFrame) -> Array:
    """Return the score of all rows at the layer of the budget, by the exits of the mixed knobs; NaN without an exit."""
    found = np.full(len(scored), np.nan)
    for task, lines in scored.groupby(TASK).indices.items():
        terms = _terms_of_task(results, task, None)
        for line, place in zip(lines, _places_at_one_layer(results, terms, task, scored.iloc[lines]), strict=True):
            if place is not None:
                found[line] = terms.score(terms.kept[place].mean(axis=0, dtype=float))
    return found
