"""A trained model, loaded again with the method that trained it and the knob that was chosen."""

from pathlib import Path
from typing import Any, TypeVar

from consistentee.errors import UserError
from consistentee.methods.method import Method, TokenMethod, code_file, get_method
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.encoder.multi_exit_model import MultiExitModel

ModelT = TypeVar("ModelT", MultiExitModel, MultiExitDecoder)

_HOLDS: dict[type, str] = {
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
    """Load a model that ``consistentee train`` or a run of a suite has saved, its method, and the knob to use.

    Args:
        folder: folder of the model.
        model_class: class of the model.
        knob: value of the method's knob; by default the one chosen in training.
        method_name: use the rule of another method, with that method's default parameters.
        allow_code: import the Python file that the folder names as its method. Without it, only registered methods
            are loaded, so that a folder from elsewhere runs no code.

    Raises:
        UserError: the folder holds no trained model of that kind, its method is in a file and ``allow_code`` is not
            set, the knob is out of range, or the method is unknown, reads true labels, or is of the other kind.
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
    values = list(method.knob_values(model))
    chosen = next((value for value in (knob, stored_knob) if value is not None), None)
    if chosen is None:
        return model, method, float(values[len(values) // 2])
    method.check_knob(model, chosen)
    return model, method, float(chosen)


def holds(folder: Path, model_class: type[MultiExitModel] | type[MultiExitDecoder]) -> bool:
    """Check whether a folder holds a saved model of a class."""
    return (folder / model_class.description_class.file).is_file()
