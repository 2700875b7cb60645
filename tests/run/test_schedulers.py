"""Schedulers: which job is next, and what part of a machine it may use."""

import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from distributed import Client

from benchmarks.run import pool
from benchmarks.run.pool import Schedule, next_job, threads_of_a_job
from benchmarks.specs.base import Group
from consistentee.files import DiskFullError


@dataclass(frozen=True)
class Waiting:
    name: str
    task: str

    @property
    def group(self) -> Group:
        return self.task, "backbone", 0


def test_next_job_is_of_the_group_with_the_fewest_running():
    jobs = [Waiting(f"{task}{i}", task) for task in ("rte", "mrpc") for i in range(2)]
    assert next_job(jobs, []).name == "rte0"
    assert next_job(jobs[1:], [jobs[0]]).name == "mrpc0", "cells of one group may want the same stage"
    assert next_job([jobs[1], jobs[3]], [jobs[0], jobs[2]]).name == "rte1", "the order of the suite, otherwise"


@pytest.mark.parametrize(
    ("slots", "limit", "cores", "threads"), [(2, None, 8, 4), (16, None, 8, 1), (2, 1, 8, 1), (1, None, 8, 8)]
)
def test_jobs_share_the_cores_of_their_host(slots, limit, cores, threads):
    assert threads_of_a_job(slots, cores, limit) == threads


class Ended(list[str]):
    """The names of the jobs that have ended, instead of a display."""

    def started(self, job):
        pass

    def ended(self, job):
        self.append(job.name)


def test_a_cluster_that_lost_its_workers_is_waited_for(monkeypatch):
    pauses = []
    counts = iter([Counter(), Counter()])
    count_slots = pool.slots_on
    monkeypatch.setattr(pool, "slots_on", lambda client: next(counts, count_slots(client)))
    monkeypatch.setattr(pool, "time", SimpleNamespace(sleep=pauses.append))
    monkeypatch.setattr(pool, "execute", lambda job, threads: None)
    ended = Ended()
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        Schedule(address=client.scheduler.address).run_cells([Waiting("rte0", "rte"), Waiting("rte1", "rte")], ended)
    assert ended == ["rte0", "rte1"]
    assert len(pauses) == 2, "it is asked again, but not without pause"


def test_local_jobs_run_at_once_and_an_error_ends_the_others(monkeypatch):
    both, stopped = threading.Barrier(2, timeout=60), []

    def fail_or_wait(job, threads, stop):
        both.wait()
        if job.name == "rte0":
            raise DiskFullError(Path("record.json"))
        stopped.append(stop.wait(60))

    monkeypatch.setattr(pool, "execute", fail_or_wait)
    ended = Ended()
    with pytest.raises(DiskFullError):
        Schedule(workers=2).run_cells([Waiting("rte0", "rte"), Waiting("mrpc0", "mrpc"), Waiting("rte1", "rte")], ended)
    assert (ended, stopped) == ([], [True])
