"""The engine's overhead as ratios: never-exit and a sweep against the stock model, real against allowed speed-up."""

from collections.abc import Callable

import pytest
import torch
from conftest import batches_of, in_rounds, ratio_of_rounds, report, seconds
from numpy.random import default_rng

from baselines.references import RandomRule, StaticRule
from benchmarks.tasks.loader import load_classification_task
from consistentee.data.encoding import Encoding
from consistentee.engine.classify import classify_encoded, stock_encoded
from consistentee.errors import UserError
from consistentee.rules.exit_rule import ExitRule, NeverExit, ThresholdRule
from consistentee.signals import entropy
from consistentee.traces.instance_trace import record_trace
from consistentee.traces.walk import sweep

ROWS = 192
AT_LEAST = {1: 0.90, 8: 0.85, 32: 0.85}
AT_LEAST_IN_FLIGHT = {"of the data": 0.95, "of their length": 0.85}
"""Sorted rows: those left at a later layer differ more in length, and fill batches with more padding."""


def classified(model, batches, rule: ExitRule) -> float:
    """Return the seconds of classifying batches by a rule."""
    return seconds(lambda: [classify_encoded(model, batch, rule, batch_size=len(batch)) for batch in batches])


@pytest.mark.parametrize("batch_size", [1, 32])
def test_never_exit_costs_what_the_stock_model_costs(request, model, task, batch_size):
    """Stepping through all layers takes at most 1.03 times as long as the stock model's own forward."""
    batches = batches_of(model.tokenize(task.test.texts[:ROWS]), batch_size)
    stock, never = in_rounds(
        lambda: seconds(lambda: [stock_encoded(model, batch, batch_size=len(batch)) for batch in batches]),
        lambda: classified(model, batches, NeverExit()),
    )
    ratio = ratio_of_rounds(never, stock)
    report(request, f"never-exit / stock, batch {batch_size}: {ratio:.3f} (at most 1.03)")
    assert ratio <= 1.03


def real_to_allowed(model, batches, rule: ExitRule, *ways: Callable[[], float]) -> tuple[float, list[float]]:
    """Time ways of running a rule, and return its layers on average and real / allowed speed-up of each way.

    Allowed time: embedding, one layer and a classifier, plus what each further layer costs times the layers run.
    """
    exits = [classify_encoded(model, batch, rule, batch_size=len(batch)).exit_layers for batch in batches]
    average = torch.cat(exits).double().mean().item()
    ends = [lambda layer=layer: classified(model, batches, StaticRule(layer)) for layer in (1, model.num_layers)]
    first, last, *real = in_rounds(*ends, *ways)
    share = (average - 1) / (model.num_layers - 1)
    allowed = [one + share * (deepest - one) for one, deepest in zip(first, last, strict=True)]
    return average, [ratio_of_rounds(allowed, seconds) for seconds in real]


@pytest.mark.parametrize("batch_size", sorted(AT_LEAST))
def test_real_speed_up_is_what_the_layers_allow(request, model, task, batch_size):
    """With exits at random layers, time falls nearly as much as the layers that run."""
    rows = model.tokenize(task.test.texts[:ROWS])
    batches, mixed = batches_of(rows, batch_size), RandomRule((model.num_layers + 1) / 2, seed=0)
    average, (ratio,) = real_to_allowed(model, batches, mixed, lambda: classified(model, batches, mixed))
    report(
        request,
        f"real / allowed speed-up, batch {batch_size}, {average:.2f} of {model.num_layers} layers: "
        f"{ratio:.3f} (at least {AT_LEAST[batch_size]})",
    )
    assert ratio >= AT_LEAST[batch_size]


def synthetic(model) -> list[Encoding]:
    """Return rows of 4 to 32 random tokens: time does not tell them from others."""
    numbers, vocabulary = default_rng(0), len(model.tokenizer)
    lengths = numbers.integers(4, 33, ROWS).tolist()
    return [Encoding(numbers.integers(1000, vocabulary, n).tolist(), [0] * n) for n in lengths]


def intents(model) -> list[Encoding]:
    """Return 300 titles of StackOverflow: of the tasks that come with the project, the one with most classes, 20."""
    try:
        task = load_classification_task("stackoverflow")
    except UserError as error:
        pytest.skip(str(error))
    return model.tokenize(task.test.texts[:300])


@pytest.mark.parametrize("batch_size", [8, 32])
@pytest.mark.parametrize("rows_of", [synthetic, intents])
@pytest.mark.parametrize("order", ["of the data", "of their length"])
def test_regrouped_rows_are_as_fast_as_their_layers_allow(request, model, rows_of, batch_size, order):
    """Rows in the order of the data also gain from batches of similar length, which those in step do not have."""
    rows = rows_of(model)
    rows = rows if order == "of the data" else sorted(rows, key=len)
    batches, mixed = batches_of(rows, batch_size), RandomRule((model.num_layers + 1) / 2, seed=0)
    flight = {"batch_size": batch_size, "in_flight": 8 * batch_size}
    average, (in_step, in_flight) = real_to_allowed(
        model,
        batches,
        mixed,
        lambda: classified(model, batches, mixed),
        lambda: seconds(lambda: classify_encoded(model, rows, mixed, **flight)),
    )
    where = f"{rows_of.__name__}, {len(rows)} rows in the order {order}, batch {batch_size}, {average:.2f} layers"
    wanted = AT_LEAST_IN_FLIGHT[order]
    report(request, f"real / allowed, {where}: in step {in_step:.3f}, in flight {in_flight:.3f} (at least {wanted})")
    assert in_flight >= wanted


def test_a_hundred_thresholds_cost_little_more_than_one_evaluation(request, model, task):
    """One pass and the replay of all thresholds take at most 1.2 times as long as one evaluation."""
    rules = [ThresholdRule(entropy, threshold, "below") for threshold in torch.linspace(0.8, 0, 100).tolist()]
    encodings = model.tokenize(task.test.texts)
    evaluated, swept = in_rounds(
        lambda: seconds(lambda: stock_encoded(model, encodings, batch_size=64, sort_by_length=True)),
        lambda: seconds(lambda: sweep(rules, record_trace(model, task.test, batch_size=64))),
        rounds=3,
    )
    ratio = ratio_of_rounds(swept, evaluated)
    report(request, f"trace and sweep of 100 thresholds / one full-depth evaluation: {ratio:.3f} (at most 1.2)")
    assert ratio <= 1.2
