"""The search of recipes: what is trained, what is kept, and what follows from it."""

import pandas as pd
import pytest
from documents import ROOT
from small_suite import Bench

from benchmarks.run import recipe_search
from benchmarks.run.recipe_search import choose, read_epochs, search
from benchmarks.specs.suites import Filters, load_suite

SCORES = {"joint": {1e-4: [0.70, 0.78, 0.80, 0.79], 2e-4: [0.72, 0.76, 0.77, 0.78]}, "last-exit": {}}
SCORES["last-exit"] = {1e-4: [0.80, 0.84, 0.843, 0.846], 2e-4: [0.85, 0.83, 0.82, 0.81]}


def epochs_of(scores, rows=1000):
    lines = [
        {"task": "t", "backbone": "b", "train_rows": 5000, "validation_rows": rows, "stage": stage}
        | {"recipe": "1e5"}
        | {"learning_rate": rate, "epochs": len(run)}
        | {"epoch": number, "score": score}
        for stage, runs in scores.items()
        for rate, run in runs.items()
        for number, score in enumerate(run, start=1)
    ]
    return pd.DataFrame(lines)


def test_the_recipe_is_the_rate_of_the_best_epochs_and_the_first_at_which_both_stages_converge():
    chosen = choose(epochs_of(SCORES)).set_index("stage")
    assert set(chosen["learning_rate"]) == {1e-4}, "0.80 and 0.846 beat 0.78 and 0.85"
    assert set(chosen["epochs"]) == {3}, "joint exits are within half a point of 0.80 after three epochs, not two"
    assert chosen.loc["last-exit", "score"] == pytest.approx(0.843)
    assert chosen.loc["last-exit", "best"] == pytest.approx(0.85), "the best at any rate is told beside it"


def test_a_stage_that_never_settles_takes_all_epochs():
    rising = {stage: {1e-4: [0.5, 0.6, 0.7]} for stage in SCORES}
    rising["joint"][1e-4] = [0.7, 0.6, 0.5]
    assert set(choose(epochs_of(rising))["epochs"]) == {3}


def test_runs_of_another_length_or_recipe_or_on_other_rows_are_left_out():
    worse = {stage: {rate: [0.1, 0.9] for rate in runs} for stage, runs in SCORES.items()}
    last = epochs_of(SCORES)
    better = epochs_of(SCORES).assign(score=0.9)
    for others in (epochs_of(worse), better.assign(train_rows=100), better.assign(recipe="other")):
        pd.testing.assert_frame_equal(choose(pd.concat([others, last], ignore_index=True)), choose(last))


def test_one_validation_row_more_or_less_is_no_progress():
    steps = {stage: {1e-4: [0.70, 0.79, 0.80]} for stage in SCORES}
    assert set(choose(epochs_of(steps, rows=100))["epochs"]) == {2}
    assert set(choose(epochs_of(steps, rows=1000))["epochs"]) == {3}


def test_a_search_trains_what_its_file_lacks(tmp_path, tiny_backbone, monkeypatch):
    bench = Bench(tmp_path, tiny_backbone("bert"))
    suite, out = load_suite(bench.write()), tmp_path / "recipes.csv"
    first = list(search(suite, Filters(), [1e-3], 2, data_dir=None, out=out))[-1]
    assert first.groupby(["stage", "learning_rate"])["epoch"].apply(list).to_dict() == {
        ("joint", 1e-3): [1, 2],
        ("last-exit", 1e-3): [1, 2],
    }
    assert first["score"].between(0, 1).all()
    assert read_epochs(out).equals(first)
    monkeypatch.setattr(recipe_search, "trained", lambda *_, **__: pytest.fail("trained again"))
    again = list(search(suite, Filters(), [1e-3], 2, data_dir=None, out=out))[-1]
    assert again.equals(first)


def test_epochs_of_another_recipe_are_not_taken_for_those_of_this_one(tmp_path, tiny_backbone):
    bench, out = Bench(tmp_path, tiny_backbone("bert")), tmp_path / "recipes.csv"
    for number, recipe in enumerate(
        ({"max_length": 16}, {"max_length": 8}, {"max_length": 8, "batch_size": 8}), start=1
    ):
        suite = load_suite(bench.write(recipe=recipe))
        seen = list(search(suite, Filters(), [1e-3], 1, data_dir=None, out=out))[-1]
        assert (len(seen), seen["recipe"].nunique()) == (2 * number, number)


def test_files_without_recipes_are_read_and_not_taken_for_runs_of_today(tmp_path, tiny_backbone):
    (tmp_path / "old.csv").write_text(epochs_of(SCORES).drop(columns="recipe").to_csv(index=False))
    old = read_epochs(tmp_path / "old.csv")
    pd.testing.assert_frame_equal(choose(old), choose(epochs_of(SCORES)))
    for file in sorted((ROOT / "results").glob("*/recipes.csv")):
        assert len(choose(read_epochs(file)))
    epochs_of(SCORES).to_csv(tmp_path / "digits.csv", index=False)
    assert set(read_epochs(tmp_path / "digits.csv")["recipe"]) == {"1e5"}
    bench, out = Bench(tmp_path, tiny_backbone("bert")), tmp_path / "recipes.csv"
    suite = load_suite(bench.write())
    seen = list(search(suite, Filters(), [1e-3], 1, data_dir=None, out=out))[-1]
    seen.drop(columns="recipe").to_csv(out, index=False)
    again = list(search(suite, Filters(), [1e-3], 1, data_dir=None, out=out))[-1]
    assert again["recipe"].tolist() == ["unknown"] * 2 + seen["recipe"].tolist()
