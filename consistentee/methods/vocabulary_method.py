"""Methods of generation whose rule reads the LM head, all of it or some of its columns."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from consistentee.data.prompts import TextTask
from consistentee.methods.method import Knob
from consistentee.methods.token_method import TokenMethod
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.depth_thresholds import SHIFTS, DepthThresholdRule, shifted_thresholds
from consistentee.rules.exit_rule import ExitRule
from consistentee.rules.vocabulary import check_candidates, prune_vocabulary
from consistentee.training.decoder.stages import train_exits
from consistentee.training.recipe import TokenRecipe


@dataclass(frozen=True)
class VocabularyMethod(TokenMethod):
    """A method whose rule reads what exits say, so that its vocabulary can be pruned.

    Attributes:
        candidates: tokens that exits after the first may say, and the rule reads, see
            :mod:`consistentee.rules.vocabulary`; None for the whole vocabulary everywhere.
    """

    candidates: int | None = field(default=None, kw_only=True, repr=False)  # unseen in keys of stages before it

    def __post_init__(self) -> None:
        check_candidates(self.candidates)

    @property
    def asks_exits(self) -> bool:
        return True

    def pruned(self, rule: ExitRule) -> ExitRule:
        """Return a rule that reads candidates alone after its first exit, where there is such a number of them."""
        return prune_vocabulary(rule, self.candidates)


@dataclass(frozen=True)
class SpeakingLayersMethod(VocabularyMethod):
    """A method whose middle layers learn to speak, and leave where the largest probability reaches a threshold.

    Class attributes:
        thresholds: by share of the depth, rising, as :func:`consistentee.rules.depth_thresholds.shifted_thresholds`
            takes them; one knob shifts the log-odds of all, at 0 they are the paper's.
    """

    knob: ClassVar[Knob] = Knob("shift", SHIFTS)
    thresholds: ClassVar[Sequence[tuple[float, float]]]

    def fit(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> MultiExitDecoder:
        """Train the backbone, where the recipe does, with all exits alike, at every step, on labels alone.

        What exits have of their own learns afterwards, by the stage that all methods share; so do exits of a frozen
        backbone. With ``adapter="shared"`` they have nothing.
        """
        self.check_task(task)
        all_alike = replace(recipe, exit_weights="equal", exit_curriculum="all", layer_dropout=0.0, taught_share=0.0)
        train_exits(model, task, all_alike)
        return model

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Exit by the thresholds of the paper, their log-odds shifted by ``knob``."""
        self.check_knob(model, knob)
        return self.pruned(DepthThresholdRule(shifted_thresholds(self.thresholds, model.exit_layers, knob)))
