"""Is the promise of calibrated thresholds kept? Texts at every threshold, and many random splits of the prompts."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.kinds.prompt_decoder import PromptDecoder, Prompts
from benchmarks.specs.generation import StudySpec
from benchmarks.store.generation_records import CalibrationRecord, CalibrationResult
from consistentee.data.prompts import PromptSplit
from consistentee.errors import UserError
from consistentee.methods.calibration import LAMBDAS, risk_losses, split_study, textual_losses
from consistentee.methods.method import TokenMethod


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
    full = decoder.full(prompts)
    textual, risk, layers = [], [], []
    for threshold in LAMBDAS:
        written = decoder.at(threshold, prompts)
        textual.append(textual_losses(written.texts, full.texts))
        risk.append(risk_losses(written.texts, full.texts, prompts.references))
        layers.append([_mean_layer(exits) for exits in written.exit_layers])
    by_name = {"textual": np.stack(textual, axis=1), "risk": np.stack(risk, axis=1)}
    average_layers = np.nanmean(np.array(layers), axis=1)
    record = CalibrationRecord(
        prompts=len(prompts),
        lambdas=list(LAMBDAS),
        average_layers=average_layers.tolist(),
        mean_textual=by_name["textual"].mean(axis=0).tolist(),
        mean_risk=by_name["risk"].mean(axis=0).tolist(),
        results=[
            *(_result("textual", by_name["textual"], delta, average_layers, spec) for delta in spec.textual),
            *(_result("risk", by_name["risk"], delta, average_layers, spec) for delta in spec.risk),
        ],
    )
    return Study(record, _long_table(by_name, np.array(layers)))


def _mean_layer(exit_layers: Tensor) -> float:
    """Return the mean over the decoded tokens of one text; NaN if it has none."""
    return float(exit_layers[1:].double().mean())


def _result(
    loss: Literal["textual", "risk"],
    losses: NDArray[np.float64],
    delta: float,
    average_layers: NDArray[np.float64],
    spec: StudySpec,
) -> CalibrationResult:
    found = split_study(losses, delta, spec.epsilon, spec.splits)
    return CalibrationResult(
        loss=loss,
        delta=delta,
        epsilon=spec.epsilon,
        splits=spec.splits,
        broken_share=found.share,
        sampling_error=found.sampling_error,
        mean_lambda=float(np.asarray(LAMBDAS)[found.chosen].mean()),
        mean_layers=float(average_layers[found.chosen].mean()),
        mean_risk=float(found.risks.mean()),
    )


def _long_table(by_name: dict[str, NDArray[np.float64]], layers: NDArray[np.float64]) -> pd.DataFrame:
    prompts, thresholds = by_name["textual"].shape
    return pd.DataFrame(
        {
            "row": np.repeat(np.arange(prompts), thresholds),
            "lambda": np.tile(np.asarray(LAMBDAS), prompts),
            **{name: losses.ravel() for name, losses in by_name.items()},
            "average_layers": layers.T.ravel(),
        }
    )
