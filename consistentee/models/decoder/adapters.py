"""Exit adapters: what lies between the hidden state of a middle layer and the LM head of a decoder."""

import copy
from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from consistentee.backbones.decoders import DecoderStepper
from consistentee.backbones.lm_head import logits_among
from consistentee.errors import unknown_name
from consistentee.models.decoder.adapter_start import StateMoments

AdapterKind = Literal["norm", "low-rank", "head", "shared"]
"""What an exit has of its own.

``norm``: a final norm (its gain, and its bias where the family has one); the LM head is the model's. ``low-rank``:
that, and a low-rank correction of the normed state. ``head``: a full copy of the LM head, as in ConsistentEE's code:
width * vocabulary weights an exit (SmolLM2-135M: 28.3 million, 113 MB in float32; LLaMA-7B: 131 million, 524 MB),
against 2 * rank * width of a low-rank adapter. ``shared``: nothing; the exit reads its state by the model's own norm
and LM head, as LITE and sorted fine-tuning do, which makes sense where the backbone learns.
"""


class StockExit(nn.Module):
    """Reads hidden states as the stock model reads those of its last layer: what layer L has for an exit."""

    def state(self, hidden: Tensor, stepper: DecoderStepper) -> Tensor:
        """Return what the LM head reads of hidden states: [..., width] -> [..., width]."""
        return stepper.normalise(hidden)

    def unembed(self, state: Tensor, stepper: DecoderStepper) -> Tensor:
        """Return logits [..., vocabulary] of such states: by the shared LM head, unless the exit has its own."""
        return stepper.unembed(state)

    def head_weight(self, stepper: DecoderStepper) -> Tensor:
        """Return the weights of the LM head that it reads states by: [vocabulary, width]."""
        weight: Tensor = stepper.backbone.lm_head.weight
        return weight

    def unembed_among(self, state: Tensor, tokens: Tensor, stepper: DecoderStepper) -> Tensor:
        """Return the logits of some tokens alone: [rows, width], int64 [rows, K] -> [rows, K]."""
        return stepper.unembed_among(state, tokens)

    def forward(self, hidden: Tensor, stepper: DecoderStepper) -> Tensor:
        """Return logits [..., vocabulary] of hidden states [..., width]; ``stepper`` has the stock norm and LM head."""
        return self.unembed(self.state(hidden, stepper), stepper)


class ExitAdapter(StockExit, ABC):
    """Reads the hidden state of one exit layer; at the start, exactly as the stock model reads its last layer."""

    @abstractmethod
    def start_from(self, moments: StateMoments) -> None:
        """Set an untrained adapter to what comes nearest to the least-squares map onto the states of layer L."""


class SharedAdapter(ExitAdapter):
    """Nothing: the model's final norm and LM head."""

    def start_from(self, moments: StateMoments) -> None:
        """Stay as it is: there are no weights."""


class NormAdapter(ExitAdapter):
    """A final norm of its own before the shared LM head."""

    def __init__(self, final_norm: nn.Module) -> None:
        super().__init__()
        self.norm = copy.deepcopy(final_norm)

    def state(self, hidden: Tensor, stepper: DecoderStepper) -> Tensor:
        return self.norm(hidden)

    def start_from(self, moments: StateMoments) -> None:
        self._scale_norm(moments.channel_scales)

    @torch.no_grad()
    def _scale_norm(self, scales: Tensor) -> None:
        for parameter in self.norm.parameters():  # the gain, and the bias where there is one
            parameter.mul_(scales.to(parameter))


class LowRankAdapter(NormAdapter):
    """A final norm of its own, and a low-rank residual that starts at zero, before the shared LM head."""

    def __init__(self, final_norm: nn.Module, width: int, rank: int) -> None:
        super().__init__(final_norm)
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def state(self, hidden: Tensor, stepper: DecoderStepper) -> Tensor:
        state = self.norm(hidden)
        return state + self.up(self.down(state))

    @torch.no_grad()
    def start_from(self, moments: StateMoments) -> None:
        """Scale the norm, and let the residual say what a scale cannot."""
        self._scale_norm(moments.scale)
        left, right = moments.low_rank(self.down.out_features)
        self.down.weight.copy_((left / moments.scale).T)
        self.up.weight.copy_(right.T)


class HeadAdapter(ExitAdapter):
    """A copy of the LM head behind the stock final norm."""

    def __init__(self, lm_head: nn.Linear) -> None:
        super().__init__()
        self.lm_head: nn.Linear = copy.deepcopy(lm_head)

    def unembed(self, state: Tensor, stepper: DecoderStepper) -> Tensor:
        return self.lm_head(state)

    def head_weight(self, stepper: DecoderStepper) -> Tensor:
        return self.lm_head.weight

    def unembed_among(self, state: Tensor, tokens: Tensor, stepper: DecoderStepper) -> Tensor:
        return logits_among(self.lm_head, state, tokens)

    @torch.no_grad()
    def start_from(self, moments: StateMoments) -> None:
        """Let the LM head read the mapped states."""
        weight = self.lm_head.weight
        weight.copy_(weight @ moments.map.T.to(weight))


def build_adapter(kind: AdapterKind, rank: int, stepper: DecoderStepper) -> ExitAdapter:
    """Return an untrained adapter, which reads as the stock model does.

    A rank above the width is taken for the width. Raises UserError for an unknown kind.
    """
    if kind == "norm":
        adapter: ExitAdapter = NormAdapter(stepper.final_norm)
    elif kind == "low-rank":
        adapter = LowRankAdapter(stepper.final_norm, stepper.width, min(rank, stepper.width))
    elif kind == "head":
        adapter = HeadAdapter(stepper.backbone.lm_head)
    elif kind == "shared":
        adapter = SharedAdapter()
    else:
        raise unknown_name("kind of exit adapter", kind, get_args(AdapterKind))
    like = stepper.backbone.lm_head.weight
    return adapter.to(like.device, like.dtype)
