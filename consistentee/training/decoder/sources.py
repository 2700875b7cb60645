"""Sources for the stages of generation: tokens or rows with cached states, or rows that the backbone runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from consistentee.files import hash_json, hash_tensors
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.traces.token_rows import TokenRow, TokenRows, collate_rows
from consistentee.traces.token_trace import RowBatch, RowStates, TokenTrace


@dataclass(frozen=True)
class StateBatch:
    """Cached tokens, on the model's device.

    Attributes:
        speaking: what every exit speaks from, of the token before, in the model's type: float [n, exits, width].
        deciding: what rules and learned heads read there, likewise.
        targets: int64 [n].
        tokens: their numbers in the trace: int64 [n], on the CPU.
    """

    speaking: Tensor
    deciding: Tensor
    targets: Tensor
    tokens: Tensor


class DrawnTokens:
    """A source whose rows are tokens of a trace drawn at random: as many as a stage of so many steps takes.

    Every token is drawn before one is drawn again.
    """

    lengths = None

    def __init__(self, trace: TokenTrace, tokens: Tensor, draws: int, seed: int) -> None:
        """``tokens``: numbers of those to draw from."""
        self.trace = trace
        self.tokens = drawn(tokens, draws, seed)

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: Tensor, step: int) -> StateBatch:
        """Return the states of some of the drawn tokens."""
        trace, tokens, device = self.trace, self.tokens[rows], self.trace.model.device
        speaking = trace.speaking[tokens].to(device, trace.model.dtype)
        deciding = speaking if trace.deciding is trace.speaking else trace.deciding[tokens].to(speaking)
        return StateBatch(speaking, deciding, trace.targets[tokens].to(device), tokens)

    def fingerprint(self) -> str:
        """Hash of states, targets and draws."""
        return hash_tensors({"drawn": self.tokens}) + self.trace.fingerprint


@dataclass(frozen=True)
class StepRows(TokenRows):
    """The rows of one step of a stage.

    Attributes:
        number: of the step, from 0.
        done: share of the stage's steps that came before.
    """

    number: int
    done: float


class DrawnRows:
    """A source of whole rows, prompt and response, drawn at random: as many as a stage of so many steps takes."""

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
        """Return padded rows."""
        padded = collate_rows(self.model, [self.rows[i] for i in self.numbers[rows].tolist()])
        return StepRows(**vars(padded), number=step, done=step / self.steps)

    def fingerprint(self) -> str:
        """Hash of the rows, in the order drawn."""
        return hash_json([[list(part) for part in self.rows[i]] for i in self.numbers.tolist()])


class DrawnRowStates:
    """A source of whole rows whose states are cached, drawn at random."""

    lengths = None

    def __init__(self, states: RowStates, draws: int, seed: int) -> None:
        self.states = states
        self.numbers = drawn(torch.arange(len(states.rows)), draws, seed)

    def __len__(self) -> int:
        return len(self.numbers)

    def batch(self, rows: Tensor, step: int) -> RowBatch:
        """Return padded rows and their states."""
        return self.states.batch(self.numbers[rows].tolist())

    def fingerprint(self) -> str:
        """Hash of states, rows and draws."""
        return hash_tensors({"drawn": self.numbers}) + self.states.fingerprint()


def drawn(numbers: Tensor, draws: int, seed: int) -> Tensor:
    """Return ``draws`` of the numbers at random, each one once before any is drawn again: int64 [draws]."""
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-draws // max(len(numbers), 1))
    orders = [numbers[torch.randperm(len(numbers), generator=generator)] for _ in range(rounds)]
    return torch.cat(orders)[:draws] if orders else numbers[:0]
