"""Stage 2 of ConsistentEE on cached features against the same stage that runs the backbone."""

import time
from dataclasses import replace

import pytest
from conftest import report

from consistentee.methods.consistent_ee import instances as consistent_ee
from consistentee.methods.consistent_ee.instances import ConsistentEE
from consistentee.training.recipe import Recipe

RECIPE = Recipe(epochs=1, max_length=64, frozen_steps=50)
METHOD = ConsistentEE(joint_epochs=0, reward="vanilla")


def test_cached_features_make_the_policy_stage_cheap(benchmark, request, model, task, monkeypatch: pytest.MonkeyPatch):
    """Making the cache counts on the cached side."""
    monkeypatch.setattr(consistent_ee, "train_jointly_on", lambda *_: None)
    small = task.capped(train=600)

    def seconds(cached: bool) -> float:
        start = time.perf_counter()
        replace(METHOD, cached=cached).fit(model, small, RECIPE)
        return time.perf_counter() - start

    with_cache = benchmark.pedantic(seconds, args=(True,), rounds=1)
    ratio = with_cache / seconds(False)
    benchmark.extra_info["cached / running the backbone"] = ratio
    report(request, f"policy stage on cached features / running the backbone: {ratio:.3f} (at most 0.1)")
    assert ratio <= 0.1
