import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from records_by_hand import made_up_suite, stored, timing
from scipy.stats import wilcoxon

from benchmarks.analysis.comparisons.ranking import (
    AREA,
    EQUAL_COST,
    ScoreTable,
    critical_difference,
    holm,
    indistinct_groups,
    mean_ranks,
    pairs_over_tasks,
    rank,
    score_table,
)
from benchmarks.analysis.panels.results import panels
from benchmarks.analysis.tables.overall import ranking_tables


def table_of(scores, methods=None):
    scores = np.asarray(scores, dtype=float)
    methods = methods or tuple(f"m{i}" for i in range(scores.shape[1]))
    return ScoreTable("score", tuple(methods), tuple(f"task{i}" for i in range(len(scores))), scores, ())


@pytest.fixture(scope="module")
def three_tasks():
    records = [record for task in ("mcid", "rte", "sst2") for record in made_up_suite(task=task)]
    return panels([stored(record) for record in records], [timing(records)])


def test_mean_ranks_share_ties():
    assert mean_ranks([[3, 1, 1], [3, 2, 1]]).tolist() == [1.0, 2.25, 2.75]


def test_critical_difference_as_printed_by_demsar():
    # Table 5 of Demšar (2006): q = 2.569 for 4 classifiers at 5%.
    assert critical_difference(4, 14) == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 14)), abs=1e-3)


def test_groups_hold_neighbours_that_lie_close():
    groups = indistinct_groups(("a", "b", "c", "d"), [1.0, 1.5, 2.2, 4.0], 1.0)
    assert groups == (("a", "b"), ("b", "c"))
    assert indistinct_groups(("a", "b"), [1.0, 3.0], 1.0) == ()
    assert indistinct_groups(("b", "a"), [2.0, 1.0], 5.0) == (("a", "b"),)


def test_a_clear_order_over_many_tasks_is_significant():
    generator = np.random.default_rng(0)
    ranking = rank(table_of(np.array([0.9, 0.8, 0.7]) + 0.01 * generator.random((12, 3))))
    assert ranking is not None
    assert ranking.mean_ranks == (1.0, 2.0, 3.0)
    assert ranking.friedman_p < 0.001
    assert not any({"m0", "m2"} <= set(group) for group in ranking.groups)


def test_methods_that_are_all_alike_are_one_group():
    ranking = rank(table_of(np.full((4, 3), 0.5)))
    assert ranking is not None
    assert ranking.friedman_p == 1.0
    assert ranking.groups == (("m0", "m1", "m2"),)


@pytest.mark.parametrize("shape", [(1, 5), (5, 2), (0, 0)])
def test_too_little_to_rank(shape):
    assert rank(table_of(np.ones(shape))) is None


def test_pairs_are_scipys_wilcoxon_with_holms_correction():
    scores = np.random.default_rng(1).random((8, 3))
    pairs = pairs_over_tasks(table_of(scores, ("consistentee", "a", "b")))
    assert [pair.second for pair in pairs] == ["a", "b"]
    expected = [wilcoxon(scores[:, 0] - scores[:, i]).pvalue for i in (1, 2)]
    assert [pair.p_value for pair in pairs] == pytest.approx(expected)
    assert [pair.holm_p_value for pair in pairs] == holm(expected)
    assert pairs[0].wins + pairs[0].losses == 8
    assert pairs_over_tasks(table_of(scores)) == []


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_never_helps_and_keeps_the_order(values):
    corrected = np.asarray(holm(values))
    assert (corrected >= np.asarray(values)).all()
    assert (corrected <= 1).all()
    assert (np.diff(corrected[np.argsort(values, kind="stable")]) >= 0).all()


def test_scores_of_a_suite(three_tasks):
    for statistic in (AREA, EQUAL_COST):
        table = score_table(three_tasks, statistic)
        assert table.scores.shape == (3, 9)
        assert {"oracle", "majority", "full"}.isdisjoint(table.methods)
        assert {"static", "random"} <= set(table.methods)
    best = rank(score_table(three_tasks, AREA))
    assert best is not None
    assert best.table.methods[int(np.argmin(best.mean_ranks))] == "consistentee"


def test_a_method_that_some_task_lacks_is_left_out_by_name(three_tasks):
    records = [c.record for panel in three_tasks for c in panel.cells]
    fewer = [record for record in records if (record.task, record.label) != ("rte", "pabee")]
    table = score_table(panels([stored(record) for record in fewer], []), AREA)
    assert table.left_out == ("pabee",)
    assert "pabee" not in table.methods


def test_ranks_as_tables(three_tasks):
    tables = ranking_tables(three_tasks)
    assert [table.title for table in tables] == [f"Ranks over 3 tasks · {s}" for s in (AREA, EQUAL_COST)]
    assert tables[0].cells[0][0] == "consistentee"
    assert "at least 0.25" in " ".join(tables[0].notes)
    assert ranking_tables(three_tasks[:1]) == []


def test_without_the_core_method_on_all_tasks_ranks_are_not_tested_against_it(three_tasks):
    (with_tests, _) = ranking_tables(three_tasks)
    assert with_tests.headings[3:] == ("consistentee wins", "loses", "median, points", "p", "p, Holm")
    records = [found.record for panel in three_tasks for found in panel.cells]
    fewer = [record for record in records if (record.task, record.label) != ("rte", "consistentee")]
    for table in ranking_tables(panels([stored(record) for record in fewer], [])):
        assert table.headings == ("method", "mean rank", "mean %")
        assert {len(row) for row in table.cells} == {3}
        assert not any("Holm" in note for note in table.notes)
        assert "Scores are averaged over seeds first." in table.notes
        assert "Left out, because some task lacks them: consistentee." in table.notes
