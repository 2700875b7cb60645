"""The plan of a run: the state of every cell, the parts of its key, an estimate of the time."""

from collections.abc import Callable
from pathlib import Path

import pytest
from small_suite import Bench

from benchmarks.run import cell as cells
from benchmarks.run.pool import Schedule
from benchmarks.store.folders import FAILURE_FILE, RECORD_FILE


@pytest.mark.usefixtures("untimed", "unreported")
def test_a_dry_run_names_every_state_trains_nothing_and_changes_nothing(
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
