"""ExitRule, LayerView and the signals: what a layer can say of its rows, and who decides on it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from consistentee.errors import UserError

State = dict[str, Tensor]
"""Per-row state of a rule: every tensor has the rows first. The engine drops the rows that leave."""


class LayerView(ABC):
    """What one layer can say about the active rows; every property is computed only when asked for.

    A rule pays for what it reads: one that reads a policy head never pays for a classifier.

    Attributes:
        layer: the layer that has just run, 1-based.
        num_layers: number of layers of the model.
        rows: number of active rows.
        device: where the tensors live.
        step: 0 in classification; the position of the new token in generation.
    """

    layer: int
    num_layers: int
    rows: int
    device: torch.device
    step: int = 0

    @cached_property
    @abstractmethod
    def hidden(self) -> Tensor:
        """Hidden states after this layer: [rows, tokens, width]. Not kept in a trace."""

    @cached_property
    @abstractmethod
    def pooled(self) -> Tensor:
        """The vector that the classifier of this layer reads: [rows, width]."""

    @cached_property
    @abstractmethod
    def history(self) -> Tensor:
        """``pooled`` of layers 1 to this one: [rows, layer, width].

        Live, it is kept only for a rule that declares ``reads_history`` or classifiers that read it; others get a
        UserError.
        """

    @cached_property
    @abstractmethod
    def logits(self) -> Tensor:
        """Output of the internal classifier of this layer: [rows, classes], or [rows, 1] for a regression."""

    @cached_property
    @abstractmethod
    def row_keys(self) -> Tensor:
        """A number that identifies each row by its input alone (int64 [rows]): equal inputs, equal keys."""

    @cached_property
    @abstractmethod
    def labels(self) -> Tensor:
        """True labels [rows]: known in a trace, never at inference, where asking for them raises UserError."""

    @abstractmethod
    def head(self, name: str, extra: Tensor | None = None) -> Tensor:
        """Output of the head that the method added as ``name``: [rows], or [rows, outputs] if it has several.

        ``extra`` [rows, k] is concatenated to the pooled vector, for heads declared with ``extra_inputs=k``.
        """

    @cached_property
    def probs(self) -> Tensor:
        """Softmax of the logits: [rows, classes]."""
        if self.logits.shape[-1] == 1:
            raise UserError("this exit rule needs class probabilities, which a regression does not have")
        return self.logits.softmax(dim=-1)

    @cached_property
    def predictions(self) -> Tensor:
        """The answer of this layer: class indices (int64 [rows]), or values (float [rows]) for a regression."""
        return predictions_of(self.logits)


def predictions_of(logits: Tensor) -> Tensor:
    """Turn logits [..., classes] into class indices [...], or regression outputs [..., 1] into values [...]."""
    return logits.squeeze(-1) if logits.shape[-1] == 1 else logits.argmax(dim=-1)


class ExitRule:
    """Decides, layer by layer, which rows stop. Subclass it, or use ThresholdRule.

    Class attributes:
        reads_history: the rule reads ``view.history``, which the engine then keeps for every row.
    """

    reads_history: ClassVar[bool] = False

    def start(self, rows: int, num_layers: int) -> State:
        """Return the per-row state before the first layer: tensors with ``rows`` first."""
        return {}

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        """Return which of the active rows stop at this layer: bool [active rows]. May update ``state`` in place.

        Not asked at the last layer, where every row stops.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define should_exit")

    def compared_value(self, view: LayerView, state: State) -> Tensor | None:
        """Return what this rule compares with its threshold, for plots: float [rows]; None if it compares nothing."""
        return None


class NeverExit(ExitRule):
    """Every row runs to the last layer: the stock model."""

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        """Return False for every row, without asking the view to compute anything."""
        return torch.zeros(view.rows, dtype=torch.bool, device=view.device)


Signal = Callable[[LayerView], Tensor]
"""One number a row: float [rows]."""


def entropy(view: LayerView) -> Tensor:
    """Entropy of the predicted distribution, in nats, 0 to ln C (DeeBERT)."""
    return torch.special.entr(view.probs).sum(dim=-1)


def normalised_entropy(view: LayerView) -> Tensor:
    """Entropy divided by ln C: 0 (certain) to 1 (uniform)."""
    return entropy(view) / math.log(view.logits.shape[-1])


def top_probability(view: LayerView) -> Tensor:
    """Probability of the predicted class."""
    return view.probs.amax(dim=-1)


def margin(view: LayerView) -> Tensor:
    """Difference of the two largest probabilities (CALM's softmax confidence)."""
    first, second = view.probs.topk(2, dim=-1).values.unbind(dim=-1)
    return first - second


def head_probability(name: str) -> Signal:
    """Return a signal: the sigmoid of a learned head with one output."""

    def signal(view: LayerView) -> Tensor:
        return view.head(name).sigmoid()

    return signal


class ThresholdRule(ExitRule):
    """Exit as soon as a signal lies strictly on one side of a threshold."""

    def __init__(self, signal: Signal, threshold: float, exit_when: Literal["above", "below"]) -> None:
        self.signal = signal
        self.threshold = threshold
        self.exit_when = exit_when

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        """Compare the signal with the threshold."""
        value = self.signal(view)
        return value > self.threshold if self.exit_when == "above" else value < self.threshold

    def compared_value(self, view: LayerView, state: State) -> Tensor:
        """Return the signal."""
        return self.signal(view)


class ConsecutiveRule(ExitRule):
    """Exit once another rule has wanted to for ``patience`` consecutive layers; one that objects restarts the count.

    The count belongs to each row. Earlier code bases kept one count for a whole batch, which changes exits and accuracy
    as soon as a batch holds more than one row.
    """

    def __init__(self, rule: ExitRule, patience: int) -> None:
        self.rule = rule
        self.patience = patience

    def start(self, rows: int, num_layers: int) -> State:
        """Nobody has wanted to leave yet; the state of the other rule lies beside the count."""
        return {"consecutive": torch.zeros(rows, dtype=torch.long)} | self.rule.start(rows, num_layers)

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        """Ask the other rule, and count row by row."""
        wants_out = self.rule.should_exit(view, state)
        state["consecutive"] = torch.where(wants_out, state["consecutive"] + 1, 0)
        return state["consecutive"] >= self.patience


class SameAnswerRule(ExitRule):
    """Exit where this layer answers as the one before; a regression's answer may move by less than ``tolerance``."""

    def __init__(self, tolerance: float = 0.0) -> None:
        self.tolerance = tolerance

    def start(self, rows: int, num_layers: int) -> State:
        """No answer yet: NaN equals nothing."""
        return {"previous": torch.full((rows,), torch.nan)}

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        """Compare the answers."""
        answer = view.predictions.to(state["previous"].dtype)
        if view.logits.shape[-1] == 1:
            agrees = (answer - state["previous"]).abs() < self.tolerance
        else:
            agrees = answer == state["previous"]
        state["previous"] = answer
        return agrees
