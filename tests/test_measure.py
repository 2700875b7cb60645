"""The clock: rounds are interleaved, batches are kept, and the arithmetic is right."""

import gc
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.measure import clock as measure
from benchmarks.measure.clock import Runner, passes_of_round, time_contenders
from benchmarks.store.spec import TimingSpec
from consistentee.data.encoding import Encoding

CPU = torch.device("cpu")
ROWS = [Encoding([number]) for number in range(5)]


class Recorder:
    """A contender that notes what it is given."""

    def __init__(self, name: str, calls: list[tuple[str, list[int], bool]]) -> None:
        self.name = name
        self.calls = calls

    def __call__(self, batch) -> None:
        self.calls.append((self.name, [row.input_ids[0] for row in batch], gc.isenabled()))


@given(st.integers(0, 10), st.integers(1, 8), st.lists(st.integers(1, 64), min_size=1, max_size=3, unique=True))
def test_every_round_holds_every_contender_once(round_number, contenders, sizes):
    passes = passes_of_round(round_number, contenders, sizes)
    assert sorted((p.batch_size, p.contender) for p in passes) == sorted(itertools.product(sizes, range(contenders)))


def test_order_rotates():
    assert [[p.contender for p in passes_of_round(r, 3, [1])] for r in range(3)] == [[0, 1, 2], [1, 2, 0], [2, 0, 1]]


def test_rows_keep_their_order_and_warm_up_is_not_timed():
    calls: list[tuple[str, list[int], bool]] = []
    protocol = TimingSpec(rounds=3, batch_sizes=(2,), warmup_batches=1)
    samples = time_contenders(
        [Runner("a", Recorder("a", calls)), Runner("b", Recorder("b", calls))],
        ROWS,
        protocol,
        CPU,
    )
    assert [(name, rows) for name, rows, _ in calls[:4]] == [
        ("a", [0, 1]),  # warm-up
        ("a", [0, 1]),
        ("a", [2, 3]),
        ("a", [4]),
    ]
    assert [enabled for _, _, enabled in calls[:4]] == [True, False, False, False]
    assert gc.isenabled()
    assert [name for name, _, _ in calls] == ["a"] * 4 + ["b"] * 8 + ["a"] * 8 + ["b"] * 4
    assert [len(batches) for batches in samples[0][0].seconds_per_batch] == [3, 3, 3]


def test_seconds_are_those_of_the_clock(monkeypatch):
    clock = itertools.count(0, 0.5)  # every look at the clock is half a second later
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    protocol = TimingSpec(rounds=3, batch_sizes=(1, 32))
    (samples,) = time_contenders([Runner("a", lambda batch: None)], ROWS, protocol, CPU)
    one, many = samples
    assert (one.batch_size, one.rows, many.batch_size, many.rows) == (1, 5, 32, 5)
    assert one.seconds_per_batch == [[0.5] * 5] * 3
    assert one.seconds_per_round == [2.5] * 3
    assert many.seconds_per_round == [0.5] * 3


def test_garbage_collection_comes_back_after_an_error():
    def fail(batch: object) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        time_contenders([Runner("a", fail)], ROWS, TimingSpec(warmup_batches=0), CPU)
    assert gc.isenabled()
