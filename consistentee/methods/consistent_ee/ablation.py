"""consistentee-ablation: the published algorithm with one part exchanged, to see what that part is worth.

Vanilla reward and no stage 3 are parameters of the algorithm itself (``reward: vanilla``, ``joint_epochs: 0``). Here:

* ``policy_share`` exchanges what stage 3 asks of the exits. At 0 all exits learn alike, so that it is joint training of
  the same length; whatever is left of a difference at 1 is the gain of training consistent with inference.
* ``shuffled_hardness`` exchanges the Memorized Layers: their distribution stays, but no row has its own.
* ``leave_by`` exchanges the rule: the very same exits are left by the policy at thresholds other than 0.5, or by
  DeeBERT's threshold on entropy. The first costs no training, and shows what one trained policy can do at all speeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from consistentee import ExitRule, MultiExitModel, ThresholdRule
from consistentee.methods.consistent_ee.instances import ConsistentEE, ConsistentEEPaper
from consistentee.signals import entropy, entropy_thresholds


@dataclass(frozen=True)
class ConsistentEEAblation(ConsistentEEPaper):
    """The published algorithm, with a part exchanged if a parameter says so.

    Attributes:
        policy_share: the share of stage 3's cross-entropy that falls on the policy's exits; the rest falls on all exits
            alike.
        shuffled_hardness: give every row the Memorized Layer of another row, drawn once.
        leave_by: "policy" where P(exit) > 0.5, "threshold" where P(exit) is above a threshold, which is the knob, or
            "entropy" for a threshold on the entropy in nats.
    """

    name: ClassVar[str] = "consistentee-ablation"
    paper: ClassVar[str] = "ours: ConsistentEE (AAAI 2024) with a part exchanged"
    version: ClassVar[int] = 3
    has_several_rules: ClassVar[bool] = True

    policy_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    shuffled_hardness: bool = False
    # Not in the text that identifies a trained stage, so that rules on the same exits share it.
    leave_by: Literal["policy", "threshold", "entropy"] = field(default="policy", repr=False)

    def row_hardness(self, correct: Tensor, seed: int) -> Tensor | None:
        own = super().row_hardness(correct, seed)
        if own is None or not self.shuffled_hardness:
            return own
        return own[torch.randperm(len(own), generator=torch.Generator().manual_seed(seed)).to(own.device)]

    def exit_weights(self, probabilities: Tensor) -> Tensor:
        taken = super().exit_weights(probabilities)
        return self.policy_share * taken + (1 - self.policy_share) / taken.shape[1]

    def knob_values(self, model: MultiExitModel) -> Sequence[float]:
        if self.leave_by == "entropy":
            return entropy_thresholds(model.num_labels, beyond=1.001)
        return ConsistentEE.knob.values if self.leave_by == "threshold" else super().knob_values(model)

    @property
    def refines_knob(self) -> bool:
        """Whether the rule has a threshold."""
        return self.leave_by != "policy"

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit if P(exit) > knob, or if the entropy is below ``knob`` nats."""
        by_entropy = self.leave_by == "entropy"
        return ThresholdRule(entropy, knob, exit_when="below") if by_entropy else super().rule(model, knob)
