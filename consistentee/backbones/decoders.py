"""Run a stock causal language model one layer at a time by calling its own layers.

A stepper defines for its family the input of layer 1, the positions, how to call a layer, and how to make its keys and
values. The attention is the stock layers' own.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import rotate_half

from consistentee.errors import UserError, wrong_kind

NUMBERS_AT_A_TIME = 2**24


def logits_among(head: nn.Linear, states: Tensor, tokens: Tensor) -> Tensor:
    """Return the LM head's logits of some tokens alone: states [rows, width], int64 tokens [rows, K] -> [rows, K].

    The weights of these tokens are gathered, for as many rows at a time as take 64 MB in float32.
    """
    at_a_time = max(NUMBERS_AT_A_TIME // (tokens.shape[1] * states.shape[1]), 1)
    products = []
    for some_states, some_tokens in zip(states.split(at_a_time), tokens.split(at_a_time), strict=True):
        gathered = head.weight.index_select(0, some_tokens.flatten()).view(*some_tokens.shape, -1)
        products.append(torch.bmm(gathered, some_states.unsqueeze(2)).squeeze(2))
    logits = products[0] if len(products) == 1 else torch.cat(products)
    return logits if head.bias is None else logits + head.bias[tokens]


class KeysValues(Protocol):
    """Interface of a key/value cache, as stock attention calls it."""

    def update(self, keys: Tensor, values: Tensor, layer_index: int, /, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Add keys and values of new tokens [rows, kv_heads, T, head_dim] and return all that they attend to.

        ``layer_index`` counts from 0.
        """


@dataclass(frozen=True)
class DecoderContext:
    """Inputs of the layers besides the hidden states.

    Attributes:
        positions: int64 [rows, T].
        attention_mask: the mask of the stock layer for the attention in use (sdpa: bool [rows, 1, T, columns]). With
            None, one new token attends to the whole cache, and several tokens without a cache attend causally; several
            tokens after cached ones need a mask.
    """

    positions: Tensor
    rotation: Any
    attention_mask: Tensor | None
    cache: KeysValues | None = None


def positions_of(padding_mask: Tensor) -> Tensor:
    """Count the position of every token among its row's real tokens: int64 [rows, tokens]; 0 for padding."""
    return (padding_mask.long().cumsum(dim=1) - 1).clamp_min(0) * padding_mask


class DecoderStepper(ABC):
    """Run a stock causal language model one layer at a time.

    Class attributes:
        lora_targets: the modules of a layer that usually get low-rank adapters.
        mlp: the names of a layer's MLP and of the norm before it.
        gain_offset: what norms add to their weights before they multiply by them.

    Attributes:
        layers: the stock modules, layer 1 first.
        final_norm: the stock norm between layer L and the LM head.
    """

    lora_targets: ClassVar[tuple[str, ...]]
    mlp: ClassVar[tuple[str, str]]
    gain_offset: ClassVar[float] = 0.0

    def __init__(self, backbone: Any, layers: Sequence[nn.Module], final_norm: nn.Module) -> None:
        self.backbone = backbone
        self.config = backbone.config
        self.layers = layers
        self.final_norm = final_norm

    def over(self, layers: Sequence[nn.Module], final_norm: nn.Module) -> Self:
        """Return a stepper with other layers and another final norm, and the same embeddings and LM head."""
        other = copy.copy(self)
        other.layers, other.final_norm = layers, final_norm
        return other

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def width(self) -> int:
        return int(self.config.hidden_size)

    @property
    def vocabulary(self) -> int:
        """Number of tokens of the LM head."""
        return int(self.config.vocab_size)

    @property
    def position_limit(self) -> int:
        """Maximum number of tokens of prompt and text; at most the sliding window of the attention, if there is one."""
        window = getattr(self.config, "sliding_window", None)
        layer_types = getattr(self.config, "layer_types", None) or ["sliding_attention"]
        limit = int(self.config.max_position_embeddings)
        return limit if window is None or "sliding_attention" not in layer_types else min(limit, int(window))

    @property
    def kv_heads(self) -> int:
        return int(getattr(self.config, "num_key_value_heads", self.config.num_attention_heads))

    @property
    def head_dim(self) -> int:
        return int(getattr(self.config, "head_dim", None) or self.width // self.config.num_attention_heads)

    def check_length(self, tokens: int) -> None:
        """Raise UserError if a row of ``tokens`` tokens is too long for the model."""
        if tokens > self.position_limit:
            raise UserError(f"{tokens} tokens are more than the {self.position_limit} that this model reads at once")

    def layer_module(self, layer: int) -> nn.Module:
        """Return the stock module that is layer ``layer`` (1-based)."""
        return self.layers[layer - 1]

    def copied_layer(self, layer: int, *, number: int, with_mlp: bool = True) -> nn.Module:
        """Copy a layer as layer ``number`` of another stack (both from 1); ``with_mlp=False`` without its MLP."""
        shared = {id(self.config): self.config}  # later changes of the configuration also apply to the copy
        copied = copy.deepcopy(self.layer_module(layer), shared)
        for module in copied.modules():
            if "layer_idx" in vars(module):
                vars(module)["layer_idx"] = number - 1  # its index in the cache
        if not with_mlp:
            mlp, norm = self.mlp
            setattr(copied, norm, nn.Identity())
            setattr(copied, mlp, _Nothing())
        return copied

    @abstractmethod
    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Compute the input of layer 1 [rows, T, width]; both arguments are int64 [rows, T]."""

    @abstractmethod
    def rotation(self, hidden: Tensor, positions: Tensor) -> Any:
        """Compute the layers' input from positions; None if only the embeddings use them."""

    @abstractmethod
    def step(self, layer: int, hidden: Tensor, context: DecoderContext) -> Tensor:
        """Run layer ``layer`` (1-based) on [rows, T, width]."""

    @abstractmethod
    def attend(self, layer: int, hidden: Tensor, context: DecoderContext) -> Tensor:
        """Run norm and attention of layer ``layer`` (1-based) and add the result to [rows, T, width].

        Followed by :meth:`feed_forward` it is the layer.
        """

    def feed_forward(self, layer: int, hidden: Tensor) -> Tensor:
        """Run norm and MLP of layer ``layer`` (1-based) and add the result to [rows, T, width]."""
        mlp, norm = (getattr(self.layer_module(layer), name) for name in self.mlp)
        return hidden + mlp(norm(hidden))

    def mlp_share(self, layer: int) -> float:
        """Compute the share of a layer's weights in its MLP and the norm before it."""
        module = self.layer_module(layer)
        in_mlp = sum(count_weights(getattr(module, name)) for name in self.mlp)
        return in_mlp / count_weights(module)

    @abstractmethod
    def project(self, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Compute keys and values of layer ``layer`` from its input with its norm and projections alone.

        Keys are not yet rotated: [rows, T, width] -> [rows, T, kv_heads * head_dim] each.
        """

    def rotate(self, keys: Tensor, rotation: Any) -> Tensor:
        """Rotate keys [..., rows, kv_heads, T, head_dim]; by default they know nothing of positions."""
        return keys

    def keys_values(self, layers: Sequence[int], hidden: Tensor, rotation: Any) -> tuple[Tensor, Tensor]:
        """Compute keys and values of some layers (1-based), all from the same input.

        This is state propagation (CALM, section 3.3.1): [rows, T, width] -> [layers, rows, kv_heads, T, head_dim] each.
        """
        projected = zip(*(self.project(layer, hidden) for layer in layers), strict=True)
        shape = (len(layers), *hidden.shape[:-1], self.kv_heads, self.head_dim)
        keys, values = (torch.stack(parts).view(shape).transpose(2, 3) for parts in projected)
        return self.rotate(keys, rotation), values

    def begin(self, tokens: Tensor, padding_mask: Tensor) -> tuple[Tensor, DecoderContext]:
        """Prepare a pass of whole rows without a cache: the input of layer 1 and its context.

        Tokens are int64 [rows, tokens], padded on either side; the mask is True where there is a real token. Raises
        UserError for rows that are too long for the model.
        """
        self.check_length(tokens.shape[1])
        positions = positions_of(padding_mask)
        hidden = self.embed(tokens, positions)
        mask = create_causal_mask(self.config, hidden, padding_mask, None)
        return hidden, DecoderContext(positions, self.rotation(hidden, positions), mask)


def count_weights(module: nn.Module) -> int:
    """Count the weights of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


class _Nothing(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return torch.zeros_like(hidden)


class LlamaStepper(DecoderStepper):
    """Llama, Mistral, Qwen2, SmolLM: rotary positions, RMS norms, shared keys."""

    lora_targets = ("q_proj", "v_proj")
    mlp = ("mlp", "post_attention_layernorm")

    def __init__(self, backbone: Any) -> None:
        super().__init__(backbone, backbone.model.layers, backbone.model.norm)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self.backbone.model.embed_tokens(tokens)

    def rotation(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.backbone.model.rotary_emb(hidden, positions)

    def step(self, layer: int, hidden: Tensor, context: DecoderContext) -> Tensor:
        # The cache is a positional argument because its name differs between versions of transformers.
        return self.layer_module(layer)(
            hidden, context.attention_mask, context.positions, context.cache, position_embeddings=context.rotation
        )

    def attend(self, layer: int, hidden: Tensor, context: DecoderContext) -> Tensor:
        module: Any = self.layer_module(layer)
        normed = module.input_layernorm(hidden)
        return hidden + module.self_attn(normed, context.rotation, context.attention_mask, context.cache)[0]

    def project(self, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        module: Any = self.layer_module(layer)
        normed = module.input_layernorm(hidden)
        return module.self_attn.k_proj(normed), module.self_attn.v_proj(normed)

    def rotate(self, keys: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        cosines, sines = (part.unsqueeze(1) for part in rotation)
        return keys * cosines + rotate_half(keys) * sines


class Qwen3Stepper(LlamaStepper):
    """Qwen3: as Llama, with a norm of its own on every key."""

    def project(self, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = super().project(layer, hidden)
        module: Any = self.layer_module(layer)
        return module.self_attn.k_norm(keys.unflatten(-1, (self.kv_heads, self.head_dim))).flatten(-2), values


class GemmaStepper(LlamaStepper):
    """Gemma: as Llama, with scaled embeddings, and norms whose weights count from 1."""

    gain_offset = 1.0


class GPT2Stepper(DecoderStepper):
    """GPT-2: learned positions in the embeddings, one projection for queries, keys and values."""

    lora_targets = ("c_attn",)
    mlp = ("mlp", "ln_2")

    def __init__(self, backbone: Any) -> None:
        super().__init__(backbone, backbone.transformer.h, backbone.transformer.ln_f)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        stock = self.backbone.transformer
        return stock.drop(stock.wte(tokens) + stock.wpe(positions))

    def rotation(self, hidden: Tensor, positions: Tensor) -> None:
        return

    def step(self, layer: int, hidden: Tensor, context: DecoderContext) -> Tensor:
        return self.layer_module(layer)(hidden, context.cache, context.attention_mask)

    def attend(self, layer: int, hidden: Tensor, context: DecoderContext) -> Tensor:
        module: Any = self.layer_module(layer)
        return hidden + module.attn(module.ln_1(hidden), context.cache, context.attention_mask)[0]

    def project(self, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        module: Any = self.layer_module(layer)
        _, keys, values = module.attn.c_attn(module.ln_1(hidden)).split(self.width, dim=-1)
        return keys, values


DECODER_STEPPERS: dict[str, Callable[[Any], DecoderStepper]] = {
    "gemma": GemmaStepper,
    "gpt2": GPT2Stepper,
    "llama": LlamaStepper,
    "mistral": LlamaStepper,
    "qwen2": LlamaStepper,
    "qwen3": Qwen3Stepper,
}
"""``config.model_type`` -> stepper."""


def refuse_decoder_family(family: str) -> None:
    """Raise UserError if an architecture, which is given as ``config.model_type``, is that of a decoder."""
    if family in DECODER_STEPPERS:
        raise wrong_kind(family, "decoder")


def check_decoder_family(family: str) -> None:
    """Raise UserError if no stepper knows an architecture, which is given as ``config.model_type``."""
    from consistentee.backbones.encoders import STEPPERS

    if family in STEPPERS:
        raise wrong_kind(family, "encoder")
    if family not in DECODER_STEPPERS:
        supported = ", ".join(sorted(DECODER_STEPPERS))
        why = ": exits are trained on logits without a soft cap" if family == "gemma2" else ""
        raise UserError(f"no layer-stepping for decoders of architecture {family!r}{why}; supported: {supported}")


def decoder_stepper_for(backbone: Any) -> DecoderStepper:
    """Return the stepper of a stock causal language model. Raises UserError for a family that has none."""
    check_decoder_family(backbone.config.model_type)
    return DECODER_STEPPERS[backbone.config.model_type](backbone)
