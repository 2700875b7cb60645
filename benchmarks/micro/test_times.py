"""Times of the engine's parts, on tiny models of every family and, marked real, on MiniLM and SmolLM2.

Times have no bound: `tox -e micro` compares them with those that were kept for the same kind of processor. The
engine's overhead on real models, with untrained exits, has one: it is printed as a ratio within rounds, and kept
beside the time of the last call in a round.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from numpy.random import default_rng
from pytest_benchmark.fixture import BenchmarkFixture

import consistentee as ee
from baselines.references import RandomRule
from benchmarks.analysis.frames import load_folders
from benchmarks.analysis.rendering import formatted
from benchmarks.analysis.tables import tables_of
from benchmarks.measure.clock import stock_times
from benchmarks.tasks.loader import load_classification_task
from benchmarks.testing.tiny import FAMILIES, random_texts
from consistentee.data.encoding import Encoding
from consistentee.data.tasks import Split, TaskData
from consistentee.engine.classify import classify_encoded, stock_encoded
from consistentee.engine.generate import generate_encoded
from consistentee.engine.transcript import clock
from consistentee.models.base import chosen_device
from consistentee.signals import entropy
from consistentee.training import TokenSource, train_jointly

ROWS = {1: 16, 8: 64, 32: 128}  # of classification, by batch size
STEPS = 16
REAL_ROWS = 192
NEW_TOKENS = 32
AT_LEAST = {"of the data": 0.95, "of their length": 0.85}  # real / allowed in flight, by the order of the rows
ROUNDS = {1: 21, 8: 7, 32: 3}  # by batch size: a single row takes a second, so that its ratio needs more rounds
RESULTS = Path(__file__).parents[2] / "results"

REAL_ENCODER = pytest.param("minilm-l6", marks=pytest.mark.real)
REAL_DECODER = pytest.param("smollm2-135m", marks=pytest.mark.real)
on_minilm = pytest.mark.parametrize("encoder", [REAL_ENCODER], indirect=True)
on_smollm2 = pytest.mark.parametrize("decoder", [REAL_DECODER], indirect=True)
on_two_encoders = pytest.mark.parametrize("encoder", ["bert", REAL_ENCODER], indirect=True)

pytestmark = pytest.mark.benchmark(timer=partial(clock, chosen_device()))


def rows_of(model: ee.MultiExitModel, count: int) -> list[Encoding]:
    """Draw rows of 4 to 32 random tokens, which take as long as real ones."""
    numbers, has_types = default_rng(0), "token_type_ids" in model.tokenizer.model_input_names
    lengths = numbers.integers(4, 33, count).tolist()
    tokens = [numbers.integers(4, len(model.tokenizer), length).tolist() for length in lengths]
    return [Encoding(row, [0] * len(row) if has_types else None) for row in tokens]


@pytest.mark.parametrize("in_flight", [False, True], ids=["in step", "in flight"])
@pytest.mark.parametrize("batch_size", ROWS)
@pytest.mark.parametrize("encoder", [*FAMILIES, REAL_ENCODER], indirect=True)
def test_classify(benchmark: BenchmarkFixture, encoder: ee.MultiExitModel, batch_size: int, *, in_flight: bool) -> None:
    """Classify rows, sorted by their length, that exit at random layers."""
    rows, rule = rows_of(encoder, ROWS[batch_size]), RandomRule((encoder.num_layers + 1) / 2, seed=0)
    expected = classify_encoded(encoder, rows, rule, batch_size=len(rows)).exit_layers
    options = {"batch_size": batch_size, "in_flight": 8 * batch_size if in_flight else None, "sort_by_length": True}
    found = benchmark(classify_encoded, encoder, rows, rule, **options)
    assert torch.equal(found.exit_layers, expected)


@on_two_encoders
def test_sweep_of_a_hundred_thresholds(benchmark: BenchmarkFixture, encoder: ee.MultiExitModel) -> None:
    """Record a trace and replay a hundred rules on it; before the first threshold all rows exit, at the last none."""
    split = Split("test", random_texts(64), [0] * 64)
    rules = [ee.ThresholdRule(entropy, threshold, "below") for threshold in torch.linspace(2, 0, 100).tolist()]
    exits = benchmark(lambda: ee.sweep(rules, ee.record_trace(encoder, split)))
    assert exits[0].eq(1).all()
    assert exits[-1].eq(encoder.num_layers).all()


step_seconds = [0.0]
"""The engine's own seconds of decoding steps, without the prompts: their sum is a clock of pytest-benchmark."""


class RandomExits(ee.ExitRule):
    """Exit at one of the exits before layer L, drawn for each token: of evenly spaced exits, half depth on average."""

    def exit_in_advance(self, exit_layers: Sequence[int], step: int, prompt_key: int) -> int:
        return exit_layers[ee.token_key(prompt_key, step) % (len(exit_layers) - 1)]


@pytest.mark.benchmark(timer=lambda: sum(step_seconds))
@pytest.mark.parametrize("early", [False, True], ids=["never exit", "random exits"])
@pytest.mark.parametrize("batch_size", [1, 8, 32])
@pytest.mark.parametrize("decoder", ["llama", REAL_DECODER], indirect=True)
def test_decoding_step(
    benchmark: BenchmarkFixture, decoder: ee.MultiExitDecoder, batch_size: int, *, early: bool
) -> None:
    """Decode some tokens behind prompts that were read before, and take the mean time of a step."""
    numbers = default_rng(0)
    lengths = numbers.integers(4, 33, batch_size).tolist()
    rows = [numbers.integers(4, decoder.stepper.vocabulary, length).tolist() for length in lengths]
    options: dict[str, Any] = {
        "max_new_tokens": STEPS + 1,
        "batch_size": batch_size,
        "end_at_eos": False,
        "read": ee.ReadPrompts(),
    }

    def decode() -> ee.Generations:
        found = generate_encoded(decoder, rows, RandomExits() if early else ee.NeverExit(), **options)
        step_seconds.append(found.decode_seconds / STEPS)
        return found

    found = benchmark.pedantic(decode, rounds=7, warmup_rounds=1)
    layers = torch.stack(found.exit_layers)[:, 1:]
    assert layers.shape == (batch_size, STEPS)
    assert layers.eq(decoder.num_layers).all().item() is not early


@on_two_encoders
def test_training_step(benchmark: BenchmarkFixture, encoder: ee.MultiExitModel) -> None:
    """Train backbone and all exits for one step of 32 rows, the optimiser's first."""
    model, rows = deepcopy(encoder), rows_of(encoder, 32)
    labels = torch.arange(len(rows)) % model.num_labels
    recipe = ee.Recipe(epochs=1, batch_size=32, warmup_ratio=0)
    benchmark.pedantic(train_jointly, (model, TokenSource(model, rows, labels), recipe), rounds=10, warmup_rounds=2)
    trained, untrained = (next(one.classifiers.parameters()) for one in (model, encoder))
    assert not torch.equal(trained, untrained)


@on_two_encoders
def test_loading_a_saved_model(benchmark: BenchmarkFixture, encoder: ee.MultiExitModel, tmp_path: Path) -> None:
    """Load weights, rule and knob of a saved model."""
    ee.get_method("calm-softmax").save(encoder, 0.9, tmp_path / "model")
    loaded, _, knob = benchmark(ee.load, tmp_path / "model")
    rows = rows_of(encoder, 4)
    answers = [classify_encoded(model, rows, ee.NeverExit(), batch_size=4).logits for model in (encoder, loaded)]
    assert torch.equal(*answers)
    assert knob == 0.9


@pytest.mark.parametrize("suite", ["quick", pytest.param("cpu-6-layers-float32", marks=pytest.mark.slow)])
def test_tables_of_published_results(benchmark: BenchmarkFixture, suite: str) -> None:
    """Make the tables of `consistentee table`."""
    text = benchmark(lambda: formatted(tables_of(load_folders([RESULTS / suite])), "md"))
    assert "| deebert |" in text


@pytest.fixture(scope="session")
def task() -> TaskData:
    """Load the rows of the task that a package brings."""
    return load_classification_task("movie-snippets").capped(train=2000, test=500)


def in_rounds(
    benchmark: BenchmarkFixture, call: Callable[[], float | None], *others: Callable[[], float | None], rounds: int = 7
) -> list[list[float]]:
    """Time a call by pytest-benchmark, and others before it in every round. A first round is not counted.

    A call returns its seconds; if it returns nothing, they are measured. The result has the seconds of the others and,
    last, of the call: [calls][rounds].
    """
    taken: list[list[float]] = []

    def timed(call: Callable[[], float | None]) -> float:
        start = clock(chosen_device())
        found = call()
        return clock(chosen_device()) - start if found is None else found

    benchmark.pedantic(
        lambda: taken[-1].append(timed(call)),
        setup=lambda: taken.append([timed(other) for other in others]),
        rounds=rounds,
        warmup_rounds=1,
    )
    return [list(seconds) for seconds in zip(*taken[1:], strict=True)]


def report_ratio(
    benchmark: BenchmarkFixture,
    name: str,
    above: Sequence[float],
    below: Sequence[float],
    *,
    at_least: float = 0,
    at_most: float = float("inf"),
) -> None:
    """Print and keep the median, over rounds, of the ratio of two calls' seconds, and check its bounds, if any."""
    ratio = benchmark.extra_info[name] = median(one / other for one, other in zip(above, below, strict=True))
    print(f"\n{name}: {ratio:.3f} (wanted: {at_least} to {at_most})")
    assert at_least <= ratio <= at_most


def batches_of(
    run: Callable[..., object], model: ee.MultiExitModel, rows: Sequence[Encoding], batch_size: int, *rule: ee.ExitRule
) -> Callable[[], None]:
    """Return a call that runs over rows in batches, in their order."""
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]

    def call() -> None:
        for batch in batches:
            run(model, batch, *rule, batch_size=len(batch))

    return call


@on_minilm
@pytest.mark.parametrize("batch_size", [1, 32])
def test_never_exit_costs_what_the_stock_model_costs(
    benchmark: BenchmarkFixture, encoder: ee.MultiExitModel, task: TaskData, batch_size: int
) -> None:
    """Classify at full depth by the engine and by the stock model."""
    rows = encoder.tokenize(task.test.texts[:REAL_ROWS])
    stock, never = in_rounds(
        benchmark,
        batches_of(classify_encoded, encoder, rows, batch_size, ee.NeverExit()),
        batches_of(stock_encoded, encoder, rows, batch_size),
    )
    report_ratio(benchmark, f"never-exit / stock, batch {batch_size}", never, stock, at_most=1.03)


@on_minilm
@pytest.mark.parametrize("batch_size", [8, 32])
@pytest.mark.parametrize("order", AT_LEAST)
def test_regrouped_rows_are_as_fast_as_layers_allow(
    benchmark: BenchmarkFixture, encoder: ee.MultiExitModel, batch_size: int, order: str
) -> None:
    """Rows in the order of the data also gain from batches of similar length, which those in step do not have.

    Allowed time: embedding, one layer and a classifier, plus what each further layer costs times the layers run.
    """
    rows = rows_of(encoder, REAL_ROWS)
    rows = rows if order == "of the data" else sorted(rows, key=len)
    mixed = RandomRule((encoder.num_layers + 1) / 2, seed=0)
    exits = classify_encoded(encoder, rows, mixed, batch_size=REAL_ROWS).exit_layers
    share = (exits.double().mean().item() - 1) / (encoder.num_layers - 1)
    flight: dict[str, Any] = {"batch_size": batch_size, "in_flight": 8 * batch_size}

    def regrouped() -> None:
        assert torch.equal(classify_encoded(encoder, rows, mixed, **flight).exit_layers, exits)

    of_first, of_last = (ee.StaticRule(layer) for layer in (1, encoder.num_layers))
    steps = (batches_of(classify_encoded, encoder, rows, batch_size, rule) for rule in (of_first, of_last, mixed))
    first, last, in_step, in_flight = in_rounds(benchmark, regrouped, *steps, rounds=5)
    allowed = [one + share * (deepest - one) for one, deepest in zip(first, last, strict=True)]
    where = f"real / allowed, {REAL_ROWS} rows in the order {order}, batch {batch_size}"
    report_ratio(benchmark, f"{where}, in step", allowed, in_step)
    report_ratio(benchmark, f"{where}, in flight", allowed, in_flight, at_least=AT_LEAST[order])


@on_smollm2
@pytest.mark.parametrize("batch_size", ROUNDS)
def test_never_exit_decodes_as_fast_as_stock_generate(
    benchmark: BenchmarkFixture, decoder: ee.MultiExitDecoder, task: TaskData, batch_size: int
) -> None:
    """Decode at full depth by the engine and by transformers' generate."""
    joined = [" ".join(map(str, task.test.texts[6 * i : 6 * i + 1 + i % 6])) for i in range(3, 3 + batch_size)]
    rows = decoder.encode(joined, max_tokens=128)
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "batch_size": batch_size, "end_at_eos": False}
    stock, never = in_rounds(
        benchmark,
        lambda: generate_encoded(decoder, rows, ee.NeverExit(), **options).decode_seconds,
        lambda: stock_times(decoder, rows, NEW_TOKENS).seconds,
        rounds=ROUNDS[batch_size],
    )
    name = f"never-exit / stock generate, tokens a second, batch {batch_size}"
    report_ratio(benchmark, name, stock, never, at_least=1.0)
