"""TokenCase: a method of generation trained on a tiny decoder, with what the checks need of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from benchmarks.contract.base_case import BaseCase, failures_of, fitted
from benchmarks.contract.tiny.decoders import TinyDecoders, make_text_task, random_prompts
from benchmarks.contract.token_reference import stock_tokens
from benchmarks.contract.watching import WatchedRule
from consistentee.engine.generate import Generations, generate_encoded
from consistentee.engine.step.owed_tokens import KVPolicy
from consistentee.methods.token_method import TokenMethod
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import NeverExit
from consistentee.traces.token_rows import TokenRow
from consistentee.traces.token_trace import TokenTrace, record_tokens
from consistentee.training.recipe import TokenRecipe

PROMPTS = 8
NEW_TOKENS = 6
RECIPE = TokenRecipe(
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


@dataclass
class TokenCase(BaseCase[MultiExitDecoder, TokenTrace]):
    """A method, trained on a toy task; prompts that it has not seen; and the trace of the full model's texts."""

    row: ClassVar[str] = "token"
    tried_knobs: ClassVar[int] = 3

    method: TokenMethod
    texts: list[str]
    prompts: list[list[int]]

    @cached_property
    def stock(self) -> list[list[int]]:
        """What the stock model's own ``generate`` writes behind each prompt."""
        return [stock_tokens(self.model, prompt, NEW_TOKENS) for prompt in self.prompts]

    @property
    def policies(self) -> list[KVPolicy]:
        """What may fill skipped layers: the method's own policy, and the exact one, which replays."""
        return list(dict.fromkeys((self.method.kv, "exact")))

    def model_at(self, knob: float) -> MultiExitDecoder:
        """Return what decodes at one value of the knob."""
        return self.method.model_at(self.model, knob)

    def live(self, knob: float, kv: KVPolicy, *, batch_size: int = PROMPTS) -> Generations:
        """Continue the prompts of the case; done once for every way of doing so."""
        if (knob, kv, batch_size) not in self._done:
            self._done[knob, kv, batch_size] = self.continued(self.prompts, knob, kv, batch_size=batch_size)
        found: Generations = self._done[knob, kv, batch_size]
        return found

    def continued(
        self,
        prompts: Sequence[Sequence[int]],
        knob: float,
        kv: KVPolicy,
        *,
        batch_size: int,
        in_flight: int | None = None,
        watched: WatchedRule | None = None,
    ) -> Generations:
        """Continue prompts, with a fresh rule unless one is given. Raises BrokenContractError if the rule fails."""
        watched = watched or WatchedRule(self.rule(knob))
        options = {"kv": kv, "batch_size": batch_size, "in_flight": in_flight, "max_new_tokens": NEW_TOKENS}
        with failures_of(watched, knob, self.model.num_layers):
            return generate_encoded(self.model_at(knob), prompts, watched, **options)  # type: ignore[arg-type]

    def trace_of(self, written: Generations, knob: float) -> TokenTrace:
        """Return the trace of texts written behind the prompts of the case at one value of the knob."""
        return record_tokens(self.model_at(knob), _rows_of(self.prompts, written))

    def swept(self, values: Sequence[float]) -> Tensor:
        """Return the exit layers of the tokens that may leave, each value replayed."""
        return super().swept(values)[:, self.trace.may_exit]

    def trained_again(self) -> "TokenCase":
        """Train the method once more, in the same way."""
        return train_token_case(self.method, self.family, self.models)

    def numbers(self) -> Tensor:
        """Return the tokens of the full model's texts."""
        return self.trace.targets

    def answers(self, knob: float) -> list[Tensor]:
        """Return tokens and exit layers of every text."""
        written = self.live(knob, self.method.kv)
        return [*written.tokens, *written.exit_layers]

    def ask(self, watched: WatchedRule, knob: float) -> None:
        """Continue the prompts with a rule that is watched."""
        self.continued(self.prompts, knob, self.method.kv, batch_size=PROMPTS, watched=watched)

    def modules_by_layer(self) -> Iterator[tuple[str, int, nn.Module]]:
        """Yield exit adapters and heads of one layer each, with owner and layer."""
        model = self.model
        for layer in model.exit_layers[:-1]:
            yield "exit adapter", layer, model.adapter(layer)
        for name in model.exit_heads:
            modules = model.head(name).modules_by_layer
            if len(modules) == model.num_layers:  # else it is shared, and of no layer
                yield from ((f"head {name!r}", layer, module) for layer, module in enumerate(modules, start=1))

    def first_exit(self, knob: float) -> int:
        """Return where a rule first reads anything, or else the first exit."""
        watched, exits = WatchedRule(self.rule(knob)), self.model.exit_layers
        self.replayed(knob, rule=watched)
        return min((layer for layer in exits[:-1] if watched.reads.get(layer)), default=exits[0])

    def alone_and_together(self, knob: float) -> tuple[list[int], list[int], TokenTrace]:
        """Return the exits of all tokens, texts written alone and in one batch: the former may end elsewhere."""
        alone, together = (self.live(knob, "exact", batch_size=batch_size) for batch_size in (1, PROMPTS))
        layers = [torch.cat(run.exit_layers).tolist() for run in (alone, together)]
        return layers[0], layers[1], self.trace_of(alone, knob)

    def replayed_alone(self, knob: float, trace: TokenTrace) -> Tensor:
        return torch.cat([self.replayed(knob, trace.select(token)) for token in torch.arange(len(trace)).split(1)])


Text = tuple[list[int], list[int]]
"""New tokens, and the exit layer of each."""


def texts_of(written: Generations) -> list[Text]:
    """Return what was written behind each prompt."""
    pairs = zip(written.tokens, written.exit_layers, strict=True)
    return [(tokens.tolist(), layers.tolist()) for tokens, layers in pairs]


def tokens_of(written: Generations) -> list[list[int]]:
    """Return the tokens written behind each prompt."""
    return [tokens for tokens, _ in texts_of(written)]


def _rows_of(prompts: Sequence[Sequence[int]], written: Generations) -> list[TokenRow]:
    return list(zip(prompts, tokens_of(written), strict=True))


def train_token_case(method: TokenMethod, family: str, models: TinyDecoders, recipe: TokenRecipe = RECIPE) -> TokenCase:
    """Train a method as a run would, on a toy task. Raises BrokenContractError if that fails."""
    model = fitted(method, models.model(family), make_text_task(), recipe)
    texts = random_prompts(PROMPTS, seed=9)
    prompts = model.encode(texts)
    full = generate_encoded(model, prompts, NeverExit(), max_new_tokens=NEW_TOKENS)
    trace = record_tokens(model, _rows_of(prompts, full), dtype=model.dtype)
    return TokenCase(method, family, models, model, trace, texts, prompts)
