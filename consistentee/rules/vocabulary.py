"""Dynamic vocabulary pruning (Vincenti et al., ENLSP 2024, arXiv 2410.18952): rules that read few columns of the head.

The first exit that a rule reads applies the full LM head and fixes the K tokens with the largest logits, the token's
candidates. Later exits read and predict only these, with probabilities over K tokens; layer L applies the full head.
"""

from functools import cached_property
from typing import Annotated

from pydantic import Field
from torch import Tensor

from consistentee.arguments import checked
from consistentee.rules.exit_rule import ExitRule, State
from consistentee.rules.view import LayerView, best_among

CANDIDATES = "candidates"
"""Name of the candidates in the state of a rule: int64 [rows, K], after the first exit that was read."""


@checked
def prune_vocabulary(rule: ExitRule, candidates: Annotated[int, Field(ge=2)] | None) -> ExitRule:
    """Restrict a rule to the logits of ``candidates`` tokens after its first exit; None returns the rule itself.

    The rule must read all exits from some layer on, or none. Raises UserError for fewer than two candidates.
    """
    return rule if candidates is None else PrunedVocabularyRule(rule, candidates)


class PrunedVocabularyRule(ExitRule):
    """Apply another rule to the candidates, which are part of each token's state."""

    def __init__(self, rule: ExitRule, candidates: int) -> None:
        self.rule = rule
        self.candidates = candidates
        self.reads_history = rule.reads_history

    def start(self, rows: int, num_layers: int) -> State:
        return self.rule.start(rows, num_layers)

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        return self.rule.should_exit(CandidatesView(view, state, self.candidates), state)

    def asked_at(self, layer: int) -> bool:
        return self.rule.asked_at(layer)


def _of_view(name: str) -> cached_property[Tensor]:
    return cached_property(lambda self: getattr(self._view, name))


class CandidatesView(LayerView):
    """A view with the logits of the candidates after the first exit that was read."""

    def __init__(self, view: LayerView, state: State, candidates: int) -> None:
        super().__init__(view.layer, view.num_layers, view.rows, view.device)
        self._view = view
        self._state = state
        self._count = candidates
        self.places = view.places

    hidden = _of_view("hidden")
    pooled = _of_view("pooled")
    history = _of_view("history")
    row_keys = _of_view("row_keys")
    labels = _of_view("labels")

    def _run_head(self, name: str, extra: Tensor | None) -> Tensor:
        return self._view.head(name, extra)

    @cached_property
    def _among(self) -> Tensor | None:
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
        return self._view.probs if self._among is None else self.logits.softmax(dim=-1)

    @cached_property
    def predictions(self) -> Tensor:
        return self._view.predictions if self._among is None else best_among(self.logits, self._among)
