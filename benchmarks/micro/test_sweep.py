"""A sweep of 100 thresholds against one full-depth evaluation of the split."""

import time
from statistics import median

import torch
from conftest import report

from consistentee.engine.classify import stock_encoded
from consistentee.rules.exit_rule import ThresholdRule
from consistentee.rules.signals import entropy
from consistentee.traces.instance_trace import record_trace
from consistentee.traces.walk import sweep

ROUNDS = 3


def test_a_hundred_thresholds_cost_little_more_than_one_evaluation(benchmark, request, model, task):
    rules = [ThresholdRule(entropy, threshold, "below") for threshold in torch.linspace(0.8, 0, 100).tolist()]
    encodings = model.tokenize(task.test.texts)
    ratios = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        stock_encoded(model, encodings, batch_size=64, sort_by_length=True)
        evaluated = time.perf_counter()
        trace = record_trace(model, task.test, batch_size=64)
        sweep(rules, trace)
        ratios.append((time.perf_counter() - evaluated) / (evaluated - start))
    ratio = median(ratios)
    benchmark.extra_info["100 thresholds / one evaluation"] = ratio
    report(request, f"trace and sweep of 100 thresholds / one full-depth evaluation: {ratio:.3f} (at most 1.2)")
    benchmark.pedantic(sweep, args=(rules, trace), rounds=5, warmup_rounds=1)
    assert ratio <= 1.2
