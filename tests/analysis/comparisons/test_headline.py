"""The headline: intervals that rows and seeds bear out, tests, and savings that are shown and not lucky."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from records_by_hand import LAYERS, cell, curve_point, operating_point

from benchmarks.analysis.comparisons.headline import Headline, contrasts, core_pairs, headline
from benchmarks.analysis.comparisons.resampled import point_samples
from benchmarks.analysis.comparisons.savings import savings
from benchmarks.analysis.comparisons.static_gains import static_gains
from benchmarks.analysis.panels.results import Panel, StoredCell, panels
from benchmarks.analysis.panels.select import Reach
from benchmarks.analysis.statistics import interval
from benchmarks.analysis.tables.equal_cost import (
    NO_ROWS_NOTE,
    contrast_tables,
    equal_cost_tables,
    headline_lines,
    headline_tables,
)
from benchmarks.store.records import HullPoint
from consistentee.data.metrics import score

AT_LAYERS = (2, 4)
"""Exits of the two knobs of every method here; half of the layers is their even mixture."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a cell that lie nowhere."""

    test: pd.DataFrame
    held_out: pd.DataFrame | None = None
    folder: str = ""
    place: Path = Path("nowhere")
    file: Path = Path("nowhere")

    def predictions(self) -> pd.DataFrame:
        return self.test

    def validation(self) -> pd.DataFrame | None:
        return self.held_out

    def study(self) -> None:
        return None


def noisy(labels, right, generator):
    """Return answers that are right with some probability, of two classes."""
    return np.where(generator.random(len(labels)) < right, labels, 1 - labels)


def stored_cell(label, labels, answers, *, task="mcid", seed=0, held_out=None, metric="accuracy") -> StoredCell:
    """Return a cell with a knob for every answers [N], kept at the hull: the full model has one knob, others two."""
    layers = (LAYERS,) if label == "full" else AT_LAYERS
    scores = [score(metric, labels, said) for said in answers]
    curve = [curve_point(float(i), t, 0.5 + 0.1 * i) for i, t in enumerate(layers)]
    test = [point.model_copy(update={"scores": {metric: value}}) for point, value in zip(curve, scores, strict=True)]
    valid = [point.model_copy(update={"scores": {metric: point.scores["accuracy"]}}) for point in curve]
    record = cell(label, [operating_point(9.0, "budget 0.50", 3.0, 0.5)], curve=curve, task=task, seed=seed)
    hull = [HullPoint(place=i, validation_flops=1e9 * t, flops=1e9 * t) for i, t in enumerate(layers)]
    changes = {"curve_test": test, "curve_validation": valid, "hull": hull, "metric": metric}
    columns = {"row": np.arange(len(labels)), "label": labels}
    by_layer = dict(zip(layers, answers, strict=True))
    columns |= {f"layer_prediction_{t}": by_layer.get(t, 1 - labels) for t in range(1, LAYERS + 1)}
    columns |= {f"hull_exit_layer_{i}": np.full(len(labels), t) for i, t in enumerate(layers)}
    return StoredCell(record.model_copy(update=changes), Rows(pd.DataFrame(columns), held_out))


def task_of(generator, rights: dict[str, tuple[float, ...]], rows=400, task="mcid", seeds=(0,)) -> Panel:
    """Return a panel of methods that are right with given probabilities, row by row and seed by seed on their own."""
    labels = generator.integers(0, 2, rows)
    cells = [
        stored_cell(label, labels, [noisy(labels, p, generator) for p in right], task=task, seed=seed)
        for label, right in rights.items()
        for seed in seeds
    ]
    (panel,) = panels(cells, [])
    return panel


def of_tasks(found: list[Panel]) -> Headline:
    made = headline(found)
    assert made is not None
    return made


THREE = {"full": (0.9,), "deebert": (0.6, 0.8), "consistentee": (0.8, 0.9), "static": (0.6, 0.8)}


def test_the_interval_of_a_mean_over_tasks_is_the_normal_one():
    generator = np.random.default_rng(0)
    found = [task_of(generator, THREE, rows=rows, task=f"task{rows}") for rows in (300, 500, 800)]
    entry = of_tasks(found).entries["deebert", 2.0]
    gains = []
    for panel in found:
        by_label = {stored.record.label: stored.rows.predictions() for stored in panel.cells}
        right = [by_label["deebert"][f"layer_prediction_{t}"] == by_label["deebert"]["label"] for t in AT_LAYERS]
        gains.append(
            (right[0].astype(float) + right[1]) / 2
            - (by_label["full"]["layer_prediction_6"] == by_label["full"]["label"])
        )
    mean = np.mean([gain.mean() for gain in gains])
    half = 1.96 * np.sqrt(np.sum([gain.var() / len(gain) for gain in gains])) / 3
    assert entry.points == pytest.approx(mean)
    assert entry.interval == (pytest.approx(mean - half, abs=3e-3), pytest.approx(mean + half, abs=3e-3))


def test_intervals_cover_the_truth():
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        panel = task_of(generator, {"full": (0.9,), "deebert": (0.6, 0.8)}, rows=200)
        low, high = interval(point_samples(panel, [("deebert", 2.0)])["deebert", 2.0])
        covered += low <= 0.7 - 0.9 <= high
    assert covered >= 52, "60 intervals of 95% hold 52 or more with a probability of 0.99"


def test_seeds_are_drawn_too():
    labels = np.arange(400) % 2
    generator = np.random.default_rng(2)
    cells = []
    for seed, right in ((0, 0.6), (1, 0.9)):
        cells.append(stored_cell("full", labels, [noisy(labels, 0.9, generator)], seed=seed))
        cells.append(stored_cell("deebert", labels, [noisy(labels, right, generator)] * 2, seed=seed))
    (panel,) = panels(cells, [])
    low, high = interval(point_samples(panel, [("deebert", 2.0)])["deebert", 2.0])
    assert high - low > 0.25, "the same seed may be drawn twice, and its score is 30 points from the other's"


@pytest.mark.parametrize("metric", ["f1", "matthews"])
def test_mixtures_are_weighted_samples(metric):
    """Half of each: the score of every row taken twice, once with each answer, and not the mean of two scores."""
    generator = np.random.default_rng(3)
    labels = (generator.random(300) < 0.3).astype(int)
    answers = [np.zeros(300, dtype=int), noisy(labels, 0.9, generator)]
    cells = [
        stored_cell("full", labels, [labels], metric=metric),
        stored_cell("deebert", labels, answers, metric=metric),
    ]
    (panel,) = panels(cells, [])
    expected = score(metric, [*labels, *labels], np.concatenate(answers))
    (line,) = [line for line in headline_lines([panel]) if line["budget"] == 2.0]
    assert line["points"] == pytest.approx(100 * (expected - 1), abs=1e-3)
    assert abs(expected - np.mean([score(metric, labels, said) for said in answers])) > 0.01
    samples = point_samples(panel, [("deebert", 2.0)])["deebert", 2.0]
    assert samples.mean() == pytest.approx(expected - 1, abs=0.02)


def test_methods_share_the_rows_that_are_drawn():
    found = []
    for number in (4, 5):
        panel = task_of(np.random.default_rng(number), THREE, task=f"task{number}")
        twin = next(stored for stored in panel.cells if stored.record.label == "deebert")
        record = twin.record.model_copy(update={"label": "twin", "method": "berxit"})
        found += panels([*panel.cells, StoredCell(record, twin.rows)], [])
    both = of_tasks(found)
    same, other = contrasts(both, [("deebert", "twin"), ("consistentee", "deebert")], 2.0)
    assert (same.difference, same.interval, same.p_value, same.wins, same.losses) == (0, (0, 0), 1.0, 0, 0)
    assert other.interval is not None
    assert 0 < other.interval[0] < other.difference < other.interval[1]
    assert other.p_value == pytest.approx(2 / 1001)
    assert other.holm_p_value == pytest.approx(4 / 1001), "two tests"
    assert (other.wins, other.losses, other.tasks_p_value) == (2, 0, 0.5)


def test_variants_are_tested_against_named_peers_and_the_best_one():
    rights = {**THREE, "consistentee-curve": (0.7, 0.9), "pabee": (0.5, 0.7), "gpfee": (0.7, 0.95)}
    found = [task_of(np.random.default_rng(task), rights, task=f"task{task}") for task in range(2)]
    pairs = core_pairs(of_tasks(found), 2.0)
    variants, named = ("consistentee", "consistentee-curve"), ("deebert", "pabee")
    assert set(pairs[:-1]) == {(variant, peer) for variant in variants for peer in named}
    assert pairs[-1] == ("consistentee", "gpfee")
    (table,) = contrast_tables(found)
    assert [cells[:2] for cells in table.cells] == pairs
    (alone,) = contrast_tables(found[:1])
    assert alone.title.startswith("Tests at 2x · task0")
    assert alone.headings == ("method", "against", "points", "p, rows", "Holm"), "nothing over tasks"
    assert [cells[:2] for cells in alone.cells][:-1] == pairs[:-1]


def test_the_best_peer_is_within_the_budget():
    of = of_tasks([task_of(np.random.default_rng(0), {**THREE, "gpfee": (0.9, 0.95)})])
    assert core_pairs(of, 2.0)[-1] == ("consistentee", "gpfee")
    dear = of.entries["gpfee", 2.0]
    over = tuple(replace(one, reaches=(Reach.OVER,)) for one in dear.found)
    entries = of.entries | {("gpfee", 2.0): replace(dear, found=over)}
    assert core_pairs(replace(of, entries=entries), 2.0)[-1] == ("consistentee", "deebert")


def test_ranks_and_tests_are_of_points_since_seeds_may_differ():
    labels = np.arange(200) % 2

    def right(share):
        return np.where(np.arange(200) < 200 * share, labels, 1 - labels)

    found = []
    for task in ("mcid", "rte", "sst2"):
        scores = {
            ("full", 0): 0.9,
            ("full", 1): 0.7,
            ("deebert", 0): 0.85,
            ("deebert", 1): 0.65,
            ("consistentee", 0): 0.8,
        }
        cells = [
            stored_cell(label, labels, [right(share)] * (1 if label == "full" else 2), seed=seed, task=task)
            for (label, seed), share in scores.items()
        ]
        found += panels(cells, [])
    of = of_tasks(found)
    by_score = {label: of.entries[label, 2.0].found[0].score for label in ("deebert", "consistentee")}
    assert by_score["deebert"] < by_score["consistentee"], "its second seed is of a worse full model"
    assert (of.entries["deebert", 2.0].rank, of.entries["consistentee", 2.0].rank) == (1.0, 2.0)
    (contrast,) = contrasts(of, [("deebert", "consistentee")], 2.0)
    assert (contrast.wins, contrast.losses) == (3, 0)
    assert contrast.difference == pytest.approx(0.05)


def test_lines_and_table_say_the_same():
    found = [task_of(np.random.default_rng(task), THREE, task=f"task{task}", seeds=(0, 1)) for task in range(3)]
    lines = {(line["method"], line["budget"]): line for line in headline_lines(found)}
    assert set(lines) == {(label, s) for label in ("consistentee", "deebert", "static") for s in (1.5, 2.0, 3.0)}
    means, _ = equal_cost_tables(found)
    assert NO_ROWS_NOTE not in means.notes
    for label, *cells in means.cells:
        line = lines[label, 2.0]
        assert cells[1] == "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(line[name] for name in ("points", "low", "high")))
        assert (line["tasks"], line["seeds"], line["layers"]) == (3, 2, 3.0)
        assert line["flops_ratio"] == pytest.approx(LAYERS / 3)
        assert cells[3] == f"{line['layers']:.2f}"
        assert cells[5] == ("n/a" if label == "static" else f"{line['above_static']} / {line['below_static']}")
    assert lines["consistentee", 2.0]["above_static"] == 3
    assert sorted(lines[label, 2.0]["rank"] for label in ("consistentee", "deebert", "static"))[0] == 1.0


def test_a_column_of_which_nothing_is_known_is_not_explained():
    def explained(names):
        rights = {name: THREE[name] for name in names}
        means, _ = equal_cost_tables([task_of(np.random.default_rng(task), rights, task=f"t{task}") for task in (0, 1)])
        assert {row[-1] for row in means.cells} == {"n/a"}, "no answers of validation rows were kept"
        return [word for word in ("In brackets", "Over static", "Within 1 point") if word in " ".join(means.notes)]

    assert explained(("full", "deebert", "static")) == ["In brackets", "Over static"]
    assert explained(("full", "deebert", "consistentee")) == ["In brackets"]


def test_tests_of_the_only_compared_task_are_not_shown_twice():
    rights = {label: right for label, right in THREE.items() if label != "full"}
    found = [task_of(np.random.default_rng(0), THREE), task_of(np.random.default_rng(1), rights, task="rte")]
    assert not [table.title for table in headline_tables(found) if table.title.startswith("Tests")]
    assert contrast_tables(found[:1]), "beside the task's own points they are"


def test_a_contrast_is_of_the_seeds_that_both_have():
    labels = np.arange(200) % 2

    def right(share):
        return np.where(np.arange(200) < 200 * share, labels, 1 - labels)

    scores = {("full", 0): 0.9, ("full", 1): 0.9, ("deebert", 0): 0.85, ("deebert", 1): 0.5, ("consistentee", 0): 0.8}
    cells = [
        stored_cell(label, labels, [right(share)] * (1 if label == "full" else 2), seed=seed)
        for (label, seed), share in scores.items()
    ]
    of = of_tasks(panels(cells, []))
    assert of.entries["deebert", 2.0].points < of.entries["consistentee", 2.0].points, "means of all seeds"
    (contrast,) = contrasts(of, [("deebert", "consistentee")], 2.0)
    assert (contrast.difference, contrast.wins, contrast.losses) == (pytest.approx(0.05), 1, 0)
    assert contrast.interval is not None
    assert contrast.interval[0] < 0.05 < contrast.interval[1]


# ------------------------------------------------------------------------------------------- over static exits


def gains_of(right, static, metric="accuracy"):
    """Return what a method whose two knobs say ``right`` gains at half of the layers over a static exit."""
    labels = np.arange(400) % 2
    answers = {"full": [labels], "deebert": right(labels), "static": static(labels)}
    cells = [stored_cell(label, labels, said, metric=metric) for label, said in answers.items()]
    return static_gains(panels(cells, [])[0], 2.0)


def half_right(labels):
    return np.where(np.arange(len(labels)) % 4 < 2, labels, 1 - labels)


def test_a_gain_is_over_static_exits_mixed_to_the_same_cost():
    gains = gains_of(lambda labels: [labels, labels], lambda labels: [half_right(labels), labels])
    assert list(gains) == ["deebert"], "not the full model, and not static exits themselves"
    gain = gains["deebert"]
    assert gain.gain == pytest.approx(0.25), "the even mixture of half right and all right"
    assert gain.interval is not None
    low, high = gain.interval
    assert low < 0.25 < high < low + 0.1
    assert (gain.beyond_noise, gain.text) == (1, "+25.0*")


def test_answers_like_the_static_exits_gain_nothing():
    gain = gains_of(lambda labels: [half_right(labels)] * 2, lambda labels: [half_right(labels)] * 2)["deebert"]
    assert (gain.gain, gain.interval, gain.beyond_noise, gain.text) == (0.0, (0.0, 0.0), 0, "+0.0")


def test_a_gain_is_of_the_seeds_that_both_have():
    labels = np.arange(400) % 2
    answers = {("full", 0): [labels], ("full", 1): [labels], ("deebert", 0): [half_right(labels)] * 2}
    answers |= {("static", 0): [half_right(labels)] * 2, ("static", 1): [1 - labels] * 2}
    (panel,) = panels([stored_cell(label, labels, said, seed=seed) for (label, seed), said in answers.items()], [])
    gain = static_gains(panel, 2.0)["deebert"]
    assert (gain.gain, gain.interval) == (0.0, (0.0, 0.0))


def test_a_loss_is_marked_as_plainly():
    gain = gains_of(lambda labels: [half_right(labels)] * 2, lambda labels: [labels, labels])["deebert"]
    assert (gain.gain, gain.beyond_noise, gain.text) == (-0.5, -1, "-50.0*")


def test_of_several_static_exits_the_one_under_its_own_name_counts():
    """Others, of recipes of their own, have labels of their own, which may come first."""
    labels = np.arange(400) % 2
    cells = [stored_cell(*one) for one in (("full", labels, [labels]), ("deebert", labels, [half_right(labels)] * 2))]
    plain, other = stored_cell("static", labels, [labels] * 2), stored_cell("better-static", labels, [1 - labels] * 2)
    record = other.record.model_copy(update={"method": "static"})
    cells += [StoredCell(record, other.rows), plain]
    assert static_gains(panels(cells, [])[0], 2.0)["deebert"].gain == -0.5


def test_what_costs_more_than_the_budget_is_not_better():
    labels = np.arange(400) % 2
    answers = {"full": [labels], "deebert": [labels, labels], "static": [half_right(labels)] * 2}
    (panel,) = panels([stored_cell(label, labels, said) for label, said in answers.items()], [])
    assert static_gains(panel, 2.0)["deebert"].beyond_noise == 1
    dear = static_gains(panel, 6.0)["deebert"]
    assert (dear.gain, dear.text) == (0.5, "+50.0"), "both run 2 layers where the budget is 1"


def test_the_static_exit_runs_as_many_layers_of_test_rows():
    labels = np.arange(400) % 2
    answers = {"full": [labels], "deebert": [labels, labels], "static": [half_right(labels), labels]}
    cells = {label: stored_cell(label, labels, said) for label, said in answers.items()}
    assert static_gains(panels(list(cells.values()), [])[0], 2.0)["deebert"].gain == pytest.approx(0.25)
    test = [p.model_copy(update={"token_layers": p.average_layers + 1}) for p in cells["deebert"].record.curve_test]
    dearer = cells["deebert"].record.model_copy(update={"curve_test": test})
    cells["deebert"] = StoredCell(dearer, cells["deebert"].rows)
    gain = static_gains(panels(list(cells.values()), [])[0], 2.0)["deebert"]
    assert gain.gain == pytest.approx(0.0), "3 layers of validation rows, 4 of test rows, where static is always right"
    assert gain.beyond_noise == 0


def test_a_score_of_ranks_has_a_gain_and_no_interval():
    gain = gains_of(lambda labels: [labels, labels], lambda labels: [half_right(labels)] * 2, "spearman")["deebert"]
    assert gain.gain > 0
    assert (gain.interval, gain.beyond_noise) == (None, 0)


def test_without_static_exits_there_are_no_gains():
    assert static_gains(task_of(np.random.default_rng(0), {"full": (0.9,), "deebert": (0.6, 0.8)}), 2.0) == {}


# ---------------------------------------------------------------------------------------------- within a point


def with_validation(answers_of: dict[str, list[np.ndarray]], labels: np.ndarray) -> Panel:
    """Return a panel whose test and validation rows are the same."""
    cells = []
    for label, answers in answers_of.items():
        columns = {"row": np.arange(len(labels)), "label": labels}
        columns |= {f"hull_prediction_{i}": said for i, said in enumerate(answers)}
        cells.append(stored_cell(label, labels, answers, held_out=pd.DataFrame(columns)))
    (panel,) = panels(cells, [])
    return panel


def test_a_lucky_knob_is_no_saving():
    """Both knobs are as good as the full model; the cheap one errs on other rows, so that nothing is shown of it."""
    labels = np.arange(500) % 2
    errs = np.where(np.arange(500) < 50, 1 - labels, labels)
    errs_elsewhere = (
        errs[::-1] if (labels == labels[::-1]).all() else np.where(np.arange(500) >= 450, 1 - labels, labels)
    )
    panel = with_validation({"full": [errs], "deebert": [errs_elsewhere, errs], "static": [errs, errs]}, labels)
    found = savings(panel)
    assert (found["static"].layers, found["static"].points) == (2.0, 0.0)
    assert 3.5 < found["deebert"].layers < 4.0, (
        "of the lucky knob only a small share is shown to lose less than a point"
    )
    assert found["deebert"].points == pytest.approx(0.0)


def test_where_nothing_is_shown_the_full_model_runs():
    labels = np.arange(500) % 2
    wrong = np.where(np.arange(500) < 250, 1 - labels, labels)
    panel = with_validation({"full": [labels], "deebert": [wrong, wrong]}, labels)
    assert (savings(panel)["deebert"].layers, savings(panel)["deebert"].points) == (LAYERS, 0.0)


def test_a_saving_needs_validation_rows():
    panel = task_of(np.random.default_rng(0), THREE)
    assert savings(panel) == {}
    assert all(line["layers_within_1_point"] == "" for line in headline_lines([panel]))
