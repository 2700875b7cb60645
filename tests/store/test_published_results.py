"""Published results: what is written compactly reads back equal, shows the same, and counts as done."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from records_by_hand import write_decoding_results, write_results
from small_suite import Bench, stamps

from benchmarks.commands import publish
from benchmarks.commands.publish import publish_run
from benchmarks.store import results_folder
from benchmarks.store.folders import FAILURE_FILE, RECORD_FILE, write_record
from benchmarks.store.records import FailureRecord
from benchmarks.store.results_folder import StoredResults, kind_of_results, open_results
from consistentee.errors import UserError

FEW = ("full", "deebert")
FORMAT = "cannot be read as published results"


def write_run(kind: str, folder: Path, **chosen: Sequence[str]) -> Path:
    """Write a run of either kind, with a cell that is not defined for its task."""
    if kind == "classification":
        write_results(folder, seeds=(0, 1), **chosen)
    else:
        write_decoding_results(folder)
    refusal = FailureRecord(key="k", error="no regression", refused=True, traceback="", failed_at="now")
    write_record(folder / "cells" / "mcid" / "b" / "hashee" / "default" / "seed0" / FAILURE_FILE, refusal)
    return folder


def publish_bare(run: Path, out: Path) -> Path:
    """Publish without tables and figure, which take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "write_published_files", lambda *_: [])
        publish_run(run, out)
    return out


@pytest.fixture(scope="module", params=("classification", "generation"))
def forms(request, tmp_path_factory) -> tuple[Path, Path]:
    """Return the folders of a run and of its publication, of either kind."""
    folder = tmp_path_factory.mktemp(request.param)
    run, out = write_run(request.param, folder / "runs" / "made-up"), folder / "results" / "made-up"
    return run, publish_bare(run, out)


def test_a_run_that_was_not_timed_and_did_not_fail_is_published(tmp_path):
    write_results(tmp_path / "run", labels=FEW)
    shutil.rmtree(tmp_path / "run" / "timings")
    out = open_results(publish_bare(tmp_path / "run", tmp_path / "out"))
    assert list(out.cells) == list(open_results(tmp_path / "run").cells)
    assert (out.timings, out.failures) == ({}, {})
    assert not (tmp_path / "out" / "failures.parquet").exists()


def test_everything_reads_back_equal(forms):
    run, out = map(open_results, forms)
    assert (out.kind, list(out.cells.items()), out.faults) == (run.kind, list(run.cells.items()), [])
    assert list(out.timings.items()) == list(run.timings.items()) != []
    assert out.failures == run.failures
    assert [failure.error for failure in out.failures.values()] == ["no regression"]
    for folder in run.cells:
        ours, theirs = run.frames_of(folder), out.frames_of(folder)
        assert list(ours) == list(theirs)
        for name, frame in ours.items():
            pd.testing.assert_frame_equal(theirs[name], frame, check_exact=True)
    for file in run.timings:
        pd.testing.assert_frame_equal(out.times_of(file), run.times_of(file), check_exact=True)


def test_a_publication_is_a_few_small_files_that_are_the_same_again(forms, tmp_path):
    run, out = forms
    own = {"rows", "curve", *(("texts",) if kind_of_results(out) == "generation" else ("answers", "exits", "training"))}
    names = {f"{name}.parquet" for name in (*own, "cells", "timings", "failures", "times")}
    assert {path.name for path in out.iterdir()} == {*names, "hashes.json"}
    size = sum(path.stat().st_size for path in out.glob("*.parquet"))
    if len(open_results(run).cells) > 2:
        assert size < sum(path.stat().st_size for path in run.rglob("*") if path.is_file()) / 2
    publish_bare(run, tmp_path)
    for path in out.glob("*.parquet"):
        (first,) = pq.read_table(path).slice(0, 1).to_pylist()
        texts = {name for name, value in first.items() if isinstance(value, str) and value.startswith(("{", "["))}
        assert texts == ({"key_parts", "parameters"} if path.name == "cells.parquet" else set()), path.name
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Return published results of classification; not to be changed."""
    folder = tmp_path_factory.mktemp("published")
    return publish_bare(write_run("classification", folder / "run", labels=FEW), folder / "made-up")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def of_another_program(path: Path) -> None:
    pq.write_table(pa.table({"task": ["mcid"]}), path)


@pytest.mark.parametrize("name", ["cells.parquet", "timings.parquet", "rows.parquet", "times.parquet"])
@pytest.mark.parametrize("spoil", [cut, of_another_program, Path.unlink])
def test_a_damaged_or_foreign_file_is_named_in_one_sentence(published, tmp_path, name, spoil):
    out = Path(shutil.copytree(published, tmp_path / "made-up"))
    spoil(out / name)
    said = FORMAT if (name, spoil) != ("cells.parquet", Path.unlink) else "holds no results"  # it tells the form
    with pytest.raises(UserError, match=said) as raised:
        open_results(out)
    assert "\n" not in str(raised.value)


def test_a_folder_of_another_form_is_named(published, monkeypatch):
    monkeypatch.setattr(results_folder, "FORM", 0)
    with pytest.raises(UserError, match=f"{FORMAT}: another version published it"):
        open_results(published)


def test_runs_that_are_not_whole_and_folders_of_others_are_refused(published, tmp_path):
    with pytest.raises(UserError, match="published already"):
        publish_run(published, tmp_path / "out")
    with pytest.raises(UserError, match="holds no results"):
        publish_run(tmp_path / "nothing", tmp_path / "out")
    run = write_run("classification", tmp_path / "run", labels=FEW)
    with pytest.raises(UserError, match="holds other files"):
        publish_run(run, run)
    next(run.rglob(RECORD_FILE)).write_text("{")
    with pytest.raises(UserError, match="before you publish it"):
        publish_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lost", ["exits", "times"])
def test_a_publication_that_does_not_read_back_equal_is_refused(tmp_path, monkeypatch, lost):
    read = StoredResults.frame

    def lossy(results: StoredResults, name: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame:
        found = read(results, name, columns)
        return found[:-1] if results.published and name == lost else found

    monkeypatch.setattr(StoredResults, "frame", lossy)
    with pytest.raises(AssertionError, match="keep the run"):
        publish_bare(write_run("classification", tmp_path / "run", labels=FEW), tmp_path / "out")


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
def test_published_cells_are_done(finished, elsewhere, form):
    place = finished.folder / "published" if form == "published" else finished.out
    outcome = run_from(elsewhere, place)
    assert (outcome.computed, outcome.finished, outcome.failed) == (0, 3, ())
    assert ": cells 3, timings 1" in elsewhere.said
    assert elsewhere.results() == finished.results()
    assert elsewhere.read().timings == finished.read().timings
    assert not list((elsewhere.out / "artifacts").rglob("model.safetensors"))
    before = stamps(elsewhere.out.rglob(RECORD_FILE))
    assert "taken from" not in (run_from(elsewhere, place), elsewhere.said)[1]
    assert stamps(elsewhere.out.rglob(RECORD_FILE)) == before


def test_a_dry_run_counts_published_cells_and_writes_nothing(finished, elsewhere, monkeypatch, tmp_path):
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


def test_a_run_refuses_folders_that_it_cannot_start_from(finished, elsewhere, tmp_path):
    with pytest.raises(UserError, match="holds no results, published or not"):
        run_from(elsewhere, tmp_path / "nothing")
    write_decoding_results(tmp_path / "decoding")
    with pytest.raises(UserError, match="holds results of generation"):
        run_from(elsewhere, tmp_path / "decoding")
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
