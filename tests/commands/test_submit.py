"""Handing in a result: a submission is accepted, and one that was changed is refused with the reason."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from command_line import call
from records_by_hand import DECODING
from small_suite import Bench

from benchmarks.commands import publish
from benchmarks.commands.inventory import bibliography, bibtex_of
from benchmarks.commands.own_methods import write_method
from benchmarks.commands.submit import SUBMISSION_FILE, submit_run
from benchmarks.commands.verify import faults_of
from benchmarks.store.folders import HASHES_FILE
from benchmarks.store.hashes import write_json
from benchmarks.testing import check_method
from consistentee.errors import UserError
from consistentee.methods.method import ENTRY_POINT_GROUP, available_methods, method_class_of

NO_CHECK = "    def check_knob(self, model, knob):\n        pass\n\n"
"""Breaks the contract of a method, and changes nothing in a run."""


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_backbone) -> Bench:
    """Return a suite of two own methods that has run: one sound, and one that breaks the contract."""
    folder = tmp_path_factory.mktemp("own")
    bench = Bench(folder, tiny_backbone("bert"))
    names = [write_method(name, folder) for name in ("gate", "lax")]
    lax = folder / "lax.py"
    lax.write_text(lax.read_text().replace("    def rule(", f"{NO_CHECK}    def rule("))
    bench.values |= {"methods": ["full", "calm-softmax", *names]}
    bench.values["recipe"] = {"epochs": 1, "max_length": 8, "max_rows": 32, "frozen_steps": 20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.run.end_screen.report_files", lambda out, just_computed: None)
        assert bench.run(times=False).failed == ()
    return bench


@pytest.fixture(scope="module")
def submissions(run, tmp_path_factory) -> dict[str, Path]:
    """Return the submissions of both methods; not to be changed."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "write_published_files", lambda out: [])
        for label in ("gate", "lax"):
            method = f"{run.folder / label}.py:{label.title()}"
            found[label] = tmp_path_factory.mktemp("handed-in") / label
            submit_run(run.out, method, "A. Lovelace", found[label])
    return found


@pytest.fixture
def one_family(monkeypatch) -> None:
    monkeypatch.setattr(check_method, "FAMILIES", ["bert"])


@pytest.fixture
def copy(submissions, tmp_path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__")  # of a test that ran the code
    return Path(shutil.copytree(submissions["gate"], tmp_path / "Gate", ignore=ignored))


def seal_again(folder: Path) -> None:
    """Write the hashes of the files as they are now, as someone who cheats would."""
    files = [path for path in sorted(folder.iterdir()) if path.name not in (HASHES_FILE, SUBMISSION_FILE)]
    write_json(folder / HASHES_FILE, '{"form": 2}', files)


def change(folder: Path, file: str, changed: Callable[[pa.Table], pa.Table]) -> None:
    table = changed(pq.read_table(folder / file))
    pq.write_table(table, folder / file, write_page_checksum=True)
    seal_again(folder)


def replaced(table: pa.Table, column: str, values: list) -> pa.Table:
    return table.set_column(table.column_names.index(column), column, pa.array(values, table.schema.field(column).type))


# ---------------------------------------------------------------------------------------------- accepted


def test_a_submission_has_one_method_the_full_model_its_code_and_is_accepted(submissions, one_family):
    folder = submissions["gate"]
    names = {path.name for path in folder.iterdir()}
    assert names >= {"cells.parquet", "rows.parquet", "suite.yaml", "gate.py", HASHES_FILE, SUBMISSION_FILE}
    fields = yaml.safe_load((folder / SUBMISSION_FILE).read_text())
    assert (fields["method"], fields["code"], fields["author"]) == ("gate", "gate.py:Gate", "A. Lovelace")
    cells = publish.whole_results(folder).cells
    assert sorted(cell.record.label for cell in cells) == ["full", "gate"]
    assert list(faults_of(folder, allow_code=True)) == []


def test_the_commands(run, tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "write_published_files", lambda out: [])
    monkeypatch.chdir(tmp_path)
    done = call("submit", run.out, "--method", "calm-softmax", "--author", "A. Lovelace")
    folder = Path("results/submissions/calm-softmax")
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, str(folder / SUBMISSION_FILE))
    written = yaml.safe_load((folder / SUBMISSION_FILE).read_text())
    assert written["bibtex"].startswith("@misc{calm-softmax, author = {Schuster and others}, title = {{CALM}},")
    assert "code" not in written
    done = call("verify", folder)
    assert (done.exit_code, done.output.splitlines()[0]) == (0, f"{folder}: no faults")
    assert "--allow-code checks its contract" in done.output
    done = call("submit", run.out, "--method", "calm-softmix", "--author", "A. Lovelace")
    assert (done.exit_code, "did you mean 'calm-softmax'" in done.output) == (2, True)


def test_code_is_not_run_unless_it_is_allowed(copy):
    (copy / "gate.py").write_text("raise SystemExit('ran')\n" + (copy / "gate.py").read_text())
    seal_again(copy)
    done = call("verify", copy)
    assert "ran" not in done.output.replace("gate", "")
    assert (done.exit_code, "its version, or its code, is not that of the cells" in done.output) == (2, True)


def test_a_submission_of_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "write_published_files", lambda out: [])
    submit_run(DECODING, "skipdecode", "A. Lovelace", tmp_path / "skipdecode")
    assert list(faults_of(tmp_path / "skipdecode")) == []

    def other_token(table):
        texts = table["tokens_0"].to_pylist()
        texts[0][0] += 1  # which is always the full model's
        return replaced(table, "tokens_0", texts)

    change(tmp_path / "skipdecode", "rows.parquet", other_token)
    assert any("point 0, token match: its rows give" in fault for fault in faults_of(tmp_path / "skipdecode"))


# ---------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("column", ["label", "layer_prediction_1", "exit_layer_0"])
def test_a_changed_row_is_refused_even_with_new_hashes(copy, column):
    def other(table):
        rows = table.to_pandas()
        values = table[column].to_pylist()
        exits_at_1_and_is_right = (rows["exit_layer_0"] == 1) & (rows["layer_prediction_1"] == rows["label"])
        place = int(exits_at_1_and_is_right.to_numpy().nonzero()[0][0])
        values[place] = 2 if values[place] != 2 else 1
        return replaced(table, column, values)

    change(copy, "rows.parquet", other)
    faults = list(faults_of(copy))
    assert faults, column
    assert all("its rows" in fault for fault in faults)


def test_a_changed_score_in_a_record_is_refused(copy):
    def better(table):
        texts = table["text"].to_pylist()
        spoilt = [text.replace('"scores":{"accuracy":0.', '"scores":{"accuracy":0.9') for text in texts]
        assert spoilt != texts
        return replaced(table, "text", spoilt)

    change(copy, "cells.parquet", better)
    assert any("accuracy: its rows give 0." in fault for fault in faults_of(copy))


@pytest.mark.parametrize("file", ["rows.parquet", "suite.yaml", "gate.py"])
def test_a_changed_file_is_refused(copy, file):
    (copy / file).write_bytes((copy / file).read_bytes() + b"\n# more")
    done = call("verify", copy)
    assert (done.exit_code, f"{file}: not the content that was written" in done.output) == (2, True)


def test_a_method_that_breaks_its_contract_is_refused(submissions, one_family):
    (fault,) = faults_of(submissions["lax"], allow_code=True)
    assert "breaks the contract of methods: rule() takes knobs that are out of range" in fault
    assert list(faults_of(submissions["lax"])) == []


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda fields: fields.update(author=""), "author: String should have at least 1 character"),
        (lambda fields: fields.update(code="../gate.py:Gate"), "code: String should match pattern"),
        (lambda fields: fields.pop("code"), "the file of gate is missing"),
        (lambda fields: fields.update(method="full", code=None), "cells of gate are no part of a submission of full"),
        (lambda fields: fields.update(votes=3), "unknown key 'votes'"),
    ],
)
def test_fields_that_do_not_fit_are_refused(copy, spoil, sentence):
    fields = yaml.safe_load((copy / SUBMISSION_FILE).read_text())
    spoil(fields)
    (copy / SUBMISSION_FILE).write_text(yaml.safe_dump(fields))
    assert any(sentence in fault for fault in faults_of(copy)), list(faults_of(copy))


def test_a_file_that_is_not_the_one_that_ran_is_not_submitted(run, tmp_path):
    other = tmp_path / "gate.py"
    other.write_text((run.folder / "gate.py").read_text().replace("hidden: int = 32", "hidden: int = 64"))
    with pytest.raises(UserError, match="is not the code of these results"):
        submit_run(run.out, f"{other}:Gate", "A. Lovelace", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------- BibTeX


def test_every_paper_of_a_method_has_an_entry_of_its_own_fields():
    papers = {name: method_class_of(name).paper for name in available_methods(ENTRY_POINT_GROUP)}
    without = {name: paper for name, paper in papers.items() if bibtex_of(name, paper) is None}
    assert all(paper.startswith(("ours: ", "reference: ")) for paper in without.values()), without
    text = bibliography()
    assert text.count("eprint = {2207.07061}") == 1, "the three variants of CALM"
    assert "% calm-classifier, calm-softmax, calm-state, calm-tokens-classifier" in text
    assert text.count("@misc{calm-") == 1
    assert "% static\n% reference: the same exit layer for every row" in text


def test_fields_of_an_entry():
    assert bibtex_of("x", "Bajpai & Hanawal, BEEM, ICLR 2025, arXiv 2502.00745 (its rule)") == (
        "@misc{x,\n  author = {Bajpai and Hanawal},\n  title = {{BEEM}},\n  howpublished = {ICLR},\n"
        "  year = {2025},\n  eprint = {2502.00745},\n  archiveprefix = {arXiv},\n}"
    )
    assert "howpublished" not in (bibtex_of("x", "He et al., DE3-BERT, 2024, arXiv 2402.05948") or "")
    assert bibtex_of("x", "unpublished") is None
