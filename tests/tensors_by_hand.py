"""Traces of classification that are made of logits, and padded rows of tokens."""

from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from consistentee.models.base import ExitHeads
from consistentee.traces.instance_trace import Trace


def trace_of(logits: Tensor, width: int = 1, **heads: ExitHeads) -> Trace:
    """Return a trace with these logits [rows, layers, classes]; keys are the rows' numbers, pooled vectors zero."""
    rows, layers, _ = logits.shape
    pooled = torch.zeros(rows, layers, width)
    return Trace(logits, torch.zeros(rows), pooled, torch.ones(rows, dtype=torch.long), torch.arange(rows), heads)


def pad(rows, side, pad_id=1):
    """Return tokens and padding mask of rows padded on one side."""
    tokens = [torch.tensor(row) for row in rows]
    padded = partial(pad_sequence, batch_first=True, padding_side=side)
    return padded(tokens, padding_value=pad_id), padded([torch.ones_like(row, dtype=torch.bool) for row in tokens])
