"""Writing: the settings of generation that both engines share."""

from dataclasses import dataclass

from consistentee.engine.step.owed_tokens import KVPolicy
from consistentee.engine.step.read_prompts import ReadPrompts
from consistentee.engine.step.sampling import Sampling
from consistentee.rules.exit_rule import ExitRule


@dataclass(frozen=True)
class Writing:
    """How texts are written; see :func:`consistentee.generate`."""

    rule: ExitRule
    max_new_tokens: int
    batch_size: int
    kv: KVPolicy
    sampling: Sampling | None
    read: ReadPrompts | None = None
