"""BrokenContractError: what does not hold, in words for the author of a method or a backbone; and common faults."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import consistentee
from consistentee.errors import UserError

RULE_SECTION = "What a rule may read"
STATE_SECTION = "What a rule remembers"
KNOB_SECTION = "The knob"
FIT_SECTION = "Training"
TOKEN_SECTION = "Methods of generation"

COUNTS_FROM_0 = "the rule or its knob counts layers from 0"

_NOT_THE_AUTHORS = [Path(str(file)).parent for file in (torch.__file__, consistentee.__file__, __file__)]


class BrokenContractError(AssertionError):
    """Something that must hold does not.

    Attributes:
        fault: what is wrong; several checks may find the same fault.
        example: how it showed.
        advice: what to do about it.
        section: the section of docs/add_a_method.md that explains it.
    """

    def __init__(self, fault: str, example: str = "", advice: str = "", section: str = RULE_SECTION) -> None:
        self.fault, self.example, self.advice, self.section = fault, example, advice, section
        super().__init__(". ".join(part for part in (f"{fault}: {example}" if example else fault, advice) if part))


def described(error: BaseException) -> str:
    """Describe an exception, with the last line outside of the library and torch: the author's own code."""
    sentence = " ".join(str(error).split())
    what = sentence if isinstance(error, UserError) else f"{type(error).__name__}: {sentence}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not any(Path(f.filename).is_relative_to(folder) for folder in _NOT_THE_AUTHORS)]
    return f"{what} ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else what


@contextmanager
def any_error_is(fault: str, section: str = RULE_SECTION, advice: str = "") -> Iterator[None]:
    """Raise BrokenContractError for whatever is raised in the block: an author's code may fail in any way."""
    try:
        yield
    except BrokenContractError:
        raise
    except Exception as error:
        raise BrokenContractError(fault, described(error), advice, section) from error


def state_breaks(example: str) -> BrokenContractError:
    """Return the error for a state that is wrong after rows have left the batch."""
    return BrokenContractError(
        "the rule's state breaks when rows leave the batch",
        example,
        "What a rule remembers must lie in `state`, as tensors with the rows first, and not on the rule itself: the "
        "engine drops the part of the rows that leave",
        STATE_SECTION,
    )


def looks_at_neighbours(row: str, alone: object, together: object, knob: float, where: str) -> BrokenContractError:
    """Return the error for a row whose exit layer depends on other rows; ``alone`` and ``together`` are layers."""
    return BrokenContractError(
        "the rule looks at its batch neighbours",
        f"{row} exits at layer {alone} alone but at layer {together} {where} (knob {knob:g})",
        "Decide each row from that row alone: reduce over the last dimension, not the first, and leave padding out",
    )
