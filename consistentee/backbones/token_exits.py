"""Token-level exits: every token has a layer of its own, after which it is not updated any more.

A token that has exited keeps its hidden state and is still attended to: keys and values are computed from it. It costs
no query, no attention output and no feed-forward. Rules, pooling and classifiers see all tokens, as always.

What runs are the stock model's own modules: the whole layer while every token is live, then its parts on live tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from consistentee.backbones.encoders import Context, EncoderStepper, LayerParts
from consistentee.data.encoding import Batch, Encoding

_MODULE = "token_exits"
SCHEDULE = f"{_MODULE}.schedule"
"""Name of the schedule among the weights of a model."""


class TokenExits(nn.Module):
    """The schedule: the exit layer of every token of the vocabulary, special tokens included.

    A module, so that the schedule is saved, moved and fingerprinted with the weights.
    """

    schedule: Tensor

    def __init__(self, schedule: Tensor) -> None:
        super().__init__()
        self.register_buffer("schedule", schedule.long())


@dataclass
class TokenContext(Context):
    """Inputs of the layers of a model whose tokens exit: with the exit layers of all tokens, int64 [rows, tokens].

    They are 0 for padding, and stay on the CPU, where live tokens are listed, so that no layer waits for a device.
    """

    exit_layers: Tensor


class TokenExitStepper(EncoderStepper):
    """Runs a stock encoder one layer at a time, each layer on its live tokens."""

    def __init__(self, stepper: EncoderStepper, token_exits: TokenExits) -> None:
        super().__init__(stepper.backbone)
        self.uses_token_types = stepper.uses_token_types
        self.reserved_positions = stepper.reserved_positions
        self.stock = stepper
        self.token_exits = token_exits

    @classmethod
    def over(cls, stepper: EncoderStepper, schedule: Tensor) -> "TokenExitStepper":
        """Return a stepper with the same layers, whose tokens exit at the layers in ``schedule``, int64 [vocabulary].

        A schedule that the stepper may have already is replaced.
        Raises UserError for a family whose layers cannot run some tokens alone, see :meth:`EncoderStepper.parts`, and
        ValueError for a schedule of another shape, or with layers outside of 1..L; or in a cascade.
        """
        stock = stepper.stock if isinstance(stepper, cls) else stepper
        if stock.stock_layers < stock.num_layers:
            raise ValueError("tokens cannot exit by themselves in a cascade")
        stock.parts(1)
        vocabulary = stock.config.vocab_size
        if schedule.shape != (vocabulary,):
            raise ValueError(f"a schedule of token exits must be [{vocabulary}], got {list(schedule.shape)}")
        if int(schedule.min()) < 1 or int(schedule.max()) > stock.num_layers:
            raise ValueError(f"the exit layers of tokens must lie in 1..{stock.num_layers}")
        return cls(stock, TokenExits(schedule))

    @property
    def own_modules(self) -> dict[str, nn.Module]:
        return {_MODULE: self.token_exits}

    def live_tokens(self, encodings: Sequence[Encoding]) -> Tensor:
        tokens = torch.tensor([token for row in encodings for token in row.input_ids], dtype=torch.long)
        lengths = torch.tensor([len(row) for row in encodings], dtype=torch.long)
        rows, bins = torch.arange(len(encodings)).repeat_interleave(lengths), self.num_layers + 1
        exits = self.token_exits.schedule.cpu()[tokens]
        exit_counts = torch.bincount(rows * bins + exits, minlength=len(encodings) * bins).view(len(encodings), bins)
        return exit_counts.flip(1).cumsum(dim=1).flip(1)[:, 1:]

    def layer_module(self, layer: int) -> nn.Module:
        return self.stock.layer_module(layer)

    def embed(self, batch: Batch) -> Tensor:
        return self.stock.embed(batch)

    def parts(self, layer: int) -> LayerParts:
        return self.stock.parts(layer)

    def context(self, layer: int, hidden: Tensor, batch: Batch) -> TokenContext:
        context = self.stock.context(layer, hidden, batch)
        exit_layers = self.token_exits.schedule[batch.input_ids].masked_fill(~batch.padding_mask, 0).cpu()
        return TokenContext(**vars(context), exit_layers=exit_layers)

    def step(self, layer: int, hidden: Tensor, context: Context) -> Tensor:
        """Run layer ``layer`` (1-based) on the live tokens; the others' states [rows, tokens, width] stay as they are.

        Padding is no token: what stands in its place has no meaning after any layer.
        """
        assert isinstance(context, TokenContext)
        live = context.exit_layers >= layer
        count = int(live.sum())
        if count == sum(context.batch.lengths):
            return self.stock.step(layer, hidden, context)
        return self._step_live(layer, hidden, context, live) if count else hidden

    def _step_live(self, layer: int, hidden: Tensor, context: TokenContext, live: Tensor) -> Tensor:
        """Run a layer's parts: keys and values of all tokens, all else of live ones, bool [rows, tokens] on the CPU."""
        parts = self.stock.parts(layer)
        # The columns of each row's queries, live tokens first; rows with fewer of them are padded with others.
        columns = live.long().argsort(dim=1, descending=True, stable=True)[:, : int(live.sum(dim=1).max())]
        rows, places = live.gather(1, columns).nonzero(as_tuple=True)  # of live tokens, among the queries
        at_queries = (rows.to(hidden.device), places.to(hidden.device))
        columns = columns.to(hidden.device)
        at_tokens = (at_queries[0], columns[at_queries])
        states = hidden[at_tokens]
        packed = parts.query(states)
        queries = packed.new_zeros(*columns.shape, packed.shape[-1]).index_put(at_queries, packed)
        mixed = scaled_dot_product_attention(
            self._split_heads(queries),
            self._split_heads(parts.key(hidden)),
            self._split_heads(parts.value(hidden)),
            attn_mask=_attention_mask(context, columns),
            dropout_p=parts.dropout.p if parts.dropout.training else 0.0,
        )
        updated = parts.finish(mixed.transpose(1, 2).flatten(2)[at_queries], states)
        return hidden.index_put(at_tokens, updated)

    def _split_heads(self, projected: Tensor) -> Tensor:
        """Turn [rows, tokens, width] into [rows, heads, tokens, width / heads]."""
        return projected.unflatten(2, (self.config.num_attention_heads, -1)).transpose(1, 2)


def _attention_mask(context: TokenContext, columns: Tensor) -> Tensor | None:
    """Return what queries in these columns [rows, queries] see: [rows, heads or 1, queries or 1, tokens], or None."""
    real = context.batch.padding_mask[:, None, None, :] if context.batch.is_padded else None
    if context.position_bias is None:
        return real
    bias = context.position_bias[0][:, columns].transpose(0, 1)
    return bias if real is None else bias.masked_fill(~real, float("-inf"))
