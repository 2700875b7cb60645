"""Storage: files are written whole or not at all, and read back with suspicion."""

import os
from hashlib import sha256
from pathlib import Path

import pandas as pd
import pytest
from records_by_hand import cell, parts_by_hand, write_results

from benchmarks.store import hashes
from benchmarks.store.folders import RECORD_FILE, keep_timing, read_cell, read_timings, write_cell
from benchmarks.store.frames import read_frame, read_records, write_records
from benchmarks.store.hashes import share_weights
from benchmarks.store.records import CellRecord, KeyParts
from benchmarks.store.results_folder import open_results
from consistentee.errors import UserError
from consistentee.files import is_disk_full, set_aside

PARTS = parts_by_hand()
ROWS_FILE = "rows.parquet"


def stored_cell(root: Path, parts: KeyParts = PARTS) -> Path:
    folder = root / "cells/task/backbone/label/default/seed0"
    record = cell("pabee", key=parts.key, key_parts=parts, train_seconds=float("inf"))
    write_cell(folder, record, {"rows": pd.DataFrame({"row": [0, 1], "label": [1, 0]}), "training": pd.DataFrame()})
    return folder


def test_a_full_disk_is_recognised_behind_other_errors():
    error = UserError("cannot write")
    error.__cause__ = RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)")
    assert is_disk_full(error)
    assert not is_disk_full(UserError("something else"))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: (f / RECORD_FILE).write_bytes(b"\xff\xfe"), "unreadable"),
        (lambda f: os.truncate(f / ROWS_FILE, 60), ROWS_FILE),
        (lambda f: (f / ROWS_FILE).unlink(), ROWS_FILE),
    ],
)
def test_a_damaged_cell_is_named_and_set_aside(tmp_path, spoil, reason):
    folder = stored_cell(tmp_path)
    spoil(folder)
    record, fault = read_cell(folder, PARTS)
    assert (record, fault.state) == (None, "damaged")
    assert folder.is_dir(), "looking changes nothing"
    said = fault.set_aside()
    assert reason in said
    assert "\n" not in said
    assert not folder.exists()
    assert folder.with_name("seed0.damaged-1").is_dir()


def test_places_without_results_are_named(tmp_path):
    folder = stored_cell(tmp_path / "runs" / "quick")
    with pytest.raises(UserError, match=r"holds no results; these do: .*quick$"):
        open_results(tmp_path / "runs")
    (folder / ROWS_FILE).write_bytes(b"PAR1 no PAR1")
    with pytest.raises(UserError, match="cannot be read"):
        read_frame(folder / ROWS_FILE)


def test_a_cell_is_read_back_and_frames_without_lines_have_no_file(tmp_path):
    folder = stored_cell(tmp_path)
    record, fault = read_cell(folder, PARTS)
    assert (record.key_parts, record.train_seconds, fault) == (PARTS, float("inf"), None)
    assert {path.name for path in folder.iterdir()} == {RECORD_FILE, ROWS_FILE}
    assert read_frame(folder / ROWS_FILE).to_dict("list") == {"row": [0, 1], "label": [1, 0]}
    assert "seed was none, is 1" in read_cell(folder, parts_by_hand(seed=1))[1].reason


def test_records_that_differ_in_fields_of_machine_and_method_read_back_equal(tmp_path):
    machines = [{"cpu": "A", "gpus": [], "commit": None, "threads": {"torch": None}}]
    machines.append({"cpu": "B", "gpus": ["H100"], "memory_gib": 2.5, "threads": {"torch": 2}})
    parts = [PARTS, KeyParts(**PARTS.model_dump() | {"method_version": "a hash", "settings": {"steps": None}})]
    parameters = [{"steps": None, "layers": [1, "a"], "rate": float("inf")}, {"steps": "all"}]
    records = {
        machine["cpu"]: cell("full", environment=machine, key=own.key, key_parts=own, parameters=values, seed=2**40)
        for machine, own, values in zip(machines, parts, parameters, strict=True)
    }
    write_records(tmp_path / "cells", records)
    assert read_records(tmp_path / "cells", CellRecord) == records
    assert [record.environment for record in records.values()] == [{"cpu": "A", "gpus": []}, machines[1]]
    cells = pd.read_parquet(tmp_path / "cells")
    assert cells["environment"].str["cpu"].tolist() == cells["file"].tolist() == ["A", "B"]
    assert [sha256(text.encode()).hexdigest() for text in cells["key_parts"]] == cells["key"].tolist()


def test_the_latest_timing_comes_first_and_an_earlier_one_is_kept_with_its_times(tmp_path):
    write_results(tmp_path, seeds=(0, 1), labels=("full", "deebert"))
    (folder,) = tmp_path.glob("timings/*/*/seed0")
    times = read_frame(folder / "timing.parquet")
    kept = keep_timing(folder)
    assert {path.name for path in folder.iterdir()} == {"timing-1.json", "timing-1.parquet"}
    pd.testing.assert_frame_equal(read_frame(kept.with_suffix(".parquet")), times)
    assert (len(read_timings(folder)[0]), read_timings(folder)[1]) == (1, [])
    kept.write_text(hashes.unsealed(kept.read_text())[0].replace("2026-01-01T00:02", "2025-01-01T00:02"))
    write_results(tmp_path, labels=("full", "deebert"))
    found = open_results(tmp_path)
    files = [("seed0", "timing.json"), ("seed0", "timing-1.json"), ("seed1", "timing.json")]
    assert [Path(file).parts[-2:] for file in found.timings] == files
    assert found.frame("times")["timing"].unique().tolist() == [0, 1, 2]
    os.truncate(folder / "timing.parquet", 60)
    assert [fault.path.name for fault in read_timings(folder)[1]] == ["timing.json"]


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
    assert [record.key_parts for record in found.cells.values()] == [parts_by_hand("new")]
    assert (found.timings, found.faults) == ({}, [])
    (folder / RECORD_FILE).write_text("{")
    found = open_results(tmp_path)
    assert (found.cells, found.faults[0].path) == ({}, folder / RECORD_FILE)
    assert folder.is_dir()
