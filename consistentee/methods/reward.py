"""Memorized Layer, exit distribution, reward, and policy gradient: exact or by REINFORCE (ConsistentEE, section 3)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Estimator = Literal["exact", "reinforce"]
"""The policy gradient: from the expected reward in closed form, or from sampled exits."""

_THRESHOLDS_DRAWN = 8


def memorized_layer(correct: Tensor) -> Tensor:
    """Compute the Memorized Layer, the first from which on every classifier is right, or L (section 3.3).

    bool [rows, L] -> int64 [rows], from 1.
    """
    layers = correct.shape[1]
    right_to_the_end = correct.flip(dims=[1]).long().cumprod(dim=1).sum(dim=1)
    return (layers - right_to_the_end + 1).clamp(max=layers)


def rewards(
    losses: Tensor, alpha: float | Tensor, hardness: Tensor | None = None, layers: Sequence[int] | None = None
) -> Tensor:
    """Compute the reward of each exit [rows, exits], ``R_t = -CE_t - alpha * (1 - m/L) * t``.

    Args:
        losses: CE_t, float [rows, exits].
        alpha: the price of a layer: one number, or float [rows].
        hardness: the Memorized Layer m of each row, int64 [rows]; None gives the vanilla reward, without ``1 - m/L``.
        layers: the layer t of each exit, the last one being L; None for 1..L.
    """
    depths = range(1, losses.shape[1] + 1) if layers is None else layers
    price = torch.as_tensor(alpha, dtype=losses.dtype, device=losses.device).expand(len(losses))
    if hardness is not None:
        price = price * (1 - hardness.to(losses.dtype) / depths[-1])
    return -losses - price.unsqueeze(1) * losses.new_tensor(list(depths))


def exit_distribution(exit_probabilities: Tensor) -> Tensor:
    """Compute the probability to exit at each layer [rows, L]: ``q_t = p_t * prod_{s<t} (1 - p_s)``; q_L is the rest.

    The last column of p_t [rows, L] has no effect.
    """
    ones = torch.ones_like(exit_probabilities[:, :1])
    exits = torch.cat([exit_probabilities[:, :-1], ones], dim=1)
    stays = torch.cat([ones, 1 - exit_probabilities[:, :-1]], dim=1).cumprod(dim=1)
    return exits * stays


def simulated_exits(signals: Tensor, thresholds: Tensor) -> Tensor:
    """Compute the layer (from 1) at which each row would exit with each of K thresholds: int64 [K, rows].

    Signals [rows, L] are low if a layer is confident.
    """
    wants_out = signals.detach() < thresholds.view(-1, 1, 1)
    wants_out[..., -1] = True
    return wants_out.int().argmax(dim=-1) + 1


def exit_shares(doubt: Tensor, at_exit: float) -> Tensor:
    """Compute the weight of a row's loss at every exit: float [rows, exits], rows sum to 1.

    Args:
        doubt: 1 - the largest probability, detached: [rows, exits].
        at_exit: share of the weight at the exits that rows take with random thresholds.
    """
    exits = doubt.shape[1]
    if exits == 1:
        return torch.ones_like(doubt)
    candidates = doubt[:, :-1].flatten()
    thresholds = candidates[torch.randint(len(candidates), (_THRESHOLDS_DRAWN,)).to(doubt.device)]
    taken = functional.one_hot(simulated_exits(doubt, thresholds) - 1, exits).to(doubt.dtype).mean(dim=0)
    return at_exit * taken + (1 - at_exit) / exits


def exact_policy_loss(exit_probabilities: Tensor, reward: Tensor) -> Tensor:
    """Compute minus the expected reward, ``-mean_rows sum_t q_t R_t``."""
    return -(exit_distribution(exit_probabilities) * reward.detach()).sum(dim=1).mean()


def reinforce_policy_loss(
    exit_probabilities: Tensor, reward: Tensor, rollouts: int, generator: torch.Generator | None = None
) -> Tensor:
    """Compute a scalar whose gradient is the REINFORCE estimate with the mean reward of the rollouts as baseline.

    ``-(1/BK) sum_i sum_k (R_ik - mean_k R_ik) * sum_{s<=T_ik} log pi(a_s)``. Layer L has no choice and no term. The
    baseline includes the rollout's own reward, so the expectation is ``(K-1)/K`` times the exact gradient.

    Both tensors are [rows, L]; ``rollouts`` is K, at least 2.
    """
    rows, num_layers = exit_probabilities.shape
    probabilities = exit_probabilities[:, :-1]
    draws = torch.rand(rollouts, rows, num_layers - 1, generator=generator, device=reward.device)
    wants_out = draws < probabilities.detach()
    forced = torch.ones_like(wants_out[..., :1])
    exit_index = torch.cat([wants_out, forced], dim=-1).int().argmax(dim=-1)
    obtained = reward.detach().expand(rollouts, rows, num_layers).gather(-1, exit_index.unsqueeze(-1)).squeeze(-1)
    advantage = obtained - obtained.mean(dim=0, keepdim=True)
    layer = torch.arange(num_layers - 1, device=reward.device)
    stayed = layer < exit_index.unsqueeze(-1)
    left = layer == exit_index.unsqueeze(-1)
    tiny = torch.finfo(probabilities.dtype).tiny
    log_stay = torch.log((1 - probabilities).clamp_min(tiny))
    log_leave = torch.log(probabilities.clamp_min(tiny))
    log_likelihood = (stayed * log_stay + left * log_leave).sum(dim=-1)
    return -(advantage * log_likelihood).mean()
