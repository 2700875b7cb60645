"""The tables of generation at equal cost: means over tasks, by every cost, and all that is scored, task by task."""

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.analysis.comparisons.equal_cost import AtCost, at_equal_cost, at_equal_ratio
from benchmarks.analysis.comparisons.headline import Headline, headline
from benchmarks.analysis.comparisons.ranking import block_name
from benchmarks.analysis.comparisons.resampled import AtBudget, point_samples
from benchmarks.analysis.panels.means import mean_of_all
from benchmarks.analysis.rows.scored import MATCH, NATS, TO_FULL, scored_of
from benchmarks.analysis.rows.texts import GenerationPanel
from benchmarks.analysis.statistics import Floats, interval
from benchmarks.analysis.tables.columns import (
    OVER_NOTE,
    UNDER_NOTE,
    metric_name,
    number,
    percent,
    points,
    reach_marks,
)
from benchmarks.analysis.tables.equal_cost import (
    TEXT_POINTS_NOTE,
    contrast_tables,
    headline_lines,
    points_by_task,
    text_means_table,
)
from benchmarks.analysis.tables.overall import static_gain_table
from benchmarks.analysis.tables.text import MISSING, TextTable

_PERPLEXITY_NOTE = (
    "Perplexity of the references: they are read behind their prompts at full depth, and each token but the first is "
    "judged at the exit where the rule lets it leave; times full: over that of the full model"
)


def text_cost_tables(panels: Sequence[GenerationPanel]) -> list[TextTable]:
    """Return the tables over all tasks; nothing without the full model."""
    of = headline(panels)
    if of is None:
        return []
    several = len(of.panels) > 1
    over_tasks = [text_means_table(of)] if several else []
    by_task = [points_by_task(of, panels)] if several else []
    over_static = static_gain_table(panels)
    return [*over_tasks, _costs_table(of), *contrast_tables(panels), *by_task, *([over_static] if over_static else [])]


def _costs_table(of: Headline) -> TextTable:
    """Return what is kept of the score where layers, operations or time are equal."""
    sizes = sorted({size for panel in of.panels for size in panel.batch_sizes})
    ratios = {"FLOPs": "flops_ratio", **{f"clock b{size}": f"speedup_b{size}" for size in sizes}}
    budgets = " / ".join(f"{speedup:g}x" for speedup in of.speedups)
    return TextTable(
        title=f"Score kept at {budgets}, by what is equal",
        headings=("method", "layers", *ratios),
        cells=tuple(
            (
                label,
                _kept_cell([of.entries[label, speedup].found for speedup in of.speedups]),
                *(
                    _kept_cell([_at_ratio(of, label, speedup, ratio) for speedup in of.speedups])
                    for ratio in ratios.values()
                ),
            )
            for label in of.methods
        ),
        notes=(
            f"Percent of the full model's score, mean of {', '.join(map(block_name, of.panels))}, at {budgets} less of "
            "what the column says: average layers on validation prompts; operations of decoding, or stock generate's "
            "time of decoding a token, on test prompts (of the knobs whose time was taken; b = batch size, all of one "
            "knob: rows of both in one batch would wait for the deeper one).",
            f"{OVER_NOTE}{UNDER_NOTE}",
        ),
        words=("method",),
    )


def _at_ratio(of: Headline, label: str, speedup: float, ratio: str) -> tuple[AtCost, ...]:
    found = [at_equal_ratio(panel, label, speedup, ratio) for panel in of.panels]
    return tuple(one for one in found if one is not None) if None not in found else ()


def _kept_cell(by_budget: Sequence[Sequence[AtCost]]) -> str:
    """Write what is kept at every budget, mean over tasks."""
    return " / ".join(_mean_kept(found) for found in by_budget)


def _mean_kept(found: Sequence[AtCost]) -> str:
    kept = mean_of_all([one.kept for one in found])
    return (
        MISSING if kept is None else f"{percent(kept)}{reach_marks([reach for one in found for reach in one.reaches])}"
    )


def measures_table(panel: GenerationPanel) -> TextTable | None:
    """Return all that is scored of one task, at every budget; None without the full model."""
    of = headline([panel])
    if of is None:
        return None
    measures = (panel.metric, TO_FULL, MATCH, NATS)
    wanted = [(label, speedup) for label in of.methods for speedup in of.speedups]
    samples = {measure: point_samples(panel, wanted, measure) for measure in measures}
    full = {seed: scored_of(panel, NATS).full(seed) for seed in panel.seeds_of()}
    known = [f"{np.exp(nats):.2f}" for nats in full.values() if nats is not None]
    return TextTable(
        title=f"At equal cost · {panel.task} · {panel.backbone}",
        headings=(
            "method",
            "at",
            f"{metric_name(panel.metric)}, points [95%]",
            "kept %",
            "ROUGE-L to full % [95%]",
            "match % [95%]",
            "perplexity",
            "times full [95%]",
            "layers",
            "FLOPs ratio",
            *(f"speed-up b{size}" for size in panel.batch_sizes),
        ),
        cells=tuple(_measures(panel, one, samples) for one in wanted),
        notes=(
            TEXT_POINTS_NOTE,
            f"{_PERPLEXITY_NOTE}{f', {known[0]}' if known else ''}.",
            "ROUGE-L to full and match: against full depth of the same weights. Layers and FLOPs: of the "
            "mixtures, a decoded token on test prompts; times: of the mixture that all prompts choose, a batch of one "
            "knob. In brackets: 95% paired bootstrap, over prompts and seeds.",
            f"{OVER_NOTE}{UNDER_NOTE}",
        ),
        words=("method", "at"),
    )


def _measures(panel: GenerationPanel, one: AtBudget, samples: dict[str, dict[AtBudget, Floats]]) -> tuple[str, ...]:
    label, speedup = one
    bounds = {measure: interval(own[one]) if one in own else None for measure, own in samples.items()}
    score, to_full, match, nats = (at_equal_cost(panel, label, speedup, measure) for measure in samples)
    more = None if nats.points is None or np.isnan(nats.score) else float(np.exp(nats.points))
    times = MISSING if more is None else f"{more:.2f}"
    if more is not None and (around := bounds[NATS]) is not None:
        times += " [{:.2f}, {:.2f}]".format(*np.exp(around))
    return (
        label,
        f"{speedup:g}x{reach_marks(score.reaches)}",
        MISSING if score.points is None else points(score.points, bounds[panel.metric]),
        percent(score.kept),
        f"{100 * to_full.score:.1f}{_around_full(bounds[TO_FULL])}",
        f"{100 * match.score:.1f}{_around_full(bounds[MATCH])}",
        MISSING if np.isnan(nats.score) else f"{np.exp(nats.score):.2f}",
        times,
        f"{score.layers:.2f}",
        number(score.flops_ratio),
        *(number(score.time_ratios.get(size)) for size in panel.batch_sizes),
    )


def _around_full(bounds: tuple[float, float] | None) -> str:
    """Write an interval of points lost against a full score of 1 as one of the score."""
    return "" if bounds is None else " [{:.1f}, {:.1f}]".format(*(100 * (1 + bound) for bound in bounds))


def text_headline_lines(panels: Sequence[GenerationPanel]) -> list[dict[str, object]]:
    """Return the lines of ``headline.csv``: of classification's columns, and what texts are scored by beside."""
    of = headline(panels)
    return [] if of is None else [{**line, **dict(_more(of, line))} for line in headline_lines(panels)]


def _more(of: Headline, line: dict[str, object]) -> Iterator[tuple[str, object]]:
    """Yield what is kept of the score, and means over tasks of the other scores: percent; of perplexity, geometric."""
    label, speedup = str(line["method"]), float(str(line["budget"]))
    kept = of.entries[label, speedup].kept
    yield "kept", "" if kept is None else round(100 * kept, 4)
    for measure in (TO_FULL, MATCH):
        yield (
            measure,
            round(100 * float(np.mean([at_equal_cost(p, label, speedup, measure).score for p in of.panels])), 4),
        )
    read = [at_equal_cost(panel, label, speedup, NATS) for panel in of.panels]
    mean = float(np.mean([one.score for one in read]))
    yield "perplexity", "" if np.isnan(mean) else round(float(np.exp(mean)), 4)
    lost = [one.points for one in read]
    known = [nats for nats in lost if nats is not None and not np.isnan(nats)]
    yield "times_full_perplexity", round(float(np.exp(np.mean(known))), 4) if len(known) == len(lost) else ""
