"""Why a row exits elsewhere than it should: found by experiment, and told in the author's words."""

from collections.abc import Sequence
from typing import Any

from benchmarks.contract.base_case import BaseCase
from benchmarks.contract.faults import BrokenContractError, carries_over, looks_at_neighbours, state_breaks
from benchmarks.contract.watching import attributes_of


def why_exits_differ(case: BaseCase[Any, Any], knob: float) -> BrokenContractError | None:
    """Find by experiment why a row's exit layer depends on how it is asked for; None where nothing is found.

    In a replay no row leaves its batch, and one row alone has no neighbours: comparing the combinations tells the
    causes apart.
    """
    live_alone, live_together, trace = case.alone_and_together(knob)
    rule = case.rule(knob)
    before, together = attributes_of(rule), case.replayed(knob, trace, rule).tolist()
    after, again = attributes_of(rule), case.replayed(knob, trace, rule).tolist()
    if together != again:
        return carries_over(knob, before, after)
    alone = case.replayed_alone(knob, trace).tolist()
    if (row := first_difference(alone, together)) is not None:
        return looks_at_neighbours(f"{case.row} {row + 1}", alone[row], together[row], knob, "beside other rows")
    if (row := first_difference(live_alone, live_together)) is not None:
        return state_breaks(
            f"{case.row} {row + 1} exits at layer {layer_at(live_alone, row)} alone but at layer "
            f"{layer_at(live_together, row)} once other rows have left (knob {knob:g})"
        )
    if (row := first_difference(live_alone, alone)) is not None:
        return BrokenContractError(
            "the rule reads something that a trace does not hold as it is live",
            f"{case.row} {row + 1} exits at layer {alone[row]} in a replay but at {live_alone[row]} live "
            f"(knob {knob:g})",
        )
    return None


def draws_numbers(row: str, knob: float) -> BrokenContractError:
    """Return the error for exits that differ without a cause that can be found."""
    return BrokenContractError(
        f"the same {row} gets other exits each time the rule is asked", f"knob {knob:g}", "Does it draw numbers?"
    )


def first_difference(first: Sequence[Any], second: Sequence[Any]) -> int | None:
    """Return the first place where two sequences differ, or None; the shorter one differs where it ends."""
    shared = min(len(first), len(second))
    places = (place for place in range(shared) if first[place] != second[place])
    return next(places, shared if len(first) != len(second) else None)


def layer_at(layers: Sequence[int], row: int) -> str:
    """Return an exit layer in words; a text may have ended before this token."""
    return str(layers[row]) if row < len(layers) else "none: the text has ended"
