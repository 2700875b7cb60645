"""ConsistentEE (Zeng et al., AAAI 2024, arXiv 2312.11882): training made consistent with inference.

In joint training every internal classifier has to be right on every row, but at inference one classifier answers. Here
a policy decides at which layer a row exits, and only the classifier at that exit has to be right. From top to bottom:

* state and policy (section 3.1): the pooled vector of layer t, and P(exit) from it by a small network for each layer;
* Memorized Layer (section 3.3): how hard a row is, read from the classifiers after stage 1;
* reward: the loss of the answer and the price of the layers, which hard rows do not pay;
* policy gradient: REINFORCE, or the expected reward in closed form;
* three stages: all classifiers, the policy, both. Rule: exit at the first layer with P(exit) > 0.5.

What differs from the authors' code: stage 1 and the warm-up are the suite's (``paper-bert-base`` has the published
ones); exits are sampled, and rows pay for layers (there, actions are thresholded, and the price is commented out). One
model has one price of a layer, alpha: train several for a curve.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from consistentee import ExitRule, HeadSpec, Knob, Method, MultiExitModel, Recipe, TaskData, ThresholdRule, training
from consistentee.errors import UserError
from consistentee.signals import entropy, entropy_thresholds, even_log_odds, head_probability

POLICY = "policy"
POLICY_WEIGHTS = (f"exit_heads.{POLICY}.",)
NETWORK = HeadSpec(hidden=32)  # for each layer Linear(H, 32), GELU, Linear(32, 1), then a sigmoid (section 3.1)
BATCH_SIZE, RATE = 32, 3e-4  # of stage 2 in the authors' code
THRESHOLDS = (0.0, *even_log_odds(-9, 9, 73), 1.0)  # of P(exit), with leave_by="threshold"


def exit_probabilities(model: MultiExitModel, pooled: Tensor) -> Tensor:
    """Compute P(exit) at every layer from the states [rows, L, H]: [rows, L]."""
    return model.head(POLICY).at_layers(range(1, model.num_layers + 1), pooled).sigmoid()


def sampled_exits(probabilities: Tensor, samples: int) -> Tensor:
    """Draw the layer, from 0, at which each row exits, from P(exit) [rows, L]: int64 [samples, rows, 1]."""
    p = probabilities[:, :-1].detach()
    exits = torch.rand(samples, *p.shape, device=p.device) < p
    return torch.cat([exits, torch.ones_like(exits[..., :1])], dim=-1).int().argmax(dim=-1, keepdim=True)


def memorized_layer(correct: Tensor) -> Tensor:
    """Compute the first layer from which on every classifier is right, or L: bool [rows, L] -> int64 [rows], from 1."""
    layers = correct.shape[1]
    right_to_the_end = correct.flip(dims=[1]).long().cumprod(dim=1).sum(dim=1)
    return (layers - right_to_the_end + 1).clamp(max=layers)


def unseen_logits(model: MultiExitModel, source: training.TokenSource, recipe: Recipe) -> Tensor:
    """Compute each row's logits, by a stage 1 that learns the other half of the rows: [rows, L, classes]."""
    halves = torch.randperm(len(source), generator=torch.Generator().manual_seed(recipe.seed)).chunk(2)
    found = []
    for seen, unseen in (halves, halves[::-1]):
        other = deepcopy(model)
        training.train_jointly(other, replace(source.select(seen), model=other), recipe)
        found.append(training.recorded_logits(other, replace(source.select(unseen), model=other), recipe))
    return torch.cat(found)[torch.cat(halves[::-1]).argsort()]


def rewards(
    losses: Tensor, alpha: float | Tensor, hardness: Tensor | None = None, layers: Sequence[int] | None = None
) -> Tensor:
    """Compute the reward of each exit, ``R_t = -CE_t - alpha * (1 - m/L) * t``, from CE_t: [rows, exits].

    ``alpha`` may be float [rows]. ``hardness`` is m, int64 [rows]; None gives the vanilla reward, without ``1 - m/L``.
    ``layers`` are the exits' t, up to L; None for 1..L.
    """
    depths = range(1, losses.shape[1] + 1) if layers is None else layers
    price = torch.as_tensor(alpha, dtype=losses.dtype, device=losses.device).expand(len(losses))
    if hardness is not None:
        price = price * (1 - hardness.to(losses.dtype) / depths[-1])
    return -losses - price.unsqueeze(1) * losses.new_tensor(list(depths))


def exact_policy_loss(probabilities: Tensor, reward: Tensor) -> Tensor:
    """Compute minus the expected reward, ``-mean_rows sum_t q_t R_t``, from P(exit) p and R, [rows, L].

    A row exits at layer t with probability ``q_t = p_t * prod_{s<t} (1 - p_s)``; q_L is the rest.
    """
    return -(training.exit_distribution(probabilities) * reward.detach()).sum(dim=1).mean()


def reinforce_policy_loss(probabilities: Tensor, reward: Tensor, rollouts: int) -> Tensor:
    """Compute a loss whose gradient is that of REINFORCE with K rollouts a row and their mean reward as baseline.

    ``-(1/BK) sum_i sum_k (R_ik - mean_k R_ik) * sum_{s<=T_ik} log pi(a_s)``, from P(exit) and R, [rows, L]. Layer L has
    no choice. The baseline includes the rollout's own reward, so the expectation is ``(K-1)/K`` of the exact gradient.
    """
    p = probabilities[:, :-1]
    exit_index = sampled_exits(probabilities, rollouts)
    obtained = reward.detach().expand(rollouts, *reward.shape).gather(-1, exit_index).squeeze(-1)
    advantage = obtained - obtained.mean(dim=0, keepdim=True)
    layer = torch.arange(p.shape[1], device=reward.device)
    log_stay, log_exit = (part.clamp_min(torch.finfo(p.dtype).tiny).log() for part in (1 - p, p))
    log_likelihood = ((layer < exit_index) * log_stay + (layer == exit_index) * log_exit).sum(dim=-1)
    return -(advantage * log_likelihood).mean()


@dataclass(frozen=True)
class ConsistentEEPaper(Method):
    """The published algorithm, with the values of the authors' code where the paper is silent.

    Attributes:
        alpha: the price of a layer, in nats. The authors' code has 0.005 to 0.2.
        reward: "hardness" makes layers cheap for rows that are memorized late; "vanilla" prices all rows alike.
        cross_fitted: hardness, and the cross-entropy in stage 2's reward, are read from exits that have not seen the
            row: of two more models of stage 1, each learns half of the rows and answers the others. Not in the paper.
        estimator: "reinforce" samples ``rollouts`` exits for each row; "exact" has the expected reward in closed form.
        rollouts: K of REINFORCE; 8 in the paper.
        policy_epochs: length of stage 2; 2 in the authors' code, in batches of 32 with a rate of 3e-4.
        policy_dropout: stage 2 runs the backbone with dropout, as in the authors' code; else it reads cached features.
        joint_epochs, joint_learning_rate, joint_batch_size: of stage 3, as in the authors' code; 0 epochs skip it.
        joint_exit: the exit that bears the cross-entropy of a row in stage 3: "sampled" from the policy, as published,
            or "expected", each exit by its probability.
        policy_trains_backbone: in stage 3, as in the authors' code.
        leave_by: the rule on the same trained exits: "policy" where P(exit) > 0.5, as published; "threshold" where
            P(exit) is above the knob; "entropy" where the entropy is below the knob, in nats, as in DeeBERT.
    """

    name: ClassVar[str] = "consistentee-paper"
    paper: ClassVar[str] = "Zeng et al., ConsistentEE, AAAI 2024, arXiv 2312.11882"
    version: ClassVar[int] = 4
    knob: ClassVar[Knob] = Knob("threshold", (0.5,))
    no_effect_if: ClassVar[dict[str, tuple[str, object]]] = {"rollouts": ("estimator", "exact"), "reward": ("alpha", 0)}

    alpha: NonNegativeFloat = 0.05
    reward: Literal["hardness", "vanilla"] = "hardness"
    cross_fitted: bool = False
    estimator: Literal["reinforce", "exact"] = "reinforce"
    rollouts: Annotated[int, Field(ge=2)] = 8
    policy_epochs: PositiveInt = 2
    policy_dropout: bool = True
    joint_epochs: NonNegativeInt = 2
    joint_learning_rate: PositiveFloat = 3e-5
    joint_batch_size: PositiveInt = 32
    joint_exit: Literal["sampled", "expected"] = "sampled"
    policy_trains_backbone: bool = True
    leave_by: Literal["policy", "threshold", "entropy"] = "policy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.joint_epochs:
            of_stage_3 = "joint_learning_rate", "joint_batch_size", "joint_exit", "policy_trains_backbone"
            self.refuse(*of_stage_3, because="joint_epochs is 0")
        if self.leave_by == "entropy" and not self.joint_epochs:
            why = "leave_by is 'entropy' and joint_epochs is 0, so that no policy is trained"
            self.refuse("alpha", "reward", "cross_fitted", "estimator", "rollouts", "policy_epochs", because=why)
            if self.policy_dropout:
                raise UserError(f"{self.name}: set policy_dropout to False, because {why}")

    def fit(self, model: MultiExitModel, task: TaskData, recipe: Recipe) -> MultiExitModel:
        # Stage 1: backbone and all classifiers on sum_t t * CE_t / sum_t t, shared with PABEE and others.
        source = training.training_source(model, task, recipe)
        unseen = unseen_logits(model, source, recipe) if self.cross_fitted else None
        training.train_jointly(model, source, recipe)
        if self.leave_by == "entropy" and not self.joint_epochs:
            return model  # nothing would read a policy
        # How hard each training row is.
        rows = training.cached_rows(model, source, recipe)
        logits = rows.outputs.logits if unseen is None else unseen
        correct = logits.argmax(dim=-1) == source.labels.unsqueeze(1)
        hardness = memorized_layer(correct) if self.reward == "hardness" else None
        key: dict[str, object] = {"alpha": self.alpha, "estimator": self.estimator, "rollouts": self.rollouts}
        key["hardness"] = hardness
        losses = None if unseen is None else training.layer_losses(unseen, source.labels)
        key |= {} if losses is None else {"losses": losses}
        # Stage 2: the policy alone, on its reward.
        model.add_head(POLICY, NETWORK, seed=recipe.seed)
        loss = partial(self.policy_stage_loss, hardness, unseen_losses=losses)
        alone = training.Stage(
            "policy", loss, POLICY_WEIGHTS, BATCH_SIZE, RATE, epochs=self.policy_epochs, stage_key=key, shared=True
        )
        read = source if self.policy_dropout else rows
        training.run_stage(model, read, replace(alone, dropout=self.policy_dropout), recipe)
        # Stage 3: backbone and classifiers on the cross-entropy at the exit, the policy on its reward. Rules share it.
        if self.joint_epochs:
            both = replace(recipe, epochs=self.joint_epochs, batch_size=self.joint_batch_size)
            both = replace(both, learning_rate=self.joint_learning_rate, head_learning_rate=self.joint_learning_rate)
            key |= {"joint_exit": self.joint_exit, "policy_trains_backbone": self.policy_trains_backbone}
            loss = partial(self.joint_stage_loss, hardness)
            stage = training.token_stage(
                "exit-consistent", loss, both, also_trains=POLICY_WEIGHTS, stage_key=key, shared=True
            )
            training.run_stage(model, source, stage, both)
        return model

    def policy_stage_loss(
        self,
        hardness: Tensor | None,
        model: MultiExitModel,
        batch: training.FeatureBatch | training.TokenBatch,
        unseen_losses: Tensor | None = None,
    ) -> Tensor:
        """Compute L_pi of a batch; ``hardness`` and ``unseen_losses``, if CE_t is not the model's, are of all rows."""
        outputs = batch.outputs if isinstance(batch, training.FeatureBatch) else model(batch.tokens)
        if unseen_losses is None:
            losses = training.layer_losses(outputs.logits, batch.labels)
        else:
            losses = unseen_losses[batch.rows].to(outputs.logits.device)
        return self.policy_loss(hardness, batch.rows, losses, exit_probabilities(model, outputs.pooled))

    def joint_stage_loss(self, hardness: Tensor | None, model: MultiExitModel, batch: training.TokenBatch) -> Tensor:
        """Compute the cross-entropy at the exit plus L_pi of a batch; ``hardness`` is of all training rows."""
        outputs = model(batch.tokens)
        losses = training.layer_losses(outputs.logits, batch.labels)
        pooled = outputs.pooled if self.policy_trains_backbone else outputs.pooled.detach()
        p = exit_probabilities(model, pooled)
        if self.joint_exit == "sampled":
            at_exit = losses.gather(1, sampled_exits(p, samples=1)[0])
        else:
            at_exit = (training.exit_distribution(p).detach() * losses).sum(dim=1)
        return at_exit.mean() + self.policy_loss(hardness, batch.rows, losses, p)

    def policy_loss(self, hardness: Tensor | None, rows: Tensor, losses: Tensor, p: Tensor) -> Tensor:
        """Compute L_pi from CE_t and P(exit) [rows, L]; ``rows`` [rows] are their places among all training rows."""
        memorized = None if hardness is None else hardness[rows].to(losses.device)
        reward = rewards(losses, self.alpha, memorized)
        if self.estimator == "exact":
            return exact_policy_loss(p, reward)
        return reinforce_policy_loss(p, reward, self.rollouts)

    def knob_values(self, model: MultiExitModel) -> Sequence[float]:
        if self.leave_by == "entropy":
            return entropy_thresholds(model.num_labels)
        return THRESHOLDS if self.leave_by == "threshold" else self.knob.values

    @property
    def refines_knob(self) -> bool:
        return self.leave_by != "policy"

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit if P(exit) > ``knob``, or if the entropy is below ``knob`` nats."""
        if self.leave_by == "entropy":
            return ThresholdRule(entropy, knob, exit_when="below")
        return policy_rule(knob)


def policy_rule(threshold: float) -> ExitRule:
    """Return the rule to exit if P(exit) > ``threshold``; with 0 every row exits, even if P(exit) is rounded to 0."""
    return ThresholdRule(head_probability(POLICY), threshold if threshold > 0 else -1.0, exit_when="above")
