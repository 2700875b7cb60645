"""Is a method better than exits that look at nothing? Its score, less that of a static exit at equal average layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.analysis.panels.means import mean_of_all
from benchmarks.analysis.panels.results import FULL, MAJORITY, Panel, StoredCell
from benchmarks.analysis.rows.choices import Choice
from benchmarks.analysis.rows.instances import TableRow, answers_of, predictions_of, row_for_half
from benchmarks.measure.intervals import can_resample, interval, mean_over_drawn_seeds, resampled_scores
from consistentee.errors import UserError

STATIC = "static"

PRINTED = 0.0005
"""Half of a tenth of a point: an interpolated correlation is off by less, and tables show it as 0.0."""


@dataclass(frozen=True)
class StaticGain:
    """One curve, at its knob for half of the layers, against a static exit of the jointly trained model.

    Attributes:
        gain: its score minus the static exit's, mean of the seeds. Between two layers the static exit's score is
            interpolated: a random mix of both runs as many layers.
        interval: 95% paired bootstrap interval, over rows and seeds; None for a score of ranks.
    """

    gain: float
    interval: tuple[float, float] | None

    @property
    def text(self) -> str:
        """The gain in points, and a star where it is beyond noise: ``+2.6*``."""
        return f"{100 * self.gain:+.1f}{'*' * abs(self.beyond_noise)}"

    @property
    def beyond_noise(self) -> int:
        """1 or -1 where the interval lies above or below 0 by what a table can show, else 0."""
        if self.interval is None:
            return 0
        low, high = self.interval
        return int(low > PRINTED) - int(high < -PRINTED)


def mean_gain(gains: Sequence[StaticGain | None]) -> float | None:
    """Return the mean over tasks of one curve's gains; None unless it has one on each."""
    return mean_of_all([None if gain is None else gain.gain for gain in gains])


@dataclass(frozen=True)
class _Neighbours:
    """The two static exits around an operating point, and the share of the deeper one at equal layers."""

    static: StoredCell
    shallow: int
    share: float

    @property
    def layers(self) -> tuple[int, int]:
        return self.shallow, self.shallow + (self.share > 0)

    def score(self) -> float:
        record = self.static.record
        points = sorted((point.average_layers, point.scores[record.metric]) for point in record.curve_test)
        layers, scores = np.array(points).T
        return float(np.interp(self.shallow + self.share, layers, scores))


def static_gains(panel: Panel) -> dict[str, StaticGain]:
    """Return the gain of every curve that has one: none for the full model, static exits and the majority class."""
    return panel.once("gains over static exits", lambda: _static_gains(panel))


def _static_gains(panel: Panel) -> dict[str, StaticGain]:
    labels = [label for label, method in panel.methods.items() if method not in (FULL, STATIC, MAJORITY)]
    rows = [row_for_half(panel, label) for label in labels]
    gains = {row.label: _gain(panel, row) for row in rows if row is not None}
    return {label: gain for label, gain in gains.items() if gain is not None}


def _gain(panel: Panel, row: TableRow) -> StaticGain | None:
    neighbours = [_neighbours(panel, choice) for choice in row.choices]
    known = [(choice, static) for choice, static in zip(row.choices, neighbours, strict=True) if static is not None]
    if len(known) < len(row.choices):
        return None
    scores = [choice.point.test.scores[panel.metric] - static.score() for choice, static in known]
    return StaticGain(float(np.mean(scores)), _interval(panel.metric, known))


def _neighbours(panel: Panel, choice: Choice) -> _Neighbours | None:
    cells = [c for c in panel.cells_of_method(STATIC) if c.record.seed == choice.cell.record.seed]
    layers = choice.point.test.average_layers
    if not cells or not 1 <= layers <= panel.num_layers:  # a cascade may run more layers than the model has
        return None
    shallow = int(layers)
    return _Neighbours(cells[0], shallow, layers - shallow)


def _interval(metric: str, pairs: Sequence[tuple[Choice, _Neighbours]]) -> tuple[float, float] | None:
    try:
        answers = [answers_of(choice) for choice, _ in pairs]
        columns = [predictions_of(static.static.rows) for _, static in pairs]
    except UserError:  # predictions are gone: the scores still stand
        return None
    labels = answers[0].labels
    same_rows = all(np.array_equal(labels, one.labels) for one in answers)
    if not same_rows or not can_resample(metric, labels):
        return None
    predictions = []
    for one, static, (_, neighbours) in zip(answers, columns, pairs, strict=True):
        shallow_and_deep = [f"layer_prediction_{layer}" for layer in neighbours.layers]
        if not np.array_equal(static["label"], labels) or not static.keys() >= set(shallow_and_deep):
            return None  # other rows, or written before answers of all layers were kept
        predictions += [one.predictions, *(static[name] for name in shallow_and_deep)]
    scores = resampled_scores(metric, labels, predictions)
    share = np.array([neighbours.share for _, neighbours in pairs])
    difference = scores[:, ::3] - (1 - share) * scores[:, 1::3] - share * scores[:, 2::3]
    return interval(mean_over_drawn_seeds(difference))
