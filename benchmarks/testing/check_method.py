"""check-method: train a method on tiny models of every family and run all checks on it."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from benchmarks.testing.cases import train_case, train_token_case
from benchmarks.testing.checks import CHECKS, TOKEN_CHECKS, Check
from benchmarks.testing.decoders import DECODER_FAMILIES, TinyDecoders
from benchmarks.testing.encoders import FAMILIES, TinyModels
from benchmarks.testing.report import Finding, Report
from consistentee.errors import unknown_name
from consistentee.methods.method import AnyMethod
from consistentee.methods.token_methods import TokenMethod

GUIDE = "docs/add_a_method.md"


@dataclass(frozen=True)
class Contract:
    """The checks of methods of one kind.

    Attributes:
        families: of the backbones.
        models: folder -> the tiny models of every family.
        train: (method, family, models) -> the case that the checks are run on.
        checks: in the order in which they are run.
    """

    families: Sequence[str]
    models: Callable[[Path], Any]
    train: Callable[[Any, str, Any], Any]
    checks: Sequence[Check]


CLASSIFICATION = Contract(FAMILIES, TinyModels, train_case, CHECKS)
GENERATION = Contract(DECODER_FAMILIES, TinyDecoders, train_token_case, TOKEN_CHECKS)


def contract_of(method: AnyMethod) -> Contract:
    """Return the contract of a method's kind."""
    return GENERATION if isinstance(method, TokenMethod) else CLASSIFICATION


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
    contract = contract_of(method)
    families = list(families or contract.families)
    for family in families:
        if family not in contract.families:
            raise unknown_name("family", family, contract.families)
    torch.set_num_threads(1)  # tiny models are slower with more
    trains, *findings = [Finding(title) for title in ("it trains", *(check.title for check in contract.checks))]
    with tempfile.TemporaryDirectory() as folder:
        models = contract.models(Path(folder))
        for family in track(families, description="checking", disable=not progress, transient=True):
            case = None
            with trains.recorded():
                case = contract.train(method, family, models)
            for check, finding in zip(contract.checks, findings, strict=True):
                if check.live and method.replay_only:
                    finding.found = "the rule reads the labels: it is only ever replayed"
                elif case is not None and (check.every_family or family == families[0]):
                    with finding.recorded():
                        check.run(case)
    for finding in [trains, *findings]:
        if finding.runs:
            finding.found = f"{finding.runs - len(finding.faults)} of {finding.runs} families"
    heading, broken = f"on tiny models: {', '.join(families)}", "the contract is broken"
    return Report(name, heading, [trains, *findings], "all checks pass", broken, GUIDE)
