"""`verify` finds every change of published results; entries of BibTeX follow from the papers of methods."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import call
from documents import ROOT

from benchmarks.commands.publish import faults_of
from benchmarks.store.folders import HASHES_FILE
from benchmarks.store.hashes import write_json


@pytest.fixture
def published(tmp_path) -> Path:
    return Path(shutil.copytree(ROOT / "results" / "quick", tmp_path / "quick"))


def change(folder: Path, file: str, changed: Callable[[pa.Table], pa.Table]) -> None:
    """Change a table and write all hashes again, as someone who cheats would."""
    table = changed(pq.read_table(folder / file))
    pq.write_table(table, folder / file, write_page_checksum=True)
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".parquet", ".yaml", ".json")]
    write_json(folder / HASHES_FILE, '{"form": 2}', [path for path in files if path.name != HASHES_FILE])


def replaced(table: pa.Table, column: str, values: list) -> pa.Table:
    return table.set_column(table.column_names.index(column), column, pa.array(values, table.schema.field(column).type))


def test_verify_accepts_published_results(published):
    done = call("verify", published)
    assert (done.exit_code, done.output) == (0, f"{published}: no faults\n")


@pytest.mark.parametrize("column", ["label", "layer_prediction_1", "exit_layer_0"])
def test_verify_names_a_changed_row_even_with_new_hashes(published, column):
    def other(table):
        rows = table.to_pandas()
        values = table[column].to_pylist()
        exits_at_1_and_is_right = (rows["exit_layer_0"] == 1) & (rows["layer_prediction_1"] == rows["label"])
        place = int(exits_at_1_and_is_right.to_numpy().nonzero()[0][0])
        values[place] = 2 if values[place] != 2 else 1
        return replaced(table, column, values)

    change(published, "rows.parquet", other)
    faults = list(faults_of(published))
    assert faults, column
    assert all("its rows" in fault for fault in faults)


def test_verify_names_a_changed_score(published):
    def better(table):
        texts = table["text"].to_pylist()
        spoilt = [text.replace('"scores":{"accuracy":0.', '"scores":{"accuracy":0.9') for text in texts]
        assert spoilt != texts
        return replaced(table, "text", spoilt)

    change(published, "cells.parquet", better)
    assert any("accuracy: its rows give 0." in fault for fault in faults_of(published))


@pytest.mark.parametrize("file", ["rows.parquet", "suite.yaml"])
def test_verify_names_a_changed_file(published, file):
    (published / file).write_bytes((published / file).read_bytes() + b"\n# more")
    done = call("verify", published)
    assert (done.exit_code, f"{file}: not the content that was written" in done.output) == (2, True)
