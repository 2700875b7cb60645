"""Layer-stepping for decoders: a stock causal language model, run one layer at a time by calling its own layers.

A stepper knows how tokens become the input of layer 1, what the layers need of the positions, how a layer is called,
and how a layer makes the keys and values that later tokens attend to. The attention itself is the stock layers' own.
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

from consistentee.backbones.lm_head import logits_among
from consistentee.errors import UserError


class KeysValues(Protocol):
    """A key/value cache, as stock attention calls it."""

    def update(self, keys: Tensor, values: Tensor, layer_index: int, /, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Take the keys and values of the new tokens [rows, kv_heads, T, head_dim]; return what they attend to.

        ``layer_index`` counts from 0, as in the stock models.
        """
        ...


@dataclass(frozen=True)
class DecoderContext:
    """What the layers need beside the hidden states.

    Attributes:
        positions: int64 [rows, T].
        rotation: what :meth:`DecoderStepper.rotation` made of the positions.
        attention_mask: what the stock layer takes for the attention in use (sdpa: bool [rows, 1, T, columns]). With
            None, one new token attends to everything that the cache returns, and several tokens without a cache
            attend causally; several tokens *behind* cached ones need a mask.
        cache: where the layers put their keys and values, or None.
    """

    positions: Tensor
    rotation: Any
    attention_mask: Tensor | None
    cache: KeysValues | None = None


def positions_of(padding_mask: Tensor) -> Tensor:
    """Return the position of every token, counted over its row's real tokens: int64 [rows, tokens]; 0 for padding."""
    return (padding_mask.long().cumsum(dim=1) - 1).clamp_min(0) * padding_mask


class DecoderStepper(ABC):
    """Runs a stock causal language model one layer at a time.

    Class attributes:
        lora_targets: the modules of a layer that low-rank adaptation is usually put beside.
        mlp: the names of a layer's MLP, and of the norm before it.

    Attributes:
        layers: the stock modules, layer 1 first.
        final_norm: the stock norm between layer L and the LM head.
    """

    lora_targets: ClassVar[tuple[str, ...]]
    mlp: ClassVar[tuple[str, str]]

    def __init__(self, backbone: Any, layers: Sequence[nn.Module], final_norm: nn.Module) -> None:
        """``backbone``: what ``AutoModelForCausalLM`` loads."""
        self.backbone = backbone
        self.config = backbone.config
        self.layers = layers
        self.final_norm = final_norm

    def over(self, layers: Sequence[nn.Module], final_norm: nn.Module) -> Self:
        """Return a stepper of other layers and another final norm between the same embeddings and LM head."""
        other = copy.copy(self)
        other.layers, other.final_norm = layers, final_norm
        return other

    @property
    def num_layers(self) -> int:
        """Number of layers, L."""
        return len(self.layers)

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return int(self.config.hidden_size)

    @property
    def vocabulary(self) -> int:
        """Number of tokens that the LM head tells apart."""
        return int(self.config.vocab_size)

    @property
    def position_limit(self) -> int:
        """Number of tokens that a row may have, prompt and text together.

        Where a model attends to a sliding window, the limit is that window: up to there the window hides nothing.
        """
        window = _sliding_window(self.config)
        limit = int(self.config.max_position_embeddings)
        return limit if window is None else min(limit, window)

    @property
    @abstractmethod
    def kv_heads(self) -> int:
        """Number of heads of the keys and values."""

    @property
    @abstractmethod
    def head_dim(self) -> int:
        """Width of one head."""

    def check_length(self, tokens: int) -> None:
        """Raise UserError if a row of this many tokens is longer than the model can read."""
        if tokens > self.position_limit:
            window = _sliding_window(self.config)
            why = "its sliding attention window" if self.position_limit == window else "its positions"
            raise UserError(f"{tokens} tokens are more than this model reads at once: {self.position_limit} ({why})")

    def layer_module(self, layer: int) -> nn.Module:
        """Return the stock module that is layer ``layer`` (1-based)."""
        return self.layers[layer - 1]

    def copied_layer(self, layer: int, *, number: int, with_mlp: bool = True) -> nn.Module:
        """Return a copy of a layer that is layer ``number`` of another stack; both count from 1.

        ``with_mlp=False`` leaves norm and attention of it, and what they add to the hidden state.
        """
        shared = {id(self.config): self.config}  # what the configuration is told later holds for the copy too
        copied = copy.deepcopy(self.layer_module(layer), shared)
        for module in copied.modules():
            if "layer_idx" in vars(module):
                vars(module)["layer_idx"] = number - 1  # where the cache has its keys and values
        if not with_mlp:
            mlp, norm = self.mlp
            setattr(copied, norm, nn.Identity())
            setattr(copied, mlp, _Nothing())
        return copied

    @abstractmethod
    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Return the input of layer 1 [rows, T, width]; both arguments are int64 [rows, T]."""

    @abstractmethod
    def rotation(self, hidden: Tensor, positions: Tensor) -> Any:
        """Return what every layer needs of the positions; None where the embeddings have said it all."""

    @abstractmethod
    def step(self, layer: int, hidden: Tensor, context: DecoderContext) -> Tensor:
        """Run layer ``layer`` (1-based) on [rows, T, width]."""

    def check_sublayers(self) -> None:
        """Raise UserError if layers of this family can be run as a whole only."""
        if type(self).attend is DecoderStepper.attend:
            raise self._undivided()

    def _undivided(self) -> UserError:
        return UserError(f"attention and MLP of architecture {self.config.model_type!r} cannot be run apart")

    def attend(self, layer: int, hidden: Tensor, context: DecoderContext) -> Tensor:
        """Run norm and attention of layer ``layer`` (1-based) alone, and add what they make to [rows, T, width].

        With :meth:`feed_forward` behind it, it is the layer. Raises UserError for a family that does not say how.
        """
        raise self._undivided()

    def feed_forward(self, layer: int, hidden: Tensor) -> Tensor:
        """Run norm and MLP of layer ``layer`` (1-based) alone, and add what they make to [rows, T, width]."""
        mlp, norm = (getattr(self.layer_module(layer), name) for name in self.mlp)
        return hidden + mlp(norm(hidden))

    def mlp_share(self, layer: int) -> float:
        """Return how much of a layer's weights are in its MLP and the norm before it; the rest is in its attention."""
        module = self.layer_module(layer)
        in_mlp = sum(count_weights(getattr(module, name)) for name in self.mlp)
        return in_mlp / count_weights(module)

    @abstractmethod
    def keys_values(self, layer: int, hidden: Tensor, rotation: Any) -> tuple[Tensor, Tensor]:
        """Return the keys and values that layer ``layer`` makes of the hidden states that enter it.

        This is state propagation (CALM, section 3.3.1): the layer's own input norm and projections, and nothing else of
        the layer. Shapes: [rows, T, width] -> [rows, kv_heads, T, head_dim] each.
        """

    def normalise(self, hidden: Tensor) -> Tensor:
        """Apply the final norm to [..., width]."""
        return self.final_norm(hidden)

    def unembed(self, state: Tensor) -> Tensor:
        """Apply the LM head: [..., width] -> [..., vocabulary]."""
        return self.backbone.lm_head(state)

    def unembed_among(self, state: Tensor, tokens: Tensor) -> Tensor:
        """Apply the columns of the LM head that give some tokens: [rows, width], int64 [rows, K] -> [rows, K]."""
        return logits_among(self.backbone.lm_head, state, tokens)

    def begin(self, tokens: Tensor, padding_mask: Tensor) -> tuple[Tensor, DecoderContext]:
        """Prepare a pass of whole rows without a cache: the input of layer 1, and its context.

        Args:
            tokens: int64 [rows, tokens], padded on either side.
            padding_mask: bool [rows, tokens], True where there is a real token.

        Raises UserError for rows that are longer than the model can read.
        """
        self.check_length(tokens.shape[1])
        positions = positions_of(padding_mask)
        hidden = self.embed(tokens, positions)
        mask = create_causal_mask(self.config, hidden, padding_mask, None)
        return hidden, DecoderContext(positions, self.rotation(hidden, positions), mask)


def count_weights(module: nn.Module) -> int:
    """Return the number of weights of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


class _Nothing(nn.Module):
    """What stands for a part of a layer that adds nothing."""

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.zeros_like(hidden)


class LlamaStepper(DecoderStepper):
    """Llama and what is built like it (Mistral, Qwen2, SmolLM): rotary positions, RMS norms, shared keys."""

    lora_targets = ("q_proj", "v_proj")
    mlp = ("mlp", "post_attention_layernorm")

    def __init__(self, backbone: Any) -> None:
        super().__init__(backbone, backbone.model.layers, backbone.model.norm)

    @property
    def kv_heads(self) -> int:
        """Number of heads of the keys and values, which groups of query heads share."""
        return int(self.config.num_key_value_heads)

    @property
    def head_dim(self) -> int:
        return int(self.layer_module(1).self_attn.head_dim)  # type: ignore[union-attr, arg-type]

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Word embeddings; the positions come in the layers."""
        return self.backbone.model.embed_tokens(tokens)

    def rotation(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines: [rows, T, head_dim] each."""
        return self.backbone.model.rotary_emb(hidden, positions)

    def step(self, layer: int, hidden: Tensor, context: DecoderContext) -> Tensor:
        # The cache goes by its place: its name differs between versions of transformers.
        return self.layer_module(layer)(
            hidden, context.attention_mask, context.positions, context.cache, position_embeddings=context.rotation
        )

    def attend(self, layer: int, hidden: Tensor, context: DecoderContext) -> Tensor:
        module: Any = self.layer_module(layer)
        normed = module.input_layernorm(hidden)
        return hidden + module.self_attn(normed, context.rotation, context.attention_mask, context.cache)[0]

    def keys_values(self, layer: int, hidden: Tensor, rotation: Any) -> tuple[Tensor, Tensor]:
        """Input norm, projections, and the rotation of the keys."""
        module: Any = self.layer_module(layer)
        normed = module.input_layernorm(hidden)
        shape = (*hidden.shape[:-1], -1, module.self_attn.head_dim)
        keys = self.project_keys(module.self_attn, normed, shape).transpose(1, 2)
        values = module.self_attn.v_proj(normed).view(shape).transpose(1, 2)
        cosines, sines = (part.unsqueeze(1) for part in rotation)
        return keys * cosines + rotate_half(keys) * sines, values

    def project_keys(self, attention: Any, normed: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the keys before their rotation: [rows, T, kv_heads, head_dim]."""
        return attention.k_proj(normed).view(shape)


class Qwen3Stepper(LlamaStepper):
    """Qwen3: as Llama, with a norm of its own on every key."""

    def project_keys(self, attention: Any, normed: Tensor, shape: tuple[int, ...]) -> Tensor:
        return attention.k_norm(super().project_keys(attention, normed, shape))


class GPT2Stepper(DecoderStepper):
    """GPT-2: learned positions in the embeddings, one projection for queries, keys and values."""

    lora_targets = ("c_attn",)
    mlp = ("mlp", "ln_2")

    def __init__(self, backbone: Any) -> None:
        super().__init__(backbone, backbone.transformer.h, backbone.transformer.ln_f)

    @property
    def kv_heads(self) -> int:
        """Number of attention heads: no two share keys."""
        return int(self.config.num_attention_heads)

    @property
    def head_dim(self) -> int:
        return self.width // self.kv_heads

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        stock = self.backbone.transformer
        return stock.drop(stock.wte(tokens) + stock.wpe(positions))

    def rotation(self, hidden: Tensor, positions: Tensor) -> None:
        """Return None: the embeddings hold the positions."""
        return

    def step(self, layer: int, hidden: Tensor, context: DecoderContext) -> Tensor:
        return self.layer_module(layer)(hidden, context.cache, context.attention_mask)

    def attend(self, layer: int, hidden: Tensor, context: DecoderContext) -> Tensor:
        module: Any = self.layer_module(layer)
        return hidden + module.attn(module.ln_1(hidden), context.cache, context.attention_mask)[0]

    def keys_values(self, layer: int, hidden: Tensor, rotation: Any) -> tuple[Tensor, Tensor]:
        """Input norm, and the joint projection, whose queries are dropped."""
        module: Any = self.layer_module(layer)
        _, keys, values = module.attn.c_attn(module.ln_1(hidden)).split(self.width, dim=-1)
        shape = (*hidden.shape[:-1], self.kv_heads, self.head_dim)
        return keys.view(shape).transpose(1, 2), values.view(shape).transpose(1, 2)


DECODER_STEPPERS: dict[str, Callable[[Any], DecoderStepper]] = {
    "gpt2": GPT2Stepper,
    "llama": LlamaStepper,
    "mistral": LlamaStepper,
    "qwen2": LlamaStepper,
    "qwen3": Qwen3Stepper,
}
"""``config.model_type`` -> stepper."""


def check_decoder_family(family: str) -> None:
    """Raise UserError if no stepper knows an architecture, which is given as ``config.model_type``."""
    from consistentee.backbones.encoders import STEPPERS

    if family in STEPPERS:
        raise UserError(f"{family!r} is an encoder, which generates no text; use MultiExitModel.from_backbone for it")
    if family not in DECODER_STEPPERS:
        supported = ", ".join(sorted(DECODER_STEPPERS))
        raise UserError(f"no layer-stepping for decoders of architecture {family!r}; supported: {supported}")


def decoder_stepper_for(backbone: Any) -> DecoderStepper:
    """Return the stepper of a stock causal language model. Raises UserError for a family that has none."""
    check_decoder_family(backbone.config.model_type)
    return DECODER_STEPPERS[backbone.config.model_type](backbone)


def _sliding_window(config: Any) -> int | None:
    """Return the number of tokens that some layer attends to at most, or None where every layer attends to all."""
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None) or ["sliding_attention"]
    return None if window is None or "sliding_attention" not in layer_types else int(window)
