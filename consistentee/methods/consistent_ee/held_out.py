"""consistentee-held-out: a ConsistentEE policy that learns on rows which the exits have not seen. An extension of ours.

On its own training rows nearly every late exit is right, so a policy that learns there from labels exits too early on
new rows. Joint training, the paper's stage 1, also costs the last exit accuracy on tasks of many classes. So here:

1. the stock model is fine-tuned and frozen (shared with DeeBERT and FastBERT); early exits are distilled from its last
   one: students that attend, as FastBERT's, for the recipe's ``frozen_steps``;
2. the policy learns on the texts of the validation rows, with ConsistentEE's reward. The right answer is the last
   exit's, and a wrong one costs 1: labels tell two exits apart on few rows, answers on many. The policy is linear in
   the exit's confidence, and one for all layers: ten numbers for a few hundred rows. It also reads the price of a
   layer, which is drawn at random in training and is the knob at inference.

There is no stage 3, since the exits answer as the last one wherever they can. Labels of validation rows choose the
knob, as for every method.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

import consistentee as ee
from consistentee import training
from consistentee.methods.consistent_ee.paper import POLICY, POLICY_WEIGHTS, exact_policy_loss, memorized_layer, rewards
from consistentee.signals import NUM_CONFIDENCE_FEATURES, confidence_features

ALWAYS = 1e6  # a price at which every row exits at the first exit; at 0 none exits
_PRICES = tuple(10.0**exponent for exponent in torch.linspace(1.5, -4.5, 201).tolist())
_LOWEST_PRICE, _HIGHEST_PRICE = 1e-4, 10.0  # that are drawn in training, evenly by their logarithm
_HEAD = ee.HeadSpec(outputs=2, shared=True, extra_inputs=NUM_CONFIDENCE_FEATURES, reads_pooled=False, initial_bias=-1.5)


@dataclass(frozen=True)
class ConsistentEEHeldOut(ee.Method):
    """Distilled exits on a frozen fine-tuned model; one policy for all prices, learnt on other texts.

    Attributes:
        classifier: the network of the exits before layer L.
        policy_rows: the rows whose texts the policy learns on; "training" shows what held-out ones are worth.
    """

    name: ClassVar[str] = "consistentee-held-out"
    paper: ClassVar[str] = "ours: ConsistentEE (AAAI 2024) with a policy learnt on held-out rows"
    knob: ClassVar[ee.Knob] = ee.Knob("alpha", (ALWAYS, *_PRICES, 0.0))

    classifier: training.ExitNetwork = "attention"
    policy_rows: Literal["validation", "training"] = "validation"

    @property
    def learns_from_validation(self) -> bool:
        return self.policy_rows == "validation"

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        """Fine-tune the stock model, distil it into the exits, and fit the policy to the texts of validation rows."""
        source = training.training_source(model, task, recipe)
        training.train_last_exit(model, source, recipe)
        training.train_early_exits(
            model, source, training.student_loss, recipe, name="self-distillation", network=self.classifier
        )
        rows = training.validation_source(model, task, recipe) if self.policy_rows == "validation" else source
        answers = training.recorded_logits(model, rows, recipe)[:, -1].argmax(dim=-1)
        train_policy(model, replace(rows, labels=answers), recipe)
        return model

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        """Exit if P(exit) > 0.5 at the price ``knob``."""
        return PricedPolicyRule(knob)


def train_policy(model: ee.MultiExitModel, source: training.TokenSource, recipe: ee.Recipe) -> None:
    """Add the policy and train it on rows whose labels are the last exit's answers, with prices drawn at random."""
    model.add_head(POLICY, _HEAD, seed=recipe.seed)
    rows = training.cached_rows(model, source, recipe)
    hardness = memorized_layer(rows.outputs.logits.argmax(dim=-1) == source.labels.unsqueeze(1))
    loss, key = partial(_policy_loss, hardness), {"hardness": hardness}
    training.train_heads(model, rows, loss, recipe, name="policy", trains=POLICY_WEIGHTS, stage_key=key)


def _policy_loss(hardness: Tensor, model: ee.MultiExitModel, batch: training.FeatureBatch) -> Tensor:
    """Compute L_pi of a batch; ``hardness`` is of all rows."""
    probs = batch.outputs.logits.softmax(dim=-1)
    answers = probs.argmax(dim=-1)
    read = confidence_features(probs, answers, functional.pad(answers[:, :-1], (1, 0), value=-1))
    outputs = model.head(POLICY).at_layers(range(1, model.num_layers + 1), batch.outputs.pooled, read)
    low, high = torch.tensor([_LOWEST_PRICE, _HIGHEST_PRICE]).log()
    price = (low + (high - low) * torch.rand(len(outputs))).exp().to(outputs.device)
    wrong = (answers != batch.labels.unsqueeze(1)).to(probs.dtype)
    reward = rewards(wrong, price, hardness[batch.rows].to(price.device))
    return exact_policy_loss(logit_at_price(outputs, price.log().unsqueeze(1)).sigmoid(), reward)


def logit_at_price(outputs: Tensor, log_price: float | Tensor) -> Tensor:
    """Convert the policy's outputs a and b [..., 2] to the logit of P(exit), ``a + softplus(b) log price``: [...].

    It rises with the price: a higher one never makes a row run longer.
    """
    base, slope = outputs.unbind(dim=-1)
    # A weight that underflows to 0 would turn a price of 0 or infinity into NaN.
    return base + functional.softplus(slope).clamp_min(torch.finfo(slope.dtype).tiny) * log_price


class PricedPolicyRule(ee.ExitRule):
    """Exit at the first layer with P(exit) > 0.5 at a price; at 0 never, from ``ALWAYS`` on always."""

    def __init__(self, price: float) -> None:
        self.log_price = math.inf if price >= ALWAYS else math.log(price) if price > 0 else -math.inf

    def start(self, rows: int, num_layers: int) -> ee.State:
        return {"previous": torch.full((rows,), -1)}

    def should_exit(self, view: ee.LayerView, state: ee.State) -> Tensor:
        read = confidence_features(view.probs, view.predictions, state["previous"])
        state["previous"] = view.predictions
        return logit_at_price(view.head(POLICY, read), self.log_price).sigmoid() > 0.5
