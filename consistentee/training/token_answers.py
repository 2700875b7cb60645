"""ExitAnswers: the predictions and losses of every exit for recorded tokens, without logits."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from consistentee.files import computed_once, hash_json
from consistentee.progress import tracked
from consistentee.rules.signals import confidence_features
from consistentee.rules.view import best_among, likeliest
from consistentee.traces.token_trace import CHUNK, TokenTrace
from consistentee.training.recipe import Target
from consistentee.versions import TRAINING_VERSION


@dataclass(frozen=True)
class ExitAnswers:
    """Outputs of the LM head that rewards and learned heads need, for every token of a trace, on the CPU.

    Attributes:
        targets: the next token of the response: int64 [N].
        predictions: the token that each exit predicts, with a pruned vocabulary one of the candidates from the second
            exit on: int64 [N, exits].
        label_losses: cross-entropy of each exit for the response's next token, in nats: float [N, exits].
        full_model_losses: the same for the prediction of the last exit.
        confidence: :func:`consistentee.methods.policy.confidence_features`, of the candidates with a pruned vocabulary:
            float [N, exits, 4]; None if not requested.
    """

    targets: Tensor
    predictions: Tensor
    label_losses: Tensor
    full_model_losses: Tensor
    confidence: Tensor | None = None

    def losses(self, judged_by: Target) -> Tensor:
        """Return the cross-entropy of each exit for a target: float [N, exits]."""
        return self.label_losses if judged_by == "label" else self.full_model_losses

    def correct(self, judged_by: Target) -> Tensor:
        """Return whether each exit predicts the target: bool [N, exits]."""
        wanted = self.targets if judged_by == "label" else self.predictions[:, -1]
        return self.predictions == wanted.unsqueeze(1)


def exit_answers(
    trace: TokenTrace,
    *,
    with_confidence: bool = False,
    candidates: int | None = None,
    store: Path | None = None,
    progress: str | None = None,
) -> ExitAnswers:
    """Compute the answer of every exit to every token of a trace, in chunks of tokens.

    Args:
        trace: select its tokens first if there are many: the LM head runs on each of them at every exit.
        with_confidence: also compute the confidence, in half as much time again.
        candidates: number of tokens to which exits between the first and the last are restricted, the likeliest of the
            first exit; None for the whole vocabulary. Losses are always those of the whole vocabulary.
        store: folder to keep the answers in, for methods that share exits and tokens.
        progress: title of a progress bar, None for none.
    """
    ask = partial(_ask, trace, with_confidence, candidates, progress)
    if store is None:
        return ExitAnswers(**ask())
    parts = [trace.model.fingerprint(with_heads=False), trace.fingerprint, with_confidence, TRAINING_VERSION]
    parts += [] if candidates is None else [candidates, "tokens agree"]  # earlier stages compared places
    return ExitAnswers(**computed_once(store / f"answers-{hash_json(parts)[:16]}.safetensors", ask))


@torch.no_grad()
def _ask(trace: TokenTrace, with_confidence: bool, candidates: int | None, progress: str | None) -> dict[str, Tensor]:
    chunks = torch.arange(len(trace)).split(CHUNK)
    answered: dict[str, list[Tensor]] = {}
    for chunk in tracked(chunks, progress or "asking exits", rows=CHUNK, shown=progress is not None):
        for name, tensor in _ask_about(trace, chunk, with_confidence, candidates).items():
            answered.setdefault(name, []).append(tensor.cpu())
    return {"targets": trace.targets, **{name: torch.cat(parts) for name, parts in answered.items()}}


def _ask_about(trace: TokenTrace, tokens: Tensor, with_confidence: bool, candidates: int | None) -> dict[str, Tensor]:
    model, exits = trace.model, range(len(trace.exit_layers))
    full_model = _log_probabilities(trace, exits[-1], tokens)
    judges = torch.stack([trace.targets[tokens].to(model.device), full_model.argmax(dim=-1)], dim=1)
    predictions: list[Tensor] = []
    losses, confidence = [], []
    among: Tensor | None = None
    for index in exits:
        scores = full_model if index == exits[-1] else _log_probabilities(trace, index, tokens)
        losses.append(-scores.gather(1, judges))
        if index == 0 and candidates is not None:
            among = likeliest(scores, candidates)
        pruned = among if 0 < index < exits[-1] else None
        if pruned is not None:
            scores = scores.gather(1, pruned).log_softmax(dim=-1)
        answer = best_among(scores, pruned)
        if with_confidence:
            confidence.append(confidence_features(scores.exp(), answer, predictions[-1] if predictions else None))
        predictions.append(answer)
    label_losses, full_model_losses = torch.stack(losses, dim=1).unbind(dim=-1)
    answers = {"label_losses": label_losses, "full_model_losses": full_model_losses}
    if with_confidence:
        answers["confidence"] = torch.stack(confidence, dim=1)
    return {"predictions": torch.stack(predictions, dim=1), **answers}


def _log_probabilities(trace: TokenTrace, exit_index: int, tokens: Tensor) -> Tensor:
    logits = trace.model.logits(trace.exit_layers[exit_index], trace.states(exit_index, tokens))
    return logits.log_softmax(dim=-1)
