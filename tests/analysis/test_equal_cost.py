"""Methods at equal cost: neighbouring knobs, the choice in a grid, intervals and tests."""

import numpy as np
import pandas as pd
import pytest
from records_by_hand import (
    DECODING,
    LABELS,
    LAYERS,
    ROWS,
    cell,
    curve_by_hand,
    frames_by_hand,
    made_up_suite,
    results_of,
    right_answers,
)

from benchmarks.analysis.comparison import HEADLINE, Comparison, comparison_of, headline
from benchmarks.analysis.equal_cost import kept_lines, mix, points
from benchmarks.analysis.frames import load_results
from benchmarks.measure.terms import score_of_means, terms_of

FULL = cell("full"), {"curve": curve_by_hand([6.0, 6.0], [0.9, 0.9])}
MCID = ("mcid", "minilm-l6")


def per_seed(*cells):
    return Comparison(results_of([FULL, *cells])).per_seed.set_index(["label", "speedup"])


def test_neighbours_are_mixed_by_layers_and_no_score_is_read():
    """At 3 layers three quarters of the rows stop at 2.5 layers, however bad that knob is on validation rows."""
    curve = curve_by_hand([1.0, 2.5, 4.5, 6.0, 6.0], [0.5, 0.1, 0.8, 0.9, 0.9])
    found = per_seed((cell("deebert"), {"curve": curve})).loc["deebert"]
    assert found.loc[2.0, "weight"] == pytest.approx(0.75)
    assert found.loc[2.0, "score"] == pytest.approx(0.75 * 0.1 + 0.25 * 0.8)
    assert found["layers"].to_numpy() == pytest.approx(LAYERS / found.index.to_numpy())


def test_a_curve_below_a_budget_is_mixed_with_its_own_full_depth():
    """The deepest knob runs 3 layers: at 4 layers, a third of the rows run full depth."""
    found = per_seed((cell("deebert"), {"curve": curve_by_hand([3.0, 6.0], [0.9, 0.84])})).loc["deebert"]
    assert found.loc[1.5, "score"] == pytest.approx(0.9 * 2 / 3 + 0.84 / 3)
    assert found.loc[1.5, "own_last_exit"] == pytest.approx(0.9 * 2 / 3 + 0.84 / 3 - 0.84)
    assert found.loc[3.0, "reach"] == "over"
    assert found.loc[3.0, "layers"] == 3


def test_models_with_one_knob_are_one_curve_and_the_deepest_gives_full_depth():
    cheap = cell("paper", parameters={"alpha": 0.3}), {"curve": curve_by_hand([2.0, 6.0], [0.6, 0.1], [0.5])}
    deep = cell("paper", parameters={"alpha": 0.1}), {"curve": curve_by_hand([3.5, 6.0], [0.9, 0.95], [0.5])}
    found = per_seed(cheap, deep).loc["paper"]
    assert found.loc[3.0, "score"] == 0.6
    assert found.loc[2.0, "score"] == pytest.approx(0.6 / 3 + 0.9 * 2 / 3)
    assert found.loc[1.5, "score"] == pytest.approx(0.9 * 0.8 + 0.95 * 0.2), "not the full depth of the cheaper model"


def test_validation_rows_choose_among_the_cells_of_a_grid():
    curves = [curve_by_hand([1.0, 5.0, 6.0], scores) for scores in ([0.5, 0.7, 0.9], [0.5, 0.8, 0.9])]
    curves[1]["accuracy"] = 0.3  # worse on test rows, which choose nothing
    grid = [(cell("pcee", parameters={"patience": n}), {"curve": curve}) for n, curve in enumerate(curves)]
    assert per_seed(*grid).loc[("pcee", 2.0), "score"] == pytest.approx(0.3)


def test_the_score_of_a_mixture_is_the_metric_of_the_weighted_sample():
    labels, answers = np.array([0, 1, 1, 0, 1]), [np.array([0, 1, 0, 0, 1]), np.array([1, 1, 1, 0, 1])]
    terms = [terms_of("matthews", labels, one).mean(axis=0) for one in answers]
    scores = [float(score_of_means("matthews", one)) for one in terms]
    curve = curve_by_hand([2.0, 4.0, 6.0], [*scores, scores[1]]).rename(columns={"accuracy": "matthews"})
    curve["matthews_terms"] = [*map(list, terms), list(terms[1])]
    found = points(both := results_of([(cell("full", metric="matthews"), {"curve": curve})]), mix(both.knobs, [2.0]))
    both_answers = terms_of("matthews", np.tile(labels, 2), np.concatenate(answers))
    expected = score_of_means("matthews", both_answers.mean(axis=0))
    assert found["score"].item() == pytest.approx(float(expected))
    assert found["score"].item() != pytest.approx(np.mean(scores))


def test_by_operations_the_neighbours_around_the_budget_of_operations_are_mixed():
    curve = curve_by_hand([1.0, 3.0, 5.0, 6.0], [0.5, 0.6, 0.8, 0.9])
    curve["flops"] = [2e9, 4e9, 5.5e9, 6e9]
    results = results_of([FULL, (cell("deebert"), {"curve": curve})])
    found = Comparison(results, cost="flops_ratio").per_seed.set_index(["label", "speedup"]).loc[("deebert", 2.0)]
    assert found["layers"] == pytest.approx(2.0)
    assert found["flops_ratio"] != pytest.approx(2.0), "that column is of as many layers"
    assert mix(results.knobs, [2.0], "speedup_b7").empty, "an unknown cost compares nothing"


def test_the_headline_is_the_mean_over_tasks_best_first(results):
    by_task = comparison_of(results).by_task.set_index(["label", "speedup", "task"])["points"].sort_index()
    for line in headline(results).itertuples():
        assert line.points == pytest.approx(100 * by_task.loc[line.method, line.budget].mean())
        assert (line.tasks, line.seeds) == (2, 2)
    middle = headline(results).query("budget == 2")
    best_first = middle.sort_values(["over", "points"], ascending=[True, False])
    assert best_first["method"].tolist() == middle["method"].tolist()
    assert "full" not in set(middle["method"])
    assert tuple(headline(results).columns[: len(HEADLINE)]) == HEADLINE


def test_the_area_is_the_mean_of_the_points_between_full_cost_and_a_third():
    """Points fall by 30 a layer below 3 layers, and are 0 above."""
    curve = curve_by_hand([2.0, 3.0, 6.0, 6.0], [0.6, 0.9, 0.9, 0.9])
    results = results_of([FULL, (cell("deebert"), {"curve": curve})])
    layers = LAYERS / np.linspace(1, 3, 21)
    expected = np.where(layers < 3, -30 * (3 - layers), 0).mean()
    assert headline(results).query("method == 'deebert'")["area"].to_numpy() == pytest.approx([expected] * 3)


def test_the_headline_names_exits_and_the_cost_of_training():
    rows = {"full": 2000.0, "pabee": 2000.0, "deebert": 2500.0}
    cells = [
        (record.model_copy(update={"exit_network": "mlp", "trained_rows": rows.get(record.label)}), frames)
        for record, frames in made_up_suite()
    ]
    grid = [(r.model_copy(update={"parameters": {"alpha": 0.1}}), f) for r, f in cells if r.label == "deebert"]
    found = headline(results_of([*cells, *grid])).query("budget == 2").set_index("method")
    assert found["training_cost"].dropna().to_dict() == {"pabee": 1.0, "deebert": 1.25}, "of one model of a grid"
    assert found.at["deebert", "knobs"] == 21, "both cells have the same"
    assert found.at["pabee", "exits"] == "mlp"
    assert found["exits"].isna()["static"]


def test_a_difference_is_over_the_seeds_that_both_have():
    cells = made_up_suite() + made_up_suite(1, labels=("full", "deebert", "static"))
    perfect = {**frames_by_hand("deebert"), "curve": frames_by_hand("deebert")["curve"].assign(accuracy=1.0)}
    better = [(r, perfect if (r.label, r.seed) == ("deebert", 1) else frames) for r, frames in cells]
    comparison = Comparison(results_of(better))
    found = comparison.per_seed.set_index(["label", "seed", "speedup"])["points"]
    expected = found.loc["pabee", 0, 2.0] - found.loc["deebert", 0, 2.0]
    assert comparison.difference(MCID, "pabee", "deebert", 2.0)[0] == pytest.approx(expected)


def test_paired_intervals_of_known_answers():
    """Rows that full model and method answer alike cancel out; a seed without full model takes the mean of others."""
    cells = made_up_suite() + made_up_suite(1, labels=LABELS[1:])
    comparison = Comparison(results_of(cells))
    for label in comparison.results.labels_to_compare:
        exact = comparison.by_task.set_index(["label", "speedup"]).at[(label, 2.0), "points"]
        low, high = np.percentile(comparison.drawn(MCID, label, 2.0), [2.5, 97.5])
        assert low - 0.01 <= exact <= high + 0.01
    line = comparison.headline.query("method == 'deebert' and budget == 2").iloc[0]
    assert line["rule_gain"] == pytest.approx(line["score"] - 100 * right_answers("deebert")[:, 2].mean())
    assert line["rule_low"] < line["rule_gain"] < line["rule_high"]
    tests = comparison.contrasts("deebert").set_index(["method", "budget"])
    assert "deebert" not in tests.index.unique("method")
    assert (tests["p_holm"].fillna(1) >= tests["p"].fillna(1)).all()
    line, (exact, samples) = tests.loc["pabee", 2.0], comparison.difference(MCID, "pabee", "deebert", 2.0)
    assert (line.points, line.low) == pytest.approx((100 * exact, 100 * np.percentile(samples, 2.5)))
    assert line["detectable"] == pytest.approx(280 * samples.std())
    assert np.isnan(line.low_tasks), "one task says nothing about others"
    assert line["wins / losses"] == f"{int(exact > 0)} / {int(exact < 0)}"


def test_samples_without_the_exits_of_the_mixed_knobs_are_moved_to_their_points():
    """Records published before all mixed knobs were kept have the exits of others, which stand in."""
    cells = made_up_suite()
    number = next(n for n, (record, _) in enumerate(cells) if record.label == "deebert")
    record, frames = cells[number]
    kept = frames["exits"][frames["exits"]["place"] == frames["exits"]["place"].min()]
    comparison = Comparison(results_of([*cells[:number], (record, {**frames, "exits": kept}), *cells[number + 1 :]]))
    lines = kept_lines(comparison.results)
    assert any(line != other for line, other in lines.items())
    exact = comparison.per_seed.set_index(["label", "speedup"]).at[("deebert", 2.0), "points"]
    assert comparison.drawn(MCID, "deebert", 2.0).mean() == pytest.approx(exact, abs=2 / ROWS**0.5 / 100)


def test_a_rule_is_compared_with_exits_that_exist():
    """At these knobs rows exit at layers 1, 4 and 6: there is an exit at the layer of 1.5x, and none at that of 2x."""
    found = per_seed((cell("deebert"), frames_by_hand("deebert", [2.5, 5.0]))).loc["deebert", "rule_gain"]
    assert found.notna().to_dict() == {1.5: True, 2.0: False, 3.0: False}


def test_points_over_the_budget_are_marked_and_never_better():
    late = frames_by_hand("oracle", [5.0]) | {"curve": frames_by_hand("oracle", [5.0])["curve"].assign(live_rows=1.0)}
    comparison = Comparison(results_of([*made_up_suite(), (cell("late"), late)]))
    line = comparison.headline.query("method == 'late' and budget == 3").iloc[0]
    assert line["over"]
    assert line[["no_rule", "rule_gain"]].isna().all(), "all rows at the layer of the budget cost less"
    assert np.isnan(line["area"])
    assert line["better_than_static"] == 0
    assert comparison.headline["method"].iloc[-1] == "late", "behind all that meet the budget"
    tests = comparison.contrasts("static").set_index(["method", "budget"]).loc["late", 3.0]
    assert tests["over"]
    assert tests["points"] > 0, "it leads"
    assert np.isnan(tests["p"])
    assert np.isnan(tests["p_holm"])
    assert tests["wins / losses"] == "0 / 0"
    losses = comparison.contrasts("late").set_index(["method", "budget"]).loc["static", 3.0]
    assert np.isnan(losses["p"])
    assert losses["wins / losses"] == "0 / 0"


def test_the_tokens_of_mixed_prompts_meet_the_budget():
    """Knobs write texts of different lengths: layers are those of the decoded tokens of both shares."""
    results = load_results(DECODING)
    found = Comparison(results).per_seed.query("reach == 'met'")
    ends = [
        results.knobs.loc[found[name].astype(int), ["decoded_tokens", "layers"]].to_numpy().T
        for name in ("first", "second")
    ]
    shares = (found["weight"].to_numpy(), 1 - found["weight"].to_numpy())
    tokens = sum(share * end[0] for share, end in zip(shares, ends, strict=True))
    layers = sum(share * end[0] * end[1] for share, end in zip(shares, ends, strict=True)) / tokens
    assert (ends[0][0] != ends[1][0]).any()
    assert layers * found["speedup"].to_numpy() == pytest.approx([30] * len(found))


def test_texts_are_compared_with_the_full_models():
    results = load_results(DECODING).only(tasks=["alpaca"])
    full = results.knobs[(results.knobs["label"] == "token-full") & results.knobs["knob"].isna()]["rougeL"].mean()
    found = Comparison(results, (1.5,))
    assert found.areas.empty
    for line in found.by_task[found.by_task["label"] != "token-full"].itertuples():
        assert (line.points, line.kept) == pytest.approx((line.score - full, line.score / full))
    drawn = found.drawn(("alpaca", "smollm2-135m"), "token-static", 1.5)
    assert isinstance(drawn, np.ndarray)
    assert pd.Series(drawn).std() > 0
