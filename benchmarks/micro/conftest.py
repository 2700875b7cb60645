"""Fixtures and clocks of the micro benchmarks: real models with untrained exits, and real sentences."""

import time
from collections.abc import Callable, Sequence
from statistics import median

import pytest

from benchmarks.tasks.loader import load_classification_task
from consistentee.data.encoding import Encoding
from consistentee.data.instances import TaskData
from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
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


def smollm2(**options: object) -> MultiExitDecoder:
    """Return smollm2-135m with untrained exits and no token that ends a text; skip the test where it is missing."""
    try:
        decoder = MultiExitDecoder.from_backbone("smollm2-135m", **options).eval()
    except UserError as error:
        pytest.skip(str(error))
    decoder.backbone.generation_config.eos_token_id = decoder.stepper.vocabulary
    return decoder


def batches_of(rows: Sequence[Encoding], batch_size: int) -> list[Sequence[Encoding]]:
    """Divide rows into batches, in order."""
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def in_rounds(*contenders: Callable[[], float], rounds: int = ROUNDS) -> list[list[float]]:
    """Time contenders in interleaved rounds, after one that does not count: seconds of every round, for each."""
    taken = [[contender() for contender in contenders] for _ in range(rounds + 1)]
    return [list(times) for times in zip(*taken[1:], strict=True)]


def ratio_of_rounds(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median of the ratios within rounds."""
    return median(one / other for one, other in zip(above, below, strict=True))


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
