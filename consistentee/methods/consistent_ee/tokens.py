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
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from consistentee.data.prompts import TextTask
from consistentee.errors import UserError
from consistentee.methods.hardness import memorized_layer
from consistentee.methods.knob_grids import even_log_odds
from consistentee.methods.method import Knob
from consistentee.methods.policy import POLICY, PolicyInputs, PolicyRule, drawn_prices, policy_logit, policy_spec
from consistentee.methods.reward import Estimator, exit_distribution, policy_loss, rewards
from consistentee.methods.token_answers import ExitAnswers, exit_answers
from consistentee.methods.vocabulary_method import VocabularyMethod
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.heads import HeadSpec
from consistentee.rules.exit_rule import ExitRule
from consistentee.traces.token_trace import TokenTrace
from consistentee.training.decoder.sources import StateBatch
from consistentee.training.decoder.stages import (
    ADAPTERS,
    train_exits,
    train_learned_head,
    train_on_states,
    wanted_answers,
)
from consistentee.training.recipe import Target, TokenRecipe

_ALPHAS = tuple(10.0**exponent for exponent in torch.linspace(1, -5, 121).tolist())


@dataclass(frozen=True)
class ConsistentEETokens(VocabularyMethod):
    """ConsistentEE on tokens: one policy for one price of a layer; a knob of 0.5 gives the published rule.

    The policy reads the state alone, as published: this needs no LM head, and there are enough tokens to train on.

    Attributes:
        alpha: the price of a layer, in nats (of errors with ``reward_loss="error"``).
        reward: "hardness" makes layers cheap for tokens that are memorized late; "vanilla" prices all alike.
        reward_loss: the cost of a token: its "cross-entropy" (the paper's), or 1 for each "error".
        judged_by: the right answer in reward and Memorized Layer: the response's next token (the paper's), or the
            prediction of the last exit.
        estimator: "exact" uses the expected reward in closed form; "reinforce" samples ``rollouts`` exits a token.
        rollouts: K of REINFORCE.
        policy_reads: "state" is the paper's; "state+confidence" adds the exit's confidence, at the cost of the LM head
            at every exit; "confidence" reads only that.
        consistent_steps: steps of stage 3, in batches of ``recipe.exit_batch_size`` tokens; 0 skips it.
    """

    name: ClassVar[str] = "consistentee-tokens"
    paper: ClassVar[str] = "Zeng et al., ConsistentEE, AAAI 2024, arXiv 2312.11882 (its method for decoders)"
    knob: ClassVar[Knob] = Knob("threshold", (0.0, *even_log_odds(-9, 9, 73), 1.0))
    conditioned: ClassVar[bool] = False

    alpha: float = 0.02
    reward: Literal["hardness", "vanilla"] = "hardness"
    reward_loss: Literal["cross-entropy", "error"] = "cross-entropy"
    judged_by: Target = "label"
    estimator: Estimator = "exact"
    rollouts: int = 4
    policy_reads: PolicyInputs = "state"
    consistent_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates is not None and self.policy_reads == "state":
            raise UserError(f"{self.name}: a policy that reads the state alone has no vocabulary to prune")
        if self.estimator == "reinforce" and self.rollouts < 2:
            raise UserError(f"{self.name}: REINFORCE with a mean baseline needs at least 2 rollouts")
        if self.alpha < 0:
            raise UserError(f"{self.name}: alpha must not be negative, got {self.alpha}")

    @property
    def asks_exits(self) -> bool:
        return self.policy_reads != "state"

    def fit(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> MultiExitDecoder:
        """Run stages 1 and 2, and stage 3 with ``consistent_steps``."""
        self.check_task(task)
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
        answers = self._ask_exits(trace, recipe)
        hardness = None
        if self.reward == "hardness":
            hardness = memorized_exit_layer(answers.correct(self.judged_by), model.exit_layers)
        self._fit_policy(trace, answers, hardness, recipe)
        if self.consistent_steps:
            self._fit_exits_at_drawn_exits(trace, answers, recipe)
            self._fit_policy(trace, self._ask_exits(trace, recipe), hardness, recipe)
        return model

    def train_stage_1(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> TokenTrace:
        """Train the exits and return the trace of the training rows."""
        return train_exits(model, task, recipe)

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Exit if P(exit) > knob; the paper uses 0.5."""
        self.check_knob(model, knob)
        return self.pruned(PolicyRule(self.policy_reads, threshold=knob if knob > 0 else float("-inf")))

    def policy_spec(self) -> HeadSpec:
        """Return the head of the policy."""
        return token_policy_spec(self.policy_reads, self.conditioned)

    def _ask_exits(self, trace: TokenTrace, recipe: TokenRecipe) -> ExitAnswers:
        title = "asking exits" if recipe.progress else None
        return exit_answers(
            trace,
            with_confidence=self.policy_reads != "state",
            candidates=self.candidates,
            store=recipe.store,
            progress=title,
        )

    def _fit_policy(
        self, trace: TokenTrace, answers: ExitAnswers, hardness: Tensor | None, recipe: TokenRecipe
    ) -> None:
        loss = partial(policy_stage_loss, self, answers, hardness)
        details = {**self._settings(), "costs": self.costs(answers), "hardness": hardness}
        train_learned_head(trace, torch.arange(len(trace)), loss, recipe, head=POLICY, details=details)

    def _fit_exits_at_drawn_exits(self, trace: TokenTrace, answers: ExitAnswers, recipe: TokenRecipe) -> None:
        train_on_states(
            trace,
            torch.arange(len(trace)),
            partial(exit_consistent_loss, self, recipe.target, answers),
            recipe,
            name="exit-consistent",
            trains=(ADAPTERS,),
            steps=self.consistent_steps,
            batch_size=recipe.exit_batch_size,
            learning_rate=recipe.exit_learning_rate / 2,
            details={**self._settings(), "target": recipe.target},
        )

    def _settings(self) -> dict[str, object]:
        """Describe the parameters in a stage's key. "agree" differs from older stages, which compared places."""
        pruning = {} if self.candidates is None else {"candidates": self.candidates, "agree": "tokens"}
        return {"method": repr(self), **pruning}

    def draw_alpha(self, tokens: int) -> Tensor:
        """Return the price of a layer for each token of a batch, here constant: [tokens]."""
        return torch.full((tokens,), self.alpha)

    def costs(self, answers: ExitAnswers) -> Tensor:
        """Compute the cost of each exit's answer in the reward: float [N, exits]."""
        if self.reward_loss == "cross-entropy":
            return answers.losses(self.judged_by)
        return (~answers.correct(self.judged_by)).float()

    def ask_policy(
        self, model: MultiExitDecoder, batch: StateBatch, confidence: Tensor | None, alpha: Tensor
    ) -> Tensor:
        """Compute P(exit) at every exit, 1 at the last: [tokens, exits].

        Args:
            model: with the policy.
            batch: states of the tokens.
            confidence: [tokens, exits, 4], or None for a policy that does not read it.
            alpha: [tokens], for a conditioned policy.
        """
        log_alpha = alpha.log() if self.conditioned else None
        outputs = policy_answers(model, batch, confidence)
        columns = [policy_logit(output, log_alpha).sigmoid() for output in outputs]
        return torch.stack([*columns, torch.ones_like(columns[0])], dim=1)

    def policies(
        self, model: MultiExitDecoder, batch: StateBatch, confidence: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Compute the price of a layer [tokens] and P(exit) [tokens, exits], for every trained price."""
        alpha = self.draw_alpha(len(batch.tokens)).to(model.device)
        return [(alpha, self.ask_policy(model, batch, confidence, alpha))]

    def policy_loss(self, probabilities: Tensor, reward: Tensor) -> Tensor:
        """Compute L_pi with the chosen estimator; both arguments are [tokens, exits]."""
        return policy_loss(probabilities, reward, self.estimator, self.rollouts)


@dataclass(frozen=True)
class ConsistentEETokensCurve(ConsistentEETokens):
    """ConsistentEE on tokens with one policy for the whole curve: the price of a layer is an input.

    It is drawn at random in training and is the knob at inference; the parameter ``alpha`` has no effect.
    """

    name: ClassVar[str] = "consistentee-tokens-curve"
    paper: ClassVar[str] = "ours: ConsistentEE for decoders (AAAI 2024) with a policy conditioned on alpha"
    knob: ClassVar[Knob] = Knob("alpha", (1e6, *_ALPHAS, 0.0))
    conditioned: ClassVar[bool] = True

    lowest_alpha: float = 1e-4
    highest_alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.lowest_alpha < self.highest_alpha:
            raise UserError(f"{self.name}: lowest_alpha must lie above 0 and below highest_alpha")

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Exit if P(exit | alpha = knob) > 0.5; the largest knob always exits, 0 never."""
        self.check_knob(model, knob)
        return self.pruned(PolicyRule(self.policy_reads, alpha=float("inf") if knob >= self.knob.values[0] else knob))

    def draw_alpha(self, tokens: int) -> Tensor:
        """Draw alphas, log-uniformly: [tokens]."""
        return drawn_prices(self.lowest_alpha, self.highest_alpha, tokens)


def policy_answers(model: MultiExitDecoder, batch: StateBatch, confidence: Tensor | None) -> list[Tensor]:
    """Compute the policy head's output at every exit before the last: [tokens], or [tokens, outputs], each."""
    policy, states = model.head(POLICY), model.state(batch.deciding)
    return [
        policy(layer, states[:, index], None if confidence is None else confidence[:, index])
        for index, layer in enumerate(model.exit_layers[:-1])
    ]


def token_policy_spec(reads: PolicyInputs, conditioned: bool) -> HeadSpec:
    """Return the head of a policy for tokens: Linear(H, 1) on the state, as published; else as in classification."""
    spec = policy_spec(reads, conditioned)
    return replace(spec, hidden=None) if reads == "state" else spec


def memorized_exit_layer(correct: Tensor, exit_layers: tuple[int, ...]) -> Tensor:
    """Compute the smallest exit layer from which on every exit is right; L if the last one is wrong.

    Args:
        correct: bool [tokens, exits].
        exit_layers: true layers of the exits.

    Returns:
        int64 [tokens].
    """
    return torch.tensor(exit_layers)[memorized_layer(correct) - 1]


def _confidence_of(answers: ExitAnswers, batch: StateBatch) -> Tensor | None:
    return None if answers.confidence is None else answers.confidence[batch.tokens].to(batch.speaking.device)


def policy_stage_loss(
    method: ConsistentEETokens,
    answers: ExitAnswers,
    hardness: Tensor | None,
    model: MultiExitDecoder,
    batch: StateBatch,
) -> Tensor:
    """Compute L_pi of a batch; ``answers`` and ``hardness`` are of the whole trace."""
    device, tokens = model.device, batch.tokens
    memorized = None if hardness is None else hardness[tokens].to(device)
    costs = method.costs(answers)[tokens].to(device)
    losses = [
        method.policy_loss(probabilities, rewards(costs, alpha, memorized, layers=model.exit_layers))
        for alpha, probabilities in method.policies(model, batch, _confidence_of(answers, batch))
    ]
    return torch.stack(losses).mean()


def exit_consistent_loss(
    method: ConsistentEETokens, target: Target, answers: ExitAnswers, model: MultiExitDecoder, batch: StateBatch
) -> Tensor:
    """Compute the mean loss of tokens at exits drawn from the policy; tokens that run to layer L have none."""
    with torch.no_grad():
        policies = method.policies(model, batch, _confidence_of(answers, batch))
        distribution = torch.stack([exit_distribution(probabilities) for _, probabilities in policies]).mean(dim=0)
        drawn = distribution.multinomial(1).squeeze(1)
    wanted = wanted_answers(target, model, batch)
    total = torch.zeros((), device=model.device, requires_grad=True)
    for index, layer in enumerate(model.exit_layers[:-1]):
        here = (drawn == index).nonzero().flatten()
        logits = model.logits(layer, batch.speaking[here, index])
        total = total + functional.cross_entropy(logits, wanted[here], reduction="sum")
    return total / len(batch.tokens)
