"""Cases: a method of either kind, trained on a tiny model and a toy task, and the runs of it that checks compare."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import torch
from torch import Tensor
from transformers import set_seed

from benchmarks.testing.report import FIT_SECTION, KNOB_SECTION, BrokenContractError, any_error_is
from benchmarks.testing.tiny import TinyDecoders, TinyModels, make_task, make_text_task, random_prompts, random_texts
from benchmarks.testing.watching import WatchedRule, counted_calls, reference_logits, stock_tokens
from consistentee.backbones.token_exits import TokenExitStepper
from consistentee.data.tasks import Split, Text
from consistentee.engine.classify import Predictions, classify, classify_encoded
from consistentee.engine.generate import Generations, generate_encoded
from consistentee.engine.missing_keys import KVPolicy
from consistentee.methods.method import AnyMethod
from consistentee.methods.token_methods import TokenMethod, VocabularyMethod
from consistentee.models.base import chosen_device
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.encoder import MultiExitModel
from consistentee.rules.exit_rule import ExitRule, NeverExit
from consistentee.traces.instance_trace import Trace, record_trace
from consistentee.traces.token_trace import TokenTrace, record_tokens
from consistentee.traces.walk import Recorded, replay, sweep
from consistentee.training.decoder import exit_answers
from consistentee.training.recipe import Recipe, TokenRecipe

ROWS = 40
RECIPE = Recipe(
    epochs=1, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=32, seed=1, frozen_steps=8
)
PROMPTS = 8
NEW_TOKENS = 6
TOKEN_RECIPE = TokenRecipe(
    exit_steps=6,
    exit_batch_size=32,
    exit_learning_rate=1e-2,
    head_tokens=64,
    head_steps=8,
    head_batch_size=32,
    head_learning_rate=1e-2,
    branch_steps=6,
    branch_learning_rate=1e-2,
    seed=1,
)
FEW = 4
"""Prompts, if each is continued alone: enough to find a fault, in half the time."""

ModelT = TypeVar("ModelT", MultiExitModel, MultiExitDecoder)

ExitsAndAnswers = tuple[Tensor, Tensor]
"""Exit layers [N] and answers [N, ...]."""


class Row(NamedTuple):
    """Decisions on one instance or text: exit layers, and answers, which are logits or the new tokens."""

    layers: list[int]
    answers: Tensor


@dataclass
class Case:
    """A trained method of either kind, texts that it has not seen, and their trace.

    Class attributes:
        row, text: what one row of the trace and one text are called.
        tried_depths: mean exits, as shares of their range, at which a knob is tried live, besides the two ends.
    """

    row: ClassVar[str]
    text: ClassVar[str]
    tried_depths: ClassVar[tuple[float, ...]]

    method: AnyMethod
    family: str
    models: Any
    model: MultiExitModel | MultiExitDecoder
    trace: Trace | TokenTrace
    texts: Sequence[Any]

    @cached_property
    def values(self) -> list[float]:
        """The method's own values of the knob, from the earliest exits to the latest."""
        return list(self.method.knob_values(self.model))

    @cached_property
    def knobs(self) -> list[float]:
        """The first value, some whose average exits are spread over the range, and the last."""
        places = torch.arange(len(self.values), dtype=torch.float)
        with suppress(Exception):  # for a rule that cannot be replayed; another check reports it
            places = sweep([self.rule(value) for value in self.values], self.trace).float().mean(dim=1)
        wanted = places.min() + torch.tensor(self.tried_depths) * (places.max() - places.min())
        nearest = (places.unsqueeze(0) - wanted.unsqueeze(1)).abs().argmin(dim=1).tolist()
        return [self.values[i] for i in sorted({0, *nearest, len(self.values) - 1})]

    @property
    def middle_knob(self) -> float:
        return self.knobs[len(self.knobs) // 2]

    def rule(self, knob: float) -> ExitRule:
        return self.method.rule(self.model, knob)

    def replayed(self, knob: float, trace: Recorded | None = None, rule: ExitRule | None = None) -> Tensor:
        """Replay a rule: exit layers [N]. Raises BrokenContractError if the rule fails on a trace."""
        with any_error_is("the rule cannot be replayed on a trace"):
            return replay(rule or self.rule(knob), self.trace if trace is None else trace)

    def swept(self, values: Sequence[float]) -> Tensor:
        """Replay every value of the knob: exit layers of the rows that may exit early [values, N]."""
        with any_error_is("the rule cannot be replayed on a trace"):
            return sweep([self.rule(value) for value in values], self.trace)

    def reloaded(self, folder: Path) -> Self:
        return replace(self, model=type(self.model).from_pretrained(folder).to(self.model.device))


def fitted(method: AnyMethod, model: ModelT, task: Any, recipe: Any) -> ModelT:
    """Fit a method on a tiny model. Raises BrokenContractError if that fails, or if its knob has no value."""
    set_seed(recipe.seed)  # as a run does, so that a method may draw from the global generators
    with any_error_is("fit() fails", FIT_SECTION):
        method.check_task(task)
        trained = method.fit(model.to(chosen_device()), task, recipe)
    if not isinstance(trained, type(model)):
        found = f"it returned {type(trained).__name__}"
        raise BrokenContractError("fit() must return the trained model", found, section=FIT_SECTION)
    if not method.knob_values(trained):
        raise BrokenContractError("knob_values() is empty: there is nothing to sweep", section=KNOB_SECTION)
    return trained


@dataclass
class InstanceCase(Case):
    """A method of classification."""

    row = text = "row"
    tried_depths = (0.3, 0.7)

    model: MultiExitModel
    trace: Trace

    @classmethod
    def train(
        cls,
        method: Any,
        family: str,
        models: TinyModels,
        *,
        rows: int = ROWS,
        regression: bool = False,
        recipe: Recipe = RECIPE,
    ) -> "InstanceCase":
        """Train as a run would on a toy task of 3 classes, or a regression, and record the trace of other texts."""
        task = make_task(regression=regression)
        model = fitted(method, models.model(family, num_labels=task.num_labels), task, recipe)
        texts = random_texts(rows, seed=9)
        trace = record_trace(model, Split("unseen", texts, [i % 3 for i in range(rows)]))
        return cls(method, family, models, model, trace, texts)

    def live(
        self, knob: float, texts: Sequence[Text] | None = None, watched: WatchedRule | None = None, **options: Any
    ) -> Predictions:
        """Classify texts, by default all. Raises BrokenContractError if the rule fails."""
        watched = watched or WatchedRule(self.rule(knob))
        with watched.failures_described(knob, self.model.num_layers):
            return classify(self.model, self.texts if texts is None else texts, watched, **options)

    def decided(self, knob: float, watched: WatchedRule | None = None) -> list[Row]:
        return _rows_of(self.live(knob, watched=watched, batch_size=ROWS))

    def live_and_replayed(self, knob: float) -> tuple[ExitsAndAnswers, ExitsAndAnswers]:
        live, exits = self.live(knob, batch_size=ROWS), self.replayed(knob)
        answers = torch.cat([live.logits, live.layers_run.unsqueeze(1)], dim=1)
        replayed = torch.cat([self.trace.logits_at(exits), self.trace.layers_run(exits).unsqueeze(1)], dim=1)
        return (live.exit_layers, answers), (exits, replayed)

    def neighbourhoods(self, knob: float) -> Iterator[tuple[str, Sequence[Row], Sequence[Row]]]:
        """Yield what surrounds texts, the decisions on each text alone, and those in these surroundings."""
        alone = _rows_of(self.live(knob, batch_size=1))
        yield "among other rows", alone, self.decided(knob)
        moved = self.live(knob, [*reversed(self.texts), "w1 " * 60], batch_size=7, sort_by_length=False)
        yield "in another order, with a longer row", alone[::-1], _rows_of(moved)[:-1]
        yield "regrouped after every layer", alone, _rows_of(self.live(knob, batch_size=7, in_flight=ROWS // 2))

    def at_full_depth(self) -> Iterator[tuple[str, Sequence[Tensor], Sequence[Tensor]]]:
        """Yield how texts are run, the stock model's answers, and those of a rule that never exits."""
        encodings = self.model.tokenize(self.texts[:18])
        for size in (1, 8):
            ours = classify_encoded(self.model, encodings, NeverExit(), batch_size=size).logits
            yield f"at batch size {size}", reference_logits(self.model, encodings, size).unbind(), ours.unbind()

    def work(self, knob: float) -> Iterator[tuple[int, int]]:
        """Run texts live, and yield how many layers ran, by hooks, and how many are reported."""
        tokens_exit = isinstance(self.model.stepper, TokenExitStepper)
        with counted_calls(self.model) as calls:
            live = self.live(knob, batch_size=1 if tokens_exit else 7)
        if tokens_exit:
            yield sum(map(math.prod, calls)), round(float((live.layers_run * self.trace.lengths).sum()))
        else:
            yield sum(rows for rows, *_ in calls), int(live.exit_layers.sum())

    def first_exit(self, knob: float) -> int:
        """Return the layer at which a rule without memory can let every row exit."""
        return max(1, self.model.companion_layers)  # a cascade's first exit is its companion's last layer

    def alone_and_together(self, knob: float) -> tuple[list[int], list[int], Recorded, list[Recorded]]:
        """Return live exits of rows alone and in one batch, the trace of all rows, and those of single rows."""
        alone, together = (self.live(knob, batch_size=size).exit_layers.tolist() for size in (1, ROWS))
        singles: list[Recorded] = [record_trace(self.model, Split("unseen", [text], [0])) for text in self.texts]
        return alone, together, self.trace, singles


def _rows_of(live: Predictions) -> list[Row]:
    return [Row([layer], logits) for layer, logits in zip(live.exit_layers.tolist(), live.logits, strict=True)]


@dataclass
class TokenCase(Case):
    """A method of generation. The trace is of the texts that the full model writes."""

    row = "token"
    text = "prompt"
    tried_depths = (0.5,)

    method: TokenMethod
    model: MultiExitDecoder
    trace: TokenTrace
    prompts: list[list[int]]

    @classmethod
    def train(cls, method: Any, family: str, models: TinyDecoders, recipe: TokenRecipe = TOKEN_RECIPE) -> "TokenCase":
        """Train as a run would on a toy task, and record the trace of what the full model writes after prompts."""
        model = fitted(method, models.model(family), make_text_task(), recipe)
        texts = random_prompts(PROMPTS, seed=9)
        prompts = model.encode(texts)
        full = generate_encoded(model, prompts, NeverExit(), max_new_tokens=NEW_TOKENS)
        rows = list(zip(prompts, (tokens.tolist() for tokens in full.tokens), strict=True))
        trace = record_tokens(model, rows, dtype=model.dtype)
        return cls(method, family, models, model, trace, texts, prompts)

    @cached_property
    def stock(self) -> list[Tensor]:
        """The tokens that the stock model's own ``generate`` writes after each prompt."""
        return [torch.tensor(stock_tokens(self.model, prompt, NEW_TOKENS)) for prompt in self.prompts]

    def live(
        self,
        knob: float,
        prompts: Sequence[Sequence[int]] | None = None,
        watched: WatchedRule | None = None,
        batch_size: int = PROMPTS,
        **options: Any,
    ) -> Generations:
        """Continue prompts, by default all. Raises BrokenContractError if the rule fails."""
        watched, prompts = watched or WatchedRule(self.rule(knob)), self.prompts if prompts is None else prompts
        options |= {"max_new_tokens": NEW_TOKENS, "batch_size": batch_size}
        with watched.failures_described(knob, self.model.num_layers):
            return generate_encoded(self.model, prompts, watched, **options)

    def swept(self, values: Sequence[float]) -> Tensor:
        return super().swept(values)[:, self.trace.may_exit]

    def decided(self, knob: float, watched: WatchedRule | None = None) -> list[Row]:
        return texts_of(self.live(knob, watched=watched, kv=self.method.kv))

    def trace_of(self, written: Generations) -> TokenTrace:
        rows = list(zip(self.prompts, (tokens.tolist() for tokens in written.tokens), strict=True))
        return record_tokens(self.model, rows)

    def live_and_replayed(self, knob: float) -> tuple[ExitsAndAnswers, ExitsAndAnswers]:
        """Run all texts live with exact keys and values, because a trace has no projected ones, and replay them."""
        live = self.live(knob, kv="exact")
        trace = self.trace_of(live)
        exits = self.replayed(knob, trace)
        candidates = self.method.candidates if isinstance(self.method, VocabularyMethod) else None
        places = torch.searchsorted(torch.tensor(trace.exit_layers), exits)
        by_exit = exit_answers(trace, candidates=candidates).predictions
        named = by_exit.gather(1, places.unsqueeze(1)).squeeze(1)
        return (torch.cat(live.exit_layers), torch.cat(live.tokens)), (exits, named)

    def neighbourhoods(self, knob: float) -> Iterator[tuple[str, Sequence[Row], Sequence[Row]]]:
        backwards = [[5] * 40, *reversed(self.prompts)]
        exact: list[KVPolicy] = ["exact"] if knob == self.middle_knob else []
        for kv in dict.fromkeys([self.method.kv, *exact]):
            alone = texts_of(self.live(knob, self.prompts[:FEW], kv=kv, batch_size=1))
            yield "among other prompts", alone, texts_of(self.live(knob, kv=kv))[:FEW]
            regrouped = texts_of(self.live(knob, backwards, kv=kv, batch_size=2, in_flight=PROMPTS - 3))
            yield "in another order, with a longer prompt, regrouped", alone, regrouped[: -FEW - 1 : -1]

    def at_full_depth(self) -> Iterator[tuple[str, Sequence[Tensor], Sequence[Tensor]]]:
        for size in (1, PROMPTS):
            ours = generate_encoded(
                self.model, self.prompts, NeverExit(), max_new_tokens=NEW_TOKENS, batch_size=size
            ).tokens
            yield f"at batch size {size}", self.stock, ours

    def work(self, knob: float) -> Iterator[tuple[int, int]]:
        few, model = self.prompts[:FEW], self.model
        with counted_calls(model) as calls:
            projected = self.live(knob, few, kv="propagate")
        # Every prompt has more than one token: a call with one token a row is decoding.
        yield sum(rows for rows, tokens in calls if tokens == 1), int(projected.layer_calls)
        with counted_calls(model) as calls:
            exact = self.live(knob, few, kv="exact", batch_size=1)
        late = sum(int(layers.sum()) for layers in exact.late_layers)
        prompts = sum(len(prompt) for prompt in few) * model.num_layers
        yield sum(map(math.prod, calls)), prompts + int(exact.layer_calls) + late

    def first_exit(self, knob: float) -> int:
        """Return the first exit at which the rule reads anything, or else the first exit."""
        watched, exits = WatchedRule(self.rule(knob)), self.model.exit_layers
        self.replayed(knob, rule=watched)
        return min(watched.reading_layers.intersection(exits[:-1]), default=exits[0])

    def alone_and_together(self, knob: float) -> tuple[list[int], list[int], Recorded, list[Recorded]]:
        """Texts written alone may end elsewhere; the traces are of these."""
        alone, together = (self.live(knob, kv="exact", batch_size=size) for size in (1, PROMPTS))
        layers = [torch.cat(run.exit_layers).tolist() for run in (alone, together)]
        trace = self.trace_of(alone)
        return layers[0], layers[1], trace, [trace.select(token) for token in torch.arange(len(trace)).split(1)]


def texts_of(written: Generations) -> list[Row]:
    """Return the exit layers and the new tokens of each text."""
    return [Row(layers.tolist(), tokens) for layers, tokens in zip(written.exit_layers, written.tokens, strict=True)]


AnyCase = InstanceCase | TokenCase
