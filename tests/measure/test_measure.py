"""Measuring: the clock and the record of a machine; and knobs, which are mixed to meet a budget exactly."""

import gc
import getpass
import itertools
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from benchmarks.measure import clock as measure, environment
from benchmarks.measure.clock import timed
from benchmarks.measure.environment import command_line, describe_conditions, describe_environment
from benchmarks.measure.knobs import around_budgets, cheapest_within, neighbours, refine_knobs
from benchmarks.specs.base import TimingSpec
from consistentee.deployment.timing import time_in_rounds

ROWS = list(range(5))


def recorder(name: str, calls: list[tuple[str, list[int], bool]]) -> Callable[[Sequence[int]], int]:
    """Return a run that notes what it is given, and says how many rows that were."""

    def run(batch: Sequence[int]) -> int:
        calls.append((name, list(batch), gc.isenabled()))
        return len(batch)

    return run


def test_rows_keep_their_order_and_warm_up_is_not_timed():
    calls: list[tuple[str, list[int], bool]] = []
    taken = time_in_rounds([recorder("a", calls), recorder("b", calls)], ROWS, {2: 5}, rounds=3, warmup=1)
    assert [(name, rows) for name, rows, _ in calls[:4]] == [
        ("a", [0, 1]),  # warm-up
        ("a", [0, 1]),
        ("a", [2, 3]),
        ("a", [4]),
    ]
    assert [enabled for _, _, enabled in calls[:4]] == [True, False, False, False]
    assert gc.isenabled()
    assert [name for name, _, _ in calls] == ["a"] * 4 + ["b"] * 8 + ["a"] * 8 + ["b"] * 4
    assert taken == [{2: [[2, 2, 1]] * 3}] * 2


def test_a_run_may_have_few_batch_sizes_and_every_size_few_batches():
    calls: list[tuple[str, list[int], bool]] = []
    runs, protocol = [recorder("a", calls), recorder("b", calls)], TimingSpec(batch_sizes=(1, 2), most_batches=2)
    taken = time_in_rounds(runs, ROWS, protocol.rows_by_size, [(1, 2), (2,)], rounds=3, warmup=0)
    a_round = [("a", [0]), ("a", [1]), ("a", [0, 1]), ("a", [2, 3]), ("b", [0, 1]), ("b", [2, 3])]
    assert [(name, rows) for name, rows, _ in calls[:6]] == a_round
    assert taken == [{1: [[1, 1]] * 3, 2: [[2, 2]] * 3}, {2: [[2, 2]] * 3}]


def test_garbage_collection_comes_back_after_an_error():
    with pytest.raises(RuntimeError, match="broken"):
        time_in_rounds([Mock(side_effect=RuntimeError("broken"))], ROWS, {1: 5}, rounds=3)
    assert gc.isenabled()


def test_seconds_are_those_of_the_clock(monkeypatch):
    clock = itertools.count(0, 0.5)  # every look at the clock is half a second later
    monkeypatch.setattr(measure, "clock", lambda device: next(clock))
    assert timed(len, ROWS, torch.device("cpu")) == (0.5, 5)


def test_environment_is_json_and_tells_what_matters_and_nobodys_name():
    text = json.dumps(describe_environment() | describe_conditions())
    values = json.loads(text)
    assert values["libraries"]["torch"]
    assert values["cores_usable"] >= 1
    assert len(values["load_average"]) == 3
    assert str(Path.home()) + os.sep not in text
    assert os.uname().nodename not in text
    assert f"/{getpass.getuser()}/" not in text


def test_command_line_loses_folders():
    arguments = ["run", "quick", "--out", "/home/me/out", "--data=/somewhere/else/data", "--published", "a/b"]
    shown = "consistentee run quick --out out --data=data --published a/b"
    assert command_line(["/usr/bin/consistentee", *arguments]) == shown
    assert command_line(["/somewhere/benchmarks/cli/__main__.py", "doctor"]) == "consistentee doctor"


def test_changes_count_where_they_are_code(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    monkeypatch.setattr(environment, "REPOSITORY", tmp_path)
    for folder in ("consistentee", "baselines", "benchmarks", "results"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text("before")
    (tmp_path / "pyproject.toml").write_text("")
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    for folder, counts in (("results", False), ("baselines", True)):
        (tmp_path / folder / "file").write_text("after")
        assert describe_environment()["uncommitted_changes"] is counts


LAYERS = 12
# Costs of 176 rows: means of counts, of which many are equal.
costs = st.lists(st.integers(176, 176 * LAYERS).map(lambda layers: layers / 176), min_size=1, max_size=25)


def mixture(cost: object, budget: float) -> tuple[int, int, float, str]:
    first, second, weight, reach = (np.ravel(part)[0] for part in neighbours(cost, budget))
    return int(first), int(second), float(weight), reach


def test_the_two_knobs_around_a_budget_are_mixed_whatever_their_order():
    assert mixture([6.0, 1.0, 3.0, 2.0], 2.5) == (3, 2, 0.5, "met")
    assert mixture([6.0, 1.0, 3.0, 2.0], 3.0) == (2, 2, 1.0, "met"), "a knob on the budget stands alone"
    assert mixture([2.0, 2.0, 4.0, 4.0], 3.0) == (0, 2, 0.5, "met"), "the first of equal costs counts"
    assert mixture([4.0, 3.0], 2.0) == (1, 1, 1.0, "over")
    assert mixture([4.0, 3.0], 5.0) == (0, 0, 1.0, "under")
    with pytest.raises(ValueError, match="nothing to mix"):
        neighbours([], 3.0)
    assert around_budgets([2.9, 3.0, 3.1, 6.0], 6, "classification", margin=0.1)[:2] == [0, 3], "further apart"


@given(costs, st.floats(0.5, LAYERS + 1))
def test_a_mixture_costs_the_budget_and_no_knob_lies_between_its_two(found, budget):
    cost = np.array(found)
    first, second, weight, reach = mixture(cost, budget)
    assert 0 <= weight <= 1
    assert not ((cost > cost[first] + 1e-8) & (cost < cost[second] - 1e-8)).any()
    mixed = weight * cost[first] + (1 - weight) * cost[second]
    expected = {"met": budget, "over": cost.min(), "under": cost.max()}[reach]
    assert mixed == pytest.approx(expected)
    assert (reach == "met") == (cost.min() - 1e-9 <= budget <= cost.max() + 1e-9)


def test_the_cheapest_knob_that_loses_little_is_saved():
    layers, scores = [3.0, 2.0, 6.0, 12.0], [0.80, 0.80, 0.895, 0.90]
    assert cheapest_within(0.01, layers, scores) == 2
    assert cheapest_within(0.1, layers, scores) == 1
    assert cheapest_within(0.0, layers, scores) == 3


def test_refined_knobs_have_a_hundred_points_where_the_signal_allows():
    signals = np.concatenate([np.linspace(0.5, 0.999, 200), 1 - np.geomspace(1e-3, 1e-6, 200)])

    def layers_of(knobs, signals=signals):  # of two; a row stays below the knob
        return [1 + np.mean(signals < knob) for knob in knobs]

    found = refine_knobs([0.0, 0.9, 0.99, 1.0], layers_of)
    assert (found[0], found[-1], found) == (0.0, 1.0, sorted(found))
    assert len(found) == len(set(layers_of(found))) >= 100
    assert max(np.diff(layers_of(found))) <= 0.01 + 1e-9
    three = refine_knobs([0.0, 0.9, 1.0], lambda knobs: layers_of(knobs, np.repeat([0.3, 0.7], 9)))
    assert three == pytest.approx([0.0, 0.5, 1.0], abs=0.2), "the middle one is far from both signals"
