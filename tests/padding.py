"""Rows of tokens as one tensor."""

from functools import partial

import torch
from torch.nn.utils.rnn import pad_sequence


def pad(rows, side, pad_id=1):
    """Return tokens and padding mask of rows padded on one side."""
    tokens = [torch.tensor(row) for row in rows]
    padded = partial(pad_sequence, batch_first=True, padding_side=side)
    return padded(tokens, padding_value=pad_id), padded([torch.ones_like(row, dtype=torch.bool) for row in tokens])
