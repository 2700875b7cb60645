"""Sources of rows for the stages of training encoders: tokens, and cached features."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from consistentee.data.encoding import Batch, Encoding, fingerprint
from consistentee.data.instances import Label
from consistentee.data.metrics import score
from consistentee.files import hash_json, hash_tensors
from consistentee.models.encoder.multi_exit_model import LayerOutputs, MultiExitModel
from consistentee.rules.view import predictions_of
from consistentee.traces.instance_trace import record_logits
from consistentee.training.precision import precision_used
from consistentee.training.recipe import PrecisionSetting


@dataclass(frozen=True)
class TokenBatch:
    """Instances as tokens: ``labels`` [rows], ``rows`` [rows], their numbers in the source, and the step, from 0."""

    tokens: Batch
    labels: Tensor
    rows: Tensor
    step: int


@dataclass(frozen=True)
class FeatureBatch:
    """Instances as cached features of a frozen backbone; other fields as in :class:`TokenBatch`."""

    outputs: LayerOutputs
    labels: Tensor
    rows: Tensor
    step: int


@dataclass(frozen=True)
class ValidationJudge:
    """The score of a model on validation rows: the mean over exits, or that of the last exit."""

    encodings: Sequence[Encoding]
    labels: Sequence[Label]
    metric: str
    precision: PrecisionSetting
    every_exit: bool = True

    def __call__(self, model: MultiExitModel) -> float:
        with model.layers_in(precision_used(self.precision, model.device)):
            answers = predictions_of(record_logits(model, self.encodings))
        scored = answers if self.every_exit else answers[:, -1:]
        return fmean(score(self.metric, self.labels, answer) for answer in scored.T.numpy())

    def fingerprint(self) -> str:
        return hash_json([fingerprint(self.encodings), list(self.labels), self.metric, self.every_exit])


class TokenSource:
    """Instances as tokens."""

    def __init__(
        self,
        model: MultiExitModel,
        encodings: Sequence[Encoding],
        labels: Tensor,
        judge: ValidationJudge | None = None,
    ) -> None:
        """``labels``: class indices or targets, [N]; ``judge``: scores a model that learns from all of the rows."""
        self.model = model
        self.encodings = encodings
        self.labels = labels
        self.judge = judge
        self.lengths = torch.tensor([len(encoding) for encoding in encodings])

    def select(self, rows: Tensor) -> "TokenSource":
        """Return some of the rows, given by their numbers, without a judge."""
        return TokenSource(self.model, [self.encodings[i] for i in rows.tolist()], self.labels[rows])

    def __len__(self) -> int:
        return len(self.encodings)

    def batch(self, rows: Tensor, step: int) -> TokenBatch:
        tokens = self.model.collate([self.encodings[i] for i in rows.tolist()])
        return TokenBatch(tokens, self.labels[rows].to(self.model.device), rows, step)

    def fingerprint(self) -> str:
        return hash_json([fingerprint(self.encodings), self.labels.tolist()])


class FeatureSource:
    """Instances as cached features of a frozen backbone."""

    lengths = None

    def __init__(self, model: MultiExitModel, outputs: LayerOutputs, labels: Sequence[Label]) -> None:
        self.model = model
        self.outputs = outputs
        self.labels = label_tensor(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Tensor, step: int) -> FeatureBatch:
        device = self.model.device
        parts = (self.outputs.vectors, self.outputs.pooled, self.outputs.logits)
        outputs = LayerOutputs(*(part[rows].to(device) for part in parts))
        return FeatureBatch(outputs, self.labels[rows].to(device), rows, step)

    def fingerprint(self) -> str:
        tensors = (self.outputs.vectors, self.outputs.logits, self.labels)
        return hash_tensors({str(i): tensor for i, tensor in enumerate(tensors)})


def label_tensor(labels: Sequence[Label]) -> Tensor:
    """Turn class indices into int64 [N], or numeric targets into float32 [N]."""
    tensor = torch.tensor(labels)
    return tensor.float() if tensor.is_floating_point() else tensor
