"""A run among comparable published results: in tables and figures, and on the screen that it ends with."""

import shutil
from pathlib import Path

import pytest
from records_by_hand import made_up_suite, write_cells, write_results
from rich.console import Console

from benchmarks.analysis.board import report_files
from benchmarks.analysis.comparison import comparison_of
from benchmarks.analysis.figures import leading_labels
from benchmarks.analysis.frames import load_folders, load_results, with_published
from benchmarks.analysis.tables import headline_table
from benchmarks.commands.publish import publish_run
from benchmarks.store.hashes import unsealed

SHOWN = {"consistentee", "deebert", "pabee", "calm-softmax", "static", "random"}


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
    (record,) = tmp_path.rglob("record.json")
    record.write_text(unsealed(record.read_text())[0].replace("2026-01-01T00:01", "2026-01-01T00:09"))
    return tmp_path / "run"


def printed(run: Path, folders: list[Path]) -> str:
    console = Console(width=300)
    with console.capture() as capture:
        console.print(report_files(run, folders))
    return capture.get()


def test_the_methods_of_a_run_are_marked_among_the_published(everything, small_run):
    board = load_folders([small_run], [everything / "published"])
    cells = headline_table(board).cells
    assert cells.loc[cells["method"].str.endswith(" •"), "method"].tolist() == ["pabee •"]
    cells = cells.assign(method=cells["method"].str.removesuffix(" •")).set_index("method")
    assert set(cells.index) == SHOWN
    found = comparison_of(load_results(everything / "run")).headline.set_index(["method", "budget"])
    for label in SHOWN:
        assert cells.at[label, "at 2x"].split()[0].rstrip("†") == f"{found.at[(label, 2.0), 'points']:+.1f}"
    assert "pabee" in leading_labels(board), "its curve is drawn, however good the others are"
    assert cells.at["static", "clock 2x b1"] == f"{found.at[('static', 2.0), 'speedup_b1']:.2f}"
    assert not board.faults


def test_what_is_published_or_alone_is_not_marked(everything, small_run):
    for folders in ([everything / "published"], [everything / "run"], [everything / "run", everything / "published"]):
        assert not load_folders(folders, [everything / "published"]).own_labels, "a run starts from published cells"
    alone = load_folders([small_run])
    assert (alone.labels_to_compare, len(alone.own_labels)) == (["pabee"], 0)


def test_times_of_other_processors_are_left_out(everything, small_run):
    for record in small_run.rglob("record.json"):
        record.write_text(unsealed(record.read_text())[0].replace("Made-up CPU", "Another CPU"))
    board = with_published(load_results(small_run), [everything / "published"])
    assert board.times.empty
    assert "clock 2x b1" not in headline_table(board).cells


def test_the_tasks_of_a_run_count_however_few_published_methods_have_them(everything, small_run):
    write_cells(small_run, [one for one in made_up_suite(task="mine") if one[0].label in ("full", "pabee", "static")])
    board = load_folders([small_run], [everything / "published"])
    assert comparison_of(board).compared == [("mcid", "minilm-l6"), ("mine", "minilm-l6")]


def test_one_screen_says_how_to_read_it_and_what_next(everything, small_run):
    shown = printed(small_run, [everything / "published"])
    assert len(shown.splitlines()) <= 26
    assert "Points against the full model at equal cost, mcid · minilm-l6" in shown
    assert "•: of this run; the others are published" in shown
    assert f"Also written to {small_run}: table.md, curves.png" in shown, "there is no headline without a full model"
    assert not (small_run / "headline.csv").exists()
    assert f"consistentee table {small_run}" in shown
    alone = printed(small_run, [])
    assert ("pabee" in alone, "2x" in alone, "Points against the full model" in alone) == (True, True, False)


def test_busy_machines_are_named(everything, tmp_path):
    shutil.copytree(everything / "run", tmp_path / "busy")
    (file,) = (tmp_path / "busy").rglob("timing.json")
    calm, _ = unsealed(file.read_text())
    file.write_text(calm.replace('"environment_before": {', '"environment_before": {"load_average": [9, 9, 9],'))
    assert "Times are noisy (busy machine): mcid" in printed(tmp_path / "busy", [])
    assert "noisy" not in printed(everything / "run", [])


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
    board = with_published(load_results(small_run), [everything / "published"])
    assert {record.label for record in board.records} == {"pabee"}


def test_unreadable_publications_are_named(everything, small_run, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "cells.parquet").write_text("no")
    shown = printed(small_run, [tmp_path / "broken", everything / "published"])
    assert "left out:" in shown
    assert "deebert" in shown
