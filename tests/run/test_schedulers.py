"""Schedulers: which job is next, and what part of a machine it may use."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from distributed import Client

from benchmarks.run import pool
from benchmarks.run.pool import Schedule, Share, next_job
from benchmarks.specs.base import Group


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
    ("slots", "limit", "cores", "threads"),
    [
        ({"a": 2}, None, 8, 4),
        ({"a": 2, "b": 6}, None, 8, 4),
        ({"a": 16}, None, 8, 1),
        ({"a": 2}, 1, 8, 1),
        ({}, None, 8, 8),
    ],
)
def test_jobs_share_the_cores_of_their_host(slots, limit, cores, threads):
    assert Share(slots, limit).threads("a", cores) == threads


@dataclass
class Watched:
    ended_jobs: list[str] = field(default_factory=list)

    def started(self, job):
        pass

    def ended(self, job):
        self.ended_jobs.append(job.name)


def test_a_cluster_that_lost_its_workers_is_waited_for(monkeypatch):
    pauses = []
    counts = iter([Share({}, None), Share({}, None)])
    count_slots = Share.of
    monkeypatch.setattr(Share, "of", lambda client: next(counts, None) or count_slots(client))
    monkeypatch.setattr(pool, "time", SimpleNamespace(sleep=pauses.append))
    monkeypatch.setattr(pool, "execute", lambda job, threads: None)
    watcher = Watched()
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        Schedule(address=client.scheduler.address).run_cells([Waiting("rte0", "rte"), Waiting("rte1", "rte")], watcher)
    assert watcher.ended_jobs == ["rte0", "rte1"]
    assert len(pauses) == 2, "it is asked again, but not without pause"
