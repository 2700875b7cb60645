"""Results folders as frames: what every line holds, and what several folders make together."""

from dataclasses import replace

import numpy as np
import pytest
from records_by_hand import (
    DECODING,
    LAYERS,
    ROWS,
    cell,
    curve_point,
    made_up_suite,
    operating_point,
    results_of,
    right_answers,
    write_results,
)

from benchmarks.analysis.equal_cost import HEADLINE, EqualCost, comparison_of, headline
from benchmarks.analysis.frames import load_results, merge
from benchmarks.analysis.tables import render
from benchmarks.specs.knob_choice import Reach
from benchmarks.store.generation_records import Speculation
from benchmarks.store.hashes import unsealed


def test_knobs_have_a_line_for_every_knob_of_every_cell(results):
    assert len(results.knobs) == sum(len(record.curve_test) for record in results.records)
    record = next(r for r in results.records if (r.task, r.label, r.seed) == ("rte", "deebert", 1))
    own = results.knobs[results.knobs["key"] == record.key]
    assert own["layers"].tolist() == [point.average_layers for point in record.curve_test]
    assert own["score"].tolist() == [point.scores["accuracy"] for point in record.curve_test]
    points = own.dropna(subset=["point"])
    assert sorted(points["knob"]) == sorted(point.knob for point in record.operating_points)
    assert points["flops_ratio"].tolist() == pytest.approx((LAYERS / points["layers"]).tolist())
    assert points["speedup_b1"].tolist() == pytest.approx((LAYERS / points["layers"]).tolist())


def test_times_count_in_proportion_to_the_layers_that_all_test_rows_run(results):
    def halved(contender):
        return contender.model_copy(update={"average_layers": contender.average_layers / 2})

    timings = [
        timing.model_copy(update={"contenders": [c if c.cell_key == "" else halved(c) for c in timing.contenders]})
        for timing in results.timings
    ]
    known = results.knobs.dropna(subset=["speedup_b1"])
    half = replace(results, timings=timings).knobs.loc[known.index]
    assert half["speedup_b1"].tolist() == pytest.approx((known["speedup_b1"] / 2).tolist())
    assert half["seconds_b1"].tolist() == pytest.approx((known["seconds_b1"] * 2).tolist())


def test_rows_have_the_answers_of_operating_points(results):
    one = results.only(labels=["deebert"], tasks=["mcid"]).rows
    own = one[one["label"] == "deebert"]
    by_knob = own.groupby(["seed", "knob"])
    assert (by_knob.size() == ROWS).all()
    right = (own["answer"] == own["true_label"]).groupby([own["seed"], own["knob"]]).mean()
    knobs = results.knobs.query("label == 'deebert' and task == 'mcid' and point >= 0").set_index(["seed", "knob"])
    assert right.to_numpy() == pytest.approx(knobs["score"].loc[right.index].to_numpy(), abs=0.5 / ROWS)


def test_all_layers_answer_by_the_last_exit_which_a_cascade_has_beyond_the_stock_models(results):
    again = results.with_cells(results.cells)
    knob = again.knobs.query("label == 'static'").index[-1]
    assert not again.knobs.at[knob, "point"] >= 0, "no operating point, whose exits were kept"
    columns = again.predictions(again.knobs.at[knob, "cell"])
    columns["layer_prediction_7"] = columns["label"]
    assert (again.answers(knob)[1] == columns["label"]).all()


def test_some_labels_and_tasks(results):
    some = results.only(labels=["deebert"], tasks=["rte"])
    assert list(some.methods) == ["full", "deebert", "majority"]


# ---------------------------------------------------------------------------------------------- several folders


def test_the_first_folder_counts_and_recipes_are_never_mixed(suite_folder, tmp_path):
    write_results(tmp_path / "other", tasks=("mcid", "sst2"))
    first, second = load_results(suite_folder), load_results(tmp_path / "other")
    merged = merge([first, second])
    assert len(merged.cells) == len(first.cells) + sum(record.task == "sst2" for record in second.records)
    assert merged.faults == []
    for record in (tmp_path / "other").rglob("record.json"):
        text, _ = unsealed(record.read_text())
        record.write_text(text.replace('"training_version": 1', '"training_version": 2'))
    merged = merge([first, load_results(tmp_path / "other")])
    assert {record.task for record in merged.records} == {"mcid", "rte", "sst2"}
    (fault,) = merged.faults
    assert fault.startswith("mcid, minilm-l6 of ")
    assert fault.endswith("in version of training")


# ---------------------------------------------------------------------------------------------- equal cost


def test_a_mixture_by_hand(results):
    """At 3 layers a half of the rows leaves at layer 2, where 60% are right, and a half at layer 4 (85%)."""
    found = EqualCost(results).by_task.set_index(["task", "label", "speedup"])
    line = found.loc[("mcid", "static", 2.0)]
    assert line["layers"] == pytest.approx(3, abs=0.02)
    assert line["score"] == pytest.approx(0.725, abs=0.005)
    assert line["points"] == pytest.approx(line["score"] - 0.91)
    assert line["kept"] == pytest.approx(line["score"] / 0.91)
    assert line["seeds"] == 2
    assert not line["over"]


def test_test_rows_pay_the_budget_exactly():
    """Test rows run fewer layers than validation rows: the weight counts the layers of test rows."""

    def deeper(point):
        first, *middle, last = point.exit_histogram
        return point.model_copy(update={"exit_histogram": [first // 2, *middle, last + first - first // 2]})

    records = [
        record.model_copy(update={"curve_validation": [deeper(point) for point in record.curve_validation]})
        if record.label == "deebert"
        else record
        for record in made_up_suite()
    ]
    found = EqualCost(results_of(records)).per_seed
    met = found[found["reach"] == Reach.MET]
    assert met["layers"].to_numpy() == pytest.approx(LAYERS / met["speedup"].to_numpy())
    assert {"deebert", "static"} <= set(met["label"])


def test_who_is_below_a_budget_mixes_with_full_depth():
    """The best knob on validation rows costs 3 layers: at 4 layers, a third of the rows run full depth."""
    points = [curve_point(0.1, 3.0, 0.9), curve_point(0.2, 6.0, 0.84)]
    cells = [cell("full", [operating_point(6, "within 1 point", 6.0, 0.9)]), cell("deebert", [], curve=points)]
    found = EqualCost(results_of(cells)).per_seed.set_index(["label", "speedup"]).loc["deebert"]
    assert found.loc[1.5, "score"] == pytest.approx(0.9 * 2 / 3 + 0.84 / 3)
    assert found.loc[1.5, "own_last_exit"] == pytest.approx(0.9 * 2 / 3 + 0.84 / 3 - 0.84)
    assert found.loc[3.0, "reach"] == Reach.OVER


def test_the_headline_is_the_mean_over_tasks(results):
    comparison = comparison_of(results)
    by_task = comparison.by_task.set_index(["label", "speedup", "task"])["points"].sort_index()
    for line in headline(results).itertuples():
        assert line.points == pytest.approx(100 * by_task.loc[line.method, line.budget].mean())
        assert (line.tasks, line.seeds) == (2, 2)
    middle = headline(results).query("budget == 2")
    best_first = middle.sort_values(["over", "points"], ascending=[True, False])
    assert best_first["method"].tolist() == middle["method"].tolist()
    assert "full" not in set(middle["method"])


def test_the_headline_names_exits_and_the_cost_of_training():
    rows = {"full": 2000.0, "pabee": 2000.0, "deebert": 2500.0}
    records = [r.model_copy(update={"exit_network": "mlp", "trained_rows": rows.get(r.label)}) for r in made_up_suite()]
    twice = [*records, *(r.model_copy(update={"parameters": {"alpha": 0.1}}) for r in records if r.label == "deebert")]
    found = headline(results_of(twice)).query("budget == 2").set_index("method")
    assert found["training_cost"].dropna().to_dict() == {"pabee": 1.0, "deebert": 1.25}, "of one model of a grid"
    assert found.at["deebert", "knobs"] == 21, "both cells have the same"
    assert found.at["pabee", "exits"] == "mlp"
    assert found["exits"].isna()["static"]
    assert tuple(headline(results_of(records)).columns[: len(HEADLINE)]) == HEADLINE


def test_a_difference_is_over_the_seeds_that_both_have():
    records = made_up_suite(seed=0) + [r for r in made_up_suite(seed=1) if r.label in {"full", "deebert", "static"}]
    better = [
        r.model_copy(update={"curve_test": [p.model_copy(update={"scores": {"accuracy": 1.0}}) for p in r.curve_test]})
        if (r.label, r.seed) == ("deebert", 1)
        else r
        for r in records
    ]
    comparison = EqualCost(results_of(better))
    task = ("mcid", "minilm-l6")
    points = comparison.per_seed.set_index(["label", "seed", "speedup"])["points"]
    expected = points.loc["pabee", 0, 2.0] - points.loc["deebert", 0, 2.0]
    assert comparison.difference(task, "pabee", "deebert", 2.0)[0] == pytest.approx(expected)


def test_paired_intervals_of_known_answers(tmp_path):
    """Rows that full model and method answer alike cancel out; a seed without full model takes the mean of others."""
    write_results(tmp_path, seeds=(0, 1))
    found = load_results(tmp_path)
    comparison = EqualCost(found.with_cells([x for x in found.cells if (x.record.label, x.record.seed) != ("full", 1)]))
    task = ("mcid", "minilm-l6")
    at_point = [x for x in comparison.results.labels_to_compare if comparison.samples(task, x, 2.0) is not None]
    for label in at_point:
        samples = comparison.samples(task, label, 2.0)
        points = comparison.by_task.set_index(["label", "speedup"]).at[(label, 2.0), "points"]
        low, high = np.percentile(samples, [2.5, 97.5])
        assert low - 0.01 <= points <= high + 0.01
    line = comparison.headline.query("method == 'deebert' and budget == 2").iloc[0]
    at_layer_3 = 100 * right_answers("deebert")[:, 2].mean()
    assert line["rule_gain"] == pytest.approx(line["score"] - at_layer_3)
    assert line["rule_low"] < line["rule_gain"] < line["rule_high"]
    tests = comparison.contrasts("deebert").set_index(["method", "budget"])
    assert "deebert" not in tests.index.unique("method")
    assert (tests["p_holm"].fillna(1) >= tests["p"].fillna(1)).all()
    other = next(label for label in at_point if label != "deebert")
    line = tests.loc[other, 2.0]
    points, samples = comparison.difference(task, other, "deebert", 2.0)
    assert (line.points, line.low) == pytest.approx((100 * points, 100 * np.percentile(samples, 2.5)))
    assert np.isnan(line.low_tasks), "one task says nothing about others"
    assert line["wins / losses"] == f"{int(points > 0)} / {int(points < 0)}"


# ---------------------------------------------------------------------------------------------- generation


def test_generation():
    results = load_results(DECODING).only(tasks=["alpaca"])
    assert results.kind == "generation"
    decoded = results.knobs.dropna(subset=["layers"])
    assert {"rougeL", "match", "rougeL_to_full"} <= set(decoded)
    full = next(r for r in results.records if r.label == "token-full").full_scores["rougeL"].value
    found = EqualCost(results, (1.5,)).by_task.set_index("label")
    for label in results.labels_to_compare:
        assert found.at[label, "points"] == pytest.approx(found.at[label, "score"] - full)


def test_drafts_and_how_many_are_accepted_are_shown():
    results = load_results(DECODING)
    stored = next(one for one in results.cells if one.record.label == "skipdecode")
    counts = Speculation(drafted=1000, accepted=600, passes=300)
    for draft, shown in ((None, "drafts, 60% accepted"), ((6, 0.4), "drafts of 6 above 0.4, 60% accepted")):
        points = [
            point.model_copy(
                update={"speculation": counts, "validation": point.validation.model_copy(update={"draft": draft})}
            )
            for point in stored.record.operating_points
        ]
        drafting = replace(stored, record=stored.record.model_copy(update={"operating_points": points}))
        table = render(results.with_cells([drafting]), "all")
        assert shown in table
        assert "even if those are more than L" in table


def test_references_do_not_make_a_task_count():
    records = [*made_up_suite(), *(r for r in made_up_suite(task="stsb") if r.label in ("full", "majority", "static"))]
    for labels in (None, ["deebert", "pabee"], ["deebert", "pabee", "static"]):
        tasks = results_of(records).only(labels).tasks
        assert list(tasks.index[tasks["compared"]]) == [("mcid", "minilm-l6")], labels
