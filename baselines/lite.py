"""LITE (Varshney et al., Findings of NAACL 2024, arXiv 2310.18581): instruction tuning with losses at middle layers.

Training: the whole model learns the cross-entropy of every exit, with equal weights, through its own final norm and LM
head (``trains: all``, ``adapter: shared``; see :mod:`consistentee.training.decoder_backbone`). On a frozen
backbone exits are trained in the shared stage. Exits of LLaMA-2-7B are at 8, 12, ..., 28 of 32 layers; here the suite
sets them.

Rule: exit if the largest probability reaches a threshold that falls with depth. The paper's thresholds (those of
LLaMA-2-7B here are from memory: check them before you cite them) are interpolated by depth. Choice: one knob shifts the
log-odds of all of them; 0 gives the paper's. Keys and values of skipped layers are propagated as in CALM.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from consistentee import ExitRule, Knob, MultiExitDecoder, TextTask, TokenRecipe, VocabularyMethod
from consistentee.rules.schedules import DepthThresholdRule, shifted_thresholds

THRESHOLDS = ((0.25, 0.95), (0.375, 0.95), (0.5, 0.9), (0.625, 0.9), (0.75, 0.8), (0.875, 0.7))
"""By share of the depth, see :func:`consistentee.rules.schedules.shifted_thresholds`."""


@dataclass(frozen=True)
class LITE(VocabularyMethod):
    """Exit if the largest probability reaches a threshold that falls with depth."""

    name: ClassVar[str] = "lite"
    paper: ClassVar[str] = "Varshney et al., LITE, Findings of NAACL 2024, arXiv 2310.18581"
    knob: ClassVar[Knob] = Knob("shift", (-20.0, *(step / 4 for step in range(-32, 33)), 40.0))

    def fit(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> MultiExitDecoder:
        """Train the backbone, if the recipe does, with equal weights of all exits, on labels alone."""
        return super().fit(model, task, replace(recipe, exit_weights="equal", layer_dropout=0.0, taught_share=0.0))

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Exit by the paper's thresholds with log-odds shifted by ``knob``: at its ends all are 0, or 1."""
        return self.pruned(DepthThresholdRule(shifted_thresholds(THRESHOLDS, model.exit_layers, knob)))
