"""The end screen of a run: its methods at equal cost, marked among comparable published ones."""

import shutil
from pathlib import Path

import pytest
from records_by_hand import write_results
from rich.console import Console

from benchmarks.analysis.board import board_table, compared_with_published, report_files
from benchmarks.analysis.comparison import comparison_of
from benchmarks.analysis.frames import load_results
from benchmarks.commands.publish import publish_run
from benchmarks.store.hashes import unsealed
from benchmarks.store.results_folder import open_results

SHOWN = {"consistentee", "deebert", "pabee", "berxit", "calm-softmax", "calm-state", "calm-classifier", "static"}
SHOWN |= {"random"}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all methods, and its publication."""
    folder = tmp_path_factory.mktemp("everything")
    write_results(folder / "run")
    publish_run(folder / "run", folder / "published")
    return folder


@pytest.fixture
def small_run(everything: Path, tmp_path: Path) -> Path:
    """A run of one method alone: neither the full model nor a timing is there."""
    place = Path("cells", "mcid", "minilm-l6", "pabee")
    shutil.copytree(everything / "run" / place, tmp_path / "run" / place)
    return tmp_path / "run"


def keys_of(run: Path) -> set[str]:
    return {record.key for record in open_results(run).cells.values()}


def cells_of(run: Path, measured: set[str], folders: list[Path]):
    own = load_results(run)
    board = compared_with_published(own, folders)
    return board, board_table(board, own, measured).cells.set_index("method")


def printed(run: Path, measured: set[str], folders: list[Path]) -> str:
    console = Console(width=300)
    with console.capture() as capture:
        console.print(report_files(run, measured, folders))
    return capture.get()


def test_what_was_measured_is_marked_among_the_published(everything, small_run):
    board, cells = cells_of(small_run, keys_of(small_run), [everything / "published"])
    assert set(cells.index) == SHOWN
    assert cells.index[cells[" "] == ">"].tolist() == ["pabee"]
    found = comparison_of(load_results(everything / "run")).headline.set_index(["method", "budget"])
    for label in SHOWN:
        assert cells.at[label, "at 2x"].split()[0].rstrip("†") == f"{found.at[(label, 2.0), 'points']:+.1f}"
    assert cells.at["static", "clock 2x b1"] == f"{found.at[('static', 2.0), 'speedup_b1']:.2f}"
    assert not board.faults


def test_one_screen_says_how_to_read_it_and_what_next(everything, small_run):
    shown = printed(small_run, keys_of(small_run), [everything / "published"])
    assert len(shown.splitlines()) <= 26
    assert "Points against the full model at equal cost, mcid · minilm-l6" in shown
    assert "> measured just now; the others are stored (published)" in shown
    found = comparison_of(load_results(everything / "run")).headline
    assert ("Layers where a budget was not met: " in shown) == bool((found["over"] | found["under"]).any())
    assert f"consistentee table {small_run}" in shown


def test_without_a_full_model_its_own_points_are_shown(small_run):
    shown = printed(small_run, keys_of(small_run), [])
    assert "Points against the full model" not in shown
    assert "pabee" in shown
    assert "2x" in shown


def test_busy_machines_are_named(everything, tmp_path):
    shutil.copytree(everything / "run", tmp_path / "busy")
    (file,) = (tmp_path / "busy").rglob("timing.json")
    calm, _ = unsealed(file.read_text())
    file.write_text(calm.replace('"environment_before": {', '"environment_before": {"load_average": [9, 9, 9],'))
    assert "Times are noisy (busy machine): mcid" in printed(tmp_path / "busy", set(), [])
    assert "noisy" not in printed(everything / "run", set(), [])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"settings": {', '"settings": {\n   "recipe": {"epochs": 9},'),
        ('"rows": "rows"', '"rows": "others"'),
        ('"training_version": 1', '"training_version": 2'),
        ('"engine_version": 1', '"engine_version": 2'),
        ('"files": {}', '"files": {"weights": "others"}'),
        ('"seed": 0', '"seed": 1'),
    ],
)
def test_what_differs_in_more_than_the_method_is_not_compared(everything, small_run, old, new):
    record = next(small_run.rglob("record.json"))
    assert old in record.read_text()
    record.write_text(unsealed(record.read_text())[0].replace(old, new))
    board = compared_with_published(load_results(small_run), [everything / "published"])
    assert {record.label for record in board.records} == {"pabee"}


def test_unreadable_publications_are_named(everything, small_run, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "cells.parquet").write_text("no")
    shown = printed(small_run, set(), [tmp_path / "broken", everything / "published"])
    assert "left out:" in shown
    assert "deebert" in shown
