"""check-backbone: put a backbone under the checks of its kind, and say what came of them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich.progress import track
from transformers import AutoConfig

from benchmarks.contract.backbones.candidate import EncoderCandidate
from benchmarks.contract.backbones.checks import ENCODER_CHECKS, BackboneCheck
from benchmarks.contract.faults import BrokenContractError, any_error_is, described
from benchmarks.terminal import add_columns, add_row, plain_table
from consistentee.backbones.catalog import resolve
from consistentee.backbones.encoders import STEPPERS

if TYPE_CHECKING:
    from rich.console import Group

_ARCHITECTURE = "the architecture is supported"


@dataclass(frozen=True)
class BackboneFinding:
    """What came of one check: what it found in a few words, or the fault."""

    title: str
    verdict: Literal["pass", "fail", "not run"]
    found: str
    seconds: float = 0.0


@dataclass(frozen=True)
class BackboneReport:
    """What came of all checks of one backbone."""

    name: str
    what: str
    findings: list[BackboneFinding]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(finding.verdict != "fail" for finding in self.findings)


def check_backbone(name: str, *, progress: bool = False) -> BackboneReport:
    """Put a pretrained model under the checks of its kind; what is not there yet is fetched.

    Args:
        name: a name of the catalogue, a directory, or a hub id.
        progress: show a progress bar.

    Raises:
        UserError: nothing of that name can be had.
    """
    found = resolve(name)
    try:
        config = _encoder_config(found.path)
    except BrokenContractError as error:
        return BackboneReport(name, found.path, [BackboneFinding(_ARCHITECTURE, "fail", str(error))])
    depth = f"{config.num_hidden_layers} layers of width {config.hidden_size}"
    supported = BackboneFinding(_ARCHITECTURE, "pass", f"{config.model_type}, {depth}")
    findings = run_checks(ENCODER_CHECKS, EncoderCandidate(name, found, config), progress=progress)
    return BackboneReport(name, found.path, [supported, *findings])


def _encoder_config(folder: str) -> Any:
    with any_error_is(f"{folder}/config.json cannot be read as a configuration"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type not in STEPPERS:
        known = ", ".join(sorted(STEPPERS))
        fault = f"{config.model_type!r} is no encoder that can be run layer by layer"
        raise BrokenContractError(fault, f"supported are {known}")
    return config


def run_checks(
    checks: Sequence[BackboneCheck], candidate: EncoderCandidate, *, progress: bool = False
) -> list[BackboneFinding]:
    """Run checks in their order; what depends on one that failed is not run."""
    findings: list[BackboneFinding] = []
    failed: set[str] = set()
    stopped_by = ""
    for check in track(checks, description="checking", disable=not progress, transient=True):
        missing = stopped_by or next((title for title in check.needs if title in failed), "")
        if missing:
            findings.append(BackboneFinding(check.title, "not run", f"it needs: {missing}"))
            continue
        findings.append(_run(check, candidate))
        if findings[-1].verdict == "fail":
            failed.add(check.title)
            stopped_by = check.title if check.essential else ""
    return findings


def _run(check: BackboneCheck, candidate: EncoderCandidate) -> BackboneFinding:
    start = time.perf_counter()
    try:
        found = check.run(candidate)
    except BrokenContractError as error:
        return BackboneFinding(check.title, "fail", str(error), time.perf_counter() - start)
    except Exception as error:  # a strange model may fail in any way at all
        fault = f"the check cannot be finished: {described(error)}"
        return BackboneFinding(check.title, "fail", fault, time.perf_counter() - start)
    return BackboneFinding(check.title, "pass", found, time.perf_counter() - start)


def report_table(report: BackboneReport) -> "Group":
    """Return the table of checks, and under it every fault."""
    from rich.console import Group
    from rich.text import Text

    table = plain_table(f"{report.name}: {report.what}")
    add_columns(table, "check", "result")
    add_columns(table, "seconds", numbers=True)
    add_columns(table, "found")
    faults = []
    for finding in report.findings:
        shown = "see below" if finding.verdict == "fail" else finding.found
        add_row(table, finding.title, finding.verdict, f"{finding.seconds:.1f}", shown)
        if finding.verdict == "fail":
            faults.append(Text(f"{finding.title}: {finding.found}.\n", style="red"))
    total = sum(finding.seconds for finding in report.findings)
    verdict = "methods can be compared on it" if report.passed else "methods cannot be compared on it"
    return Group(table, *faults, Text(f"{report.name}: {verdict} ({total:.0f} s)"))
