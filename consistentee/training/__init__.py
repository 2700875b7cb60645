"""Training: the stages that methods share, and the parts for stages of your own. A public module."""

from typing import Any

from consistentee.exports import served

_EXPORTS = {
    "FeatureBatch": "training.sources",
    "StateBatch": "training.decoder.sources",
    "TokenBatch": "training.sources",
    "cached_rows": "training.stages",
    "depth_weighted_loss": "training.stages",
    "distillation_loss": "training.stages",
    "exit_answers": "methods.token_answers",
    "layer_losses": "training.stages",
    "run_stage": "training.loop",
    "token_stage": "training.stages",
    "train_branches": "training.decoder.branch_stage",
    "train_exits": "training.decoder.stages",
    "train_heads": "training.stages",
    "train_jointly": "training.stages",
    "train_jointly_on": "training.stages",
    "train_last_exit": "training.stages",
    "train_last_exit_on": "training.stages",
    "train_learned_head": "training.decoder.stages",
    "training_source": "training.stages",
}

__all__ = sorted(_EXPORTS)  # noqa: PLE0605 (the names are served by __getattr__)


def __getattr__(name: str) -> Any:
    return served(__name__, _EXPORTS, name)


def __dir__() -> list[str]:
    return list(__all__)
