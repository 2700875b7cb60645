"""Never-exit against the stock model, and real against allowed speed-up: the engine's overhead, as ratios."""

from statistics import median

import pytest
from conftest import Run, report, seconds_by_round

from baselines.references import RandomRule, StaticRule
from consistentee.engine.classify import classify_encoded, stock_encoded
from consistentee.rules.exit_rule import ExitRule, NeverExit

ROWS = 192
AT_LEAST = {1: 0.90, 8: 0.85, 32: 0.85}


def early_exit(model, rule: ExitRule) -> Run:
    """Return what runs a rule on tokenised rows, as a contender."""
    return lambda batch: classify_encoded(model, batch, rule, batch_size=len(batch))


@pytest.mark.parametrize("batch_size", [1, 32])
def test_never_exit_costs_what_the_stock_model_costs(benchmark, request, model, task, batch_size):
    rows = model.tokenize(task.test.texts[:ROWS])
    never = early_exit(model, NeverExit())
    contenders = {"stock": lambda batch: stock_encoded(model, batch, batch_size=len(batch)), "never exit": never}
    seconds = seconds_by_round(contenders, rows, batch_size)
    ratio = median(ours / theirs for ours, theirs in zip(seconds["never exit"], seconds["stock"], strict=True))
    benchmark.extra_info["never-exit / stock"] = ratio
    report(request, f"never-exit / stock, batch {batch_size}: {ratio:.3f} (at most 1.03)")
    benchmark.pedantic(never, args=(rows[:batch_size],), rounds=20, warmup_rounds=3)
    assert ratio <= 1.03


@pytest.mark.parametrize("batch_size", sorted(AT_LEAST))
def test_real_speed_up_is_what_the_layers_allow(benchmark, request, model, task, batch_size):
    """Allowed time: embedding, one layer and a classifier, plus what each further layer costs times the layers run."""
    rows = model.tokenize(task.test.texts[:ROWS])
    mixed_rule = RandomRule((model.num_layers + 1) / 2, seed=0)
    mixed = early_exit(model, mixed_rule)
    average = classify_encoded(model, rows, mixed_rule, batch_size=32).exit_layers.double().mean().item()
    shortest, deepest = (early_exit(model, StaticRule(layer)) for layer in (1, 99))
    seconds = seconds_by_round({"first": shortest, "last": deepest, "mixed": mixed}, rows, batch_size)
    ratios = []
    for first, last, real in zip(seconds["first"], seconds["last"], seconds["mixed"], strict=True):
        allowed = first + (average - 1) * (last - first) / (model.num_layers - 1)
        ratios.append(allowed / real)
    ratio = median(ratios)
    benchmark.extra_info["real / allowed speed-up"] = ratio
    report(
        request,
        f"real / allowed speed-up, batch {batch_size}, {average:.2f} of {model.num_layers} layers: "
        f"{ratio:.3f} (at least {AT_LEAST[batch_size]})",
    )
    benchmark.pedantic(mixed, args=(rows[:batch_size],), rounds=20, warmup_rounds=3)
    assert ratio >= AT_LEAST[batch_size]
