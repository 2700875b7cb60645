"""Findings of checks: what is broken, how it showed, what to do about it; and the table that shows each fault once."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import torch
from rich.console import Group
from rich.text import Text

import consistentee
from benchmarks.terminal import filled_table
from consistentee.errors import UserError

ResultT = TypeVar("ResultT")

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


def state_breaks(example: str) -> BrokenContractError:
    """Return the error for a state that is wrong after rows have left the batch."""
    return BrokenContractError(
        "the rule's state breaks when rows leave the batch",
        example,
        "What a rule remembers must lie in `state`, as tensors with the rows first, and not on the rule itself: the "
        "engine drops the part of the rows that leave",
        STATE_SECTION,
    )


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


@dataclass
class Finding:
    """The outcome of one check: ``title`` must hold, ``found`` is what it found, in a few words."""

    title: str
    found: str = ""
    runs: int = 0
    faults: list[BrokenContractError] = field(default_factory=list)

    @property
    def verdict(self) -> Literal["pass", "fail", "not run"]:
        if self.faults:
            return "fail"
        return "pass" if self.runs else "not run"

    def run(self, check: Callable[[], ResultT]) -> ResultT | None:
        """Run the check and return its result; record its failure, whatever it raises, and return None."""
        self.runs += 1
        try:
            with any_error_is("the check cannot be finished"):
                return check()
        except BrokenContractError as error:
            self.faults.append(error)
            return None


@dataclass(frozen=True)
class Report:
    """The findings of all checks on a subject: a method, or a backbone.

    The last line says ``holds`` if nothing failed, else ``broken``; ``guide`` is the page that explains faults.
    """

    subject: str
    heading: str
    findings: Sequence[Finding]
    holds: str
    broken: str
    guide: str = ""

    @property
    def passed(self) -> bool:
        return all(finding.verdict != "fail" for finding in self.findings)

    def fault_lines(self) -> list[str]:
        """Return every fault once, as it showed first, with the checks that found it and where to look."""
        first: dict[str, BrokenContractError] = {}
        titles: dict[str, list[str]] = {}
        for finding in self.findings:
            for fault in finding.faults:
                first.setdefault(fault.fault, fault)
                titles.setdefault(fault.fault, []).append(finding.title)
        return [
            f"{error}.\n  Found by: {', '.join(dict.fromkeys(titles[fault]))}."
            + (f' See "{error.section}" in {self.guide}.\n' if self.guide else "\n")
            for fault, error in first.items()
        ]

    def table(self) -> Group:
        rows = [(one.title, one.verdict, one.found) for one in self.findings]
        table = filled_table(["check", "result", "found"], [], rows, f"{self.subject} {self.heading}")
        last = f"{self.subject}: {self.holds if self.passed else self.broken}"
        return Group(table, *(Text(line, style="red") for line in self.fault_lines()), Text(last))
