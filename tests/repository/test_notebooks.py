"""Committed notebooks are those of their sources, with outputs; `tox -e notebooks` compares the outputs themselves."""

import json
from pathlib import Path

import jupytext
import pytest
from documents import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells_of(notebook: dict) -> list[tuple[str, str, list[str]]]:
    return [
        (cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in notebook["cells"]
    ]


def test_every_source_has_a_notebook():
    sources = {path.stem for path in (ROOT / "notebooks").glob("*.py")} - {"write"}
    assert {path.stem for path in NOTEBOOKS} == sources


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_its_source_executed(path: Path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    source = jupytext.read(path.with_suffix(".py"))
    assert cells_of(notebook) == cells_of(source), "write it anew: tox -e write-notebooks"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(output["output_type"] != "error" for cell in code for output in cell["outputs"])
    assert path.stat().st_size < 500_000
