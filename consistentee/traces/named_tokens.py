"""The token that every exit predicts, for recorded tokens."""

import torch
from torch import Tensor

from consistentee.rules.view import likeliest, said_among
from consistentee.traces.token_trace import CHUNK, TokenTrace


@torch.inference_mode()
def named_tokens(trace: TokenTrace, candidates: int | None = None) -> Tensor:
    """Return the token that each exit predicts: int64 [N, exits], on the CPU.

    ``candidates``: tokens that exits between the first and the last may predict, the likeliest ones at the first, as
    under a rule that prunes the vocabulary; None for the whole vocabulary.
    """
    last = len(trace.exit_layers) - 1
    parts = [torch.empty(0, last + 1, dtype=torch.long)]
    for tokens in torch.arange(len(trace)).split(CHUNK):
        among: Tensor | None = None
        named = []
        for place, layer in enumerate(trace.exit_layers):
            states = trace.states(place, tokens)
            pruned = among if 0 < place < last else None
            logits = trace.model.logits(layer, states)
            if place == 0 and candidates is not None:
                among = likeliest(logits, candidates)
            named.append(said_among(logits if pruned is None else logits.gather(1, pruned), pruned))
        parts.append(torch.stack(named, dim=1).cpu())
    return torch.cat(parts)
