"""ExitAnswers: what every exit says of recorded tokens, without the logits that it came from."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from consistentee.files import hash_tensors, load_tensors, only_one, save_tensors
from consistentee.policy import confidence_features
from consistentee.token_recipe import Target
from consistentee.token_trace import CHUNK, TokenTrace


@dataclass(frozen=True)
class ExitAnswers:
    """All that rewards and learned heads need of the LM head, for every token of a trace, on the CPU.

    Attributes:
        wanted: the token that counts as right: int64 [N].
        predictions: the token that each exit names: int64 [N, exits].
        losses: cross-entropy of each exit against ``wanted``, in nats: float [N, exits].
        confidence: see :func:`consistentee.policy.confidence_features`: float [N, exits, 4].
    """

    wanted: Tensor
    predictions: Tensor
    losses: Tensor
    confidence: Tensor

    @property
    def correct(self) -> Tensor:
        """Whether each exit names the wanted token: bool [N, exits]."""
        return self.predictions == self.wanted.unsqueeze(1)


def exit_answers(
    trace: TokenTrace, judged_by: Target = "label", *, store: Path | None = None, progress: str | None = None
) -> ExitAnswers:
    """Ask every exit for its answer to every token of a trace, once; a chunk of tokens at a time.

    Args:
        trace: select its tokens first, where there are many: the LM head runs on each of them at every exit.
        judged_by: the wanted token is the next one of the response, or the one that the last exit names.
        store: folder where answers are kept, for methods that share exits and tokens; None keeps nothing.
        progress: title of a progress bar, or None for none.
    """
    if store is None:
        return _ask(trace, judged_by, progress)
    parts = [trace.model.fingerprint(with_heads=False), hash_tensors({"hidden": trace.hidden}), judged_by]
    key = hashlib.sha256(json.dumps([*parts, hash_tensors({"targets": trace.targets})]).encode()).hexdigest()[:16]
    path = store / f"answers-{key}.safetensors"
    with only_one(path):
        tensors = load_tensors(path)
        if tensors is None:
            answers = _ask(trace, judged_by, progress)
            save_tensors(vars(answers), path)
            return answers
    return ExitAnswers(**tensors)


@torch.no_grad()
def _ask(trace: TokenTrace, judged_by: Target, progress: str | None) -> ExitAnswers:
    chunks: Iterable[Tensor] = torch.arange(len(trace)).split(CHUNK)
    parts = [
        _ask_about(trace, chunk, judged_by)
        for chunk in track(list(chunks), description=progress or "", disable=progress is None, transient=True)
    ]
    return ExitAnswers(*(torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])))


def _ask_about(trace: TokenTrace, tokens: Tensor, judged_by: Target) -> ExitAnswers:
    model, last = trace.model, len(trace.exit_layers) - 1
    wanted = trace.targets[tokens].to(model.device)
    if judged_by == "full model":
        wanted = model.logits(trace.exit_layers[last], trace.states(last, tokens)).argmax(dim=-1)
    predictions: list[Tensor] = []
    losses, confidence = [], []
    for index, layer in enumerate(trace.exit_layers):
        logits = model.logits(layer, trace.states(index, tokens))
        losses.append(functional.cross_entropy(logits, wanted, reduction="none"))
        confidence.append(confidence_features(logits.softmax(dim=-1), predictions[-1] if predictions else None))
        predictions.append(logits.argmax(dim=-1))
    columns = (torch.stack(column, dim=1).cpu() for column in (predictions, losses, confidence))
    return ExitAnswers(wanted.cpu(), *columns)
