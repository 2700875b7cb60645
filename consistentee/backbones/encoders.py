"""Layer-stepping for encoders: a stock Hugging Face model, run one layer at a time by calling its own layers.

A stepper knows four things of its family: how tokens become the input of layer 1, how a layer is called, where the
layers are, and which parts a layer has. Nothing of a model's arithmetic is written again here.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from consistentee.data.encoding import Batch, Encoding
from consistentee.errors import UserError


@dataclass(frozen=True)
class Context:
    """What the layers need beside the hidden states, for the rows that are still active.

    Attributes:
        padding_mask: bool [rows, tokens].
        attention_mask: what the stock model's layers take: made by transformers for the attention in use, or None.
        position_bias: [1, attention heads, tokens, tokens] where the family has one (MPNet).
        lengths: number of real tokens a row.
    """

    padding_mask: Tensor
    attention_mask: Tensor | None
    position_bias: Tensor | None
    lengths: list[int]


class Stepper(Protocol):
    """What a model asks of whatever runs its layers: a stock encoder, as it is or otherwise. Contexts are its own."""

    backbone: Any

    @property
    def uses_token_types(self) -> bool:
        """Whether the embeddings tell the two texts of a pair apart."""
        ...

    @property
    def position_limit(self) -> int:
        """Number of tokens that a row may have."""
        ...

    @property
    def num_layers(self) -> int:
        """Number of layers that can be run."""
        ...

    @property
    def stock_layers(self) -> int:
        """Number of layers of :attr:`backbone`, the last ones of all."""
        ...

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        ...

    @property
    def backbones(self) -> Mapping[str, Any]:
        """The stock models that are run, in that order, by the names of a model's modules; the last is ``backbone``."""
        ...

    @property
    def own_modules(self) -> Mapping[str, nn.Module]:
        """What a model has to save and to move beside its backbone, by the names of its modules."""
        ...

    def live_tokens(self, encodings: Sequence[Encoding]) -> Tensor | None:
        """Return how many tokens of each row run each layer that the row runs: int64 [N, L], on the CPU.

        None where no token exits by itself: then all of them do.
        """
        ...

    def layer_module(self, layer: int) -> nn.Module:
        """Return the stock module that is layer ``layer`` (1-based)."""
        ...

    def begin(self, batch: Batch) -> tuple[Tensor, Any]:
        """Embed a batch: the input of layer 1 [rows, tokens, width], and its context."""
        ...

    def step(self, layer: int, hidden: Tensor, context: Any) -> Tensor:
        """Run layer ``layer`` (1-based) on [rows, tokens, width]."""
        ...

    def compact(self, hidden: Tensor, context: Any, keep: Sequence[int], rows: Tensor) -> tuple[Tensor, Any]:
        """Keep some rows, and cut the padding columns that none of them needs."""
        ...


@dataclass(frozen=True)
class LayerParts:
    """The modules of a stock layer, for who does not run it on every token (see ``token_exits.py``).

    Attributes:
        query, key, value: projections of the attention, of hidden states [..., width].
        dropout: of the attention's weights.
        finish: what follows the attention, token by token: (what the attention gave [tokens, width], the hidden
            states that went into the layer [tokens, width]) -> the hidden states that leave it.
    """

    query: nn.Module
    key: nn.Module
    value: nn.Module
    dropout: nn.Dropout
    finish: Callable[[Tensor, Tensor], Tensor]


class EncoderStepper(ABC):
    """Runs a stock encoder one layer at a time.

    Class attributes:
        uses_token_types: whether the embeddings tell the two texts of a pair apart.
        reserved_positions: positions of the table that no token ever has (RoBERTa counts from the padding id + 1).
    """

    uses_token_types: bool = False
    reserved_positions: int = 0

    def __init__(self, backbone: Any) -> None:
        self.backbone = backbone
        self.config = backbone.config

    @property
    def num_layers(self) -> int:
        """Number of layers, L."""
        return int(self.config.num_hidden_layers)

    @property
    def stock_layers(self) -> int:
        """All of them."""
        return self.num_layers

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return int(self.config.hidden_size)

    @property
    def backbones(self) -> dict[str, Any]:
        """One stock model."""
        return {"backbone": self.backbone}

    @property
    def own_modules(self) -> dict[str, nn.Module]:
        """None."""
        return {}

    def live_tokens(self, encodings: Sequence[Encoding]) -> Tensor | None:
        """Return None: no token exits by itself."""
        return None

    @property
    def position_limit(self) -> int:
        """Number of tokens that a row may have."""
        return int(self.config.max_position_embeddings) - self.reserved_positions

    def config_of_first_layers(self, layers: int) -> Any:
        """Return the configuration of a stock model whose layers are the first ``layers`` of this one's."""
        config = copy.deepcopy(self.config)
        config.num_hidden_layers = layers
        return config

    @abstractmethod
    def layer_module(self, layer: int) -> nn.Module:
        """Return the stock module that is layer ``layer`` (1-based); ALBERT's layers share modules."""

    @abstractmethod
    def embed(self, batch: Batch) -> Tensor:
        """Return the input of layer 1: [rows, tokens, width]."""

    def parts(self, layer: int) -> LayerParts:
        """Return the modules that layer ``layer`` (1-based) is made of.

        Raises UserError for a family that does not say so.
        """
        raise UserError(f"token-level exits are not supported for architecture {self.config.model_type!r}")

    def position_bias(self, hidden: Tensor) -> Tensor | None:
        """Return the bias that every layer adds to its attention scores, if the family has one."""
        return None

    def begin(self, batch: Batch) -> tuple[Tensor, Context]:
        """Embed a batch: the input of layer 1 [rows, tokens, width], and its context."""
        hidden = self.embed(batch)
        mask = self._attention_mask(hidden, batch.padding_mask, batch.lengths)
        return hidden, Context(batch.padding_mask, mask, self.position_bias(hidden), batch.lengths)

    def step(self, layer: int, hidden: Tensor, context: Context) -> Tensor:
        """Run layer ``layer`` (1-based) on [rows, tokens, width]."""
        output = self.layer_module(layer)(hidden, context.attention_mask)
        return output if isinstance(output, Tensor) else output[0]

    def compact(self, hidden: Tensor, context: Context, keep: Sequence[int], rows: Tensor) -> tuple[Tensor, Context]:
        """Keep some rows, and cut the padding columns that none of them needs.

        ``keep`` and ``rows`` are the same row numbers, as integers and as a tensor on the model's device.
        """
        lengths = [context.lengths[i] for i in keep]
        width = max(lengths)
        hidden = hidden[:, :width].index_select(0, rows)
        padding_mask = context.padding_mask[:, :width].index_select(0, rows)
        bias = context.position_bias
        bias = bias if bias is None else bias[:, :, :width, :width]
        return hidden, Context(padding_mask, self._attention_mask(hidden, padding_mask, lengths), bias, lengths)

    def _attention_mask(self, hidden: Tensor, padding_mask: Tensor, lengths: list[int]) -> Tensor | None:
        unpadded = min(lengths) == padding_mask.shape[1]
        return create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden, attention_mask=None if unpadded else padding_mask
        )


class BertStepper(EncoderStepper):
    """BERT: token types in the embeddings, layers under ``encoder.layer``."""

    uses_token_types = True

    def layer_module(self, layer: int) -> nn.Module:
        """Return ``encoder.layer[layer - 1]``."""
        return self.backbone.encoder.layer[layer - 1]

    def embed(self, batch: Batch) -> Tensor:
        return self.backbone.embeddings(input_ids=batch.input_ids, token_type_ids=batch.token_type_ids)

    def parts(self, layer: int) -> LayerParts:
        module: Any = self.layer_module(layer)
        attention = module.attention.self

        def finish(mixed: Tensor, hidden: Tensor) -> Tensor:
            return module.feed_forward_chunk(module.attention.output(mixed, hidden))

        return LayerParts(attention.query, attention.key, attention.value, attention.dropout, finish)


class RobertaStepper(BertStepper):
    """RoBERTa and XLM-RoBERTa: as BERT; positions count from the padding id, and pairs are told apart by separators."""

    uses_token_types = False
    reserved_positions = 2


class ElectraStepper(BertStepper):
    """ELECTRA: as BERT, with a projection where the embeddings are narrower than the layers."""

    def embed(self, batch: Batch) -> Tensor:
        """Embeddings, projected if the model does so."""
        embedded = super().embed(batch)
        if hasattr(self.backbone, "embeddings_project"):
            embedded = self.backbone.embeddings_project(embedded)
        return embedded


class MPNetStepper(EncoderStepper):
    """MPNet: a relative position bias, computed once, goes into every layer."""

    reserved_positions = 2

    def layer_module(self, layer: int) -> nn.Module:
        """Return ``encoder.layer[layer - 1]``."""
        return self.backbone.encoder.layer[layer - 1]

    def embed(self, batch: Batch) -> Tensor:
        return self.backbone.embeddings(input_ids=batch.input_ids)

    def position_bias(self, hidden: Tensor) -> Tensor:
        """Return the bias of one row: it is the same for all, so it is kept once and broadcast."""
        return self.backbone.encoder.compute_position_bias(hidden[:1])

    def step(self, layer: int, hidden: Tensor, context: Context) -> Tensor:
        """Run one layer with the position bias."""
        return self.layer_module(layer)(hidden, context.attention_mask, context.position_bias)[0]

    def parts(self, layer: int) -> LayerParts:
        """Projections under ``attention.attn``, the one that follows the attention among them."""
        module: Any = self.layer_module(layer)
        outer, attention = module.attention, module.attention.attn

        def finish(mixed: Tensor, hidden: Tensor) -> Tensor:
            attended = outer.LayerNorm(outer.dropout(attention.o(mixed)) + hidden)
            return module.output(module.intermediate(attended), attended)

        return LayerParts(attention.q, attention.k, attention.v, attention.dropout, finish)


class DistilBertStepper(EncoderStepper):
    """DistilBERT: layers under ``transformer.layer``."""

    @property
    def num_layers(self) -> int:
        return int(self.config.n_layers)

    def layer_module(self, layer: int) -> nn.Module:
        """Return ``transformer.layer[layer - 1]``."""
        return self.backbone.transformer.layer[layer - 1]

    def embed(self, batch: Batch) -> Tensor:
        return self.backbone.embeddings(batch.input_ids)

    def parts(self, layer: int) -> LayerParts:
        """Projections under ``attention``, the one that follows the attention among them."""
        module: Any = self.layer_module(layer)
        attention = module.attention

        def finish(mixed: Tensor, hidden: Tensor) -> Tensor:
            attended = module.sa_layer_norm(attention.out_lin(mixed) + hidden)
            return module.output_layer_norm(module.ffn.ff_chunk(attended) + attended)

        return LayerParts(attention.q_lin, attention.k_lin, attention.v_lin, attention.dropout, finish)


class AlbertStepper(EncoderStepper):
    """ALBERT: groups of layers that share weights, after a projection of the embeddings."""

    uses_token_types = True

    def layer_module(self, layer: int) -> nn.Module:
        """Return the group that serves as layer ``layer``."""
        return self.backbone.encoder.albert_layer_groups[_albert_group(self.config, layer)]

    def config_of_first_layers(self, layers: int) -> Any:
        """Return a configuration with the groups that the first layers use, if they are shared the same way there."""
        config = super().config_of_first_layers(layers)
        groups = [_albert_group(self.config, layer) for layer in range(1, layers + 1)]
        config.num_hidden_groups = groups[-1] + 1
        if groups != [_albert_group(config, layer) for layer in range(1, layers + 1)]:
            raise UserError(
                f"no stock ALBERT shares weights as the first {layers} layers of this one do; "
                "take a number of layers that ends with a group"
            )
        return config

    def embed(self, batch: Batch) -> Tensor:
        """Embeddings, projected to the width of the layers."""
        embedded = self.backbone.embeddings(batch.input_ids, token_type_ids=batch.token_type_ids)
        return self.backbone.encoder.embedding_hidden_mapping_in(embedded)

    def parts(self, layer: int) -> LayerParts:
        """Projections of the one layer of the group. Raises UserError for groups of several."""
        group: Any = self.layer_module(layer)
        if len(group.albert_layers) != 1:
            raise UserError("token-level exits need an ALBERT whose groups have one layer each (inner_group_num = 1)")
        module = group.albert_layers[0]
        attention = module.attention

        def finish(mixed: Tensor, hidden: Tensor) -> Tensor:
            attended = attention.LayerNorm(hidden + attention.output_dropout(attention.dense(mixed)))
            return module.full_layer_layer_norm(module.ff_chunk(attended) + attended)

        return LayerParts(attention.query, attention.key, attention.value, attention.attention_dropout, finish)


def _albert_group(config: Any, layer: int) -> int:
    return int((layer - 1) / (config.num_hidden_layers / config.num_hidden_groups))


STEPPERS: dict[str, type[EncoderStepper]] = {
    "albert": AlbertStepper,
    "bert": BertStepper,
    "distilbert": DistilBertStepper,
    "electra": ElectraStepper,
    "mpnet": MPNetStepper,
    "roberta": RobertaStepper,
    "xlm-roberta": RobertaStepper,
}
"""``config.model_type`` -> stepper."""


def check_encoder_family(family: str) -> None:
    """Raise UserError if no stepper knows an architecture, which is given as ``config.model_type``."""
    if family not in STEPPERS:
        raise UserError(f"no layer-stepping for architecture {family!r}; supported: {', '.join(sorted(STEPPERS))}")


def stepper_for(backbone: Any) -> EncoderStepper:
    """Return the stepper of a stock model. Raises UserError for a family that has none."""
    check_encoder_family(backbone.config.model_type)
    return STEPPERS[backbone.config.model_type](backbone)
