"""What a golden cell asks a method, of either kind: the models and rows, and what the method then decides on each row.

Nothing here is drawn by a library's initialisers, which change between versions: all weights of the backbones are.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchmarks.contract.base_case import fitted
from benchmarks.contract.case import RECIPE, rows_of
from benchmarks.contract.tiny.decoders import TinyDecoders, make_text_task
from benchmarks.contract.tiny.encoders import TinyModels, make_task
from benchmarks.contract.token_case import RECIPE as TOKEN_RECIPE
from consistentee.data.instances import TaskData
from consistentee.data.metrics import score
from consistentee.data.prompts import PromptSplit, TextTask
from consistentee.data.text_metrics import rouge
from consistentee.methods.method import Method
from consistentee.methods.token_method import TokenMethod
from consistentee.models.heads import ExitHeads
from consistentee.traces.instance_trace import Trace, record_trace
from consistentee.traces.token_trace import TokenTrace, record_token_trace
from consistentee.traces.walk import sweep
from consistentee.training.recipe import Recipe, TokenRecipe

Decision = tuple[int, int]
"""The layer that a row left at, and its answer there: a class, or a token."""

_ROWS = 24
_CERTAIN_ROWS = 4
_CERTAIN = 1e6
_PROMPTS = 6
_NEW_TOKENS = 6
_SEED = 7
_ALL_OF_IT = replace(TOKEN_RECIPE, trains="all", backbone_steps=4, backbone_learning_rate=1e-3)


@dataclass(frozen=True)
class Decided:
    """What a method decided at one value of its knob.

    Attributes:
        rows: every row's decisions, one after the other: one an instance, one a new token of a text.
        score: of the answers, by the task's metric.
        certain: decisions on rows that are certain beyond doubt: of all that rules compare, much is exactly 0 or 1
            there, and so lies on the thresholds at the ends of the knobs.
    """

    rows: list[list[Decision]]
    score: float
    certain: list[list[Decision]]


class GoldenRows(ABC):
    """Models and rows of one kind.

    Class attributes:
        families: the backbones.
    """

    families: ClassVar[tuple[str, str]]

    def trained(self, method: Any, family: str) -> Any:
        """Return a tiny model that the method has been fitted on, by the contract's small recipe."""
        model = self._untrained(family)
        return fitted(method, model, *self._toy(model))

    @abstractmethod
    def _untrained(self, family: str) -> Any:
        """Return a tiny model with the same weights on every machine, under any version of transformers."""

    @abstractmethod
    def _toy(self, model: Any) -> tuple[TaskData, Recipe] | tuple[TextTask, TokenRecipe]:
        """Return the toy task, and how a model is trained on it."""

    @abstractmethod
    def numbers(self, model: Any) -> dict[str, list[float]]:
        """Return the mean absolute value of every exit's logits, and of the weights of learned heads and branches."""

    @abstractmethod
    def exits(self, method: Any, model: Any, knobs: Sequence[float]) -> Tensor:
        """Return exit layers at some values of the knob, by replay: int64 [knobs, rows or their tokens]."""

    @abstractmethod
    def decide(self, method: Any, model: Any, knobs: Sequence[float]) -> list[Decided]:
        """Return what the method decides at some values of the knob."""


class GoldenInstances(GoldenRows):
    """Classification: instances that the model has not seen, replayed on their trace."""

    families = ("albert", "bert")

    def __init__(self, folder: Path) -> None:
        """``folder``: for the tiny backbones."""
        self._models = TinyModels(folder / "encoders")
        self._task = make_task()
        self._rows = make_task(rows=2 * _ROWS).test  # half as many as to train on

    def _untrained(self, family: str) -> Any:
        return with_fixed_weights(self._models.model(family), ("backbone.", "poolers."), spread=0.1)

    def _toy(self, model: Any) -> tuple[TaskData, Recipe]:
        return self._task, RECIPE

    def numbers(self, model: Any) -> dict[str, list[float]]:
        return {"logits": _sizes(record_trace(model, self._rows).logits), **_head_sizes(model)}

    def exits(self, method: Method, model: Any, knobs: Sequence[float]) -> Tensor:
        return sweep([method.rule(model, knob) for knob in knobs], record_trace(model, self._rows))

    def decide(self, method: Method, model: Any, knobs: Sequence[float]) -> list[Decided]:
        """Replay: invariant 2 has it that live runs say the same."""
        trace = record_trace(model, self._rows)
        certain = certain_rows(trace, _CERTAIN_ROWS)
        decided = []
        for knob in knobs:
            rows = self._replayed(method, model, knob, trace)
            answers = [answer for ((_, answer),) in rows]
            points = score(self._task.metrics[0], self._rows.labels, answers)
            decided.append(Decided(rows, points, self._replayed(method, model, knob, certain)))
        return decided

    @staticmethod
    def _replayed(method: Method, model: Any, knob: float, trace: Trace) -> list[list[Decision]]:
        exits = sweep([method.rule(model, knob)], trace)[0]
        pairs = zip(exits.tolist(), trace.predictions(exits).tolist(), strict=True)
        return [[pair] for pair in pairs]


def certain_rows(trace: Trace, rows: int) -> Trace:
    """Return the trace of some first rows whose logits are so far apart that probabilities are exactly 0 and 1."""
    few = rows_of(trace, range(rows))
    return replace(few, logits=few.logits * _CERTAIN, _views={})


class GoldenTexts(GoldenRows):
    """Generation: texts behind prompts that the model has not seen, written live, so that the cache has its part.

    The backbone of one family is trained, too; the other's is frozen.
    """

    families = ("gpt2", "llama")

    def __init__(self, folder: Path) -> None:
        """``folder``: for the tiny backbones."""
        self._models = TinyDecoders(folder / "decoders")
        self._task = make_text_task()
        unseen = self._task.test
        self._rows = PromptSplit("unseen", unseen.prompts[:_PROMPTS], unseen.references[:_PROMPTS])

    def _untrained(self, family: str) -> Any:
        return with_fixed_weights(self._models.model(family), ("backbone.",), spread=0.3)

    def _toy(self, model: Any) -> tuple[TextTask, TokenRecipe]:
        trains_backbone = model.backbone.config.model_type == "gpt2"
        return self._task, _ALL_OF_IT if trains_backbone else TOKEN_RECIPE

    def _trace(self, model: Any) -> TokenTrace:
        task = self._task
        return record_token_trace(
            model,
            self._rows,
            max_prompt_tokens=task.max_prompt_tokens,
            max_new_tokens=task.max_new_tokens,
            dtype=torch.float32,
        )

    @torch.no_grad()
    def numbers(self, model: Any) -> dict[str, list[float]]:
        """Return them over the tokens of the references."""
        trace = self._trace(model)
        tokens = torch.arange(len(trace))
        says = [model.logits(layer, trace.states(index, tokens)) for index, layer in enumerate(trace.exit_layers)]
        branches = [_size(model.branch(layer)) for layer in model.exit_layers if model.has_branch(layer)]
        own = {"branches": branches} if branches else {}
        return {"logits": _sizes(torch.stack(says, dim=1)), **_head_sizes(model), **own}

    def exits(self, method: TokenMethod, model: Any, knobs: Sequence[float]) -> Tensor:
        """Return those of the tokens of the references that may exit."""
        trace = self._trace(model)
        return sweep([method.rule(model, knob) for knob in knobs], trace)[:, trace.may_exit]

    def decide(self, method: TokenMethod, model: Any, knobs: Sequence[float]) -> list[Decided]:
        """Write live, in one batch, and in the method's own way."""
        return [self._written(method, model, knob) for knob in knobs]

    def _written(self, method: TokenMethod, model: Any, knob: float) -> Decided:
        written = method.generate(
            model, self._rows.prompts, knob, max_new_tokens=_NEW_TOKENS, batch_size=len(self._rows)
        )
        texts = zip(written.exit_layers, written.tokens, strict=True)
        rows = [list(zip(layers.tolist(), tokens.tolist(), strict=True)) for layers, tokens in texts]
        (metric,) = self._task.metrics
        return Decided(rows, float(rouge(self._rows.references, written.texts, [metric])[metric].mean()), [])


@torch.no_grad()
def with_fixed_weights(model: nn.Module, prefixes: tuple[str, ...], spread: float) -> Any:
    """Draw the matrices of some parts of a model anew, in the order of their names; biases and norms stay as they are.

    How a library initialises a model is its own affair, and may change with it.
    """
    generator = torch.Generator().manual_seed(_SEED)
    for name, weight in sorted(model.named_parameters()):
        if name.startswith(prefixes) and weight.ndim > 1:
            weight.normal_(0, spread, generator=generator)
    return model


def _sizes(outputs: Tensor) -> list[float]:
    """Return mean absolute values of [rows, exits, ...] by exit."""
    return outputs.detach().abs().transpose(0, 1).flatten(1).mean(dim=1).tolist()


def _head_sizes(model: Any) -> dict[str, list[float]]:
    """Return mean absolute weights of learned heads, module by module."""
    heads: dict[str, ExitHeads] = {f"head:{name}": model.head(name) for name in model.exit_heads}
    return {name: [_size(module) for module in head.modules_by_layer] for name, head in heads.items()}


def _size(module: nn.Module) -> float:
    return torch.cat([weight.detach().flatten() for weight in module.parameters()]).abs().mean().item()
