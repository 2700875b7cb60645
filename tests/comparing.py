"""Compare generated texts, and the weights of two models."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from consistentee.engine.generate import Generations


def tokens_of(out: Generations) -> list[list[int]]:
    return [tokens.tolist() for tokens in out.tokens]


def written(out: Generations) -> list[tuple[list[int], list[int], list[int]]]:
    """Return the tokens, exit layers and late layers of every text."""
    rows = zip(out.tokens, out.exit_layers, out.late_layers, strict=True)
    return [(tokens.tolist(), exits.tolist(), late.tolist()) for tokens, exits, late in rows]


def changed_parts(model: nn.Module, before: Mapping[str, Tensor]) -> set[str]:
    """Return the parts of a model whose weights are not those of a state before."""
    return {name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    return first.state_dict().keys() == second.state_dict().keys() and not changed_parts(first, second.state_dict())
