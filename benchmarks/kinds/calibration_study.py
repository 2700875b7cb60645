"""Is the promise of calibrated thresholds kept? Texts at every threshold, and many random splits of the prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from benchmarks.kinds.prompt_decoder import PromptDecoder, Prompts
from benchmarks.specs.generation import StudySpec
from benchmarks.store.generation_records import CalibrationRecord, CalibrationResult
from consistentee.data.prompts import PromptSplit
from consistentee.errors import UserError
from consistentee.methods.calibration import LAMBDAS, risk_losses, split_study, textual_losses
from consistentee.methods.token_methods import TokenMethod


@dataclass(frozen=True)
class Study:
    """Result of a study.

    Attributes:
        record: its summary.
        losses: one line a prompt and threshold: ``row``, ``lambda``, ``textual``, ``risk``, ``average_layers``.
    """

    record: CalibrationRecord
    losses: pd.DataFrame


def pooled(*prompts: Prompts) -> Prompts:
    """Return the prompts of several splits as one."""
    return Prompts(
        PromptSplit(
            "pool",
            [prompt for part in prompts for prompt in part.texts],
            [reference for part in prompts for reference in part.references],
        ),
        [cut for part in prompts for cut in part.truncated],
    )


def check_calibrates(method: TokenMethod) -> None:
    """Raise UserError for a method whose knob is not CALM's lambda."""
    if method.knob.name != "lambda":
        raise UserError(f"{method.name} cannot be calibrated: its knob is {method.knob.name!r}, not CALM's lambda")


def study_calibration(decoder: PromptDecoder, prompts: Prompts, spec: StudySpec) -> Study:
    """Decode all prompts at every threshold, and choose thresholds on many random halves of them.

    Raises UserError for a method whose knob is not CALM's lambda.
    """
    check_calibrates(decoder.method)
    full, parts = decoder.full(prompts), []
    for threshold in LAMBDAS:
        written = decoder.at(threshold, prompts)
        columns = {
            "row": np.arange(len(prompts)),
            "lambda": threshold,
            "textual": textual_losses(written.texts, full.texts),
            "risk": risk_losses(written.texts, full.texts, prompts.references),
            # Of the decoded tokens of a text; NaN if it has none.
            "average_layers": [float(exits[1:].double().mean()) for exits in written.exit_layers],
        }
        parts.append(pd.DataFrame(columns))
    losses = pd.concat(parts).sort_values("row", kind="stable", ignore_index=True)
    means = losses.groupby("lambda", sort=False).mean()
    wanted: tuple[tuple[Literal["textual", "risk"], Sequence[float]], ...]
    wanted = (("textual", spec.textual), ("risk", spec.risk))
    record = CalibrationRecord(
        prompts=len(prompts),
        lambdas=list(LAMBDAS),
        average_layers=means["average_layers"].tolist(),
        mean_textual=means["textual"].tolist(),
        mean_risk=means["risk"].tolist(),
        results=[_result(losses, loss, delta, spec) for loss, deltas in wanted for delta in deltas],
    )
    return Study(record, losses)


def _result(losses: pd.DataFrame, loss: Literal["textual", "risk"], delta: float, spec: StudySpec) -> CalibrationResult:
    by_threshold = losses.pivot(index="row", columns="lambda", values=[loss, "average_layers"])
    found = split_study(by_threshold[loss][list(LAMBDAS)].to_numpy(), delta, spec.epsilon, spec.splits)
    layers = by_threshold["average_layers"][list(LAMBDAS)].mean().to_numpy()
    return CalibrationResult(
        loss=loss,
        delta=delta,
        epsilon=spec.epsilon,
        splits=spec.splits,
        broken_share=found.share,
        sampling_error=found.sampling_error,
        mean_lambda=float(np.asarray(LAMBDAS)[found.chosen].mean()),
        mean_layers=float(layers[found.chosen].mean()),
        mean_risk=float(found.risks.mean()),
    )
