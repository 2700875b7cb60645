"""RowStates: the hidden states of whole rows, prompts included, for exits that attend to earlier tokens.

A :class:`consistentee.traces.token_trace.TokenTrace` has the tokens of responses alone, each by itself: enough for an
exit that reads one hidden state, but not for a branch, which attends to its row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from consistentee.files import hash_tensors
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.traces.token_rows import TokenRow, TokenRows, collate_rows, tokens_read
from consistentee.traces.token_trace import compact_dtype, recorded_states


@dataclass(frozen=True)
class RowBatch:
    """Whole rows, padded on the right, on the model's device.

    Attributes:
        rows: the tokens, and which of them give the response.
        hidden: hidden states after the exit layers: float32 [rows, T, exits, width]; 0 for padding.
    """

    rows: TokenRows
    hidden: Tensor


@dataclass(frozen=True)
class RowStates:
    """The hidden states of rows.

    Attributes:
        rows: prompts and responses.
        hidden: of every token that is read, row by row: float16 or float32, [tokens, exits, width].
        model: whose states they are.
    """

    rows: Sequence[TokenRow]
    hidden: Tensor
    model: MultiExitDecoder = field(repr=False)

    def batch(self, numbers: Sequence[int]) -> RowBatch:
        """Return the rows with these numbers."""
        batch = collate_rows(self.model, [self.rows[number] for number in numbers])
        hidden = torch.zeros(*batch.tokens.shape, *self.hidden.shape[1:], device=self.model.device)
        hidden[batch.padding_mask] = torch.cat([self._by_row[number] for number in numbers]).to(hidden)
        return RowBatch(batch, hidden)

    @cached_property
    def _by_row(self) -> tuple[Tensor, ...]:
        return self.hidden.split([tokens_read(row) for row in self.rows])

    def fingerprint(self) -> str:
        """Hash of states and rows."""
        tokens = torch.tensor([token for prompt, response in self.rows for token in (*prompt, *response)])
        lengths = torch.tensor([[len(prompt), len(response)] for prompt, response in self.rows])
        return hash_tensors({"hidden": self.hidden, "tokens": tokens, "lengths": lengths})


def record_rows(
    model: MultiExitDecoder,
    rows: Sequence[TokenRow],
    *,
    batch_size: int = 16,
    store: Path | None = None,
    progress: str | None = None,
) -> RowStates:
    """Run ``model`` at full depth over rows, in eval mode, and keep the states of all tokens in half precision.

    Arguments and errors as of :func:`consistentee.traces.token_trace.record_tokens`; and ValueError where there are
    closing layers, which look back on states of their own at every exit.
    """
    if model.closing:
        raise ValueError("rows of a decoder with closing layers have no one state at an exit")
    hidden = recorded_states(
        model, rows, whole_rows=True, batch_size=batch_size, dtype=compact_dtype(model), store=store, progress=progress
    )
    return RowStates(rows, hidden, model)
