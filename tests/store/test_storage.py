"""Storage: files are written whole or not at all, and read back with suspicion."""

import os
from pathlib import Path

import pandas as pd
import pytest
from records_by_hand import cell, operating_point, parts_by_hand, write_results

from benchmarks.analysis.frames import first_timings, load_results
from benchmarks.store import hashes
from benchmarks.store.folders import (
    PREDICTIONS_FILE,
    RECORD_FILE,
    parse_record,
    read_cell,
    read_rows,
    write_record,
    write_rows,
)
from benchmarks.store.hashes import share_weights, write_text
from benchmarks.store.records import CellRecord, KeyParts
from benchmarks.store.stored_results import open_results
from benchmarks.store.timings import TimingRecord
from consistentee.errors import UserError
from consistentee.files import is_disk_full, set_aside

RECORD = cell("pabee", [operating_point(2.0, "budget 0.50", 2.5, 0.9)])
PARTS = parts_by_hand()


def stored(parts: KeyParts = PARTS) -> CellRecord:
    infinite = {"train_seconds": float("inf")}
    return RECORD.model_copy(update={"key": parts.key, "key_parts": parts, **infinite})


def stored_cell(root: Path, parts: KeyParts = PARTS) -> Path:
    folder = root / "cells/task/backbone/label/default/seed0"
    write_rows(folder / PREDICTIONS_FILE, pd.DataFrame({"row": [0, 1], "label": [1, 0]}))
    write_record(folder / RECORD_FILE, stored(parts), [folder / PREDICTIONS_FILE])
    return folder


def test_full_disk_is_recognised_behind_other_errors():
    error = UserError("cannot write")
    error.__cause__ = RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)")
    assert is_disk_full(error)
    assert not is_disk_full(UserError("something else"))


def test_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*sub: Not a directory"):
        write_text(tmp_path / "file" / "sub" / "record.json", "text")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: (f / RECORD_FILE).write_bytes(b"\xff\xfe"), "unreadable"),
        (lambda f: os.truncate(f / PREDICTIONS_FILE, 60), PREDICTIONS_FILE),
        (lambda f: (f / PREDICTIONS_FILE).unlink(), PREDICTIONS_FILE),
    ],
)
def test_damaged_cell_is_named_and_set_aside(tmp_path, spoil, reason):
    folder = stored_cell(tmp_path)
    spoil(folder)
    record, fault = read_cell(folder, PARTS, CellRecord)
    assert record is None
    assert folder.is_dir(), "looking changes nothing"
    said = fault.set_aside()
    assert fault.kind == "damaged"
    assert reason in said
    assert "\n" not in said
    assert not folder.exists()
    assert folder.with_name("seed0.damaged-1").is_dir()


def test_places_without_results_are_named(tmp_path):
    folder = stored_cell(tmp_path / "runs" / "quick")
    with pytest.raises(UserError, match=r"holds no results; these do: .*quick$"):
        open_results(tmp_path / "runs")
    (folder / PREDICTIONS_FILE).write_bytes(b"PAR1 no PAR1")
    with pytest.raises(UserError, match="cannot be read"):
        read_rows(folder / PREDICTIONS_FILE)


def test_the_timing_that_was_taken_last_counts(tmp_path):
    write_results(tmp_path, seeds=(0, 1))
    (latest,) = tmp_path.glob("timings/*/*/seed0/timing.json")
    earlier, _ = parse_record(latest, TimingRecord)
    changes = {"key": "another protocol", "finished_at": "2025-01-01T00:00:00+00:00"}
    write_record(latest.with_name("timing-1.json"), earlier.model_copy(update=changes))
    found = open_results(tmp_path)
    assert [Path(file).parts[-2:] for file in found.timings] == [
        ("seed0", "timing.json"),
        ("seed0", "timing-1.json"),
        ("seed1", "timing.json"),
    ]
    found = load_results(tmp_path)
    assert found.timings[0].key == "timing"
    assert set(first_timings(found.times)["timing"]) == {0, 2}


def test_models_with_equal_weights_keep_one_large_file_between_them(tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "LARGE_BYTES", 100)
    contents = {"first": b"a" * 200, "second": b"a" * 200, "other": b"b" * 200}
    files = {name: tmp_path / name / "backbone" / "model.safetensors" for name in contents}

    def save(name: str) -> None:
        files[name].parent.mkdir(parents=True)
        files[name].write_bytes(contents[name])
        (tmp_path / name / "small.safetensors").write_bytes(b"small")
        share_weights(tmp_path / name, tmp_path / "pool")

    for name in contents:
        save(name)
    assert {name: file.read_bytes() for name, file in files.items()} == contents
    assert files["first"].samefile(files["second"])
    assert len(list((tmp_path / "pool").iterdir())) == 2
    for number, damaged in enumerate((b"", b"aaa", b"A" * 200)):
        files["first"].write_bytes(damaged)  # into the one file that is the pool's too
        name = f"after {number}"
        files[name], contents[name] = tmp_path / name / "model.safetensors", contents["second"]
        save(name)
        assert files[name].read_bytes() == contents[name], "a damaged file comes back to no model"
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(PermissionError))
    files["last"], contents["last"] = tmp_path / "last" / "model.safetensors", b"c" * 200
    save("last")
    assert files["last"].read_bytes() == contents["last"], "a disk without links keeps copies"
    assert not list(tmp_path.rglob(".*")), "no link is left behind"


def test_reading_results_changes_nothing_and_skips_what_was_set_aside(tmp_path):
    folder = stored_cell(tmp_path)
    set_aside(folder, "stale")
    stored_cell(tmp_path, parts_by_hand("new"))
    found = open_results(tmp_path)
    assert [cell.record.key_parts for cell in found.cells] == [parts_by_hand("new")]
    assert (found.timings, found.faults) == ({}, [])
    (folder / RECORD_FILE).write_text("{")
    found = open_results(tmp_path)
    assert found.cells == []
    assert found.faults[0].path == folder / RECORD_FILE
    assert folder.is_dir()
