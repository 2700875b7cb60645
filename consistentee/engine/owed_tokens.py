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
from consistentee.errors import unknown_name

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

        Args:
            layers: 1-based. All of them are owed the same columns, because no row leaves in between.
            hidden: [rows, 1, width], what enters the first of these layers.
            rows: the rows that have come this far.
            context: of their newest tokens.
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
        starts = batch.cache.starts(layers[0], rows)
        if (starts == batch.newest(rows)).all():
            return batch.run(layers, hidden, context)
        span = batch.span(rows, starts)
        row_index = rows.on_device(rows.numbers).unsqueeze(1)
        places = batch.places(row_index, span.columns[:, :-1]).clamp_min_(0)
        waiting = self.states[row_index, places]
        tokens = batch.run(layers, torch.cat([waiting, hidden], dim=1), span.context)
        if layers[-1] < batch.stepper.num_layers:
            at, waited = span.written[:, :-1].nonzero(as_tuple=True)
            self.states[row_index[at, 0], places[at, waited]] = tokens[at, waited]
        return tokens[:, -1:]


def owed_tokens(policy: KVPolicy, batch: TokenBatch, new_columns: int) -> OwedTokens:
    """Return the implementation of a policy. Raises UserError for an unknown one."""
    policies: dict[str, type[OwedTokens]] = {"propagate": Propagation, "exact": DeferredRun}
    if policy not in policies:
        raise unknown_name("KV policy", policy, policies)
    return policies[policy](batch, new_columns)
