"""CALM (Schuster et al., NeurIPS 2022, arXiv 2207.07061): every token leaves where a confidence reaches a threshold.

Training (section 3.4): all exits together through one output embedding, weights growing with depth; here the stage that
all methods of generation share. Confidences (section 3.5) of an exit in the next token:

* softmax: the difference of the two largest probabilities, which costs the LM head at every exit;
* state: the cosine of the states at this exit and at the one before, from the second exit on (the paper's exits are
  after every layer, ours after some);
* classifier: a linear head on the state, shared by all exits, fitted to "this exit says what the last one says" with
  the rest frozen, on states that the frozen model left once.

Threshold (equation 5): ``clip(0.9 lambda + 0.1 exp(-tau step / N), 0, 1)``, N being the most tokens that a
text has: early tokens, whose faults live on, must be surer. tau is 4, and 0 for the state, as in the paper's tables.

Choices. lambda may lie outside of 0..1, where the formula's threshold ends up at 0 and every token leaves at once, or
at 1, which is taken to be out of reach, so that the ends of the knob are the first exit and full depth. Which lambda
keeps a promise about the text is found by :mod:`consistentee.methods.calibration`, over lambdas from 1 down to 0.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from consistentee.data.prompts import TextTask
from consistentee.methods.method import Knob
from consistentee.methods.token_answers import exit_answers
from consistentee.methods.token_method import TokenMethod
from consistentee.models.decoder import MultiExitDecoder
from consistentee.models.heads import HeadSpec
from consistentee.rules.exit_rule import ExitRule, State
from consistentee.rules.schedules import text_length
from consistentee.rules.signals import Signal, head_probability, margin
from consistentee.rules.view import LayerView
from consistentee.training.recipe import TokenRecipe
from consistentee.training.token_sources import StateBatch
from consistentee.training.token_stages import train_exits, train_learned_head

_CONFIDENCE = "confidence"
_LATE_THRESHOLDS = torch.linspace(-7, 7, 57, dtype=torch.float64).sigmoid().tolist()
_LAMBDAS = (-0.2, *(threshold / 0.9 for threshold in _LATE_THRESHOLDS), 1.2)


class DecayingThresholdRule(ExitRule, ABC):
    """Leave where a confidence, in 0..1, has reached a threshold that falls along the text."""

    def __init__(self, threshold: float, tau: float, tokens: int) -> None:
        self.threshold = threshold
        self.tau = tau
        self.tokens = tokens

    @abstractmethod
    def confidence(self, view: LayerView, state: State) -> Tensor:
        """Return the confidence of the exit in the next token: float [rows]."""

    def threshold_at(self, step: int) -> float:
        """Return the threshold of one new token."""
        falling = 0.9 * self.threshold + 0.1 * math.exp(-self.tau * step / self.tokens)
        return min(max(falling, 0.0), 1.0)

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        """Compare, except at 0 and 1, which decide alone."""
        threshold = self.threshold_at(view.step)
        if threshold in (0.0, 1.0):
            return torch.full((view.rows,), threshold == 0.0, device=view.device)
        return self.confidence(view, state) >= threshold


class SignalRule(DecayingThresholdRule):
    """The confidence is a signal."""

    def __init__(self, signal: Signal, threshold: float, tau: float, tokens: int) -> None:
        super().__init__(threshold, tau, tokens)
        self.signal = signal

    def confidence(self, view: LayerView, state: State) -> Tensor:
        """Return the signal."""
        return self.signal(view)


class SaturationRule(DecayingThresholdRule):
    """The confidence is the cosine of the states at this exit and at the one before."""

    def __init__(self, threshold: float, tau: float, tokens: int, width: int) -> None:
        super().__init__(threshold, tau, tokens)
        self.width = width

    def start(self, rows: int, num_layers: int) -> State:
        """No state yet, which is like none."""
        return {"previous": torch.full((rows, self.width), torch.nan)}

    def confidence(self, view: LayerView, state: State) -> Tensor:
        """Return the cosine; NaN, which reaches no threshold, at the first exit."""
        cosine = functional.cosine_similarity(view.pooled, state["previous"], dim=-1)
        state["previous"] = view.pooled
        return cosine


@dataclass(frozen=True)
class _CALMTokens(TokenMethod):
    """What the three share.

    Attributes:
        tau: how fast the threshold falls along the text.
        horizon: N, the most new tokens of a text; None for what the model was trained to write.
    """

    paper: ClassVar[str] = "Schuster et al., CALM, NeurIPS 2022, arXiv 2207.07061"
    knob: ClassVar[Knob] = Knob("lambda", _LAMBDAS)

    tau: float = 4.0
    horizon: int | None = None

    def fit(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> MultiExitDecoder:
        """Train all exits together."""
        self.check_task(task)
        train_exits(model, task, recipe)
        return model

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Exit where the confidence reaches the threshold that ``knob``, lambda, gives."""
        self.check_knob(model, knob)
        return self.confidence_rule(model, knob, text_length(model, self.horizon))

    @abstractmethod
    def confidence_rule(self, model: MultiExitDecoder, threshold: float, tokens: int) -> ExitRule:
        """Return the rule for a lambda in range and a number of tokens."""


@dataclass(frozen=True)
class CALMTokensSoftmax(_CALMTokens):
    """Leave where the two most probable tokens are far apart."""

    name: ClassVar[str] = "calm-tokens-softmax"

    def confidence_rule(self, model: MultiExitDecoder, threshold: float, tokens: int) -> ExitRule:
        """Confidence is the margin."""
        return SignalRule(margin, threshold, self.tau, tokens)


@dataclass(frozen=True)
class CALMTokensState(_CALMTokens):
    """Leave where the state has stopped moving."""

    name: ClassVar[str] = "calm-tokens-state"

    tau: float = 0.0

    def confidence_rule(self, model: MultiExitDecoder, threshold: float, tokens: int) -> ExitRule:
        """Confidence is the cosine of successive states."""
        return SaturationRule(threshold, self.tau, tokens, model.width)


@dataclass(frozen=True)
class CALMTokensClassifier(_CALMTokens):
    """Leave where a learned head expects the last exit to say the same token."""

    name: ClassVar[str] = "calm-tokens-classifier"

    def fit(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> MultiExitDecoder:
        """Train the exits as the others do, then the confidence on what the frozen exits say."""
        self.check_task(task)
        trace = train_exits(model, task, recipe)
        model.add_head(_CONFIDENCE, HeadSpec(shared=True), seed=recipe.seed)
        trace = trace.select(recipe.tokens_for_heads(trace))
        if len(model.exit_layers) == 1 or not len(trace):
            return model
        title = "asking exits" if recipe.progress else None
        agrees = agreement(exit_answers(trace, store=recipe.store, progress=title).predictions)
        loss = partial(_agreement_loss, agrees)
        train_learned_head(trace, torch.arange(len(trace)), loss, recipe, head=_CONFIDENCE, details={"agrees": agrees})
        return model

    def confidence_rule(self, model: MultiExitDecoder, threshold: float, tokens: int) -> ExitRule:
        """Confidence is the head's probability of agreement."""
        return SignalRule(head_probability(_CONFIDENCE), threshold, self.tau, tokens)


def agreement(predictions: Tensor) -> Tensor:
    """Return 1 where an exit below L names the last exit's token, else 0: int64 [n, exits] -> float [n, exits - 1]."""
    return (predictions[:, :-1] == predictions[:, -1:]).float()


def _agreement_loss(agrees: Tensor, model: MultiExitDecoder, batch: StateBatch) -> Tensor:
    head, states = model.head(_CONFIDENCE), model.state(batch.hidden)
    guess = torch.stack([head(layer, states[:, i]) for i, layer in enumerate(model.exit_layers[:-1])], dim=1)
    return functional.binary_cross_entropy_with_logits(guess, agrees[batch.tokens].to(guess.device))
