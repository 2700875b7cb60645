"""Stage: a loss on some weights of a model, on rows from a source; and its key in the store."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from consistentee.files import hash_tensors
from consistentee.models.base import MultiExit
from consistentee.training.recipe import Recipe
from consistentee.versions import TRAINING_VERSION, users_code

_OWN_PACKAGE = f"{__name__.rpartition('.')[0]}."

ModelT = TypeVar("ModelT", bound=MultiExit)
ModelT_contra = TypeVar("ModelT_contra", bound=MultiExit, contravariant=True)
BatchT = TypeVar("BatchT")
BatchT_co = TypeVar("BatchT_co", covariant=True)


class Source(Protocol[BatchT_co]):
    """A number of rows, which a stage reads in batches."""

    @property
    def lengths(self) -> Tensor | None:
        """Tokens of every row [N]; None if batches have no padding, or rows come in an order of their own."""
        ...

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def batch(self, rows: Tensor, step: int) -> BatchT_co:
        """Return the given rows, padded, on the model's device."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of all rows."""
        ...


class Judge(Protocol[ModelT_contra]):
    """A score of a model on validation rows."""

    def __call__(self, model: ModelT_contra, /) -> float:
        """Score the model as it is."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of the rows and of the score."""
        ...


@dataclass(frozen=True)
class Stage(Generic[ModelT, BatchT]):
    """A loss on some of the model's weights.

    Attributes:
        name: for progress bars and the store.
        loss: (model, batch of the source) -> scalar.
        trains: prefixes of the names of the weights that change; all others are frozen.
        epochs, batch_size: how long.
        learning_rate: peak rate of the backbone, if it is trained.
        head_learning_rate: peak rate of everything else.
        details: what else the loss depends on (hyperparameters, tensors), for the key.
        shared: keep the weights in the store, for the next method that needs the same stage.
        dropout: train mode; a stage on cached features has no use for it.
        judge: scores the model after every epoch, for the model's description. It changes neither weights nor key.
    """

    name: str
    loss: Callable[[ModelT, BatchT], Tensor]
    trains: tuple[str, ...]
    epochs: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    details: Mapping[str, object] = field(default_factory=dict)
    shared: bool = False
    dropout: bool = True
    judge: Judge[ModelT] | None = None


def stage_key(model: ModelT, source: Source[BatchT], stage: Stage[ModelT, BatchT], recipe: Recipe) -> str:
    """Return a hash of everything that the result depends on: the model as it is, rows, settings, loss, versions."""
    settings = (
        stage.name,
        stage.trains,
        stage.epochs,
        stage.batch_size,
        stage.learning_rate,
        stage.head_learning_rate,
    )
    parts = {
        "model": model.fingerprint(),
        "rows": source.fingerprint(),
        "stage": settings,
        "details": {k: hash_tensors({k: v}) if isinstance(v, Tensor) else v for k, v in stage.details.items()},
        "recipe": {k: v for k, v in asdict(recipe).items() if k not in ("store", "progress", "method")},
        "loss": _name_of(stage.loss, recipe.method),
        "training_version": TRAINING_VERSION,
        "dropout": stage.dropout,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _name_of(loss: Callable[..., Tensor], method: str) -> list[str]:
    """Return what identifies a loss.

    Losses of this package are covered by TRAINING_VERSION: their name. Losses of a method: also the method. A user's
    loss: also the text of its file, since no version is raised for it.
    """
    function = loss.func if isinstance(loss, partial) else loss
    module = function.__module__
    if module.startswith(_OWN_PACKAGE):
        return [function.__qualname__]
    return [function.__qualname__, method, *users_code([module])]
