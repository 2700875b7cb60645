"""Knobs to time: the neighbours of the budgets on the curves of finished cells."""

import numpy as np
import pandas as pd
from records_by_hand import LAYERS, cell, curve_by_hand, decoding_cell, decoding_frames

from benchmarks.run.timing import knobs_to_time
from benchmarks.store.records import AnyRecord

Curve = tuple[AnyRecord, pd.DataFrame]


def curve_of(*layers: float, label: str = "deebert", live: bool = True, **parameters: object) -> Curve:
    """Return a cell whose knobs 0, 1, ... run so many layers, and its curve."""
    points = [*layers, LAYERS]
    return cell(label, parameters=parameters), curve_by_hand(points, points, knobs=range(len(layers)), live=live)


def timed(*cells: Curve) -> list[list[float]]:
    found = knobs_to_time(cells)
    return [found[record.key] for record, _ in cells]


def test_neighbours_of_the_budgets_are_timed_and_full_depth_is_the_stock_models():
    assert LAYERS == 6, "the budgets are 3, 4 and 2 layers"
    assert timed(curve_of(1.0, 2.5, 3.5, 5.0)) == [[1.0, 2.0, 3.0, 0.0]], "the middle budget comes first"
    assert timed(curve_of(2.0, 3.0, 4.0)) == [[1.0, 2.0, 0.0]], "knobs on a budget stand alone"
    assert timed(curve_of(1.0, 2.5)) == [[1.0, 0.0]]
    assert timed(curve_of(1.0, 5.0, live=False)) == [[]], "a rule that cannot run live has no times"


def test_cells_with_one_knob_each_are_one_curve_and_others_have_their_own():
    prices = [curve_of(layers, price=layers) for layers in (1.0, 2.9, 3.1, 3.9, 5.5)]
    assert timed(*prices) == [[0.0], [0.0], [0.0], [0.0], [0.0]]
    assert timed(curve_of(1.0, price=1), curve_of(1.1, price=2), curve_of(4.0, price=3)) == [[], [0.0], [0.0]]
    patient, hasty = curve_of(1.0, 3.5, patience=1), curve_of(1.2, 3.0, patience=2)
    assert timed(patient, hasty, curve_of(3.0, label="pabee")) == [[0.0, 1.0], [1.0, 0.0], [0.0]]


def test_decoded_knobs_alone_are_timed():
    record, curve = decoding_cell("token-static"), decoding_frames((1, 3, 5))["curve"]
    assert timed((record, curve)) == [[3.0, 5.0]], "the budgets are 4, 4.8 and 3 layers"
    curve.loc[1, "layers"] = np.nan
    assert timed((record, curve)) == [[1.0, 5.0]]
    curve["layers"] = [9.0, 8.0, 7.0, LAYERS]
    assert timed((record, curve)) == [[5.0]], "of drafts that cost more than full depth, the cheapest ones"
