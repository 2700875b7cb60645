"""CALM (Schuster et al., NeurIPS 2022, arXiv 2207.07061): three confidences, for rows and for decoded tokens.

Training (section 3.4): backbone and all classifiers (or exits) together, weights growing with depth, in shared stages.
Confidences (section 3.5):

* softmax: the difference of the two largest probabilities; in a decoder it costs the LM head at every exit (less with
  ``candidates``, see :mod:`consistentee.rules.vocabulary`);
* state: the cosine of the states at this exit and at the one before, from the second exit on;
* classifier: a linear layer on the state, shared by all exits, fitted with the rest frozen to whether the exit agrees
  with the last one.

A row exits if the confidence is above lambda. A token's threshold falls along the text (equation 5):
``clip(0.9 lambda + 0.1 exp(-tau step / N), 0, 1)``, with N the maximum length of a text; tau is 4, and 0 for the state,
as in the paper's tables. Values of lambda outside 0..1 make the first exit and full depth the ends of the knob: at
threshold 0 every token exits, at threshold 1 none. :mod:`consistentee.methods.calibration` chooses lambda with a
guarantee.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from consistentee import (
    ExitRule,
    HeadSpec,
    JointMethod,
    Knob,
    LayerView,
    MultiExitDecoder,
    MultiExitModel,
    Recipe,
    State,
    TaskData,
    TextTask,
    ThresholdRule,
    TokenMethod,
    TokenRecipe,
    UserError,
    VocabularyMethod,
)
from consistentee.rules.schedules import check_horizon, text_length
from consistentee.signals import Signal, even_log_odds, head_probability, margin
from consistentee.training import (
    FeatureBatch,
    StateBatch,
    cached_rows,
    exit_answers,
    train_exits,
    train_heads,
    train_jointly_on,
    train_learned_head,
    training_source,
)

_CONFIDENCE = "confidence"
_PAPER = "Schuster et al., CALM, NeurIPS 2022, arXiv 2207.07061"
_LAMBDAS = (-1.0, *even_log_odds(-9, 9, 73), 1.0)
_LATE_THRESHOLDS = torch.linspace(-7, 7, 57, dtype=torch.float64).sigmoid().tolist()
_TOKEN_LAMBDAS = (-0.2, *(threshold / 0.9 for threshold in _LATE_THRESHOLDS), 1.2)
_STATE_LAMBDAS = (-0.2, *((cosine - 0.1) / 0.9 for cosine in even_log_odds(-3, 9, 57)), 1.2)  # thresholds without tau


@dataclass(frozen=True)
class _CALM(JointMethod):
    """Base of the three methods for rows: joint training."""

    paper: ClassVar[str] = _PAPER
    knob: ClassVar[Knob] = Knob("lambda", _LAMBDAS)


@dataclass(frozen=True)
class CALMSoftmax(_CALM):
    """Exit if the two largest probabilities are far apart."""

    name: ClassVar[str] = "calm-softmax"

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit if the margin is above ``knob``."""
        return ThresholdRule(margin, knob, exit_when="above")


class SaturationRule(ExitRule):
    """Exit if the cosine of the pooled vectors of this layer and the one before is high; from layer 2 on."""

    def __init__(self, threshold: float, width: int) -> None:
        self.threshold = threshold
        self.width = width

    def start(self, rows: int, num_layers: int) -> State:
        return {"previous": torch.zeros(rows, self.width)}

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        cosine = functional.cosine_similarity(view.pooled, state["previous"], dim=-1)
        state["previous"] = view.pooled
        return (cosine > self.threshold) & (view.layer > 1)


@dataclass(frozen=True)
class CALMState(_CALM):
    """Exit if the state has stopped changing."""

    name: ClassVar[str] = "calm-state"
    knob: ClassVar[Knob] = Knob("lambda", (-1.01, *even_log_odds(-3, 9, 73), 1.01))

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit if the cosine of successive states is above ``knob``."""
        return SaturationRule(knob, model.width)


@dataclass(frozen=True)
class CALMClassifier(_CALM):
    """Exit if a learned head expects the last classifier to agree."""

    name: ClassVar[str] = "calm-classifier"

    def fit(self, model: MultiExitModel, task: TaskData, recipe: Recipe) -> MultiExitModel:
        """Train all classifiers, then the confidence head on the frozen model."""
        source = training_source(model, task, recipe)
        train_jointly_on(model, source, recipe)
        model.add_head(_CONFIDENCE, HeadSpec(shared=True), seed=recipe.seed)
        rows = cached_rows(model, source, recipe)
        trains = (f"exit_heads.{_CONFIDENCE}.",)
        train_heads(model, rows, _agreement_loss, recipe, name="confidence", trains=trains)
        return model

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit if the head's probability of agreement is above ``knob``."""
        return ThresholdRule(head_probability(_CONFIDENCE), knob, exit_when="above")


def agreement(predictions: Tensor) -> Tensor:
    """Compute whether each exit before L agrees with the last: int64 [n, exits] -> float [n, exits - 1]."""
    return (predictions[:, :-1] == predictions[:, -1:]).float()


def _agreement_loss(model: MultiExitModel, batch: FeatureBatch) -> Tensor:
    head = model.head(_CONFIDENCE)
    before_last = range(model.num_layers - 1)
    guess = torch.stack([head(i + 1, batch.outputs.pooled[:, i]) for i in before_last], dim=1)
    agrees = agreement(batch.outputs.logits.argmax(dim=-1)).to(guess.dtype)
    return functional.binary_cross_entropy_with_logits(guess, agrees)


class DecayingThresholdRule(ExitRule, ABC):
    """Exit if a confidence in 0..1 reaches a threshold that falls along the text."""

    def __init__(self, threshold: float, tau: float, tokens: int) -> None:
        self.threshold = threshold
        self.tau = tau
        self.tokens = tokens

    @abstractmethod
    def confidence(self, view: LayerView, state: State) -> Tensor:
        """Return the confidence of the exit in the next token: float [rows]."""

    def threshold_at(self, steps: Tensor) -> Tensor:
        """Compute the thresholds of tokens at these places: int64 [rows] -> float64 [rows]."""
        falling = 0.9 * self.threshold + 0.1 * (-self.tau * steps.double() / self.tokens).exp()
        return falling.clamp_(0.0, 1.0)

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        """Compare, except at thresholds 0 and 1, which do not need the confidence."""
        threshold = self.threshold_at(view.steps)
        exits = threshold == 0.0
        if (exits | (threshold == 1.0)).all():
            return exits
        confidence = self.confidence(view, state)
        return exits | ((threshold < 1.0) & (confidence >= threshold.to(confidence.dtype)))


class DecayingSignalRule(DecayingThresholdRule):
    """Use a signal as the confidence."""

    def __init__(self, signal: Signal, threshold: float, tau: float, tokens: int) -> None:
        super().__init__(threshold, tau, tokens)
        self.signal = signal

    def confidence(self, view: LayerView, state: State) -> Tensor:
        return self.signal(view)


class DecayingSaturationRule(DecayingThresholdRule):
    """Use the cosine of the states at this exit and at the one before as the confidence."""

    def __init__(self, threshold: float, tau: float, tokens: int, width: int) -> None:
        super().__init__(threshold, tau, tokens)
        self.width = width

    def start(self, rows: int, num_layers: int) -> State:
        """Start with NaN, which reaches no threshold at the first exit."""
        return {"previous": torch.full((rows, self.width), torch.nan)}

    def confidence(self, view: LayerView, state: State) -> Tensor:
        cosine = functional.cosine_similarity(view.pooled, state["previous"], dim=-1)
        state["previous"] = view.pooled
        return cosine


@dataclass(frozen=True)
class _CALMTokens(TokenMethod):
    """Base of the three methods for tokens.

    Attributes:
        tau: how fast the threshold falls along the text.
        horizon: N, the maximum number of new tokens; None for the length that the model was trained with.
    """

    paper: ClassVar[str] = _PAPER
    knob: ClassVar[Knob] = Knob("lambda", _TOKEN_LAMBDAS)

    tau: float = 4.0
    horizon: int | None = None

    def __post_init__(self) -> None:
        check_horizon(self.horizon)
        if self.tau < 0:
            raise UserError(f"{self.name}: tau is at least 0, got {self.tau:g}")

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Exit if the confidence reaches the threshold of ``knob``, lambda."""
        return self.confidence_rule(model, knob, text_length(model, self.horizon))

    @abstractmethod
    def confidence_rule(self, model: MultiExitDecoder, threshold: float, tokens: int) -> ExitRule:
        """Return the rule for a lambda in range and a number of tokens."""


@dataclass(frozen=True)
class CALMTokensSoftmax(VocabularyMethod, _CALMTokens):
    """Exit if the two most probable tokens are far apart."""

    name: ClassVar[str] = "calm-tokens-softmax"

    def __post_init__(self) -> None:
        VocabularyMethod.__post_init__(self)
        _CALMTokens.__post_init__(self)

    def confidence_rule(self, model: MultiExitDecoder, threshold: float, tokens: int) -> ExitRule:
        return self.pruned(DecayingSignalRule(margin, threshold, self.tau, tokens))


@dataclass(frozen=True)
class CALMTokensState(_CALMTokens):
    """Exit if the state has stopped changing."""

    name: ClassVar[str] = "calm-tokens-state"
    version: ClassVar[int] = 2
    knob: ClassVar[Knob] = Knob("lambda", _STATE_LAMBDAS)

    tau: float = 0.0

    def confidence_rule(self, model: MultiExitDecoder, threshold: float, tokens: int) -> ExitRule:
        return DecayingSaturationRule(threshold, self.tau, tokens, model.width)


@dataclass(frozen=True)
class CALMTokensClassifier(_CALMTokens):
    """Exit if a learned head expects the last exit to predict the same token."""

    name: ClassVar[str] = "calm-tokens-classifier"

    def fit(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> MultiExitDecoder:
        """Train the exits, then the confidence on the frozen exits."""
        trace = train_exits(model, task, recipe)
        model.add_head(_CONFIDENCE, HeadSpec(shared=True), seed=recipe.seed)
        trace = trace.select(tokens_for_heads(trace, recipe))
        if len(model.exit_layers) == 1 or not len(trace):
            return model
        title = "asking exits" if recipe.progress else None
        agrees = agreement(exit_answers(trace, store=recipe.store, progress=title).predictions)
        loss = partial(_token_agreement_loss, agrees)
        train_learned_head(trace, torch.arange(len(trace)), loss, recipe, head=_CONFIDENCE, details={"agrees": agrees})
        return model

    def confidence_rule(self, model: MultiExitDecoder, threshold: float, tokens: int) -> ExitRule:
        return DecayingSignalRule(head_probability(_CONFIDENCE), threshold, self.tau, tokens)


def _token_agreement_loss(agrees: Tensor, model: MultiExitDecoder, batch: StateBatch) -> Tensor:
    head, states = model.head(_CONFIDENCE), model.state(batch.deciding)
    guess = torch.stack([head(layer, states[:, i]) for i, layer in enumerate(model.exit_layers[:-1])], dim=1)
    return functional.binary_cross_entropy_with_logits(guess, agrees[batch.tokens].to(guess.device))
