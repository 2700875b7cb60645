"""Checkpoint and resume a training stage: weights, optimiser, random state, validation scores."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from consistentee.files import load_tensors, save_tensors
from consistentee.training.stage import BatchT, ModelT, Stage

_SCORES = "validation_by_epoch/"


def save_checkpoint(
    path: Path, parameters: dict[str, nn.Parameter], optimizer: AdamW, step: int, scores: dict[str, Tensor]
) -> None:
    """Write weights, optimiser moments, random state, step number and scores: plain tensors, no pickle."""
    tensors = scores | {f"weight/{name}": parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value)
    tensors["random_state"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random_state_cuda"] = torch.cuda.get_rng_state()
    tensors["step"] = torch.tensor(step)
    save_tensors(tensors, path)


def resume(
    path: Path | None,
    model: ModelT,
    stage: Stage[ModelT, BatchT],
    parameters: dict[str, nn.Parameter],
    optimizer: AdamW,
) -> int:
    """Load a checkpoint, if there is one, and return the step to go on from."""
    tensors = None if path is None else load_tensors(path)
    if tensors is None or any(tensors[f"weight/{name}"].shape != weight.shape for name, weight in parameters.items()):
        return 0  # nothing there, or written by another version
    note_scores(model, stage, tensors)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weight/{name}"])
            for key in ("step", "exp_avg", "exp_avg_sq"):
                stored = f"optimizer/{key}/{name}"
                if stored in tensors:
                    value = tensors[stored]
                    optimizer.state[parameter][key] = value.to(parameter.device)  # the fused optimiser counts there too
    torch.set_rng_state(tensors["random_state"])
    if "random_state_cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random_state_cuda"])
    return int(tensors["step"])


def note_scores(model: ModelT, stage: Stage[ModelT, BatchT], tensors: dict[str, Tensor]) -> None:
    """Move validation scores, float64 [epochs], from the tensors of a stored stage or checkpoint to the model.

    Scores by another judge, on other validation rows, are dropped.
    """
    stored = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_SCORES)}
    scores = None if stage.judge is None else stored.get(_SCORES + stage.judge.fingerprint())
    if scores is not None:
        model.description.validation_by_epoch[stage.name] = scores.tolist()


def noted_scores(model: ModelT, stage: Stage[ModelT, BatchT]) -> dict[str, Tensor]:
    """Return the model's validation scores as a tensor to store, named by the judge, if there are any."""
    scores = model.description.validation_by_epoch.get(stage.name)
    if scores is None or stage.judge is None:
        return {}
    return {_SCORES + stage.judge.fingerprint(): torch.tensor(scores, dtype=torch.float64)}
