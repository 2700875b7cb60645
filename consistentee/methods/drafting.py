"""Base class of methods that draft cheaply and verify with the full model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

from consistentee.engine.generate import Generations, generate
from consistentee.engine.speculation import check_drafts, generate_speculatively
from consistentee.errors import UserError
from consistentee.methods.method import Knob
from consistentee.methods.token_method import TokenMethod
from consistentee.models.decoder.branches import SkippedSublayers
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule, StaticRule
from consistentee.rules.schedules import check_exit_layer


class DraftedBy(TypedDict, total=False):
    """The drafter, as options of :func:`generate_speculatively`; empty without drafts."""

    draft_layer: int
    skipped: SkippedSublayers


@dataclass(frozen=True)
class DraftingMethod(TokenMethod):
    """Self-speculative decoding; the knob is the layer that drafts, unless a method has another.

    Attributes:
        draft_tokens: maximum number of tokens before each verification.
        threshold: a draft ends after a token that is less probable than this; 0 disables it.
    """

    knob: ClassVar[Knob] = Knob("draft layer", tuple(float(layer) for layer in range(6, 31, 6)))
    drafts: ClassVar[bool] = True

    draft_tokens: int = 4
    threshold: float = 0.0

    def __post_init__(self) -> None:
        check_drafts(self.draft_tokens, self.threshold)

    def knob_values(self, model: MultiExitDecoder) -> Sequence[float]:
        """Return the exit layers; the last one decodes with the full model, without drafts."""
        return tuple(float(layer) for layer in model.exit_layers)

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Exit at the draft layer, ``knob``."""
        self.check_knob(model, knob)
        return StaticRule(check_exit_layer(model, knob))

    def generate(self, model: MultiExitDecoder, prompts: Sequence[str], knob: float, **options: Any) -> Generations:
        """Generate the full model's texts with the drafter of ``knob``; see :func:`generate_speculatively`.

        Texts are generated one by one: ``batch_size``, ``sort_by_length`` and ``read`` have no effect. Raises UserError
        for ``sampling`` and ``in_flight``.
        """
        rule, drafter = self.rule(model, knob), self.drafter(model, knob)
        if not drafter:
            return generate(model, prompts, rule, **options)
        at_knob = f"{self.knob.name} {knob:g} drafts"
        if options.pop("sampling", None) is not None:
            raise UserError(f"{self.name} verifies greedy drafts and cannot sample; {at_knob}")
        if options.pop("in_flight", None) is not None:
            raise UserError(f"{self.name} writes text after text, and keeps none in flight; {at_knob}")
        for of_batches in ("batch_size", "sort_by_length", "read"):
            options.pop(of_batches, None)
        return generate_speculatively(
            model,
            prompts,
            draft_tokens=self.draft_tokens,
            threshold=self.threshold,
            **drafter,
            **options,
        )

    def drafter(self, model: MultiExitDecoder, knob: float) -> DraftedBy:
        """Return the drafter as options of :func:`generate_speculatively`; empty at full depth."""
        return {} if knob == model.num_layers else {"draft_layer": round(knob)}
