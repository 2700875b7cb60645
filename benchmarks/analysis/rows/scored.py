"""What test rows score at a knob: all that differs between the kinds once methods are compared at equal cost."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.panels.means import mean_of_all
from benchmarks.analysis.panels.results import AnyPanel, Panel
from benchmarks.analysis.rows.frame import knobs_of
from benchmarks.analysis.rows.instances import hull_answers, predictions_of
from benchmarks.analysis.rows.texts import GenerationCell, GenerationPanel, column_by_prompt, full_scores_by_prompt
from benchmarks.analysis.statistics import MEAN, MEAN_BY_SIZE
from benchmarks.store.generation_records import GenerationRecord
from benchmarks.store.records import CellRecord
from consistentee.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

RowAnswers = tuple[NDArray, NDArray]
"""What a score is made of, row by row: labels and answers as :func:`benchmarks.analysis.statistics.resampled_terms` takes
them. Rows are the same where labels are equal."""

NATS = "nats"
"""What a reference's token loses at the exits, see :mod:`benchmarks.measure.reference_loss`."""
TO_FULL = "rougeL_to_full"
MATCH = "match"


class Scored(ABC):
    """A score of the test rows of a panel.

    Attributes:
        column: of the long table: the score at every knob.
        metric: how answers of rows make it, see :func:`benchmarks.analysis.statistics.resampled_terms`.
        is_mean: whether a random mixture of two knobs scores the mixture of their scores.
    """

    column: str
    metric: str
    is_mean: bool
    _panel: AnyPanel

    @abstractmethod
    def rows_at(self, knob: "pd.Series") -> RowAnswers | None:
        """Return what rows say at a knob, a line of ``knobs_of``; None where that was not kept."""

    @abstractmethod
    def of_full(self, record: Any) -> float | None:
        """Return the score of a cell of the full model; None where it was not measured."""

    def full(self, seed: int) -> float | None:
        """Return the full model's score with a seed; the mean of its seeds where it was not run with this one."""
        label = self._panel.full_label
        full = [] if label is None else self._panel.cells_of(label)
        own = [cell for cell in full if cell.record.seed == seed] or full
        return mean_of_all([self.of_full(cell.record) for cell in own])

    @abstractmethod
    def rows_of_full(self, seed: int) -> RowAnswers | None:
        """Return what rows say in the full model with a seed; None where it was not run, or that was not kept."""


class ScoredInstances(Scored):
    """The task's score of classification."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self.column = self.metric = panel.metric
        self.is_mean = panel.metric == "accuracy"

    def rows_at(self, knob: "pd.Series") -> RowAnswers | None:
        """Return labels and answers at an operating point or a knob of the hull."""
        point, hull = (knob.get(name, np.nan) for name in ("point", "hull"))
        if np.isnan(point) and np.isnan(hull):
            return None
        try:
            columns = predictions_of(self._panel.cells[knob["cell"]].rows)
            answers = hull_answers(columns, int(hull)) if np.isnan(point) else columns[f"prediction_{point:.0f}"]
        except UserError:  # predictions are gone: the curve still stands
            return None
        return columns["label"], answers

    def of_full(self, record: CellRecord) -> float:
        """Return the score at the last knob."""
        return record.curve_test[-1].scores[self.metric]

    def rows_of_full(self, seed: int) -> RowAnswers | None:
        """Return labels and answers at the last knob of the full model."""
        label = self._panel.full_label
        if label is None or not self._panel.cells_of(label, seed):
            return None
        return self.rows_at(knobs_of(self._panel, label, seed).iloc[-1])


class ScoredTexts(Scored):
    """A score of texts: the task's own, :data:`TO_FULL`, :data:`MATCH`, or :data:`NATS`, of which less is better.

    :data:`TO_FULL` and :data:`MATCH` are against the full depth of the very weights that a method decodes with; the
    task's score and :data:`NATS` are compared with those of the method that is the full model.
    """

    def __init__(self, panel: GenerationPanel, measure: str) -> None:
        self._panel = panel
        self.column = measure
        self.metric = MEAN_BY_SIZE if measure == NATS else MEAN
        self.is_mean = True  # of nats too: references are the same at every knob

    def rows_at(self, knob: "pd.Series") -> RowAnswers | None:
        """Return the score of every text; of nats, the tokens of every reference and what they lose."""
        cell = self._panel.cells[knob["cell"]]
        try:
            return self._labels(cell), column_by_prompt(cell, f"{self.column}_{knob['point']:.0f}")
        except UserError:
            return None

    def of_full(self, record: GenerationRecord) -> float | None:
        """Return the score as the record has it; 1 of what is measured against the very same weights."""
        if self.column == NATS:
            return record.full_reference_nats
        return 1.0 if self.column in (TO_FULL, MATCH) else record.full_scores[self.column].value

    def rows_of_full(self, seed: int) -> RowAnswers | None:
        """Return the same of the full model's own texts."""
        label = self._panel.full_label
        cells = [] if label is None else self._panel.cells_of(label, seed)
        try:
            return (self._labels(cells[0]), full_scores_by_prompt(cells[0], self.column)) if cells else None
        except UserError:
            return None

    def _labels(self, cell: GenerationCell) -> NDArray:
        return column_by_prompt(cell, "reference_tokens" if self.column == NATS else "row")


def scored_of(panel: AnyPanel, measure: str | None = None) -> Scored:
    """Return a score of a panel of any kind: the task's own, or of texts a ``measure``, see :class:`ScoredTexts`."""
    if isinstance(panel.cells[0].record, GenerationRecord):
        return ScoredTexts(panel, measure or panel.metric)
    if measure is not None:
        raise ValueError(f"{measure!r} is a score of texts")
    return ScoredInstances(panel)
