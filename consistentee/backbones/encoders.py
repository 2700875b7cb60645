"""Run a stock Hugging Face encoder one layer at a time by calling its own layers.

A stepper defines for its family the input of layer 1, where the layers are, how to call one, and the parts of a layer.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask

from consistentee.data.encoding import Batch, Encoding
from consistentee.errors import UserError


@dataclass
class Context:
    """Inputs of the layers besides the hidden states, for the active rows.

    Attributes:
        batch: these rows.
        attention_mask: the mask of the stock layers for the attention in use, or None; of each kind of layer, if the
            family has several (ModernBERT).
        position_bias: what the layers need to know of positions: [1, attention heads, tokens, tokens] in MPNet.
    """

    batch: Batch
    attention_mask: Any
    position_bias: Any


class LayerParts(NamedTuple):
    """The modules of a stock layer, for callers that run only some tokens (see ``token_exits.py``).

    ``dropout`` is that of the attention's weights; ``finish`` the rest of the layer, token by token: (output of the
    attention [tokens, width], input of the layer [tokens, width]) -> output of the layer.
    """

    query: nn.Module
    key: nn.Module
    value: nn.Module
    dropout: nn.Dropout
    finish: Callable[[Tensor, Tensor], Tensor]


class EncoderStepper(ABC):
    """Run the layers of a stock encoder, or of several, one at a time.

    Class attributes:
        uses_token_types: whether the embeddings distinguish the two texts of a pair.
        reserved_positions: unused positions of the table (RoBERTa counts from the padding id + 1).

    Attributes:
        backbone: the stock model; where there are several, the last one.
    """

    uses_token_types: bool = False
    reserved_positions: int = 0

    def __init__(self, backbone: Any) -> None:
        self.backbone = backbone
        self.config = backbone.config

    @property
    def num_layers(self) -> int:
        return int(self.config.num_hidden_layers)

    @property
    def stock_layers(self) -> int:
        """Number of layers of :attr:`backbone`, which are the last ones."""
        return self.num_layers

    @property
    def width(self) -> int:
        return int(self.config.hidden_size)

    @property
    def position_limit(self) -> int:
        """Maximum number of tokens of a row."""
        return int(self.config.max_position_embeddings) - self.reserved_positions

    @property
    def backbones(self) -> dict[str, Any]:
        """The stock models in the order in which they run, by module name."""
        return {"backbone": self.backbone}

    @property
    def own_modules(self) -> dict[str, nn.Module]:
        """Modules to save and move besides the backbone, by name."""
        return {}

    def live_tokens(self, encodings: Sequence[Encoding]) -> Tensor | None:
        """Count the tokens of each row that run each layer: int64 [N, L] on the CPU; None if all of them do."""
        return None

    def config_of_first_layers(self, layers: int) -> Any:
        """Return the configuration of a stock model with the first ``layers`` layers of this one."""
        config = copy.deepcopy(self.config)
        config.num_hidden_layers = layers
        return config

    def layer_module(self, layer: int) -> nn.Module:
        """Return the stock module that is layer ``layer`` (1-based), by default of those under ``encoder.layer``."""
        return self.backbone.encoder.layer[layer - 1]

    @abstractmethod
    def embed(self, batch: Batch) -> Tensor:
        """Return the input of layer 1: [rows, tokens, width]."""

    def parts(self, layer: int) -> LayerParts:
        """Return the modules of layer ``layer`` (1-based). Raises UserError for a family without this method."""
        raise UserError(f"token-level exits are not supported for architecture {self.config.model_type!r}")

    def position_bias(self, hidden: Tensor) -> Any:
        """Compute what every layer needs to know of positions, if the family has it: from [rows, tokens, width]."""
        return None

    def read(self, layer: int, hidden: Tensor) -> Tensor:
        """Return what the exit of layer ``layer`` (1-based) reads of its output [rows, tokens, width].

        That is the output itself, unless the family has a norm between layer L and the classifier.
        """
        return hidden

    def begin(self, batch: Batch) -> tuple[Tensor, Context]:
        """Embed a batch: the input of layer 1 [rows, tokens, width], and its context."""
        hidden = self.embed(batch)
        return hidden, self.context(1, hidden, batch)

    def context(self, layer: int, hidden: Tensor, batch: Batch) -> Context:
        """Return what layers from ``layer`` on need besides their input [rows, tokens, width], for these rows."""
        return Context(batch, self._attention_mask(hidden, batch), self.position_bias(hidden))

    def step(self, layer: int, hidden: Tensor, context: Context) -> Tensor:
        """Run layer ``layer`` (1-based) on [rows, tokens, width]."""
        output = self.layer_module(layer)(hidden, context.attention_mask)
        return output if isinstance(output, Tensor) else output[0]

    def _attention_mask(self, hidden: Tensor, batch: Batch) -> Any:
        mask = batch.padding_mask if batch.is_padded else None
        if self.config._attn_implementation != "sdpa":
            return create_bidirectional_mask(self.config, hidden, mask)
        # The same mask as transformers makes, in a fraction of the time, which counts in small batches.
        return None if mask is None else mask[:, None, None].expand(-1, -1, mask.shape[1], -1)


class BertStepper(EncoderStepper):
    """BERT: token types in the embeddings."""

    uses_token_types = True

    def embed(self, batch: Batch) -> Tensor:
        return self.backbone.embeddings(input_ids=batch.input_ids, token_type_ids=batch.token_type_ids)

    def parts(self, layer: int) -> LayerParts:
        module: Any = self.layer_module(layer)
        attention = module.attention.self

        def finish(mixed: Tensor, hidden: Tensor) -> Tensor:
            return module.feed_forward_chunk(module.attention.output(mixed, hidden))

        return LayerParts(attention.query, attention.key, attention.value, attention.dropout, finish)


class RobertaStepper(BertStepper):
    """RoBERTa and XLM-RoBERTa: as BERT; positions count from the padding id, separators distinguish pairs."""

    uses_token_types = False
    reserved_positions = 2


class ElectraStepper(BertStepper):
    """ELECTRA: as BERT, with a projection if the embeddings are narrower than the layers."""

    def embed(self, batch: Batch) -> Tensor:
        embedded = super().embed(batch)
        if hasattr(self.backbone, "embeddings_project"):
            embedded = self.backbone.embeddings_project(embedded)
        return embedded


class MPNetStepper(EncoderStepper):
    """MPNet: a relative position bias, the same for all rows, is computed once and used in every layer."""

    reserved_positions = 2

    def embed(self, batch: Batch) -> Tensor:
        return self.backbone.embeddings(input_ids=batch.input_ids)

    def position_bias(self, hidden: Tensor) -> Tensor:
        return self.backbone.encoder.compute_position_bias(hidden[:1])

    def step(self, layer: int, hidden: Tensor, context: Context) -> Tensor:
        return self.layer_module(layer)(hidden, context.attention_mask, context.position_bias)[0]

    def parts(self, layer: int) -> LayerParts:
        module: Any = self.layer_module(layer)
        outer, attention = module.attention, module.attention.attn

        def finish(mixed: Tensor, hidden: Tensor) -> Tensor:
            attended = outer.LayerNorm(outer.dropout(attention.o(mixed)) + hidden)
            return module.output(module.intermediate(attended), attended)

        return LayerParts(attention.q, attention.k, attention.v, attention.dropout, finish)


class DistilBertStepper(EncoderStepper):
    """DistilBERT: layers under ``transformer.layer``."""

    def layer_module(self, layer: int) -> nn.Module:
        return self.backbone.transformer.layer[layer - 1]

    def embed(self, batch: Batch) -> Tensor:
        return self.backbone.embeddings(batch.input_ids)


class AlbertStepper(EncoderStepper):
    """ALBERT: groups of layers that share weights, after a projection of the embeddings."""

    uses_token_types = True

    def layer_module(self, layer: int) -> nn.Module:
        return self.backbone.encoder.albert_layer_groups[_albert_group(self.config, layer)]

    def config_of_first_layers(self, layers: int) -> Any:
        config = super().config_of_first_layers(layers)
        groups = [_albert_group(self.config, layer) for layer in range(1, layers + 1)]
        config.num_hidden_groups = groups[-1] + 1
        if groups != [_albert_group(config, layer) for layer in range(1, layers + 1)]:
            raise UserError(
                f"no stock ALBERT shares weights as the first {layers} layers of this one do; "
                "choose a number of layers that ends with a group"
            )
        return config

    def embed(self, batch: Batch) -> Tensor:
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


class DebertaStepper(EncoderStepper):
    """DeBERTa v2 and v3: relative positions for all layers; v2 may have a convolution beside layer 1."""

    def __init__(self, backbone: Any) -> None:
        super().__init__(backbone)
        self.uses_token_types = self.config.type_vocab_size > 0

    def embed(self, batch: Batch) -> Tensor:
        return self.backbone.embeddings(batch.input_ids, batch.token_type_ids, mask=batch.padding_mask)

    def position_bias(self, hidden: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Compute the distances of all tokens, int64 [1, tokens, tokens], and the embeddings of distances."""
        encoder = self.backbone.encoder
        return encoder.get_rel_pos(hidden), encoder.get_rel_embedding()

    def step(self, layer: int, hidden: Tensor, context: Context) -> Tensor:
        distances, embeddings = context.position_bias
        bias = {"relative_pos": distances, "rel_embeddings": embeddings}
        output = self.layer_module(layer)(hidden, context.attention_mask, **bias)[0]
        convolution = self.backbone.encoder.conv if layer == 1 else None
        return output if convolution is None else convolution(hidden, output, context.batch.padding_mask.long())

    def _attention_mask(self, hidden: Tensor, batch: Batch) -> Tensor:
        return self.backbone.encoder.get_attention_mask(batch.padding_mask)


class ModernBertStepper(EncoderStepper):
    """ModernBERT: rotary positions, layers that attend to all tokens or to near ones, a norm behind layer L."""

    def layer_module(self, layer: int) -> nn.Module:
        return self.backbone.layers[layer - 1]

    def config_of_first_layers(self, layers: int) -> Any:
        config = super().config_of_first_layers(layers)
        config.layer_types = config.layer_types[:layers]
        return config

    def embed(self, batch: Batch) -> Tensor:
        return self.backbone.embeddings(batch.input_ids)

    def position_bias(self, hidden: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Compute the rotation of each kind of layer: cosines and sines [1, tokens, head width]."""
        positions = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
        return {kind: self.backbone.rotary_emb(hidden, positions, kind) for kind in set(self.config.layer_types)}

    def read(self, layer: int, hidden: Tensor) -> Tensor:
        return self.backbone.final_norm(hidden)

    def step(self, layer: int, hidden: Tensor, context: Context) -> Tensor:
        kind = self.config.layer_types[layer - 1]
        return self.layer_module(layer)(hidden, context.attention_mask[kind], context.position_bias[kind])

    def _attention_mask(self, hidden: Tensor, batch: Batch) -> dict[str, Tensor | None]:
        of_kind = {
            "full_attention": create_bidirectional_mask,
            "sliding_attention": create_bidirectional_sliding_window_mask,
        }
        inputs = self.config, hidden, batch.padding_mask if batch.is_padded else None
        return {kind: of_kind[kind](*inputs) for kind in set(self.config.layer_types)}


STEPPERS: dict[str, type[EncoderStepper]] = {
    "albert": AlbertStepper,
    "bert": BertStepper,
    "deberta-v2": DebertaStepper,
    "distilbert": DistilBertStepper,
    "electra": ElectraStepper,
    "modernbert": ModernBertStepper,
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


def layers_run(live_tokens: Tensor | None, exits: Tensor) -> Tensor:
    """Compute the layers that each row ran, the mean over its tokens: float64 [N].

    A token runs up to its own exit layer or its row's, whichever comes first. ``live_tokens``: see
    :meth:`EncoderStepper.live_tokens`; ``exits``: the rows' 1-based exit layers, int64 [N].
    """
    if live_tokens is None:
        return exits.double()
    ran = live_tokens.cumsum(dim=1).gather(1, exits.unsqueeze(1) - 1).squeeze(1)
    return ran.double() / live_tokens[:, 0]  # exit layers start at 1: at layer 1 every token is live
