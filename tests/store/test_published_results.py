"""Published results: what is written compactly reads back equal, shows the same, and counts as done."""

import io
import json
import shutil
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from generation_by_hand import write_generation
from hypothesis import given, strategies as st
from records_by_hand import made_up_suite, timing, write_results
from rich.console import Console
from small_suite import Bench
from typer.testing import CliRunner

from benchmarks.analysis.figures import FIGURES, write_figures
from benchmarks.analysis.frames import load_results
from benchmarks.analysis.rendering import to_terminal
from benchmarks.analysis.report import write_report
from benchmarks.analysis.tables import load_leaderboard, render, render_leaderboard, terminal_tables
from benchmarks.cli import app
from benchmarks.commands.publish import publish_run
from benchmarks.kinds import kind_named
from benchmarks.run import published as publication
from benchmarks.run.dry_run import plan_lines
from benchmarks.specs.suites import load_suite
from benchmarks.store.folders import (
    CALIBRATION_FILE,
    FAILURE_FILE,
    RECORD_FILE,
    TIMING_FILE,
    VALIDATION_FILE,
    write_predictions,
    write_record,
)
from benchmarks.store.publishing import write_published
from benchmarks.store.records import CellRecord, FailureRecord, TimingRecord
from benchmarks.store.stored_results import (
    BaseStoredCell,
    PublishedCell,
    StoredResults,
    failed_cells,
    kind_of_results,
    open_results,
)
from consistentee.errors import UserError

KINDS = ("classification", "generation")
TEXT = st.text(max_size=8)
NUMBERS = st.floats(allow_nan=False)


def write_run(kind: str, folder: Path) -> Path:
    """Write a run of either kind, with a cell that is not defined for its task, and a study where there are some."""
    if kind == "classification":
        write_results(folder, seeds=(0, 1))
        answers = pd.DataFrame({"row": [0, 1, 2], "label": [0, 1, 1], "hull_prediction_0": [0, 1, 0]})
        for label, more in (("full", {}), ("deebert", {"hull_prediction_1": [2, 1, 1]})):
            place = next(folder.rglob(f"{label}/default/seed0"))
            write_predictions(place / VALIDATION_FILE, answers.assign(**more))
    else:
        write_generation(folder)
        losses = pd.DataFrame({"row": [0, 0, 1, 1], "lambda": [1.0, 0.5] * 2, "textual": [0.0, 0.1, np.nan, 1 / 3]})
        write_predictions(next(folder.rglob("calm-tokens-softmax/default/seed0")) / CALIBRATION_FILE, losses)
    refusal = FailureRecord(key="k", error="no regression", refused=True, traceback="", failed_at="now")
    write_record(folder / "cells" / "mcid" / "b" / "hashee" / "default" / "seed0" / FAILURE_FILE, refusal)
    return folder


def opened(folder: Path) -> StoredResults:
    kind = kind_named(kind_of_results(folder) or "")
    return open_results(folder, kind.record, kind.timing)


@pytest.fixture(scope="module", params=KINDS)
def forms(request, tmp_path_factory) -> tuple[Path, Path]:
    """Return the folders of a run and of its publication, of either kind."""
    folder = tmp_path_factory.mktemp(request.param)
    run, out = write_run(request.param, folder / "runs" / "made-up"), folder / "results" / "made-up"
    publish_run(run, out)
    return run, out


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Return published results of classification; not to be changed."""
    folder = tmp_path_factory.mktemp("published")
    publish_run(write_run("classification", folder / "run"), folder / "made-up")
    return folder / "made-up"


# ---------------------------------------------------------------------------------------------- round trip


def test_everything_reads_back_equal(forms):
    run, out = (opened(folder) for folder in forms)
    assert [c.record for c in out.cells] == [c.record for c in run.cells]
    assert [c.rows.folder for c in out.cells] == [c.rows.folder for c in run.cells]
    assert (out.timings, out.faults) == (run.timings, [])
    assert len(run.timings) > 0
    for ours, theirs in zip(run.cells, out.cells, strict=True):
        pd.testing.assert_frame_equal(theirs.rows.predictions(), ours.rows.predictions(), check_exact=True)
        for kept in ("study", "validation"):
            found, expected = getattr(theirs.rows, kept)(), getattr(ours.rows, kept)()
            assert (found is None) == (expected is None)
            if found is not None:
                pd.testing.assert_frame_equal(found, expected, check_exact=True)
    run_folder, out_folder = forms
    assert failed_cells(out_folder) == failed_cells(run_folder) == {"mcid/b/hashee/default/seed0": "no regression"}
    assert kind_of_results(out_folder) == kind_of_results(run_folder)


def test_publishing_again_gives_the_same_files(forms, tmp_path):
    run, out = forms
    publish_run(run, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in out.iterdir())
    for path in tmp_path.glob("*.parquet"):
        assert path.read_bytes() == (out / path.name).read_bytes(), path.name


def test_a_publication_is_a_few_small_files(forms):
    run, out = forms
    names = {path.name for path in out.iterdir()}
    assert {"cells.parquet", "timings.parquet", "rows.parquet", "table.md"} <= names
    assert ({"headline.csv", "validation.parquet"} <= names) == (kind_of_results(out) == "classification")
    assert sum(name.endswith(".png") for name in names) == 1
    assert {name for name in names if name.endswith((".pdf", ".html", ".json"))} == {"hashes.json"}
    size = sum(path.stat().st_size for path in out.glob("*.parquet"))
    assert size < sum(path.stat().st_size for path in run.rglob("*") if path.is_file()) / 2


def test_pandas_can_read_it(published):
    cells = pd.read_parquet(published / "cells.parquet")
    records = pd.json_normalize([json.loads(text) for text in cells["text"]])
    assert {"task", "backbone", "method", "label", "seed", "key", "train_seconds"} <= set(records.columns)
    rows = pd.read_parquet(published / "rows.parquet").join(records[["method", "seed"]], on="cell")
    full = rows[(rows["method"] == "full") & (rows["seed"] == 0)]
    assert (full["prediction_0"] == full["label"]).any()
    assert len(pd.read_parquet(published / "timings.parquet")) == 2


@st.composite
def frames(draw) -> pd.DataFrame:
    """Draw the rows of a cell: columns as methods might write them, in any order."""
    names = draw(st.permutations(["row", "label", "x_0", "x_1", "x_2", "y_7", "y_8", "tokens_0", "tokens_1"]))
    rows = draw(st.integers(0, 5))
    values = np.random.default_rng(draw(st.integers(0, 99)))
    columns: dict[str, object] = {}
    for name in names[: draw(st.integers(1, len(names)))]:
        if name.startswith("tokens"):
            texts = [values.integers(0, 50_000, values.integers(0, 4)) for _ in range(rows)]
            columns[name] = pd.Series(texts, dtype=object)
        elif name.startswith("x"):
            columns[name] = values.normal(size=rows).astype("float32")
        elif name.startswith("y"):
            columns[name] = values.integers(0, 2, rows).astype(bool)
        else:
            columns[name] = values.integers(-(2**40), 2**40, rows)
    return pd.DataFrame(columns)


@dataclass(frozen=True)
class Rows:
    """Rows that lie in no file."""

    frame: pd.DataFrame
    folder: str

    def predictions(self) -> pd.DataFrame:
        return self.frame

    def validation(self) -> None:
        return None

    def study(self) -> pd.DataFrame:
        return self.frame


@given(st.lists(frames(), min_size=1, max_size=4))
def test_rows_of_any_columns_read_back_equal(found):
    records = made_up_suite()
    cells = [
        BaseStoredCell(record, Rows(frame, f"mcid/b/label{number % 2}/seed{number}"))
        for number, (record, frame) in enumerate(zip(records, found, strict=False))
    ]
    with TemporaryDirectory() as folder:
        write_published(Path(folder), StoredResults(cells, [], [], []), {})
        again = open_results(Path(folder), CellRecord, TimingRecord).cells
        for frame, stored in zip(found, again, strict=True):
            pd.testing.assert_frame_equal(stored.rows.predictions(), expected := parquet(frame), check_exact=True)
            pd.testing.assert_frame_equal(stored.rows.study(), expected, check_exact=True)
            assert stored.rows.validation() is None


def parquet(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what Arrow makes of a table."""
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None).to_pandas()


def test_classes_and_real_numbers_share_a_suite(tmp_path):
    write_results(tmp_path / "run")
    folder = next((tmp_path / "run").rglob("deebert/default/seed0"))
    values = pd.read_parquet(folder / "predictions.parquet")
    values["label"] = np.linspace(0, 5, len(values), dtype=np.float32)
    values["layer_prediction_1"] = np.float32(0.1)
    write_predictions(folder / "predictions.parquet", values)
    publish_run(tmp_path / "run", tmp_path / "out")
    by_label = {c.record.label: c.rows.predictions() for c in opened(tmp_path / "out").cells}
    pd.testing.assert_frame_equal(by_label["deebert"], values, check_exact=True)
    assert by_label["full"]["label"].dtype == np.int64


def test_timings_without_samples_and_suites_without_timings(tmp_path):
    records = made_up_suite()
    write_results(tmp_path / "run")
    taken = timing(records[:1])
    place = next((tmp_path / "run").rglob(TIMING_FILE))
    unsampled = taken.contenders[1].model_copy(update={"samples": []})
    write_record(place, taken.model_copy(update={"contenders": [taken.contenders[0], unsampled]}))
    empty = place.parents[1] / "seed1" / TIMING_FILE
    write_record(empty, taken.model_copy(update={"contenders": [], "seed": 1}))
    publish_run(tmp_path / "run", tmp_path / "out")
    assert opened(tmp_path / "out").timings == opened(tmp_path / "run").timings
    assert [len(t.contenders) for t in opened(tmp_path / "out").timings] == [2, 0]
    shutil.rmtree(tmp_path / "run" / "timings")
    publish_run(tmp_path / "run", tmp_path / "untimed")
    assert opened(tmp_path / "untimed").timings == []


# ---------------------------------------------------------------------------------------------- what is wrong


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    """Change bytes in the middle, where the values are."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 3
    data[middle : middle + 8] = b"\xff" * 8
    path.write_bytes(bytes(data))


def of_another_program(path: Path) -> None:
    pq.write_table(pa.table({"task": ["mcid"]}), path)


@pytest.mark.parametrize("name", ["cells.parquet", "timings.parquet", "rows.parquet"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (cut, "cannot be read as published results"),
        (flip, "cannot be read as published results"),
        (of_another_program, "cannot be read as published results"),
        (Path.unlink, "missing"),
    ],
)
def test_what_is_damaged_or_foreign_is_said_in_one_sentence(published, tmp_path, name, spoil, said):
    out = tmp_path / "made-up"
    shutil.copytree(published, out)
    spoil(out / name)
    if spoil not in (cut, flip):
        (out / "hashes.json").unlink()  # published before there were hashes
    if (name, spoil) == ("cells.parquet", Path.unlink):
        said = "holds no results"  # it is this file that tells the form
    with pytest.raises(UserError, match=said) as raised:
        read_all_rows(out)
    assert "\n" not in str(raised.value)


def read_all_rows(folder: Path) -> None:
    for stored in open_results(folder, CellRecord, TimingRecord).cells:
        stored.rows.predictions()


def test_records_of_another_version_are_named(published, tmp_path):
    shutil.copytree(published, tmp_path / "made-up")
    path = tmp_path / "made-up" / "cells.parquet"
    (tmp_path / "made-up" / "hashes.json").unlink()
    cells = pd.read_parquet(path)
    cells.assign(text=cells["text"].str.replace("{", '{"new":"x",', n=1)).to_parquet(path)
    with pytest.raises(UserError, match="records of another version: new"):
        open_results(tmp_path / "made-up", CellRecord, TimingRecord)


def test_what_cannot_be_published(published, tmp_path):
    with pytest.raises(UserError, match="published already"):
        publish_run(published, tmp_path / "out")
    with pytest.raises(UserError, match="holds no results"):
        publish_run(tmp_path / "nothing", tmp_path / "out")
    run = write_run("classification", tmp_path / "run")
    with pytest.raises(UserError, match="holds a run"):
        publish_run(run, run)
    next(run.rglob(RECORD_FILE)).write_text("{")
    with pytest.raises(UserError, match="before you publish it"):
        publish_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "kept"), [("classification", "predictions"), ("classification", "validation"), ("generation", "study")]
)
def test_what_does_not_read_back_equal_is_said(tmp_path, monkeypatch, kind, kept):
    read = getattr(PublishedCell, kept)

    def lossy(self):
        found = read(self)
        return found if found is None else found[:-1]

    monkeypatch.setattr(PublishedCell, kept, lossy)
    with pytest.raises(AssertionError, match="keep the run"):
        publish_run(write_run(kind, tmp_path / "run"), tmp_path / "out")


# ---------------------------------------------------------------------------------------------- what is shown


def test_tables_are_the_same(forms):
    for table_format in ("md", "csv", "latex"):
        texts = [render(load_results(form), table_format) for form in forms]
        assert texts[0] == texts[1]
    shown = [shown_of(form) for form in forms]
    assert shown[0] == shown[1]


def copied(folder: Path, tmp_path: Path) -> Path:
    """Return a copy to write into, whose folder has the same name."""
    place = tmp_path / folder.parent.name / folder.name
    return Path(shutil.copytree(folder, place, dirs_exist_ok=True))


def shown_of(folder: Path) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(to_terminal(terminal_tables(load_results(folder))))
    return console.file.getvalue()


def test_report_is_the_same(forms, tmp_path):
    pages = [write_report(load_results(form), copied(form, tmp_path)).read_text() for form in forms]
    assert pages[0] == pages[1]


def test_leaderboard_is_the_same(tmp_path, published):
    write_run("classification", tmp_path / "made-up")
    boards = [render_leaderboard(load_leaderboard([folder]), "csv") for folder in (tmp_path / "made-up", published)]
    assert boards[0] == boards[1]


def test_figures_are_written_to_the_folder(published, tmp_path):
    paths, _ = write_figures(load_results(published), tmp_path, FIGURES[:1])
    assert [path.name for path in paths] == ["equal-cost.png"]
    assert paths[0].with_suffix(".txt").read_text().startswith("Points against the full model")


def test_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run("classification", Path("runs/mine"))
    (tmp_path / "runs" / "mine" / "suite.yaml").write_text("name: mine\n")
    done = CliRunner().invoke(app, ["publish", "runs/mine"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "results" / "mine" / "suite.yaml").read_text() == "name: mine\n"
    assert "results/mine/cells.parquet" in done.output
    assert CliRunner().invoke(app, ["table", "results/mine"]).exit_code == 0


# ---------------------------------------------------------------------------------------------- runs


METHODS = ["full", "pabee", "majority"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_backbone) -> Bench:
    """Return a small suite that was run and published, in ``published`` beside it."""
    bench = Bench(tmp_path_factory.mktemp("finished"), tiny_backbone("bert"))
    bench.run(changes={"methods": METHODS})
    publish_run(bench.out, bench.folder / "published")
    return bench


@pytest.fixture
def elsewhere(finished, tmp_path, unreported) -> Bench:
    """Return the same suite, whose own folder is empty."""
    other = copy(finished)
    other.out = tmp_path / "out"
    return other


def run_from(bench: Bench, published: Path, methods: Sequence[str] = METHODS, **options: object):
    return bench.run(changes={"methods": list(methods), **options}, published_dir=published)


def records_of(folder: Path) -> list[CellRecord]:
    return [stored.record for stored in open_results(folder, CellRecord, TimingRecord).cells]


@pytest.mark.parametrize("form", ["published", "run"])
def test_what_is_published_is_done(finished, elsewhere, form):
    place = finished.folder / "published" if form == "published" else finished.out
    outcome = run_from(elsewhere, place)
    assert (outcome.computed, outcome.finished, outcome.failed) == (0, 3, ())
    assert "3 cells and 1 timings taken from" in elsewhere.said
    assert elsewhere.results() == finished.results()
    assert elsewhere.read().timings == finished.read().timings
    assert not list((elsewhere.out / "artifacts").rglob("model.safetensors"))
    stamps = {path: path.stat().st_mtime_ns for path in elsewhere.out.rglob(RECORD_FILE)}
    assert "taken from" not in (run_from(elsewhere, place), elsewhere.said)[1]
    assert {path: path.stat().st_mtime_ns for path in elsewhere.out.rglob(RECORD_FILE)} == stamps


def test_dry_run_counts_it_and_writes_nothing(finished, elsewhere):
    suite = load_suite(elsewhere.write(methods=[*METHODS, "static"]))
    lines = plan_lines(suite, out=elsewhere.out, published_dir=finished.folder / "published")
    assert sum(line.startswith("done ") for line in lines) == 3
    assert sum(line.startswith("to run ") for line in lines) == 1
    suite = load_suite(elsewhere.write(methods=METHODS))
    lines = plan_lines(suite, out=elsewhere.out, published_dir=finished.folder / "published")
    assert not [line for line in lines if line.startswith(("to run ", "to time "))]
    assert not elsewhere.out.exists()
    again = plan_lines(suite, out=elsewhere.out, published_dir=finished.folder / "published", remeasure=True)
    assert sum(line.startswith("to run ") for line in again) == len(METHODS)
    fresh = plan_lines(suite, out=elsewhere.out, published_dir=finished.folder / "published", fresh=True)
    assert sum(line.startswith("to run ") for line in fresh) == 3


def test_published_folder_of_the_suites_name_is_found(finished, elsewhere, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    suite = load_suite(elsewhere.write(methods=METHODS))
    assert sum(line.startswith("to run ") for line in plan_lines(suite, out=elsewhere.out)) == 3
    shutil.copytree(finished.folder / "published", tmp_path / "results" / suite.name)
    assert sum(line.startswith("done ") for line in plan_lines(suite, out=elsewhere.out)) == 3


@pytest.mark.usefixtures("untimed")
def test_what_differs_is_computed_and_said(finished, elsewhere):
    outcome = run_from(elsewhere, finished.folder / "published", ["full"], recipe={"epochs": 1, "max_length": 12})
    assert outcome.computed == 1
    assert "published, but recipe.max_length was 16, is 12" in elsewhere.said
    assert "taken from" not in elsewhere.said


def test_what_differs_is_said_once_for_all_cells(finished, elsewhere):
    suite = load_suite(elsewhere.write(methods=METHODS, recipe={"epochs": 1, "max_length": 12}))
    lines = plan_lines(suite, out=elsewhere.out, published_dir=finished.folder / "published")
    said = [line for line in lines if "published, but" in line]
    assert len(said) == 1
    assert said[0].endswith("seed 0 and 2 more: published, but recipe.max_length was 16, is 12")


def test_damaged_cells_give_way_to_published_ones(finished, elsewhere):
    run_from(elsewhere, finished.folder / "published")
    (elsewhere.folder_of("pabee") / RECORD_FILE).write_text("{")
    outcome = run_from(elsewhere, finished.folder / "published")
    assert outcome.computed == 0
    assert "is damaged" in elsewhere.said
    assert elsewhere.results() == finished.results()


def test_interrupted_unpacking_goes_on(finished, elsewhere, monkeypatch):
    calls = []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write_record(*arguments)

    monkeypatch.setattr(publication, "write_record", stop)
    with pytest.raises(KeyboardInterrupt):
        run_from(elsewhere, finished.folder / "published")
    assert len(elsewhere.finished_cells()) == 1
    monkeypatch.undo()
    assert run_from(elsewhere, finished.folder / "published").computed == 0
    assert elsewhere.results() == finished.results()
    assert elsewhere.leftovers() == []


def test_what_a_run_cannot_start_from(finished, elsewhere, tmp_path):
    with pytest.raises(UserError, match="holds no results, published or not"):
        run_from(elsewhere, tmp_path / "nothing")
    write_generation(tmp_path / "texts")
    with pytest.raises(UserError, match="holds results of generation"):
        run_from(elsewhere, tmp_path / "texts")
    elsewhere.out = finished.folder / "published"
    with pytest.raises(UserError, match="holds published results"):
        run_from(elsewhere, finished.folder / "published")


def test_a_new_method_is_all_that_is_computed(finished, elsewhere, tmp_path):
    outcome = run_from(elsewhere, finished.folder / "published", [*METHODS, "static"])
    assert (outcome.computed, outcome.failed) == (1, ())
    assert "not timed" not in elsewhere.said
    labels = [{contender.label for contender in timing.contenders} for timing in elsewhere.read().timings]
    assert labels == [{"stock model", "static"}, {"stock model", *METHODS}], "what was taken last comes first"
    assert run_from(elsewhere, finished.folder / "published", [*METHODS, "static"]).computed == 0
    assert len(elsewhere.read().timings) == 2
    publish_run(elsewhere.out, tmp_path / "again")
    assert opened(tmp_path / "again").timings == elsewhere.read().timings
    lines = plan_lines(load_suite(elsewhere.suite_file), out=tmp_path / "new", published_dir=tmp_path / "again")
    assert not [line for line in lines if line.startswith(("to run ", "to time "))]


def test_published_run_can_be_published_again(finished, elsewhere, tmp_path):
    run_from(elsewhere, finished.folder / "published")
    publish_run(elsewhere.out, tmp_path / "again")
    assert records_of(tmp_path / "again") == records_of(finished.folder / "published")
    assert (tmp_path / "again" / "rows.parquet").read_bytes() == (
        finished.folder / "published" / "rows.parquet"
    ).read_bytes()
