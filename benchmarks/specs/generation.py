"""GenerationSuite: a suite whose rows are decoded tokens. GenerationCellSpec: one cell of it, fully specified."""

from collections.abc import Hashable, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from benchmarks.specs.base import BaseCellSpec, BaseOverride, BaseSuite, BatchSizes, TimingSpec
from benchmarks.specs.schema import Strict
from consistentee.data.tasks import ChatTemplate
from consistentee.methods.method import TOKEN_ENTRY_POINT_GROUP, MethodGroup
from consistentee.training.recipe import TokenRecipeSettings
from consistentee.versions import Kind


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


class DecodingTimingSpec(TimingSpec):
    """How decoding is timed: rows are prompts; prompts and generated tokens are timed separately."""

    batch_sizes: BatchSizes = (1, 8)
    rows: int = Field(default=16, ge=1, description="the first test prompts, in the order of the data")
    max_new_tokens: int | None = Field(default=None, ge=2, description="of a timed text; by default as in the cells")
    warmup_batches: int = Field(default=1, ge=0, description="untimed batches before every timed pass")


class GenerationOverride(BaseOverride):
    """Settings of one task of generation, with caps on prompts and lengths."""

    validation_prompts: int | None = Field(default=None, ge=1)
    test_prompts: int | None = Field(default=None, ge=1)
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    max_new_tokens: int | None = Field(default=None, ge=2)


class GenerationCellSpec(BaseCellSpec):
    """A cell of generation."""

    kind: ClassVar[Kind] = "generation"
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
