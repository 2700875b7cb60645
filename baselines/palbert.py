"""PALBERT (Balagansky & Gavrilov, NeurIPS 2022, arXiv 2204.03276): exit once most of a row's exit mass is reached.

Training, all together: backbone, one classifier for all layers, and a network that reads the states of a layer and of
the one before and gives ``lambda_t``, the probability to exit here. With ``p_t = lambda_t * prod_{s<t} (1 - lambda_s)``
the loss is ``sum_t p_t * CE_t + 0.5 KL(p || geometric)``, with a geometric distribution of rate 0.1 (PonderNet's loss).
Rule ("Q-exit"): exit at the first layer where ``p_1 + ... + p_t`` is at least q, 0.5 in the paper, here the knob.

Choices: the last layer gets the remaining mass in training, in the prior and at inference. A state is the pooled
vector; the one before layer 1 is 0. The network is shared by all layers, with one hidden layer of 32.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

import consistentee as ee
from consistentee.signals import even_log_odds
from consistentee.training import TokenBatch, exit_distribution, layer_losses, run_stage, token_stage, training_source

_EXITS = "leaves"
_OUT_OF_REACH = 1.001
_TINY = 1e-9


@dataclass(frozen=True)
class PALBERT(ee.Method):
    """Training on the expected loss over a learned exit distribution, rule on its quantile.

    Attributes:
        rate: of the prior, a geometric distribution of exits.
        near_prior: the weight of the divergence from the prior.
        hidden: width of the hidden layer of the network that gives lambda.
    """

    name: ClassVar[str] = "palbert"
    paper: ClassVar[str] = "Balagansky & Gavrilov, PALBERT, NeurIPS 2022, arXiv 2204.03276"
    knob: ClassVar[ee.Knob] = ee.Knob("quantile", (0.0, *even_log_odds(-9, 9, 73), _OUT_OF_REACH))
    no_effect_if: ClassVar[dict[str, tuple[str, object]]] = {"rate": ("near_prior", 0)}

    rate: Annotated[float, Field(gt=0, lt=1)] = 0.1
    near_prior: NonNegativeFloat = 0.5
    hidden: PositiveInt = 32

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        source = training_source(model, task, recipe)
        model.use_classifier(ee.ClassifierSpec("shared"), recipe.seed)
        spec = ee.HeadSpec(hidden=self.hidden, shared=True, extra_inputs=model.width)
        model.add_head(_EXITS, spec, seed=recipe.seed)
        key, trains = {"rate": self.rate, "near_prior": self.near_prior}, (f"exit_heads.{_EXITS}.",)
        stage = token_stage("expected-loss", partial(_loss, self), recipe, also_trains=trains, stage_key=key)
        run_stage(model, source, stage, recipe)
        return model

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return QuantileRule(knob, model.width)


class SharedClassifier(ee.InternalClassifier):
    """Dropout, and one linear layer for all exits, which belongs to the first."""

    def __init__(self, spec: ee.ClassifierSpec, place: ee.ExitPlace) -> None:
        super().__init__(spec, place)
        self._before = place.before[:1]  # a tuple, so that the layer belongs to its own exit alone
        if not self._before:
            self.output = place.output_layer(place.width)

    def forward(self, layer: ee.ReadableLayer) -> Tensor:
        owner = self._before[0] if self._before else self
        return owner.get_submodule("output")(self.dropout(layer.pooled))


class QuantileRule(ee.ExitRule):
    """Exit at the first layer where a row's exit distribution reaches a quantile."""

    def __init__(self, quantile: float, width: int) -> None:
        self.quantile = quantile
        self.width = width

    def start(self, rows: int, num_layers: int) -> ee.State:
        return {"previous": torch.zeros(rows, self.width), "stays": torch.ones(rows)}

    def should_exit(self, view: ee.LayerView, state: ee.State) -> Tensor:
        state["stays"] = state["stays"] * (1 - view.head(_EXITS, state["previous"]).sigmoid())
        state["previous"] = view.pooled
        return 1 - state["stays"] >= self.quantile  # p_1 + ... + p_t = 1 - prod_{s<=t} (1 - lambda_s)


def _loss(method: PALBERT, model: ee.MultiExitModel, batch: TokenBatch) -> Tensor:
    outputs = model(batch.tokens)
    masses = exit_distribution(leaving_probabilities(model, outputs.pooled))
    expected = (masses * layer_losses(outputs.logits, batch.labels)).sum(dim=1).mean()
    return expected + method.near_prior * divergence(masses, geometric(method.rate, model.num_layers).to(masses))


def leaving_probabilities(model: ee.MultiExitModel, pooled: Tensor) -> Tensor:
    """Compute lambda_1..lambda_L [rows, L] from the states of all layers [rows, L, width]."""
    before = torch.cat([torch.zeros_like(pooled[:, :1]), pooled[:, :-1]], dim=1)
    return model.head(_EXITS).at_layers(range(1, model.num_layers + 1), pooled, before).sigmoid()


def geometric(rate: float, num_layers: int) -> Tensor:
    """Compute the probabilities of layers 1..L, ``rate * (1 - rate)^(t - 1)``; the last one is the rest: [L]."""
    return exit_distribution(torch.full((1, num_layers), rate)).squeeze(0)


def divergence(masses: Tensor, prior: Tensor) -> Tensor:
    """Compute ``KL(masses || prior)``, averaged over rows, of [rows, L] and [L]."""
    return (masses * (masses.clamp_min(_TINY).log() - prior.log())).sum(dim=1).mean()
