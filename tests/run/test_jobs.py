"""Jobs: which one is next and what it may use, the positions that loops report, status files, the display of a run."""

import io
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from distributed import Client
from rich.console import Console

from benchmarks.commands.train import showing_stages
from benchmarks.run import pool
from benchmarks.run.jobs import RunProgress, read_status, status_writer
from benchmarks.run.pool import Schedule, next_job, threads_of_a_job
from benchmarks.specs.base import Group
from consistentee.deployment.timing import time_in_rounds
from consistentee.files import DiskFullError, clear_leftovers
from consistentee.progress import Position, begin_stage, listening, tracked


def test_loops_report_every_step_after_it_is_done_and_to_nobody_outside_the_block():
    heard = []
    with listening(heard.append):
        begin_stage("loading")
        assert list(tracked("abc", "spelling", rows=4, first=2)) == ["a", "b", "c"]
        with listening(None):  # as where a clock runs
            begin_stage("quiet")
    list(tracked([1, 2], "quiet", rows=1))
    assert [(p.stage, p.done, p.total, p.steps, p.rows) for p in heard] == [
        ("loading", 0, 0, 0, 0),
        ("spelling", 2, 5, 0, 0),
        ("spelling", 3, 5, 1, 4),
        ("spelling", 4, 5, 2, 8),
        ("spelling", 5, 5, 3, 12),
    ]


def test_progress_inside_a_timed_pass_is_not_shown():
    heard: list[Position] = []

    def run(batch: object) -> int:
        begin_stage("inside")
        return len(heard)

    with listening(heard.append):
        taken = time_in_rounds([run, run], ["a", "b"], {1: 2, 2: 2}, rounds=3, warmup=1)
    assert {(p.stage, p.total) for p in heard} == {("3 rounds of timing", 12)}  # the time left is of all rounds
    assert [p.done for p in heard] == list(range(13))
    for by_size in taken:
        assert all(len(set(batches)) == 1 for rounds in by_size.values() for batches in rounds)


def test_a_status_file_is_no_reason_to_stop_and_is_cleared_away(tmp_path):
    status_writer(tmp_path / "nowhere" / "status")(Position("a"))
    path = tmp_path / ".key.status.partial"
    path.write_text('{"stage": "a", "do')  # never left by a kill, for the file is replaced; but who knows
    assert read_status(path) is None
    path.write_text('{"steps": "of another version"}')
    assert read_status(path) is None
    clear_leftovers(tmp_path)
    assert not path.exists()


@dataclass(frozen=True)
class FakeJob:
    """As much of a job as is shown and scheduled."""

    name: str
    task: str = "toy"
    status: Path = Path()

    @property
    def group(self) -> Group:
        return self.task, "backbone", 0

    def ending(self) -> tuple[list[str], bool]:
        return ["accuracy 80.0"], False


def test_a_run_shows_a_line_every_ten_seconds_where_there_is_no_terminal(tmp_path, monkeypatch):
    console = Console(file=io.StringIO(), width=200)
    monkeypatch.setattr("benchmarks.run.jobs.time.monotonic", lambda: 1000.0)
    shown = RunProgress(console, 2)
    job = FakeJob("toy · full", status=tmp_path / ".a.status.partial")
    shown.started(job)
    for now in (1001, 1009.9, 1010.1):
        shown.update(now)
    status_writer(job.status)(Position("training joint", 30, 50, 30, 960, 12.0))
    for now in (1015, 1020.2, 1021, 1030.3, 1040.4):  # the process stands still for 20 seconds
        shown.update(now)
    status_writer(job.status)(Position("training joint", 31, 50, 31, 992, 33.0))
    shown.update(1041)
    job.status.unlink()  # its process ends
    shown.update(1052)
    shown.ended(job)
    shown.update(1050)
    assert console.file.getvalue().splitlines() == [
        "[1/2] toy · full",
        "[1/2] toy · full, 10 s: starting",
        "[1/2] toy · full, 20 s: training joint, step 30 of 50, 80 rows/s, 0.1 min left",
        "[1/2] toy · full, 41 s: training joint, step 31 of 50, 30 rows/s, 0.3 min left",
        "[1/2]   accuracy 80.0, 0 s",
    ]


def test_a_training_shows_every_stage_and_a_line_every_ten_seconds(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("benchmarks.run.jobs.time.monotonic", lambda: clock.now)
    console = Console(file=io.StringIO(), width=200)
    with showing_stages(console) as show:
        for now, position in (
            (100, Position("loading")),
            (101, Position("training a", 0, 8)),
            (104, Position("training a", 2, 8, 2, 64, 3.0)),
            (111, Position("training a", 4, 8, 4, 128, 10.0)),
            (112, Position("training b", 3, 8)),
        ):
            clock.now = now
            show(position)
    assert console.file.getvalue().splitlines() == [
        "loading",
        "training a, step 0 of 8",
        "training a, step 4 of 8, 13 rows/s, 0.2 min left",
        "training b, step 3 of 8",
    ]


def test_next_job_is_of_the_group_with_the_fewest_running():
    jobs = [FakeJob(f"{task}{i}", task) for task in ("rte", "mrpc") for i in range(2)]
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
        Schedule(address=client.scheduler.address).run_cells([FakeJob("rte0", "rte"), FakeJob("rte1", "rte")], ended)
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
        Schedule(workers=2).run_cells([FakeJob("rte0", "rte"), FakeJob("mrpc0", "mrpc"), FakeJob("rte1", "rte")], ended)
    assert (ended, stopped) == ([], [True])
