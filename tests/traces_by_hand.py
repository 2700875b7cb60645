"""Traces of classification that are made of logits."""

import torch
from torch import Tensor

from consistentee.models.base import ExitHeads
from consistentee.traces.instance_trace import Trace


def trace_of(logits: Tensor, width: int = 1, **heads: ExitHeads) -> Trace:
    """Return a trace with these logits [rows, layers, classes]; keys are the rows' numbers, pooled vectors zero."""
    rows, layers, _ = logits.shape
    pooled = torch.zeros(rows, layers, width)
    return Trace(logits, torch.zeros(rows), pooled, torch.ones(rows, dtype=torch.long), torch.arange(rows), heads)
