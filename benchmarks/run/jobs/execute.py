"""One job in a process of its own: clean memory and random state, and an end of any kind that harms nothing else.

Processes are forked from a server that has loaded the big libraries but none of this project's code: a process starts
in a fraction of a second, and runs the code as it lies on disk.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from benchmarks.run.jobs.failures import note_error, note_failure
from benchmarks.run.jobs.job import Job
from benchmarks.run.jobs.status import StatusFile
from benchmarks.store.folders import FAILURE_FILE
from consistentee.files import PARTIAL, DiskFullError, is_disk_full, make_folder, only_one
from consistentee.progress import listening

_LOADED_AHEAD = [
    "pandas",
    "scipy.stats",
    "sklearn.metrics",
    "torch.utils.flop_counter",
    "transformers.masking_utils",
    "transformers.models.auto",
]
_WAIT_POLICY = "OMP_WAIT_POLICY"
_DISK_FULL = 75  # exit code: the run has to end; sysexits.h calls it a temporary failure
_TERMINATED = 128 + signal.SIGTERM
_GRACE_SECONDS = 10
_OUTPUT_KEPT = 20_000  # characters of what a process said before it died


def execute(job: Job, threads: int | None = None) -> None:
    """Run a job in a process of its own, and wait for it. Its result, or a note of its failure, is on disk then.

    Args:
        job: what to compute.
        threads: of torch; None leaves torch's own choice.

    Raises:
        DiskFullError: there is no room for the result, nor for a note.
    """
    with _output_file(job) as output:
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
            note_failure(job.place, job.key, _end_of_process(process.exitcode), said, may_pass=process.exitcode < 0)


def _started(job: Job, threads: int | None, output: Path) -> BaseProcess:
    """Start the process of a job. One whose time is compared begins anew, shaped by no policy of ours."""
    context: ForkServerContext | SpawnContext = multiprocessing.get_context("spawn")
    if job.shares_machine and "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_LOADED_AHEAD)
    with _threads_sleep_while_they_wait() if job.shares_machine else nullcontext():
        process: BaseProcess = context.Process(target=_work, args=(job, threads, output), name=job.name)
        process.start()
    return process


@contextmanager
def _threads_sleep_while_they_wait() -> Iterator[None]:
    """Let OpenMP's threads sleep at a barrier in processes that begin in this block, unless the user says otherwise.

    By default they spin, and where another process wants a core too, a thread waits for one that has none: beside one
    busy program a training step took 13 s in place of 0.6. Waking them costs a quarter more at batch 1 and 6% at batch
    32 where each has a core, so this is for work whose time is not compared.
    """
    set_here = _WAIT_POLICY not in os.environ
    os.environ.setdefault(_WAIT_POLICY, "PASSIVE")
    try:
        yield
    finally:
        if set_here:
            del os.environ[_WAIT_POLICY]


@contextmanager
def _output_file(job: Job) -> Iterator[Path]:
    """Give the file that takes what the process prints: it must not disturb the terminal, but is kept if it dies."""
    make_folder(job.turn.parent)
    handle, name = tempfile.mkstemp(prefix=f".{job.key[:16]}.", suffix=PARTIAL, dir=job.turn.parent)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


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
    _redirect_output(output)
    os.chdir(job.surroundings.directory)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    try:
        perform(job)
    except DiskFullError:
        sys.exit(_DISK_FULL)


def perform(job: Job) -> None:
    """Do a job in this process, and note how it failed if it does. Raises DiskFullError."""
    with only_one(job.turn), listening(StatusFile(job.status)):
        if job.is_done():
            return
        try:
            job.compute()
        except Exception as error:  # a method may fail in any way at all; the other cells are still worth running
            if is_disk_full(error):
                raise DiskFullError(job.place) from error
            note_error(job.place, job.key, error)
        else:
            (job.place / FAILURE_FILE).unlink(missing_ok=True)


def _end_with_parent() -> None:
    """End this process when the one that started it dies, so that no two ever work on the same job for long."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(_TERMINATED)

    threading.Thread(target=watch, daemon=True).start()


def _redirect_output(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    faulthandler.enable(2)
