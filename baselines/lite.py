"""LITE (Varshney et al., Findings of NAACL 2024, arXiv 2310.18581): middle layers that learned to speak.

Training: instruction tuning of the whole model with the cross-entropy of every exit, all with the same weight, through
the model's own final norm and LM head: see :mod:`consistentee.training.decoder.backbone_losses`. A recipe that trains
the backbone (``trains: all``) on exits that add nothing (``adapter: shared``) is the paper's; on a frozen backbone they
are trained by the stage that all methods share. Exits of LLaMA-2-7B lie at 8, 12, ..., 28 of 32 layers; here where the
suite has them.

Rule: leave where the largest probability reaches a threshold, which falls with depth. The paper's are given by layer
(those of LLaMA-2-7B here are from memory: check them against its text before you cite them), and are read by depth, on
a line between two of them. Choice: one knob shifts the log-odds of all of them at once, at 0 they are the paper's.
The keys and values of skipped layers are made of the state at the exit (CALM's propagation).
"""

from dataclasses import dataclass
from typing import ClassVar

from consistentee.methods.vocabulary_method import SpeakingLayersMethod


@dataclass(frozen=True)
class LITE(SpeakingLayersMethod):
    """Leave where the largest probability reaches a threshold that falls with depth."""

    name: ClassVar[str] = "lite"
    paper: ClassVar[str] = "Varshney et al., LITE, Findings of NAACL 2024, arXiv 2310.18581"
    thresholds = ((0.25, 0.95), (0.375, 0.95), (0.5, 0.9), (0.625, 0.9), (0.75, 0.8), (0.875, 0.7))
