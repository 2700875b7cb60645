"""Base classes of methods of generation, in which a decoded token exits. Nothing here loads torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypedDict

from pydantic import Field, PositiveInt

from consistentee.arguments import Fraction
from consistentee.data.tasks import TextTask
from consistentee.errors import UserError
from consistentee.methods.method import Knob, Method
from consistentee.training.recipe import TokenRecipe

if TYPE_CHECKING:
    from consistentee.engine.generate import Generations
    from consistentee.models.decoder.branches import SkippedSublayers
    from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
    from consistentee.rules.exit_rule import ExitRule
    from consistentee.traces.token_trace import TokenRow


@dataclass(frozen=True)
class TokenMethod(Method["MultiExitDecoder", TextTask, TokenRecipe]):
    """How to train a decoder's exits, which rule, which knob; subclasses as those of :class:`consistentee.Method`.

    Class attributes besides Method's:
        kv: fills the keys and values of skipped layers, see :func:`consistentee.generate`.
        drafts: the method drafts and verifies. Its layers depend on the accepted tokens, so it is run, not replayed.
        asks_exits: its rule, draft or branch needs an exit's prediction before the token exits.
    """

    kv: ClassVar[Literal["propagate", "exact"]] = "propagate"
    drafts: ClassVar[bool] = False
    asks_exits: ClassVar[bool] = False

    def check_model(self, model: "MultiExitDecoder") -> None:
        """Raise UserError if the method needs predictions that do not exist before closing layers."""
        if self.asks_exits and model.last_layers:
            raise UserError(
                f"{self.name} needs the prediction of an exit before a token exits there, and here none exists before "
                "the closing layers: train it on a decoder without closing layers"
            )

    def check_task(self, task: TextTask) -> None:
        """Raise UserError for a task that is not a text task."""
        if not isinstance(task, TextTask):
            raise UserError(
                f"{self.name} lets tokens exit while a text is written; {getattr(task, 'name', task)!r} asks for labels"
            )

    def fit(self, model: "MultiExitDecoder", task: TextTask, recipe: TokenRecipe) -> "MultiExitDecoder":
        """Train the exits in the shared stage."""
        from consistentee.training.decoder import train_exits

        train_exits(model, task, recipe)
        return model

    @property
    def has_own_loop(self) -> bool:
        """Whether the method decodes in a way of its own."""
        return type(self).generate is not TokenMethod.generate

    def generate(self, model: "MultiExitDecoder", prompts: Sequence[str], knob: float, **options: Any) -> "Generations":
        """Generate a text for every prompt; ``options`` are those of :func:`consistentee.generate` except ``kv``."""
        from consistentee.engine.generate import generate

        return generate(model, prompts, self.rule(model, knob), kv=self.kv, **options)

    def options_of_drafts(self, knob: float, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options without those of batches, for drafts. Raises UserError for ``sampling`` and ``in_flight``."""
        for refused in ("sampling", "in_flight"):
            if options.get(refused) is not None:
                raise UserError(
                    f"{self.name} verifies greedy drafts text by text, and takes no {refused}; "
                    f"{self.knob.name} {knob:g} drafts"
                )
        dropped = ("sampling", "in_flight", "batch_size", "sort_by_length", "read")
        return {name: value for name, value in options.items() if name not in dropped}


@dataclass(frozen=True)
class VocabularyMethod(TokenMethod):
    """A method whose rule reads predictions of exits, so that its vocabulary can be pruned.

    Attributes:
        candidates: number of tokens that exits after the first read and predict, see
            :mod:`consistentee.rules.vocabulary`; None for the whole vocabulary.
    """

    asks_exits: ClassVar[bool] = True

    candidates: Annotated[int, Field(ge=2)] | None = field(default=None, kw_only=True)

    def pruned(self, rule: "ExitRule") -> "ExitRule":
        """Restrict a rule to the candidates after its first exit, if ``candidates`` is set."""
        from consistentee.rules.vocabulary import prune_vocabulary

        return prune_vocabulary(rule, self.candidates)


class DraftedBy(TypedDict, total=False):
    """The drafter, as options of :func:`generate_speculatively`; empty without drafts."""

    draft_layer: int
    skipped: "SkippedSublayers"


@dataclass(frozen=True)
class DraftingMethod(TokenMethod):
    """Self-speculative decoding; the knob is the layer that drafts, unless a method has another.

    Class attributes:
        published: draft length and threshold for a model without chosen ones.

    Attributes:
        draft_tokens: maximum number of tokens before each verification; None: see :meth:`choose_drafts`.
        threshold: a draft ends after a token that is less probable than this; 0 disables it; None likewise.
    """

    version: ClassVar[int] = 3

    knob: ClassVar[Knob] = Knob("draft layer", tuple(float(layer) for layer in range(6, 31, 6)))
    drafts: ClassVar[bool] = True
    published: ClassVar[tuple[int, float]] = (4, 0.0)
    no_effect_if: ClassVar[Mapping[str, tuple[str, object]]] = {"threshold": ("draft_tokens", 1)}

    draft_tokens: PositiveInt | None = None
    threshold: Fraction | None = 0.0

    def knob_values(self, model: "MultiExitDecoder") -> Sequence[float]:
        """Return the exit layers; the last one decodes with the full model, without drafts."""
        return tuple(float(layer) for layer in model.exit_layers)

    def rule(self, model: "MultiExitDecoder", knob: float) -> "ExitRule":
        """Exit at the draft layer, ``knob``."""
        from consistentee.rules.exit_rule import StaticRule

        return StaticRule(model.check_exit_layer(knob))

    def drafter(self, model: "MultiExitDecoder", knob: float) -> DraftedBy:
        """Return the drafter as options of :func:`generate_speculatively`; empty at full depth."""
        return {} if knob == model.num_layers else {"draft_layer": round(knob)}

    def choose_drafts(
        self, model: "MultiExitDecoder", rows: "Sequence[TokenRow]", max_new_tokens: int, store: Path | None = None
    ) -> None:
        """Choose the draft length and the threshold that call the fewest layers, for every value of the knob.

        They are kept in the description of the model, which :meth:`fit` returned. Parameters that are set stay as they
        are. ``rows`` are prompts with the full model's greedy texts of at most ``max_new_tokens`` tokens.
        """
        from consistentee.traces.drafts import DRAFT_LENGTHS, DRAFT_THRESHOLDS, trace_drafts

        length, least = self.published
        lengths = sorted({*DRAFT_LENGTHS, length}) if self.draft_tokens is None else [self.draft_tokens]
        thresholds = sorted({*DRAFT_THRESHOLDS, least}) if self.threshold is None else [self.threshold]
        for knob in map(float, self.knob_values(model)):
            if drafter := self.drafter(model, knob):
                trace = trace_drafts(model, rows, **drafter, store=store)
                calls = {
                    (tokens, threshold): trace.layer_calls(tokens, threshold, max_new_tokens - 1)
                    for tokens, threshold in product(lengths, thresholds)
                }
                model.description.drafts[knob] = min(calls, key=calls.__getitem__)

    def draft_settings(self, model: "MultiExitDecoder", knob: float) -> tuple[int, float]:
        """Return the draft length and threshold: the method's parameters, else the chosen ones, else the published."""
        tokens, threshold = model.description.drafts.get(knob, self.published)
        return self.draft_tokens or tokens, threshold if self.threshold is None else self.threshold

    def generate(self, model: "MultiExitDecoder", prompts: Sequence[str], knob: float, **options: Any) -> "Generations":
        """Generate the full model's texts with the drafter of ``knob``; see :func:`generate_speculatively`.

        Texts are generated one by one: ``batch_size``, ``sort_by_length`` and ``read`` have no effect. Raises UserError
        for ``sampling`` and ``in_flight``.
        """
        from consistentee.engine.generate import generate
        from consistentee.engine.speculation import generate_speculatively

        rule, drafter = self.rule(model, knob), self.drafter(model, knob)
        if not drafter:
            return generate(model, prompts, rule, **options)
        options = self.options_of_drafts(knob, options)
        tokens, threshold = self.draft_settings(model, knob)
        return generate_speculatively(model, prompts, draft_tokens=tokens, threshold=threshold, **drafter, **options)
