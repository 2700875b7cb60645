"""Early exiting in language models: the library and the ConsistentEE method. A public module.

Names are imported on first use, so that importing the package costs nothing.
"""

from typing import Any

from consistentee.exports import served

__version__ = "0.1.0"

_EXPORTS = {
    "BranchSpec": "models.decoder.branches",
    "CLASSIFIER_KINDS": "models.classifiers",
    "ClassifierSpec": "models.classifiers",
    "ConsecutiveRule": "rules.exit_rule",
    "DecoderStack": "models.decoder.stack",
    "DraftingMethod": "methods.drafting",
    "ExitRule": "rules.exit_rule",
    "Generations": "engine.generate",
    "HeadSpec": "models.heads",
    "InternalClassifier": "models.classifiers",
    "Knob": "methods.method",
    "LayerView": "rules.view",
    "Method": "methods.method",
    "MultiExitDecoder": "models.decoder.multi_exit_decoder",
    "MultiExitModel": "models.encoder.multi_exit_model",
    "NeverExit": "rules.exit_rule",
    "Predictions": "engine.classify",
    "Prompt": "data.prompts",
    "PromptSplit": "data.prompts",
    "ReadPrompts": "engine.prompt_batch",
    "Recipe": "training.recipe",
    "Sampling": "engine.sampling",
    "SkippedSublayers": "models.decoder.branches",
    "Split": "data.instances",
    "TaskData": "data.instances",
    "TextTask": "data.prompts",
    "ThresholdRule": "rules.exit_rule",
    "TokenExitStepper": "backbones.token_exits",
    "TokenMethod": "methods.token_method",
    "TokenRecipe": "training.recipe",
    "TokenTrace": "traces.token_trace",
    "Trace": "traces.instance_trace",
    "UserError": "errors",
    "VocabularyMethod": "methods.vocabulary_method",
    "available_methods": "methods.method",
    "classify": "engine.classify",
    "control_risk": "deployment.risk_control",
    "generate": "engine.generate",
    "generate_encoded": "engine.generate",
    "generate_speculatively": "engine.speculation",
    "get_method": "methods.method",
    "pipeline": "deployment.pipeline",
    "prune_vocabulary": "rules.vocabulary",
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
    return served(__name__, _EXPORTS, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
