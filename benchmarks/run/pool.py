"""Run jobs: each in a process of its own, here, several at once, or on a dask cluster.

A process of its own means clean memory and random state, and a crash that harms nothing else. Processes are forked from
a server that has loaded the large libraries but none of this project's code: they start in a fraction of a second and
run the code as it lies on disk. A job writes its result to disk and may run twice, so dask can give the job of a dead
worker to another one. Cells may share a machine; timings never do: they run one at a time, when no cell runs.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from benchmarks.measure.environment import usable_cores
from benchmarks.run.jobs import AnyJob, RunProgress, status_writer
from benchmarks.store.folders import FAILURE_FILE
from consistentee.errors import UserError
from consistentee.files import PARTIAL, DiskFullError, is_disk_full, make_folder, only_one
from consistentee.progress import listening

if TYPE_CHECKING:
    from distributed import Client

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
SECONDS_TO_CONNECT = 10
_SECONDS_TO_WAIT_FOR_WORKERS = 60
_SECONDS_BETWEEN_COUNTS = 5  # of workers, which may come and go
_SECONDS_BETWEEN_LOOKS = 0.2  # at whether the run ends
_PROCESSES = threading.Lock()  # the start of a process looks for exit codes of all, which can be read only once


@dataclass(frozen=True)
class Schedule:
    """Where the jobs of a run go: ``workers`` on this machine, or the dask cluster at ``address``."""

    workers: int = 1
    address: str | None = None

    def run_cells(self, jobs: Sequence[AnyJob], progress: RunProgress) -> None:
        """Run jobs that may share a machine."""
        if jobs and self.address is not None:
            with _cluster(self.address) as client:
                executor = client.get_executor(pure=False)

                def submit(job: AnyJob) -> Future[None]:
                    return executor.submit(_run_in_worker, job, slots_on(client), _thread_limit())

                _run_side_by_side(jobs, progress, lambda: sum(slots_on(client).values()), submit)
        elif self.workers > 1 and len(jobs) > 1:
            _run_in_threads(jobs, progress, min(self.workers, len(jobs)))
        else:
            _run_here(jobs, progress)

    def run_timings(self, jobs: Sequence[AnyJob], progress: RunProgress) -> None:
        """Run jobs that must be alone, one after another, all on the same machine."""
        if jobs and self.address is not None:
            with _cluster(self.address) as client:
                _run_alone(client, jobs, progress)
        else:
            _run_here(jobs, progress)


def _run_here(jobs: Sequence[AnyJob], progress: RunProgress) -> None:
    for job in jobs:
        progress.started(job)
        execute(job)
        progress.ended(job)


def _run_in_threads(jobs: Sequence[AnyJob], progress: RunProgress, workers: int) -> None:
    threads, stopped = threads_of_a_job(workers, usable_cores(), _thread_limit()), threading.Event()
    with _threads_sleep_while_they_wait(), ThreadPoolExecutor(workers) as executor:
        try:
            submit = executor.submit
            _run_side_by_side(jobs, progress, lambda: workers, lambda job: submit(execute, job, threads, stopped))
        finally:
            stopped.set()


def _run_side_by_side(
    jobs: Sequence[AnyJob],
    progress: RunProgress,
    count_slots: Callable[[], int],
    submit: Callable[[AnyJob], Future[None]],
) -> None:
    """Keep all slots busy. Submit no more jobs than there are slots, so that the order can depend on running jobs."""
    waiting: list[AnyJob] = list(jobs)
    running: dict[Future[None], AnyJob] = {}
    try:
        while waiting or running:
            slots = count_slots()
            while waiting and len(running) < slots:
                job = next_job(waiting, running.values())
                waiting.remove(job)
                progress.started(job)
                running[submit(job)] = job
            if not running:  # no worker is left; others may join
                time.sleep(_SECONDS_BETWEEN_COUNTS)
            for future in wait(running, _SECONDS_BETWEEN_COUNTS, FIRST_COMPLETED).done:
                job = running.pop(future)
                _settle(future.result, job)
                progress.ended(job)
    finally:
        for future in running:
            future.cancel()


def next_job(waiting: Sequence[AnyJob], running: Collection[AnyJob]) -> AnyJob:
    """Choose the job to start next: of the group with the fewest running jobs, since these may want the same stage."""
    busy = Counter(job.group for job in running)
    return min(waiting, key=lambda job: busy[job.group])


def threads_of_a_job(slots: int, cores: int, limit: int | None) -> int:
    """Return the threads of torch in each of so many jobs on a machine; ``limit`` is OMP_NUM_THREADS, if it is set."""
    return max(1, min(cores // slots, limit or cores))


def _thread_limit() -> int | None:
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() else None


# ---------------------------------------------------------------------------------------------- dask


@contextmanager
def _cluster(address: str) -> Iterator["Client"]:
    from distributed import Client

    try:
        client = Client(address, timeout=SECONDS_TO_CONNECT)
    except (OSError, ValueError) as error:
        raise UserError(f"no dask scheduler answers at {address}: {error}") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_SECONDS_TO_WAIT_FOR_WORKERS)
        except TimeoutError as error:
            start = f"start some: dask worker {address}"
            raise UserError(f"the dask scheduler at {address} has no workers; {start}") from error
        yield client


def slots_on(client: "Client") -> Counter[str]:
    """Count how many jobs the present workers run at once, by host."""
    slots: Counter[str] = Counter()
    for address, threads in client.nthreads().items():
        slots[_host(address)] += threads
    return slots


def _host(address: str) -> str:
    return urlsplit(address).hostname or address


def _run_in_worker(job: AnyJob, slots: Counter[str], limit: int | None) -> None:
    from distributed import get_worker

    # Dask's workers are daemons, which may have no children, lest these outlive them; ours end with their parent.
    multiprocessing.current_process().daemon = False
    own_slots = max(1, slots[_host(get_worker().address)])
    execute(job, threads_of_a_job(own_slots, usable_cores(), limit))


def _run_alone(client: "Client", jobs: Sequence[AnyJob], progress: RunProgress) -> None:
    offers = client.run(lambda dask_worker: dict(dask_worker.state.total_resources))
    address = min(offers, key=lambda worker: (TIMING_RESOURCE not in offers[worker], worker))
    resources = {TIMING_RESOURCE: 1} if TIMING_RESOURCE in offers[address] else None
    # If that worker dies, another one takes over.
    options = {"pure": False, "workers": [address], "allow_other_workers": True, "resources": resources}
    for job in jobs:
        progress.started(job)
        future = client.submit(_run_in_worker, job, Counter({_host(address): 1}), _thread_limit(), **options)
        _settle(future.result, job)
        progress.ended(job)


def _settle(result: Callable[[], object], job: AnyJob) -> None:
    """Wait for a job; note it as failed if workers keep dying. Raises UserError for an error of the whole run."""
    try:
        result()
    except UserError:
        raise
    except Exception as error:
        from distributed import KilledWorker

        if not isinstance(error, KilledWorker):
            raise UserError(f"the workers cannot run {job.name}: {type(error).__name__}: {error}") from error
        job.note_failure(" ".join(f"workers keep dying: {error}".split()), may_pass=True)


# ---------------------------------------------------------------------------------------------- processes


def execute(job: AnyJob, threads: int | None = None, stopped: threading.Event | None = None) -> None:
    """Run a job in a process of its own, and wait for it. Its result, or a note of its failure, is on disk then.

    ``threads`` are those of torch; None leaves torch's own choice. ``stopped`` is set when the run ends early, and the
    process with it; no failure is noted then. Raises DiskFullError if there is no room for the result, nor for a note.
    """
    make_folder(job.lock_place.parent)
    # What the process prints must not disturb the terminal, but is kept if it dies.
    with NamedTemporaryFile(prefix=f".{job.key[:16]}.", suffix=PARTIAL, dir=job.lock_place.parent) as file:
        output = Path(file.name)
        process = _started(job, threads, output)
        try:
            has_ended = False
            while not has_ended and not (stopped and stopped.is_set()):
                has_ended = bool(connection.wait([process.sentinel], _SECONDS_BETWEEN_LOOKS))
            if has_ended:
                with _PROCESSES:
                    process.join()
        finally:
            with _PROCESSES:
                _stop(process)
            job.status.unlink(missing_ok=True)
        if stopped and stopped.is_set():
            return
        assert process.exitcode is not None
        if process.exitcode == _DISK_FULL:
            raise DiskFullError(job.place)
        if process.exitcode != 0:
            said = output.read_text(encoding="utf-8", errors="replace")[-_OUTPUT_KEPT:]
            job.note_failure(_end_of_process(process.exitcode), said, may_pass=process.exitcode < 0)


def compute_here(job: AnyJob) -> None:
    """Compute a job in this process, unless it is done; write its result, or a note of its failure.

    Raises DiskFullError if there is no room for either.
    """
    with only_one(job.lock_place), listening(status_writer(job.status)):
        if job.result() is not None:
            return
        try:
            job.compute()
        except Exception as error:  # a method may fail in any way; the other cells are still run
            if is_disk_full(error):
                raise DiskFullError(job.place) from error
            job.note_failure(error)
        else:
            (job.place / FAILURE_FILE).unlink(missing_ok=True)


def _started(job: AnyJob, threads: int | None, output: Path) -> BaseProcess:
    """Start the process of a job. A timing gets a fresh process with the default wait policy."""
    context: ForkServerContext | SpawnContext = multiprocessing.get_context("spawn")
    if job.shares_machine and "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
    with _threads_sleep_while_they_wait() if job.shares_machine else nullcontext():
        process: BaseProcess = context.Process(target=_work, args=(job, threads, output), name=job.name)
        with _PROCESSES:
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
    if process.is_alive():
        process.terminate()
        process.join(_GRACE_SECONDS)  # in which it removes its temporary files
        process.kill()
        process.join()


def _end_of_process(exit_code: int) -> str:
    if exit_code > 0:
        return f"its process ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    hint = "; the system does that when memory runs out" if name == "SIGKILL" else ""
    return f"its process was ended by signal {name}{hint}"


def _work(job: AnyJob, threads: int | None, output: Path) -> None:
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
    """End this process when its parent dies, so that no two processes work on the same job."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(_TERMINATED)

    threading.Thread(target=watch, daemon=True).start()
