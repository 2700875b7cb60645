"""Speculative decoding by transformers' own ``generate``: references for methods that draft.

Prompt lookup (Saxena, 2023) drafts what followed the last tokens where they occurred before. ``assistant_early_exit``
drafts with the first layers, and the model's own norm and LM head; all layers verify, and run the first ones again.
Drafts end as transformers decides. A greedy text is the full model's.

Transformers drafts before the first token too: such drafts count, and so do their accepted tokens; not so the first
layers' reading of the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from consistentee import (
    DraftingMethod,
    ExitRule,
    Generations,
    Knob,
    MultiExitDecoder,
    NeverExit,
    SkippedSublayers,
    TokenMethod,
    generate,
)
from consistentee.data.prompts import Keep
from consistentee.engine.generate import check_prompts
from consistentee.engine.model_settings import begin_texts
from consistentee.engine.speculation import SpeculativeGenerations
from consistentee.engine.transcript import Transcript, clock


@dataclass(frozen=True)
class StockDrafts(TokenMethod):
    """Drafts of the stock model, text by text; nothing is drafted at the last value of the knob.

    Class attributes:
        argument: of ``generate``, which gets the knob.
    """

    version: ClassVar[int] = 2
    drafts: ClassVar[bool] = True
    argument: ClassVar[str]

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Never exit: all tokens are the full model's."""
        return NeverExit()

    def layers(self, knob: float) -> int:
        """Return the number of layers that draft."""
        return 0

    def generate(self, model: MultiExitDecoder, prompts: Sequence[str], knob: float, **options: Any) -> Generations:
        """Generate texts; ``options`` are those of :class:`consistentee.DraftingMethod`."""
        rule = self.rule(model, knob)
        if knob == self.knob_values(model)[-1] or options.get("max_new_tokens") == 0:
            return generate(model, prompts, rule, **options)
        return self._generate(model, prompts, knob, **self.options_of_drafts(knob, options))

    def _generate(
        self,
        model: MultiExitDecoder,
        prompts: Sequence[str],
        knob: float,
        *,
        max_new_tokens: int = 64,
        max_prompt_tokens: int | None = None,
        keep: Keep = "end",
        **endings: Any,
    ) -> SpeculativeGenerations:
        rows = model.encode(prompts, max_tokens=max_prompt_tokens, keep=keep)
        check_prompts(model, rows, max_new_tokens)
        texts = begin_texts(model, rows, max_new_tokens=max_new_tokens, **endings)
        layers, deep = self.layers(knob), tuple(range(self.layers(knob) + 1, model.num_layers + 1))
        runs = [_StockRun(model, text, {self.argument: round(knob)}, max_new_tokens) for text in texts]
        return SpeculativeGenerations.of(
            texts,
            rows,
            prefill_seconds=sum(run.prefill_seconds for run in runs),
            decode_seconds=sum(run.decode_seconds for run in runs),
            draft_layer=0,
            num_layers=model.num_layers,
            drafted=[run.drafted for run in runs],
            accepted=[run.accepted for run in runs],
            passes=[run.passes for run in runs],
            drafter_in_layers=layers,
            skipped=SkippedSublayers(deep, deep) if layers else None,
        )


class _StockRun(StoppingCriteria):
    """Write one text with ``generate``; count passes of the last layer, and record when each has given its tokens."""

    def __init__(self, model: MultiExitDecoder, text: Transcript, drafts: dict[str, int], max_new_tokens: int) -> None:
        self._device, self._ends, prompt = model.device, list[float](), torch.tensor([text.prompt], device=model.device)
        read: list[int] = []
        last = model.stepper.layer_module(model.num_layers)
        hook = last.register_forward_hook(lambda _, given, __: read.append(given[0].shape[1]))
        start = clock(self._device)
        try:
            output = model.backbone.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=sorted(model.end_tokens) or None,
                pad_token_id=model.pad_id,
                stopping_criteria=StoppingCriteriaList([self]),
                **drafts,
            )
        finally:
            hook.remove()
        self.prefill_seconds, self.decode_seconds = self._ends[0] - start, self._ends[-1] - self._ends[0]
        self.passes = len(read) - 1
        self.drafted = sum(read) - prompt.shape[1] - self.passes
        for token in output[0, prompt.shape[1] :].tolist():
            if text.ended_by is None:
                text.add(token, model.num_layers)
        self.accepted = max(len(text.tokens) - len(read), 0)

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        self._ends.append(clock(self._device))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True)
class PromptLookup(StockDrafts):
    """Draft with the prompt and the text so far."""

    name: ClassVar[str] = "prompt-lookup"
    paper: ClassVar[str] = "Saxena, Prompt Lookup Decoding, 2023, as in transformers"
    knob: ClassVar[Knob] = Knob("draft tokens", (10.0, 3.0, 0.0))
    argument: ClassVar[str] = "prompt_lookup_num_tokens"


@dataclass(frozen=True)
class AssistantEarlyExit(StockDrafts):
    """Draft with the first layers: up to 20 tokens, none after one less probable than 0.4."""

    name: ClassVar[str] = "assistant-early-exit"
    paper: ClassVar[str] = "Elhoushi et al., LayerSkip, ACL 2024, arXiv 2404.16710, as in transformers"
    knob: ClassVar[Knob] = DraftingMethod.knob
    argument: ClassVar[str] = "assistant_early_exit"

    def knob_values(self, model: MultiExitDecoder) -> Sequence[float]:
        """Return the exit layers; the last alone for GPT-2, of which transformers runs all layers in any case."""
        layers = model.exit_layers[-1:] if model.backbone.config.model_type == "gpt2" else model.exit_layers
        return tuple(map(float, layers))

    def layers(self, knob: float) -> int:
        return round(knob)
