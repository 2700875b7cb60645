"""check-method: train a method on tiny models of every family and run all checks on it."""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from rich.progress import track

from benchmarks.testing.cases import AnyCase, InstanceCase, TokenCase
from benchmarks.testing.checks import CHECKS, TOKEN_CHECKS, Check
from benchmarks.testing.report import Finding, Report
from consistentee.errors import unknown_name
from consistentee.methods.method import AnyMethod, TokenMethod

GUIDE = "docs/add_a_method.md"


def case_type(method: AnyMethod) -> type[InstanceCase] | type[TokenCase]:
    """Return what the checks of a method are run on."""
    return TokenCase if isinstance(method, TokenMethod) else InstanceCase


def checks_of(method: AnyMethod) -> Sequence[Check]:
    """Return the checks of a method, in the order in which they are run."""
    return TOKEN_CHECKS if isinstance(method, TokenMethod) else CHECKS


def check_method(
    name: str, method: AnyMethod, families: Sequence[str] | None = None, *, progress: bool = False
) -> Report:
    """Train a method on a tiny model of every family and run every check on it.

    Args:
        name: as the user typed it.
        method: the method.
        families: of encoders, or of decoders for a method of generation; all by default.
        progress: show a progress bar.

    Raises:
        UserError: for an unknown family.
    """
    kind, checks = case_type(method), checks_of(method)
    families = list(families or kind.families)
    for family in families:
        if family not in kind.families:
            raise unknown_name("family", family, kind.families)
    torch.set_num_threads(1)  # tiny models are slower with more
    trains, *findings = [Finding(title) for title in ("it trains", *(check.title for check in checks))]
    cases: list[AnyCase] = []
    with tempfile.TemporaryDirectory() as folder:
        models = kind.tiny_models(Path(folder))
        for family in track(families, description="checking", disable=not progress, transient=True):
            cases.clear()
            trains.run(lambda family=family: cases.append(kind.train(method, family, models)))
            for check, finding in zip(checks, findings, strict=True):
                if check.live and method.replay_only:
                    finding.found = "the rule reads the labels: it is only ever replayed"
                elif cases and (check.every_family or family == families[0]):
                    finding.run(partial(check.run, cases[0]))
    for finding in [trains, *findings]:
        if finding.runs:
            finding.found = f"{finding.runs - len(finding.faults)} of {finding.runs} families"
    heading, broken = f"on tiny models: {', '.join(families)}", "the contract is broken"
    return Report(name, heading, [trains, *findings], "all checks pass", broken, GUIDE)
