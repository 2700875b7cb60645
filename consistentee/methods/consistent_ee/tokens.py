"""ConsistentEE for decoders (Zeng et al., AAAI 2024, arXiv 2312.11882, section 3 and the LLaMA experiments).

A token exits. The state after reading token i decides where to exit, and the exit there predicts token i + 1. Both are
in one row of a :class:`consistentee.TokenTrace`. Prompts and padding do not count in losses, reward and Memorized
Layer. The first token of a response, which always comes from layer L, counts only while a backbone learns without
closing layers. Layers in the reward, ``R = -CE_t - alpha * (1 - m/L) * t``, are true layers.

Three stages, on cached states of the frozen backbone:

1. all exits (shared with the other methods of generation; the recipe may train the backbone too);
2. the policy alone, on the reward, with the outputs of the exits computed once;
3. the exits again, each on the tokens that the policy lets exit there; then the policy again (only with
   ``consistent_steps``).

Choices. The trace is recorded at full depth, so its states do not depend on actions and the expected reward has a
closed form. In a text they do, because later tokens read the skipped layers of earlier ones; the reward ignores this.
Stages 2 and 3 alternate, because one step on all exits costs as much as thousands of steps on the policy. In stage 3 an
exit is drawn for each token, at one LM head a token; exits learn there at half their rate. Exits are by default
adapters under one LM head; the paper's code has an LM head for each.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor
from torch.nn import functional

from consistentee import ExitRule, HeadSpec, Knob, MultiExitDecoder, TextTask, TokenRecipe, TokenTrace, UserError
from consistentee.methods.policy import (
    ALWAYS,
    POLICY,
    DrawnPrices,
    Policies,
    PolicyInputs,
    PolicyParameters,
    Prices,
    policy_spec,
)
from consistentee.methods.reward import exit_distribution, memorized_layer, rewards
from consistentee.methods.token_methods import VocabularyMethod
from consistentee.signals import even_log_odds
from consistentee.training import Stage, StateBatch, exit_answers, train_exits, train_learned_head
from consistentee.training.decoder import ADAPTERS, train_on_states, wanted_answers
from consistentee.training.recipe import Target
from consistentee.training.token_answers import ExitAnswers

_ALPHAS = tuple(10.0**exponent for exponent in torch.linspace(1, -5, 121).tolist())


@dataclass(frozen=True)
class ConsistentEETokens(PolicyParameters, VocabularyMethod):
    """ConsistentEE on tokens: one policy for one price of a layer; a knob of 0.5 gives the published rule.

    The policy reads the state alone, as published: this needs no LM head, and there are enough tokens to train on.

    Attributes besides those of :class:`consistentee.methods.policy.PolicyParameters`:
        consistent_steps: steps of stage 3, in batches of ``recipe.exit_batch_size`` tokens; 0 skips it.
    """

    name: ClassVar[str] = "consistentee-tokens"
    paper: ClassVar[str] = "Zeng et al., ConsistentEE, AAAI 2024, arXiv 2312.11882 (its method for decoders)"
    knob: ClassVar[Knob] = Knob("threshold", (0.0, *even_log_odds(-9, 9, 73), 1.0))

    alpha: NonNegativeFloat = 0.02
    rollouts: Annotated[int, Field(ge=2)] = 4
    policy_reads: PolicyInputs = "state"
    consistent_steps: NonNegativeInt = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.prices  # raises UserError for invalid prices
        if self.candidates is not None and self.policy_reads == "state":
            raise UserError(f"{self.name}: a policy that reads the state alone has no vocabulary to prune")

    def check_model(self, model: MultiExitDecoder) -> None:
        if self.policy_reads != "state":
            super().check_model(model)

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Exit if P(exit) > knob; the paper uses 0.5."""
        return self.pruned(self.prices.rule(self.policy_reads, knob))

    def fit(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> MultiExitDecoder:
        """Run stages 1 and 2, and stage 3 with ``consistent_steps``."""
        if self.consistent_steps and len(model.exit_layers) > 1 and not model.exits_have_weights:
            adapter = model.description.adapter
            raise UserError(
                f"{self.name}: consistent_steps train the exits, which have no weights of their own with "
                f"adapter={adapter!r}; leave consistent_steps at 0, or choose another adapter"
            )
        everything = self.train_stage_1(model, task, recipe)
        model.add_head(POLICY, self.policy_spec(), seed=recipe.seed)
        trace = everything.select(recipe.tokens_for_heads(everything))
        if len(model.exit_layers) == 1 or not len(trace):
            return model
        answers = self._answers(trace, recipe)
        hardness = None
        if self.reward == "hardness":
            hardness = memorized_exit_layer(answers.correct, model.exit_layers)
        self._fit_policy(trace, answers, hardness, recipe)
        if self.consistent_steps:
            self._fit_exits_at_drawn_exits(trace, answers, recipe)
            self._fit_policy(trace, self._answers(trace, recipe), hardness, recipe)
        return model

    def train_stage_1(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> TokenTrace:
        """Train the exits and return the trace of the training rows."""
        return train_exits(model, task, recipe)

    def policy_spec(self) -> HeadSpec:
        """Return the head of the policy: Linear(H, 1) on the state, as published; else as in classification."""
        spec = policy_spec(self.policy_reads, self.prices.outputs, self.initial_bias)
        return replace(spec, hidden=None) if self.policy_reads == "state" else spec

    def _answers(self, trace: TokenTrace, recipe: TokenRecipe) -> ExitAnswers:
        return exit_answers(
            trace,
            with_confidence=self.policy_reads != "state",
            candidates=self.candidates,
            store=recipe.store,
        )

    def costs(self, answers: ExitAnswers) -> Tensor:
        """Compute the cost of each exit's answer in the reward: float [N, exits]."""
        return answers.losses if self.reward_loss == "cross-entropy" else (~answers.correct).float()

    def policies(self, answers: ExitAnswers, model: MultiExitDecoder, batch: StateBatch) -> Policies:
        """Compute the price of a layer [tokens] and P(exit) [tokens, exits], 1 at the last, for every trained price."""
        states, confidence = model.state(batch.rule_states[:, :-1]), None
        if answers.confidence is not None:
            confidence = answers.confidence[batch.tokens, :-1].to(states.device)
        outputs = model.head(POLICY).at_layers(model.exit_layers[:-1], states, confidence)
        policies = self.prices.policies(outputs)
        return [(alpha, torch.cat([p, torch.ones_like(p[:, :1])], dim=1)) for alpha, p in policies]

    def _fit_policy(
        self, trace: TokenTrace, answers: ExitAnswers, hardness: Tensor | None, recipe: TokenRecipe
    ) -> None:
        loss = partial(self.policy_stage_loss, answers, hardness)
        details = {"method": repr(self), "costs": self.costs(answers), "hardness": hardness}
        train_learned_head(trace, torch.arange(len(trace)), loss, recipe, head=POLICY, details=details)

    def policy_stage_loss(
        self, answers: ExitAnswers, hardness: Tensor | None, model: MultiExitDecoder, batch: StateBatch
    ) -> Tensor:
        """Compute L_pi of a batch, averaged over the prices; ``answers`` and ``hardness`` are of the whole trace."""
        device, tokens = model.device, batch.tokens
        memorized = None if hardness is None else hardness[tokens].to(device)
        costs = self.costs(answers)[tokens].to(device)
        losses = [
            self.policy_loss(p, rewards(costs, alpha, memorized, layers=model.exit_layers))
            for alpha, p in self.policies(answers, model, batch)
        ]
        return torch.stack(losses).mean()

    def _fit_exits_at_drawn_exits(self, trace: TokenTrace, answers: ExitAnswers, recipe: TokenRecipe) -> None:
        stage = Stage(
            name="exit-consistent",
            loss=partial(self.exit_consistent_loss, recipe.target, answers),
            trains=(ADAPTERS,),
            batch_size=recipe.exit_batch_size,
            learning_rate=recipe.exit_learning_rate / 2,
            details={"method": repr(self), "target": recipe.target},
        )
        train_on_states(trace, torch.arange(len(trace)), self.consistent_steps, stage, recipe)

    def exit_consistent_loss(
        self, target: Target, answers: ExitAnswers, model: MultiExitDecoder, batch: StateBatch
    ) -> Tensor:
        """Compute the mean loss of tokens at exits drawn from the policy; tokens that run to layer L have none."""
        with torch.no_grad():
            distributions = [exit_distribution(p) for _, p in self.policies(answers, model, batch)]
            drawn = torch.stack(distributions).mean(dim=0).multinomial(1).squeeze(1)
        wanted = wanted_answers(target, model, batch)
        total = torch.zeros((), device=model.device, requires_grad=True)
        for index, layer in enumerate(model.exit_layers[:-1]):
            here = (drawn == index).nonzero().flatten()
            logits = model.logits(layer, batch.answer_states[here, index])
            total = total + functional.cross_entropy(logits, wanted[here], reduction="sum")
        return total / len(batch.tokens)


@dataclass(frozen=True)
class ConsistentEETokensCurve(ConsistentEETokens):
    """ConsistentEE on tokens with one policy for the whole curve: the price of a layer is an input.

    It is drawn at random in training and is the knob at inference; the parameter ``alpha`` has no effect.
    """

    name: ClassVar[str] = "consistentee-tokens-curve"
    paper: ClassVar[str] = "ours: ConsistentEE for decoders (AAAI 2024) with a policy conditioned on alpha"
    knob: ClassVar[Knob] = Knob("alpha", (ALWAYS, *_ALPHAS, 0.0))

    lowest_alpha: float = 1e-4
    highest_alpha: float = 1.0

    @property
    def prices(self) -> Prices:
        """Log-uniform prices; the largest knob always exits, 0 never."""
        return DrawnPrices(self.lowest_alpha, self.highest_alpha)


def memorized_exit_layer(correct: Tensor, exit_layers: tuple[int, ...]) -> Tensor:
    """Compute the first exit layer from which on every exit is right, or L: bool [tokens, exits] -> int64 [tokens]."""
    return torch.tensor(exit_layers)[memorized_layer(correct) - 1]
