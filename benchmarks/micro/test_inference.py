"""The engine's overhead as ratios: never-exit and a sweep against the stock model, real against allowed speed-up."""

import pytest
import torch
from conftest import batches_of, in_rounds, ratio_of_rounds, report, seconds

from baselines.references import RandomRule, StaticRule
from consistentee.engine.classify import classify_encoded, stock_encoded
from consistentee.rules.exit_rule import ExitRule, NeverExit, ThresholdRule
from consistentee.signals import entropy
from consistentee.traces.instance_trace import record_trace
from consistentee.traces.walk import sweep

ROWS = 192
AT_LEAST = {1: 0.90, 8: 0.85, 32: 0.85}


def classified(model, batches, rule: ExitRule) -> float:
    """Return the seconds of classifying batches by a rule."""
    return seconds(lambda: [classify_encoded(model, batch, rule, batch_size=len(batch)) for batch in batches])


@pytest.mark.parametrize("batch_size", [1, 32])
def test_never_exit_costs_what_the_stock_model_costs(benchmark, request, model, task, batch_size):
    batches = batches_of(model.tokenize(task.test.texts[:ROWS]), batch_size)
    stock, never = in_rounds(
        lambda: seconds(lambda: [stock_encoded(model, batch, batch_size=len(batch)) for batch in batches]),
        lambda: classified(model, batches, NeverExit()),
    )
    ratio = ratio_of_rounds(never, stock)
    benchmark.extra_info["never-exit / stock"] = ratio
    report(request, f"never-exit / stock, batch {batch_size}: {ratio:.3f} (at most 1.03)")
    benchmark.pedantic(classified, args=(model, batches[:1], NeverExit()), rounds=20, warmup_rounds=3)
    assert ratio <= 1.03


@pytest.mark.parametrize("batch_size", sorted(AT_LEAST))
def test_real_speed_up_is_what_the_layers_allow(benchmark, request, model, task, batch_size):
    """Allowed time: embedding, one layer and a classifier, plus what each further layer costs times the layers run."""
    rows = model.tokenize(task.test.texts[:ROWS])
    batches, mixed = batches_of(rows, batch_size), RandomRule((model.num_layers + 1) / 2, seed=0)
    average = classify_encoded(model, rows, mixed, batch_size=32).exit_layers.double().mean().item()
    contenders = [lambda rule=rule: classified(model, batches, rule) for rule in (StaticRule(1), StaticRule(99), mixed)]
    first, last, real = in_rounds(*contenders)
    share = (average - 1) / (model.num_layers - 1)
    ratio = ratio_of_rounds([one + share * (deepest - one) for one, deepest in zip(first, last, strict=True)], real)
    benchmark.extra_info["real / allowed speed-up"] = ratio
    report(
        request,
        f"real / allowed speed-up, batch {batch_size}, {average:.2f} of {model.num_layers} layers: "
        f"{ratio:.3f} (at least {AT_LEAST[batch_size]})",
    )
    benchmark.pedantic(classified, args=(model, batches[:1], mixed), rounds=20, warmup_rounds=3)
    assert ratio >= AT_LEAST[batch_size]


def test_a_hundred_thresholds_cost_little_more_than_one_evaluation(benchmark, request, model, task):
    rules = [ThresholdRule(entropy, threshold, "below") for threshold in torch.linspace(0.8, 0, 100).tolist()]
    encodings = model.tokenize(task.test.texts)
    evaluated, swept = in_rounds(
        lambda: seconds(lambda: stock_encoded(model, encodings, batch_size=64, sort_by_length=True)),
        lambda: seconds(lambda: sweep(rules, record_trace(model, task.test, batch_size=64))),
        rounds=3,
    )
    ratio = ratio_of_rounds(swept, evaluated)
    benchmark.extra_info["100 thresholds / one evaluation"] = ratio
    report(request, f"trace and sweep of 100 thresholds / one full-depth evaluation: {ratio:.3f} (at most 1.2)")
    trace = record_trace(model, task.test, batch_size=64)
    benchmark.pedantic(sweep, args=(rules, trace), rounds=5, warmup_rounds=1)
    assert ratio <= 1.2
