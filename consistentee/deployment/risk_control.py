"""Risk control: the knob of any method, chosen so that early exits cost no more than is tolerated.

Source: Jazbec et al., Fast yet Safe: Early-Exiting with Risk Control, NeurIPS 2024, arXiv 2405.20915. Unlike the
released code, the knob returned is the last one that passes, never the first that fails; and where none passes, the
most cautious one, at which every row runs to full depth.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consistentee.arguments import Fraction, checked
from consistentee.deployment.risk_bounds import BOUNDS
from consistentee.errors import UserError, unknown_name
from consistentee.methods.method import Method
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.traces.instance_trace import Trace
from consistentee.traces.walk import sweep

_SAME = 1e-9  # sums of squares of the same numbers differ by rounding


@dataclass(frozen=True)
class RiskLoss:
    """The loss of a row's early answer against the answer at full depth.

    Attributes:
        of: (probabilities at the exit, those at full depth, labels) -> losses: [rows, classes] twice, [rows] -> [rows].
        highest: the highest loss there can be.
    """

    of: Callable[[Tensor, Tensor, Tensor], Tensor]
    highest: float


def performance_gap(probs: Tensor, full: Tensor, labels: Tensor) -> Tensor:
    """Return 1 where only the early answer is wrong, -1 where only the full model's is, else 0."""
    return (probs.argmax(dim=-1) != labels).double() - (full.argmax(dim=-1) != labels).double()


def inconsistency(probs: Tensor, full: Tensor, labels: Tensor) -> Tensor:
    """Return 1 where the early answer is not the full model's. The labels play no part."""
    return (probs.argmax(dim=-1) != full.argmax(dim=-1)).double()


def brier_gap(probs: Tensor, full: Tensor, labels: Tensor) -> Tensor:
    """Return by how much the early probabilities have the worse Brier score, in -2..2."""
    target = torch.nn.functional.one_hot(labels, probs.shape[-1])
    return (probs - target).square().sum(dim=-1) - (full - target).square().sum(dim=-1)


def brier_inconsistency(probs: Tensor, full: Tensor, labels: Tensor) -> Tensor:
    """Return the squared distance of the early probabilities from the full model's, in 0..2. Labels play no part."""
    return (probs - full).square().sum(dim=-1)


RISK_LOSSES = {
    "gap": RiskLoss(performance_gap, 1.0),
    "consistency": RiskLoss(inconsistency, 1.0),
    "brier-gap": RiskLoss(brier_gap, 2.0),
    "brier-consistency": RiskLoss(brier_inconsistency, 2.0),
}


def check_names(bound: str = "ucb", loss: str = "gap") -> None:
    """Raise UserError for an unknown bound or loss."""
    if bound not in BOUNDS:
        raise unknown_name("bound", bound, BOUNDS)
    if loss not in RISK_LOSSES:
        raise unknown_name("loss", loss, RISK_LOSSES)


@dataclass(frozen=True)
class KnobRisks:
    """A method replayed over its whole knob, from the most cautious value on.

    Attributes:
        knobs: [knobs]; at the first, every row runs to full depth.
        losses: of every row at every knob: [rows, knobs].
        layers: the average exit layer at every knob: [knobs].
        highest: the highest loss there can be.
    """

    knobs: tuple[float, ...]
    losses: NDArray[np.float64]
    layers: NDArray[np.float64]
    highest: float

    def joined(self, other: "KnobRisks") -> "KnobRisks":
        """Return the same method on these rows and on others."""
        losses = np.concatenate([self.losses, other.losses])
        shares = len(self.losses) / len(losses), len(other.losses) / len(losses)
        return replace(self, losses=losses, layers=shares[0] * self.layers + shares[1] * other.layers)


@dataclass(frozen=True)
class ControlledKnob:
    """The knob that risk control chose.

    Attributes:
        knob: to be given to ``method.rule``.
        proven: whether the promise is proven of this knob; else it is the most cautious one, full depth, which loses
            nothing whatever the rows.
        mean_loss, average_layers: at this knob, on the calibration rows.
        rows: number of calibration rows.
    """

    knob: float
    proven: bool
    mean_loss: float
    average_layers: float
    rows: int


def knob_risks(method: Method, model: MultiExitModel, trace: Trace, loss: str = "gap") -> KnobRisks:
    """Replay all knobs of a method on a trace, and compare every answer with that at full depth.

    Args:
        method: any method of classification.
        model: trained by it.
        trace: of the calibration rows.
        loss: a name of :data:`RISK_LOSSES`.

    Raises:
        UserError: the loss is unknown, the task is a regression, or the most cautious knob lets rows leave early.
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
        bound: ``crc``, ``ucb`` or ``ltt``, see :mod:`consistentee.deployment.risk_bounds`.
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
