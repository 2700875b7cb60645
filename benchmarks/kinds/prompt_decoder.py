"""Decode prompts, and keep what was decoded, so that a cell that is interrupted does not decode twice."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from benchmarks.specs.schema import canonical_json
from consistentee.data.prompts import PromptSplit
from consistentee.engine.generate import Generations, generate
from consistentee.engine.sampling import settings_of
from consistentee.engine.token_batch import ReadPrompts
from consistentee.engine.transcript import EndedBy
from consistentee.files import computed_once
from consistentee.methods.token_methods import TokenMethod
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import NeverExit

_ENDINGS: tuple[EndedBy, ...] = get_args(EndedBy)
_PER_TOKEN = ("tokens", "exit_layers", "late_layers")


class PromptDecoder:
    """Decodes with one trained model, greedily; what it decoded is kept in a store under all that it depends on.

    Prompts are read once for all knobs, as far as memory goes, unless a method decodes in a way or a model of its own.
    ``key`` is that of the cell, which covers model and method. Methods that draft keep nothing.
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

    def at(self, knob: float, prompts: PromptSplit) -> Generations:
        """Decode prompts with the method at one value of its knob."""
        if self.method.drafts:
            return self.method.generate(self.model, prompts.prompts, knob, **self.options)
        decode, options = self.method.generate, self.options
        decodes_as_all_do = type(self.method).generate is TokenMethod.generate
        if decodes_as_all_do and self.method.model_at(self.model, knob) is self.model:
            options = options | {"read": self._read}
        return self._kept([self._key, knob], prompts, lambda: decode(self.model, prompts.prompts, knob, **options))

    def full(self, prompts: PromptSplit) -> Generations:
        """Decode prompts at full depth: shared by all cells whose backbone has the same weights."""
        if not self._full_key:
            self._full_key = self.model.backbone_fingerprint()
        model, options = self.model, self.options | {"read": self._read}
        key: list[object] = [self._full_key, *settings_of(model).items()]
        return self._kept(key, prompts, lambda: generate(model, prompts.prompts, NeverExit(), **options))

    def _kept(self, key: list[object], prompts: PromptSplit, decode: Callable[[], Generations]) -> Generations:
        if self.store is None:
            return decode()
        described = canonical_json([*key, list(map(str, prompts.prompts)), self.options])
        path = self.store / f"texts-{hashlib.sha256(described.encode()).hexdigest()[:16]}.safetensors"
        return from_tensors(computed_once(path, lambda: to_tensors(decode())), self.model)


def to_tensors(written: Generations) -> dict[str, Tensor]:
    """Return everything but the texts, which the tokens give."""
    tensors = {name: torch.cat([*getattr(written, name), torch.empty(0, dtype=torch.long)]) for name in _PER_TOKEN}
    tensors["lengths"] = torch.tensor([len(tokens) for tokens in written.tokens])
    tensors["prompt_tokens"] = torch.tensor(written.prompt_tokens)
    tensors["ended_by"] = torch.tensor([_ENDINGS.index(ending) for ending in written.ended_by])
    tensors["seconds"] = torch.tensor([written.prefill_seconds, written.decode_seconds], dtype=torch.float64)
    return tensors


def from_tensors(tensors: dict[str, Tensor], model: MultiExitDecoder) -> Generations:
    """Undo :func:`to_tensors`; ``model`` turns tokens into texts, which no stop string may have ended."""
    lengths = tensors["lengths"].tolist()
    tokens, exit_layers, late_layers = (list(tensors[name].split(lengths)) for name in _PER_TOKEN)
    prefill_seconds, decode_seconds = tensors["seconds"].tolist()
    return Generations(
        texts=[model.decode(row) for row in tokens],
        tokens=tokens,
        exit_layers=exit_layers,
        late_layers=late_layers,
        ended_by=[_ENDINGS[place] for place in tensors["ended_by"].tolist()],
        prompt_tokens=tensors["prompt_tokens"].tolist(),
        prefill_seconds=prefill_seconds,
        decode_seconds=decode_seconds,
    )
