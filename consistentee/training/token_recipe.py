"""TokenRecipe: how to train for generation, the same for every method of a suite."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from consistentee.data.prompts import TextTask
from consistentee.models.decoder import MultiExitDecoder
from consistentee.traces.token_rows import TokenRow, encode_rows
from consistentee.traces.token_trace import TokenTrace
from consistentee.training.token_sources import drawn

Trains = Literal["exits", "lora", "all"]
"""What learns: exit adapters on a frozen backbone; low-rank updates of the backbone too; or all of it."""

Target = Literal["label", "full model"]
"""What an exit should say: the response's next token, or what the last exit says, as a distribution."""

ExitStart = Literal["least squares", "stock"]
"""What untrained exits start from: the least-squares map onto layer L's states, or reading their own as layer L's."""


@dataclass(frozen=True)
class TokenRecipe:
    """How to train for generation: the same for every method of a suite.

    Attributes:
        max_rows: cap on training rows, drawn at random with a seed that does not depend on ``seed``.
        max_prompt_tokens, max_new_tokens: how rows are cut; None for the task's own limits.
        trains: see :data:`Trains`.
        exit_start: what exits start from, see :data:`ExitStart`.
        target: what exits learn to say on a frozen backbone, see :data:`Target`.
        exit_steps, exit_batch_size, exit_learning_rate: of the exit adapters; the batch is in tokens. Each step runs
            the LM head once for every exit.
        head_tokens: tokens that the exits' start and learned heads are fitted to, drawn from the cached ones; for
            learned heads the LM head runs on each of them at every exit, once.
        head_steps, head_batch_size, head_learning_rate: of the learned heads; the batch is in tokens.
        backbone_steps, backbone_batch_size, backbone_learning_rate: of the stage that runs the backbone, where it
            learns; the batch is in rows.
        lora_rank: rank of the updates, for ``trains="lora"``.
        weight_decay, warmup_ratio, max_grad_norm: as usual; rates decay linearly to 0.
        trace_batch_size: rows a batch when states are cached.
        seed: seeds new weights and the order of tokens.
        store: folder where passes, shared stages and checkpoints are kept; None keeps nothing.
        progress: show a progress bar.
    """

    max_rows: int | None = 1000
    max_prompt_tokens: int | None = None
    max_new_tokens: int | None = None
    trains: Trains = "exits"
    exit_start: ExitStart = "least squares"
    target: Target = "full model"
    exit_steps: int = 300
    exit_batch_size: int = 128
    exit_learning_rate: float = 1e-3
    head_tokens: int = 16_384
    head_steps: int = 2000
    head_batch_size: int = 512
    head_learning_rate: float = 2e-3
    backbone_steps: int = 200
    backbone_batch_size: int = 4
    backbone_learning_rate: float = 1e-4
    lora_rank: int = 16
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    max_grad_norm: float = 1.0
    trace_batch_size: int = 16
    seed: int = 0
    store: Path | None = None
    progress: bool = False

    def training_rows(self, model: MultiExitDecoder, task: TextTask) -> list[TokenRow]:
        """Return the training rows that this recipe uses, as tokens; the model notes how long they may be."""
        noted = model.description
        noted.max_prompt_tokens = self.max_prompt_tokens or task.max_prompt_tokens
        noted.max_new_tokens = self.max_new_tokens or task.max_new_tokens
        return encode_rows(
            model,
            task.train.capped(self.max_rows, seed=0),
            max_prompt_tokens=noted.max_prompt_tokens,
            max_new_tokens=noted.max_new_tokens,
            keep=task.keep,
        )

    def tokens_for_heads(self, trace: TokenTrace) -> Tensor:
        """Return which tokens of a trace learned heads are trained on: their numbers, int64 [at most head_tokens]."""
        return drawn(trace.may_exit, min(self.head_tokens, len(trace.may_exit)), self.seed).sort().values
