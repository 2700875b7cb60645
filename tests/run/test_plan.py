"""The plan of a run: the state of every cell, the parts of its key, an estimate of the time, the knobs to time."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from records_by_hand import DECODING, LAYERS, cell, curve_point, operating_point
from small_suite import Bench

from benchmarks.commands.publish import whole_results
from benchmarks.run import cell as cells
from benchmarks.run.plan import Inputs, timed_knobs
from benchmarks.run.pool import Schedule
from benchmarks.specs.base import TimingSpec
from benchmarks.specs.suites import expand, load_suite
from benchmarks.store.folders import FAILURE_FILE, RECORD_FILE
from benchmarks.store.keys import stale_reason
from benchmarks.store.records import CellRecord, HullPoint, KeyParts


@pytest.mark.usefixtures("untimed", "unreported")
def test_plan_names_every_state_trains_nothing_and_changes_nothing(
    tmp_path: Path, tiny_backbone: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    bench = Bench(tmp_path, tiny_backbone("bert"))
    changes = {"methods": ["full", "majority"]}
    with monkeypatch.context() as patched:
        patched.setattr(cells, "trained", lambda *_, **__: pytest.fail("a dry run trains nothing"))
        lines = bench.plan(changes=changes)
    assert not bench.out.exists()
    assert sum(line.startswith("to run ") for line in lines) == 2
    assert any("training: no estimate" in line for line in lines)
    bench.run(changes={"methods": ["full"]})
    before = {path: path.stat().st_mtime_ns for path in bench.out.rglob("*")}
    lines = bench.plan(changes=changes)
    assert any(line.startswith("done ") and "full" in line for line in lines)
    assert any(line.startswith("to run ") and "majority" in line for line in lines)
    assert any(line.startswith("to time ") for line in lines)
    estimates = bench.plan(changes={**changes, "seeds": [0, 1]}, schedule=Schedule(2))
    (line,) = [line for line in estimates if line.startswith("training:")]
    assert "with 2 workers" in line
    assert line.endswith("recorded seconds of 1 of 3"), "the same method with another seed"
    assert {path: path.stat().st_mtime_ns for path in bench.out.rglob("*")} == before
    (bench.folder_of("full") / RECORD_FILE).write_text("{")
    lines = bench.plan(changes=changes)
    assert "is damaged" in lines[0]
    assert "would be set aside" in lines[0]
    assert not list(bench.out.rglob("*.damaged-*"))
    assert not list(bench.out.rglob(FAILURE_FILE))


def test_the_files_of_a_backbone_in_a_parameter_count(tmp_path, tiny_backbone):
    bench = Bench(tmp_path, tiny_backbone("bert"))
    companion = tmp_path / "companion"
    shutil.copytree(tiny_backbone("bert"), companion)

    def parts(weights: str) -> KeyParts:
        (companion / "model.safetensors").write_text(weights)
        entry = {"method": "cascade-bert", "parameters": {"companion_backbone": str(companion)}}
        (spec,) = expand(load_suite(bench.write(methods=[entry])))
        return Inputs(None).parts(spec)

    assert parts("first") == parts("first")
    changed = "backbone.companion_backbone.files.model.safetensors changed"
    assert stale_reason(parts("first"), parts("second")) == changed


# ---------------------------------------------------------------------------------------------- timed knobs

POINTS = [operating_point(9.0, "budget 0.50", 2.5, 0.5), operating_point(8.0, "within 1 point", 1.5, 0.5)]


def curve_of(layers_and_scores, label="deebert", points=POINTS, **parameters) -> CellRecord:
    """Return a cell all of whose knobs 0, 1, ... lie on the hull."""
    curve = [curve_point(float(i), layers, score) for i, (layers, score) in enumerate(layers_and_scores)]
    record = cell(label, points, curve=curve, parameters=parameters)
    hull = [HullPoint(place=place, validation_flops=1.0, flops=1.0) for place in range(len(curve))]
    return record.model_copy(update={"hull": hull})


def timed(*records: CellRecord, at_most: int = 9) -> list[list[float]]:
    wanted = timed_knobs(records, TimingSpec(points_per_cell=at_most))
    return [wanted[record.key] for record in records]


def test_the_neighbours_of_the_budgets_come_first_and_then_operating_points():
    assert LAYERS == 6, "the budgets are 3, 4 and 2 layers"
    record = curve_of([(1.0, 0.3), (2.5, 0.6), (3.5, 0.7), (5.0, 0.8)])
    assert timed(record) == [[1.0, 2.0, 3.0, 0.0, 8.0, 9.0]]
    assert timed(record, at_most=2) == [[1.0, 2.0]], "the middle budget comes first"
    assert timed(curve_of([(2.0, 0.3), (3.0, 0.6), (4.0, 0.7)]), at_most=6) == [[1.0, 2.0, 0.0, 8.0, 9.0]], "alone"


def test_a_grid_is_one_curve():
    cheap, dear = curve_of([(1.0, 0.3), (2.9, 0.4)], price=0.3), curve_of([(1.5, 0.7), (4.5, 0.8)], price=0.1)
    other = curve_of([(2.0, 0.1), (4.0, 0.2)], label="pabee")
    assert timed(cheap, dear, other, at_most=2) == [[8.0, 9.0], [0.0, 1.0], [0.0, 1.0]]


def test_records_without_a_hull_and_bounds_that_cannot_run_have_operating_points_alone():
    old = cell("deebert", POINTS)
    assert timed(old, at_most=1) == [[8.0]]
    replayed = [point.model_copy(update={"live_rows": 0}) for point in POINTS]
    assert timed(curve_of([(1.0, 0.3), (5.0, 0.8)], points=replayed)) == [[]]


def test_texts_choose_what_is_timed_of_decoding_and_not_agreement():
    """A static exit at 18 layers writes nearly as full depth does, and agrees with it less than its layers promise."""
    cells = whole_results(DECODING).cells
    (record,) = [one.record for one in cells if (one.record.task, one.record.label) == ("alpaca", "token-static")]
    assert timed(record, at_most=2) == [[18.0, 24.0]], "the neighbours of 20 layers; by agreement, 12 and 30"
