"""Writing: how texts are written behind prompts, whatever engine does it."""

from dataclasses import dataclass

from consistentee.engine.step.owed_tokens import KVPolicy
from consistentee.engine.step.read_prompts import ReadPrompts
from consistentee.engine.step.sampling import Sampling
from consistentee.engine.transcript import Stream
from consistentee.errors import UserError
from consistentee.rules.exit_rule import ExitRule


@dataclass(frozen=True)
class Writing:
    """How texts are written; see :func:`consistentee.generate`. Raises UserError for a batch of no rows."""

    rule: ExitRule
    max_new_tokens: int
    batch_size: int
    kv: KVPolicy
    sampling: Sampling | None
    stream: Stream | None
    read: ReadPrompts | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"the batch size must be at least 1, got {self.batch_size}")
