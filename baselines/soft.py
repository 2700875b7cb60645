"""SoFT, sorted fine-tuning (Kavehzadeh et al., Findings of EACL 2024, arXiv 2309.08968): one model, many depths.

Training: the first n layers with the model's final norm and LM head are a "sub-model", for some n; all are fine-tuned
at once on the mean of their cross-entropies. This is LITE's loss, weight for weight, found at the same time: here both
share one stage, see :mod:`consistentee.training.decoder.backbone_losses`. What differs in the papers is where exits lie
(12, 16, ..., 36 of LLaMA-2-13B's 40 layers), epochs, and the thresholds.

Rule: leave at the first sub-model whose largest probability reaches its threshold, which falls with depth. The paper's
are read by depth and shifted by one knob, as LITE's are. Left out: the paper's speculative decoding with sub-models,
which ``layerskip`` does on the same backbone with the full model's very text.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from consistentee.data.prompts import TextTask
from consistentee.methods.method import Knob
from consistentee.methods.vocabulary_method import VocabularyMethod
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.depth_thresholds import SHIFTS, DepthThresholdRule, shifted_thresholds
from consistentee.rules.exit_rule import ExitRule
from consistentee.training.decoder.stages import train_exits
from consistentee.training.recipe import TokenRecipe

THRESHOLDS = ((0.3, 0.95), (0.4, 0.95), (0.5, 0.9), (0.6, 0.9), (0.7, 0.8), (0.8, 0.8), (0.9, 0.7))
"""Share of the depth, and the threshold there."""


@dataclass(frozen=True)
class SoFT(VocabularyMethod):
    """Leave the first sub-model that is sure enough for its depth."""

    name: ClassVar[str] = "soft"
    paper: ClassVar[str] = "Kavehzadeh et al., Sorted LLaMA, Findings of EACL 2024, arXiv 2309.08968"
    knob: ClassVar[Knob] = Knob("shift", SHIFTS)

    def fit(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> MultiExitDecoder:
        """Train all sub-models alike, through the backbone where the recipe trains it."""
        self.check_task(task)
        train_exits(model, task, replace(recipe, exit_weights="equal", taught_share=0.0))
        return model

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Exit by the thresholds of the paper, their log-odds shifted by ``knob``."""
        self.check_knob(model, knob)
        return self.pruned(DepthThresholdRule(shifted_thresholds(THRESHOLDS, model.exit_layers, knob)))
