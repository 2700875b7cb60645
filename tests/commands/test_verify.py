"""`verify` finds every change of published results."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from command_line import call
from documents import ROOT

from benchmarks.commands.publish import faults_of, seal_results
from benchmarks.store.folders import HASHES_FILE, frame_file
from benchmarks.store.frames import FrameName, read_frame, write_published_frame


@pytest.fixture
def published(tmp_path) -> Path:
    return Path(shutil.copytree(ROOT / "results" / "quick", tmp_path / "quick"))


def change(folder: Path, name: FrameName, column: str, line: int, value: float) -> None:
    """Change one number of a frame and write all hashes again, as someone who cheats would."""
    frame = read_frame(folder / frame_file(name))
    frame.loc[line, column] = value
    write_again(folder, name, frame)


def write_again(folder: Path, name: FrameName, frame: pd.DataFrame) -> None:
    """Write a frame, and all hashes to fit."""
    write_published_frame(folder / frame_file(name), frame)
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".parquet", ".yaml", ".json")]
    seal_results(folder, [path for path in files if path.name != HASHES_FILE])


@pytest.mark.parametrize("suite", ["quick", pytest.param("cpu-6-layers", marks=pytest.mark.slow)])
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
    change(published, name, column, line, 3 if name == "exits" else 1 - found["label"])
    faults = list(faults_of(published))
    assert faults
    assert all("its rows give" in fault for fault in faults)


def test_verify_names_a_changed_score(published):
    mixed = read_frame(published / "exits.parquet")[["cell", "place"]].iloc[0]
    curve = read_frame(published / "curve.parquet")
    (line,) = curve.index[(curve[["cell", "place"]] == mixed).all(axis="columns")]
    change(published, "curve", "accuracy", line, curve.loc[line, "accuracy"] + 0.01)
    done = call("verify", published)
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert f"place {mixed['place']}, accuracy: its rows give 0." in done.output
    (published / "suite.yaml").write_bytes(b"# more")
    assert "suite.yaml: not the content that was written" in call("verify", published).output
