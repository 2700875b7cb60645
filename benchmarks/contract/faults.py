"""BrokenContractError, and the faults that more than one check can find: what does not hold, in the author's words."""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import consistentee
from consistentee.errors import UserError

RULE_SECTION = "What a rule may read"
STATE_SECTION = "What a rule remembers"
KNOB_SECTION = "The knob"
FIT_SECTION = "Training"
TOKEN_SECTION = "Methods of generation"

_NOT_THE_AUTHORS = [Path(str(file)).parent for file in (torch.__file__, consistentee.__file__, __file__)]

COUNTS_FROM_0 = "the rule or its knob counts layers from 0"


class BrokenContractError(AssertionError):
    """What does not hold, in plain words, for the author of the method.

    Attributes:
        fault: what is wrong; several checks may find the same fault.
        example: how it showed.
        advice: what to do about it.
        section: of docs/add_a_method.md, where more is said.
    """

    def __init__(self, fault: str, example: str = "", advice: str = "", section: str = RULE_SECTION) -> None:
        self.fault, self.example, self.advice, self.section = fault, example, advice, section
        super().__init__(". ".join(part for part in (f"{fault}: {example}" if example else fault, advice) if part))


def described(error: BaseException) -> str:
    """Say what was raised, and where in the author's own code: the last line outside of the library and torch."""
    sentence = " ".join(str(error).split())
    what = sentence if isinstance(error, UserError) else f"{type(error).__name__}: {sentence}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not any(Path(f.filename).is_relative_to(folder) for folder in _NOT_THE_AUTHORS)]
    return f"{what} ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else what


@contextmanager
def any_error_is(fault: str, section: str = RULE_SECTION) -> Iterator[None]:
    """Raise BrokenContractError for whatever is raised in the block: an author's code may fail in any way at all."""
    try:
        yield
    except Exception as error:
        raise BrokenContractError(fault, described(error), section=section) from error


def state_breaks(example: str) -> BrokenContractError:
    """Return the error for a state that does not survive the rows that leave."""
    return BrokenContractError(
        "the rule's state breaks when rows leave the batch",
        example,
        "What a rule remembers must lie in `state`, as tensors with the rows first, and not on the rule itself: the "
        "engine drops the part of the rows that leave",
        STATE_SECTION,
    )


def looks_at_neighbours(row: str, alone: Any, together: Any, knob: float, company: str) -> BrokenContractError:
    """Return the error for a row that exits elsewhere beside others; ``alone`` and ``together`` are exit layers."""
    return BrokenContractError(
        "the rule looks at its batch neighbours",
        f"{row} exits at layer {alone} alone but at layer {together} {company} (knob {knob:g})",
        "Decide each row from that row alone: reduce over the last dimension, not the first, and leave padding out",
    )


def carries_over(knob: float, before: dict[str, str], after: dict[str, str]) -> BrokenContractError:
    """Return the error for a rule that decides otherwise when it is used again; its attributes before and after."""
    changed = [f"self.{name}" for name in after if after[name] != before.get(name)]
    return BrokenContractError(
        "the rule carries something over from batch to batch",
        f"the same rows get other exits when it is used again (knob {knob:g}); {', '.join(changed) or 'it'} changed",
        "What a rule remembers must lie in `state`, which begins anew with start()",
        STATE_SECTION,
    )


def check_order(exits: Tensor, values: Sequence[float], row: str = "row") -> None:
    """Raise BrokenContractError where a later value of the knob lets a row leave earlier: exits [values, rows]."""
    earlier = (exits[1:] < exits[:-1]).nonzero().tolist()
    if not earlier:
        return
    step, place = earlier[0]
    reversed_order = bool(exits[0].sum() > exits[-1].sum())
    raise BrokenContractError(
        "a stricter knob exits earlier" + (": the values run from the latest exits" if reversed_order else ""),
        f"{row} {place + 1} exits at layer {exits[step, place]} with {values[step]:g}, and at layer "
        f"{exits[step + 1, place]} with the next value, {values[step + 1]:g}",
        "The values of the knob must run from the earliest exits to the latest",
        KNOB_SECTION,
    )
