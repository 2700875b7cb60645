"""Models with one knob at their own layers, and speed-ups at no loss: published frames, read by pandas alone."""

import numpy as np
import pandas as pd
import pytest
from documents import ROOT
from records_by_hand import cell, curve_by_hand, results_of

from benchmarks.analysis.comparison import comparison_of
from benchmarks.analysis.frames import load_results
from benchmarks.analysis.own_layers import own_layers
from benchmarks.analysis.promises import chosen_knobs, promise_table, promises

SIX_LAYERS = ROOT / "results" / "cpu-6-layers-float32"


def test_the_gain_is_over_two_neighbouring_layers_of_the_same_exits():
    found = own_layers(load_results(SIX_LAYERS).only(tasks=["dbpedia"]))
    assert found["label"].tolist() == ["consistentee-paper"] * 3
    assert found["other"].notna().tolist() == [values == "alpha=0.1" for values in found["parameters"]]
    cells = pd.read_parquet(SIX_LAYERS / "cells.parquet")
    cell = cells.index[cells["key"] == found["key"].iloc[0]].item()
    frames = {name: pd.read_parquet(SIX_LAYERS / f"{name}.parquet") for name in ("answers", "exits", "rows")}
    answers, exits, rows = (frame[frame["cell"] == cell] for frame in frames.values())
    exits, rows = exits[exits["place"] == 0], rows.set_index("row")
    is_right = answers["answer"] == answers["row"].map(rows["label"])
    right = is_right.groupby(answers["layer"]).mean()
    layers = exits["exit_layer"].mean()
    own = exits.merge(answers, left_on=["row", "exit_layer"], right_on=["row", "layer"])
    score = (own["answer"] == own["row"].map(rows["label"])).mean()
    line = found.iloc[0]
    assert line["layers"] % 1 > 0, "between two layers"
    assert line["layers"] == pytest.approx(layers)
    gain = 100 * (score - np.interp(layers, right.index, right))
    assert line["gain"] == pytest.approx(gain, abs=1e-4), "stored layers are float32"
    assert line["most"] == pytest.approx(100 * exits["exit_layer"].value_counts(normalize=True).max())


TWELVE_LAYERS = ROOT / "results" / "cpu-12-layers"


@pytest.fixture(scope="module")
def published():
    return load_results(TWELVE_LAYERS)


def test_the_fastest_knob_within_the_loss_on_validation_rows_is_chosen(published):
    cells = pd.read_parquet(TWELVE_LAYERS / "cells.parquet")
    curve = pd.read_parquet(TWELVE_LAYERS / "curve.parquet").merge(cells, left_on="cell", right_index=True)
    curve = curve[(curve["task"] == "mcid") & (curve["seed"] == 0)]
    full = curve[(curve["label"] == "full") & curve["knob"].isna()].iloc[0]
    own = curve[(curve["label"] == "deebert") & (curve["validation_score"] >= full["validation_score"] - 0.005)]
    expected = own.sort_values(["validation_layers", "accuracy"]).iloc[0]
    found = chosen_knobs(published, 0.5).query("task == 'mcid' and seed == 0 and label == 'deebert'")
    assert len(found) == 1
    assert found["promised"].item() == pytest.approx(12 / expected["validation_layers"])
    assert found["lost"].item() == pytest.approx(100 * (full["accuracy"] - expected["accuracy"]))


def test_without_a_knob_within_the_loss_the_full_depth_that_is_best_on_validation_rows_is_chosen():
    curves = {0.1: curve_by_hand([2.0, 6.0], [0.5, 0.6], [0.5]), 0.3: curve_by_hand([3.0, 6.0], [0.5, 0.8], [0.5])}
    models = [(cell("paper", parameters={"alpha": alpha}), {"curve": curve}) for alpha, curve in curves.items()]
    full = cell("full"), {"curve": curve_by_hand([6.0, 6.0], [0.9, 0.9])}
    found = chosen_knobs(results_of([full, *models]), 0.5).query("label == 'paper'")
    assert found["lost"].tolist() == pytest.approx([10])


def test_a_larger_loss_promises_more_and_the_table_shows_the_means(published):
    found = promises(published)
    by_loss = found.pivot(index="method", columns="loss", values="promised")
    assert by_loss.notna().all(axis=None)
    assert (by_loss.diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)
    assert (found["promised"] >= 1).all()
    static = comparison_of(published).in_means(chosen_knobs(published, 0.0).query("label == 'static'"))
    exact = found.query("method == 'static' and loss == 0").iloc[0]
    assert exact["lost"] == pytest.approx(static.groupby("task")["lost"].mean().mean())
    assert exact["broken"] == pytest.approx(100 * (static["lost"] > 1).groupby(static["task"]).mean().mean())
    table = promise_table(published)
    assert table.cells.set_index("method").loc["static", "lost, 0"] == f"{exact['lost']:+.1f}"
