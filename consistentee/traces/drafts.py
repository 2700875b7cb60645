"""Replay drafts on texts of the full model: what every draft length and threshold would cost.

A greedy draft is accepted as far as the drafter predicts the text, so one pass over the text gives the layers of every
draft length: exactly, but for settings that change scores. With a threshold, the length of a rejected draft is an
estimate, since tokens after the rejected one are those of the text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consistentee.models.decoder.branches import SkippedSublayers
from consistentee.models.decoder.multi_exit_decoder import DecoderStack, MultiExitDecoder
from consistentee.traces.token_trace import CHUNK, TokenRow, collate_rows, record_tokens

DRAFT_LENGTHS = range(1, 9)
DRAFT_THRESHOLDS = (0.0, 0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True)
class DraftTrace:
    """The predictions of a drafter for the decoded tokens of texts.

    Attributes:
        draft_layer, num_layers, drafter_in_layers: see :class:`consistentee.engine.speculation.SpeculativeGenerations`.
        agrees: whether it predicts the tokens of each text: bool [tokens].
        probability: of what it predicts, likewise; read for thresholds alone.
    """

    draft_layer: int
    num_layers: int
    agrees: Sequence[NDArray[np.bool_]]
    probability: Sequence[NDArray[np.float64]] = ()
    drafter_in_layers: float = 0.0

    def count(self, tokens: int, threshold: float = 0.0, tokens_at_most: float = math.inf) -> tuple[int, int]:
        """Return the numbers of drafted tokens, and of passes, each of which gives one token besides its draft.

        ``tokens`` and ``threshold`` end drafts, see :func:`consistentee.generate_speculatively`. ``tokens_at_most``
        limits a text's decoded tokens, and hence its last draft.
        """
        drafted = passes = 0
        for number, agrees in enumerate(self.agrees):
            place = 0
            while place < len(agrees):
                length = int(min(tokens, tokens_at_most - place - 1))
                if threshold:
                    unsure = self.probability[number][place : place + length] < threshold
                    length = min(length, _first_true(unsure, length) + 1)
                place += _first_true(~agrees[place : place + length], length) + 1
                drafted += length
                passes += 1
        return drafted, passes

    def layer_calls(self, tokens: int, threshold: float = 0.0, tokens_at_most: float = math.inf) -> float:
        """Count calls of layers by drafts and their verification; see :meth:`count`."""
        counts = self.count(tokens, threshold, tokens_at_most)
        return draft_layer_calls(*counts, self.draft_layer, self.num_layers, self.drafter_in_layers)


def _first_true(found: NDArray[np.bool_], otherwise: int) -> int:
    return int(found.argmax()) if found.any() else otherwise


def draft_layer_calls(
    drafted: int, passes: int, draft_layer: int, num_layers: int, drafter_in_layers: float = 0.0
) -> float:
    """Count calls of layers by drafts and their verification.

    A draft of k tokens calls the layers up to ``draft_layer``, and the branch, k + 1 times, and the others once. With
    ``draft_layer`` 0 the model without some sublayers drafts: it keeps nothing of its reading, and is called k times.
    """
    read_by_drafter = drafted + passes if draft_layer else drafted
    shallow = (drafted + passes) * draft_layer + read_by_drafter * drafter_in_layers
    return shallow + passes * (num_layers - draft_layer)


@torch.inference_mode()
def trace_drafts(
    model: MultiExitDecoder,
    rows: Sequence[TokenRow],
    *,
    draft_layer: int = 0,
    skipped: SkippedSublayers | None = None,
    store: Path | None = None,
) -> DraftTrace:
    """Record what a drafter predicts for the tokens of texts but the first, which the prompt gives.

    Args:
        rows: prompts, and greedy texts of the full model.
        draft_layer, skipped: the drafter, see :func:`consistentee.generate_speculatively`. Without sublayers, tokens
            attend to states of the drafter; while decoding they attend to those of the full model.
        store: see :func:`consistentee.record_tokens`.
    """
    reader, layer = model, draft_layer or model.num_layers
    drafter_in_layers = 0.0
    if model.has_branch(draft_layer):
        reader, layer = DecoderStack(model, draft_layer), draft_layer + 1
        drafter_in_layers = model.branch(draft_layer).size_in_layers
    if skipped is None:
        trace = record_tokens(reader, rows, store=store)
        states = trace.states(trace.exit_layers.index(layer), torch.arange(len(trace)))
    else:
        states = torch.cat([_states_without(skipped, model, row) for row in rows])
        drafter_in_layers = skipped.layers_left(model.stepper)
    predicted: list[int] = []
    probability: list[float] = []
    for chunk in states.split(CHUNK):
        logits = reader.logits(layer, chunk)
        predicted += logits.argmax(dim=-1).tolist()
        probability += logits.softmax(dim=-1).amax(dim=-1).tolist()
    ends = np.cumsum([len(response) for _, response in rows])[:-1]
    targets = np.array([token for _, response in rows for token in response])
    agrees, probabilities = (
        [text[1:] for text in np.split(values, ends)]
        for values in (np.array(predicted) == targets, np.array(probability))
    )
    return DraftTrace(draft_layer, model.num_layers, agrees, probabilities, drafter_in_layers)


def _states_without(skipped: SkippedSublayers, model: MultiExitDecoder, row: TokenRow) -> Tensor:
    batch = collate_rows(model, [row])
    return skipped.run(model.stepper, *model.stepper.begin(batch.tokens, batch.padding_mask))[batch.gives_response]
