"""Stages of generation that several methods share: exits and learned heads of a decoder.

An LM head costs as much as several layers, so stages are counted in steps over tokens drawn at random from cached
states of a frozen backbone, not in epochs over all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from consistentee.data.tasks import PromptSplit, TextTask
from consistentee.files import computed_once, hash_json, hash_tensors
from consistentee.models.base import chosen_device
from consistentee.models.decoder.adapters import StateMoments
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.progress import tracked
from consistentee.rules.view import best_among, likeliest
from consistentee.traces.token_trace import CHUNK, TokenRow, TokenTrace, compact_dtype, encode_rows, record_tokens
from consistentee.training.decoder_backbone import exit_weights, joint_loss, last_exit_loss, train_backbone
from consistentee.training.loop import Source, Stage, count_rows, run_stage
from consistentee.training.recipe import Target, TokenRecipe, drawn
from consistentee.versions import TRAINING_VERSION

ADAPTERS = "exit_adapters."

_ROWS_TO_START_FROM = 128
_STATES_AT_A_TIME = 4096


@dataclass(frozen=True)
class StateBatch:
    """Decoded tokens as cached states, on the model's device.

    Attributes:
        answer_states: the states of the token before, which the exits read: float [n, exits, width].
        rule_states: the states that rules and learned heads read: float [n, exits, width].
        targets: int64 [n].
        tokens: their numbers in the trace: int64 [n], on the CPU.
    """

    answer_states: Tensor
    rule_states: Tensor
    targets: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class DrawnTokens(Source):
    """Tokens of a trace, given by their numbers, in the order of a stage."""

    trace: TokenTrace
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: Tensor, step: int) -> StateBatch:
        trace, tokens, device = self.trace, self.tokens[rows], self.trace.model.device
        answers = trace.answer_states[tokens].to(device, trace.model.dtype)
        rules = answers if trace.rule_states is trace.answer_states else trace.rule_states[tokens].to(answers)
        return StateBatch(answers, rules, trace.targets[tokens].to(device), tokens)

    def fingerprint(self) -> str:
        return hash_tensors({"drawn": self.tokens}) + self.trace.fingerprint


def training_rows(model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> list[TokenRow]:
    """Return the training rows of a task as tokens; the model notes how long they may be."""
    noted = model.description
    noted.max_prompt_tokens = recipe.max_prompt_tokens or task.max_prompt_tokens
    noted.max_new_tokens = recipe.max_new_tokens or task.max_new_tokens
    return rows_as_long(model, task, task.train.capped(recipe.max_rows, seed=0))


def rows_as_long(model: MultiExitDecoder, task: TextTask, split: PromptSplit) -> list[TokenRow]:
    """Return rows of a task as tokens, at most as long as those that the model was trained on."""
    noted = model.description
    return encode_rows(
        model,
        split,
        max_prompt_tokens=noted.max_prompt_tokens,
        max_new_tokens=noted.max_new_tokens or task.max_new_tokens,
        keep=task.keep,
    )


def train_exits(model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> TokenTrace:
    """Train the stages that methods of generation share; return the trace of the training rows under the trained model.

    The backbone first, if the recipe trains it, then the exit adapters on its states. Both are shared through the
    recipe's store. Before, exits get a start in closed form.
    """
    model.to(chosen_device())
    rows = training_rows(model, task, recipe)
    if recipe.trains != "exits":
        if model.exits_have_weights:
            _start_exits(cached_states(model, rows[:_ROWS_TO_START_FROM], recipe), recipe)
        loss = partial(joint_loss, recipe.exit_weights, recipe.taught_share, recipe.layer_dropout)
        train_backbone(model, rows, recipe, loss, also_trains=(ADAPTERS,))
    trace = cached_states(model, rows[: recipe.traced_rows], recipe)
    if recipe.trains == "exits":
        _start_exits(trace, recipe)
    stage = Stage(
        name="exits",
        loss=partial(exit_loss, recipe.target),
        trains=(ADAPTERS,),
        batch_size=recipe.exit_batch_size,
        learning_rate=recipe.exit_learning_rate,
        stage_key={"target": recipe.target},
        shared=True,
    )
    train_on_states(trace, trace.may_exit, recipe.exit_steps, stage, recipe)
    return trace


def train_last_token_exit(model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> None:
    """Fine-tune the stock model on the responses, with the last exit alone. The recipe must train the backbone.

    The stage does not depend on the kind of the exits, so that all kinds share it.
    """
    model.to(chosen_device())
    train_backbone(model.without_exits(), training_rows(model, task, recipe), recipe, last_exit_loss)


def cached_states(model: MultiExitDecoder, rows: Sequence[TokenRow], recipe: TokenRecipe) -> TokenTrace:
    """Record the states of some rows at the exits, in float16 (float64 if the model is), and keep them in the store."""
    count_rows(len(rows), with_gradients=False)
    return record_tokens(model, rows, dtype=compact_dtype(model), store=recipe.store)


@torch.no_grad()
def _start_exits(trace: TokenTrace, recipe: TokenRecipe) -> None:
    model, tokens = trace.model, recipe.tokens_for_heads(trace)
    if not len(tokens):
        return
    for index, layer in enumerate(model.exit_layers[:-1]):
        moments = StateMoments.zero(model.backbone.lm_head.weight)
        for chunk in tokens.split(_STATES_AT_A_TIME):
            moments = moments.plus(*(model.state(trace.states(exit_index, chunk)) for exit_index in (index, -1)))
        model.adapter(layer).start_from(moments)


@torch.no_grad()
def wanted_answers(target: Target, model: MultiExitDecoder, batch: StateBatch) -> Tensor:
    """Return the targets of exits: tokens, int64 [n], or the distribution of the last exit, float [n, vocabulary]."""
    if target == "label":
        return batch.targets
    return model.logits(model.exit_layers[-1], batch.answer_states[:, -1]).softmax(dim=-1)


def exit_loss(target: Target, model: MultiExitDecoder, batch: StateBatch) -> Tensor:
    """Compute the mean loss of every exit but the last, weighted by depth."""
    early, wanted = model.exit_layers[:-1], wanted_answers(target, model, batch)
    losses = [
        weight * functional.cross_entropy(model.logits(layer, batch.answer_states[:, index]), wanted)
        for index, (layer, weight) in enumerate(zip(early, exit_weights(early), strict=True))
    ]
    return torch.stack(losses).sum()


def train_on_states(trace: TokenTrace, tokens: Tensor, steps: int, stage: Stage, recipe: TokenRecipe) -> None:
    """Run a stage on the cached states of some tokens, given by their numbers, for some steps, without dropout.

    Nothing happens if there is nothing to train: a decoder with one exit, the last, has no adapter.
    """
    has_weights = any(weight.startswith(stage.trains) for weight, _ in trace.model.named_parameters())
    if steps and len(tokens) and has_weights:
        source = DrawnTokens(trace, drawn(tokens, steps * stage.batch_size, recipe.seed))
        run_stage(trace.model, source, replace(stage, dropout=False), recipe)


def train_learned_head(
    trace: TokenTrace,
    tokens: Tensor,
    loss: Callable[[MultiExitDecoder, StateBatch], Tensor],
    recipe: TokenRecipe,
    *,
    head: str,
    stage_key: Mapping[str, object] | None = None,
) -> None:
    """Train a learned head of the trace's model on cached states of some tokens, by the recipe."""
    stage = Stage(
        name=head,
        loss=loss,
        trains=(f"exit_heads.{head}.",),
        batch_size=recipe.head_batch_size,
        learning_rate=recipe.head_learning_rate,
        stage_key=stage_key or {},
    )
    train_on_states(trace, tokens, recipe.head_steps, stage, recipe)


@dataclass(frozen=True)
class ExitAnswers:
    """Outputs of the LM head that rewards and learned heads need, for every token of a trace, on the CPU.

    Attributes:
        targets: the next token of the response: int64 [N].
        predictions: the token that each exit predicts, with a pruned vocabulary one of the candidates from the second
            exit on: int64 [N, exits].
        losses: cross-entropy of each exit for the response's next token, in nats: float [N, exits].
    """

    targets: Tensor
    predictions: Tensor
    losses: Tensor

    @property
    def correct(self) -> Tensor:
        """Whether each exit predicts the target: bool [N, exits]."""
        return self.predictions == self.targets.unsqueeze(1)


def exit_answers(trace: TokenTrace, *, candidates: int | None = None, store: Path | None = None) -> ExitAnswers:
    """Compute the answer of every exit to every token of a trace, in chunks of tokens.

    Args:
        trace: select its tokens first if there are many: the LM head runs on each of them at every exit.
        candidates: number of tokens to which exits between the first and the last are restricted, the likeliest of the
            first exit; None for the whole vocabulary. Losses are always those of the whole vocabulary.
        store: folder to keep the answers in, for methods that share exits and tokens.
    """
    ask = partial(_ask, trace, candidates)
    if store is None:
        return ExitAnswers(**ask())
    parts = [trace.model.fingerprint(with_heads=False), trace.fingerprint, candidates]
    name = f"answers-{hash_json([*parts, TRAINING_VERSION])[:16]}.safetensors"
    return ExitAnswers(**computed_once(store / name, ask))


@torch.no_grad()
def _ask(trace: TokenTrace, candidates: int | None) -> dict[str, Tensor]:
    chunks = tracked(torch.arange(len(trace)).split(CHUNK), "asking exits", rows=CHUNK)
    parts = [_ask_about(trace, tokens, candidates) for tokens in chunks]
    answers = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return {"targets": trace.targets, **answers}


def _ask_about(trace: TokenTrace, tokens: Tensor, candidates: int | None) -> dict[str, Tensor]:
    model, last = trace.model, len(trace.exit_layers) - 1
    targets = trace.targets[tokens].to(model.device)
    predictions: list[Tensor] = []
    losses: list[Tensor] = []
    among: Tensor | None = None
    for index, layer in enumerate(trace.exit_layers):
        logits = model.logits(layer, trace.states(index, tokens))
        losses.append(functional.cross_entropy(logits, targets, reduction="none"))
        if index == 0 and candidates is not None:
            among = likeliest(logits, candidates)
        pruned = among if 0 < index < last else None
        if pruned is not None:
            logits = logits.gather(1, pruned)
        predictions.append(best_among(logits, pruned))
    answers = {"predictions": predictions, "losses": losses}
    return {name: torch.stack(by_exit, dim=1).cpu() for name, by_exit in answers.items()}
