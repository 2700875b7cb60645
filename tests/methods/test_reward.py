"""Reward, exit distribution, the two estimators of the policy gradient, and the Memorized Layer."""

import torch
from hypothesis import given, settings, strategies as st

from consistentee.methods.reward import (
    exact_policy_loss,
    exit_distribution,
    memorized_layer,
    reinforce_policy_loss,
    rewards,
)

probabilities = st.integers(0, 2**31).map(
    lambda seed: torch.rand(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
)


def test_vanilla_reward_by_hand():
    losses = torch.tensor([[0.5, 0.2, 0.1]])
    torch.testing.assert_close(rewards(losses, 0.1), torch.tensor([[-0.6, -0.4, -0.4]]))
    of_rows = rewards(torch.zeros(2, 2), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(of_rows, torch.tensor([[0.0, 0.0], [-1.0, -2.0]]))


def test_hardness_guided_reward_by_hand():
    losses = torch.tensor([[0.5, 0.2, 0.1], [0.5, 0.2, 0.1]])
    reward = rewards(losses, 0.3, hardness=torch.tensor([1, 3]))
    # An easy row (m=1 of 3) pays 2/3 of the price; a hard one (m=L) cares about the loss alone.
    torch.testing.assert_close(reward, torch.tensor([[-0.7, -0.6, -0.7], [-0.5, -0.2, -0.1]]))


def test_exits_at_some_layers_pay_for_the_layers_they_are_at():
    losses = torch.tensor([[0.5, 0.2, 0.1]])
    reward = rewards(losses, 0.3, hardness=torch.tensor([4]), layers=(2, 4, 8))
    torch.testing.assert_close(reward, torch.tensor([[-0.8, -0.8, -1.3]]))  # half of the price: m = 4 of 8


def test_exit_distribution_by_hand():
    q = exit_distribution(torch.tensor([[0.5, 0.2, 0.9]]))
    torch.testing.assert_close(q, torch.tensor([[0.5, 0.1, 0.4]]))


@given(probabilities)
def test_exit_distribution_is_a_distribution_and_the_last_layer_has_no_choice(p):
    q = exit_distribution(p)
    assert (q >= 0).all()
    torch.testing.assert_close(q.sum(dim=1), torch.ones(5, dtype=torch.float64))
    p[:, -1] = 0.123
    assert torch.equal(q, exit_distribution(p))


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
    sampled = gradient(lambda p: reinforce_policy_loss(p, many_rewards, rollouts, generator), many_logits)
    per_repeat = sampled.view(repeats, 3, 4) * repeats
    # The baseline holds the rollout's own reward, which shrinks the expectation by exactly (K-1)/K.
    estimate = per_repeat.mean(dim=0) * rollouts / (rollouts - 1)
    standard_error = per_repeat.std(dim=0) * rollouts / (rollouts - 1) / repeats**0.5
    assert ((estimate - exact).abs() <= 5 * standard_error + 1e-9).all()
    assert exact[:, :-1].abs().max() > 5 * standard_error.max(), "the check must be able to fail"
    assert (sampled.view(repeats, 3, 4)[..., -1] == 0).all(), "no choice at the last layer, no gradient"


def test_reward_carries_no_gradient_into_the_losses():
    losses = torch.rand(2, 3, requires_grad=True)
    p = torch.rand(2, 3, requires_grad=True)
    exact_policy_loss(p, rewards(losses, 0.1)).backward()
    assert losses.grad is None
    assert p.grad is not None


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=8))
def test_memorized_layer_is_the_first_from_which_on_all_are_right_or_the_last(rows):
    for row, found in zip(rows, memorized_layer(torch.tensor(rows)).tolist(), strict=True):
        candidates = [layer for layer in range(1, 6) if all(row[layer - 1 :])]
        assert found == (min(candidates) if candidates else 5)
