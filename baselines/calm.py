"""CALM (Schuster et al., NeurIPS 2022, arXiv 2207.07061): three confidences for rows, two for decoded tokens.

Training (section 3.4): backbone and all classifiers (or exits) together, weights growing with depth, in shared stages.
Confidences (section 3.5):

* softmax: the difference of the two largest probabilities; in a decoder it costs the LM head at every exit (less with
  ``candidates``, see :mod:`consistentee.rules.vocabulary`);
* state: the cosine of the states before and after a layer, of rows from layer 2 on;
* classifier: a linear layer on the state, shared by all exits, fitted with the rest frozen to whether the exit agrees
  with the last one.

A row exits if the confidence is above lambda. A token's threshold falls along the text (equation 5):
``clip(0.9 lambda + 0.1 exp(-tau step / N), 0, 1)``, with N the maximum length of a text and tau 4. Values of lambda
outside 0..1 make the first exit and full depth the ends of the knob: at threshold 0 every token exits, at threshold 1
none. CALM's choice of lambda with a guarantee (Learn then Test) is ``bound="ltt"`` of
:func:`consistentee.control_risk`, for classification.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor
from torch.nn import functional

import consistentee as ee
from consistentee import training
from consistentee.signals import Signal, even_log_odds, head_probability, margin

_CONFIDENCE = "confidence"
_PAPER = "Schuster et al., CALM, NeurIPS 2022, arXiv 2207.07061"
_LAMBDAS = (-1.0, *even_log_odds(-9, 9, 73), 1.0)
_LATE_THRESHOLDS = torch.linspace(-7, 7, 57, dtype=torch.float64).sigmoid().tolist()
_TOKEN_LAMBDAS = (-0.2, *(threshold / 0.9 for threshold in _LATE_THRESHOLDS), 1.2)


@dataclass(frozen=True)
class CALMSoftmax(ee.JointMethod):
    """Exit if the two largest probabilities are far apart."""

    name: ClassVar[str] = "calm-softmax"
    paper: ClassVar[str] = _PAPER
    knob: ClassVar[ee.Knob] = ee.Knob("lambda", _LAMBDAS)

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return ee.ThresholdRule(margin, knob, exit_when="above")


class SaturationRule(ee.ExitRule):
    """Exit if the cosine of the pooled vectors of this layer and the one before is high; from layer 2 on."""

    def __init__(self, threshold: float, width: int) -> None:
        self.threshold = threshold
        self.width = width

    def start(self, rows: int, num_layers: int) -> ee.State:
        return {"previous": torch.full((rows, self.width), torch.nan)}  # NaN reaches no threshold

    def should_exit(self, view: ee.LayerView, state: ee.State) -> Tensor:
        cosine = functional.cosine_similarity(view.pooled, state["previous"], dim=-1)
        state["previous"] = view.pooled
        return cosine > self.threshold


@dataclass(frozen=True)
class CALMState(ee.JointMethod):
    """Exit if the state has stopped changing."""

    name: ClassVar[str] = "calm-state"
    paper: ClassVar[str] = _PAPER
    version: ClassVar[int] = 2
    knob: ClassVar[ee.Knob] = ee.Knob("lambda", (-1.01, *even_log_odds(-3, 9, 73), 1.01), refined=True)

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return SaturationRule(knob, model.width)


@dataclass(frozen=True)
class CALMClassifier(ee.JointMethod):
    """Exit if a learned head expects the last classifier to agree."""

    name: ClassVar[str] = "calm-classifier"
    paper: ClassVar[str] = _PAPER
    version: ClassVar[int] = 2
    knob: ClassVar[ee.Knob] = ee.Knob("lambda", _LAMBDAS, refined=True)

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        super().fit(model, task, recipe)
        model.add_head(_CONFIDENCE, ee.HeadSpec(shared=True), seed=recipe.seed)
        rows = training.cached_rows(model, training.training_source(model, task, recipe), recipe)
        training.train_heads(
            model, rows, _agreement_loss, recipe, name="confidence", trains=(f"exit_heads.{_CONFIDENCE}.",)
        )
        return model

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return ee.ThresholdRule(head_probability(_CONFIDENCE), knob, exit_when="above")


def agreement(predictions: Tensor) -> Tensor:
    """Compute whether each exit before L agrees with the last: int64 [n, exits] -> float [n, exits - 1]."""
    return (predictions[:, :-1] == predictions[:, -1:]).float()


def _agreement_loss(model: ee.MultiExitModel, batch: training.FeatureBatch) -> Tensor:
    guess = model.head(_CONFIDENCE).at_layers(range(1, model.num_layers), batch.outputs.pooled[:, :-1])
    agrees = agreement(batch.outputs.logits.argmax(dim=-1)).to(guess.dtype)
    return functional.binary_cross_entropy_with_logits(guess, agrees)


class DecayingThresholdRule(ee.ExitRule):
    """Exit if a confidence in 0..1 reaches a threshold that falls along the text.

    Args:
        signal: the confidence.
        threshold, tau, tokens: lambda, tau and N of equation 5.
    """

    def __init__(self, signal: Signal, threshold: float, tau: float, tokens: int) -> None:
        self.signal = signal
        self.threshold = threshold
        self.tau = tau
        self.tokens = tokens

    def threshold_at(self, step: int) -> float:
        falling = 0.9 * self.threshold + 0.1 * math.exp(-self.tau * step / self.tokens)
        return min(max(falling, 0.0), 1.0)

    def should_exit(self, view: ee.LayerView, state: ee.State) -> Tensor:
        """Compare, except at thresholds 0 and 1, which do not need the confidence."""
        thresholds = [self.threshold_at(place) for place in view.places]
        is_read = not set(thresholds) <= {0.0, 1.0}
        if len(set(thresholds)) == 1:  # copies nothing to the device
            first = thresholds[0]
            return self.signal(view) >= first if is_read else torch.full((view.rows,), first == 0.0, device=view.device)
        if not is_read:
            return torch.tensor(thresholds, device=view.device) == 0.0
        confidence = self.signal(view)
        threshold = torch.tensor(thresholds, dtype=confidence.dtype, device=view.device)
        return (threshold == 0.0) | ((threshold < 1.0) & (confidence >= threshold))


@dataclass(frozen=True)
class _CALMTokens(ee.TokenMethod):
    """Base of the methods for tokens.

    Attributes:
        tau: how fast the threshold falls along the text.
        horizon: N, the maximum number of new tokens; None for the length that the model was trained with.
    """

    paper: ClassVar[str] = _PAPER
    knob: ClassVar[ee.Knob] = ee.Knob("lambda", _TOKEN_LAMBDAS)
    no_effect_if: ClassVar[dict[str, tuple[str, object]]] = {"horizon": ("tau", 0)}

    tau: NonNegativeFloat = 4.0
    horizon: PositiveInt | None = None

    def decaying_rule(self, signal: Signal, model: ee.MultiExitDecoder, knob: float) -> ee.ExitRule:
        return DecayingThresholdRule(signal, knob, self.tau, self.horizon or model.text_length)


@dataclass(frozen=True)
class CALMTokensSoftmax(ee.VocabularyMethod, _CALMTokens):
    """Exit if the two most probable tokens are far apart."""

    name: ClassVar[str] = "calm-tokens-softmax"

    def rule(self, model: ee.MultiExitDecoder, knob: float) -> ee.ExitRule:
        return self.pruned(self.decaying_rule(margin, model, knob))


@dataclass(frozen=True)
class CALMTokensClassifier(_CALMTokens):
    """Exit if a learned head expects the last exit to predict the same token."""

    name: ClassVar[str] = "calm-tokens-classifier"

    def fit(self, model: ee.MultiExitDecoder, task: ee.TextTask, recipe: ee.TokenRecipe) -> ee.MultiExitDecoder:
        trace = training.train_exits(model, task, recipe)
        model.add_head(_CONFIDENCE, ee.HeadSpec(shared=True), seed=recipe.seed)
        trace = trace.select(recipe.tokens_for_heads(trace))
        if len(model.exit_layers) == 1 or not len(trace):
            return model
        agrees = agreement(training.exit_answers(trace, store=recipe.store).predictions)
        loss = partial(_token_agreement_loss, agrees)
        training.train_learned_head(
            trace, torch.arange(len(trace)), loss, recipe, head=_CONFIDENCE, stage_key={"agrees": agrees}
        )
        return model

    def rule(self, model: ee.MultiExitDecoder, knob: float) -> ee.ExitRule:
        return self.decaying_rule(head_probability(_CONFIDENCE), model, knob)


def _token_agreement_loss(agrees: Tensor, model: ee.MultiExitDecoder, batch: training.StateBatch) -> Tensor:
    guess = model.head(_CONFIDENCE).at_layers(model.exit_layers[:-1], model.state(batch.rule_states[:, :-1]))
    return functional.binary_cross_entropy_with_logits(guess, agrees[batch.tokens].to(guess.device))
