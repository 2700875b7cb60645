"""Sampling: how the next token is drawn, where it is not simply the likeliest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from consistentee.arguments import NotNegative, checked
from consistentee.engine.transcript import Transcript
from consistentee.traces.token_view import keyed_bits


@checked
@dataclass(frozen=True)
class Sampling:
    """Draw every token from the distribution of its exit, by a hash of the seed, the prompt and the token's place.

    So the same seed gives the same text, and a row's text does not depend on its batch. Two equal prompts get equal
    texts: ask for several texts with several seeds.

    What is None is as the model's ``generation_config`` says, else 1, 0 and 1, which change nothing.

    Attributes:
        temperature: divides the logits; above 0.
        top_k: keep the ``top_k`` likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together have at least this probability (nucleus sampling).
        seed: any integer.
    """

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    top_k: NotNegative | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int = 0

    def choose(self, logits: Tensor, prompt_keys: Sequence[int], steps: Sequence[int]) -> Tensor:
        """Draw each row's token at place ``steps`` [rows] of its text: logits [rows, vocabulary] -> int64 [rows]."""
        distribution = self._distribution(logits).double().cumsum(dim=-1)
        uniform = [keyed_bits(self.seed, key, step) / 2**64 for key, step in zip(prompt_keys, steps, strict=True)]
        wanted = torch.tensor(uniform, dtype=torch.double, device=logits.device).unsqueeze(1)
        # Strictly above, and of the sum that rounding left: a token of probability 0 is never drawn.
        drawn = torch.searchsorted(distribution, wanted * distribution[:, -1:], right=True)
        return drawn.squeeze(1).clamp_max_(logits.shape[-1] - 1)

    def _distribution(self, logits: Tensor) -> Tensor:
        scores = logits.float()
        if self.temperature is not None:
            scores = TemperatureLogitsWarper(float(self.temperature))(None, scores)
        if self.top_k:
            scores = TopKLogitsWarper(self.top_k)(None, scores)
        if self.top_p is not None:
            scores = TopPLogitsWarper(float(self.top_p))(None, scores)
        return scores.softmax(dim=-1)


def choose_tokens(sampling: Sampling | None, logits: Tensor, rows: Sequence[Transcript]) -> Tensor:
    """Return the next token of each row, int64 [rows]: the likeliest where ``sampling`` is None.

    Logits are [rows, vocabulary]; settings of the model's own change them first.
    """
    if any(row.process for row in rows):
        logits = torch.cat([row.scores(own) for row, own in zip(rows, logits.split(1), strict=True)])
    if sampling is None:
        return logits.argmax(dim=-1)
    return sampling.choose(logits, [row.key for row in rows], [len(row.tokens) for row in rows])
