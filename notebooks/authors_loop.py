"""Stage 2 of ConsistentEE written twice more, on cached states: a check of `consistentee-paper`, and not a method.

`sampled` is the paper's text (Zeng et al., AAAI 2024, sections 3.1 to 3.3) in as few lines as it takes. `released` acts
as the authors' code: rollouts differ by dropout, the action is P(exit) > 0.5, and its likelihood is scored as if it had
been sampled. There the whole backbone has dropout; here, where states are cached, the input of the policy. Both are on
their own: they use neither policy nor policy gradient of this project.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

ROLLOUTS, BATCH_SIZE, RATE, DROPOUT = 8, 32, 3e-4, 0.1

Rollout = Callable[[nn.ModuleList, Tensor], tuple[Tensor, Tensor]]
"""(policies, states [rows, L, H]) -> exit layers from 0, [rows], and log-likelihoods of their actions, [rows]."""


def exit_probabilities(policies: nn.ModuleList, states: Tensor) -> Tensor:
    """Compute P(exit) at every layer: [rows, L]."""
    return torch.cat([policy(states[:, layer]) for layer, policy in enumerate(policies)], dim=1).sigmoid()


def exits_of(actions: Tensor) -> Tensor:
    """Return the first layer whose action is 1, from 0; the last one if there is none: [rows, L] -> [rows]."""
    return torch.cat([actions[:, :-1], torch.ones_like(actions[:, :1])], dim=1).argmax(dim=1)


def sampled(policies: nn.ModuleList, states: Tensor) -> tuple[Tensor, Tensor]:
    """Draw actions from the policies, as the paper says."""
    p = exit_probabilities(policies, states)
    return _scored(torch.bernoulli(p.detach()), p)


def released(policies: nn.ModuleList, states: Tensor) -> tuple[Tensor, Tensor]:
    """Take the actions that are likelier than not under dropout of the policies' input."""
    p = exit_probabilities(policies, functional.dropout(states, DROPOUT))
    return _scored((p > 0.5).float(), p)


def _scored(actions: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    exits = exits_of(actions)
    log_likelihood = torch.zeros(len(p))
    for layer in range(p.shape[1] - 1):  # layer L has no choice
        log_likelihood += torch.where(exits == layer, p[:, layer].log(), 0)
        log_likelihood += torch.where(exits > layer, (1 - p[:, layer]).log(), 0)
    return exits, log_likelihood


def policy_loss(rollout: Rollout, policies: nn.ModuleList, states: Tensor, rewards: Tensor) -> Tensor:
    """Compute the loss whose gradient is the policy gradient, with the mean of eight rewards of a row as baseline."""
    exits, log_likelihood = rollout(policies, states.repeat(ROLLOUTS, 1, 1))
    obtained = rewards.repeat(ROLLOUTS, 1).gather(1, exits.unsqueeze(1)).view(ROLLOUTS, -1)
    advantage = (obtained - obtained.mean(dim=0)).flatten()
    return -(advantage * log_likelihood).mean()


def train_policies(rollout: Rollout, states: Tensor, rewards: Tensor, epochs: int, *, seed: int = 0) -> nn.ModuleList:
    """Train a policy for each layer.

    ``states`` [rows, L, H] are pooled states, ``rewards`` [rows, L] those of an exit at every layer.
    """
    torch.manual_seed(seed)
    rows, layers, width = states.shape
    networks = (nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, 1)) for _ in range(layers))
    policies = nn.ModuleList(networks)
    optimizer = torch.optim.AdamW(policies.parameters(), lr=RATE)
    steps = epochs * -(-rows // BATCH_SIZE)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(epochs):
        for batch in torch.randperm(rows).split(BATCH_SIZE):
            loss = policy_loss(rollout, policies, states[batch], rewards[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policies.parameters(), 1.0)
            optimizer.step()
            decay.step()
    return policies
