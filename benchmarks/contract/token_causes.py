"""Why a token exits elsewhere than it should: found by experiment, and told in the author's words."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.contract.faults import BrokenContractError, carries_over, looks_at_neighbours, state_breaks
from benchmarks.contract.token_case import PROMPTS, Text, TokenCase
from benchmarks.contract.watching import attributes_of
from consistentee.traces.token_trace import TokenTrace


def compare_texts(case: TokenCase, knob: float, alone: Sequence[Text], other: Sequence[Text], company: str) -> None:
    """Raise BrokenContractError where texts, or the layers of their tokens, are not those of each prompt alone."""
    for row, ((tokens, layers), (other_tokens, other_layers)) in enumerate(zip(alone, other, strict=True), start=1):
        if (at := first_difference(layers, other_layers)) is not None:
            exits = _at(layers, at), _at(other_layers, at)
            neighbours = looks_at_neighbours(f"token {at + 1} of prompt {row}", *exits, knob, company)
            raise why_exits_differ(case, knob) or neighbours
        if tokens != other_tokens:
            example = f"prompt {row} goes on with other tokens {company} (knob {knob:g})"
            raise BrokenContractError("a text depends on its neighbours at the same exit layers", example)


def _replayed_alone(case: TokenCase, knob: float, trace: TokenTrace) -> Tensor:
    tokens = torch.arange(len(trace)).split(1)
    return torch.cat([case.replayed(knob, trace.select(token)) for token in tokens])


def why_exits_differ(case: TokenCase, knob: float) -> BrokenContractError | None:
    """Find by experiment why a token's exit layer depends on how it is asked for; None where nothing is found.

    In a replay no row leaves its batch, and one token alone has no neighbours: comparing the combinations tells the
    causes apart.
    """
    runs = [case.live(knob, "exact", batch_size=batch_size) for batch_size in (1, PROMPTS)]
    live = [torch.cat(run.exit_layers).tolist() for run in runs]
    trace, rule = case.trace_of(runs[0]), case.rule(knob)
    before, together = attributes_of(rule), case.replayed(knob, trace, rule).tolist()
    after, again = attributes_of(rule), case.replayed(knob, trace, rule).tolist()
    if together != again:
        return carries_over(knob, before, after)
    alone = _replayed_alone(case, knob, trace).tolist()
    if (token := first_difference(alone, together)) is not None:
        return looks_at_neighbours(f"token {token + 1}", alone[token], together[token], knob, "beside other rows")
    if (token := first_difference(*live)) is not None:
        return state_breaks(
            f"token {token + 1} exits at layer {_at(live[0], token)} alone but at layer {_at(live[1], token)} once "
            f"other rows have left (knob {knob:g})"
        )
    if (token := first_difference(live[0], alone)) is not None:
        return BrokenContractError(
            "the rule reads something that a trace does not hold as it is live",
            f"token {token + 1} exits at layer {alone[token]} in a replay but at {live[0][token]} live (knob {knob:g})",
        )
    return None


def first_difference(first: Sequence[Any], second: Sequence[Any]) -> int | None:
    """Return the first place where two sequences differ, or None; the shorter one differs where it ends."""
    shared = min(len(first), len(second))
    places = (place for place in range(shared) if first[place] != second[place])
    return next(places, shared if len(first) != len(second) else None)


def _at(layers: Sequence[int], token: int) -> str:
    return str(layers[token]) if token < len(layers) else "none: the text has ended"
