"""Speculative decoding by transformers' own ``generate``: references for methods that draft.

Prompt lookup (Saxena, 2023) drafts what followed the last tokens where they occurred before. ``assistant_early_exit``
drafts with the first layers, and the model's own norm and LM head; all layers verify, and run the first ones again.
Drafts end as transformers decides. A greedy text is the full model's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import consistentee as ee


@dataclass(frozen=True)
class StockDrafts(ee.TokenMethod):
    """Drafts of the stock model, text by text; nothing is drafted at the last value of the knob.

    Class attributes:
        argument: of ``generate``, which gets the knob.
        drafts_with_layers: whether the first layers draft, as many as the knob says.
    """

    version: ClassVar[int] = 2
    drafts: ClassVar[bool] = True
    argument: ClassVar[str]
    drafts_with_layers: ClassVar[bool] = False

    def rule(self, model: ee.MultiExitDecoder, knob: float) -> ee.ExitRule:
        return ee.NeverExit()

    def generate(
        self, model: ee.MultiExitDecoder, prompts: Sequence[str], knob: float, **options: Any
    ) -> ee.Generations:
        """Generate texts; ``options`` are those of :class:`consistentee.DraftingMethod`."""
        rule = self.rule(model, knob)
        if knob == self.knob_values(model)[-1] or options.get("max_new_tokens") == 0:
            return ee.generate(model, prompts, rule, **options)
        drafts, options = {self.argument: round(knob)}, self.options_of_drafts(knob, options)
        layers = round(knob) if self.drafts_with_layers else 0
        return ee.generate_with_stock_drafts(model, prompts, drafts, draft_layers=layers, **options)


@dataclass(frozen=True)
class PromptLookup(StockDrafts):
    """Draft with the prompt and the text so far."""

    name: ClassVar[str] = "prompt-lookup"
    paper: ClassVar[str] = "Saxena, Prompt Lookup Decoding, 2023, as in transformers"
    knob: ClassVar[ee.Knob] = ee.Knob("draft tokens", (10.0, 3.0, 0.0))
    argument: ClassVar[str] = "prompt_lookup_num_tokens"


@dataclass(frozen=True)
class AssistantEarlyExit(StockDrafts):
    """Draft with the first layers: up to 20 tokens, none after one less probable than 0.4."""

    name: ClassVar[str] = "assistant-early-exit"
    paper: ClassVar[str] = "Elhoushi et al., LayerSkip, ACL 2024, arXiv 2404.16710, as in transformers"
    knob: ClassVar[ee.Knob] = ee.DraftingMethod.knob
    argument: ClassVar[str] = "assistant_early_exit"
    drafts_with_layers: ClassVar[bool] = True

    def knob_values(self, model: ee.MultiExitDecoder) -> Sequence[float]:
        layers = model.exit_layers[-1:] if model.backbone.config.model_type == "gpt2" else model.exit_layers
        return tuple(map(float, layers))
