"""Times of the engine's parts, on tiny models of every family and, marked real, on MiniLM and SmolLM2.

No time has a bound here: `tox -e micro` compares them with those that were kept for the same kind of processor.
"""

from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import torch
from numpy.random import default_rng

import consistentee as ee
from baselines.references import RandomRule
from benchmarks.analysis.frames import load_folders
from benchmarks.analysis.rendering import formatted
from benchmarks.analysis.tables import tables_of
from benchmarks.testing.tiny import FAMILIES, random_texts
from consistentee.data.tasks import Split
from consistentee.engine.classify import classify_encoded
from consistentee.engine.generate import generate_encoded
from consistentee.engine.transcript import clock
from consistentee.models.base import chosen_device
from consistentee.signals import entropy
from consistentee.training import TokenSource, train_jointly

ROWS = {1: 16, 8: 64, 32: 128}  # of classification, by batch size
STEPS = 16
RESULTS = Path(__file__).parents[2] / "results"

REAL_ENCODER = pytest.param("minilm-l6", marks=pytest.mark.real)
REAL_DECODER = pytest.param("smollm2-135m", marks=pytest.mark.real)
on_two_encoders = pytest.mark.parametrize("encoder", ["bert", REAL_ENCODER], indirect=True)

pytestmark = pytest.mark.benchmark(timer=partial(clock, chosen_device()))


@pytest.mark.parametrize("in_flight", [False, True], ids=["in step", "in flight"])
@pytest.mark.parametrize("batch_size", ROWS)
@pytest.mark.parametrize("encoder", [*FAMILIES, REAL_ENCODER], indirect=True)
def test_classify(benchmark, encoder, rows_of, batch_size, *, in_flight):
    """Classify rows, sorted by their length, that exit at random layers."""
    rows, rule = rows_of(encoder, ROWS[batch_size]), RandomRule((encoder.num_layers + 1) / 2, seed=0)
    expected = classify_encoded(encoder, rows, rule, batch_size=len(rows)).exit_layers
    options = {"batch_size": batch_size, "in_flight": 8 * batch_size if in_flight else None, "sort_by_length": True}
    found = benchmark(classify_encoded, encoder, rows, rule, **options)
    assert torch.equal(found.exit_layers, expected)


@on_two_encoders
def test_sweep_of_a_hundred_thresholds(benchmark, encoder):
    """Record a trace and replay a hundred rules on it; before the first threshold all rows exit, at the last none."""
    split = Split("test", random_texts(64), [0] * 64)
    rules = [ee.ThresholdRule(entropy, threshold, "below") for threshold in torch.linspace(2, 0, 100).tolist()]
    exits = benchmark(lambda: ee.sweep(rules, ee.record_trace(encoder, split)))
    assert exits[0].eq(1).all()
    assert exits[-1].eq(encoder.num_layers).all()


class StepTimer:
    """A timer of pytest-benchmark that advances by the engine's own seconds of a decoding step, without the prompts."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


step_timer = StepTimer()


@pytest.mark.benchmark(timer=step_timer)
@pytest.mark.parametrize("early", [False, True], ids=["never exit", "random exits"])
@pytest.mark.parametrize("batch_size", [1, 8, 32])
@pytest.mark.parametrize("decoder", ["llama", REAL_DECODER], indirect=True)
def test_decoding_step(benchmark, decoder, batch_size, *, early):
    """Decode some tokens behind prompts that were read before, and take the mean time of a step."""
    numbers = default_rng(0)
    lengths = numbers.integers(4, 33, batch_size).tolist()
    rows = [numbers.integers(4, decoder.stepper.vocabulary, length).tolist() for length in lengths]
    half = RandomRule(decoder.num_layers / 2, 0, decoder.exit_layers)
    options = {"max_new_tokens": STEPS + 1, "batch_size": batch_size, "end_at_eos": False, "read": ee.ReadPrompts()}

    def decode() -> ee.Generations:
        found = generate_encoded(decoder, rows, half if early else ee.NeverExit(), **options)
        step_timer.seconds += found.decode_seconds / STEPS
        return found

    found = benchmark.pedantic(decode, rounds=7, warmup_rounds=1)
    layers = torch.stack(found.exit_layers)[:, 1:]
    assert layers.shape == (batch_size, STEPS)
    assert layers.eq(decoder.num_layers).all().item() is not early


@on_two_encoders
def test_training_step(benchmark, encoder, rows_of):
    """Train backbone and all exits for one step of 32 rows, the optimiser's first."""
    model, rows = deepcopy(encoder), rows_of(encoder, 32)
    labels = torch.arange(len(rows)) % model.num_labels
    recipe = ee.Recipe(epochs=1, batch_size=32, warmup_ratio=0)
    benchmark.pedantic(train_jointly, (model, TokenSource(model, rows, labels), recipe), rounds=10, warmup_rounds=2)
    assert not torch.equal(model.classifiers[0].weight, encoder.classifiers[0].weight)


@on_two_encoders
def test_loading_a_saved_model(benchmark, encoder, rows_of, tmp_path):
    """Load weights, rule and knob of a saved model."""
    ee.get_method("calm-softmax").save(encoder, 0.9, tmp_path / "model")
    loaded, _, knob = benchmark(ee.load, tmp_path / "model")
    rows = rows_of(encoder, 4)
    answers = [classify_encoded(model, rows, ee.NeverExit(), batch_size=4).logits for model in (encoder, loaded)]
    assert torch.equal(*answers)
    assert knob == 0.9


@pytest.mark.parametrize("suite", ["quick", pytest.param("cpu-6-layers", marks=pytest.mark.slow)])
def test_tables_of_published_results(benchmark, suite):
    """Make the tables of `consistentee table`."""
    text = benchmark(lambda: formatted(tables_of(load_folders([RESULTS / suite])), "md"))
    assert "| deebert |" in text
