"""Fixtures and clocks of the micro benchmarks: a real encoder with untrained exits, and real sentences."""

import time
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch

from benchmarks.measure.clock import time_contenders, timed
from benchmarks.specs.base import TimingSpec
from benchmarks.tasks.loader import load_classification_task
from consistentee.data.encoding import Encoding
from consistentee.data.instances import TaskData
from consistentee.models.encoder.multi_exit_model import MultiExitModel

ROUNDS = 7


@pytest.fixture(scope="session")
def task() -> TaskData:
    """Movie snippets: 2,000 rows to train on, 500 to read."""
    return load_classification_task("movie-snippets").capped(train=2000, test=500)


@pytest.fixture(scope="session")
def model() -> MultiExitModel:
    """minilm-l6 with untrained exits; time does not tell weights."""
    return MultiExitModel.from_backbone("minilm-l6", num_labels=2)


Run = Callable[[Sequence[Encoding]], object]


def seconds_by_round(
    contenders: Mapping[str, Run], rows: Sequence[Encoding], batch_size: int
) -> dict[str, list[float]]:
    """Time contenders in interleaved rounds on the CPU: name -> seconds of every round."""
    protocol = TimingSpec(rounds=ROUNDS, batch_sizes=(batch_size,), rows=len(rows), warmup_batches=3)
    taken = time_contenders([_on_the_clock(run) for run in contenders.values()], rows, protocol)
    return {
        name: [sum(batches) for batches in of_one[batch_size]] for name, of_one in zip(contenders, taken, strict=True)
    }


def _on_the_clock(run: Run) -> Callable[[Sequence[Encoding]], float]:
    return lambda batch: timed(run, batch, torch.device("cpu"))[0]


def in_rounds(*contenders: Callable[[], float], rounds: int = ROUNDS) -> list[list[float]]:
    """Time contenders in interleaved rounds, after one that does not count: seconds of every round, for each."""
    taken = [[contender() for contender in contenders] for _ in range(rounds + 1)]
    return [list(times) for times in zip(*taken[1:], strict=True)]


def seconds(run: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def report(request: pytest.FixtureRequest, text: str) -> None:
    """Print a ratio past pytest's capturing, as the README promises."""
    manager = request.config.pluginmanager.getplugin("capturemanager")
    with manager.global_and_fixture_disabled():
        print(f"\n{text}")
