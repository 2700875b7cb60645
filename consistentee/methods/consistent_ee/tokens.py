"""ConsistentEE for decoders (Zeng et al., AAAI 2024, arXiv 2312.11882, section 3 and the LLaMA experiments).

The state after reading token i decides where to exit, and the exit there predicts token i + 1. Prompts and padding do
not count. Layers in the reward, ``R = -CE_t - alpha * (1 - m/L) * t``, are true layers. The policy reads the state
alone: this needs no LM head.

Three stages, on cached states of the frozen backbone:

1. all exits (shared with the other methods of generation; the recipe may train the backbone too);
2. the policy alone, on the reward, with the outputs of the exits computed once;
3. the exits again, each on the tokens that the policy lets exit there; then the policy again (only with
   ``consistent_steps``).

``consistentee-tokens`` has one price of a layer, as published, and a threshold on P(exit). In
``consistentee-tokens-ladder``, ours, the policies of several prices are one head and learn together; the knob is the
price, and a higher one never makes a token run longer.

States are those of full depth, so that the expected reward has a closed form; that in a text later tokens read the
skipped layers of earlier ones is ignored. In stage 3 an exit is drawn for each token, and exits learn at half their
rate. Exits are by default adapters under one LM head; the paper's code has an LM head for each.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional

import consistentee as ee
from consistentee.methods.consistent_ee.paper import (
    POLICY,
    THRESHOLDS,
    exact_policy_loss,
    memorized_layer,
    policy_rule,
    reinforce_policy_loss,
    rewards,
)
from consistentee.training import Stage, StateBatch, exit_answers, exit_distribution, train_exits, train_learned_head
from consistentee.training.decoder import ADAPTERS, ExitAnswers, train_on_states, wanted_answers
from consistentee.training.recipe import Target

ALWAYS = 1e6  # a price at which every token exits at the first exit; at 0 none exits


@dataclass(frozen=True)
class TokenPolicies(ee.TokenMethod):
    """ConsistentEE on tokens, with a policy for each of some prices of a layer.

    Attributes:
        reward: "hardness" makes layers cheap for tokens that are memorized late; "vanilla" prices all alike.
        estimator: "exact" uses the expected reward in closed form; "reinforce" samples ``rollouts`` exits for each
            token, as published.
        rollouts: K of REINFORCE.
        initial_bias: of the policy's output; P(exit) starts at its sigmoid.
        consistent_steps: steps of stage 3, in batches of ``recipe.exit_batch_size`` tokens; 0 skips it.
    """

    no_effect_if: ClassVar[dict[str, tuple[str, object]]] = {"rollouts": ("estimator", "exact")}

    reward: Literal["hardness", "vanilla"] = "hardness"
    estimator: Literal["exact", "reinforce"] = "exact"
    rollouts: Annotated[int, Field(ge=2)] = 4
    initial_bias: float = -1.5
    consistent_steps: NonNegativeInt = 0

    @property
    @abstractmethod
    def prices(self) -> tuple[float, ...]:
        """The prices of a layer, in nats, in increasing order."""

    def fit(self, model: ee.MultiExitDecoder, task: ee.TextTask, recipe: ee.TokenRecipe) -> ee.MultiExitDecoder:
        """Run stages 1 and 2, and stage 3 with ``consistent_steps``."""
        if self.consistent_steps and len(model.exit_layers) > 1 and not model.exits_have_weights:
            adapter = model.description.adapter
            raise ee.UserError(
                f"{self.name}: consistent_steps train the exits, which have no weights of their own with "
                f"adapter={adapter!r}; leave consistent_steps at 0, or choose another adapter"
            )
        everything = train_exits(model, task, recipe)
        policies = ee.HeadSpec(outputs=len(self.prices), initial_bias=self.initial_bias)  # Linear(H, 1) for each price
        model.add_head(POLICY, policies, seed=recipe.seed)
        trace = everything.select(recipe.tokens_for_heads(everything))
        if len(model.exit_layers) == 1 or not len(trace):
            return model
        answers = exit_answers(trace, store=recipe.store)
        hardness = memorized_exit_layer(answers.correct, model.exit_layers) if self.reward == "hardness" else None
        self._train_policy(trace, answers, hardness, recipe)
        if self.consistent_steps:
            stage = Stage(
                name="exit-consistent",
                loss=partial(self.exit_consistent_loss, recipe.target),
                trains=(ADAPTERS,),
                batch_size=recipe.exit_batch_size,
                learning_rate=recipe.exit_learning_rate / 2,
                stage_key={"prices": self.prices, "target": recipe.target},
            )
            train_on_states(trace, torch.arange(len(trace)), self.consistent_steps, stage, recipe)
            self._train_policy(trace, exit_answers(trace, store=recipe.store), hardness, recipe)
        return model

    def policies(self, model: ee.MultiExitDecoder, batch: StateBatch) -> list[Tensor]:
        """Compute P(exit) [tokens, exits], 1 at the last, for every price."""
        outputs = model.head(POLICY).at_layers(model.exit_layers[:-1], model.state(batch.rule_states[:, :-1]))
        probabilities = rung_logits(outputs if len(self.prices) > 1 else outputs.unsqueeze(-1)).sigmoid()
        return [functional.pad(p, (0, 1), value=1.0) for p in probabilities.unbind(dim=-1)]

    def _train_policy(
        self, trace: ee.TokenTrace, answers: ExitAnswers, hardness: Tensor | None, recipe: ee.TokenRecipe
    ) -> None:
        loss, tokens = partial(self.policy_stage_loss, answers, hardness), torch.arange(len(trace))
        estimator = f"{self.estimator} {self.rollouts}"
        key = {"prices": self.prices, "estimator": estimator, "losses": answers.losses, "hardness": hardness}
        train_learned_head(trace, tokens, loss, recipe, head=POLICY, stage_key=key)

    def policy_stage_loss(
        self, answers: ExitAnswers, hardness: Tensor | None, model: ee.MultiExitDecoder, batch: StateBatch
    ) -> Tensor:
        """Compute L_pi of a batch, averaged over the prices; ``answers`` and ``hardness`` are of the whole trace."""
        memorized = None if hardness is None else hardness[batch.tokens].to(model.device)
        costs, losses = answers.losses[batch.tokens].to(model.device), []
        for price, p in zip(self.prices, self.policies(model, batch), strict=True):
            reward = rewards(costs, price, memorized, layers=model.exit_layers)
            exact = self.estimator == "exact"
            losses.append(exact_policy_loss(p, reward) if exact else reinforce_policy_loss(p, reward, self.rollouts))
        return torch.stack(losses).mean()

    def exit_consistent_loss(self, target: Target, model: ee.MultiExitDecoder, batch: StateBatch) -> Tensor:
        """Compute the mean loss of tokens at exits drawn from the policies; those that run to layer L have none."""
        with torch.no_grad():
            distributions = [exit_distribution(p) for p in self.policies(model, batch)]
            drawn = torch.stack(distributions).mean(dim=0).multinomial(1).squeeze(1)
        wanted = wanted_answers(target, model, batch)
        total = torch.zeros((), device=model.device, requires_grad=True)
        for index, layer in enumerate(model.exit_layers[:-1]):
            here = (drawn == index).nonzero().flatten()
            logits = model.logits(layer, batch.answer_states[here, index])
            total = total + functional.cross_entropy(logits, wanted[here], reduction="sum")
        return total / len(batch.tokens)


@dataclass(frozen=True)
class ConsistentEETokens(TokenPolicies):
    """One policy for one price of a layer; a knob of 0.5 gives the published rule.

    Attributes besides those above:
        alpha: the price of a layer, in nats.
    """

    name: ClassVar[str] = "consistentee-tokens"
    paper: ClassVar[str] = "Zeng et al., ConsistentEE, AAAI 2024, arXiv 2312.11882 (its method for decoders)"
    knob: ClassVar[ee.Knob] = ee.Knob("threshold", THRESHOLDS)
    no_effect_if: ClassVar[dict[str, tuple[str, object]]] = {**TokenPolicies.no_effect_if, "reward": ("alpha", 0)}

    alpha: NonNegativeFloat = 0.02

    @property
    def prices(self) -> tuple[float, ...]:
        return (self.alpha,)

    def rule(self, model: ee.MultiExitDecoder, knob: float) -> ee.ExitRule:
        """Exit if P(exit) > knob; the paper uses 0.5."""
        return policy_rule(knob)


@dataclass(frozen=True)
class ConsistentEETokensLadder(TokenPolicies):
    """One policy for each price of a ladder, trained together; the threshold on P(exit) is the paper's 0.5.

    A price between two rungs uses the nearer one.

    Attributes besides those above, with prices in nats a layer:
        rungs: number of prices, log-spaced from ``lowest_price`` to ``highest_price``.
        price_rise: price of a layer at the last token of a text divided by that at the first, log-linear in between;
            the knob is the price half-way. It does not affect training.
        horizon: tokens of the rise; None for the length that the model was trained with.
    """

    name: ClassVar[str] = "consistentee-tokens-ladder"
    paper: ClassVar[str] = "ours: ConsistentEE for decoders (AAAI 2024) with the policies of all prices in one model"
    knob: ClassVar[ee.Knob] = ee.Knob("alpha", (ALWAYS, 0.3, 0.03, 0.003, 0.0))
    no_effect_if: ClassVar[dict[str, tuple[str, object]]] = {**TokenPolicies.no_effect_if, "horizon": ("price_rise", 1)}

    rungs: Annotated[int, Field(ge=2)] = 8
    lowest_price: PositiveFloat = 0.003
    highest_price: Annotated[float, Field(gt=0, lt=ALWAYS)] = 0.3
    price_rise: PositiveFloat = 1.0
    horizon: PositiveInt | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lowest_price < self.highest_price:
            raise ee.UserError(f"{self.name}: the lowest price of a ladder must lie below the highest one")

    @property
    def prices(self) -> tuple[float, ...]:
        low, high = math.log(self.lowest_price), math.log(self.highest_price)
        return tuple(math.exp(low + (high - low) * rung / (self.rungs - 1)) for rung in range(self.rungs))

    def knob_values(self, model: ee.MultiExitDecoder) -> Sequence[float]:
        """Return the price at which all tokens exit at once, the prices from the highest down, and 0."""
        return (ALWAYS, *reversed(self.prices), 0.0)

    def rule(self, model: ee.MultiExitDecoder, knob: float) -> ee.ExitRule:
        """Exit by the policy of the rung nearest to the price ``knob``, which may rise along the text."""
        if knob == 0 or nearest(knob, (*self.prices, ALWAYS)) == self.rungs:
            return LadderRule([0], threshold=-1.0 if knob else 1.0)  # P(exit) is above -1, and not above 1
        factors = rising(self.price_rise, 1 if self.price_rise == 1 else self.horizon or model.text_length)
        return LadderRule([nearest(knob * factor, self.prices) for factor in factors])


class LadderRule(ee.ExitRule):
    """Exit at the first exit with P(exit) above a threshold, by the policy of a rung.

    Args:
        rungs: index of the price at steps 0, 1, ... of a text, 0 being the lowest; the last one holds for all later
            steps.
        threshold: on P(exit).
    """

    def __init__(self, rungs: Sequence[int], threshold: float = 0.5) -> None:
        self.rungs = rungs
        self.threshold = threshold

    def should_exit(self, view: ee.LayerView, state: ee.State) -> Tensor:
        logits = rung_logits(view.head(POLICY))
        rungs = [self.rungs[min(place, len(self.rungs) - 1)] for place in view.places]
        if len(set(rungs)) == 1:  # copies nothing to the device
            return logits[..., rungs[0]].sigmoid() > self.threshold
        chosen = logits.gather(-1, torch.tensor(rungs, device=view.device).unsqueeze(-1)).squeeze(-1)
        return chosen.sigmoid() > self.threshold


def memorized_exit_layer(correct: Tensor, exit_layers: tuple[int, ...]) -> Tensor:
    """Compute the first exit layer from which on every exit is right, or L: bool [tokens, exits] -> int64 [tokens]."""
    return torch.tensor(exit_layers)[memorized_layer(correct) - 1]


def rung_logits(output: Tensor) -> Tensor:
    """Convert the head's output to logits of P(exit) at increasing prices, which increase: [..., K]."""
    return torch.cat([output[..., :1], functional.softplus(output[..., 1:])], dim=-1).cumsum(dim=-1)


def nearest(price: float, prices: Sequence[float]) -> int:
    """Return the index of the price whose logarithm is nearest."""
    return min(range(len(prices)), key=lambda rung: abs(math.log(prices[rung] / price)))


def rising(times: float, tokens: int) -> list[float]:
    """Compute log-linear factors of a price for the tokens of a text, from ``times**-0.5`` to ``times**0.5``."""
    return [times ** (step / max(tokens - 1, 1) - 0.5) for step in range(tokens)]
