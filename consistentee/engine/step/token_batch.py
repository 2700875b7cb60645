"""TokenBatch: rows that are written on over one cache, whether they go in step or not."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from consistentee.backbones.decoders import DecoderContext
from consistentee.engine.step.cache import KeyValueCache, RowNumbers, Rows
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder


@dataclass(frozen=True, eq=False)
class Span:
    """Columns of some rows, the newest last, that pass layers together.

    Attributes:
        context: what the layers need.
        columns: which ones, int64 [rows, T] on the device. Rows that have fewer to write than others pass columns that
            they have, or none at all, for the sake of the shape; what comes of these is thrown away.
        written: those that a row writes, bool [rows, T] on the device.
    """

    context: DecoderContext
    columns: Tensor
    written: Tensor


class TokenBatch(ABC):
    """Rows that are written on over one cache, in step (PromptBatch) or each at its own pace (Slots).

    Attributes:
        cache: their keys and values.
        stepper, device, dtype: of the model.
    """

    cache: KeyValueCache

    def __init__(self, model: MultiExitDecoder) -> None:
        self.stepper = model.stepper
        self.device = model.device
        self.dtype: torch.dtype = model.backbone.dtype
        self._causal_by_itself = model.backbone.config._attn_implementation == "sdpa"
        self._like = torch.empty(0, dtype=self.dtype, device=self.device)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def newest(self, rows: Rows) -> RowNumbers:
        """Return the column of the newest token of some rows: int64 [rows]."""

    @abstractmethod
    def places(self, row_index: Tensor, column_index: Tensor) -> Tensor:
        """Return the places of tokens among the new ones of their rows, given by row and column."""

    @abstractmethod
    def positions_of(self, row_index: Tensor, column_index: Tensor) -> Tensor:
        """Return the positions of single tokens, given by row and column: int64 [tokens] each."""

    @abstractmethod
    def span(self, rows: Rows, starts: RowNumbers) -> Span:
        """Return the columns from ``starts`` [rows] to the newest ones, for the layers to pass."""

    def rotation(self, positions: Tensor) -> object:
        """Return what layers need of positions [rows, T]."""
        return self.stepper.rotation(self._like, positions)

    def run(self, layers: range, hidden: Tensor, context: DecoderContext) -> Tensor:
        """Run some layers (1-based), one after the other: [rows, T, width] -> [rows, T, width]."""
        for layer in layers:
            hidden = self.stepper.step(layer, hidden, context)
        return hidden

    def _bias_where(self, hidden: Tensor) -> Tensor:
        """Return what is added to attention scores: 0, or the lowest number where a column is hidden.

        An additive mask is what all attention functions of transformers but flash attention take; a boolean one would
        be turned into it again in every layer.
        """
        bias = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        return bias.masked_fill_(hidden, torch.finfo(self.dtype).min)
