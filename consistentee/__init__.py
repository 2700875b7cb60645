"""Early exiting in language models: the library and the ConsistentEE method.

Names are imported on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "ExitRule": "exits",
    "Generations": "generation",
    "Knob": "method",
    "LayerView": "exits",
    "Method": "method",
    "MultiExitDecoder": "decoder",
    "MultiExitModel": "model",
    "NeverExit": "exits",
    "Prompt": "text_data",
    "PromptSplit": "text_data",
    "Recipe": "training",
    "Sampling": "sampling",
    "Split": "data",
    "TaskData": "data",
    "TextTask": "text_data",
    "ThresholdRule": "exits",
    "TokenMethod": "token_method",
    "TokenRecipe": "token_recipe",
    "TokenTrace": "token_trace",
    "Trace": "trace",
    "UserError": "errors",
    "available_methods": "method",
    "classify": "classification",
    "generate": "generation",
    "generate_encoded": "generation",
    "generate_speculatively": "speculation",
    "get_method": "method",
    "record_token_trace": "token_trace",
    "record_tokens": "token_trace",
    "record_trace": "trace",
    "replay": "trace",
    "replay_tokens": "token_trace",
    "sweep": "trace",
    "sweep_tokens": "token_trace",
}

__all__ = sorted(_EXPORTS)  # noqa: PLE0605 (the names are served by __getattr__)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
