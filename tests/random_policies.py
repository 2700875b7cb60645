"""Policies of ConsistentEE with random weights."""

from typing import Any, TypeVar

import torch

from consistentee.methods.policy import POLICY
from consistentee.models.base import MultiExit

ModelT = TypeVar("ModelT", bound=MultiExit)


def with_random_policy(model: ModelT, method: Any) -> ModelT:
    """Add the policy of a method to a model, drawn so that rows exit at different layers."""
    head = model.add_head(POLICY, method.policy_spec())
    generator = torch.Generator().manual_seed(2)
    head.load_state_dict({n: torch.randn(t.shape, generator=generator) for n, t in head.state_dict().items()})
    return model
