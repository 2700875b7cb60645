"""Sources of rows for the stages of classification: tokens (the whole model runs), or cached features."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from consistentee.data.encoding import Batch, Encoding, fingerprint
from consistentee.data.instances import Label
from consistentee.files import hash_json, hash_tensors
from consistentee.models.encoder.multi_exit_model import LayerOutputs, MultiExitModel


@dataclass(frozen=True)
class TokenBatch:
    """Rows as tokens: ``labels`` [rows], ``rows`` [rows], their numbers in the source, and the stage's step, from 0."""

    tokens: Batch
    labels: Tensor
    rows: Tensor
    step: int


@dataclass(frozen=True)
class FeatureBatch:
    """Rows as cached features of a frozen backbone; other fields as in :class:`TokenBatch`."""

    outputs: LayerOutputs
    labels: Tensor
    rows: Tensor
    step: int


@dataclass(frozen=True)
class JudgedRows:
    """A task's validation rows as tokens, and how answers to them are scored."""

    encodings: Sequence[Encoding]
    labels: Sequence[Label]
    metric: str


class TokenSource:
    """Rows as tokens."""

    def __init__(
        self, model: MultiExitModel, encodings: Sequence[Encoding], labels: Tensor, judged: JudgedRows | None = None
    ) -> None:
        """``labels``: class indices or targets, [N]; ``judged``: what judges a model that learns from all of them."""
        self.model = model
        self.encodings = encodings
        self.labels = labels
        self.judged = judged
        self.lengths = torch.tensor([len(encoding) for encoding in encodings])

    def select(self, rows: Tensor) -> "TokenSource":
        """Return some of the rows, given by their numbers."""
        return TokenSource(self.model, [self.encodings[i] for i in rows.tolist()], self.labels[rows])

    def __len__(self) -> int:
        return len(self.encodings)

    def batch(self, rows: Tensor, step: int) -> TokenBatch:
        """Return padded rows."""
        tokens = self.model.collate([self.encodings[i] for i in rows.tolist()])
        return TokenBatch(tokens, self.labels[rows].to(self.model.device), rows, step)

    def fingerprint(self) -> str:
        """Hash of tokens and labels."""
        return hash_json([fingerprint(self.encodings), self.labels.tolist()])


class FeatureSource:
    """Rows as cached features of a frozen backbone."""

    lengths = None

    def __init__(self, model: MultiExitModel, outputs: LayerOutputs, labels: Sequence[Label]) -> None:
        self.model = model
        self.outputs = outputs
        self.labels = label_tensor(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Tensor, step: int) -> FeatureBatch:
        """Return the features of some rows."""
        device = self.model.device
        parts = (self.outputs.vectors, self.outputs.pooled, self.outputs.logits)
        outputs = LayerOutputs(*(part[rows].to(device) for part in parts))
        return FeatureBatch(outputs, self.labels[rows].to(device), rows, step)

    def fingerprint(self) -> str:
        """Hash of features and labels."""
        tensors = (self.outputs.vectors, self.outputs.logits, self.labels)
        return hash_tensors({str(i): tensor for i, tensor in enumerate(tensors)})


def label_tensor(labels: Sequence[Label]) -> Tensor:
    """Turn class indices into int64 [N], or numeric targets into float32 [N]."""
    tensor = torch.tensor(labels)
    return tensor.float() if tensor.is_floating_point() else tensor
