"""The tables of the committed suites, against the numbers that they had when results were first published.

What is compared is every cell of every table, every line of ``table.csv`` and the leaderboard: texts must be equal, and
numbers may differ by what another order of summation makes of them. The files below ``tests/golden/tables`` are not
written by code of this repository any more: a difference is explained in :data:`EXPLAINED`, never overwritten.
"""

import csv
import gzip
import io
import json
import math
import re
from pathlib import Path

import pytest

from benchmarks.analysis.generation_rows import load_generation_panels
from benchmarks.analysis.generation_tables import all_generation_tables
from benchmarks.analysis.generation_tables import to_csv as generation_csv
from benchmarks.analysis.leaderboard import load_leaderboard
from benchmarks.analysis.leaderboard_tables import to_text
from benchmarks.analysis.results import load_panels
from benchmarks.analysis.tables import all_tables, to_csv

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden" / "tables"

CLASSIFICATION = ("cpu-base", "cpu-variants", "cpu-classification")
GENERATION = ("generation", "calibration")

EXPLAINED: dict[str, str] = {}
"""Title of a table, or name of a column -> why its numbers are not those of the golden files."""

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def golden(name):
    return gzip.decompress((GOLDEN / f"{name}.gz").read_bytes()).decode()


def same_text(new, old):
    """Say whether two cells are equal, numbers up to one unit of the last digit that is printed."""
    if new == old:
        return True
    if _NUMBER.sub("#", new) != _NUMBER.sub("#", old):
        return False
    return all(
        abs(float(one) - float(other)) <= 1.001 * max(10.0 ** -len(other.partition(".")[2]), 1e-9 * abs(float(other)))
        for one, other in zip(_NUMBER.findall(new), _NUMBER.findall(old), strict=True)
    )


def same_value(new, old):
    """Say whether two fields of a CSV file are equal, numbers up to rounding."""
    if new == old:
        return True
    try:
        return math.isclose(float(new), float(old), rel_tol=1e-9, abs_tol=1e-12)
    except ValueError:
        return False


def assert_same_tables(tables, suite):
    found = {table.title: table for table in tables}
    for title, headings, cells in json.loads(golden(f"{suite}.tables.json")):
        if title in EXPLAINED:
            continue
        table = found[title]
        assert list(table.headings) == headings, title
        assert len(table.cells) == len(cells), title
        for new, old in zip(table.cells, cells, strict=True):
            wrong = [(h, n, o) for h, n, o in zip(headings, new, old, strict=True) if not same_text(n, o)]
            assert not wrong, f"{title}, {old[0]}: {wrong}"


def assert_same_csv(text, name):
    lines, old_lines = (list(csv.DictReader(io.StringIO(one))) for one in (text, golden(name)))
    assert len(lines) == len(old_lines)
    for new, old in zip(lines, old_lines, strict=True):
        wrong = [(k, new.get(k), o) for k, o in old.items() if k not in EXPLAINED and not same_value(new.get(k, ""), o)]
        assert not wrong, f"{list(old.values())[:4]}: {wrong}"


@pytest.mark.parametrize("suite", CLASSIFICATION)
def test_tables_of_classification(suite):
    panels, faults = load_panels(ROOT / "results" / suite)
    assert faults == []
    assert_same_csv(to_csv(panels), f"{suite}.table.csv")
    assert_same_tables(all_tables(panels), suite)


@pytest.mark.parametrize("suite", GENERATION)
def test_tables_of_generation(suite):
    panels, faults = load_generation_panels(ROOT / "results" / suite)
    assert faults == []
    assert_same_csv(generation_csv(panels), f"{suite}.table.csv")
    assert_same_tables(all_generation_tables(panels), suite)


@pytest.mark.parametrize("suite", CLASSIFICATION)
def test_leaderboard(suite):
    assert_same_csv(to_text(load_leaderboard([ROOT / "results" / suite]), "csv"), f"{suite}.leaderboard.csv")
