"""What a run ends with: its methods at equal cost, marked among the published ones that are comparable."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from records_by_hand import write_results
from rich.console import Console

from benchmarks.analysis import write_all_tables, write_html
from benchmarks.analysis.comparisons.equal_cost import at_equal_cost
from benchmarks.analysis.panels.results import load_panels
from benchmarks.analysis.rows.instances import row_for_half
from benchmarks.analysis.tables.run_screen import Board, board_table, load_board, published_folders, run_screen
from benchmarks.commands.publish import publish_run
from benchmarks.store.folders import RECORD_FILE
from benchmarks.store.records import CellRecord, TimingRecord
from benchmarks.store.stored_results import open_results
from consistentee.errors import UserError

SHOWN = {"consistentee", "deebert", "pabee", "berxit", "calm-softmax", "calm-state", "calm-classifier", "static"}
SHOWN |= {"random"}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all methods, and its publication beside it."""
    folder = tmp_path_factory.mktemp("everything")
    write_results(folder / "run")
    publish_run(folder / "run", folder / "published")
    return folder


@pytest.fixture
def small_run(everything: Path, tmp_path: Path) -> Path:
    """A run of one method alone: neither the full model nor a timing is there."""
    shutil.copytree(everything / "run" / "cells" / "mcid" / "minilm-l6" / "pabee", place_of(tmp_path, "pabee"))
    return tmp_path / "run"


def place_of(folder: Path, label: str) -> Path:
    return folder / "run" / "cells" / "mcid" / "minilm-l6" / label


def keys_of(run: Path) -> set[str]:
    return {cell.record.key for cell in open_results(run, CellRecord, TimingRecord).cells}


def rows_of(board: Board) -> dict[str, tuple[str, ...]]:
    return {row[1]: row for row in board_table(board).cells}


def loaded(run: Path, measured: set[str], folders: Sequence[Path]) -> Board:
    board, faults = load_board(run, measured, folders)
    assert faults == []
    return board


def printed(run: Path, measured: Sequence[str], folders: Sequence[Path], width: int = 140) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(run_screen(run, measured, folders))
    return capture.get()


def test_what_was_measured_is_marked_among_the_published(everything, small_run):
    board = loaded(small_run, keys_of(small_run), [everything / "published"])
    rows = rows_of(board)
    assert set(rows) == SHOWN | {"pabee (stored)"}
    assert {label for label, row in rows.items() if row[0] == ">"} == {"pabee"}
    panel = load_panels(everything / "run")[0][0]
    for name, row in rows.items():
        label = name.removesuffix(" (stored)")
        for text, speedup in zip(row[2:5], (1.5, 2, 3), strict=True):
            assert text.rstrip("†") == f"{100 * at_equal_cost(panel, label, speedup).points:+.1f}"
    points = [float(row[3].rstrip("†")) for row in rows.values()]
    assert points == sorted(points, reverse=True)
    assert rows["static"][5] == f"{at_equal_cost(panel, 'static', 2.0).time_ratios[1]:.2f}x"
    assert 1 not in at_equal_cost(panel, "calm-softmax", 2.0).time_ratios, "a knob of the mixture was not timed"
    assert rows["calm-softmax"][5] == f"{row_for_half(panel, 'calm-softmax').speedups.time_ratios[1]:.2f}x*"


def test_one_screen_says_how_to_read_it_and_what_next(everything, small_run):
    shown = printed(small_run, list(keys_of(small_run)), [everything / "published"], width=200)
    lines = shown.splitlines()
    assert len(lines) <= 24
    assert lines[0].startswith("mcid · minilm-l6: points against the full model (accuracy 91.0 [")
    assert "At 2x half of the layers run" in shown
    assert "> measured just now; the others are stored (published" in shown
    assert [line.split()[:2] for line in lines[-2:]] == [["consistentee", "table"], ["consistentee", "new-method"]]


def test_noise_is_said_of_the_times_that_were_just_taken(everything, small_run, tmp_path):
    shutil.copytree(everything / "run", tmp_path / "busy")
    (file,) = (tmp_path / "busy").rglob("timing.json")
    file.write_text(
        file.read_text().replace('"environment_before": {', '"environment_before": {"load_average": [9, 9, 9],')
    )
    busy = tmp_path / "busy"
    assert "Times are noisy (busy machine): mcid" in printed(busy, list(keys_of(busy)), [], width=400)
    assert "noisy" not in printed(everything / "run", list(keys_of(busy)), [], width=400)
    publish_run(busy, tmp_path / "stored")
    assert "noisy" not in printed(small_run, list(keys_of(small_run)), [tmp_path / "stored"], width=400)


def test_nothing_is_marked_where_there_is_nothing_to_tell_apart(everything):
    run = everything / "run"
    for measured in (keys_of(run), set()):
        rows = rows_of(loaded(run, measured, []))
        assert set(rows) == SHOWN
        assert {row[0] for row in rows.values()} == {""}


def test_an_earlier_run_of_the_same_folder_counts_as_stored(everything):
    run = everything / "run"
    keys = {key for key in keys_of(run) if "deebert" in key}
    assert "the others are stored (earlier runs)" in printed(run, list(keys), [], width=200)


def test_what_is_measured_again_stands_beside_what_is_stored(everything, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(everything / "run", run)
    own = place_of(tmp_path, "pabee") / "default" / "seed0" / RECORD_FILE
    own.write_text(own.read_text().replace('"accuracy": 0.6', '"accuracy": 0.5'))
    board = loaded(run, keys_of(run), [everything / "published"])
    rows = rows_of(board)
    assert set(rows) == SHOWN | {f"{label} (stored)" for label in SHOWN}
    assert {name for name, row in rows.items() if row[0] == ">"} == SHOWN
    assert rows["deebert"][2:] == rows["deebert (stored)"][2:]
    assert rows["pabee"][2:] != rows["pabee (stored)"][2:]
    stored = load_panels(everything / "published")[0][0]
    points = at_equal_cost(stored, "pabee", 2.0).points
    assert rows["pabee (stored)"][3].rstrip("†") == f"{100 * points:+.1f}"
    assert rows_of(loaded(run, set(), [everything / "published"])).keys() == SHOWN  # taken as it was found


def test_without_a_full_model_scores_are_shown(small_run):
    board = loaded(small_run, keys_of(small_run), [])
    table = board_table(board)
    assert "score in %" in table.title
    score = at_equal_cost(board.panels[0], "pabee", 2.0).score
    assert table.cells[0][1:4:2] == ("pabee", f"{100 * score:.1f}")


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
    record = place_of(small_run.parent, "pabee") / "default" / "seed0" / RECORD_FILE
    text = record.read_text()
    assert old in text
    record.write_text(text.replace(old, new))
    board = loaded(small_run, set(), [everything / "published"])
    assert set(rows_of(board)) == {"pabee"}
    assert board.published == ()


def test_means_of_several_tasks_leave_out_stored_curves_that_lack_some(everything, tmp_path):
    write_results(tmp_path / "run", tasks=("mcid", "rte"))
    shutil.rmtree(tmp_path / "run" / "cells" / "rte" / "minilm-l6" / "berxit")
    for task in ("mcid", "rte"):
        shutil.rmtree(tmp_path / "run" / "cells" / task / "minilm-l6" / "calm-state")
    board = loaded(tmp_path / "run", set(), [everything / "published"])
    table = board_table(board)
    assert table.title == "mean of 2 tasks: points against the full model at equal cost"
    rows = rows_of(board)
    assert "calm-state" not in rows  # published for one task alone
    assert set(rows["berxit"][2:]) == {"n/a"}  # the run's own
    means = [at_equal_cost(panel, "pabee", 2.0).points for panel in board.panels]
    assert rows["pabee"][3] == f"{100 * sum(means) / 2:+.1f}"


def test_what_is_stored_for_some_of_the_tasks_alone_does_not_stand_beside_their_mean(everything, tmp_path):
    write_results(tmp_path / "run", tasks=("mcid", "rte"))
    board = loaded(tmp_path / "run", keys_of(tmp_path / "run"), [everything / "published"])
    assert board.stored
    assert set(rows_of(board)) == SHOWN


def test_tasks_that_share_the_full_model_alone_are_all_shown(tmp_path):
    tasks = ("mcid", "rte", "sst2", "trec")
    for task, label in zip(tasks, ("pabee", "deebert", "berxit", "static"), strict=True):
        write_results(tmp_path / "whole", tasks=(task,))
        for kept in ("full", label):
            place = Path("cells", task, "minilm-l6", kept)
            shutil.copytree(tmp_path / "whole" / place, tmp_path / "run" / place)
    run = tmp_path / "run"
    shown = printed(run, list(keys_of(run)), [])
    assert "mean of 4 tasks" in shown
    page = write_all_tables(run, "md").read_text()
    assert all(task in page for task in tasks)
    assert "no other method on all tasks" in write_html(run).read_text()


def test_unreadable_publications_are_named(everything, small_run, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "cells.parquet").write_text("no")
    shown = printed(small_run, [], [tmp_path / "broken", everything / "published"], width=400)
    assert "left out:" in shown
    assert "deebert" in shown


def test_published_folders_are_those_of_here_and_of_the_repository(everything, tmp_path, monkeypatch):
    shutil.copytree(everything / "published", tmp_path / "results" / "mine")
    (tmp_path / "results" / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    names = [folder.name for folder in published_folders()]
    assert names[0] == "mine"
    assert "cpu-6-layers" in names
    assert "notes" not in names


def test_nothing_to_show(tmp_path):
    with pytest.raises(UserError, match="holds no results"):
        run_screen(tmp_path, [])
