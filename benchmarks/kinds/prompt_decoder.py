"""Decode prompts, at full depth once for all cells on a backbone."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from benchmarks.specs.schema import canonical_json
from consistentee.data.tasks import PromptSplit
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
    """Decodes with one trained model, greedily. Prompts are read once for all knobs, as far as memory goes.

    ``store`` keeps the texts of the full model under all that they depend on.
    """

    def __init__(
        self, model: MultiExitDecoder, method: TokenMethod, *, max_new_tokens: int, batch_size: int, store: Path | None
    ) -> None:
        self.model = model
        self.method = method
        self.options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
        self.store = store
        self._read = ReadPrompts()

    def at(self, knob: float, prompts: PromptSplit) -> Generations:
        """Decode prompts with the method at one value of its knob."""
        method, options = self.method, self.options
        if not method.has_own_loop and method.model_at(self.model, knob) is self.model:
            options = options | {"read": self._read}
        return method.generate(self.model, prompts.prompts, knob, **options)

    def full(self, prompts: PromptSplit) -> Generations:
        """Decode prompts at full depth: once for all cells whose backbone has the same weights."""

        def decode() -> Generations:
            return generate(self.model, prompts.prompts, NeverExit(), **self.options, read=self._read)

        if self.store is None:
            return decode()
        described = [self._weights, *settings_of(self.model).items(), list(map(str, prompts.prompts)), self.options]
        path = self.store / f"texts-{hashlib.sha256(canonical_json(described).encode()).hexdigest()[:16]}.safetensors"
        return from_tensors(computed_once(path, lambda: to_tensors(decode())), self.model)

    @cached_property
    def _weights(self) -> str:
        return self.model.backbone_fingerprint()


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
