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

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from consistentee.data.instances import TaskData
from consistentee.errors import UserError
from consistentee.methods.hardness import cross_fitted_memorized_layer, memorized_layer_of
from consistentee.methods.knob_grids import even_log_odds
from consistentee.methods.method import Knob, Method
from consistentee.methods.policy import POLICY, PolicyInputs, PolicyRule, drawn_prices, exit_probabilities, policy_spec
from consistentee.methods.reward import Estimator, exit_distribution, policy_loss, rewards
from consistentee.models.encoder.multi_exit_model import LayerOutputs, MultiExitModel
from consistentee.models.heads import HeadSpec
from consistentee.rules.exit_rule import ExitRule
from consistentee.training.loop import run_stage
from consistentee.training.recipe import Recipe
from consistentee.training.sources import FeatureBatch, FeatureSource, TokenBatch, TokenSource
from consistentee.training.stage import Source, Stage
from consistentee.training.stages import (
    cached_rows,
    layer_losses,
    recorded_logits,
    token_stage,
    train_heads,
    train_jointly_on,
    training_source,
)

_ALPHAS = tuple(10.0**exponent for exponent in torch.linspace(1.5, -4.5, 201).tolist())


@dataclass(frozen=True)
class ConsistentEE(Method):
    """ConsistentEE: its reward and its three stages, one policy for one price of a layer.

    Defaults that differ from the paper: the policy also reads confidence, the expected reward is computed in closed
    form, and the policy is fitted again after stage 3. ``policy_reads="state", estimator="reinforce",
    refit_policy=False`` and a knob of 0.5 give the published algorithm except for the recipe, the initial bias, stage 2
    on features without dropout, and stage 3's cross-entropy, an expectation instead of that of a drawn exit.

    Attributes:
        alpha: the price of a layer. The paper's code used 0.005 to 0.2.
        reward: "hardness" makes layers cheap for rows that are memorized late; "vanilla" prices all alike.
        reward_loss: the cost of an answer: "cross-entropy" is the paper's; "error" is 1 for a wrong answer, so that
            layers which only make a right answer more certain do not pay.
        estimator: "exact" uses the expected reward in closed form; "reinforce" samples ``rollouts`` exits for each row.
        rollouts: K of REINFORCE.
        memorized_layer: measured on the rows the model was trained on ("train", the paper), or on held-out folds.
        folds: number of folds of the cross-fitting.
        policy_reads: "state" is the paper's; "state+confidence" adds the classifier's confidence; "confidence" reads
            only that.
        cached: run stage 2 on cached features instead of running the frozen backbone again.
        joint_epochs, joint_learning_rate: of stage 3; the rate is the backbone's, and the heads' is in the recipe's
            proportion; 0 epochs skip it.
        refit_policy: fit the policy again after stage 3.
    """

    name: ClassVar[str] = "consistentee"
    paper: ClassVar[str] = "Zeng et al., ConsistentEE, AAAI 2024, arXiv 2312.11882"
    knob: ClassVar[Knob] = Knob("threshold", (0.0, *even_log_odds(-9, 9, 73), 1.0))
    conditioned: ClassVar[bool] = False

    alpha: float = 0.05
    reward: Literal["hardness", "vanilla"] = "hardness"
    reward_loss: Literal["cross-entropy", "error"] = "cross-entropy"
    estimator: Estimator = "exact"
    rollouts: int = 8
    memorized_layer: Literal["train", "cross-fitted"] = "train"
    folds: int = 3
    policy_reads: PolicyInputs = "state+confidence"
    cached: bool = True
    joint_epochs: int = 1
    joint_learning_rate: float = 3e-5
    refit_policy: bool = True

    def __post_init__(self) -> None:
        if self.estimator == "reinforce" and self.rollouts < 2:
            raise UserError("consistentee: REINFORCE with a mean baseline needs at least 2 rollouts")
        if self.alpha < 0:
            raise UserError(f"consistentee: alpha must not be negative, got {self.alpha}")
        if self.folds < 2:
            raise UserError(f"consistentee: cross-fitting needs at least 2 folds, got {self.folds}")
        if self.joint_epochs < 0 or self.joint_learning_rate <= 0:
            raise UserError("consistentee: joint_epochs must not be negative, and joint_learning_rate above 0")

    def fit(self, model: MultiExitModel, task: TaskData, recipe: Recipe) -> MultiExitModel:
        """Run stages 1 to 3, and fit the policy again if ``refit_policy``."""
        self.check_task(task)
        source = training_source(model, task, recipe)
        cross_fitted = None
        if self.reward == "hardness" and self.memorized_layer == "cross-fitted":
            cross_fitted = cross_fitted_memorized_layer(model, source, recipe, self.folds)
        train_jointly_on(model, source, recipe)
        hardness = self.learn_policy(model, source, cross_fitted, recipe)
        if self.joint_epochs:
            run_stage(model, source, self._joint_stage(hardness, recipe), recipe)
            if self.refit_policy:
                self._fit_policy(model, self._rows_of_policy(model, source, recipe), hardness, recipe)
        return model

    def learn_policy(
        self, model: MultiExitModel, source: TokenSource, cross_fitted: Tensor | None, recipe: Recipe
    ) -> Tensor | None:
        """Add the policy, fit it to the current exits (stage 2), and return the rows' Memorized Layer, if used.

        ``cross_fitted`` is a Memorized Layer [rows] measured before; None for that of these exits.
        """
        model.add_head(POLICY, self.policy_spec(), seed=recipe.seed)
        rows = self._rows_of_policy(model, source, recipe)
        hardness = cross_fitted
        if self.reward == "hardness" and hardness is None:
            answers = rows.outputs.logits if isinstance(rows, FeatureSource) else recorded_logits(model, source, recipe)
            hardness = memorized_layer_of(answers, source.labels)
        self._fit_policy(model, rows, hardness, recipe)
        return hardness

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit if P(exit) > knob; the paper uses 0.5. At 0 every row exits, even if P is rounded to 0."""
        self.check_knob(model, knob)
        return PolicyRule(self.policy_reads, threshold=knob if knob > 0 else float("-inf"))

    def _rows_of_policy(
        self, model: MultiExitModel, source: TokenSource, recipe: Recipe
    ) -> FeatureSource | TokenSource:
        return cached_rows(model, source, recipe) if self.cached else source

    def _fit_policy(
        self, model: MultiExitModel, rows: Source[FeatureBatch | TokenBatch], hardness: Tensor | None, recipe: Recipe
    ) -> None:
        loss = partial(_policy_stage_loss, self, hardness)
        details = {"method": repr(self), "hardness": hardness}
        train_heads(model, rows, loss, recipe, name="policy", trains=(f"exit_heads.{POLICY}.",), details=details)

    def _joint_stage(self, hardness: Tensor | None, recipe: Recipe) -> Stage[MultiExitModel, TokenBatch]:
        loss = partial(_joint_stage_loss, self, hardness)
        details = {"method": repr(self), "hardness": hardness}
        return replace(
            token_stage("exit-consistent", loss, recipe, also_trains=(f"exit_heads.{POLICY}.",), details=details),
            epochs=self.joint_epochs,
            learning_rate=self.joint_learning_rate,
            head_learning_rate=self.joint_learning_rate * recipe.head_learning_rate / recipe.learning_rate,
        )

    def draw_alpha(self, rows: int) -> Tensor:
        """Return the price of a layer for each row of a batch, here constant: [rows]."""
        return torch.full((rows,), self.alpha)

    def cost_of_answers(self, outputs: LayerOutputs, labels: Tensor) -> Tensor:
        """Compute the cost of each layer's answer in the reward: [rows, L]."""
        if self.reward_loss == "cross-entropy":
            return layer_losses(outputs.logits, labels)
        return (outputs.logits.argmax(dim=-1) != labels.unsqueeze(1)).to(outputs.logits.dtype)

    def policy_spec(self) -> HeadSpec:
        """Return the shape of the policy."""
        return policy_spec(self.policy_reads, self.conditioned)

    def policies(self, model: MultiExitModel, outputs: LayerOutputs) -> list[tuple[Tensor, Tensor]]:
        """Compute the price of a layer [rows] and P(exit) [rows, L], for every price that is trained."""
        alpha = self.draw_alpha(len(outputs.logits)).to(outputs.logits.device)
        return [(alpha, self.ask_policy(model, outputs, alpha))]

    def ask_policy(self, model: MultiExitModel, outputs: LayerOutputs, alpha: Tensor) -> Tensor:
        """Compute P(exit) at every layer: [rows, L]."""
        log_alpha = alpha.log() if self.conditioned else None
        return exit_probabilities(model.head(POLICY), outputs.pooled, outputs.logits, log_alpha)

    def policy_loss(self, probabilities: Tensor, reward: Tensor) -> Tensor:
        """Compute L_pi with the chosen estimator; both arguments are [rows, L]."""
        return policy_loss(probabilities, reward, self.estimator, self.rollouts)


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
    knob: ClassVar[Knob] = Knob("alpha", (1e6, *_ALPHAS, 0.0))
    conditioned: ClassVar[bool] = True

    reward_loss: Literal["cross-entropy", "error"] = "error"
    policy_reads: PolicyInputs = "confidence"
    lowest_alpha: float = 1e-4
    highest_alpha: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.lowest_alpha < self.highest_alpha:
            raise UserError("consistentee-curve: lowest_alpha must lie above 0 and below highest_alpha")

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit if P(exit | alpha = knob) > 0.5; the largest knob always exits, 0 never."""
        self.check_knob(model, knob)
        return PolicyRule(self.policy_reads, alpha=float("inf") if knob >= self.knob.values[0] else knob)

    def draw_alpha(self, rows: int) -> Tensor:
        """Draw alphas, log-uniformly: [rows]."""
        return drawn_prices(self.lowest_alpha, self.highest_alpha, rows)


def _policy_stage_loss(
    method: ConsistentEE, hardness: Tensor | None, model: MultiExitModel, batch: FeatureBatch | TokenBatch
) -> Tensor:
    """Compute L_pi, averaged over the trained prices; on tokens the frozen model runs first."""
    if isinstance(batch, FeatureBatch):
        outputs = batch.outputs
    else:
        with torch.no_grad():
            outputs = model(batch.tokens)
    costs, row_hardness = method.cost_of_answers(outputs, batch.labels), _of_rows(hardness, batch)
    losses = [
        method.policy_loss(probabilities, rewards(costs, alpha, row_hardness))
        for alpha, probabilities in method.policies(model, outputs)
    ]
    return torch.stack(losses).mean()


def _joint_stage_loss(
    method: ConsistentEE, hardness: Tensor | None, model: MultiExitModel, batch: TokenBatch
) -> Tensor:
    """Compute ``sum_t q_t CE_t`` plus L_pi, averaged over the trained prices."""
    outputs = model(batch.tokens)
    answers = layer_losses(outputs.logits, batch.labels)
    costs, row_hardness = method.cost_of_answers(outputs, batch.labels), _of_rows(hardness, batch)
    losses = []
    for alpha, probabilities in method.policies(model, outputs):
        loss_at_exit = (exit_distribution(probabilities).detach() * answers).sum(dim=1).mean()
        losses.append(loss_at_exit + method.policy_loss(probabilities, rewards(costs, alpha, row_hardness)))
    return torch.stack(losses).mean()


def _of_rows(hardness: Tensor | None, batch: FeatureBatch | TokenBatch) -> Tensor | None:
    return None if hardness is None else hardness[batch.rows].to(batch.labels.device)
