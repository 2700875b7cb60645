"""Prove on rows that were used for nothing else that early exits lose no more than is tolerated.

Rows must be drawn as the later ones are; a bound or a proof that bets takes them in random order. Losses are those
against the answer at full depth.

- Risk control chooses the knob of any method (Jazbec et al., Fast yet Safe: Early-Exiting with Risk Control, NeurIPS
  2024, arXiv 2405.20915): the last one that passes (the released code returns the first that fails), or the most
  cautious one. A bound takes losses [rows, knobs], the most cautious knob first, the tolerated risk and delta, and
  returns the number of a knob, or -1.
- A proof bets, row by row, against "it loses more than that", with a stake that was learnt on other rows. Ways to
  answer are tested in a fixed order until one fails: with the probability asked for, all that passed keep the loss.

Sources: Angelopoulos et al., Conformal Risk Control, ICLR 2024, arXiv 2208.02814 (section 2, and 4.3 for losses that
are not monotone); Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, 2023, arXiv
2010.09686; Angelopoulos et al., Learn then Test, 2021, arXiv 2110.01052 (fixed sequence testing).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from consistentee.arguments import Fraction, checked
from consistentee.errors import UserError
from consistentee.methods.method import Method
from consistentee.models.encoder import MultiExitModel
from consistentee.traces.instance_trace import Trace
from consistentee.traces.walk import sweep

Losses = NDArray[np.float64]
"""1 for a point lost against the answer at full depth, -1 for one won, 0 otherwise: [rows] or [rows, knobs]."""

_STAKES = np.linspace(0.02, 0.98, 49)


def leading(passed: NDArray[np.bool_]) -> int:
    """Count the tests that passed before the first one that failed."""
    return int(np.cumprod(passed).sum())


# ------------------------------------------------------------------------------------------------ risk control


def conformal(losses: ArrayLike, risk: float, delta: float) -> int:
    """Conformal risk control (CRC): the *expected* risk, over draws of the calibration rows too, is at most ``risk``.

    ``delta`` plays no part. A row's loss counts as the largest one at any more cautious knob: the proof needs losses
    that only grow.
    """
    table = _checked(losses, risk, delta)
    worst = np.maximum.accumulate(table, axis=1).mean(axis=0)
    rows = len(table)
    return leading(worst <= ((rows + 1) * risk - 1) / rows) - 1


def upper_confidence(losses: ArrayLike, risk: float, delta: float) -> int:
    """UCB with the bound of Waudby-Smith and Ramdas: with probability ``1 - delta`` the risk is at most ``risk``.

    The bound is below ``risk`` exactly where the wealth of a bet against "the mean is ``risk`` or more" has at some
    time reached ``1 / delta``, so that no bound has to be solved for. Losses may be negative: a factor of the wealth
    needs only ``loss - risk < 1`` to stay positive. Going on only while every more cautious knob has passed makes the
    promise hold for all of them at once.
    """
    table = _checked(losses, risk, delta)
    rows, knobs = table.shape
    time = np.arange(1, rows + 1)[:, None]
    mean = (0.5 + table.cumsum(axis=0)) / (time + 1)
    variance = (0.25 + ((table - mean) ** 2).cumsum(axis=0)) / (time + 1)
    variance_before = np.vstack([np.full((1, knobs), 0.25), variance[:-1]])  # a bet must not see its own row
    stake = np.minimum(1.0, np.sqrt(2 * math.log(1 / delta) / (rows * variance_before)))
    log_wealth = np.log1p(-stake * (table - risk)).cumsum(axis=0)
    return leading(log_wealth.max(axis=0) >= math.log(1 / delta)) - 1


def tested(losses: ArrayLike, risk: float, delta: float) -> int:
    """Learn then Test (LTT): with probability ``1 - delta`` the risk is at most ``risk``.

    Gains count as no loss, since its p-values, of the binomial distribution, need losses of 0 and 1.
    """
    table = np.clip(_checked(losses, risk, delta), 0.0, None)
    p_values = [binomial(round(total), len(table), risk) for total in table.sum(axis=0).tolist()]
    return leading(np.array(p_values) <= delta) - 1


def binomial(losses: int, rows: int, risk: float) -> float:
    """Compute the probability of at most so many losses among rows that each lose with probability ``risk``."""
    numbers = np.arange(1, losses + 1)
    ratios = np.log((rows + 1 - numbers) / numbers) + math.log(risk / (1 - risk))
    logarithms = rows * math.log1p(-risk) + np.concatenate([[0.0], ratios.cumsum()])
    return min(1.0, float(np.exp(logarithms).sum()))


def _checked(losses: ArrayLike, risk: float, delta: float) -> Losses:
    check_shares(risk=risk, delta=delta)
    table = np.asarray(losses, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise UserError(f"risk control needs a loss for every row and knob, got a table of {table.shape}")
    if not (table <= 1).all():  # false for NaN, too
        raise UserError("risk control needs losses of at most 1: its bounds hold for no others")
    return table


def check_shares(**shares: float) -> None:
    """Raise UserError for a share that is not between 0 and 1."""
    for name, value in shares.items():
        if not 0 < value < 1:
            raise UserError(f"{name} must lie between 0 and 1, got {value:g}")


Bound = Literal["crc", "ucb", "ltt"]
"""By the names that the field has for them."""

BOUNDS: dict[Bound, Callable[[ArrayLike, float, float], int]] = {
    "crc": conformal,
    "ucb": upper_confidence,
    "ltt": tested,
}

Loss = Literal["gap", "consistency"]


def losses_of(loss: Loss, answers: Tensor, full: Tensor, labels: Tensor) -> Tensor:
    """Compute the losses of early answers against those at full depth, all int64 [rows]: points lost, or changes."""
    if loss == "consistency":
        return (answers != full).double()
    return (answers != labels).double() - (full != labels).double()


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


@checked
def control_risk(
    method: Method,
    model: MultiExitModel,
    trace: Trace,
    risk: Fraction,
    *,
    delta: Fraction = 0.1,
    bound: Bound = "ucb",
    loss: Loss = "gap",
) -> ControlledKnob:
    """Return the most permissive knob of a trained method whose risk is proven to be at most ``risk``.

    The promise is about rows drawn as those of ``trace`` are. It is worth what these are: neither the model, nor its
    method, nor a recipe may have been chosen on them.

    Args:
        method, model: trained; all knobs of the method are replayed.
        trace: of the calibration rows; hundreds are needed: with a loss of nothing at all, 1 % takes 230 (``ltt``).
        risk: the mean loss that is tolerated.
        delta: the chance of a broken promise that is tolerated; ``crc`` promises a mean over such chances instead.
        bound: ``crc``, ``ucb`` or ``ltt``: :func:`conformal`, :func:`upper_confidence`, :func:`tested`.
        loss: ``gap``, points lost on the full model; ``consistency``, answers changed, for rows without true labels.

    Raises:
        UserError: for an unknown bound or loss, a risk or delta outside of 0..1, a regression, and where the most
            cautious knob lets rows leave early.
    """
    if trace.logits.shape[-1] == 1:
        raise UserError("risk control compares classes, which a regression does not have")
    knobs = [float(knob) for knob in reversed(method.knob_values(model))]
    exits = sweep([method.rule(model, knob) for knob in knobs], trace)
    if not bool((exits[0] == trace.num_layers).all()):
        raise UserError(f"{method.name}: rows leave early at its most cautious knob, {knobs[0]:g}: nothing is safe")
    full = trace.predictions(exits[0])
    losses = torch.stack([losses_of(loss, trace.predictions(layers), full, trace.labels) for layers in exits], dim=1)
    in_random_order = np.random.default_rng(0).permutation(losses.numpy())  # files may be sorted by label
    found = BOUNDS[bound](in_random_order, risk, delta)
    index = max(found, 0)
    return ControlledKnob(
        knob=knobs[index],
        proven=found >= 0,
        mean_loss=float(losses[:, index].mean()),
        average_layers=float(exits[index].double().mean()),
        rows=len(trace),
    )


# ------------------------------------------------------------------------------------------------ proof


def rows_needed(loss: float, probability: float, choosing: int) -> int:
    """Return how many rows a proof takes if nothing at all is lost, for a loss in points and rows for choosing."""
    stake = float(bets(np.zeros((choosing, 1)), loss)[0][0])
    return math.ceil(math.log(1 / (1 - probability)) / math.log1p(stake * loss / 100))


def proven(choosing: Losses, proof: Losses, loss: float, probability: float) -> list[int]:
    """Test ways one after the other until one fails; with ``probability`` all that passed lose at most ``loss`` points.

    The rows for the proof are in random order: a bet may be ended at its highest wealth.

    Args:
        choosing: losses of the ways on rows that determine the order, the safest first: [rows, ways].
        proof: on rows that were used for nothing else: [rows, ways].

    Returns:
        The numbers of the ways that passed, in the order in which they were tested.
    """
    stakes, evidence = bets(choosing, loss)
    order = np.argsort(-evidence, kind="stable")
    wealth = np.log1p(-stakes * (proof - loss / 100)).cumsum(axis=0).max(axis=0)
    return order[: leading(wealth[order] >= math.log(1 / (1 - probability)))].tolist()


def bets(losses: Losses, loss: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Choose for each way how much to bet against "it loses more than ``loss`` points", on losses [rows, ways].

    A bet multiplies its wealth by ``1 - stake * (loss of a row - loss)``, on average at most 1 if that is true. Half a
    row that loses is added, because a few rows without a loss would stake everything.

    Returns:
        The stakes, and the logarithms of the wealth that they would have had: [ways] each.
    """
    risk = loss / 100
    wealth = np.stack([np.log1p(-s * (losses - risk)).sum(axis=0) + np.log1p(-s * (1 - risk)) / 2 for s in _STAKES])
    return _STAKES[wealth.argmax(axis=0)], wealth.max(axis=0)
