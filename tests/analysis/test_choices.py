"""Which operating points of stored cells stand for a target."""

from records_by_hand import cell, operating_point, stored

from benchmarks.analysis.panels.results import panels
from benchmarks.analysis.rows.choices import choices_for, choose_point, reference_of, targets_of
from benchmarks.specs.targets import HALF, WITHIN_ONE_POINT, Budget

QUARTER = Budget(layers_at_most=0.25)


def grid(*cells):
    """Cells of one label that differ in alpha."""
    return [stored(cell("consistentee", points, parameters={"alpha": i})) for i, points in enumerate(cells)]


def chosen(cells, target, reference=0.9):
    return choose_point(cells, target, reference)


def test_targets_of_all_points_budgets_first():
    cells = grid(
        [operating_point(0.1, "budget 0.50, within 1 point", 3, 0.8)], [operating_point(0.2, "budget 0.25", 1.5, 0.6)]
    )
    assert targets_of(cells) == [QUARTER, HALF, WITHIN_ONE_POINT]


def test_a_budget_takes_the_best_validation_score_within_it_over_the_grid():
    cells = grid(
        [operating_point(0.1, "budget 0.50", 3.0, 0.80)],
        [operating_point(0.2, "budget 0.50", 2.5, 0.83)],
        [operating_point(0.3, "budget 0.75", 4.5, 0.90)],  # over the budget
    )
    assert chosen(cells, HALF).cell.record.parameters == {"alpha": 1}


def test_a_target_may_be_met_by_a_point_chosen_for_another():
    cells = grid([operating_point(0.1, "budget 0.25", 1.5, 0.90), operating_point(0.5, "budget 0.50", 3.0, 0.85)])
    assert chosen(cells, HALF).point.knob == 0.1
    assert chosen(cells, WITHIN_ONE_POINT).point.knob == 0.1


def test_equal_scores_take_fewer_layers():
    cells = grid([operating_point(0.1, "budget 0.50", 3.0, 0.8)], [operating_point(0.2, "budget 0.50", 2.0, 0.8)])
    assert chosen(cells, HALF).point.knob == 0.2


def test_selection_never_looks_at_the_test_split():
    good = operating_point(0.1, "budget 0.50", 3.0, 0.8)
    lucky = operating_point(0.2, "budget 0.50", 3.0, 0.7)
    lucky = lucky.model_copy(update={"test": lucky.test.model_copy(update={"scores": {"accuracy": 0.99}})})
    assert chosen(grid([good], [lucky]), HALF).point.knob == 0.1


def test_no_point_meets_the_target():
    cells = grid([operating_point(0.1, "budget 0.75, within 1 point", 4.5, 0.8)])
    assert chosen(cells, QUARTER) is None
    assert chosen(cells, WITHIN_ONE_POINT, reference=0.9) is None
    assert chosen([], QUARTER) is None


def panel_of(*records):
    (panel,) = panels([stored(record) for record in records], [])
    return panel


def test_points_are_lost_against_the_full_model_of_the_same_seed():
    early, late = operating_point(0.1, "budget 0.50", 2.0, 0.85), operating_point(1.0, "within 1 point", 6.0, 0.90)
    method = [cell("deebert", [early, late], seed=seed) for seed in (0, 1)]
    full = [
        cell("full", [operating_point(6, "within 1 point", 6.0, score)], seed=s) for s, score in enumerate((0.86, 0.95))
    ]
    panel = panel_of(*method, *full)
    assert [reference_of(panel, "deebert", seed) for seed in (0, 1)] == [0.86, 0.95]
    (only,) = choices_for(panel, "deebert", WITHIN_ONE_POINT)
    assert (only.cell.record.seed, only.point.knob) == (0, 0.1), "with seed 1 even the latest exits lose five points"


def test_of_two_full_models_points_are_lost_against_the_suites_own():
    point = operating_point(6, "within 1 point", 6.0, 0.90)
    better = operating_point(6, "within 1 point", 6.0, 0.95)
    shorter = cell("a-shorter-recipe", [better], method="full")
    panel = panel_of(shorter, cell("deebert", [point]), cell("full", [point]))
    assert panel.full_label == "full"
    assert reference_of(panel, "deebert", 0) == 0.9
    assert panel_of(shorter, cell("deebert", [point])).full_label == "a-shorter-recipe"


def test_without_a_full_model_points_are_lost_against_the_latest_exits_the_best_of_a_grid():
    cells = [
        cell(
            "deebert",
            [operating_point(0.1, "budget 0.50", 2.0, 0.8), operating_point(1, "within 1 point", 6.0, last)],
            parameters={"alpha": alpha},
        )
        for alpha, last in ((0, 0.8), (1, 0.9))
    ]
    panel = panel_of(*cells)
    assert reference_of(panel, "deebert", 0) == 0.9
    (choice,) = choices_for(panel, "deebert", WITHIN_ONE_POINT)
    assert choice.cell.record.parameters == {"alpha": 1}
