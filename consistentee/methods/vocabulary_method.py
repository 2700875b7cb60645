"""VocabularyMethod: methods of generation whose rule reads the LM head, all of it or some of its columns."""

from dataclasses import dataclass, field

from consistentee.methods.token_method import TokenMethod
from consistentee.rules.exit_rule import ExitRule
from consistentee.rules.vocabulary import check_candidates, prune_vocabulary


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

    def pruned(self, rule: ExitRule) -> ExitRule:
        """Return a rule that reads candidates alone after its first exit, where there is such a number of them."""
        return prune_vocabulary(rule, self.candidates)
