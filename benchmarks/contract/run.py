"""Run all checks over one method, of classification or of generation, family by family, and say what came of them."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from rich.progress import track

from benchmarks.contract.base_checks import Check
from benchmarks.contract.case import train_case
from benchmarks.contract.checks import CHECKS
from benchmarks.contract.faults import BrokenContractError, described
from benchmarks.contract.tiny.decoders import DECODER_FAMILIES, TinyDecoders
from benchmarks.contract.tiny.encoders import FAMILIES, TinyModels
from benchmarks.contract.token_case import train_token_case
from benchmarks.contract.token_checks import TOKEN_CHECKS
from benchmarks.terminal import add_columns, add_row, plain_table
from consistentee.errors import unknown_name
from consistentee.methods.method import AnyMethod
from consistentee.methods.token_method import TokenMethod

if TYPE_CHECKING:
    from rich.console import Group

GUIDE = "docs/add_a_method.md"
Verdict = Literal["pass", "fail", "not run"]


@dataclass(frozen=True)
class Contract:
    """What holds for the methods of one group, and what they are tried on.

    Attributes:
        families: of the backbones.
        models: folder -> the tiny models of every family.
        train: (method, family, models) -> the case that the checks are given.
        checks: in the order in which they are told.
    """

    families: Sequence[str]
    models: Callable[[Path], Any]
    train: Callable[[Any, str, Any], Any]
    checks: Sequence[Check]


CLASSIFICATION = Contract(FAMILIES, TinyModels, train_case, CHECKS)
GENERATION = Contract(DECODER_FAMILIES, TinyDecoders, train_token_case, TOKEN_CHECKS)


def contract_of(method: AnyMethod) -> Contract:
    """Return the contract that a method is under."""
    return GENERATION if isinstance(method, TokenMethod) else CLASSIFICATION


@dataclass
class Outcome:
    """What came of one check over the families: where it passed, and what it found elsewhere."""

    title: str
    seconds: float = 0.0
    passed: list[str] = field(default_factory=list)
    findings: dict[str, BrokenContractError] = field(default_factory=dict)
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """Whether it failed anywhere, passed, or was never run."""
        if self.findings:
            return "fail"
        return "pass" if self.passed else "not run"

    def add(self, family: str, finding: BrokenContractError | None, seconds: float) -> None:
        """Note the outcome on one family; ``finding`` is None where the check passed."""
        self.seconds += seconds
        if finding is None:
            self.passed.append(family)
        else:
            self.findings[family] = finding


@dataclass(frozen=True)
class MethodReport:
    """What came of all checks of one method."""

    name: str
    families: Sequence[str]
    outcomes: list[Outcome]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(outcome.verdict != "fail" for outcome in self.outcomes)


def check_method(
    name: str, method: AnyMethod, families: Sequence[str] | None = None, *, progress: bool = False
) -> MethodReport:
    """Train a method on a tiny model of every family and put it under every check.

    Args:
        name: as the user typed it.
        method: the method.
        families: of encoders, or of decoders for a method of generation; all by default.
        progress: show a progress bar.

    Raises:
        UserError: for an unknown family.
    """
    contract = contract_of(method)
    families = list(families or contract.families)
    for family in families:
        if family not in contract.families:
            raise unknown_name("family", family, contract.families)
    torch.set_num_threads(1)  # tiny models are slower with more
    trains = Outcome("it trains")
    outcomes = {check.title: Outcome(check.title) for check in contract.checks}
    with tempfile.TemporaryDirectory() as folder:
        models = contract.models(Path(folder))
        for family in track(families, description="checking", disable=not progress, transient=True):
            case = _train(contract, method, family, models, trains)
            if case is not None:
                for check in contract.checks:
                    _run(check, case, outcomes[check.title], first=family == families[0])
    return MethodReport(name, families, [trains, *outcomes.values()])


def _train(contract: Contract, method: AnyMethod, family: str, models: Any, outcome: Outcome) -> Any | None:
    start = time.perf_counter()
    try:
        case = contract.train(method, family, models)
    except BrokenContractError as error:
        outcome.add(family, error, time.perf_counter() - start)
        return None
    outcome.add(family, None, time.perf_counter() - start)
    return case


def _run(check: Check, case: Any, outcome: Outcome, first: bool) -> None:
    if check.live and case.method.replay_only:
        outcome.note = "the rule reads the labels: it is only ever replayed"
        return
    if not (check.every_family or first):
        return
    start = time.perf_counter()
    finding = None
    try:
        check.run(case)
    except BrokenContractError as error:
        finding = error
    except Exception as error:  # a user's method may fail in any way at all
        finding = BrokenContractError("the check cannot be finished", described(error))
    outcome.add(case.family, finding, time.perf_counter() - start)


def report_table(report: MethodReport) -> "Group":
    """Return the table of checks, and under it every fault once, with where to look."""
    from rich.console import Group
    from rich.text import Text

    table = plain_table(f"{report.name} on tiny models: {', '.join(report.families)}")
    add_columns(table, "check", "result")
    add_columns(table, "families", "seconds", numbers=True)
    add_columns(table, "note")
    for outcome in report.outcomes:
        tried = len(outcome.findings) + len(outcome.passed)
        share = f"{len(outcome.passed)} of {tried}" if tried else ""
        add_row(table, outcome.title, outcome.verdict, share, f"{outcome.seconds:.1f}", outcome.note)
    total = sum(outcome.seconds for outcome in report.outcomes)
    verdict = "all checks pass" if report.passed else "the contract is broken"
    return Group(table, *map(Text, fault_lines(report)), Text(f"{report.name}: {verdict} ({total:.0f} s)"))


def fault_lines(report: MethodReport) -> list[str]:
    """Say every fault once: how it showed first, which checks found it, and where to look."""
    found: dict[str, list[tuple[str, BrokenContractError]]] = {}
    for outcome in report.outcomes:
        for finding in outcome.findings.values():
            found.setdefault(finding.fault, []).append((outcome.title, finding))
    lines = []
    for findings in found.values():
        titles, finding = ", ".join(dict.fromkeys(title for title, _ in findings)), findings[0][1]
        lines.append(f'{finding}.\n  Found by: {titles}. See "{finding.section}" in {GUIDE}.\n')
    return lines
