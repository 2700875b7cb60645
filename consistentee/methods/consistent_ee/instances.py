"""ConsistentEE (Zeng et al., AAAI 2024, arXiv 2312.11882): training made consistent with inference.

In joint training every internal classifier has to be right on every row, but at inference one classifier answers. Here
a policy decides where a row exits, and only the classifier at that exit has to be right. Three stages:

1. backbone and all classifiers on the depth-weighted loss (shared with PABEE and others);
2. the policy alone, on the reward ``-CE_t - alpha * (1 - m/L) * t`` with m the row's Memorized Layer;
3. both: cross-entropy at the exit, and the policy's reward.

Choices: the policy's gradient does not reach the backbone. In stage 3 the cross-entropy at the exit is the expectation
over the policy, ``sum_t q_t CE_t``. After stage 3 the policy is fitted again on cached features of the new backbone
(``refit_policy``), because one epoch moves the backbone more than the policy follows.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from consistentee import ExitRule, HeadSpec, Knob, Method, MultiExitModel, Recipe, TaskData
from consistentee.methods.policy import (
    ALWAYS,
    POLICY,
    DrawnPrices,
    PolicyInputs,
    PolicyParameters,
    Prices,
    policy_outputs,
    policy_spec,
)
from consistentee.methods.reward import Estimator, exit_distribution, memorized_layer, rewards
from consistentee.models.encoder.multi_exit_model import LayerOutputs
from consistentee.signals import even_log_odds
from consistentee.training import (
    FeatureBatch,
    FeatureSource,
    TokenBatch,
    TokenSource,
    cached_rows,
    layer_losses,
    run_stage,
    token_stage,
    train_heads,
    train_jointly,
    training_source,
)

_ALPHAS = tuple(10.0**exponent for exponent in torch.linspace(1.5, -4.5, 201).tolist())
_POLICY_WEIGHTS = (f"exit_heads.{POLICY}.",)


@dataclass(frozen=True)
class ConsistentEE(PolicyParameters, Method):
    """ConsistentEE: its reward and its three stages, one policy for one price of a layer.

    Defaults that differ from the paper: the policy also reads confidence and starts from low exit probabilities, the
    expected reward is computed in closed form, stage 2 takes the recipe's steps on a frozen model, stage 3 takes one
    epoch, and the policy is fitted again after it. :class:`ConsistentEEPaper` has the published values.

    Attributes besides those of :class:`consistentee.methods.policy.PolicyParameters`:
        policy_epochs: length of stage 2 in epochs, in batches of 32 with a peak rate of 3e-4, as the authors' code;
            None for the recipe's steps, batches and rate of frozen stages.
        joint_epochs, joint_learning_rate: of stage 3; the rate is the backbone's; 0 epochs skip it.
        joint_head_learning_rate: of classifiers and policy in stage 3; None for the recipe's proportion.
        joint_batch_size: of stage 3; None for the recipe's.
        refit_policy: fit the policy again after stage 3.
    """

    name: ClassVar[str] = "consistentee"
    paper: ClassVar[str] = "Zeng et al., ConsistentEE, AAAI 2024, arXiv 2312.11882"
    knob: ClassVar[Knob] = Knob("threshold", (0.0, *even_log_odds(-9, 9, 73), 1.0))
    has_several_rules: ClassVar[bool] = False  # which share the exits of stage 3

    policy_epochs: PositiveInt | None = None
    joint_epochs: NonNegativeInt = 1
    joint_learning_rate: PositiveFloat = 3e-5
    joint_head_learning_rate: PositiveFloat | None = None
    joint_batch_size: PositiveInt | None = None
    refit_policy: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.prices  # raises UserError for invalid prices

    def fit(self, model: MultiExitModel, task: TaskData, recipe: Recipe) -> MultiExitModel:
        """Run stages 1 to 3, and fit the policy again if ``refit_policy``."""
        source = training_source(model, task, recipe)
        train_jointly(model, source, recipe)
        hardness = self.learn_policy(model, source, recipe)
        if self.joint_epochs:
            self._train_consistently(model, source, hardness, recipe)
            if self.refit_policy:
                self._fit_policy(model, cached_rows(model, source, recipe), hardness, recipe)
        return model

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit if P(exit) > knob; the paper uses 0.5."""
        return self.prices.rule(self.policy_reads, knob)

    def learn_policy(self, model: MultiExitModel, source: TokenSource, recipe: Recipe) -> Tensor | None:
        """Add the policy, fit it to the current exits (stage 2), and return the rows' Memorized Layer, if used."""
        model.add_head(POLICY, self.policy_spec(), seed=recipe.seed)
        rows = cached_rows(model, source, recipe)
        correct = rows.outputs.logits.argmax(dim=-1) == source.labels.unsqueeze(1)
        hardness = self.row_hardness(correct, recipe.seed)
        self._fit_policy(model, rows, hardness, recipe)
        return hardness

    def row_hardness(self, correct: Tensor, seed: int) -> Tensor | None:
        """Return the Memorized Layer of each row, from which exits are right [rows, L]; None without hardness."""
        return memorized_layer(correct) if self.reward == "hardness" else None

    def policy_spec(self) -> HeadSpec:
        """Return the shape of the policy."""
        return policy_spec(self.policy_reads, self.prices.outputs, self.initial_bias)

    def _fit_policy(self, model: MultiExitModel, rows: FeatureSource, hardness: Tensor | None, recipe: Recipe) -> None:
        loss = partial(self.policy_stage_loss, hardness)
        details = {"method": repr(self), "hardness": hardness}
        if self.policy_epochs is not None:
            steps = self.policy_epochs * math.ceil(len(rows) / 32)
            recipe = replace(recipe, frozen_steps=steps, frozen_batch_size=32, frozen_learning_rate=3e-4)
        train_heads(model, rows, loss, recipe, name="policy", trains=_POLICY_WEIGHTS, details=details)

    def policy_stage_loss(self, hardness: Tensor | None, model: MultiExitModel, batch: FeatureBatch) -> Tensor:
        """Compute L_pi, averaged over the prices."""
        return torch.stack([loss for _, loss in self._policies(hardness, model, batch.outputs, batch)]).mean()

    def _train_consistently(
        self, model: MultiExitModel, source: TokenSource, hardness: Tensor | None, recipe: Recipe
    ) -> None:
        loss = partial(self.exit_consistent_loss, hardness)
        details = {"method": repr(self), "hardness": hardness}
        shared = self.has_several_rules
        stage = token_stage(
            "exit-consistent", loss, recipe, also_trains=_POLICY_WEIGHTS, details=details, shared=shared
        )
        in_proportion = self.joint_learning_rate * recipe.head_learning_rate / recipe.learning_rate
        joint_stage = replace(
            stage,
            epochs=self.joint_epochs,
            learning_rate=self.joint_learning_rate,
            head_learning_rate=self.joint_head_learning_rate or in_proportion,
            batch_size=self.joint_batch_size or recipe.batch_size,
        )
        run_stage(model, source, joint_stage, recipe)

    def exit_consistent_loss(self, hardness: Tensor | None, model: MultiExitModel, batch: TokenBatch) -> Tensor:
        """Compute ``sum_t q_t CE_t`` plus L_pi, averaged over the prices."""
        outputs = model(batch.tokens)
        answers = layer_losses(outputs.logits, batch.labels)
        losses = []
        for probabilities, loss in self._policies(hardness, model, outputs, batch):
            loss_at_exit = (self.exit_weights(probabilities) * answers).sum(dim=1).mean()
            losses.append(loss_at_exit + loss)
        return torch.stack(losses).mean()

    def exit_weights(self, probabilities: Tensor) -> Tensor:
        """Compute the weights of the exits in the cross-entropy of stage 3, [rows, L], from P(exit) [rows, L]."""
        return exit_distribution(probabilities).detach()

    def _policies(
        self, hardness: Tensor | None, model: MultiExitModel, outputs: LayerOutputs, batch: FeatureBatch | TokenBatch
    ) -> list[tuple[Tensor, Tensor]]:
        """Compute P(exit) [rows, L] and L_pi for every price."""
        costs = self.cost_of_answers(outputs, batch.labels)
        memorized = None if hardness is None else hardness[batch.rows].to(batch.labels.device)
        policies = self.prices.policies(policy_outputs(model.head(POLICY), outputs.pooled, outputs.logits))
        return [(p, self.policy_loss(p, rewards(costs, alpha, memorized))) for alpha, p in policies]

    def cost_of_answers(self, outputs: LayerOutputs, labels: Tensor) -> Tensor:
        """Compute the cost of each layer's answer in the reward: [rows, L]."""
        if self.reward_loss == "cross-entropy":
            return layer_losses(outputs.logits, labels)
        return (outputs.logits.argmax(dim=-1) != labels.unsqueeze(1)).to(outputs.logits.dtype)


@dataclass(frozen=True)
class ConsistentEEPaper(ConsistentEE):
    """The published algorithm: stages 2 and 3 with the values of the paper and of the authors' code.

    What still differs: stage 1 and the warm-up are the suite's, stage 2 reads features without dropout, the policy does
    not train the backbone, and stage 3's cross-entropy is the expectation over the policy.
    """

    name: ClassVar[str] = "consistentee-paper"
    version: ClassVar[int] = 2
    knob: ClassVar[Knob] = Knob("threshold", (0.0, 0.5, 1.0))

    estimator: Estimator = "reinforce"
    policy_reads: PolicyInputs = "state"
    initial_bias: float = 0.0
    policy_epochs: PositiveInt | None = 2
    joint_epochs: NonNegativeInt = 2
    joint_head_learning_rate: PositiveFloat | None = 3e-5
    joint_batch_size: PositiveInt | None = 32
    refit_policy: bool = False


@dataclass(frozen=True)
class ConsistentEECurve(ConsistentEE):
    """ConsistentEE with one policy for the whole curve: the price of a layer is an input, drawn at random in training.

    The published method has one operating point for each trained policy; here the knob is alpha. The reward counts
    errors and the policy reads only confidence: on a few thousand training rows the loss falls with depth for nearly
    every row, so a reward on the loss moves all rows at once, and a policy that reads the state overfits. The parameter
    ``alpha`` has no effect.
    """

    name: ClassVar[str] = "consistentee-curve"
    paper: ClassVar[str] = "ours: ConsistentEE (AAAI 2024) with a policy conditioned on alpha"
    knob: ClassVar[Knob] = Knob("alpha", (ALWAYS, *_ALPHAS, 0.0))

    reward_loss: Literal["cross-entropy", "error"] = "error"
    policy_reads: PolicyInputs = "confidence"
    lowest_alpha: float = 1e-4
    highest_alpha: float = 10.0

    @property
    def prices(self) -> Prices:
        """Log-uniform prices; the largest knob always exits, 0 never."""
        return DrawnPrices(self.lowest_alpha, self.highest_alpha)
