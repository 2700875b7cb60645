"""Sources of rows for the stages of training: tokens, cached features of an encoder, cached states of a decoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from consistentee.data.encoding import Batch, Encoding, fingerprint
from consistentee.data.instances import Label
from consistentee.data.metrics import score
from consistentee.files import hash_json, hash_tensors
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.encoder.multi_exit_model import LayerOutputs, MultiExitModel
from consistentee.rules.view import predictions_of
from consistentee.traces.instance_trace import record_logits
from consistentee.traces.token_rows import TokenRow, TokenRows, collate_rows
from consistentee.traces.token_trace import RowBatch, RowStates, TokenTrace
from consistentee.training.precision import precision_used
from consistentee.training.recipe import PrecisionSetting, drawn


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
class StateBatch:
    """Decoded tokens as cached states, on the model's device.

    Attributes:
        speaking: the states of the token before, which the exits read: float [n, exits, width].
        deciding: the states that rules and learned heads read: float [n, exits, width].
        targets: int64 [n].
        tokens: their numbers in the trace: int64 [n], on the CPU.
    """

    speaking: Tensor
    deciding: Tensor
    targets: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class StepRows(TokenRows):
    """Prompts and responses of one step of a stage.

    Attributes:
        number: of the step, from 0.
        done: share of the stage's steps that came before.
    """

    number: int
    done: float


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


class DrawnTokens:
    """Tokens of a trace, drawn at random: as many as a stage takes."""

    lengths = None

    def __init__(self, trace: TokenTrace, tokens: Tensor, draws: int, seed: int) -> None:
        """``tokens``: numbers of those to draw from."""
        self.trace = trace
        self.tokens = drawn(tokens, draws, seed)

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: Tensor, step: int) -> StateBatch:
        trace, tokens, device = self.trace, self.tokens[rows], self.trace.model.device
        speaking = trace.speaking[tokens].to(device, trace.model.dtype)
        deciding = speaking if trace.deciding is trace.speaking else trace.deciding[tokens].to(speaking)
        return StateBatch(speaking, deciding, trace.targets[tokens].to(device), tokens)

    def fingerprint(self) -> str:
        return hash_tensors({"drawn": self.tokens}) + self.trace.fingerprint


class DrawnRows:
    """Prompts with responses, drawn at random: as many as a stage takes."""

    def __init__(
        self, model: MultiExitDecoder, rows: Sequence[TokenRow], steps: int, batch_size: int, seed: int
    ) -> None:
        self.model = model
        self.rows = rows
        self.steps = steps
        answered = [number for number, (_, response) in enumerate(rows) if len(response)]
        self.numbers = drawn(torch.tensor(answered, dtype=torch.long), steps * batch_size, seed)
        self.lengths = torch.tensor([sum(map(len, rows[i])) for i in self.numbers.tolist()])

    def __len__(self) -> int:
        return len(self.numbers)

    def batch(self, rows: Tensor, step: int) -> StepRows:
        padded = collate_rows(self.model, [self.rows[i] for i in self.numbers[rows].tolist()])
        return StepRows(**vars(padded), number=step, done=step / self.steps)

    def fingerprint(self) -> str:
        return hash_json([[list(part) for part in self.rows[i]] for i in self.numbers.tolist()])


class DrawnRowStates:
    """Cached states of prompts with responses, drawn at random: as many as a stage takes."""

    lengths = None

    def __init__(self, states: RowStates, draws: int, seed: int) -> None:
        self.states = states
        self.numbers = drawn(torch.arange(len(states.rows)), draws, seed)

    def __len__(self) -> int:
        return len(self.numbers)

    def batch(self, rows: Tensor, step: int) -> RowBatch:
        return self.states.batch(self.numbers[rows].tolist())

    def fingerprint(self) -> str:
        return hash_tensors({"drawn": self.numbers}) + self.states.fingerprint()
