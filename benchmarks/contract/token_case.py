"""TokenCase: a method of generation trained on a tiny decoder, with what the checks need of it."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from transformers import set_seed

from benchmarks.contract.case import described, rule_failed, spread_over
from benchmarks.contract.faults import FIT_SECTION, KNOB_SECTION, BrokenContractError
from benchmarks.contract.tiny_decoders import TinyDecoders, make_text_task, random_prompts
from benchmarks.contract.token_reference import stock_tokens
from benchmarks.contract.watching import WatchedRule
from consistentee.engine.generate import Generations, generate_encoded
from consistentee.engine.owed_tokens import KVPolicy
from consistentee.methods.token_method import TokenMethod
from consistentee.models.decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule, NeverExit
from consistentee.traces.token_rows import TokenRow
from consistentee.traces.token_trace import TokenTrace, record_tokens
from consistentee.traces.walk import replay, sweep
from consistentee.training.recipe import TokenRecipe

PROMPTS = 8
NEW_TOKENS = 6
_KNOBS = 3
RECIPE = TokenRecipe(
    exit_steps=6,
    exit_batch_size=32,
    exit_learning_rate=1e-2,
    head_tokens=64,
    head_steps=8,
    head_batch_size=32,
    head_learning_rate=1e-2,
    seed=1,
)


@dataclass
class TokenCase:
    """A method, trained on a toy task; prompts that it has not seen; and the trace of the full model's texts."""

    method: TokenMethod
    family: str
    models: TinyDecoders
    model: MultiExitDecoder
    texts: list[str]
    prompts: list[list[int]]
    trace: TokenTrace
    _live: dict[tuple[float, KVPolicy, int], Generations] = field(default_factory=dict, repr=False)

    @cached_property
    def knobs(self) -> list[float]:
        """Knob values whose average exits are spread over the range, both ends included."""
        values = list(self.method.knob_values(self.model))
        places = torch.arange(len(values), dtype=torch.float)
        with suppress(Exception):  # a rule that cannot be replayed: another check says so
            places = sweep([self.rule(value) for value in values], self.trace).float().mean(dim=1)
        return spread_over(values, places, _KNOBS)

    @cached_property
    def stock(self) -> list[list[int]]:
        """What the stock model's own ``generate`` writes behind each prompt."""
        return [stock_tokens(self.model, prompt, NEW_TOKENS) for prompt in self.prompts]

    @property
    def policies(self) -> list[KVPolicy]:
        """What may fill skipped layers: the method's own policy, and the exact one, which replays."""
        return list(dict.fromkeys((self.method.kv, "exact")))

    def rule(self, knob: float) -> ExitRule:
        """Return a fresh rule."""
        return self.method.rule(self.model, knob)

    def live(self, knob: float, kv: KVPolicy, *, batch_size: int = PROMPTS) -> Generations:
        """Continue the prompts of the case; done once for every way of doing so."""
        if (knob, kv, batch_size) not in self._live:
            self._live[knob, kv, batch_size] = self.continued(self.prompts, knob, kv, batch_size=batch_size)
        return self._live[knob, kv, batch_size]

    def continued(
        self,
        prompts: Sequence[Sequence[int]],
        knob: float,
        kv: KVPolicy,
        *,
        batch_size: int,
        watched: WatchedRule | None = None,
    ) -> Generations:
        """Continue prompts, with a fresh rule unless one is given. Raises BrokenContractError if the rule fails."""
        watched = watched or WatchedRule(self.rule(knob))
        options = {"kv": kv, "batch_size": batch_size, "max_new_tokens": NEW_TOKENS}
        try:
            return generate_encoded(self.model, prompts, watched, **options)  # type: ignore[arg-type]
        except BrokenContractError:
            raise
        except Exception as error:  # a user's rule may fail in any way at all
            raise rule_failed(watched, knob, self.model.num_layers, error) from error

    def trace_of(self, written: Generations) -> TokenTrace:
        """Return the trace of texts written behind the prompts of the case."""
        return record_tokens(self.model, _rows_of(self.prompts, written))

    def replayed(self, knob: float, trace: TokenTrace, rule: ExitRule | None = None) -> Tensor:
        """Return the exit layers [N] that a replay gives. Raises BrokenContractError if the rule fails there."""
        try:
            return replay(rule or self.rule(knob), trace)
        except Exception as error:  # a user's rule may fail in any way at all
            raise BrokenContractError("the rule cannot be replayed on a trace", described(error)) from error


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


def train_token_case(method: TokenMethod, family: str, models: TinyDecoders) -> TokenCase:
    """Train a method as a run would, on a toy task with a frozen backbone. Raises BrokenContractError if that fails."""
    model = _fitted(method, models.model(family))
    if not method.knob_values(model):
        raise BrokenContractError("knob_values() is empty: there is nothing to sweep", section=KNOB_SECTION)
    texts = random_prompts(PROMPTS, seed=9)
    prompts = model.encode(texts)
    full = generate_encoded(model, prompts, NeverExit(), max_new_tokens=NEW_TOKENS)
    trace = record_tokens(model, _rows_of(prompts, full))
    return TokenCase(method, family, models, model, texts, prompts, trace)


def _fitted(method: TokenMethod, model: MultiExitDecoder) -> MultiExitDecoder:
    set_seed(RECIPE.seed)  # as a run does, so that a method may draw from the global generators
    try:
        task = make_text_task()
        method.check_task(task)
        trained = method.fit(model, task, RECIPE)
    except Exception as error:  # a user's method may fail in any way at all
        raise BrokenContractError("fit() fails", described(error), section=FIT_SECTION) from error
    if not isinstance(trained, MultiExitDecoder):
        found = f"it returned {type(trained).__name__}"
        raise BrokenContractError("fit() must return the trained model", found, section=FIT_SECTION)
    return trained
