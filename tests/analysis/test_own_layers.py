"""Models with one knob at their own layers, against published frames read by pandas alone."""

import numpy as np
import pandas as pd
import pytest
from documents import ROOT

from benchmarks.analysis.frames import load_results
from benchmarks.analysis.own_layers import own_layers, own_layers_table

FOLDER = ROOT / "results" / "cpu-6-layers"


def test_the_gain_is_over_two_neighbouring_layers_of_the_same_exits():
    found = own_layers(load_results(FOLDER, tasks=["movie-snippets"]))
    assert set(found["label"]) == {"consistentee-paper", "consistentee-paper-long-stage-2"}
    assert list(found["other"].notna()) == list(found["label"] == "consistentee-paper-long-stage-2")
    cells = pd.read_parquet(FOLDER / "cells.parquet")
    cell = cells.index[cells["key"] == found["key"].iloc[0]].item()
    frames = {name: pd.read_parquet(FOLDER / f"{name}.parquet") for name in ("answers", "exits", "rows")}
    answers, exits, rows = (frame[frame["cell"] == cell] for frame in frames.values())
    rows = rows.set_index("row")
    right = (
        answers.assign(right=answers["answer"] == answers["row"].map(rows["label"])).groupby("layer")["right"].mean()
    )
    layers = exits["exit_layer"].mean()
    own = exits.merge(answers, left_on=["row", "exit_layer"], right_on=["row", "layer"])
    score = (own["answer"] == own["row"].map(rows["label"])).mean()
    line = found.iloc[0]
    assert line["layers"] == pytest.approx(layers)
    assert line["gain"] == pytest.approx(100 * (score - np.interp(layers, right.index, right)))
    assert line["most"] == pytest.approx(100 * exits["exit_layer"].value_counts(normalize=True).max())


def test_the_table_has_a_line_for_every_price():
    found = load_results(FOLDER, ["consistentee-paper"], ["mcid"])
    prices = set(found.cells["parameters"][found.cells["label"] == "consistentee-paper"])
    assert list(own_layers_table(found).cells["parameters"]) == sorted(prices)
    assert len(prices) > 1
