"""ConsistentEE on instances: reward, policy gradient, Memorized Layer; published values; held-out rows, prices."""

import importlib
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from documents import ROOT
from hypothesis import given, settings, strategies as st

from baselines.joint_distillation import JointDistillation, exit_shares, taught_loss
from benchmarks.testing.tiny import make_task
from consistentee import Recipe, UserError, get_method
from consistentee.methods.consistent_ee import held_out
from consistentee.methods.consistent_ee.held_out import ALWAYS, PricedPolicyRule, logit_at_price
from consistentee.methods.consistent_ee.paper import (
    NETWORK,
    THRESHOLDS,
    exact_policy_loss,
    memorized_layer,
    reinforce_policy_loss,
    rewards,
    sampled_exits,
    unseen_logits,
)
from consistentee.signals import confidence_features
from consistentee.training.encoder import FeatureBatch, exit_distribution, layer_losses, train_jointly, training_source


@pytest.mark.parametrize(
    ("alpha", "settings", "expected"),
    [
        (0.1, {}, [[-0.6, -0.4, -0.4], [-0.6, -0.4, -0.4]]),
        (torch.tensor([0.0, 1.0]), {}, [[-0.5, -0.2, -0.1], [-1.5, -2.2, -3.1]]),
        # An easy row (m=1 of 3) pays 2/3 of the price; a hard one (m=L) cares about the loss alone.
        (0.3, {"hardness": [1, 3]}, [[-0.7, -0.6, -0.7], [-0.5, -0.2, -0.1]]),
        # Exits at some layers pay for the layers they are at: half of the price for m = 4 of 8.
        (0.3, {"hardness": [4, 8], "layers": (2, 4, 8)}, [[-0.8, -0.8, -1.3], [-0.5, -0.2, -0.1]]),
    ],
    ids=["vanilla", "a price for each row", "hardness", "some layers"],
)
def test_rewards_by_hand(alpha, settings, expected):
    losses = torch.tensor([[0.5, 0.2, 0.1], [0.5, 0.2, 0.1]])
    hardness = torch.tensor(settings["hardness"]) if settings else None
    torch.testing.assert_close(rewards(losses, alpha, hardness, settings.get("layers")), torch.tensor(expected))


def gradient(loss_of, logits):
    logits = logits.clone().requires_grad_()
    loss_of(logits.sigmoid()).backward()
    return logits.grad


@settings(max_examples=2)
@given(st.integers(0, 1000), st.sampled_from([2, 8]))
def test_averaged_reinforce_gradient_approaches_the_exact_one(seed, rollouts):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    reward = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    exact = gradient(lambda p: exact_policy_loss(p, reward), logits)
    repeats = 10_000
    many_logits, many_rewards = logits.repeat(repeats, 1), reward.repeat(repeats, 1)
    torch.manual_seed(seed)
    sampled = gradient(lambda p: reinforce_policy_loss(p, many_rewards, rollouts), many_logits)
    per_repeat = sampled.view(repeats, 3, 4) * repeats
    # The baseline holds the rollout's own reward, which shrinks the expectation by exactly (K-1)/K.
    estimate = per_repeat.mean(dim=0) * rollouts / (rollouts - 1)
    standard_error = per_repeat.std(dim=0) * rollouts / (rollouts - 1) / repeats**0.5
    assert ((estimate - exact).abs() <= 5 * standard_error + 1e-9).all()
    assert exact[:, :-1].abs().max() > 5 * standard_error.max(), "the check must be able to fail"
    assert (sampled.view(repeats, 3, 4)[..., -1] == 0).all(), "no choice at the last layer, no gradient"


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=8))
def test_memorized_layer_is_the_first_from_which_on_all_are_right_or_the_last(rows):
    for row, found in zip(rows, memorized_layer(torch.tensor(rows)).tolist(), strict=True):
        candidates = [layer for layer in range(1, 6) if all(row[layer - 1 :])]
        assert found == (min(candidates) if candidates else 5)


RECIPE = Recipe(epochs=1, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=16, frozen_steps=4)


def test_confidence_features_by_hand():
    probs = torch.tensor([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    features = confidence_features(probs, torch.tensor([0, 0]), previous=torch.tensor([0, 2]))
    torch.testing.assert_close(features[0, :2], torch.tensor([0.7, 0.5]))
    torch.testing.assert_close(features[1, 1:3], torch.tensor([0.0, 1.0]))
    assert features[:, 3].tolist() == [1.0, 0.0]
    assert confidence_features(probs, torch.tensor([0, 0]), torch.tensor([-1, -1]))[:, 3].tolist() == [0.0, 0.0]
    of_candidates = confidence_features(probs, torch.tensor([40_000, 7]), previous=torch.tensor([40_000, 0]))
    assert of_candidates[:, 3].tolist() == [1.0, 0.0], "tokens agree, and not places among the candidates"


def test_no_price_never_exits_and_an_infinite_one_always():
    output = torch.tensor([[40.0, 3.0], [-40.0, -200.0], [0.0, 0.0]])  # the weight of the second underflows
    for price, p_exit in ((0.0, 0.0), (ALWAYS, 1.0)):
        assert (logit_at_price(output, PricedPolicyRule(price).log_price).sigmoid() == p_exit).all()


class TestJointDistillation:
    def test_shares_are_where_rows_exit(self):
        sure_early = torch.tensor([[9.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
        sure_late = torch.tensor([[0.1, 0.0], [0.1, 0.0], [8.0, 0.0], [1.0, 0.0]])
        torch.manual_seed(0)
        doubt = 1 - torch.stack([sure_early, sure_late]).softmax(dim=-1).amax(dim=-1)
        shares = torch.stack([exit_shares(doubt, 0.8) for _ in range(200)]).mean(dim=0)
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(2))
        assert (shares >= 0.2 / 4 - 1e-6).all(), "no exit forgets a row"
        assert shares.argmax(dim=1).tolist() == [0, 2]
        torch.testing.assert_close(exit_shares(doubt, 0.0), torch.full((2, 4), 0.25))

    def test_teacher_and_labels_share_the_loss(self, tiny_model):
        model, task = tiny_model(), make_task()
        batch = training_source(model, task, RECIPE).batch(torch.arange(6), 0)
        logits = model(batch.tokens).logits
        teacher = torch.full((6, logits.shape[-1]), 1 / logits.shape[-1]).log()

        def loss(share):
            return taught_loss(JointDistillation(at_exit=0.0, distilled=share), teacher, model, batch)

        divergence = (teacher.exp().unsqueeze(1) * (teacher.unsqueeze(1) - logits.log_softmax(dim=-1))).sum(dim=-1)
        torch.testing.assert_close(loss(0.0), layer_losses(logits, batch.labels).mean())
        torch.testing.assert_close(loss(1.0), divergence.mean())
        torch.testing.assert_close(loss(0.25), 0.75 * loss(0.0) + 0.25 * loss(1.0))


@pytest.mark.parametrize("policy_rows", ["validation", "training"])
def test_the_policy_of_held_out_learns_the_last_exits_answers_on_the_rows_it_is_given(
    tiny_model, monkeypatch, policy_rows
):
    task, noted = make_task(), []
    method = get_method("consistentee-held-out", policy_rows=policy_rows)
    monkeypatch.setattr(held_out, "train_policy", lambda model, source, recipe: noted.append(source))
    recipe = Recipe(epochs=1, frozen_steps=2, max_length=16)
    model = method.fit(tiny_model(num_labels=len(task.label_names)), task, recipe)
    texts = getattr(task, policy_rows if policy_rows == "validation" else "train").texts
    assert noted[0].encodings == model.tokenize(texts, 16)
    last = torch.stack([model(model.collate([row])).logits[0, -1].argmax() for row in noted[0].encodings])
    assert noted[0].labels.tolist() == last.tolist()


def test_the_published_policy_has_one_operating_point_and_other_rules_a_curve(tiny_model):
    model = tiny_model(num_labels=3)
    published, free, by_entropy = (
        get_method("consistentee-paper", leave_by=by) for by in ("policy", "threshold", "entropy")
    )
    assert (published.knob_values(model), published.refines_knob) == ((0.5,), False)
    assert (free.knob_values(model), free.refines_knob) == (THRESHOLDS, True)
    assert max(by_entropy.knob_values(model)) > math.log(3)
    assert by_entropy.refines_knob
    assert [method.rule(model, 0.5).threshold for method in (published, free, by_entropy)] == [0.5] * 3
    with pytest.raises(UserError, match=r"must lie in \[0\.5, 0\.5\]"):
        published.rule(model, 0.4)


@pytest.fixture
def in_stage_3(tiny_model):
    """A model with a policy, a batch of eight rows, the loss of every exit on them, and P(exit)."""
    model = tiny_model(num_labels=3)
    model.add_head("policy", NETWORK, seed=3)
    source = training_source(model, make_task(), RECIPE)
    batch = source.batch(torch.arange(8), 0)
    outputs = model(batch.tokens)
    p = model.head("policy").at_layers(range(1, model.num_layers + 1), outputs.pooled).sigmoid()
    return SimpleNamespace(
        model=model, batch=batch, outputs=outputs, losses=layer_losses(outputs.logits, batch.labels), p=p,
        hardness=torch.arange(len(source)) % model.num_layers + 1,
    )  # fmt: skip


def test_loss_of_the_policy_alone_and_with_the_exits(in_stage_3):
    """Stage 3 adds the loss at the exit: here each exit's, by its probability. It trains the policy on its reward."""
    found, hardness = in_stage_3, in_stage_3.hardness
    method = get_method("consistentee-paper", estimator="exact", alpha=0.2, joint_exit="expected")
    of_policy = exact_policy_loss(found.p, rewards(found.losses, 0.2, hardness[:8]))
    of_exits = (exit_distribution(found.p) * found.losses).sum(dim=1).mean()
    features = FeatureBatch(found.outputs, found.batch.labels, found.batch.rows, 0)
    torch.testing.assert_close(method.policy_stage_loss(hardness, found.model, features), of_policy)
    torch.testing.assert_close(method.policy_stage_loss(hardness, found.model, found.batch), of_policy)
    others = exact_policy_loss(found.p, rewards(found.losses.flip(0), 0.2, hardness[:8]))
    given = method.policy_stage_loss(hardness, found.model, features, unseen_losses=found.losses.flip(0))
    torch.testing.assert_close(given, others)
    joint = method.joint_stage_loss(hardness, found.model, found.batch)
    torch.testing.assert_close(joint, of_exits + of_policy)
    policy = list(found.model.head("policy").parameters())
    expected = torch.autograd.grad(of_policy, policy, allow_unused=True, retain_graph=True)
    for gradient_found, wanted in zip(torch.autograd.grad(joint, policy, allow_unused=True), expected, strict=True):
        assert gradient_found is wanted is None or torch.allclose(gradient_found, wanted, atol=1e-7)


def test_one_sampled_exit_a_row_bears_its_loss(in_stage_3):
    """A draw is the mean of one loss a row; the mean of many draws is the expected loss."""
    found = in_stage_3
    method = get_method("consistentee-paper", estimator="exact")
    of_policy = method.policy_loss(found.hardness, found.batch.rows, found.losses, found.p)
    torch.manual_seed(0)
    joint = method.joint_stage_loss(found.hardness, found.model, found.batch)
    torch.manual_seed(0)
    layers = sampled_exits(found.p, samples=1)[0]
    torch.testing.assert_close(joint, found.losses.gather(1, layers).mean() + of_policy)
    many = sampled_exits(found.p, samples=20_000).squeeze(-1)
    shares = torch.stack([(many == layer).float().mean(dim=0) for layer in range(found.model.num_layers)], dim=1)
    torch.testing.assert_close(shares, exit_distribution(found.p), atol=0.02, rtol=0)


@pytest.mark.parametrize("trains", [True, False])
def test_the_policy_trains_the_backbone_or_does_not(in_stage_3, trains):
    """Without a loss at the exit, only the policy's gradient can reach the backbone."""
    found = in_stage_3
    method = get_method("consistentee-paper", estimator="exact", joint_exit="expected", policy_trains_backbone=trains)
    joint = method.joint_stage_loss(found.hardness, found.model, found.batch)
    at_exit = (exit_distribution(found.p).detach() * found.losses).sum(dim=1).mean()
    weight = next(found.model.backbone.parameters())
    of_both, of_exit = (torch.autograd.grad(loss, weight)[0] for loss in (joint, at_exit))
    assert torch.allclose(of_both, of_exit, atol=1e-7) is not trains


@pytest.mark.parametrize(("dropout", "leave_by"), [(True, "policy"), (False, "policy"), (False, "entropy")])
def test_the_policy_learns_alone_in_stage_2_if_it_is_read(tiny_model, dropout, leave_by):
    """With dropout, as published, or on cached features: nothing but the policy changes."""
    model, task = tiny_model(num_labels=3), make_task(rows=16)
    recipe = replace(RECIPE, epochs=1)
    train_jointly(model, task, recipe)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    joint = tiny_model(num_labels=3)
    method = get_method("consistentee-paper", policy_dropout=dropout, joint_epochs=0, leave_by=leave_by)
    after = dict(method.fit(joint, task, recipe).named_parameters())
    learned = {name.partition(".policy.")[0] for name in after.keys() - before.keys()}
    assert learned == ({"exit_heads"} if leave_by == "policy" else set())
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_cross_fitted_answers_do_not_know_a_rows_own_label(tiny_model):
    """Other labels of half of the rows change the answers of the other half alone."""
    model, recipe = tiny_model(num_labels=3), replace(RECIPE, epochs=2)
    source = training_source(model, make_task(), recipe)
    found = unseen_logits(model, source, recipe)
    half = torch.randperm(len(source), generator=torch.Generator().manual_seed(recipe.seed)).chunk(2)[0]
    again = unseen_logits(model, replace(source, labels=source.labels.index_fill(0, half, 0)), recipe)
    unchanged = torch.tensor([torch.allclose(now, before, atol=1e-6) for now, before in zip(again, found, strict=True)])
    assert unchanged.nonzero().flatten().tolist() == half.sort().values.tolist()


class TestIndependentLoops:
    """`notebooks/authors_loop.py` has stage 2 from the paper's text, and the authors' released loop."""

    @pytest.fixture
    def loops(self, monkeypatch):
        monkeypatch.syspath_prepend(ROOT / "notebooks")
        return importlib.import_module("authors_loop")

    def test_they_have_the_gradient_of_reinforce(self, loops, monkeypatch):
        torch.manual_seed(0)
        states, reward = torch.randn(2, 3, 4), torch.tensor([[-1.0, -0.5, -0.1], [-0.2, -0.4, -0.6]])
        policies = torch.nn.ModuleList(torch.nn.Linear(4, 1) for _ in range(3))
        monkeypatch.setattr(loops, "ROLLOUTS", 20_000)
        independent = loops.policy_loss(loops.sampled, policies, states, reward)
        ours = reinforce_policy_loss(loops.exit_probabilities(policies, states), reward, rollouts=20_000)
        weights = list(policies[:-1].parameters())
        found, wanted = (torch.autograd.grad(loss, weights) for loss in (ours, independent))
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=5e-3, rtol=0)

    def test_they_tell_rows_apart_where_the_state_tells_hardness(self, loops, monkeypatch):
        """Easy rows are right at layer 1, hard ones at layer 3 alone. Without exploration a layer may be missed."""
        hard = torch.arange(64) % 2 == 1
        states = torch.where(hard, 1.0, -1.0).view(-1, 1, 1).expand(-1, 3, 4)
        losses = torch.where(hard.unsqueeze(1), torch.tensor([2.0, 2.0, 0.0]), torch.zeros(3))
        reward = rewards(losses, 0.3, hardness=torch.where(hard, 3, 1))
        monkeypatch.setattr(loops, "RATE", 1e-2)
        reached = {}
        for rollout in (loops.sampled, loops.released):
            policies = loops.train_policies(rollout, states, reward, epochs=60)
            exits = loops.exits_of((loops.exit_probabilities(policies, states) > 0.5).float())
            reached[rollout] = reward.gather(1, exits.unsqueeze(1)).mean()
        assert reached[loops.sampled] == reward.max(dim=1).values.mean()
        assert reached[loops.released] > reward.mean(dim=0).max(), "of the best single layer"
