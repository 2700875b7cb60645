"""Some columns of an LM head: what it says of a few tokens, another few for every row."""

import torch
from torch import Tensor, nn

NUMBERS_AT_A_TIME = 2**24


def logits_among(head: nn.Linear, states: Tensor, tokens: Tensor) -> Tensor:
    """Return the logits of some tokens alone, at 2 * width * K operations a row: [rows, K].

    The weights of these tokens are gathered, for as many rows at a time as take 64 MB in float32.

    Args:
        head: the LM head.
        states: what it reads, [rows, width].
        tokens: of each row, int64 [rows, K].
    """
    at_a_time = max(NUMBERS_AT_A_TIME // (tokens.shape[1] * states.shape[1]), 1)
    parts = zip(states.split(at_a_time), tokens.split(at_a_time), strict=True)
    products = [_products(head.weight, *part) for part in parts]
    logits = products[0] if len(products) == 1 else torch.cat(products)
    return logits if head.bias is None else logits + head.bias[tokens]


def _products(weight: Tensor, states: Tensor, tokens: Tensor) -> Tensor:
    gathered = weight.index_select(0, tokens.flatten()).view(*tokens.shape, -1)
    return torch.bmm(gathered, states.unsqueeze(2)).squeeze(2)
