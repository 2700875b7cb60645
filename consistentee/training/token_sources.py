"""Sources of batches for training decoders: recorded tokens, and rows drawn anew every epoch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from consistentee.files import hash_json, hash_tensors
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.traces.token_rows import TokenRow, TokenRows, collate_rows
from consistentee.traces.token_trace import RowBatch, RowStates, TokenTrace
from consistentee.training.recipe import drawn


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
