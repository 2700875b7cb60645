"""Risk control: the knob of any method, chosen so that early exits cost no more than is tolerated.

Source: Jazbec et al., Fast yet Safe: Early-Exiting with Risk Control, NeurIPS 2024, arXiv 2405.20915. Unlike the
released code, the knob returned is the last one that passes, never the first that fails; and where none passes, the
most cautious one, at which every row runs to full depth.

Bounds: Angelopoulos et al., Conformal Risk Control, ICLR 2024, arXiv 2208.02814 (section 2, and 4.3 for losses that are
not monotone); Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, 2023, arXiv 2010.09686;
Angelopoulos et al., Learn then Test, 2021, arXiv 2110.01052. All take losses [rows, knobs], the knobs from the most
cautious one on. Rows must be drawn as the later ones are, and unused before.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from consistentee.arguments import Fraction, checked
from consistentee.errors import UserError, unknown_name
from consistentee.methods.calibration import (
    Losses,
    binomial,
    check_shares,
    checked_losses,
    hoeffding_bentkus,
    learn_then_test,
)
from consistentee.methods.method import Method
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.traces.instance_trace import Trace
from consistentee.traces.walk import sweep

RiskBound = Callable[[ArrayLike, float, float, float], int]
"""(losses, tolerated risk, delta, the highest loss there can be) -> index of a knob, or -1."""


def conformal(losses: ArrayLike, risk: float, delta: float, highest: float) -> int:
    """Conformal risk control (CRC): the *expected* risk, over draws of the calibration rows too, is at most ``risk``.

    ``delta`` plays no part. A row's loss counts as the largest one at any more cautious knob: the proof needs losses
    that only grow.
    """
    table = _checked(losses, risk, delta, highest)
    worst = np.maximum.accumulate(table, axis=1).mean(axis=0)
    rows = len(table)
    return _unbroken(worst <= ((rows + 1) * risk - highest) / rows)


def upper_confidence(losses: ArrayLike, risk: float, delta: float, highest: float) -> int:
    """UCB with the bound of Waudby-Smith and Ramdas: with probability ``1 - delta`` the risk is at most ``risk``.

    The bound is below ``risk`` exactly where the wealth of a bet against "the mean is ``risk`` or more" has at some
    time reached ``1 / delta``, so that no bound has to be solved for. Losses may be negative: a factor of the wealth
    needs only ``loss - risk < highest`` to stay positive. Going on only while every more cautious knob has passed makes
    the promise hold for all of them at once.
    """
    table = _checked(losses, risk, delta, highest)
    rows, knobs = table.shape
    time = np.arange(1, rows + 1)[:, None]
    mean = (0.5 + table.cumsum(axis=0)) / (time + 1)
    variance = (0.25 + ((table - mean) ** 2).cumsum(axis=0)) / (time + 1)
    variance_before = np.vstack([np.full((1, knobs), 0.25), variance[:-1]])  # a bet must not see its own row
    stake = np.minimum(1 / highest, np.sqrt(2 * math.log(1 / delta) / (rows * variance_before)))
    log_wealth = np.log1p(-stake * (table - risk)).cumsum(axis=0)
    return _unbroken(log_wealth.max(axis=0) >= math.log(1 / delta))


def tested(losses: ArrayLike, risk: float, delta: float, highest: float) -> int:
    """Learn then Test (LTT): with probability ``1 - delta`` the risk is at most ``risk``.

    Gains count as no loss, since its p-values need losses that are not negative. Losses of 0 and 1 alone are tested by
    the binomial distribution, which is exact; others by :func:`hoeffding_bentkus`.
    """
    scaled = np.clip(_checked(losses, risk, delta, highest), 0.0, None) / highest
    p_value = binomial if np.isin(scaled, (0.0, 1.0)).all() else hoeffding_bentkus
    return learn_then_test(scaled, delta=risk / highest, epsilon=delta, p_value=p_value)


def _checked(losses: ArrayLike, risk: float, delta: float, highest: float) -> Losses:
    check_shares(risk=risk, delta=delta)
    return checked_losses(losses, high=highest)


def _unbroken(allowed: NDArray[np.bool_]) -> int:
    """Return the index of the last True before the first False, or -1."""
    return int(np.cumprod(allowed).sum()) - 1


BOUNDS: dict[str, RiskBound] = {"crc": conformal, "ucb": upper_confidence, "ltt": tested}
"""By the names that the field has for them."""


_SAME = 1e-9  # sums of squares of the same numbers differ by rounding


class RiskLoss(NamedTuple):
    """The loss of a row's early answer against the answer at full depth, and the highest loss there can be.

    ``of``: (probabilities at the exit, those at full depth, labels) -> losses: [rows, classes] twice, [rows] -> [rows].
    """

    of: Callable[[Tensor, Tensor, Tensor], Tensor]
    highest: float


def _wrong(probs: Tensor, labels: Tensor) -> Tensor:
    return (probs.argmax(dim=-1) != labels).double()


def _brier(probs: Tensor, targets: Tensor) -> Tensor:
    """Return the squared distances of probabilities from others, or from classes, in 0..2."""
    targets = targets if targets.ndim == probs.ndim else torch.nn.functional.one_hot(targets, probs.shape[-1])
    return (probs - targets).square().sum(dim=-1)


RISK_LOSSES = {
    "gap": RiskLoss(lambda probs, full, labels: _wrong(probs, labels) - _wrong(full, labels), 1.0),
    "consistency": RiskLoss(lambda probs, full, _: _wrong(probs, full.argmax(dim=-1)), 1.0),
    "brier-gap": RiskLoss(lambda probs, full, labels: _brier(probs, labels) - _brier(full, labels), 2.0),
    "brier-consistency": RiskLoss(lambda probs, full, _: _brier(probs, full), 2.0),
}
"""Losses against the full model: points lost or won, answers changed; and the same of probabilities."""


def check_names(bound: str = "ucb", loss: str = "gap") -> None:
    """Raise UserError for an unknown bound or loss."""
    if bound not in BOUNDS:
        raise unknown_name("bound", bound, BOUNDS)
    if loss not in RISK_LOSSES:
        raise unknown_name("loss", loss, RISK_LOSSES)


@dataclass(frozen=True)
class KnobRisks:
    """A method replayed over its whole knob, from the most cautious value on, at which every row runs to full depth.

    ``losses`` are [rows, knobs] and ``layers``, the average exit layers, [knobs]; ``highest`` is the highest loss there
    can be.
    """

    knobs: tuple[float, ...]
    losses: NDArray[np.float64]
    layers: NDArray[np.float64]
    highest: float


@dataclass(frozen=True)
class ControlledKnob:
    """The knob that risk control chose, for ``method.rule``, and what it costs on the calibration rows.

    ``proven``: whether the promise is proven of this knob; else it is the most cautious one, full depth, which loses
    nothing whatever the rows.
    """

    knob: float
    proven: bool
    mean_loss: float
    average_layers: float
    rows: int


def knob_risks(method: Method, model: MultiExitModel, trace: Trace, loss: str = "gap") -> KnobRisks:
    """Replay all knobs of a method on a trace, and compare every answer with that at full depth.

    Raises UserError for an unknown loss, a regression, and where the most cautious knob lets rows leave early.
    """
    check_names(loss=loss)
    if trace.logits.shape[-1] == 1:
        raise UserError("risk control compares classes and their probabilities, which a regression does not have")
    knobs = tuple(float(knob) for knob in reversed(method.knob_values(model)))
    exits = sweep([method.rule(model, knob) for knob in knobs], trace)
    if not bool((exits[0] == trace.num_layers).all()):
        raise UserError(f"{method.name}: rows leave early at its most cautious knob, {knobs[0]:g}: nothing is safe")
    full = trace.logits[:, -1].double().softmax(dim=-1)
    of, highest = RISK_LOSSES[loss].of, RISK_LOSSES[loss].highest
    losses = [of(trace.logits_at(layers).double().softmax(dim=-1), full, trace.labels) for layers in exits]
    table = torch.stack(losses, dim=1).numpy()
    return KnobRisks(knobs, np.where(abs(table) < _SAME, 0.0, table), exits.double().mean(dim=1).numpy(), highest)


@checked
def control_risk(
    method: Method,
    model: MultiExitModel,
    trace: Trace,
    risk: Fraction,
    *,
    delta: Fraction = 0.1,
    bound: str = "ucb",
    loss: str = "gap",
) -> ControlledKnob:
    """Return the most permissive knob of a trained method whose risk is proven to be at most ``risk``.

    The promise is about rows drawn as those of ``trace`` are. It is worth what these are: neither the model, nor its
    method, nor a recipe may have been chosen on them.

    Args:
        method, model: see :func:`knob_risks`.
        trace: of the calibration rows; hundreds are needed: with a loss of nothing at all, 1 % takes 230 (``ltt``).
        risk: the mean loss that is tolerated.
        delta: the chance of a broken promise that is tolerated; ``crc`` promises a mean over such chances instead.
        bound: ``crc``, ``ucb`` or ``ltt``, see :data:`BOUNDS`.
        loss: ``gap``, points lost on the full model; ``consistency``, answers changed, for rows without true labels;
            ``brier-gap`` and ``brier-consistency``, the same of probabilities.

    Raises:
        UserError: as :func:`knob_risks` does, and for an unknown bound, or a risk or delta outside of 0..1.
    """
    check_names(bound, loss)
    replayed = knob_risks(method, model, trace, loss)
    found = BOUNDS[bound](replayed.losses, risk, delta, replayed.highest)
    index = max(found, 0)
    return ControlledKnob(
        knob=replayed.knobs[index],
        proven=found >= 0,
        mean_loss=float(replayed.losses[:, index].mean()),
        average_layers=float(replayed.layers[index]),
        rows=len(trace),
    )
