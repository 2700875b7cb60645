"""Choose a knob on the rows that arrive, without labels: CeeBERT's bandit, for other data than a model was trained on.

Source: Bajpai and Hanawal, CeeBERT: Cross-Domain Inference in Early Exit BERT, Findings of ACL 2024, arXiv 2405.15039,
and the released code (Div290/CeeBERT). Every threshold is an arm. A row that exits at layer t earns the confidence that
it has gained since layer 1, less the price of the layers after the first. The arm with the largest upper confidence
bound is played (UCB), after each arm once.

Choices: arms are the knobs of any method; confidence is the largest probability, as released. The price is the same for
all layers; the released code has a price for each of two or three exits. Exploration is 2, as released.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeFloat

from consistentee.arguments import Fraction, checked
from consistentee.errors import UserError
from consistentee.methods.method import Method
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.traces.instance_trace import Trace
from consistentee.traces.walk import sweep


@dataclass(frozen=True)
class OnlineKnobs:
    """The rows of a stream, in order, each at the knob that the bandit played.

    Attributes:
        knobs: the arms.
        played: index of each row's arm: int64 [N].
        exits: 1-based exit layers: int64 [N].
        answers: predicted classes: int64 [N].
        regret: reward of the arm that is best on the whole stream less the reward earned, summed up: float [N].
    """

    knobs: tuple[float, ...]
    played: NDArray[np.int64]
    exits: NDArray[np.int64]
    answers: NDArray[np.int64]
    regret: NDArray[np.float64]


@checked
def learn_knob(
    method: Method,
    model: MultiExitModel,
    trace: Trace,
    *,
    price: Fraction,
    knobs: Sequence[float] | None = None,
    exploration: NonNegativeFloat = 2.0,
    seed: int | None = None,
) -> OnlineKnobs:
    """Stream the rows of a trace once, and learn the knob of a trained method on the way; no label is read.

    Args:
        method: any method of classes, whose knobs are the arms.
        model: its trained model.
        trace: the rows, in the order of the stream.
        price: of a layer, in confidence, 0 to 1.
        knobs: the arms; by default all knobs of the method. More arms take longer to learn.
        exploration: weight of the bonus of arms that were seldom played.
        seed: shuffles the rows first; None keeps their order.

    Raises UserError for a regression, and if there are fewer rows than arms.
    """
    if trace.logits.shape[-1] == 1:
        raise UserError("knobs are learned by confidences of classes, which a regression does not have")
    arms = tuple(map(float, method.knob_values(model) if knobs is None else knobs))
    if not 0 < len(arms) <= len(trace):
        raise UserError(f"{len(trace)} rows are too few to play each of {len(arms)} knobs once; give fewer knobs")
    generator = torch.Generator().manual_seed(seed or 0)
    order = torch.arange(len(trace)) if seed is None else torch.randperm(len(trace), generator=generator)
    exits = sweep([method.rule(model, knob) for knob in arms], trace)[:, order]
    logits = trace.logits[order].double()
    confidence = logits.softmax(dim=-1).amax(dim=-1)
    gained = confidence.T[exits - 1, torch.arange(len(order))] - confidence[:, 0]
    rewards = (gained - price * (exits - 1)).numpy()
    played = upper_confidence_arms(rewards, exploration)
    rows = np.arange(len(order))
    chosen = exits.numpy()[played, rows]
    best = rewards[rewards.mean(axis=1).argmax()]
    answers = logits.argmax(dim=-1).numpy()[rows, chosen - 1]
    return OnlineKnobs(arms, played, chosen, answers, np.cumsum(best - rewards[played, rows]))


def upper_confidence_arms(rewards: NDArray[np.float64], exploration: float) -> NDArray[np.int64]:
    """Play a bandit by UCB: the index of the arm that is played at every time, int64 [N].

    ``rewards`` are those of every arm at every time, [arms, N]; only those of the arms played are read.
    """
    arms, times = rewards.shape
    sums, plays = rewards.diagonal().copy(), np.ones(arms)  # each arm is played once
    played = np.arange(times)
    for time in range(arms, times):
        arm = int(np.argmax(sums / plays + exploration * np.sqrt(np.log(time) / plays)))
        sums[arm] += rewards[arm, time]
        plays[arm] += 1
        played[time] = arm
    return played
