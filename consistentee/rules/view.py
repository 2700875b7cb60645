"""LayerView: the information that one layer offers about its rows."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from consistentee.errors import UserError


class LayerView(ABC):
    """The information that one layer offers about the active rows; each property is computed when it is first read.

    Attributes:
        layer: the layer that has just run, 1-based.
        num_layers: number of layers of the model.
        rows: number of active rows.
        device: of the tensors.
        places: the place of each row's new token in its text; 0 in classification.
    """

    _past: Tensor | None = None

    def __init__(self, layer: int, num_layers: int, rows: int, device: torch.device) -> None:
        self.layer = layer
        self.num_layers = num_layers
        self.rows = rows
        self.device = device
        self.places: Sequence[int] = [0] * rows
        self._heads: dict[str, Tensor] = {}
        self._likeliest: dict[int, Tensor] = {}

    @cached_property
    def steps(self) -> Tensor:
        """The places on the device: int64 [rows]."""
        if len(set(self.places)) == 1:  # copies nothing to the device
            return torch.full((self.rows,), self.places[0], device=self.device)
        return torch.tensor(self.places, dtype=torch.long, device=self.device)

    @cached_property
    @abstractmethod
    def hidden(self) -> Tensor:
        """Hidden states after this layer: [rows, tokens, width]. Not kept in a trace."""

    @cached_property
    @abstractmethod
    def pooled(self) -> Tensor:
        """Input of the classifier of this layer: [rows, width]."""

    @cached_property
    def history(self) -> Tensor:
        """``pooled`` of layers 1 to this one: [rows, layer, width].

        At inference it exists only for a rule with ``reads_history`` or classifiers that read it, else UserError.
        """
        if self._past is None:
            raise UserError("this exit rule reads the pooled vectors of earlier layers: declare reads_history = True")
        return torch.cat([self._past, self.pooled.unsqueeze(1)], dim=1)

    @cached_property
    @abstractmethod
    def logits(self) -> Tensor:
        """Output of the internal classifier of this layer: [rows, classes], or [rows, 1] for a regression."""

    @cached_property
    @abstractmethod
    def row_keys(self) -> Tensor:
        """A hash of each row's input: int64 [rows]."""

    @cached_property
    def labels(self) -> Tensor:
        """True labels [rows] in a trace; raises UserError at inference."""
        raise UserError("this exit rule reads the true labels; it can be replayed on a trace, not run on new texts")

    def head(self, name: str, extra: Tensor | None = None) -> Tensor:
        """Run the head that the method added as ``name``: [rows], or [rows, outputs] if it has several.

        ``extra`` [rows, k] is concatenated to the pooled vector, for heads with ``extra_inputs=k``.
        """
        if extra is not None:
            return self._run_head(name, extra)
        if name not in self._heads:
            self._heads[name] = self._run_head(name, None)
        return self._heads[name]

    @abstractmethod
    def _run_head(self, name: str, extra: Tensor | None) -> Tensor: ...

    def likeliest(self, count: int) -> Tensor:
        """Return the ``count`` classes or tokens with the largest logits, in increasing order: int64 [rows, count].

        The caller must not change the result.
        """
        if count not in self._likeliest:
            self._likeliest[count] = likeliest(self.logits, count)
        return self._likeliest[count]

    def logits_among(self, classes: Tensor) -> Tensor:
        """Return the logits of some classes: int64 [rows, K] -> [rows, K].

        A view of tokens computes only these columns of the LM head, and its exit then predicts one of them.
        """
        return self.logits.gather(-1, classes)

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
    """Convert logits [..., classes] to class indices [...], or regression outputs [..., 1] to values [...]."""
    return logits.squeeze(-1) if logits.shape[-1] == 1 else logits.argmax(dim=-1)


def likeliest(logits: Tensor, count: int) -> Tensor:
    """Return the classes with the largest logits [rows, classes], in increasing order: int64 [rows, count or fewer]."""
    largest = logits.topk(min(count, logits.shape[-1]), dim=-1, sorted=False)
    return largest.indices.sort(dim=-1).values  # breaks ties as among all classes


def best_among(logits: Tensor, classes: Tensor | None) -> Tensor:
    """Return the class with the largest logit: int64 [rows]. ``classes`` [rows, K]: of the logits; None for all."""
    best = logits.argmax(dim=-1)
    return best if classes is None else classes.gather(1, best.unsqueeze(1)).squeeze(1)
