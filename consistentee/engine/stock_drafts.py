"""Speculative decoding by transformers' own ``generate``, text by text, with the counts of our own drafts.

Transformers drafts before the first token too: such drafts count, and so do their accepted tokens; not so the first
layers' reading of the prompt.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from consistentee.arguments import Positive, Texts, checked
from consistentee.data.prompts import Keep
from consistentee.engine.generate import check_prompts
from consistentee.engine.model_settings import begin_texts
from consistentee.engine.speculation import SpeculativeGenerations
from consistentee.engine.transcript import Transcript, clock
from consistentee.models.decoder.branches import SkippedSublayers
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder


@checked
def generate_with_stock_drafts(
    model: MultiExitDecoder,
    prompts: Texts,
    drafts: Mapping[str, int],
    *,
    draft_layers: int = 0,
    max_new_tokens: Positive = 64,
    max_prompt_tokens: Positive | None = None,
    keep: Keep = "end",
    **endings: Any,
) -> SpeculativeGenerations:
    """Generate a text for every prompt with the stock model's ``generate``, which drafts and verifies.

    Args:
        model: its stock model writes; exits have no part.
        prompts: the texts to go on from.
        drafts: the option of ``generate`` that makes it draft, such as ``prompt_lookup_num_tokens``, and its value.
        draft_layers: number of layers that draft.
        max_new_tokens, max_prompt_tokens, keep, endings: as for :func:`consistentee.generate`.
    """
    rows = model.encode(prompts, max_tokens=max_prompt_tokens, keep=keep)
    check_prompts(model, rows, max_new_tokens)
    texts = begin_texts(model, rows, max_new_tokens=max_new_tokens, **endings)
    deep = tuple(range(draft_layers + 1, model.num_layers + 1))
    runs = [_StockRun(model, text, drafts, max_new_tokens) for text in texts]
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
        drafter_in_layers=draft_layers,
        skipped=SkippedSublayers(deep, deep) if draft_layers else None,
    )


class _StockRun(StoppingCriteria):
    """Write one text with ``generate``; count passes of the last layer, and record when each has given its tokens."""

    def __init__(
        self, model: MultiExitDecoder, text: Transcript, drafts: Mapping[str, int], max_new_tokens: int
    ) -> None:
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
