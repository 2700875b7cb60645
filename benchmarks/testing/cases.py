"""Cases: a method of either kind, trained on a tiny model and a toy task, and the runs of it that checks compare."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn
from transformers import set_seed

from benchmarks.testing.decoders import TinyDecoders, make_text_task, random_prompts
from benchmarks.testing.encoders import TinyModels, make_task, random_texts
from benchmarks.testing.faults import FIT_SECTION, KNOB_SECTION, BrokenContractError, any_error_is
from benchmarks.testing.reference import counted_calls, counted_work, reference_logits, reported_work, stock_tokens
from benchmarks.testing.watching import WatchedRule
from consistentee.backbones.token_exits import TokenExitStepper
from consistentee.data.instances import Split, Text
from consistentee.engine.classify import Predictions, classify, classify_encoded
from consistentee.engine.generate import Generations, generate_encoded
from consistentee.engine.owed_tokens import KVPolicy
from consistentee.methods.method import AnyMethod, Method
from consistentee.methods.token_methods import TokenMethod, VocabularyMethod
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.encoder.cascade import companion_layers
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.rules.exit_rule import ExitRule, NeverExit
from consistentee.traces.instance_trace import Trace, record_trace
from consistentee.traces.token_trace import TokenTrace, named_tokens, record_tokens
from consistentee.traces.walk import replay, sweep
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

ModelT = TypeVar("ModelT", bound=MultiExitModel | MultiExitDecoder)
TraceT = TypeVar("TraceT", bound=Trace | TokenTrace)


class Row(NamedTuple):
    """Decisions on one instance or text: exit layers, and answers, which are logits or the new tokens."""

    layers: list[int]
    answers: Tensor


@dataclass
class Case(ABC, Generic[ModelT, TraceT]):
    """A trained method, texts that it has not seen, and their trace.

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
    model: ModelT
    trace: TraceT
    texts: Sequence[Any]
    _done: dict[Any, Any] = field(default_factory=dict, repr=False, kw_only=True)

    @cached_property
    def values(self) -> list[float]:
        """The method's own values of the knob, from the earliest exits to the latest."""
        return list(self.method.knob_values(self.model))

    @cached_property
    def knobs(self) -> list[float]:
        """The first value, some whose average exits are spread over the range, and the last."""
        values = self.values
        places = torch.arange(len(values), dtype=torch.float)
        with suppress(Exception):  # for a rule that cannot be replayed; another check reports it
            places = sweep([self.rule(value) for value in values], self.trace).float().mean(dim=1)
        wanted = places.min() + torch.tensor(self.tried_depths) * (places.max() - places.min())
        nearest = (places.unsqueeze(0) - wanted.unsqueeze(1)).abs().argmin(dim=1).tolist()
        return [values[i] for i in sorted({0, *nearest, len(values) - 1})]

    @property
    def middle_knob(self) -> float:
        """One of :attr:`knobs` between the ends, if there is one."""
        return self.knobs[len(self.knobs) // 2]

    def rule(self, knob: float) -> ExitRule:
        """Return a fresh rule."""
        return self.method.rule(self.model, knob)

    def with_model(self, model: ModelT) -> Self:
        """Return the same case with another model."""
        return replace(self, model=model, _done={})

    def replayed(self, knob: float, trace: TraceT | None = None, rule: ExitRule | None = None) -> Tensor:
        """Replay a rule: exit layers [N]. Raises BrokenContractError if the rule fails on a trace."""
        with any_error_is("the rule cannot be replayed on a trace"):
            return replay(rule or self.rule(knob), self.trace if trace is None else trace)

    def swept(self, values: Sequence[float]) -> Tensor:
        """Replay every value of the knob: exit layers of the rows that may exit early [values, N]."""
        with any_error_is("the rule cannot be replayed on a trace"):
            return sweep([self.rule(value) for value in values], self.trace)

    @abstractmethod
    def trained_again(self) -> Self:
        """Train the method once more, in the same way."""

    @abstractmethod
    def decided(self, knob: float, watched: WatchedRule | None = None) -> list[Row]:
        """Run all texts live, in one batch."""

    @abstractmethod
    def live_run(self, knob: float) -> tuple[Tensor, Tensor, TraceT]:
        """Run all texts live: exit layers [N], answers [N, ...], and the trace that must replay them."""

    @abstractmethod
    def answers_at(self, trace: TraceT, exits: Tensor) -> Tensor:
        """Return the answers [N, ...] of a replay."""

    @abstractmethod
    def neighbourhoods(self, knob: float) -> Iterator[tuple[str, Sequence[Row], Sequence[Row]]]:
        """Yield what surrounds texts, the decisions on each text alone, and those in these surroundings."""

    @abstractmethod
    def at_full_depth(self) -> Iterator[tuple[str, Sequence[Tensor], Sequence[Tensor]]]:
        """Yield how texts are run, the stock model's answers, and those of a rule that never exits."""

    @abstractmethod
    def work(self, knob: float) -> Iterator[tuple[int, int]]:
        """Run texts live, and yield how many layers ran, by hooks, and how many are reported."""

    @abstractmethod
    def modules_by_layer(self) -> Iterator[tuple[str, int, nn.Module]]:
        """Yield the modules that belong to one layer each: owner, layer, module."""

    @abstractmethod
    def first_exit(self, knob: float) -> int:
        """Return the layer at which a rule without memory can let every row exit."""

    @abstractmethod
    def alone_and_together(self, knob: float) -> tuple[list[int], list[int], TraceT]:
        """Return live exits of rows alone and in one batch, and the trace that must give them."""

    @abstractmethod
    def one_by_one(self, trace: TraceT) -> Iterator[TraceT]:
        """Cut a trace into those of single rows."""


def fitted(method: AnyMethod, model: ModelT, task: Any, recipe: Any) -> ModelT:
    """Fit a method on a tiny model. Raises BrokenContractError if that fails, or if its knob has no value."""
    set_seed(recipe.seed)  # as a run does, so that a method may draw from the global generators
    with any_error_is("fit() fails", FIT_SECTION):
        method.check_task(task)
        trained = method.fit(model, task, recipe)
    if not isinstance(trained, type(model)):
        found = f"it returned {type(trained).__name__}"
        raise BrokenContractError("fit() must return the trained model", found, section=FIT_SECTION)
    if not method.knob_values(trained):
        raise BrokenContractError("knob_values() is empty: there is nothing to sweep", section=KNOB_SECTION)
    return trained


@dataclass
class InstanceCase(Case[MultiExitModel, Trace]):
    """A method of classification."""

    row: ClassVar[str] = "row"
    text: ClassVar[str] = "row"
    tried_depths: ClassVar[tuple[float, ...]] = (0.3, 0.7)

    def live(
        self, knob: float, texts: Sequence[Text] | None = None, watched: WatchedRule | None = None, **options: Any
    ) -> Predictions:
        """Classify texts, by default all. Raises BrokenContractError if the rule fails."""
        watched = watched or WatchedRule(self.rule(knob))
        with watched.failures_described(knob, self.model.num_layers):
            return classify(self.model, self.texts if texts is None else texts, watched, **options)

    def alone(self, knob: float) -> Predictions:
        """Classify every text without neighbours; computed once a knob."""
        if knob not in self._done:
            self._done[knob] = self.live(knob, batch_size=1)
        found: Predictions = self._done[knob]
        return found

    def trained_again(self) -> "InstanceCase":
        return train_case(self.method, self.family, self.models)

    def decided(self, knob: float, watched: WatchedRule | None = None) -> list[Row]:
        return _rows_of(self.live(knob, watched=watched, batch_size=ROWS))

    def live_run(self, knob: float) -> tuple[Tensor, Tensor, Trace]:
        live = self.live(knob, batch_size=ROWS)
        return live.exit_layers, torch.cat([live.logits, live.layers_run.unsqueeze(1)], dim=1), self.trace

    def answers_at(self, trace: Trace, exits: Tensor) -> Tensor:
        return torch.cat([trace.logits_at(exits), trace.layers_run(exits).unsqueeze(1)], dim=1)

    def neighbourhoods(self, knob: float) -> Iterator[tuple[str, Sequence[Row], Sequence[Row]]]:
        alone = _rows_of(self.alone(knob))
        yield "among other rows", alone, self.decided(knob)
        moved = self.live(knob, [*reversed(self.texts), "w1 " * 60], batch_size=7, sort_by_length=False)
        yield "in another order, with a longer row", alone[::-1], _rows_of(moved)[:-1]

    def at_full_depth(self) -> Iterator[tuple[str, Sequence[Tensor], Sequence[Tensor]]]:
        encodings = self.model.tokenize(self.texts[:18])
        for size in (1, 8):
            ours = classify_encoded(self.model, encodings, NeverExit(), batch_size=size).logits
            yield f"at batch size {size}", reference_logits(self.model, encodings, size).unbind(), ours.unbind()

    def work(self, knob: float) -> Iterator[tuple[int, int]]:
        with counted_work(self.model) as counts:
            live = self.live(knob, batch_size=1 if isinstance(self.model.stepper, TokenExitStepper) else 7)
        yield sum(counts), reported_work(self.model, self.trace, live)

    def modules_by_layer(self) -> Iterator[tuple[str, int, nn.Module]]:
        model = self.model
        owners = {"classifier": model.classifiers, "pooler": model.poolers}
        owners |= {f"head {name!r}": model.head(name).modules_by_layer for name in model.exit_heads}
        for owner, modules in owners.items():
            if len(modules) == model.num_layers:  # else it is shared by layers
                yield from ((owner, layer, module) for layer, module in enumerate(modules, start=1))

    def first_exit(self, knob: float) -> int:
        return max(1, companion_layers(self.model))  # a cascade's first exit is its companion's last layer

    def alone_and_together(self, knob: float) -> tuple[list[int], list[int], Trace]:
        together = self.live(knob, batch_size=ROWS)
        return self.alone(knob).exit_layers.tolist(), together.exit_layers.tolist(), self.trace

    def one_by_one(self, trace: Trace) -> Iterator[Trace]:
        names = [item.name for item in fields(trace) if not item.name.startswith("_")]
        for row in range(len(trace)):
            yield replace(trace, **{n: _cut(getattr(trace, n), row, len(trace)) for n in names}, _views={})


def train_case(method: Method, family: str, models: TinyModels, rows: int = ROWS) -> InstanceCase:
    """Train a method as a run would, on a toy task of 3 classes. Raises BrokenContractError if that fails."""
    model = fitted(method, models.model(family), make_task(), RECIPE)
    texts = random_texts(rows, seed=9)
    trace = record_trace(model, Split("unseen", texts, [i % 3 for i in range(rows)]))
    return InstanceCase(method, family, models, model, trace, texts)


def _rows_of(live: Predictions) -> list[Row]:
    return [Row([layer], logits) for layer, logits in zip(live.exit_layers.tolist(), live.logits, strict=True)]


def _cut(value: Any, row: int, rows: int) -> Any:
    """Cut one row out of a value that has the rows first."""
    if isinstance(value, dict):
        return {name: _cut(item, row, rows) for name, item in value.items()}
    has_rows = isinstance(value, list) or (isinstance(value, Tensor) and value.ndim)
    return value[row : row + 1] if has_rows and len(value) == rows else value


@dataclass
class TokenCase(Case[MultiExitDecoder, TokenTrace]):
    """A method of generation. The trace is of the texts that the full model writes."""

    row: ClassVar[str] = "token"
    text: ClassVar[str] = "prompt"
    tried_depths: ClassVar[tuple[float, ...]] = (0.5,)

    method: TokenMethod
    prompts: list[list[int]]

    @cached_property
    def stock(self) -> list[Tensor]:
        """The tokens that the stock model's own ``generate`` writes after each prompt; once for equal weights."""
        known: dict[str, list[Tensor]] = self.models.stock_texts
        weights = self.model.backbone_fingerprint()
        if weights not in known:
            known[weights] = [torch.tensor(stock_tokens(self.model, prompt, NEW_TOKENS)) for prompt in self.prompts]
        return known[weights]

    def model_at(self, knob: float) -> MultiExitDecoder:
        """Return the decoder at one value of the knob."""
        return self.method.model_at(self.model, knob)

    def live(self, knob: float, kv: KVPolicy, batch_size: int = PROMPTS) -> Generations:
        """Continue the prompts of the case; done once for every way of doing so."""
        if (knob, kv, batch_size) not in self._done:
            self._done[knob, kv, batch_size] = self.continued(self.prompts, knob, kv=kv, batch_size=batch_size)
        found: Generations = self._done[knob, kv, batch_size]
        return found

    def continued(
        self, prompts: Sequence[Sequence[int]], knob: float, watched: WatchedRule | None = None, **options: Any
    ) -> Generations:
        """Continue prompts. Raises BrokenContractError if the rule fails."""
        watched = watched or WatchedRule(self.rule(knob))
        with watched.failures_described(knob, self.model.num_layers):
            return generate_encoded(self.model_at(knob), prompts, watched, max_new_tokens=NEW_TOKENS, **options)

    def swept(self, values: Sequence[float]) -> Tensor:
        return super().swept(values)[:, self.trace.may_exit]

    def trained_again(self) -> "TokenCase":
        return train_token_case(self.method, self.family, self.models)

    def decided(self, knob: float, watched: WatchedRule | None = None) -> list[Row]:
        return texts_of(self.continued(self.prompts, knob, watched, kv=self.method.kv, batch_size=PROMPTS))

    def trace_of(self, written: Generations, knob: float) -> TokenTrace:
        """Record the trace of texts written after the prompts of the case at one value of the knob."""
        rows = list(zip(self.prompts, (tokens.tolist() for tokens in written.tokens), strict=True))
        return record_tokens(self.model_at(knob), rows)

    def live_run(self, knob: float) -> tuple[Tensor, Tensor, TokenTrace]:
        live = self.live(knob, "exact")  # keys and values that are projected instead are not in a trace
        return torch.cat(live.exit_layers), torch.cat(live.tokens), self.trace_of(live, knob)

    def answers_at(self, trace: TokenTrace, exits: Tensor) -> Tensor:
        candidates = self.method.candidates if isinstance(self.method, VocabularyMethod) else None
        places = torch.searchsorted(torch.tensor(trace.exit_layers), exits)
        return named_tokens(trace, candidates).gather(1, places.unsqueeze(1)).squeeze(1)

    def neighbourhoods(self, knob: float) -> Iterator[tuple[str, Sequence[Row], Sequence[Row]]]:
        backwards = [[5] * 40, *reversed(self.prompts)]
        exact: list[KVPolicy] = ["exact"] if knob == self.middle_knob else []
        for kv in dict.fromkeys([self.method.kv, *exact]):
            alone = texts_of(self.continued(self.prompts[:FEW], knob, kv=kv, batch_size=1))
            yield "among other prompts", alone, texts_of(self.live(knob, kv))[:FEW]
            regrouped = texts_of(self.continued(backwards, knob, kv=kv, batch_size=2, in_flight=PROMPTS - 3))
            yield "in another order, with a longer prompt, regrouped", alone, regrouped[: -FEW - 1 : -1]

    def at_full_depth(self) -> Iterator[tuple[str, Sequence[Tensor], Sequence[Tensor]]]:
        for size in (1, PROMPTS):
            options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "batch_size": size}
            yield (
                f"at batch size {size}",
                self.stock,
                generate_encoded(self.model, self.prompts, NeverExit(), **options).tokens,
            )

    def work(self, knob: float) -> Iterator[tuple[int, int]]:
        few, model = self.prompts[:FEW], self.model_at(knob)
        with counted_calls(model) as calls:
            projected = self.continued(few, knob, kv="propagate", batch_size=FEW)
        # Every prompt has more than one token: a call with one token a row is decoding.
        yield sum(rows for rows, tokens in calls if tokens == 1), int(projected.layer_calls)
        with counted_calls(model) as calls:
            exact = self.continued(few, knob, kv="exact", batch_size=1)
        late = sum(int(layers.sum()) for layers in exact.late_layers)
        prompts = sum(len(prompt) for prompt in few) * model.num_layers
        yield sum(rows * tokens for rows, tokens in calls), prompts + int(exact.layer_calls) + late

    def modules_by_layer(self) -> Iterator[tuple[str, int, nn.Module]]:
        model = self.model
        for layer in model.exit_layers[:-1]:
            yield "exit adapter", layer, model.adapter(layer)
        for name in model.exit_heads:
            modules = model.head(name).modules_by_layer
            if len(modules) == model.num_layers:  # else it is shared by layers
                yield from ((f"head {name!r}", layer, module) for layer, module in enumerate(modules, start=1))

    def first_exit(self, knob: float) -> int:
        """Return the first exit at which the rule reads anything, or else the first exit."""
        watched, exits = WatchedRule(self.rule(knob)), self.model.exit_layers
        self.replayed(knob, rule=watched)
        return min(watched.reading_layers.intersection(exits[:-1]), default=exits[0])

    def alone_and_together(self, knob: float) -> tuple[list[int], list[int], TokenTrace]:
        """Texts written alone may end elsewhere."""
        alone, together = (self.live(knob, "exact", size) for size in (1, PROMPTS))
        layers = [torch.cat(run.exit_layers).tolist() for run in (alone, together)]
        return layers[0], layers[1], self.trace_of(alone, knob)

    def one_by_one(self, trace: TokenTrace) -> Iterator[TokenTrace]:
        return (trace.select(token) for token in torch.arange(len(trace)).split(1))


def train_token_case(
    method: TokenMethod, family: str, models: TinyDecoders, recipe: TokenRecipe = TOKEN_RECIPE
) -> TokenCase:
    """Train a method as a run would, on a toy task. Raises BrokenContractError if that fails."""
    model = fitted(method, models.model(family), make_text_task(), recipe)
    texts = random_prompts(PROMPTS, seed=9)
    prompts = model.encode(texts)
    full = generate_encoded(model, prompts, NeverExit(), max_new_tokens=NEW_TOKENS)
    rows = list(zip(prompts, (tokens.tolist() for tokens in full.tokens), strict=True))
    return TokenCase(method, family, models, model, record_tokens(model, rows, dtype=model.dtype), texts, prompts)


def texts_of(written: Generations) -> list[Row]:
    """Return the exit layers and the new tokens of each text."""
    return [Row(layers.tolist(), tokens) for layers, tokens in zip(written.exit_layers, written.tokens, strict=True)]
