"""Published results: small, readable, of the versions that the code has today; and `verify` finds every change."""

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from command_line import call
from documents import ROOT
from pandas import read_csv
from pandas.testing import assert_frame_equal
from recomputed_headline import largest_difference

from benchmarks.analysis.board import write_published_files
from benchmarks.analysis.frames import load_results
from benchmarks.commands.publish import faults_of, seal_results
from benchmarks.run.sweep import run_suite
from benchmarks.specs.method_files import method_version
from benchmarks.specs.suites import load_suite
from benchmarks.store.folders import HASHES_FILE, frame_file
from benchmarks.store.frames import FrameName, read_frame, write_published_frame
from benchmarks.store.results_folder import open_results
from consistentee.versions import ENGINE_VERSION, TRAINING_VERSION

RESULTS = ROOT / "results"
SUITES = sorted(path.name for path in RESULTS.iterdir() if (path / "cells.parquet").exists())
UNCLEAN = {f"decoding-{x}" for x in ("batches", "drafts", "methods", "stage-3")}
"""Folders that are older than the rule below. Each leaves this list when results by the rule replace it."""
FILES = {"cells.parquet", "rows.parquet", "timings.parquet", "table.md"}


def records(suite):
    found = open_results(RESULTS / suite)
    assert found.faults == []
    return list(found.cells.values())


def test_all_of_it_is_small():
    assert sum(path.stat().st_size for path in RESULTS.rglob("*") if path.is_file()) < 10e6


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_is_a_few_files_and_one_page(suite):
    names = {path.name for path in (RESULTS / suite).iterdir()}
    assert names >= FILES
    assert len([name for name in names if name.endswith(".png")]) == 1
    assert len((RESULTS / suite / "table.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_tables_are_what_todays_code_makes_of_the_records(suite, tmp_path):
    folder = tmp_path / suite
    shutil.copytree(RESULTS / suite, folder)
    written = write_published_files(load_results(folder), folder)
    assert {path.name for path in written} >= {"table.md"}
    for path in written:
        committed = RESULTS / suite / path.name
        if path.suffix == ".csv":  # processors differ in last digits
            assert_frame_equal(read_csv(path), read_csv(committed), rtol=1e-6)
        elif path.suffix == ".md":
            assert path.read_text(encoding="utf-8") == committed.read_text(encoding="utf-8")


@pytest.mark.parametrize("suite", ["cpu-6-layers-float32", "cpu-12-layers", "quick"])
def test_a_headline_follows_from_its_parquet_files_by_pandas_alone(suite):
    assert largest_difference(RESULTS / suite) < 1e-4


@pytest.mark.parametrize("suite", SUITES)
def test_records_are_of_todays_versions_and_come_from_clean_commits_in_one_precision(suite):
    found = records(suite)
    for record in found:
        parts = record.key_parts
        assert record.key == parts.key
        versions = (parts.method_version, parts.engine_version, parts.training_version)
        assert versions == (method_version(record.method), ENGINE_VERSION[parts.kind], TRAINING_VERSION)
    changed = [record.command for record in found if record.environment.get("uncommitted_changes")]
    precisions = {record.training_precision for record in found} - {None}
    assert (suite in UNCLEAN) == bool(changed or len(precisions) > 1), f"{changed}, {precisions}"


@pytest.mark.real
@pytest.mark.parametrize("suite", SUITES)
def test_every_cell_counts_as_done(suite, tmp_path):
    data = os.environ.get("CONSISTENTEE_DATA")
    if not data:
        pytest.skip("CONSISTENTEE_DATA is not set")
    options = {"data_dir": Path(data), "published_dir": RESULTS / suite, "dry_run": True}
    lines = run_suite(load_suite(suite), out=tmp_path, **options).plan
    assert sum(line.startswith("done") for line in lines) == len(records(suite))
    assert not [line for line in lines if "published, but" in line]


@pytest.fixture
def published(tmp_path) -> Path:
    return Path(shutil.copytree(ROOT / "results" / "quick", tmp_path / "quick"))


def write_again(folder: Path, name: FrameName, frame: pd.DataFrame) -> None:
    """Write a frame, and all hashes to fit, as someone who cheats would."""
    write_published_frame(folder / frame_file(name), frame)
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".parquet", ".yaml", ".json")]
    seal_results(folder, [path for path in files if path.name != HASHES_FILE])


@pytest.mark.parametrize("suite", ["quick", pytest.param("cpu-6-layers-float32", marks=pytest.mark.slow)])
def test_verify_accepts_published_results(suite):
    folder = ROOT / "results" / suite
    done = call("verify", folder)
    assert (done.exit_code, done.output) == (0, f"{folder}: no faults\n")


def test_verify_accepts_a_cell_without_exits_for_all_its_rows_run_every_layer(published):
    exits = read_frame(published / "exits.parquet")
    write_again(published, "exits", exits[exits["cell"] != exits["cell"].iloc[0]])
    assert list(faults_of(published)) == []


@pytest.mark.parametrize("name", ["rows", "answers", "exits"])
def test_verify_names_a_changed_row_even_with_new_hashes(published, name):
    exits, answers = (read_frame(published / frame_file(frame)) for frame in ("exits", "answers"))
    rows = read_frame(published / "rows.parquet")
    found = exits[exits["exit_layer"] == 1].merge(rows, on=["cell", "row"])
    found = found.merge(answers[answers["layer"] == 1], on=["cell", "row"]).query("answer == label").iloc[0]
    at = {"cell": found["cell"], "row": found["row"]}
    at |= {"answers": {"layer": 1}, "exits": {"place": found["place"]}, "rows": {}}[name]
    frame = {"rows": rows, "answers": answers, "exits": exits}[name]
    (line,) = frame.index[(frame[list(at)] == pd.Series(at)).all(axis="columns")]
    column = {"rows": "label", "answers": "answer", "exits": "exit_layer"}[name]
    frame.loc[line, column] = 3 if name == "exits" else 1 - found["label"]
    write_again(published, name, frame)
    faults = list(faults_of(published))
    assert faults
    assert all("its rows give" in fault for fault in faults)


def test_verify_names_a_changed_score(published):
    mixed = read_frame(published / "exits.parquet")[["cell", "place"]].iloc[0]
    curve = read_frame(published / "curve.parquet")
    (line,) = curve.index[(curve[["cell", "place"]] == mixed).all(axis="columns")]
    curve.loc[line, "accuracy"] += 0.01
    write_again(published, "curve", curve)
    done = call("verify", published)
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert f"place {mixed['place']}, accuracy: its rows give 0." in done.output
    (published / "suite.yaml").write_bytes(b"# more")
    assert "suite.yaml: not the content that was written" in call("verify", published).output
