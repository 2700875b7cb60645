"""check-method: train a method on tiny models of every family and run all checks on it."""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from rich.progress import track

from baselines.hashee import HashEE
from benchmarks.testing.cases import AnyCase, InstanceCase, TokenCase
from benchmarks.testing.checks import CHECKS, TOKEN_CHECKS
from benchmarks.testing.report import Finding, Report
from benchmarks.testing.tiny import DECODER_FAMILIES, FAMILIES, TOKEN_EXIT_FAMILIES, TinyDecoders, TinyModels
from consistentee.errors import unknown_name
from consistentee.methods.method import AnyMethod
from consistentee.methods.token_methods import TokenMethod

GUIDE = "docs/add_a_method.md"


def families_of(method: AnyMethod) -> list[str]:
    """Return the families of backbones that a method is checked on."""
    if isinstance(method, TokenMethod):
        return DECODER_FAMILIES
    return TOKEN_EXIT_FAMILIES if isinstance(method, HashEE) else FAMILIES


def trained(method: AnyMethod, family: str, folder: Path) -> AnyCase:
    """Train a method on a tiny model, whose backbone lies in a folder. Raises BrokenContractError if that fails."""
    if isinstance(method, TokenMethod):
        return TokenCase.train(method, family, TinyDecoders(folder))
    return InstanceCase.train(method, family, TinyModels(folder))


def check_method(
    name: str, method: AnyMethod, families: Sequence[str] | None = None, *, progress: bool = False
) -> Report:
    """Train a method on a tiny model of every family and run every check on it.

    ``name`` is what the user typed; ``families`` are of encoders, or of decoders for a method of generation, by default
    all. Raises UserError for an unknown family.
    """
    checks, known = TOKEN_CHECKS if isinstance(method, TokenMethod) else CHECKS, families_of(method)
    families = list(families or known)
    for family in families:
        if family not in known:
            raise unknown_name("family", family, known)
    torch.set_num_threads(1)  # tiny models are slower with more
    trains, *findings = [Finding(title) for title in ("it trains", *(check.title for check in checks))]
    with tempfile.TemporaryDirectory() as folder:
        for family in track(families, description="checking", disable=not progress, transient=True):
            case = trains.run(partial(trained, method, family, Path(folder)))
            for check, finding in zip(checks, findings, strict=True):
                if check.live and method.replay_only:
                    finding.found = "the rule reads the labels: it is only ever replayed"
                elif case and (check.every_family or family == families[0]):
                    finding.run(partial(check.run, case))
    for finding in [trains, *findings]:
        if finding.runs:
            finding.found = f"{finding.runs - len(finding.faults)} of {finding.runs} families"
    heading, broken = f"on tiny models: {', '.join(families)}", "the contract is broken"
    return Report(name, heading, [trains, *findings], "all checks pass", broken, GUIDE)
