"""Recipes: how to train, the same for every method of a suite, so that methods are compared and not recipes.

A suite and the command line set the *settings*; a recipe adds the fields of one run. Nothing here loads torch, so that
suites and cells are read fast.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from consistentee.arguments import checked
from consistentee.data.tasks import Split

if TYPE_CHECKING:
    from torch import Tensor

    from consistentee.traces.token_trace import TokenTrace

Trains = Literal["exits", "lora", "all"]
"""Trained weights: exit adapters on a frozen backbone; low-rank updates of the backbone too; or all of it."""

Target = Literal["label", "full model"]
"""The target of an exit: the next token of the response, or the distribution of the last exit."""

ExitWeights = Literal["depth", "squared depth", "equal"]
"""Weights of the exits' losses while the backbone learns: proportional to this power of depth."""

ExitNetwork = Literal["linear", "mlp", "attention"]
"""Network of the exits before layer L; that of layer L is linear.

"mlp" has a tanh layer more, and "attention" reads every token, as the students of FastBERT. If the backbone has a
pooler, a linear exit reads it.
"""

PrecisionSetting = Literal["float32", "bfloat16", "auto"]
"""Precision of the layers' products in training; "auto" is the one that is faster on such a machine."""

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class OneRun:
    """The fields of a recipe that belong to one run and not to a suite.

    Attributes:
        seed: seeds new weights, the order of rows and dropout.
        store: folder where shared passes, shared stages and checkpoints are kept; None keeps nothing.
        progress: show a progress bar of each stage.
        keep_stages: keep every finished stage in the store, and not only those that methods share.
        method: identifies the method that trains; stages with losses of its own are stored under it.
    """

    seed: int = 0
    store: Path | None = None
    progress: bool = False
    keep_stages: bool = False
    method: str = ""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class BaseSettings:
    """Settings of both kinds of recipe, which the training loop reads."""

    weight_decay: float = Field(default=0.01, ge=0, description="of matrices; vectors have none")
    warmup_ratio: float = Field(default=0.1, ge=0, le=1, description="part of the steps; the rate then decays to 0")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are clipped to this norm")
    group_by_length: bool = Field(default=False, description="batches of rows of similar length, with less padding")
    precision: PrecisionSetting = Field(
        default="float32", description="of the layers' products in training; auto: bfloat16 where it is faster"
    )

    def to_recipe(self, **of_run: Any) -> "Recipe | TokenRecipe":
        """Return the recipe of one run, whose fields are those of :class:`OneRun`."""
        return (Recipe if isinstance(self, RecipeSettings) else TokenRecipe)(**asdict(self), **of_run)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class RecipeSettings(BaseSettings):
    """The fields of a :class:`Recipe` that a suite sets."""

    epochs: int = Field(default=3, ge=1, description="of the stages that run the backbone")
    batch_size: int = Field(default=32, ge=1, description="rows, of the stages that run the backbone")
    learning_rate: float = Field(default=1e-4, gt=0, description="peak rate of the backbone")
    head_learning_rate: float = Field(default=1e-3, gt=0, description="peak rate of exits and heads")
    frozen_steps: int = Field(default=2000, ge=0, description="of the stages that train heads on a frozen backbone")
    frozen_batch_size: int = Field(default=128, ge=1, description="rows, of those stages")
    frozen_learning_rate: float = Field(default=5e-3, gt=0, description="peak rate of those stages")
    max_rows: int | None = Field(default=None, ge=1, description="cap on training rows")
    max_length: int = Field(default=128, ge=3, description="tokens a row")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TokenRecipeSettings(BaseSettings):
    """The fields of a :class:`TokenRecipe` that a suite sets."""

    max_rows: int | None = Field(default=1000, ge=1, description="cap on training rows")
    max_prompt_tokens: int | None = Field(default=None, ge=1, description="of a row; by default as in the task")
    max_new_tokens: int | None = Field(default=None, ge=1, description="of a row; by default as in the task")
    trains: Trains = Field(default="exits", description="trained weights: exits on a frozen backbone, LoRA too, or all")
    target: Target = Field(default="full model", description="what exits on a frozen backbone learn to predict")
    exit_steps: int = Field(default=300, ge=0, description="of the exit adapters")
    exit_batch_size: int = Field(default=128, ge=1, description="tokens, of the exit adapters")
    exit_learning_rate: float = Field(default=1e-3, gt=0, description="peak rate of the exit adapters")
    head_tokens: int = Field(default=16_384, ge=1, description="tokens that first exits and heads are fitted to")
    head_steps: int = Field(default=2000, ge=0, description="of the learned heads")
    head_batch_size: int = Field(default=512, ge=1, description="tokens, of the learned heads")
    head_learning_rate: float = Field(default=2e-3, gt=0, description="peak rate of the learned heads")
    branch_steps: int = Field(
        default=2000, ge=0, description="at most, of exits with a decoder layer of their own; validation loss ends them"
    )
    branch_batch_size: int = Field(default=8, ge=1, description="rows, of those exits")
    branch_learning_rate: float = Field(default=5e-4, gt=0, description="peak rate of those exits")
    backbone_steps: int = Field(default=200, ge=0, description="of the stage that runs the backbone, where it learns")
    backbone_batch_size: int = Field(default=4, ge=1, description="rows, of that stage")
    backbone_learning_rate: float = Field(default=1e-4, gt=0, description="peak rate of that stage")
    lora_rank: int = Field(default=16, ge=1, description="rank of the updates, for trains=lora")
    taught_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the targets below layer L that are its predictions; the others are labels",
    )
    exit_weights: ExitWeights = Field(default="depth", description="of the exits' losses while the backbone learns")
    layer_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="probability that a row skips layer L in that stage; 0 at layer 1"
    )
    traced_rows: int | None = Field(
        default=None, ge=1, description="training rows that exits and heads learn from; by default all"
    )


@checked
@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Recipe(RecipeSettings, OneRun):
    """How to train for classification: the same for every method of a suite.

    Methods may have stages of their own on top (ConsistentEE's third runs the backbone for one more epoch). The fields
    are described in :class:`RecipeSettings` and :class:`OneRun`. Raises UserError for a field that is unknown or out
    of its range.

    * Stages on a frozen backbone are counted in steps, rounded up to whole epochs, so that a small training set does
      not leave exits half-trained.
    * ``group_by_length``: where lengths differ much, training takes half the time, with batches that are not drawn
      quite independently.
    * ``precision``: ``"bfloat16"`` is 2 to 3 times as fast on an AMD EPYC with avx512_bf16, and half as fast as float32
      on an Intel Xeon that has avx512_bf16 and no AMX. Everything that is measured afterwards is in float32.
    """

    def training_rows(self, split: Split) -> Split:
        """Return the rows of the training split that this recipe uses."""
        return split.capped(self.max_rows, seed=0)


@checked
@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TokenRecipe(TokenRecipeSettings, OneRun):
    """How to train for generation: the same for every method of a suite.

    The fields are described in :class:`TokenRecipeSettings` and :class:`OneRun`. Raises UserError for a field that is
    unknown or out of its range.

    * Each step of the exits runs the LM head once for every exit; for learned heads it runs on each of ``head_tokens``
      at every exit, once.
    * ``taught_share``, ``exit_weights``, ``layer_dropout``: see :mod:`consistentee.training.decoder_backbone`.
    * ``traced_rows``: a row of a hundred tokens takes half a megabyte.
    """

    def tokens_for_heads(self, trace: "TokenTrace") -> "Tensor":
        """Draw the tokens of a trace that learned heads are trained on: their numbers, int64 [at most head_tokens]."""
        return drawn(trace.may_exit, min(self.head_tokens, len(trace.may_exit)), self.seed).sort().values


def drawn(numbers: "Tensor", draws: int, seed: int) -> "Tensor":
    """Draw from the numbers at random, each one once before any is drawn again: int64 [draws]."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    rounds = -(-draws // max(len(numbers), 1))
    orders = [numbers[torch.randperm(len(numbers), generator=generator)] for _ in range(rounds)]
    return torch.cat(orders)[:draws] if orders else numbers[:0]
