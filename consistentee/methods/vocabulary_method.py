"""Base classes of methods of generation whose rule reads the LM head, all of it or some columns."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from consistentee.data.prompts import TextTask
from consistentee.methods.method import Knob
from consistentee.methods.token_method import TokenMethod
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule
from consistentee.rules.schedules import SHIFTS, DepthThresholdRule, shifted_thresholds
from consistentee.rules.vocabulary import check_candidates, prune_vocabulary
from consistentee.training.decoder.stages import train_exits
from consistentee.training.recipe import TokenRecipe


@dataclass(frozen=True)
class VocabularyMethod(TokenMethod):
    """A method whose rule reads predictions of exits, so that its vocabulary can be pruned.

    Attributes:
        candidates: number of tokens that exits after the first read and predict, see
            :mod:`consistentee.rules.vocabulary`; None for the whole vocabulary.
    """

    candidates: int | None = field(default=None, kw_only=True, repr=False)  # not in keys of older stages

    def __post_init__(self) -> None:
        check_candidates(self.candidates)

    @property
    def asks_exits(self) -> bool:
        return True

    def pruned(self, rule: ExitRule) -> ExitRule:
        """Restrict a rule to the candidates after its first exit, if ``candidates`` is set."""
        return prune_vocabulary(rule, self.candidates)


@dataclass(frozen=True)
class SpeakingLayersMethod(VocabularyMethod):
    """A method with trained middle layers and a threshold on the largest probability.

    Class attributes:
        thresholds: by share of the depth, see :func:`consistentee.rules.schedules.shifted_thresholds`; the knob
            shifts the log-odds of all of them, and 0 gives the paper's.
    """

    knob: ClassVar[Knob] = Knob("shift", SHIFTS)
    thresholds: ClassVar[Sequence[tuple[float, float]]]

    def fit(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> MultiExitDecoder:
        """Train the backbone, if the recipe does, with equal weights of all exits at every step, on labels alone."""
        self.check_task(task)
        equally = replace(recipe, exit_weights="equal", exit_curriculum="all", layer_dropout=0.0, taught_share=0.0)
        train_exits(model, task, equally)
        return model

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Exit by the paper's thresholds with log-odds shifted by ``knob``."""
        self.check_knob(model, knob)
        return self.pruned(DepthThresholdRule(shifted_thresholds(self.thresholds, model.exit_layers, knob)))
