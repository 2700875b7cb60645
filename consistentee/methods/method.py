"""Method, the interface every early-exit method has; and how methods are found by name, file or entry point.

The interface is one for both kinds of rows: ``Method[Model, Task, Recipe]``. Without parameters, ``Method`` is that of
classification; :class:`consistentee.TokenMethod` is that of generation. Nothing here loads torch.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Generic, Literal, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypeVar

from consistentee.arguments import Number, check_fields, checked, explained
from consistentee.data.tasks import TaskData
from consistentee.errors import UserError, unknown_name
from consistentee.files import hash_json
from consistentee.training.recipe import ExitNetwork, Recipe, TokenRecipe

if TYPE_CHECKING:
    from consistentee.data.tasks import TextTask
    from consistentee.models.base import MultiExit
    from consistentee.models.encoder import MultiExitModel
    from consistentee.rules.exit_rule import ExitRule

ENTRY_POINT_GROUP: Final = "consistentee.methods"
"""Methods whose rows are instances: classification."""

TOKEN_ENTRY_POINT_GROUP: Final = "consistentee.token_methods"
"""Methods whose rows are tokens being decoded: generation."""

REMOVED: Final = {
    **dict.fromkeys(("consistentee", "consistentee-ablation", "consistentee-ladder"), "consistentee-paper"),
    **dict.fromkeys(("consistentee-curve", "consistentee-distilled-curve"), "consistentee-held-out"),
    "consistentee-tokens-curve": "consistentee-tokens-ladder",
    "cap-nsp": "calm-softmax",
    "balcony": "kangaroo",
    "soft": "lite",
    "token-random": "token-static",
    **dict.fromkeys(("calm-tokens-state", "token-entropy", "token-patience"), "calm-tokens-softmax"),
}
"""Methods that were registered up to commit a15487aa, by the one to use instead."""

MethodGroup = Literal["consistentee.methods", "consistentee.token_methods"]

ModelT = TypeVar("ModelT", bound="MultiExit", default="MultiExitModel")
TaskT = TypeVar("TaskT", bound="TaskData | TextTask", default=TaskData)
RecipeT = TypeVar("RecipeT", bound=Recipe | TokenRecipe, default=Recipe)


@checked
@dataclass(frozen=True)
class Knob:
    """The parameter that is swept to draw a curve.

    Attributes:
        name: as tables show it.
        values: the usual ones, from earliest to latest exits.
        refined: whether a cell also tries values between these wherever the layers of neighbours are far apart on
            validation rows: for thresholds of a signal most of whose values are close to each other.
    """

    name: str
    values: Annotated[tuple[Number, ...], Field(min_length=1, strict=False)]
    refined: bool = False


@dataclass(frozen=True)
class Method(ABC, Generic[ModelT, TaskT, RecipeT]):
    """How to train, which rule, which knob.

    Subclasses are frozen dataclasses; their fields are the parameters. Values that the annotation of a field excludes
    raise UserError. So do a task in ``fit`` and a knob in ``rule`` that the method is not defined for.

    Class attributes:
        name: as users type it.
        version: raised by hand whenever the method's numbers may change, with a line in docs/versions.md.
        paper: the source, one line.
        knob: what is swept.
        supports_regression: whether the method is defined for a numeric target.
        replay_only: the rule needs true labels, so it can be replayed on a trace but not run live.
        no_effect_if: parameters to refuse while another one has some value, by that one and its value.
        hidden_effects: parameters whose effect no model of four layers shows, with the reason; check-method wants to
            see that of all others.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    paper: ClassVar[str]
    knob: ClassVar[Knob]
    supports_regression: ClassVar[bool] = False
    replay_only: ClassVar[bool] = False
    no_effect_if: ClassVar[Mapping[str, tuple[str, object]]] = {}
    hidden_effects: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for name, wrap in {"fit": _with_checked_task, "rule": _with_checked_knob, "generate": checked}.items():
            if name in vars(cls):
                setattr(cls, name, wrap(vars(cls)[name]))

    def __post_init__(self) -> None:
        check_fields(self, self.name)
        for parameter, (other, value) in self.no_effect_if.items():
            if getattr(self, other) == value:
                self.refuse(parameter, because=f"{other} is {value!r}")

    @abstractmethod
    def fit(self, model: ModelT, task: TaskT, recipe: RecipeT) -> ModelT:
        """Train ``model`` (a fresh multi-exit backbone, changed in place) on ``task.train``; return it or its copy."""

    @abstractmethod
    def rule(self, model: ModelT, knob: float) -> "ExitRule":
        """Return the exit rule at one value of the knob."""

    def knob_values(self, model: ModelT) -> Sequence[float]:
        """Return the values worth sweeping on this model, from earliest to latest exits.

        With the first one every row that may exits at the first exit, with the last one all run to full depth. A method
        with one operating point has one value.
        """
        return self.knob.values

    @property
    def refines_knob(self) -> bool:
        """Whether cells also try values between those: see :class:`Knob`."""
        return self.knob.refined

    @property
    def learns_from_validation(self) -> bool:
        """Whether ``fit`` learns from validation rows, which then prove nothing about the model."""
        return False

    @checked
    def check_knob(self, model: ModelT, knob: Number) -> None:
        """Raise UserError if ``knob`` lies outside the range of this method's knob."""
        values = self.knob_values(model)
        low, high = min(values), max(values)
        if not low <= knob <= high:
            raise UserError(f"{self.name}: the knob {self.knob.name!r} must lie in [{low:g}, {high:g}], got {knob:g}")

    def check_task(self, task: TaskT) -> None:
        """Raise UserError if the method is not defined for this kind of task."""
        if not isinstance(task, TaskData):
            raise UserError(f"{self.name} answers with labels, and task {getattr(task, 'name', task)!r} asks for texts")
        if task.regression and not self.supports_regression:
            raise UserError(f"{self.name} is not defined for a regression, and task {task.name!r} is one")

    def check_model(self, model: ModelT) -> None:
        """Raise UserError if the method cannot work with a model. By default it can."""

    def refuse(self, *parameters: str, because: str) -> None:
        """Raise UserError if one of some parameters is set, which has no effect: ``because`` says why."""
        for parameter in dataclasses.fields(self):
            if parameter.name in parameters and getattr(self, parameter.name) != parameter.default:
                raise UserError(f"{self.name}: {parameter.name} has no effect here, because {because}")

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters and their values, as given to :func:`get_method`."""
        return dataclasses.asdict(self)

    @checked
    def save(self, model: ModelT, knob: Number | None, folder: str | Path) -> None:
        """Save a model that this method has trained, for ``consistentee.load``, ``pipeline`` and the command line.

        ``knob`` is the value to use by default; None for the middle one. Raises UserError if it is out of range, or if
        the method's class is not in a file that can be read again.
        """
        if knob is not None:
            self.check_knob(model, knob)
        _note(self, model)
        model.description.default_knob = None if knob is None else float(knob)
        model.save_pretrained(folder)


AnyMethod: TypeAlias = Method[Any, Any, Any]
"""A method of either kind, as found by name."""


def _with_checked_task(fit: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fit)
    def run(self: AnyMethod, model: Any, task: Any, recipe: Any) -> Any:
        self.check_task(task)
        return fit(self, model, task, recipe)

    return checked(run)


def _with_checked_knob(rule: Callable[..., "ExitRule"]) -> Callable[..., "ExitRule"]:
    @functools.wraps(rule)
    def run(self: AnyMethod, model: Any, knob: float) -> "ExitRule":
        self.check_knob(model, knob)
        layers = getattr(model.description, "asked_layers", ())
        if not layers:
            return rule(self, model, knob)
        from consistentee.rules.exit_rule import SomeLayersRule

        return SomeLayersRule(rule(self, model, knob), *layers)

    return run


@dataclass(frozen=True)
class JointMethod(Method):
    """Base of methods with a rule on the jointly trained model, whose stage they share.

    Attributes:
        classifier: the network of the exits before layer L.
    """

    classifier: ExitNetwork = "linear"

    def fit(self, model: "MultiExitModel", task: TaskData, recipe: Recipe) -> "MultiExitModel":
        """Train backbone and all classifiers together, on ``sum_t t * CE_t / sum_t t``."""
        from consistentee.training.encoder import train_jointly, use_exit_network

        use_exit_network(model, self.classifier, recipe)
        train_jointly(model, task, recipe)
        return model


def train_method(method: Method[ModelT, TaskT, RecipeT], model: ModelT, task: TaskT, recipe: RecipeT) -> ModelT:
    """Check task and model, fit ``method``, and note in the model its task and method."""
    method.check_task(task)
    method.check_model(model)
    model = method.fit(model, task, dataclasses.replace(recipe, method=_identity(method)))
    model.description.task_name = task.name
    _note(method, model)
    if isinstance(recipe, Recipe):
        model.description.max_length = recipe.max_length  # type: ignore[attr-defined]
    return model


def _note(method: AnyMethod, model: "MultiExit") -> None:
    """Note a method in a model, so that the saved model finds its rule again."""
    model.description.method_name = _name_of_class(type(method))
    model.description.method_parameters = method.parameters


def _identity(method: AnyMethod) -> str:
    """Return name and version of a method, and a hash of the files of a user's method, which has no version."""
    from consistentee.versions import users_code

    code = users_code(base.__module__ for base in type(method).__mro__)
    return f"{method.name} {method.version}" + (f" {hash_json(code)}" if code else "")


@checked
def available_methods(group: MethodGroup = ENTRY_POINT_GROUP) -> dict[str, EntryPoint]:
    """Return the registered methods of a group by name, without importing any of them."""
    return {point.name: point for point in _entry_points(group)}


@functools.cache  # a run looks up hundreds of methods, and packages stay
def _entry_points(group: str) -> EntryPoints:
    return entry_points(group=group)


@checked
def get_method(name: str, **parameters: Any) -> AnyMethod:
    """Return a method by its registered name or as ``path/to/file.py:ClassName``, with the given parameters.

    Raises UserError for an unknown name or parameter, and for a method that cannot be imported.
    """
    method_class = method_class_of(name)
    fields = {field.name for field in dataclasses.fields(method_class)}
    for parameter in parameters:
        if parameter not in fields:
            raise unknown_name(f"parameter of {name}", parameter, fields)
    try:
        return TypeAdapter(method_class).validate_python(parameters)
    except ValidationError as error:
        raise explained(error, f"parameter {error.errors()[0]['loc'][0]!r} of {name}") from error


def method_class_of(name: str) -> type[AnyMethod]:
    """Return the class behind a method's name or ``file.py:ClassName``; errors as for :func:`get_method`."""
    path, attribute = code_file(name), name.rpartition(":")[2]
    if path is not None:
        module = _load_file(Path(path))
        if not hasattr(module, attribute):
            raise unknown_name(f"class in {path}", attribute, _own_methods(module))
        return _valid_class(getattr(module, attribute), name)
    methods = available_methods() | available_methods(TOKEN_ENTRY_POINT_GROUP)
    if name not in methods and name in REMOVED:
        raise UserError(f"method {name!r} was removed; use {REMOVED[name]}, or commit a15487aa, which has it")
    if name not in methods:
        raise unknown_name("method", name, methods)
    try:
        loaded = methods[name].load()
    except (Exception, SystemExit) as error:  # a plug-in may fail in any way at all, and even end the process
        raise UserError(f"method {name!r} ({methods[name].value}) cannot be imported: {_sentence(error)}") from error
    return _valid_class(loaded, name)


def _name_of_class(method_class: type[AnyMethod]) -> str:
    """Return the registered name of a class, or ``file.py:Class``."""
    points = available_methods() | available_methods(TOKEN_ENTRY_POINT_GROUP)
    place = f"{method_class.__module__}:{method_class.__qualname__}"
    if method_class.name in points and points[method_class.name].value == place:
        return method_class.name
    file = getattr(sys.modules.get(method_class.__module__), "__file__", None)
    if file is None or "." in method_class.__qualname__:
        raise UserError(f"{method_class.__qualname__} cannot be found again; define it at the top level of a file")
    return f"{Path(file).resolve()}:{method_class.__qualname__}"


def code_file(name: str) -> str | None:
    """Return the file of a method that is named as ``file.py:ClassName``; None for a registered method."""
    return name.rpartition(":")[0] if ".py:" in name else None


def methods_in_file(path: Path) -> list[str]:
    """Return the methods that a Python file defines, as ``file.py:ClassName``, in the order of the file.

    Raises UserError for a file that cannot be imported.
    """
    return [f"{path}:{name}" for name in _own_methods(_load_file(path))]


def _own_methods(module: ModuleType) -> list[str]:
    """Return the methods that a module defines itself, without abstract and private base classes."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Method)
        and value.__module__ == module.__name__
        and not (inspect.isabstract(value) or name.startswith("_"))
    ]


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"no such method file: {path}")
    folder = hashlib.sha256(str(path.resolve().parent).encode()).hexdigest()[:8]
    module_name = f"consistentee_user_method_{folder}_{path.stem}"  # two folders may have files of the same name
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their own module up by name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's file may fail in any way at all, and even end the process
        raise UserError(f"{path} cannot be imported: {_sentence(error)}") from error
    return module


def _sentence(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())


def _valid_class(candidate: object, name: str) -> type[AnyMethod]:
    if not (isinstance(candidate, type) and issubclass(candidate, Method)):
        raise UserError(f"{name} is not a subclass of consistentee.Method")
    missing = [a for a in ("name", "paper", "knob") if not hasattr(candidate, a)]
    if missing:
        raise UserError(f"{name} does not define the class attribute(s) {', '.join(missing)}")
    if not (isinstance(candidate.knob, Knob) and candidate.knob.values):
        raise UserError(f"the knob of {name} must be a consistentee.Knob with at least one value")
    if inspect.isabstract(candidate):
        raise UserError(f"{name} does not define {' and '.join(sorted(candidate.__abstractmethods__))}")
    return candidate
