"""pipeline: a saved model in three lines, as ``transformers.pipeline`` has it, and the exit layer of each answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from consistentee.arguments import Number, checked
from consistentee.data.instances import Text
from consistentee.deployment.saved import holds, load_saved
from consistentee.engine.classify import classify
from consistentee.methods.method import TokenMethod
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.rules.exit_rule import ExitRule


class Classified(TypedDict):
    """The answer to one text: a label and its probability; for a regression, a value as the score alone."""

    label: NotRequired[str]
    score: float
    exit_layer: int


class Written(TypedDict):
    """A text with what goes on from it, and the exit layer of every new token."""

    generated_text: str
    exit_layers: list[int]


@dataclass(frozen=True)
class Classifier:
    """Labels texts, each leaving the model where the rule says."""

    model: MultiExitModel
    rule: ExitRule

    def __call__(self, texts: Text | Sequence[Text], batch_size: int = 32) -> list[Classified]:
        """Classify a text, a pair of texts, or a list of either; errors as :func:`consistentee.classify`."""
        rows: Sequence[Text] = [texts] if isinstance(texts, (str, tuple)) else texts
        found = classify(self.model, rows, self.rule, batch_size=batch_size)
        layers = found.exit_layers.tolist()
        if self.model.num_labels == 1:
            values = found.predictions.tolist()
            return [{"score": value, "exit_layer": layer} for value, layer in zip(values, layers, strict=True)]
        scores, labels = found.logits.softmax(dim=-1).max(dim=-1)
        return [
            {"label": self._name(label), "score": score, "exit_layer": layer}
            for label, score, layer in zip(labels.tolist(), scores.tolist(), layers, strict=True)
        ]

    def _name(self, label: int) -> str:
        return self.model.label_names[label] if self.model.label_names else str(label)


@dataclass(frozen=True)
class Writer:
    """Goes on from texts, each new token leaving the model where the method's rule says at a knob."""

    model: MultiExitDecoder
    method: TokenMethod
    knob: float

    def __call__(self, prompts: str | Sequence[str], max_new_tokens: int = 64, **options: Any) -> list[Written]:
        """Continue a text or a list of them; options and errors as for :func:`consistentee.generate`."""
        texts = [prompts] if isinstance(prompts, str) else prompts
        found = self.method.generate(self.model, texts, self.knob, max_new_tokens=max_new_tokens, **options)
        return [
            {"generated_text": text + new, "exit_layers": layers.tolist()}
            for text, new, layers in zip(texts, found.texts, found.exit_layers, strict=True)
        ]


@checked
def pipeline(
    model: str | Path, *, knob: Number | None = None, device: str = "cpu", allow_code: bool = False
) -> Classifier | Writer:
    """Load a saved model that answers texts: a :class:`Classifier`, or a :class:`Writer` for a decoder.

    Args:
        model: a folder that ``consistentee train`` or a run of a suite has saved.
        knob: of its method; by default the one chosen in training.
        device: where it runs.
        allow_code: import the Python file that the folder names as its method; only registered methods without it.

    Raises UserError if the folder holds no trained model, names a method in a file without ``allow_code``, or the knob
    is out of range.
    """
    folder = Path(model).expanduser()
    if holds(folder, MultiExitDecoder):
        decoder, found, chosen = load_saved(folder, MultiExitDecoder, knob, allow_code=allow_code)
        assert isinstance(found, TokenMethod)
        return Writer(decoder.to(device), found, chosen)
    encoder, method, chosen = load_saved(folder, MultiExitModel, knob, allow_code=allow_code)
    encoder.to(device)
    return Classifier(encoder, method.rule(encoder, chosen))
