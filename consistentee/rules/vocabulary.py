"""Dynamic vocabulary pruning (Vincenti et al., ENLSP 2024, arXiv 2410.18952): a rule that reads little of the LM head.

The first exit that a rule reads applies the full LM head, and fixes the K tokens with the largest logits: this token's
candidates. At later exits the rule reads the logits of the candidates alone, K columns of the head, and what such an
exit says is one of them; its probabilities, and the confidence in them, are over K tokens. Layer L applies the full
head. A confidence over K is larger than one over the vocabulary, so thresholds are to be chosen anew.
"""

from functools import cached_property

from torch import Tensor

from consistentee.errors import UserError
from consistentee.rules.exit_rule import ExitRule, State
from consistentee.rules.view import LayerView, said_among

CANDIDATES = "candidates"
"""Name of the candidates in the state of a rule: int64 [rows, K], there once an exit has been read."""


def prune_vocabulary(rule: ExitRule, candidates: int | None) -> ExitRule:
    """Return a rule that decides as ``rule`` does, but reads the logits of so many tokens alone after its first exit.

    ``rule`` itself where ``candidates`` is None. A rule must decide on a token by what exits say at all exits that it
    is asked at from some layer on, or at none. Raises UserError for fewer than two candidates.
    """
    return rule if candidates is None else PrunedVocabularyRule(rule, candidates)


def check_candidates(candidates: int | None) -> None:
    """Raise UserError for fewer than two candidates, of which no confidence can be had."""
    if candidates is not None and candidates < 2:
        raise UserError(f"a vocabulary is pruned to at least 2 candidates, got {candidates}")


class PrunedVocabularyRule(ExitRule):
    """Asks another rule, and shows it candidates. They are state of each token, and leave with it."""

    def __init__(self, rule: ExitRule, candidates: int) -> None:
        check_candidates(candidates)
        self.rule = rule
        self.candidates = candidates
        self.reads_history = rule.reads_history

    def start(self, rows: int, num_layers: int) -> State:
        """Return the state of the other rule: no exit has been read yet."""
        return self.rule.start(rows, num_layers)

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        return self.rule.should_exit(CandidatesView(view, state, self.candidates), state)

    def compared_value(self, view: LayerView, state: State) -> Tensor | None:
        return self.rule.compared_value(CandidatesView(view, state, self.candidates), state)


class CandidatesView(LayerView):
    """A view whose logits are those of the candidates, once there are any; all else is as it was."""

    def __init__(self, view: LayerView, state: State, candidates: int) -> None:
        self.layer = view.layer
        self.num_layers = view.num_layers
        self.rows = view.rows
        self.device = view.device
        self._view = view
        self._state = state
        self._count = candidates

    @property
    def step(self) -> int:
        """The place of the new token."""
        return self._view.step

    @cached_property
    def steps(self) -> Tensor:
        """The place of each row's new token."""
        return self._view.steps

    @cached_property
    def hidden(self) -> Tensor:
        """Hidden states."""
        return self._view.hidden

    @cached_property
    def pooled(self) -> Tensor:
        """What learned heads read."""
        return self._view.pooled

    @cached_property
    def history(self) -> Tensor:
        """``pooled`` of the exits so far."""
        return self._view.history

    @cached_property
    def row_keys(self) -> Tensor:
        """What identifies each row."""
        return self._view.row_keys

    @cached_property
    def labels(self) -> Tensor:
        """True labels."""
        return self._view.labels

    def head(self, name: str, extra: Tensor | None = None) -> Tensor:
        """Output of a learned head."""
        return self._view.head(name, extra)

    @cached_property
    def _among(self) -> Tensor | None:
        """The candidates, or None where this exit is the first one read, which fixes them."""
        if CANDIDATES in self._state:
            return self._state[CANDIDATES]
        self._state[CANDIDATES] = self._view.likeliest(self._count)
        return None

    @cached_property
    def logits(self) -> Tensor:
        """Logits of all tokens at the first exit read, then of the candidates: [rows, vocabulary] or [rows, K]."""
        return self._view.logits if self._among is None else self._view.logits_among(self._among)

    @cached_property
    def probs(self) -> Tensor:
        """Softmax of the logits."""
        return self._view.probs if self._among is None else self.logits.softmax(dim=-1)

    @cached_property
    def predictions(self) -> Tensor:
        """The token that this exit says: int64 [rows]."""
        return self._view.predictions if self._among is None else said_among(self.logits, self._among)
