"""ExitAnswers: the predictions and losses of every exit for recorded tokens, without logits."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from consistentee.files import computed_once, hash_json
from consistentee.progress import tracked
from consistentee.rules.view import best_among, likeliest
from consistentee.traces.token_trace import CHUNK, TokenTrace
from consistentee.versions import TRAINING_VERSION


@dataclass(frozen=True)
class ExitAnswers:
    """Outputs of the LM head that rewards and learned heads need, for every token of a trace, on the CPU.

    Attributes:
        targets: the next token of the response: int64 [N].
        predictions: the token that each exit predicts, with a pruned vocabulary one of the candidates from the second
            exit on: int64 [N, exits].
        losses: cross-entropy of each exit for the response's next token, in nats: float [N, exits].
    """

    targets: Tensor
    predictions: Tensor
    losses: Tensor

    @property
    def correct(self) -> Tensor:
        """Whether each exit predicts the target: bool [N, exits]."""
        return self.predictions == self.targets.unsqueeze(1)


def exit_answers(
    trace: TokenTrace,
    *,
    candidates: int | None = None,
    store: Path | None = None,
) -> ExitAnswers:
    """Compute the answer of every exit to every token of a trace, in chunks of tokens.

    Args:
        trace: select its tokens first if there are many: the LM head runs on each of them at every exit.
        candidates: number of tokens to which exits between the first and the last are restricted, the likeliest of the
            first exit; None for the whole vocabulary. Losses are always those of the whole vocabulary.
        store: folder to keep the answers in, for methods that share exits and tokens.
    """
    ask = partial(_ask, trace, candidates)
    if store is None:
        return ExitAnswers(**ask())
    parts = [trace.model.fingerprint(with_heads=False), trace.fingerprint, candidates]
    name = f"answers-{hash_json([*parts, TRAINING_VERSION])[:16]}.safetensors"
    return ExitAnswers(**computed_once(store / name, ask))


@torch.no_grad()
def _ask(trace: TokenTrace, candidates: int | None) -> dict[str, Tensor]:
    chunks = tracked(torch.arange(len(trace)).split(CHUNK), "asking exits", rows=CHUNK)
    parts = [_ask_about(trace, tokens, candidates) for tokens in chunks]
    answers = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return {"targets": trace.targets, **answers}


def _ask_about(trace: TokenTrace, tokens: Tensor, candidates: int | None) -> dict[str, Tensor]:
    model, last = trace.model, len(trace.exit_layers) - 1
    targets = trace.targets[tokens].to(model.device)
    predictions: list[Tensor] = []
    losses: list[Tensor] = []
    among: Tensor | None = None
    for index, layer in enumerate(trace.exit_layers):
        logits = model.logits(layer, trace.states(index, tokens))
        losses.append(functional.cross_entropy(logits, targets, reduction="none"))
        if index == 0 and candidates is not None:
            among = likeliest(logits, candidates)
        pruned = among if 0 < index < last else None
        if pruned is not None:
            logits = logits.gather(1, pruned)
        predictions.append(best_among(logits, pruned))
    answers = {"predictions": predictions, "losses": losses}
    return {name: torch.stack(by_exit, dim=1).cpu() for name, by_exit in answers.items()}
