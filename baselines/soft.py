"""SoFT, sorted fine-tuning (Kavehzadeh et al., Findings of EACL 2024, arXiv 2309.08968): one model, many depths.

Training: the first n layers with the model's final norm and LM head are a "sub-model", for some n; all are fine-tuned
at once on the mean of their cross-entropies. This is LITE's loss, weight for weight, found at the same time: here both
share one stage, see :mod:`consistentee.training.decoder.backbone_losses`, and on a frozen backbone the exits of all
methods. What differs in the papers is where exits lie (12, 16, ..., 36 of LLaMA-2-13B's 40 layers), epochs, and the
thresholds.

Rule: leave at the first sub-model whose largest probability reaches its threshold, which falls with depth. The paper's
are read by depth and shifted by one knob, as LITE's are. Left out: the paper's speculative decoding with sub-models,
which ``layerskip`` does on the same backbone with the full model's very text.
"""

from dataclasses import dataclass
from typing import ClassVar

from consistentee.methods.vocabulary_method import SpeakingLayersMethod


@dataclass(frozen=True)
class SoFT(SpeakingLayersMethod):
    """Leave the first sub-model that is sure enough for its depth."""

    name: ClassVar[str] = "soft"
    paper: ClassVar[str] = "Kavehzadeh et al., Sorted LLaMA, Findings of EACL 2024, arXiv 2309.08968"
    thresholds = ((0.3, 0.95), (0.4, 0.95), (0.5, 0.9), (0.6, 0.9), (0.7, 0.8), (0.8, 0.8), (0.9, 0.7))
