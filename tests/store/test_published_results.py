"""Published results: what is written compactly reads back equal, shows the same, and counts as done."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from records_by_hand import DECODING, write_results
from small_suite import Bench

from benchmarks.commands import publish
from benchmarks.commands.publish import publish_run
from benchmarks.run import sweep
from benchmarks.store.folders import (
    FAILURE_FILE,
    PREDICTIONS_FILE,
    RECORD_FILE,
    VALIDATION_FILE,
    write_cell,
    write_record,
    write_rows,
)
from benchmarks.store.records import FailureRecord
from benchmarks.store.stored_results import StoredCell, failed_cells, kind_of_results, open_results
from consistentee.errors import UserError

FORMAT = "cannot be read as published results"


def write_run(kind: str, folder: Path) -> Path:
    """Write a run of either kind, with a cell that is not defined for its task."""
    if kind == "classification":
        write_results(folder, seeds=(0, 1))
        answers = pd.DataFrame({"row": [0, 1, 2], "label": [0, 1, 1], "hull_prediction_0": [0, 1, 0]})
        for label, more in (("full", {}), ("deebert", {"hull_prediction_1": [2, 1, 1]})):
            write_rows(next(folder.rglob(f"{label}/default/seed0")) / VALIDATION_FILE, answers.assign(**more))
    else:
        found = publish.whole_results(DECODING)
        for cell in found.cells:
            write_cell(folder / "cells" / cell.folder, cell.record, {PREDICTIONS_FILE: cell.predictions()})
        for file, timing in found.timings.items():
            write_record(folder / "timings" / file, timing)
    refusal = FailureRecord(key="k", error="no regression", refused=True, traceback="", failed_at="now")
    write_record(folder / "cells" / "mcid" / "b" / "hashee" / "default" / "seed0" / FAILURE_FILE, refusal)
    return folder


@pytest.fixture(scope="module", params=("classification", "generation"))
def forms(request, tmp_path_factory) -> tuple[Path, Path]:
    """Return the folders of a run and of its publication, of either kind."""
    folder = tmp_path_factory.mktemp(request.param)
    run, out = write_run(request.param, folder / "runs" / "made-up"), folder / "results" / "made-up"
    publish_run(run, out)
    return run, out


def publish_bare(run: Path, out: Path) -> Path:
    """Publish without tables and figure, which take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "write_published_files", lambda out: [])
        publish_run(run, out)
    return out


# ---------------------------------------------------------------------------------------------- round trip


def test_everything_reads_back_equal(forms):
    run, out = map(open_results, forms)
    assert [(c.record, c.folder) for c in out.cells] == [(c.record, c.folder) for c in run.cells]
    assert (out.timings, out.faults) == (run.timings, [])
    assert len(run.timings) > 0
    for ours, theirs in zip(run.cells, out.cells, strict=True):
        for kept in ("predictions", "validation"):
            found, expected = getattr(theirs, kept)(), getattr(ours, kept)()
            assert (found is None) == (expected is None)
            if found is not None:
                pd.testing.assert_frame_equal(found, expected, check_exact=True)
    run_folder, out_folder = forms
    assert failed_cells(out_folder) == failed_cells(run_folder)
    assert [failure.error for failure in failed_cells(out_folder).values()] == ["no regression"]
    assert out.kind == run.kind


def test_a_publication_is_a_few_small_files_that_are_the_same_again(forms, tmp_path):
    run, out = forms
    names = {path.name for path in out.iterdir()}
    assert {"cells.parquet", "timings.parquet", "rows.parquet", "table.md"} <= names
    assert ({"headline.csv", "validation.parquet"} <= names) == (kind_of_results(out) == "classification")
    assert sum(name.endswith(".png") for name in names) == 1
    assert {name for name in names if name.endswith((".pdf", ".html", ".json"))} == {"hashes.json"}
    size = sum(path.stat().st_size for path in out.glob("*.parquet"))
    assert size < sum(path.stat().st_size for path in run.rglob("*") if path.is_file()) / 2
    publish_bare(run, tmp_path)
    for path in out.glob("*.parquet"):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


# ---------------------------------------------------------------------------------------------- what is wrong


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Return published results of classification; not to be changed."""
    folder = tmp_path_factory.mktemp("published")
    return publish_bare(write_run("classification", folder / "run"), folder / "made-up")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def of_another_program(path: Path) -> None:
    pq.write_table(pa.table({"task": ["mcid"]}), path)


@pytest.mark.parametrize("name", ["cells.parquet", "timings.parquet", "rows.parquet"])
@pytest.mark.parametrize(("spoil", "said"), [(cut, FORMAT), (of_another_program, FORMAT), (Path.unlink, "missing")])
def test_what_is_damaged_or_foreign_is_said_in_one_sentence(published, tmp_path, name, spoil, said):
    out = Path(shutil.copytree(published, tmp_path / "made-up"))
    spoil(out / name)
    if spoil != cut:
        (out / "hashes.json").unlink()  # published before there were hashes
    if (name, spoil) == ("cells.parquet", Path.unlink):
        said = "holds no results"  # it is this file that tells the form
    with pytest.raises(UserError, match=said) as raised:
        [cell.predictions() for cell in open_results(out).cells]
    assert "\n" not in str(raised.value)


def test_what_cannot_be_published(published, tmp_path):
    with pytest.raises(UserError, match="published already"):
        publish_run(published, tmp_path / "out")
    with pytest.raises(UserError, match="holds no results"):
        publish_run(tmp_path / "nothing", tmp_path / "out")
    run = write_run("classification", tmp_path / "run")
    with pytest.raises(UserError, match="holds other files"):
        publish_run(run, run)
    next(run.rglob(RECORD_FILE)).write_text("{")
    with pytest.raises(UserError, match="before you publish it"):
        publish_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kept", [PREDICTIONS_FILE, VALIDATION_FILE])
def test_what_does_not_read_back_equal_is_said(tmp_path, monkeypatch, kept):
    read = StoredCell.table

    def lossy(self, name):
        found = read(self, name)
        return found[:-1] if name == kept and found is not None and self.number is not None else found

    monkeypatch.setattr(StoredCell, "table", lossy)
    with pytest.raises(AssertionError, match="keep the run"):
        publish_bare(write_run("classification", tmp_path / "run"), tmp_path / "out")


# ---------------------------------------------------------------------------------------------- runs


METHODS = ["full", "oracle", "calm-softmax"]


@pytest.fixture(scope="module")
def finished(finished_suite, tmp_path_factory) -> Bench:
    """Return a small suite that has run and was published, in ``published`` beside it."""
    bench = finished_suite.elsewhere(finished_suite.out)
    bench.folder = tmp_path_factory.mktemp("finished")
    publish_bare(bench.out, bench.folder / "published")
    return bench


@pytest.fixture
def elsewhere(finished, tmp_path, unreported) -> Bench:
    """Return the same suite, whose own folder is empty."""
    return finished.elsewhere(tmp_path / "out")


def run_from(bench: Bench, published: Path, methods: Sequence[str] = METHODS, **changes: object):
    return bench.run(changes={"methods": list(methods), **changes}, published_dir=published)


def number_of(lines: list[str], *beginnings: str) -> int:
    return sum(line.startswith(beginnings) for line in lines)


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


def test_dry_run_counts_it_and_writes_nothing(finished, elsewhere, monkeypatch, tmp_path):
    published = {"published_dir": finished.folder / "published"}
    more, same = {"methods": [*METHODS, "static"]}, {"methods": METHODS}
    lines = elsewhere.plan(changes=more, **published)
    assert (number_of(lines, "done "), number_of(lines, "to run ")) == (3, 1)
    assert number_of(elsewhere.plan(changes=same, **published), "to run ", "to time ") == 0
    assert number_of(elsewhere.plan(changes=same, **published, fresh=True), "to run ") == 3
    changed = elsewhere.plan(changes={**same, "recipe": {"epochs": 1, "max_length": 12}}, **published)
    (line,) = [line for line in changed if "published, but" in line]
    assert line.endswith("seed 0 and 2 more: published, but recipe.max_length was 16, is 12"), "once for all cells"
    assert not elsewhere.out.exists()
    monkeypatch.chdir(tmp_path)
    assert number_of(elsewhere.plan(changes=same), "to run ") == 3
    shutil.copytree(finished.folder / "published", tmp_path / "results" / "toy")
    assert number_of(elsewhere.plan(changes=same), "done ") == 3, "the folder of the suite's name is found"


def test_damaged_cells_give_way_to_published_ones(finished, elsewhere):
    run_from(elsewhere, finished.folder / "published")
    (elsewhere.folder_of("calm-softmax") / RECORD_FILE).write_text("{")
    assert run_from(elsewhere, finished.folder / "published").computed == 0
    assert "is damaged" in elsewhere.said
    assert elsewhere.results() == finished.results()


def test_interrupted_unpacking_goes_on(finished, elsewhere, monkeypatch):
    calls = []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write_cell(*arguments)

    monkeypatch.setattr(sweep, "write_cell", stop)
    with pytest.raises(KeyboardInterrupt):
        run_from(elsewhere, finished.folder / "published")
    assert len(elsewhere.finished_cells()) == 1
    monkeypatch.setattr(sweep, "write_cell", write_cell)
    assert run_from(elsewhere, finished.folder / "published").computed == 0
    assert elsewhere.results() == finished.results()
    assert elsewhere.leftovers() == []


def test_what_a_run_cannot_start_from(finished, elsewhere, tmp_path):
    with pytest.raises(UserError, match="holds no results, published or not"):
        run_from(elsewhere, tmp_path / "nothing")
    with pytest.raises(UserError, match="holds results of generation"):
        run_from(elsewhere, DECODING)
    elsewhere.out = finished.folder / "published"
    with pytest.raises(UserError, match="holds published results"):
        run_from(elsewhere, finished.folder / "published")


def test_a_new_method_is_all_that_is_computed_and_all_can_be_published_again(finished, elsewhere, tmp_path):
    outcome = run_from(elsewhere, finished.folder / "published", [*METHODS, "static"])
    assert (outcome.computed, outcome.failed) == (1, ())
    assert "not timed" not in elsewhere.said
    assert elsewhere.timed_labels() == [{"stock model", "static"}, {"stock model", "full", "calm-softmax"}]
    assert run_from(elsewhere, finished.folder / "published", [*METHODS, "static"]).computed == 0
    publish_bare(elsewhere.out, tmp_path / "again")
    assert open_results(tmp_path / "again").timings == elsewhere.read().timings
    other = elsewhere.elsewhere(tmp_path / "new")
    lines = other.plan(changes={"methods": [*METHODS, "static"]}, published_dir=tmp_path / "again")
    assert number_of(lines, "to run ", "to time ") == 0
