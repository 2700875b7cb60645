"""What is kept of an evaluated classifier: points checked live, and a line a row."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.analysis.statistics import score_interval
from benchmarks.kinds.instance_curves import Curve, Evaluation
from benchmarks.measure.flops import FlopModel
from benchmarks.measure.signals import signal_quantiles
from benchmarks.specs.base import CellSpec
from benchmarks.store.records import HullPoint, OperatingPoint
from consistentee.engine.classify import classify_encoded
from consistentee.traces.instance_trace import Trace

_LIVE_BATCH_SIZE = 32
_SAME_VALUE = 1e-4  # two numeric answers that differ by less are the same answer, summed in another order


def hull_point(done: Evaluation, flops: FlopModel, index: int) -> HullPoint:
    """Return what is kept of a knob on the hull: its operations."""
    return HullPoint(
        place=index,
        validation_flops=_flops(done, flops, index, done.validation_trace, done.validation),
        flops=_flops(done, flops, index, done.test_trace, done.test),
    )


def _flops(done: Evaluation, flops: FlopModel, index: int, trace: Trace, curve: Curve) -> float:
    """Return the operations of all rows of a split at a knob; a rule that cannot run live costs nothing."""
    rule = None if done.method.replay_only else done.rules[index]
    exits = curve.exits[index].numpy()
    return float(flops.row_flops(trace.lengths.numpy(), exits, rule, trace.live_tokens).sum())


def operating_point(spec: CellSpec, done: Evaluation, flops: FlopModel, index: int) -> OperatingPoint:
    """Return what is kept of a chosen knob, which is run live where its rule can be."""
    trace, exits = done.test_trace, done.test.exits[index]
    live = not done.method.replay_only
    interval = score_interval(
        done.task.metric,
        trace.labels.numpy(),
        trace.predictions(exits).numpy(),
        resamples=spec.bootstrap_resamples,
        seed=spec.seed,
    )
    return OperatingPoint(
        knob=done.knobs[index],
        targets=done.chosen[index],
        validation=done.validation.points[index],
        test=done.test.points[index],
        score_interval=interval,
        flops=_flops(done, flops, index, trace, done.test),
        live_rows=len(done.task.test) if live else 0,
        live_disagreements=_live_disagreements(done, index) if live else 0,
        signal_quantiles=signal_quantiles(done.rules[index], trace) if live else [],
    )


def _live_disagreements(done: Evaluation, index: int) -> int:
    """Classify the test rows for real, and count those whose exit layer or answer is not the replay's."""
    exits, rows = done.test.exits[index], done.test_trace.encodings
    live = classify_encoded(done.model, rows, done.rules[index], batch_size=_LIVE_BATCH_SIZE, sort_by_length=True)
    differs = (live.exit_layers != exits).numpy()
    differs |= ~same_answers(live.predictions.numpy(), done.test_trace.predictions(exits).numpy())
    return int(differs.sum())


def same_answers(first: NDArray, second: NDArray) -> NDArray[np.bool_]:
    """Compare answers row by row: classes must be equal, values of a regression nearly so."""
    if np.issubdtype(first.dtype, np.integer):
        return first == second
    return np.isclose(first, second, rtol=_SAME_VALUE, atol=_SAME_VALUE)


def prediction_table(trace: Trace, chosen_exits: Sequence[Tensor], hull_exits: Mapping[int, Tensor]) -> pd.DataFrame:
    """Return what :func:`benchmarks.store.folders.read_predictions` describes: no text, one line a test row."""
    full_depth = torch.full((len(trace),), trace.num_layers)
    columns = {
        "row": np.arange(len(trace)),
        "label": trace.labels.numpy(),
        "full_prediction": trace.predictions(full_depth).numpy(),
    }
    for layer in range(1, trace.num_layers + 1):
        columns[f"layer_prediction_{layer}"] = trace.view(layer).predictions.numpy()
    for number, exits in enumerate(chosen_exits):
        columns[f"prediction_{number}"] = trace.predictions(exits).numpy()
        columns[f"exit_layer_{number}"] = exits.numpy()
    for number, exits in hull_exits.items():
        columns[f"hull_exit_layer_{number}"] = exits.numpy()
    return pd.DataFrame(columns)


def validation_table(trace: Trace, hull_exits: Sequence[Tensor]) -> pd.DataFrame:
    """Return what :func:`benchmarks.store.folders.read_validation` describes."""
    columns = {"row": np.arange(len(trace)), "label": trace.labels.numpy()}
    for number, exits in enumerate(hull_exits):
        columns[f"hull_prediction_{number}"] = trace.predictions(exits).numpy()
    return pd.DataFrame(columns)
