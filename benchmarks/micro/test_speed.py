"""The engine's overhead as ratios on real models with untrained exits: each is printed, and has a bound."""

import time
from collections.abc import Callable, Sequence
from statistics import median

import pytest
import torch
from numpy.random import default_rng

from baselines.references import RandomRule
from benchmarks.measure.clock import stock_times
from benchmarks.tasks.loader import load_classification_task
from consistentee.data.encoding import Encoding
from consistentee.data.instances import TaskData
from consistentee.engine.classify import classify_encoded, stock_encoded
from consistentee.engine.generate import generate_encoded
from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.rules.exit_rule import ExitRule, NeverExit, StaticRule

ROWS = 192
NEW_TOKENS = 32


@pytest.fixture(scope="session")
def task() -> TaskData:
    """Return movie snippets, a part of them."""
    return load_classification_task("movie-snippets").capped(train=2000, test=500)


@pytest.fixture(scope="session")
def model() -> MultiExitModel:
    """Return MiniLM with exits that were not trained."""
    return MultiExitModel.from_backbone("minilm-l6", num_labels=2)


@pytest.fixture
def report(request) -> Callable[[str], None]:
    """Print a ratio past pytest's capturing."""

    def show(text: str) -> None:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{text}")

    return show


def seconds(run: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_rounds(*contenders: Callable[[], float], rounds: int = 7) -> list[list[float]]:
    """Time contenders in interleaved rounds, after one that does not count: seconds of every round, for each."""
    taken = [[contender() for contender in contenders] for _ in range(rounds + 1)]
    return [list(times) for times in zip(*taken[1:], strict=True)]


def ratio_of(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median of the ratios within rounds."""
    return median(one / other for one, other in zip(above, below, strict=True))


def batches_of(rows: Sequence[Encoding], batch_size: int) -> list[Sequence[Encoding]]:
    """Cut rows into batches in their order."""
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def classified(model, batches, rule: ExitRule) -> float:
    """Time the answers to batches with exits."""
    return seconds(lambda: [classify_encoded(model, batch, rule, batch_size=len(batch)) for batch in batches])


@pytest.mark.parametrize("batch_size", [1, 32])
def test_never_exit_costs_what_the_stock_model_costs(report, model, task, batch_size):
    batches = batches_of(model.tokenize(task.test.texts[:ROWS]), batch_size)
    stock, never = in_rounds(
        lambda: seconds(lambda: [stock_encoded(model, batch, batch_size=len(batch)) for batch in batches]),
        lambda: classified(model, batches, NeverExit()),
    )
    ratio = ratio_of(never, stock)
    report(f"never-exit / stock, batch {batch_size}: {ratio:.3f} (at most 1.03)")
    assert ratio <= 1.03


def real_to_allowed(model, rows, batch_size: int) -> tuple[float, float, float]:
    """Return the layers on average at random exits, and real / allowed speed-up in step and in flight.

    Allowed time: embedding, one layer and a classifier, plus what each further layer costs times the layers run.
    """
    batches, mixed = batches_of(rows, batch_size), RandomRule((model.num_layers + 1) / 2, seed=0)
    exits = [classify_encoded(model, batch, mixed, batch_size=len(batch)).exit_layers for batch in batches]
    average = torch.cat(exits).double().mean().item()
    flight = {"batch_size": batch_size, "in_flight": 8 * batch_size}
    first, last, *real = in_rounds(
        *(lambda layer=layer: classified(model, batches, StaticRule(layer)) for layer in (1, model.num_layers)),
        lambda: classified(model, batches, mixed),
        lambda: seconds(lambda: classify_encoded(model, rows, mixed, **flight)),
    )
    share = (average - 1) / (model.num_layers - 1)
    allowed = [one + share * (deepest - one) for one, deepest in zip(first, last, strict=True)]
    in_step, in_flight = (ratio_of(allowed, times) for times in real)
    return average, in_step, in_flight


@pytest.mark.parametrize("batch_size", [8, 32])
@pytest.mark.parametrize(("order", "wanted"), [("of the data", 0.95), ("of their length", 0.85)])
def test_regrouped_rows_are_as_fast_as_their_layers_allow(report, model, batch_size, order, *, wanted):
    """Rows in the order of the data also gain from batches of similar length, which those in step do not have."""
    numbers = default_rng(0)
    lengths = numbers.integers(4, 33, ROWS).tolist()  # random tokens: time does not tell them from others
    lengths = lengths if order == "of the data" else sorted(lengths)
    rows = [Encoding(numbers.integers(1000, len(model.tokenizer), n).tolist(), [0] * n) for n in lengths]
    average, in_step, in_flight = real_to_allowed(model, rows, batch_size)
    where = f"{ROWS} rows in the order {order}, batch {batch_size}, {average:.2f} layers"
    report(f"real / allowed, {where}: in step {in_step:.3f}, in flight {in_flight:.3f} (at least {wanted})")
    assert in_flight >= wanted


@pytest.mark.parametrize(("batch_size", "rounds"), [(1, 21), (8, 7)])
def test_never_exit_decodes_as_fast_as_stock_generate(report, task, batch_size, rounds):
    """Both write as many tokens; a single row takes a second, so that its ratio needs more rounds."""
    try:
        decoder = MultiExitDecoder.from_backbone("smollm2-135m").eval()
    except UserError as error:
        pytest.skip(str(error))
    decoder.backbone.generation_config.eos_token_id = decoder.stepper.vocabulary  # no token ends a text
    joined = [" ".join(task.test.texts[6 * i : 6 * i + 1 + i % 6]) for i in range(3, 3 + batch_size)]
    rows = decoder.encode(joined, max_tokens=128)
    options = {"max_new_tokens": NEW_TOKENS, "batch_size": batch_size, "end_at_eos": False}
    stock, never = in_rounds(
        lambda: stock_times(decoder, rows, NEW_TOKENS).seconds,
        lambda: generate_encoded(decoder, rows, NeverExit(), **options).decode_seconds,
        rounds=rounds,
    )
    ratio = ratio_of(stock, never)
    report(f"never-exit / stock generate, tokens a second, batch {batch_size}: {ratio:.3f} (at least 1.0)")
    assert ratio >= 1.0
