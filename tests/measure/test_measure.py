"""The clock: rounds are interleaved, batches are kept, and the arithmetic is right."""

import gc
import itertools
from collections.abc import Sequence

import pytest
import torch

from benchmarks.measure import clock as measure
from benchmarks.measure.clock import time_contenders, timed
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
