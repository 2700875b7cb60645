"""pipeline: a saved model in three lines, as ``transformers.pipeline`` has it, and the exit layer of each answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, NotRequired, TypedDict, TypeVar

from consistentee.arguments import Number, checked
from consistentee.data.tasks import Text
from consistentee.engine.classify import classify
from consistentee.errors import UserError
from consistentee.files import hash_file
from consistentee.methods.method import AnyMethod, Method, code_file, get_method
from consistentee.methods.token_methods import TokenMethod
from consistentee.models.base import chosen_device
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.encoder import MultiExitModel
from consistentee.rules.exit_rule import ExitRule

ModelT = TypeVar("ModelT", MultiExitModel, MultiExitDecoder)

_HOLDS: dict[type[MultiExitModel] | type[MultiExitDecoder], str] = {
    MultiExitModel: "a model of classification, which writes no text; see `consistentee predict`",
    MultiExitDecoder: "a decoder, which labels no text; see `consistentee generate`",
}


def load_saved(
    folder: Path,
    model_class: type[ModelT],
    knob: float | None = None,
    method_name: str | None = None,
    *,
    allow_code: bool = False,
) -> tuple[ModelT, Method[ModelT, Any, Any], float]:
    """Load a saved model of a class, its method, and the knob to use, as :func:`load` does.

    ``method_name``: use the rule of another method, with that method's default parameters.
    """
    if not folder.is_dir():
        raise UserError(f"no such model folder: {folder}; `consistentee train` makes one")
    for other, says in _HOLDS.items():
        if other is not model_class and holds(folder, other):
            raise UserError(f"{folder} holds {says}")
    description = model_class.description_class.read(folder)
    if description.method_name is None:
        raise UserError(f"{folder} does not say which method trained it, so there is no exit rule to use")
    code = code_file(description.method_name)
    if code is not None and not allow_code:
        raise UserError(
            f"{folder / description.file} names a method in {code}, and that file was not run; "
            "if you trust it, use --allow-code, or allow_code=True in Python"
        )
    saved_hash = description.method_sha256
    if code is not None and saved_hash is not None and Path(code).is_file() and hash_file(Path(code)) != saved_hash:
        raise UserError(f"{code} is not the file that was saved with the model: its hash differs, so it was not run")
    # Before the model, which may need the kind of classifiers that the method's file enters.
    method = get_method(description.method_name, **description.method_parameters)
    stored_knob = description.default_knob
    if method_name is not None:
        method, stored_knob = get_method(method_name), None
        if isinstance(method, TokenMethod) != (model_class is MultiExitDecoder):
            raise UserError(f"{method.name} is a method of another kind of model than {folder} holds")
    if method.replay_only:
        raise UserError(f"{method.name} reads the true labels, so it cannot predict")
    model = model_class.from_pretrained(folder)
    model.to(chosen_device())
    chosen = stored_knob if knob is None else knob
    if chosen is None:
        values = method.knob_values(model)
        chosen = values[len(values) // 2]
    method.check_knob(model, chosen)
    return model, method, float(chosen)


def holds(folder: Path, model_class: type[MultiExitModel] | type[MultiExitDecoder]) -> bool:
    """Check whether a folder holds a saved model of a class."""
    return (folder / model_class.description_class.file).is_file()


@checked
def load(
    folder: str | Path, *, knob: Number | None = None, allow_code: bool = False
) -> tuple[MultiExitModel | MultiExitDecoder, AnyMethod, float]:
    """Load what ``Method.save``, ``consistentee train`` or a run has saved: a model, its method and the knob to use.

    Args:
        folder: of the model.
        knob: of its method; by default the one it was saved with.
        allow_code: import the Python file that the folder names as its method. Without it, only registered methods
            are loaded, so that a folder from elsewhere runs no code.

    Raises UserError if the folder holds no trained model, names a method that cannot be used, or the knob is out of
    range.
    """
    folder = Path(folder).expanduser()
    if holds(folder, MultiExitDecoder):
        return load_saved(folder, MultiExitDecoder, knob, allow_code=allow_code)
    return load_saved(folder, MultiExitModel, knob, allow_code=allow_code)


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
    """Label texts; each exits where the rule decides. Threads take turns, for tokenizers are not made for several."""

    model: MultiExitModel
    rule: ExitRule
    _turn: Lock = field(default_factory=Lock, repr=False, compare=False)

    def __call__(
        self, texts: Text | Sequence[Text], batch_size: int = 32, in_flight: int | None = None
    ) -> list[Classified]:
        """Classify a text, a pair of texts, or a list of either; see :func:`consistentee.classify`."""
        rows: Sequence[Text] = [texts] if isinstance(texts, (str, tuple)) else texts
        with self._turn:
            found = classify(self.model, rows, self.rule, batch_size=batch_size, in_flight=in_flight)
        layers = found.exit_layers.tolist()
        if self.model.num_labels == 1:
            values = found.predictions.tolist()
            return [{"score": value, "exit_layer": layer} for value, layer in zip(values, layers, strict=True)]
        names = self.model.description.label_names or [str(label) for label in range(self.model.num_labels)]
        scores, labels = found.logits.softmax(dim=-1).max(dim=-1)
        return [
            {"label": names[label], "score": score, "exit_layer": layer}
            for label, score, layer in zip(labels.tolist(), scores.tolist(), layers, strict=True)
        ]


@dataclass(frozen=True)
class Writer:
    """Continue texts; each new token exits where the method's rule decides at a knob."""

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
    model: str | Path, *, knob: Number | None = None, device: str | None = None, allow_code: bool = False
) -> Classifier | Writer:
    """Load a saved model that answers texts: a :class:`Classifier`, or a :class:`Writer` for a decoder.

    Args:
        model: folder, as for :func:`load`.
        knob, allow_code: as for :func:`load`, and so are the errors.
        device: where it runs; by default on an accelerator, if there is one, or where CONSISTENTEE_DEVICE says.
    """
    found, method, chosen = load(model, knob=knob, allow_code=allow_code)
    if device is not None:
        found.to(device)
    if isinstance(found, MultiExitDecoder):
        assert isinstance(method, TokenMethod)
        return Writer(found, method, chosen)
    return Classifier(found, method.rule(found, chosen))
