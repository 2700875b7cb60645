"""Prompts that fit, and what is decoded behind them: kept, so that a cell that is interrupted does not decode twice."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.specs.schema import canonical_json
from consistentee.data.prompts import Keep, PromptSplit
from consistentee.engine.generate import Generations, generate
from consistentee.engine.speculation import SpeculativeGenerations
from consistentee.engine.token_batch import ReadPrompts
from consistentee.files import load_tensors, only_one, save_tensors
from consistentee.methods.token_methods import TokenMethod
from consistentee.models.decoder.branches import SkippedSublayers
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import NeverExit

_ENDINGS = ("eos", "length", "stop")
_PER_TOKEN = ("tokens", "exit_layers", "late_layers")
_PER_DRAFT = ("draft_layer", "num_layers", "drafted", "accepted", "passes", "drafter_in_layers")


@dataclass(frozen=True)
class Prompts:
    """Prompts of one split with their references, cut to what the task allows, and which of them were cut."""

    split: PromptSplit
    truncated: list[bool]

    @property
    def texts(self) -> Sequence[str]:
        """The prompts."""
        return self.split.prompts

    @property
    def references(self) -> Sequence[str]:
        """The reference texts."""
        return self.split.references

    def __len__(self) -> int:
        return len(self.split)

    def first(self, rows: int) -> "Prompts":
        """Return the first rows, in the order of the data."""
        count = min(rows, len(self))
        return Prompts(self.split.select(range(count)), self.truncated[:count])


def fitting_prompts(model: MultiExitDecoder, split: PromptSplit, max_prompt_tokens: int, keep: Keep) -> Prompts:
    """Cut the prompts of a split that are too long; see :func:`consistentee.data.prompts.cut_prompt`."""
    return Prompts(*split.cut(lambda text: model.encode([text])[0], max_prompt_tokens, keep))


class PromptDecoder:
    """Decodes with one trained model, greedily; what it decoded is kept in a store under all that it depends on.

    Prompts are read once for all knobs, as far as memory for them goes, unless a method has another way to decode, or
    another model for it.

    ``key`` is that of the cell, which covers model and method; without a ``store`` nothing is kept.
    """

    def __init__(
        self,
        model: MultiExitDecoder,
        method: TokenMethod,
        key: str,
        *,
        max_new_tokens: int,
        batch_size: int,
        store: Path | None,
    ) -> None:
        self.model = model
        self.method = method
        self.options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
        self._key = key
        self.store = store
        self._full_key = ""
        self._read = ReadPrompts()

    def at(self, knob: float, prompts: Prompts) -> Generations:
        """Decode prompts with the method at one value of its knob."""
        decode, options = self.method.generate, self.options
        if self._decodes_as_all_do(knob):
            options = options | {"read": self._read}
        return self._kept([self._key, knob], prompts, lambda: decode(self.model, prompts.texts, knob, **options))

    def full(self, prompts: Prompts) -> Generations:
        """Decode prompts at full depth: shared by all cells whose backbone has the same weights."""
        if not self._full_key:
            self._full_key = self.model.backbone_fingerprint()
        options = self.options | {"read": self._read}
        return self._kept(
            [self._full_key], prompts, lambda: generate(self.model, prompts.texts, NeverExit(), **options)
        )

    def _decodes_as_all_do(self, knob: float) -> bool:
        own_way = type(self.method).generate is not TokenMethod.generate
        return not own_way and self.method.model_at(self.model, knob) is self.model

    def _kept(self, key: list[object], prompts: Prompts, decode: Callable[[], Generations]) -> Generations:
        if self.store is None:
            return decode()
        described = canonical_json([*key, list(map(str, prompts.texts)), self.options])
        path = self.store / f"texts-{hashlib.sha256(described.encode()).hexdigest()[:16]}.safetensors"
        with only_one(path):
            tensors = load_tensors(path)
            if tensors is None:
                tensors = to_tensors(decode())
                save_tensors(tensors, path)
        return from_tensors(tensors, self.model)


def to_tensors(written: Generations) -> dict[str, Tensor]:
    """Return everything but the texts, which the tokens give."""
    tensors = {name: torch.cat([*getattr(written, name), torch.empty(0, dtype=torch.long)]) for name in _PER_TOKEN}
    tensors["lengths"] = torch.tensor([len(tokens) for tokens in written.tokens])
    tensors["prompt_tokens"] = torch.tensor(written.prompt_tokens)
    tensors["ended_by"] = torch.tensor([_ENDINGS.index(ending) for ending in written.ended_by])
    tensors["seconds"] = torch.tensor([written.prefill_seconds, written.decode_seconds], dtype=torch.float64)
    if isinstance(written, SpeculativeGenerations):
        tensors |= {name: torch.from_numpy(np.array(getattr(written, name))) for name in _PER_DRAFT}
        if written.skipped is not None:
            tensors |= {f"skipped_{part}": torch.tensor(layers) for part, layers in vars(written.skipped).items()}
    return tensors


def from_tensors(tensors: dict[str, Tensor], model: MultiExitDecoder) -> Generations:
    """Undo :func:`to_tensors`; ``model`` turns tokens into texts, which no stop string may have ended."""
    lengths = tensors["lengths"].tolist()
    tokens, exit_layers, late_layers = (list(tensors[name].split(lengths)) for name in _PER_TOKEN)
    prefill_seconds, decode_seconds = tensors["seconds"].tolist()
    values: dict[str, Any] = {
        "texts": [model.decode(row) for row in tokens],
        "tokens": tokens,
        "exit_layers": exit_layers,
        "late_layers": late_layers,
        "ended_by": [_ENDINGS[place] for place in tensors["ended_by"].tolist()],
        "prompt_tokens": tensors["prompt_tokens"].tolist(),
        "prefill_seconds": prefill_seconds,
        "decode_seconds": decode_seconds,
    }
    if "drafted" in tensors:
        values |= {name: tensors[name].tolist() for name in _PER_DRAFT if name in tensors}
        if "skipped_mlp" in tensors:
            attention, mlp = (tuple(map(int, tensors[f"skipped_{part}"].tolist())) for part in ("attention", "mlp"))
            values["skipped"] = SkippedSublayers(attention, mlp)
        return SpeculativeGenerations(**values)
    return Generations(**values)
