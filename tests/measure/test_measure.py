"""Measuring: rounds of the clock are interleaved, batches are kept, sums are right; and the record of a machine."""

import gc
import getpass
import itertools
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.measure import clock as measure, environment
from benchmarks.measure.clock import time_contenders, timed
from benchmarks.measure.environment import command_line, describe_conditions, describe_environment
from benchmarks.specs.base import TimingSpec

ROWS = list(range(5))


class Recorder:
    """A contender that notes what it is given, and says how many rows that were."""

    def __init__(self, name: str, calls: list[tuple[str, list[int], bool]]) -> None:
        self.name = name
        self.calls = calls

    def __call__(self, batch: Sequence[int]) -> int:
        self.calls.append((self.name, list(batch), gc.isenabled()))
        return len(batch)


def test_rows_keep_their_order_and_warm_up_is_not_timed():
    calls: list[tuple[str, list[int], bool]] = []
    protocol = TimingSpec(rounds=3, batch_sizes=(2,), warmup_batches=1)
    taken = time_contenders([Recorder("a", calls), Recorder("b", calls)], ROWS, protocol)
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


def test_a_contender_may_have_few_batch_sizes_and_every_size_few_batches():
    calls: list[tuple[str, list[int], bool]] = []
    protocol = TimingSpec(rounds=3, batch_sizes=(1, 2), warmup_batches=0, most_batches=2)
    taken = time_contenders([Recorder("a", calls), Recorder("b", calls)], ROWS, protocol, [(1, 2), (2,)])
    a_round = [("a", [0]), ("a", [1]), ("a", [0, 1]), ("a", [2, 3]), ("b", [0, 1]), ("b", [2, 3])]
    assert [(name, rows) for name, rows, _ in calls[:6]] == a_round
    assert taken == [{1: [[1, 1]] * 3, 2: [[2, 2]] * 3}, {2: [[2, 2]] * 3}]


def test_garbage_collection_comes_back_after_an_error():
    def fail(batch: object) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        time_contenders([fail], ROWS, TimingSpec(warmup_batches=0))
    assert gc.isenabled()


def test_seconds_are_those_of_the_clock(monkeypatch):
    clock = itertools.count(0, 0.5)  # every look at the clock is half a second later
    monkeypatch.setattr(measure, "clock", lambda device: next(clock))
    assert timed(len, ROWS, torch.device("cpu")) == (0.5, 5)


# ---------------------------------------------------------------------------------------------- the machine


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
