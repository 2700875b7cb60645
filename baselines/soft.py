"""SoFT, sorted fine-tuning (Kavehzadeh et al., Findings of EACL 2024, arXiv 2309.08968): one model, many depths.

Training: the first n layers with the model's final norm and LM head are a "sub-model", for some n; all are fine-tuned
on the mean of their cross-entropies. This is LITE's loss, so both share one stage (see
:mod:`consistentee.training.decoder_backbone`). The papers differ in exits (12, 16, ..., 36 of LLaMA-2-13B's 40
layers), epochs and thresholds.

Rule: exit at the first sub-model whose largest probability reaches its threshold, which falls with depth; thresholds
are interpolated and shifted by one knob, as LITE's. Speculative decoding with sub-models is left out; ``layerskip``
does it.
"""

from dataclasses import dataclass
from typing import ClassVar

from consistentee.methods.token_methods import DepthThresholdMethod


@dataclass(frozen=True)
class SoFT(DepthThresholdMethod):
    """Exit at the first sub-model that is confident enough for its depth."""

    name: ClassVar[str] = "soft"
    paper: ClassVar[str] = "Kavehzadeh et al., Sorted LLaMA, Findings of EACL 2024, arXiv 2309.08968"
    thresholds = ((0.3, 0.95), (0.4, 0.95), (0.5, 0.9), (0.6, 0.9), (0.7, 0.8), (0.8, 0.8), (0.9, 0.7))
