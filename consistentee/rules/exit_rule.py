"""ExitRule, which decides which rows stop, and rules that several methods share."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from consistentee.arguments import Number, Positive, checked
from consistentee.errors import UserError
from consistentee.rules.view import LayerView
from consistentee.signals import Signal

State = dict[str, Tensor]
"""Per-row state of a rule: every tensor has the rows first. The engine drops the rows that exit."""


class ExitRule:
    """Decide, layer by layer, which rows stop. Subclass it, or use ThresholdRule.

    Class attributes:
        reads_history: the rule reads ``view.history``, which the engine then keeps for every row.
    """

    reads_history: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Reset ``asked_at`` and ``exit_in_advance`` of a parent where a subclass decides in another way."""
        super().__init_subclass__(**options)
        for name in ("asked_at", "exit_in_advance"):
            if "should_exit" in vars(cls) and name not in vars(cls):
                setattr(cls, name, vars(ExitRule)[name])

    def start(self, rows: int, num_layers: int) -> State:
        """Return the per-row state before the first layer: tensors with ``rows`` first."""
        return {}

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        """Return which of the active rows stop at this layer: bool [active rows]. May update ``state`` in place.

        Not called at the last layer, where every row stops.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define should_exit")

    def asked_at(self, layer: int) -> bool:
        """Return False where the rule lets no row exit: the next layer runs without waiting for the device."""
        return True

    def exit_in_advance(self, exit_layers: Sequence[int], step: int, prompt_key: int) -> int | None:
        """Return a token's exit layer if it is known before layers run, else None.

        It must agree with ``should_exit``, whose ``view.row_keys`` are ``token_key(prompt_key, step)``.
        """
        return None


def start_rule(rule: ExitRule, rows: int, num_layers: int, device: torch.device) -> State:
    """Return a rule's state before the first layer, on a device."""
    with device:  # where its tensors are made, and not copied
        return {name: tensor.to(device) for name, tensor in rule.start(rows, num_layers).items()}


def ask(rule: ExitRule, view: LayerView, state: State) -> Tensor:
    """Call a rule and check its result: bool [active rows]. Raises ValueError for anything else."""
    exits = rule.should_exit(view, state)
    if exits.dtype != torch.bool or exits.shape != (view.rows,):
        raise ValueError(
            f"{type(rule).__name__}.should_exit must return bool [{view.rows}], one a row; "
            f"got {exits.dtype} {list(exits.shape)}"
        )
    return exits


class NeverExit(ExitRule):
    """Every row runs to the last layer: the stock model."""

    def asked_at(self, layer: int) -> bool:
        return False

    def exit_in_advance(self, exit_layers: Sequence[int], step: int, prompt_key: int) -> int:
        return exit_layers[-1]

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        return torch.zeros(view.rows, dtype=torch.bool, device=view.device)


@checked
class StaticRule(ExitRule):
    """Every row exits at the same layer; nothing is computed to decide."""

    def __init__(self, layer: Positive) -> None:
        self.layer = layer

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        return torch.full((view.rows,), view.layer >= self.layer, device=view.device)

    def asked_at(self, layer: int) -> bool:
        return layer >= self.layer

    def exit_in_advance(self, exit_layers: Sequence[int], step: int, prompt_key: int) -> int:
        return next((layer for layer in exit_layers if layer >= self.layer), exit_layers[-1])


@checked
class ThresholdRule(ExitRule):
    """Exit as soon as a signal lies strictly on one side of a threshold."""

    def __init__(self, signal: Signal, threshold: Number, exit_when: Literal["above", "below"]) -> None:
        self.signal = signal
        self.threshold = threshold
        self.exit_when = exit_when

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        value = self.signal(view)
        return value > self.threshold if self.exit_when == "above" else value < self.threshold


@checked
class SomeLayersRule(ExitRule):
    """Ask another rule at some layers, and exit at no other: those are not even looked at."""

    def __init__(self, rule: ExitRule, *layers: int) -> None:
        self.rule = rule
        self.reads_history = rule.reads_history
        self.layers = layers

    def start(self, rows: int, num_layers: int) -> State:
        return self.rule.start(rows, num_layers)

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        if view.layer not in self.layers:
            return torch.zeros(view.rows, dtype=torch.bool, device=view.device)
        return self.rule.should_exit(view, state)

    def asked_at(self, layer: int) -> bool:
        return layer in self.layers


@checked
class ConsecutiveRule(ExitRule):
    """Exit once another rule has wanted to for ``patience`` consecutive layers; one that objects restarts the count.

    Each row has its own count. Raises UserError unless ``patience`` is a whole number and at least 1.
    """

    def __init__(self, rule: ExitRule, patience: Number) -> None:
        if not (patience >= 1 and float(patience).is_integer()):
            raise UserError(f"a patience must be a whole number, at least 1, got {patience:g}")
        self.rule = rule
        self.reads_history = rule.reads_history
        self.patience = int(patience)

    def start(self, rows: int, num_layers: int) -> State:
        return {"consecutive": torch.zeros(rows, dtype=torch.long)} | self.rule.start(rows, num_layers)

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        wants_out = self.rule.should_exit(view, state)
        state["consecutive"] = torch.where(wants_out, state["consecutive"] + 1, 0)
        return state["consecutive"] >= self.patience


@checked
class SameAnswerRule(ExitRule):
    """Exit where this layer answers as the one before; a regression's answer may move by less than ``tolerance``."""

    def __init__(self, tolerance: Number = 0.0) -> None:
        self.tolerance = tolerance

    def start(self, rows: int, num_layers: int) -> State:
        return {"previous": torch.full((rows,), torch.nan)}

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        answer = view.predictions.to(state["previous"].dtype)
        if view.logits.shape[-1] == 1:
            agrees = (answer - state["previous"]).abs() < self.tolerance
        else:
            agrees = answer == state["previous"]
        state["previous"] = answer
        return agrees
