"""Findings of checks, and the table that shows them with every fault once."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from benchmarks.terminal import add_columns, add_row, plain_table
from benchmarks.testing.faults import BrokenContractError, described

if TYPE_CHECKING:
    from rich.console import Group


@dataclass
class Finding:
    """The outcome of one check.

    Attributes:
        title: what must hold.
        found: what was found, in a few words.
        runs: how often the check was run.
        faults: of the runs that failed.
    """

    title: str
    found: str = ""
    runs: int = 0
    seconds: float = 0.0
    faults: list[BrokenContractError] = field(default_factory=list)

    @property
    def verdict(self) -> Literal["pass", "fail", "not run"]:
        """Return "fail" if any run failed."""
        if self.faults:
            return "fail"
        return "pass" if self.runs else "not run"

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record the time of a run of the check, and its failure, whatever it raises."""
        start = time.perf_counter()
        try:
            yield
        except BrokenContractError as error:
            self.faults.append(error)
        except Exception as error:  # a user's method or model may fail in any way
            self.faults.append(BrokenContractError("the check cannot be finished", described(error)))
        self.runs += 1
        self.seconds += time.perf_counter() - start


@dataclass(frozen=True)
class Report:
    """The findings of all checks on a subject: a method, or a backbone.

    Attributes:
        heading: what was checked, and on what.
        guide: the page that explains faults, or an empty text.
        holds, broken: the last line if nothing failed, and if something did.
    """

    subject: str
    heading: str
    findings: Sequence[Finding]
    holds: str
    broken: str
    guide: str = ""

    @property
    def passed(self) -> bool:
        """Return whether nothing failed."""
        return all(finding.verdict != "fail" for finding in self.findings)

    def fault_lines(self) -> list[str]:
        """Return every fault once, as it showed first, with the checks that found it and where to look."""
        found: dict[str, list[tuple[str, BrokenContractError]]] = {}
        for finding in self.findings:
            for fault in finding.faults:
                found.setdefault(fault.fault, []).append((finding.title, fault))
        lines = []
        for faults in found.values():
            titles = ", ".join(dict.fromkeys(title for title, _ in faults))
            look = f' See "{faults[0][1].section}" in {self.guide}.' if self.guide else ""
            lines.append(f"{faults[0][1]}.\n  Found by: {titles}.{look}\n")
        return lines

    def table(self) -> "Group":
        """Return the table of checks, and every fault under it."""
        from rich.console import Group
        from rich.text import Text

        table = plain_table(f"{self.subject} {self.heading}")
        add_columns(table, "check", "result")
        add_columns(table, "seconds", numbers=True)
        add_columns(table, "found")
        for finding in self.findings:
            add_row(table, finding.title, finding.verdict, f"{finding.seconds:.1f}", finding.found)
        seconds = sum(finding.seconds for finding in self.findings)
        last = f"{self.subject}: {self.holds if self.passed else self.broken} ({seconds:.0f} s)"
        return Group(table, *(Text(line, style="red") for line in self.fault_lines()), Text(last))
