"""Mixtures of decoded knobs: half of the prompts choose them by their texts, and the other half is scored.

Validation prompts are few, and replayed where nothing is decoded: how often an exit agrees with layer L does not tell
what becomes of the text behind it. By that agreement a static exit that keeps 97% of layer L's text was on no hull. So
every second test prompt chooses for the others, and the others for it, and no text is scored at a knob that it chose
(Stone, "Cross-validatory choice and assessment of statistical predictions", JRSS B 36, 1974).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from benchmarks.analysis.panels.results import AnyPanel
from benchmarks.analysis.panels.select import Mixture, mixture_at
from benchmarks.analysis.rows.scored import RowAnswers, Scored, scored_of
from benchmarks.analysis.statistics import Floats

if TYPE_CHECKING:
    import pandas as pd


def scores_of_texts(panel: AnyPanel, knobs: "pd.DataFrame") -> Floats | None:
    """Return what every test prompt of generation scores at decoded knobs: [knobs, prompts].

    None for a single prompt, and where the prompts' scores were not kept: the mixture is then that of all prompts.
    """
    rows = rows_of_knobs(scored_of(panel), knobs, range(len(knobs)))
    return None if rows is None or len(rows[0]) < 2 else rows[1]


def rows_of_knobs(scored: Scored, knobs: "pd.DataFrame", places: Sequence[int]) -> RowAnswers | None:
    """Return labels [rows] and answers [places, rows] at some knobs; None unless all are known, of the same rows."""
    found = [rows for place in places if (rows := scored.rows_at(knobs.iloc[place])) is not None]
    if not found or len(found) < len(places) or not all(np.array_equal(found[0][0], labels) for labels, _ in found):
        return None
    return found[0][0], np.stack([answers for _, answers in found])


def chosen_by_halves(budget: float, costs: ArrayLike, scores: Floats) -> tuple[Mixture, Mixture]:
    """Return what prompts 0, 2, ... are scored at, which 1, 3, ... have chosen, and the reverse.

    Args:
        budget: cost that is allowed.
        costs: of each knob, [knobs].
        scores: [knobs, prompts].
    """
    of_even, of_odd = (scores[:, half::2].mean(axis=1) for half in (0, 1))
    return mixture_at(budget, costs, of_odd), mixture_at(budget, costs, of_even)


def rows_at_halves(scored: Scored, knobs: "pd.DataFrame", halves: tuple[Mixture, Mixture]) -> RowAnswers | None:
    """Return labels and scores of prompts, each at the mixture that the other half has chosen; None if unknown."""
    places = sorted({place for mixture in halves for place in (mixture.first, mixture.second)})
    rows = rows_of_knobs(scored, knobs, places)
    if rows is None:
        return None
    labels, answers = rows
    at = dict(zip(places, answers, strict=True))
    mixed = np.empty(len(labels))
    for half, mixture in enumerate(halves):
        every_second = slice(half, None, 2)
        first, second = at[mixture.first][every_second], at[mixture.second][every_second]
        mixed[every_second] = mixture.weight * first + (1 - mixture.weight) * second
    return labels, mixed
