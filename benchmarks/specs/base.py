"""Suites: tasks, methods, backbones and seeds of a run. Cells: one combination, fully specified.

SuiteSpec and CellSpec are for classification, GenerationSuite and GenerationCellSpec for generation.
"""

import itertools
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, JsonValue, ValidationError, model_validator

from benchmarks.specs.method_files import stated_value
from benchmarks.specs.schema import Strict, canonical_json, hash_value, read_fields, validation_sentence
from consistentee.data.tasks import ChatTemplate
from consistentee.errors import UserError, unknown_name
from consistentee.methods.method import ENTRY_POINT_GROUP, TOKEN_ENTRY_POINT_GROUP, MethodGroup
from consistentee.training.recipe import RecipeSettings, TokenRecipeSettings
from consistentee.versions import TaskKind

_ValuesT = TypeVar("_ValuesT", bound=Iterable[object])


def _all_different(values: _ValuesT) -> _ValuesT:
    seen: set[str] = set()
    for value in values:
        if (text := canonical_json(value)) in seen:
            raise ValueError(f"{value!r} is listed twice")
        seen.add(text)
    return values


Unique = AfterValidator(_all_different)
Names = Annotated[tuple[str, ...], Field(min_length=1), Unique]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), Unique]
"""Random seeds, at least 0 as NumPy requires."""
BatchSizes = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1), Unique]

Group = tuple[str, str, int]
"""Task, backbone and seed: cells that share stages and are timed together."""


class BaseOverride(Strict):
    """Settings of one task: seeds, fields of the recipe, and the caps of its kind."""

    seeds: Seeds | None = None
    recipe: dict[str, Any] = Field(default_factory=dict)


class TaskOverride(BaseOverride):
    """Settings of one task of classification, with caps on the scored rows."""

    validation_rows: int | None = Field(default=None, ge=1)
    test_rows: int | None = Field(default=None, ge=1)


class GenerationOverride(BaseOverride):
    """Settings of one task of generation, with caps on prompts and lengths."""

    validation_prompts: int | None = Field(default=None, ge=1)
    test_prompts: int | None = Field(default=None, ge=1)
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    max_new_tokens: int | None = Field(default=None, ge=2)


class MethodEntry(Strict):
    """A method of a suite: its name, its label in tables, and its parameters.

    ``grid`` lists values of some parameters: each combination is a cell, and the label stands for the best on
    validation rows at each budget. ``recipe`` has fields that differ from the suite's, for suites that compare recipes.
    ``tasks``: those of the suite on which the entry runs if no methods are named; by default all.
    """

    method: str
    label: str = Field(
        default="", max_length=200, pattern=r"^\P{C}*$", description="printable: it names curves and folders"
    )
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    grid: dict[str, Annotated[list[JsonValue], Field(min_length=1), Unique]] = Field(default_factory=dict)
    recipe: dict[str, Any] = Field(default_factory=dict)
    tasks: Names | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"method": value}
        if not isinstance(value, Mapping):
            raise ValueError(f"an entry is a method's name, or a mapping that has it under 'method'; got {value!r}")
        return {**value, "label": value.get("label") or label_of(str(value.get("method", "")))}

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Yield the parameters of every cell of this entry."""
        for values in itertools.product(*self.grid.values()):
            yield {**self.parameters, **dict(zip(self.grid, values, strict=True))}


class Regrouped(Strict):
    """Regrouped rows, see ``in_flight`` of :func:`consistentee.classify` and :func:`consistentee.generate`."""

    batch_size: int = Field(ge=1)
    in_flight: int = Field(ge=2)

    @model_validator(mode="after")
    def _holds_a_batch(self) -> Self:
        if self.in_flight <= self.batch_size:
            raise ValueError(f"{self.in_flight} in flight must be more than a batch, {self.batch_size}")
        return self


class TimingSpec(Strict):
    """How knobs are timed, in rounds interleaved with the stock model; without rounds there are no times."""

    rounds: int = Field(default=3, ge=0, description="fewer than 3 show no spread, of which tables warn")
    batch_sizes: BatchSizes = (1, 32)
    rows: int = Field(default=256, ge=1, description="the first test rows, in the order of the data")
    warmup_batches: int = Field(default=2, ge=0, description="untimed batches before every timed pass")
    most_batches: int | None = Field(
        default=None, ge=1, description="timed of each size, from the first rows on; by default all rows are"
    )

    regrouped: tuple[Regrouped, ...] = Field(
        default=(), description="also timed, of the methods that can: batches out of more rows in flight"
    )

    @model_validator(mode="after")
    def _stock_is_timed_alike(self) -> Self:
        for setting in self.regrouped:
            if not {setting.batch_size, setting.in_flight} <= set(self.batch_sizes):
                raise ValueError(
                    f"{setting.batch_size} of {setting.in_flight} in flight are compared with the stock model at both "
                    "sizes, which must be among batch_sizes"
                )
        return self

    @property
    def rows_by_size(self) -> dict[int, int]:
        """The maximum number of rows timed, by batch size."""
        most = self.rows if self.most_batches is None else self.most_batches
        return {size: min(self.rows, size * most) for size in self.batch_sizes}


class DecodingTimingSpec(TimingSpec):
    """How decoding is timed: rows are prompts; prompts and generated tokens are timed separately."""

    batch_sizes: BatchSizes = (1, 8)
    rows: int = Field(default=16, ge=1, description="the first test prompts, in the order of the data")
    max_new_tokens: int | None = Field(default=None, ge=2, description="of a timed text; by default as in the cells")
    warmup_batches: int = Field(default=1, ge=0, description="untimed batches before every timed pass")


class ExitSpec(Strict):
    """Exits of a decoder and their adapters; see ``MultiExitDecoder.from_backbone``."""

    layers: tuple[int, ...] | None = Field(default=None, min_length=1, description="1-based; by default five, evenly")
    adapter: Literal["norm", "low-rank", "head", "shared"] = "low-rank"
    rank: int = Field(default=128, ge=1)
    closing_layers: int = Field(default=0, ge=0, description="last layers that every token runs, wherever it exits")

    @model_validator(mode="after")
    def _closing_layers_fit(self) -> Self:
        if self.closing_layers and self.adapter != "shared":
            raise ValueError(f"exits with closing_layers have adapter 'shared', not {self.adapter!r}")
        if self.layers is not None and self.closing_layers >= min(self.layers):
            raise ValueError(f"closing_layers must be fewer than the {min(self.layers)} layers of the first exit")
        return self


class BaseCellSpec(Strict, ABC):
    """One cell: a task, a backbone, a method with parameters, and a seed."""

    kind: ClassVar[TaskKind]
    names_of_rows: ClassVar[frozenset[str]] = frozenset({"task"})
    """Fields that only locate rows; the key has the hash of the rows instead."""

    task: str
    backbone: str
    method: str
    label: str
    parameters: dict[str, Any]
    seed: int
    recipe: RecipeSettings | TokenRecipeSettings

    @property
    def name(self) -> str:
        values = ", ".join(f"{key}={value}" for key, value in self.parameters.items())
        method = f"{self.label} ({values})" if values else self.label
        return f"{short_name(self.task)} · {short_name(self.backbone)} · {method} · seed {self.seed}"

    @property
    def group(self) -> Group:
        return self.task, self.backbone, self.seed

    @property
    def folder(self) -> Path:
        """The cell's folder, relative to the cells of a run."""
        parameters = "default" if not self.parameters else short_hash(self.parameters)
        parts = (folder_name(self.task), folder_name(self.backbone), folder_name(self.label), parameters)
        return Path(*parts) / f"seed{self.seed}"

    @property
    @abstractmethod
    def rows(self) -> tuple[Hashable, ...]:
        """The settings that its rows depend on."""


class CellSpec(BaseCellSpec):
    """A cell of classification."""

    kind: ClassVar[TaskKind] = "classification"

    recipe: RecipeSettings
    validation_rows: int | None
    test_rows: int | None

    @property
    def rows(self) -> tuple[Hashable, ...]:
        return self.task, self.validation_rows, self.test_rows


class GenerationCellSpec(BaseCellSpec):
    """A cell of generation."""

    kind: ClassVar[TaskKind] = "generation"
    names_of_rows: ClassVar[frozenset[str]] = frozenset({"task", "train_on"})

    train_on: str
    recipe: TokenRecipeSettings
    exits: ExitSpec
    validation_prompts: int
    test_prompts: int
    max_prompt_tokens: int | None
    max_new_tokens: int | None
    batch_size: int
    chat_template: ChatTemplate = "never"

    @property
    def rows(self) -> tuple[Hashable, ...]:
        return self.task, self.train_on, self.validation_prompts, self.test_prompts


class BaseSuite(Strict):
    """The fields of every suite; the kinds add caps and further fields."""

    kind: TaskKind
    method_group: ClassVar[MethodGroup]
    cell_class: ClassVar[type[BaseCellSpec]]

    name: str = Field(pattern=r"^[\w.-]+$", max_length=100)
    description: str
    cost: Mapping[str, float | str] = Field(default_factory=dict, description="what a run took, for readers")
    tasks: Names
    backbones: Names
    seeds: Seeds
    methods: tuple[MethodEntry, ...] = Field(min_length=1)
    recipe: RecipeSettings | TokenRecipeSettings
    timing: TimingSpec = TimingSpec()
    task_overrides: Mapping[str, BaseOverride] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        labels = [entry.label for entry in self.methods]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"the label {label!r} is used by two entries; give one of them another label")
        return self

    @model_validator(mode="after")
    def _overrides_are_valid(self) -> Self:
        named = [("task of task_overrides", task) for task in self.task_overrides]
        named += [(f"task of methods.{entry.label}", task) for entry in self.methods for task in entry.tasks or ()]
        for what, task in named:
            if task not in self.tasks:
                raise ValueError(str(unknown_name(what, task, self.tasks)))
        recipes = {f"task_overrides.{task}": override.recipe for task, override in self.task_overrides.items()}
        recipes |= {f"methods.{entry.label}": entry.recipe for entry in self.methods}
        faults = []
        for place, recipe in recipes.items():
            try:
                replace(self.recipe, **recipe)
            except ValidationError as error:
                faults.append(validation_sentence(error, type(self.recipe), f"{place}.recipe."))
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @model_validator(mode="after")
    def _entries_differ_in_more_than_labels(self) -> Self:
        """Refuse cells of one key, which would share a model and lose the times of one."""
        for task in self.tasks:
            labels: dict[str, str] = {}
            for entry in self.methods:
                for parameters in entry.combinations():
                    cell = self.cell(entry, task=task, backbone=self.backbones[0], seed=0, parameters=parameters)
                    settings = canonical_json(cell.model_dump(mode="json", exclude={"label"}))
                    if (other := labels.setdefault(settings, entry.label)) != entry.label:
                        raise ValueError(f"{other!r} and {entry.label!r} differ in their label alone on {task}")
        return self

    def seeds_for(self, task: str) -> tuple[int, ...]:
        return self.task_overrides.get(task, BaseOverride()).seeds or self.seeds

    def cell(
        self, entry: MethodEntry, *, task: str, backbone: str, seed: int, parameters: dict[str, Any]
    ) -> BaseCellSpec:
        """Return one cell; fields that suites and cells share are the suite's."""
        override = self.task_overrides.get(task, BaseOverride())
        shared = self.cell_class.model_fields.keys() & type(self).model_fields.keys()
        of_the_cell = {
            "task": task,
            "backbone": backbone,
            "method": entry.method,
            "label": entry.label,
            "parameters": parameters,
            "seed": seed,
            "recipe": replace(self.recipe, **override.recipe | entry.recipe),
            **self.own_fields(task),
            **override.model_dump(exclude={"seeds", "recipe"}, exclude_none=True),
        }
        return self.cell_class(**{name: getattr(self, name) for name in shared} | of_the_cell)

    def own_fields(self, task: str) -> dict[str, Any]:
        """Return fields of this kind's cells that depend on the task."""
        return {}


class SuiteSpec(BaseSuite):
    """A suite of classification."""

    kind: Literal["classification"] = "classification"
    method_group: ClassVar[MethodGroup] = ENTRY_POINT_GROUP
    cell_class: ClassVar[type[BaseCellSpec]] = CellSpec

    recipe: RecipeSettings = RecipeSettings()
    task_overrides: Mapping[str, TaskOverride] = Field(default_factory=dict)
    validation_rows: int | None = Field(default=None, ge=1)
    test_rows: int | None = Field(default=None, ge=1)


class GenerationSuite(BaseSuite):
    """A suite of generation."""

    kind: Literal["generation"]
    method_group: ClassVar[MethodGroup] = TOKEN_ENTRY_POINT_GROUP
    cell_class: ClassVar[type[BaseCellSpec]] = GenerationCellSpec

    train_on: str | None = Field(default=None, description="a task that all cells train on; by default each its own")
    recipe: TokenRecipeSettings = TokenRecipeSettings()
    exits: ExitSpec = ExitSpec()
    validation_prompts: int = Field(default=32, ge=1)
    test_prompts: int = Field(default=64, ge=1)
    max_prompt_tokens: int | None = Field(
        default=None, ge=1, description="longer prompts are cut before they are decoded; by default as the task defines"
    )
    max_new_tokens: int | None = Field(default=None, ge=2, description="of a text; by default as the task defines")
    batch_size: int = Field(default=8, ge=1, description="prompts that are decoded at once, where nothing is timed")
    chat_template: ChatTemplate = Field(
        default="never", description="auto: prompts are messages in the tokenizer's chat template, if it has one"
    )
    timing: DecodingTimingSpec = DecodingTimingSpec()
    task_overrides: Mapping[str, GenerationOverride] = Field(default_factory=dict)

    def own_fields(self, task: str) -> dict[str, Any]:
        return {"train_on": self.train_on or task}


def label_of(method: str) -> str:
    """Return the default label of a method: its name; of ``file.py:Class`` the name that the class states, or Class."""
    file, _, class_name = method.rpartition(".py:")
    path = Path(f"{file}.py")
    return str((file and path.is_file() and stated_value(path, class_name, "name")) or class_name)


def own_name(task: str) -> str:
    """Return the name that a task's YAML file gives to the task; any other name as it is."""
    path = Path(os.path.expanduser(task))  # which leaves the home of an unknown user as it is
    is_file = path.suffix in (".yaml", ".yml") and path.is_file()
    return _name_in(path.resolve(), path.stat().st_mtime_ns) or task if is_file else task


@cache
def _name_in(path: Path, _written: int) -> str | None:
    try:
        name = read_fields(path, "task").get("name")
    except UserError:  # it is raised again where the task is loaded
        return None
    return name if isinstance(name, str) else None


def short_name(name: str) -> str:
    """Return the name for tables and records: a task's own name, and of another absolute path the last part."""
    name = own_name(name)
    return Path(name).name if Path(name).is_absolute() else name


def group_name(group: Group) -> str:
    """Return a readable name of a group."""
    task, backbone, seed = group
    return f"{short_name(task)} · {short_name(backbone)} · seed {seed}"


def folder_name(name: str) -> str:
    """Convert a name (a hub id, a path) to a folder's name; a changed name gets a hash, to stay unique."""
    name = own_name(name)
    safe = re.sub(r"[^\w.+-]+", "-", short_name(name)).strip("-.")
    return safe if safe == name else f"{safe}-{short_hash(name)}"


def short_hash(value: Any) -> str:
    """Return the first 10 hexadecimal digits of the hash of a JSON-serialisable value."""
    return hash_value(value)[:10]
