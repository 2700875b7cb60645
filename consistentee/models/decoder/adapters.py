"""Adapters of a decoder: of its exits, between a middle layer and the LM head; and of its layers (LoRA, with peft)."""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from consistentee.backbones.decoders import DecoderStepper
from consistentee.errors import UserError
from consistentee.extras import check_extra

RIDGE = 1e-3
"""Added to the diagonal of the moments, relative to its mean: states of few tokens do not span every direction."""


@dataclass(frozen=True)
class StateMoments:
    """Sums over tokens that give least-squares maps of an exit's states to those of layer L: float64 [width, width].

    They give exits a start in closed form: a middle layer's states, read as layer L's are, give nonsense with great
    confidence (compare the "translator" that Belrose et al., 2023, arXiv 2303.08112, train).

    Attributes:
        inputs: of ``x x^T``, with x the stock final norm of an exit's hidden state.
        products: of ``x y^T``, with y the same of layer L.
        metric: ``U^T U`` of the LM head U: how far apart two states are in logits.
    """

    inputs: Tensor
    products: Tensor
    metric: Tensor

    @classmethod
    def zero(cls, lm_head: Tensor) -> "StateMoments":
        """Return the moments of no tokens, for an LM head [vocabulary, width]."""
        metric = (lm_head.T @ lm_head).double()
        return cls(torch.zeros_like(metric), torch.zeros_like(metric), metric)

    def plus(self, inputs: Tensor, outputs: Tensor) -> "StateMoments":
        """Return the moments with some tokens more: states [tokens, width] each."""
        inputs, outputs = inputs.double(), outputs.double()
        return StateMoments(self.inputs + inputs.T @ inputs, self.products + inputs.T @ outputs, self.metric)

    @property
    def scale(self) -> Tensor:
        """The number s for which ``s x`` is nearest to y."""
        return self.products.trace() / self.inputs.trace()

    @property
    def channel_scales(self) -> Tensor:
        """The same for every channel by itself: [width]. It is 1 for a channel that the final norm sets to zero."""
        squares = self.inputs.diagonal()
        return torch.where(squares > 0, self.products.diagonal() / squares, 1.0)

    @property
    def map(self) -> Tensor:
        """The matrix W for which ``x W`` is nearest to y, but for the ridge: [width, width]."""
        identity = torch.eye(len(self.inputs), dtype=self.inputs.dtype, device=self.inputs.device)
        return torch.linalg.solve(self.inputs + RIDGE * self.inputs.diagonal().mean() * identity, self.products)

    def low_rank(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return A [width, rank] and B [rank, width], of equal norm, for which ``s x + x A B`` is nearest to ``x W``.

        Nearest in logits: this is reduced-rank regression with the LM head as the metric.
        """
        identity = torch.eye(len(self.inputs), dtype=self.inputs.dtype, device=self.inputs.device)
        residual = self.map - self.scale * identity
        values, vectors = torch.linalg.eigh(self.metric)
        root = values.clamp_min(values[-1] * 1e-12).sqrt()
        to_logits, from_logits = (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
        spread = to_logits @ residual.T @ self.inputs @ residual @ to_logits
        kept = torch.linalg.eigh(spread).eigenvectors.flip(dims=[1])[:, :rank]
        left, right = residual @ to_logits @ kept, kept.T @ from_logits
        balance = (right.norm() / left.norm().clamp_min(1e-12)).sqrt()
        return left * balance, right / balance


AdapterKind = Literal["norm", "low-rank", "head", "shared"]
"""The weights that an exit has of its own.

``norm``: a final norm; the LM head is the model's. ``low-rank``: that, and a low-rank correction of the normed state,
2 * rank * width weights. ``head``: a full copy of the LM head, as in ConsistentEE's code, width * vocabulary weights
(SmolLM2-135M: 28.3 million). ``shared``: nothing, as in LITE and sorted fine-tuning, where the backbone learns.
"""


class ExitAdapter(nn.Module):
    """Reads hidden states by the model's final norm and LM head, as layer L does; other kinds start the same."""

    def state(self, hidden: Tensor, stepper: DecoderStepper) -> Tensor:
        """Return what the LM head reads of hidden states: [..., width] -> [..., width]."""
        return stepper.final_norm(hidden)

    def head(self, stepper: DecoderStepper) -> nn.Linear:
        """Return the LM head: the model's, unless the exit has its own."""
        return stepper.backbone.lm_head

    def forward(self, hidden: Tensor, stepper: DecoderStepper) -> Tensor:
        """Return logits [..., vocabulary] of hidden states [..., width]."""
        return self.head(stepper)(self.state(hidden, stepper))

    def start_from(self, moments: StateMoments) -> None:
        """Set untrained weights, if any, to what comes nearest to the least-squares map onto the states of layer L."""


class NormAdapter(ExitAdapter):
    """A final norm of its own before the shared LM head."""

    def __init__(self, stepper: DecoderStepper) -> None:
        super().__init__()
        self.norm = copy.deepcopy(stepper.final_norm)
        self._gain_offset = stepper.gain_offset

    def state(self, hidden: Tensor, stepper: DecoderStepper) -> Tensor:
        return self.norm(hidden)

    def start_from(self, moments: StateMoments) -> None:
        self._scale_norm(moments.channel_scales)

    @torch.no_grad()
    def _scale_norm(self, scales: Tensor) -> None:
        for parameter in self.norm.parameters():  # the gain, and the bias where there is one
            parameter.add_(self._gain_offset).mul_(scales.to(parameter)).sub_(self._gain_offset)


class LowRankAdapter(NormAdapter):
    """A final norm of its own, and a low-rank residual that starts at zero, before the shared LM head."""

    def __init__(self, stepper: DecoderStepper, rank: int) -> None:
        super().__init__(stepper)
        self.down = nn.Linear(stepper.width, rank, bias=False)
        self.up = nn.Linear(rank, stepper.width, bias=False)
        nn.init.zeros_(self.up.weight)

    def state(self, hidden: Tensor, stepper: DecoderStepper) -> Tensor:
        state = self.norm(hidden)
        return state + self.up(self.down(state))

    @torch.no_grad()
    def start_from(self, moments: StateMoments) -> None:
        self._scale_norm(moments.scale)
        left, right = moments.low_rank(self.down.out_features)
        self.down.weight.copy_((left / moments.scale).T)
        self.up.weight.copy_(right.T)


class HeadAdapter(ExitAdapter):
    """A copy of the LM head behind the stock final norm."""

    def __init__(self, lm_head: nn.Linear) -> None:
        super().__init__()
        self.lm_head: nn.Linear = copy.deepcopy(lm_head)

    def head(self, stepper: DecoderStepper) -> nn.Linear:
        return self.lm_head

    @torch.no_grad()
    def start_from(self, moments: StateMoments) -> None:
        weight = self.lm_head.weight
        weight.copy_(weight @ moments.map.T.to(weight))


def build_adapter(kind: AdapterKind, rank: int, stepper: DecoderStepper) -> ExitAdapter:
    """Return an untrained adapter, which reads as the stock model does. A rank is at most the width."""
    adapter = ExitAdapter()
    if kind == "norm":
        adapter = NormAdapter(stepper)
    elif kind == "low-rank":
        adapter = LowRankAdapter(stepper, min(rank, stepper.width))
    elif kind == "head":
        adapter = HeadAdapter(stepper.backbone.lm_head)
    like = stepper.backbone.lm_head.weight
    return adapter.to(like.device, like.dtype)


@dataclass(frozen=True)
class LoraSpec:
    """Rank of the low-rank paths, and the modules of every layer that get one, by the last part of their name."""

    rank: int
    targets: tuple[str, ...]


def inject_lora(backbone: nn.Module, spec: LoraSpec) -> None:
    """Add a trainable low-rank path to the modules that ``spec`` names: it gives zero until it is trained.

    The scale is 1 (alpha = rank). Raises UserError without peft, and where the backbone has no such modules.
    """
    check_extra("lora", "LoRA")
    from peft import LoraConfig, inject_adapter_in_model

    linear: dict[str, nn.Module] = {}
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            linear[name.rpartition(".")[2]] = module
    absent = sorted(set(spec.targets) - linear.keys())
    if absent or not spec.targets:
        raise UserError(f"the backbone has no modules named {absent} for LoRA; it has {', '.join(sorted(linear))}")
    transposed = isinstance(linear[spec.targets[0]], Conv1D)
    config = LoraConfig(r=spec.rank, lora_alpha=spec.rank, target_modules=list(spec.targets), fan_in_fan_out=transposed)
    inject_adapter_in_model(config, backbone)
    backbone.requires_grad_(True)  # peft has frozen it; stages choose what they train


def merge_lora_weights(backbone: nn.Module) -> None:
    """Merge LoRA into the weights, and remove it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    wrapped = [(name, module) for name, module in backbone.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, module in wrapped:
        module.merge()
        backbone.set_submodule(name, module.get_base_layer())


def is_lora(name: str) -> bool:
    """Check whether a weight of this name belongs to LoRA."""
    return ".lora_" in name


def base_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the stock model among those of one with LoRA, by their stock names."""
    return {name.replace(".base_layer.", "."): tensor for name, tensor in weights.items() if not is_lora(name)}
