"""ConsistentEE: its policy, its stages, its options."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import make_task

from consistentee.methods.consistent_ee import instances as consistent_ee
from consistentee.methods.consistent_ee.instances import ConsistentEE
from consistentee.methods.policy import (
    POLICY,
    PolicyRule,
    confidence_features,
    exit_probabilities,
    policy_logit,
    policy_spec,
)
from consistentee.traces.instance_trace import record_outputs, record_trace
from consistentee.traces.walk import replay
from consistentee.training import stages
from consistentee.training.recipe import Recipe

RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=32, frozen_steps=4)
METHOD = ConsistentEE(joint_epochs=1)


def weights(model, prefix):
    return {name: t.clone() for name, t in model.state_dict().items() if name.startswith(prefix)}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_papers_policy_has_the_papers_shape(tiny_model):
    model = tiny_model()
    head = model.add_head(POLICY, policy_spec("state", conditioned=False))
    first, _, last = head.modules_by_layer[0]
    assert len(head.modules_by_layer) == model.num_layers
    assert (first.in_features, first.out_features, last.in_features, last.out_features) == (model.width, 32, 32, 1)
    assert last.bias.item() == pytest.approx(-1.5), "a policy starts from low exit probabilities"


def test_confidence_features_by_hand():
    probs = torch.tensor([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    features = confidence_features(probs, torch.tensor([0, 0]), previous=torch.tensor([0, 2]))
    torch.testing.assert_close(features[0, :2], torch.tensor([0.7, 0.5]))
    torch.testing.assert_close(features[1, 1:3], torch.tensor([0.0, 1.0]))
    assert features[:, 3].tolist() == [1.0, 0.0]
    assert confidence_features(probs, torch.tensor([0, 0]), None)[:, 3].tolist() == [0.0, 0.0]
    of_candidates = confidence_features(probs, torch.tensor([40_000, 7]), previous=torch.tensor([40_000, 0]))
    assert of_candidates[:, 3].tolist() == [1.0, 0.0], "tokens agree, and not places among the candidates"


def test_a_higher_price_never_lowers_the_exit_probability():
    output = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * 5
    logits = torch.stack([policy_logit(output, log_alpha) for log_alpha in (-9.0, -3.0, 0.0, 2.0)])
    assert (logits[1:] >= logits[:-1]).all()


def test_no_price_never_exits_and_an_infinite_one_always():
    output = torch.tensor([[40.0, 3.0], [-40.0, -200.0], [0.0, 0.0]])  # the weight of the second underflows
    assert (policy_logit(output, -math.inf).sigmoid() == 0).all()
    assert (policy_logit(output, math.inf).sigmoid() == 1).all()


@pytest.mark.parametrize("reads", ["state", "state+confidence"])
def test_rule_follows_the_probabilities_that_were_trained(tiny_model, reads):
    """Training computes P(exit) for all layers at once, the rule layer by layer: they must be the same numbers."""
    model = tiny_model()
    head = model.add_head(POLICY, policy_spec(reads, conditioned=False))
    generator = torch.Generator().manual_seed(2)
    head.load_state_dict({n: torch.randn(t.shape, generator=generator) for n, t in head.state_dict().items()})
    task = make_task()
    trace = record_trace(model, task.test)
    outputs = record_outputs(model, model.tokenize(task.test.texts))
    with torch.no_grad():
        p = exit_probabilities(model.head(POLICY), outputs.pooled, outputs.logits, None)
    threshold = p[:, 0].median().item()  # half of the rows leave at layer 1
    wants_out = torch.cat([p[:, :-1] > threshold, torch.ones(len(p), 1, dtype=torch.bool)], dim=1)
    expected = wants_out.int().argmax(dim=1) + 1
    assert expected.unique().numel() > 1
    assert torch.equal(replay(PolicyRule(reads, threshold), trace), expected)


def test_policy_stage_trains_the_policy_alone(tiny_model):
    first = tiny_model()
    ConsistentEE(joint_epochs=0).fit(first, make_task(), replace(RECIPE, frozen_steps=0))
    second = tiny_model()
    ConsistentEE(joint_epochs=0).fit(second, make_task(), RECIPE)
    for prefix in ("backbone.", "classifiers.", "poolers."):
        assert same(weights(first, prefix), weights(second, prefix))
    assert not same(weights(first, "exit_heads."), weights(second, "exit_heads."))


def test_joint_epochs_are_what_is_asked(tiny_model, monkeypatch):
    run = []
    real = consistent_ee.run_stage

    def record(model, source, stage, recipe):
        run.append((stage.name, stage.epochs))
        real(model, source, stage, recipe)

    monkeypatch.setattr(consistent_ee, "run_stage", record)
    monkeypatch.setattr(stages, "run_stage", record)
    replace(METHOD, joint_epochs=3).fit(tiny_model(), make_task(), RECIPE)
    assert run == [("joint", 2), ("policy", 4), ("exit-consistent", 3), ("policy", 4)]


def test_cached_policy_stage_equals_the_stage_that_runs_the_backbone(tiny_model):
    models = []
    for cached in (True, False):
        model = tiny_model().double()  # two ways to compute a gradient differ by rounding, which Adam scales up
        replace(METHOD, cached=cached, joint_epochs=0, reward="vanilla").fit(model, make_task(), RECIPE)
        models.append(weights(model, "exit_heads."))
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "options",
    [{"estimator": "reinforce"}, {"reward": "vanilla"}, {"memorized_layer": "cross-fitted"}, {"policy_reads": "state"}],
    ids=str,
)
def test_every_option_trains(tiny_model, options):
    model = replace(METHOD, **options).fit(tiny_model(), make_task(), RECIPE)
    rule = replace(METHOD, **options).rule(model, 0.5)
    assert replay(rule, record_trace(model, make_task().test)).min() >= 1


PRICED = ConsistentEE(reward="vanilla", joint_epochs=0)
LONG = replace(RECIPE, frozen_steps=150, frozen_learning_rate=1e-2)


def test_a_higher_price_gives_earlier_exits(tiny_model):
    averages = []
    for alpha in (0.0, 5.0):
        method = replace(PRICED, alpha=alpha)
        model = method.fit(tiny_model(), make_task(), LONG)
        averages.append(replay(method.rule(model, 0.5), record_trace(model, make_task().test)).double().mean())
    assert averages[1] == 1
    assert averages[0] > 1.5


def test_without_cached_features_none_are_stored(tiny_model, tmp_path):
    method = ConsistentEE(cached=False)
    method.fit(tiny_model(), make_task(rows=12), replace(RECIPE, store=tmp_path, frozen_steps=2))
    assert not list(tmp_path.glob("outputs-*"))
