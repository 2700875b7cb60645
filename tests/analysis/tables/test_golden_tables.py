"""The tables of the committed suites, against the numbers that they had when results were first published.

What is compared is every cell of every table, every line of ``table.csv`` and the leaderboard: texts must be equal, and
numbers may differ by what another order of summation makes of them. The files below ``tests/golden/tables`` are not
written by code of this repository any more: they are never overwritten, and what differs since then is allowed below,
one class of differences a paragraph:

- "within 1 point" is counted from the full model of the same seed, not from a method's own latest exits, and any
  operating point may be within it. So a row that was chosen for nothing else may be gone, and another may stand for it.
- Areas over FLOPs and time join all measured points on the validation front, seed by seed, not the rows that a table
  shows. They differ where a label has several cells, a grid of parameters or seeds, and ranks by time with them.
- Methods are compared at equal cost: tables at the best single knob within half of the layers, and at the layers that
  an operating point happened to run, and paired tests of points chosen for the same target, are gone.
- The leaderboard does not count a task that most methods are not defined for, STS-B. Where it did, places, ranks and
  numbers of runs differ, and the areas of methods that have it.
- It averages the seeds of a task first: where some have several, means, ranks and intervals are over other numbers.
- Times are of the seeds that were timed. Where some was not, there were none.
- CALM's state, whose knob was too coarse for tokens, was taken out of ``cpu-decoding``.
"""

import csv
import gzip
import io
import json
import math
import re
from collections import Counter

import pytest
from documents import ROOT

from benchmarks.analysis.leaderboard.board import load_leaderboard
from benchmarks.analysis.panels.results import load_panels
from benchmarks.analysis.rows.texts import load_generation_panels
from benchmarks.analysis.tables.generation.decoding import all_generation_tables, decoding_lines
from benchmarks.analysis.tables.leaderboard import to_text
from benchmarks.analysis.tables.operating import all_tables, operating_lines
from benchmarks.analysis.tables.text import MISSING, csv_of

GOLDEN = ROOT / "tests" / "golden" / "tables"

CLASSIFICATION = ("cpu-12-layers", "cpu-consistentee-variants", "cpu-6-layers")
GENERATION = ("cpu-decoding", "decoding-calibration")

TAKEN_OUT = {"cpu-decoding": {"calm-tokens-state"}}
"""Labels that have no cell any more, by suite."""

_GONE = re.compile(r"within 50% of the layers|^Against references at equal layers|^Paired tests")
_TIME = re.compile(r"^(ms|speed-?up|spread|p90)[ _/]")
"""Columns of the clock."""

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


def differences(new, old, same, ignored=()):
    """Return what differs between two lines, by column."""
    return [
        (name, new.get(name), value)
        for name, value in old.items()
        if name not in ignored and not same(new[name], value) and not (value in ("", MISSING) and _TIME.search(name))
    ]


def without_point(text):
    """Take away that a knob is within a point: ``budget 0.50; within 1 point`` -> ``budget 0.50``."""
    return text.replace("within 1 point", "").strip(",; ")


def assert_same_lines(lines, old_lines, key, same, chosen_for):
    """Compare tables of operating points, where rows for "within 1 point" alone come and go."""
    by_key = {}
    for line in lines:
        by_key.setdefault(tuple(line[name] for name in key), []).append(line)
    for old in old_lines:
        place = tuple(old[name] for name in key)
        candidates = by_key.get(place, [])
        equal = [line for line in candidates if not differences(line, old, same, [chosen_for])]
        if not equal and without_point(old[chosen_for]) == "":
            continue
        assert equal, f"{place}: {[differences(line, old, same, [chosen_for]) for line in candidates]}"
        candidates.remove(equal[0])
        assert without_point(equal[0][chosen_for]) == without_point(old[chosen_for])
    new = [line for candidates in by_key.values() for line in candidates]
    assert all(without_point(line[chosen_for]) == "" for line in new), f"new rows: {new}"


def assert_same_table(title, new, old, several):
    """Compare two tables, given as lines."""
    if title.startswith("Whole curves"):
        ignored = ["area, FLOPs %", "area, time %"] if several else []
    elif "chosen for" in old[0]:
        assert_same_lines(new, old, ("method", "knob"), same_text, "chosen for")
        return
    else:
        ignored = []
    assert len(new) == len(old), title
    for one, other in zip(new, old, strict=True):
        may_differ = other.get("method") in several or not title.startswith("Whole curves")
        wrong = differences(one, other, same_text, ignored if may_differ else ())
        assert not wrong, f"{title}, {next(iter(other.values()))}: {wrong}"


def assert_same_tables(tables, suite, several=frozenset()):
    found = {table.title: table for table in tables}
    for title, headings, cells in json.loads(golden(f"{suite}.tables.json")):
        if _GONE.search(title):
            assert title not in found
            continue
        assert list(found[title].headings) == headings, title
        new, old = ([dict(zip(headings, line, strict=True)) for line in lines] for lines in (found[title].cells, cells))
        old = [line for line in old if line.get("method") not in TAKEN_OUT.get(suite, ())]
        assert_same_table(title, new, old, several)


def lines_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def repeated(panels, place):
    """Return the labels that have several cells at some place: of a task, or of a task and a seed."""
    places = Counter((panel.task, cell.record.label, *place(cell.record)) for panel in panels for cell in panel.cells)
    return {label for (_, label, *_), cells in places.items() if cells > 1}


@pytest.mark.parametrize("suite", CLASSIFICATION)
def test_tables_of_classification(suite):
    panels, faults = load_panels(ROOT / "results" / suite)
    assert faults == []
    old = lines_of(golden(f"{suite}.table.csv"))
    key = ("task", "backbone", "label", "parameters", "knob_values", "seeds")
    assert_same_lines(lines_of(csv_of(operating_lines(panels))), old, key, same_value, "chosen_for")
    assert_same_tables(all_tables(panels), suite, repeated(panels, lambda _: ()))


@pytest.mark.parametrize("suite", GENERATION)
def test_tables_of_generation(suite):
    panels, faults = load_generation_panels(ROOT / "results" / suite)
    assert faults == []
    old = [x for x in lines_of(golden(f"{suite}.table.csv")) if x["label"] not in TAKEN_OUT.get(suite, ())]
    key = ("task", "backbone", "label", "parameters", "knob_values")
    assert_same_lines(lines_of(csv_of(decoding_lines(panels))), old, key, same_value, "chosen_for")
    assert_same_tables(all_generation_tables(panels), suite)


@pytest.mark.parametrize("suite", CLASSIFICATION)
def test_leaderboard(suite):
    folder = ROOT / "results" / suite
    grids = repeated(load_panels(folder)[0], lambda record: (record.seed,))
    board = load_leaderboard([folder])
    counts_less = {run.task for standing in board.standings for run in standing.not_compared}
    assert counts_less <= {"stsb"}
    by_key = {(x["cost"], x["machines"], x["method"]): x for x in lines_of(to_text(board, "csv"))}
    for old in lines_of(golden(f"{suite}.leaderboard.csv")):
        new = by_key.pop((old["cost"], old["machines"], old["method"]))
        ranks = ["place", *(name for name in old if "rank" in name)]
        areas = ["area", "area_low", "area_high"]
        allowed = ranks if old["cost"] == "time" or counts_less else []
        if new["runs_in_all"] != new["tasks_in_all"]:
            allowed = [*ranks, *areas]
        if (old["cost"] == "time" and old["method"] in grids) or (old["runs"] != new["runs"] and counts_less):
            allowed = [*allowed, *areas]
        if old["runs_in_all"] != new["runs_in_all"] and counts_less:
            allowed = [*allowed, "tasks", "tasks_in_all", "runs", "runs_in_all"]
        assert not (wrong := differences(new, old, same_value, allowed)), f"{old['method']}: {wrong}"
    assert not by_key
