"""Kill -9 at any moment, of a whole run or of one worker: nothing but time is lost."""

import os
import random
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from distributed import LocalCluster, Nanny
from small_suite import Bench, stamps, wait_until

from benchmarks.run import pool
from benchmarks.run.pool import Schedule
from consistentee.errors import UserError

CELLS = 3


def kill_after(bench: Bench, seconds: float) -> None:
    """Start a run, wait until its first cell is at work and then some time, and kill its whole process group."""
    bench.write()
    process = bench.start()
    wait_until(lambda: list(bench.out.glob("artifacts/turns/.*.partial")) or process.poll() is not None)
    with pytest.raises(UserError, match="another run is writing"):
        bench.run()
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_killed_run_goes_on_to_the_same_results(bench, finished_suite, kills):
    moments = random.Random(0)
    finished: dict[Path, int] = {}
    for _ in range(kills):
        kill_after(bench, moments.uniform(0, 3))
        now = stamps(bench.finished_cells())
        assert finished.items() <= now.items(), "no finished cell is run twice"
        finished = now
    outcome = bench.run()
    assert (outcome.finished, outcome.failed) == (CELLS, ())
    assert outcome.computed == CELLS - len(finished), bench.said
    assert "damaged" not in bench.said
    assert finished.items() <= stamps(bench.finished_cells()).items(), "no finished cell is run twice"
    assert bench.results() == finished_suite.results()
    assert (len(bench.read().timings), bench.read().faults) == (1, [])
    assert bench.leftovers() == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_worker_costs_nothing_but_time(bench, finished_suite):
    killed = []

    def kill_one(worker: Nanny) -> None:
        wait_until(bench.finished_cells)
        killed.append(worker.pid)
        os.kill(worker.pid, signal.SIGKILL)

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        killer = threading.Thread(target=kill_one, args=[cluster.workers[0]])
        killer.start()
        outcome = bench.run(schedule=Schedule(address=cluster.scheduler_address))
        killer.join()
    assert len(killed) == 1
    assert (outcome.finished, outcome.failed) == (CELLS, ())
    assert bench.results() == finished_suite.results()
    assert (len(bench.read().timings), bench.leftovers()) == (1, [])
    assert {record.environment["threads"]["torch"] for record in bench.records().values()} == {1}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_local_workers_and_one_process_give_the_same_results(bench, finished_suite):
    outcome = bench.run(schedule=Schedule(workers=2))
    assert (outcome.finished, outcome.failed) == (CELLS, ())
    assert bench.results() == finished_suite.results()
    assert bench.leftovers() == []


def test_a_scheduler_that_does_not_answer_is_named(bench, monkeypatch):
    monkeypatch.setattr(pool, "SECONDS_TO_CONNECT", 0.5)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(UserError, match=f"no dask scheduler answers at {address}"):
            bench.run(schedule=Schedule(address=address))
