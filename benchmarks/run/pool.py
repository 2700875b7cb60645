"""Run jobs: each in a process of its own, here one after another, on local dask workers, or on a dask cluster.

A process of its own means clean memory and random state, and a crash that harms nothing else. Processes are forked from
a server that has loaded the large libraries but none of this project's code: they start in a fraction of a second and
run the code as it lies on disk. A job writes its result to disk and may run twice, so dask can give the job of a dead
worker to another one. Cells may share a machine; timings never do: they run one at a time, when no cell runs.
"""

import faulthandler
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from benchmarks.run.jobs import Job
from benchmarks.run.progress import StatusFile
from benchmarks.store.environment import usable_cores
from benchmarks.store.folders import FAILURE_FILE
from consistentee.errors import UserError
from consistentee.files import PARTIAL, DiskFullError, is_disk_full, make_folder, only_one
from consistentee.progress import listening

if TYPE_CHECKING:
    from distributed import Client, Future

TIMING_RESOURCE = "GPU"
"""Timings go to a worker that offers this resource, where there is one (``dask worker --resources GPU=1``)."""

_PRELOADED = [
    "pandas",
    "scipy.stats",
    "sklearn.metrics",
    "torch.utils.flop_counter",
    "transformers.masking_utils",
    "transformers.models.auto",
    "transformers.trainer_utils",
]
_WAIT_POLICY = "OMP_WAIT_POLICY"
_DISK_FULL = 75  # exit code: the run has to end; sysexits.h calls it a temporary failure
_TERMINATED = 128 + signal.SIGTERM
_GRACE_SECONDS = 10
_OUTPUT_KEPT = 20_000  # last characters of the output of a process that died
_DEATHS_ALLOWED = 10  # of local workers over one job, before the job is to blame
SECONDS_TO_CONNECT = 10
_SECONDS_TO_WAIT_FOR_WORKERS = 60
_SECONDS_BETWEEN_COUNTS = 5  # of workers, which may come and go


class Watcher(Protocol):
    """Is called before a job runs, and after it: its result, or a note of its failure, is on disk then."""

    def started(self, job: Job) -> None: ...

    def ended(self, job: Job) -> None: ...


@dataclass(frozen=True)
class Schedule:
    """Where the jobs of a run go: ``workers`` on this machine, or the dask cluster at ``address``."""

    workers: int = 1
    address: str | None = None

    def run_cells(self, jobs: Sequence[Job], watcher: Watcher) -> None:
        """Run jobs that may share a machine."""
        if not jobs:
            return
        if self.address is not None:
            with _cluster(self.address) as client:
                _run_side_by_side(client, jobs, watcher)
        elif self.workers > 1 and len(jobs) > 1:
            with _local_workers(min(self.workers, len(jobs))) as client:
                _run_side_by_side(client, jobs, watcher)
        else:
            _run_here(jobs, watcher)

    def run_timings(self, jobs: Sequence[Job], watcher: Watcher) -> None:
        """Run jobs that must be alone, one after another, all on the same machine."""
        if jobs and self.address is not None:
            with _cluster(self.address) as client:
                _run_alone(client, jobs, watcher)
        else:
            _run_here(jobs, watcher)


def _run_here(jobs: Sequence[Job], watcher: Watcher) -> None:
    for job in jobs:
        watcher.started(job)
        execute(job)
        watcher.ended(job)


def _run_side_by_side(client: "Client", jobs: Sequence[Job], watcher: Watcher) -> None:
    """Keep every slot of every worker busy; no more jobs are sent than there are slots, so that order can matter."""
    from distributed import wait

    waiting: list[Job] = list(jobs)
    running: dict[Future, Job] = {}
    try:
        while waiting or running:
            share = Share.of(client)
            while waiting and len(running) < sum(share.slots_on.values()):
                job = next_job(waiting, running.values())
                waiting.remove(job)
                watcher.started(job)
                running[client.submit(_run_in_worker, job, share, pure=False)] = job
            if not running:  # no worker is left; others may join
                time.sleep(_SECONDS_BETWEEN_COUNTS)
                continue
            try:
                done = wait(list(running), timeout=_SECONDS_BETWEEN_COUNTS, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                continue
            for future in done:
                job = running.pop(future)
                _settle(future, job)
                watcher.ended(job)
    finally:
        client.cancel(list(running))


def next_job(waiting: Sequence[Job], running: Collection[Job]) -> Job:
    """Choose the job to start next: of the group with the fewest running jobs, since these may want the same stage."""
    busy = Counter(job.group for job in running)
    return min(waiting, key=lambda job: busy[job.group])


def _run_alone(client: "Client", jobs: Sequence[Job], watcher: Watcher) -> None:
    offers = client.run(lambda dask_worker: dict(dask_worker.state.total_resources))
    address = min(offers, key=lambda worker: (TIMING_RESOURCE not in offers[worker], worker))
    resources = {TIMING_RESOURCE: 1} if TIMING_RESOURCE in offers[address] else None
    whole = Share({_host(address): 1}, _thread_limit())
    for job in jobs:
        watcher.started(job)
        # Were that worker to die, another one takes over.
        future = client.submit(
            _run_in_worker, job, whole, pure=False, workers=[address], allow_other_workers=True, resources=resources
        )
        _settle(future, job)
        watcher.ended(job)


def _settle(future: "Future", job: Job) -> None:
    """Wait for a job; note it as failed if workers keep dying over it. Raises what ends the whole run."""
    from distributed import KilledWorker

    try:
        future.result()
    except KilledWorker as error:
        job.note_failure(" ".join(f"workers keep dying over it: {error}".split()), may_pass=True)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the workers cannot run {job.name}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Share:
    """The part of its machine that a job may use.

    Attributes:
        slots_on: how many jobs run at once on each host.
        thread_limit: threads a job, where the user has set OMP_NUM_THREADS.
    """

    slots_on: dict[str, int]
    thread_limit: int | None

    @classmethod
    def of(cls, client: "Client") -> "Share":
        """Count the slots of the workers that are there now."""
        slots: Counter[str] = Counter()
        for address, threads in client.nthreads().items():
            slots[_host(address)] += threads
        return cls(dict(slots), _thread_limit())

    def threads(self, host: str, cores: int) -> int:
        """Return the threads of torch in a job on a host with that many cores."""
        return max(1, min(cores // self.slots_on.get(host, 1), self.thread_limit or cores))


def _thread_limit() -> int | None:
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() else None


def _host(address: str) -> str:
    return urlsplit(address).hostname or address


def _run_in_worker(job: Job, share: Share) -> None:
    """Run a job in a process of its own, below a dask worker."""
    from distributed import get_worker

    # Dask's workers are daemons, which may have no children, lest these outlive them; ours end with their parent.
    multiprocessing.current_process().daemon = False
    execute(job, share.threads(_host(get_worker().address), usable_cores()))


@contextmanager
def _local_workers(count: int) -> Iterator["Client"]:
    """Start worker processes on this machine, one job each."""
    import dask
    from distributed import Client, LocalCluster

    settings = {
        "distributed.scheduler.allowed-failures": _DEATHS_ALLOWED,
        "distributed.nanny.pre-spawn-environ": {},  # it would set this process's own OMP_NUM_THREADS to 1, for good
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            memory_limit=0,  # a cell is no part of the worker's own memory
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def _cluster(address: str) -> Iterator["Client"]:
    """Connect to a scheduler. Raises UserError if that fails, or if no worker shows up."""
    from distributed import Client

    try:
        client = Client(address, timeout=SECONDS_TO_CONNECT)
    except (OSError, ValueError) as error:
        raise UserError(f"no dask scheduler answers at {address}: {error}") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_SECONDS_TO_WAIT_FOR_WORKERS)
        except TimeoutError as error:
            raise UserError(
                f"the dask scheduler at {address} has no workers; start some: dask worker {address}"
            ) from error
        yield client


def execute(job: Job, threads: int | None = None) -> None:
    """Run a job in a process of its own, and wait for it. Its result, or a note of its failure, is on disk then.

    ``threads`` are those of torch; None leaves torch's own choice. Raises DiskFullError if there is no room for the
    result, nor for a note.
    """
    make_folder(job.lock_place.parent)
    # What the process prints must not disturb the terminal, but is kept if it dies.
    with NamedTemporaryFile(prefix=f".{job.key[:16]}.", suffix=PARTIAL, dir=job.lock_place.parent) as file:
        output = Path(file.name)
        process = _started(job, threads, output)
        try:
            process.join()
        finally:
            _stop(process)
            job.status.unlink(missing_ok=True)
        assert process.exitcode is not None
        if process.exitcode == _DISK_FULL:
            raise DiskFullError(job.place)
        if process.exitcode != 0:
            said = output.read_text(encoding="utf-8", errors="replace")[-_OUTPUT_KEPT:]
            job.note_failure(_end_of_process(process.exitcode), said, may_pass=process.exitcode < 0)


def compute_here(job: Job) -> None:
    """Compute a job in this process, unless it is done; write its result, or a note of its failure.

    Raises DiskFullError if there is no room for either.
    """
    with only_one(job.lock_place), listening(StatusFile(job.status)):
        if job.result() is not None:
            return
        try:
            job.compute()
        except Exception as error:  # a method may fail in any way at all; the other cells are still worth running
            if is_disk_full(error):
                raise DiskFullError(job.place) from error
            job.note_error(error)
        else:
            (job.place / FAILURE_FILE).unlink(missing_ok=True)


def _started(job: Job, threads: int | None, output: Path) -> BaseProcess:
    """Start the process of a job. One whose time is compared begins anew, shaped by no policy of ours."""
    context: ForkServerContext | SpawnContext = multiprocessing.get_context("spawn")
    if job.shares_machine and "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
    with _threads_sleep_while_they_wait() if job.shares_machine else nullcontext():
        process: BaseProcess = context.Process(target=_work, args=(job, threads, output), name=job.name)
        process.start()
    return process


@contextmanager
def _threads_sleep_while_they_wait() -> Iterator[None]:
    """Let OpenMP's threads sleep at a barrier in processes that begin in this block, unless the user sets otherwise.

    By default they spin: next to one busy program a training step took 13 s instead of 0.6. Waking them costs up to a
    quarter more where each has a core, so this is for work whose time is not compared.
    """
    set_here = _WAIT_POLICY not in os.environ
    os.environ.setdefault(_WAIT_POLICY, "PASSIVE")
    try:
        yield
    finally:
        if set_here:
            del os.environ[_WAIT_POLICY]


def _stop(process: BaseProcess) -> None:
    """End a process that is still there, which has time to remove its temporary files."""
    if process.is_alive():
        process.terminate()
        process.join(_GRACE_SECONDS)
        process.kill()
        process.join()


def _end_of_process(exit_code: int) -> str:
    if exit_code > 0:
        return f"its process ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    hint = "; the system does that when memory runs out" if name == "SIGKILL" else ""
    return f"its process was ended by signal {name}{hint}"


def _work(job: Job, threads: int | None, output: Path) -> None:
    """Do a job: what runs in the new process."""
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable(2)
    os.chdir(job.context.directory)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    try:
        compute_here(job)
    except DiskFullError:
        sys.exit(_DISK_FULL)


def _end_with_parent() -> None:
    """End this process when the one that started it dies, so that no two ever work on the same job for long."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(_TERMINATED)

    threading.Thread(target=watch, daemon=True).start()
