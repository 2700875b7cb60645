"""Early exiting in language models: the library and the ConsistentEE method.

Names are imported on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "ExitRule": "rules.exit_rule",
    "Generations": "engine.generate",
    "Knob": "methods.method",
    "LayerView": "rules.view",
    "Method": "methods.method",
    "MultiExitDecoder": "models.decoder.multi_exit_decoder",
    "MultiExitModel": "models.encoder.multi_exit_model",
    "NeverExit": "rules.exit_rule",
    "Prompt": "data.prompts",
    "PromptSplit": "data.prompts",
    "ReadPrompts": "engine.step.read_prompts",
    "Recipe": "training.recipe",
    "Sampling": "engine.step.sampling",
    "Split": "data.instances",
    "TaskData": "data.instances",
    "TextTask": "data.prompts",
    "ThresholdRule": "rules.exit_rule",
    "TokenMethod": "methods.token_method",
    "TokenRecipe": "training.recipe",
    "TokenTrace": "traces.token_trace",
    "Trace": "traces.instance_trace",
    "UserError": "errors",
    "available_methods": "methods.method",
    "classify": "engine.classify",
    "control_risk": "deployment.risk_control",
    "generate": "engine.generate",
    "generate_encoded": "engine.generate",
    "generate_speculatively": "engine.speculation",
    "get_method": "methods.method",
    "pipeline": "deployment.pipeline",
    "record_token_trace": "traces.token_trace",
    "record_tokens": "traces.token_trace",
    "record_trace": "traces.instance_trace",
    "replay": "traces.walk",
    "replay_tokens": "traces.walk",
    "stream_texts": "engine.generate",
    "sweep": "traces.walk",
    "sweep_tokens": "traces.walk",
}

__all__ = sorted(_EXPORTS)  # noqa: PLE0605 (the names are served by __getattr__)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
