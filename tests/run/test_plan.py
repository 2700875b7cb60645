"""The plan of a run: the state of every cell, the parts of its key, an estimate of the time."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_suite import Bench

from benchmarks.kinds import Inputs
from benchmarks.run import cell as cells
from benchmarks.run.pool import Schedule
from benchmarks.specs.suites import expand, load_suite
from benchmarks.store.folders import FAILURE_FILE, RECORD_FILE
from benchmarks.store.keys import stale_reason
from benchmarks.store.records import KeyParts

METHOD_WITH_BACKBONE = """
from dataclasses import dataclass
from typing import ClassVar

from baselines.pabee import PABEE


@dataclass(frozen=True)
class Mine(PABEE):
    name: ClassVar[str] = "mine"
    other_backbone: str | None = None
"""


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


def test_files_of_a_backbone_in_a_parameter_change_the_key(tmp_path, tiny_backbone):
    bench = Bench(tmp_path, tiny_backbone("bert"))
    other = tmp_path / "other"
    shutil.copytree(tiny_backbone("bert"), other)
    file = tmp_path / "mine.py"
    file.write_text(METHOD_WITH_BACKBONE)

    def parts(weights: str) -> KeyParts:
        (other / "model.safetensors").write_text(weights)
        entry = {"method": f"{file}:Mine", "parameters": {"other_backbone": str(other)}}
        (spec,) = expand(load_suite(bench.write(methods=[entry])))
        return Inputs(None).parts(spec)

    assert parts("first") == parts("first")
    changed = "backbone.other_backbone.files.model.safetensors changed"
    assert stale_reason(parts("first"), parts("second")) == changed
