"""The loss of references at the exits that a rule takes on their tokens.

References are read with their prompts at full depth (teacher forcing), with the end-of-text token, cut to the maximum
length of a text. Their first tokens are not counted, because every method has them at full depth. With a pruned
vocabulary the loss is that of the exit's whole LM head, because any other token would have an infinite loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consistentee.data.tasks import PromptSplit
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule
from consistentee.traces.token_trace import CHUNK, TokenTrace, encode_rows, record_tokens
from consistentee.traces.walk import sweep


@dataclass(frozen=True)
class ReferenceLoss:
    """The loss of all references with one rule.

    Attributes:
        nats: negative log-likelihood of each reference, summed over its tokens but the first: float64 [N].
        tokens: their number: int64 [N].
    """

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]

    @property
    def mean(self) -> float | None:
        """Nats a token; None without tokens."""
        counted = int(self.tokens.sum())
        return float(self.nats.sum()) / counted if counted else None


def record_references(
    model: MultiExitDecoder, split: PromptSplit, max_new_tokens: int, store: Path | None = None
) -> TokenTrace:
    """Read the references of prompts; ``store`` keeps the pass, which all methods on a backbone share."""
    rows = encode_rows(model, split, max_prompt_tokens=None, max_new_tokens=max_new_tokens)
    return record_tokens(model, rows, store=store)


def reference_losses(trace: TokenTrace, rules: Sequence[ExitRule], rows: int) -> list[ReferenceLoss]:
    """Replay rules on references; ``rows`` is their number, including empty ones."""
    exits = sweep(rules, trace)[:, trace.may_exit]
    places = torch.searchsorted(torch.tensor(trace.exit_layers), exits)
    by_exit = _nats(trace, places)
    row = trace.row[trace.may_exit].numpy()
    tokens = np.bincount(row, minlength=rows)
    return [
        ReferenceLoss(
            nats=np.bincount(row, by_exit.gather(1, place.unsqueeze(1))[:, 0].numpy(), rows).astype(np.float64),
            tokens=tokens,
        )
        for place in places
    ]


@torch.inference_mode()
def _nats(trace: TokenTrace, places: Tensor) -> Tensor:
    """Compute the negative log-likelihood [tokens, exits] at the exits that some rule takes, of ``places`` from 0."""
    found = torch.zeros(len(trace.may_exit), len(trace.exit_layers), dtype=torch.float64)
    for place, layer in enumerate(trace.exit_layers):
        for chunk in (places == place).any(dim=0).nonzero().flatten().split(CHUNK):
            tokens = trace.may_exit[chunk]
            logits = trace.model.logits(layer, trace.states(place, tokens)).float()
            targets = trace.targets[tokens].to(logits.device)
            losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
            found[chunk, place] = losses.double().cpu()
    return found
