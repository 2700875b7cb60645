"""Keys and values of the layers that a token skipped: state propagation (CALM), or running them later (FREE).

Both wait until a later token of the same row reads such a layer; a layer that nobody reads again costs nothing.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from consistentee.backbones.decoders import DecoderContext
from consistentee.engine.cache import Rows
from consistentee.engine.token_batch import TokenBatch

KVPolicy = Literal["propagate", "exact"]
"""How skipped layers get their keys and values: from the state at the exit, or by running them with a later token."""


class OwedTokens(ABC):
    """Tokens that left early, with the hidden states they left with, for the layers that they still owe something.

    Attributes:
        states: [rows, new columns, width]; the hidden state of a token after the deepest layer that it has run.
    """

    def __init__(self, batch: TokenBatch, new_columns: int) -> None:
        self.batch = batch
        shape = (len(batch), new_columns, batch.stepper.width)
        self.states = torch.zeros(shape, dtype=batch.dtype, device=batch.device)

    def leave(self, rows: Rows, hidden: Tensor) -> None:
        """Note the hidden states [rows, 1, width] with which the newest tokens of some rows leave before layer L."""
        places = self.batch.newest(rows) - self.batch.prompt_columns[rows.numbers]
        self.states[rows.on_device(rows.numbers), rows.on_device(places)] = hidden[:, 0]

    def keep(self, rows: Rows) -> None:
        self.states = rows.of(self.states).clone()

    @abstractmethod
    def run(self, layers: range, hidden: Tensor, rows: Rows, context: DecoderContext) -> Tensor:
        """Run layers between two exits on the newest tokens of some rows, and pay first what these rows owe them.

        All layers (1-based) are owed the same columns, because no row leaves in between. ``hidden`` [rows, 1, width]
        enters the first of them; ``context`` is that of the newest tokens.
        """


class Propagation(OwedTokens):
    """Every skipped layer makes its keys and values of the state at the exit (CALM, section 3.3.1)."""

    def run(self, layers: range, hidden: Tensor, rows: Rows, context: DecoderContext) -> Tensor:
        cache, stepper = self.batch.cache, self.batch.stepper
        owed = cache.owed(layers[0], rows, self.batch.newest(rows))
        if owed is None:
            return self.batch.run(layers, hidden, context)
        places = self.batch.places(owed.row_index, owed.column_index)
        states = self.states[owed.row_index, places].unsqueeze(0)
        rotation = self.batch.rotation(owed.column_index.unsqueeze(0))
        for layer in layers:
            cache.fill(layer, owed, *stepper.keys_values(layer, states, rotation))
            hidden = stepper.step(layer, hidden, context)
        return hidden


class DeferredRun(OwedTokens):
    """The tokens themselves run the skipped layers, with the newest one (FREE's synchronised decoding).

    Keys and values are those of full depth.
    """

    def run(self, layers: range, hidden: Tensor, rows: Rows, context: DecoderContext) -> Tensor:
        batch = self.batch
        starts, newest = batch.cache.starts(layers[0], rows), batch.newest(rows)
        if (starts == newest).all():
            return batch.run(layers, hidden, context)
        columns = batch.newest_columns(rows, int((newest - starts).max()) + 1)
        before = columns[:, :-1]
        row_index = rows.on_device(rows.numbers)[:, None]
        places = rows.on_device((before - batch.prompt_columns[rows.numbers, None]).clip(min=0))
        waiting = self.states[row_index, places]
        tokens = batch.run(layers, torch.cat([waiting, hidden], dim=1), batch.context(rows, columns, starts))
        if layers[-1] < batch.stepper.num_layers:
            at, waited = (rows.on_device(numbers) for numbers in (before >= starts[:, None]).nonzero())
            self.states[row_index[at, 0], places[at, waited]] = tokens[at, waited]
        return tokens[:, -1:]


POLICIES: dict[KVPolicy, type[OwedTokens]] = {"propagate": Propagation, "exact": DeferredRun}
