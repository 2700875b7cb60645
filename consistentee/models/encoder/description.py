"""ModelDescription: everything beside the weights that a saved multi-exit encoder needs."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import PositiveInt

from consistentee.backbones.catalog import Pooling
from consistentee.models.base import Description
from consistentee.models.classifiers import ClassifierSpec

PoolerSharing = Literal["none", "shared", "per_exit"]
"""Whether a tanh layer follows the pooling: none, one for all layers (BERT's own), or one an exit (DeeBERT)."""


@dataclass(kw_only=True)
class ModelDescription(Description):
    """JSON-serialisable.

    Attributes:
        num_labels: number of classes, or 1 for a regression.
        pooling, pooler: what the classifiers read of a layer.
        backbone_name: where the stock model came from.
        label_names: class names, in the order of the logits; may be empty.
        max_length: number of tokens that texts are cut to.
        companion_name: where the weights of the companion came from; None where there is none.
        classifier: which classifiers the exits have.
    """

    kind: ClassVar[str] = "model"
    file: ClassVar[str] = "multi_exit.json"

    num_labels: PositiveInt
    pooling: Pooling
    pooler: PoolerSharing
    backbone_name: str
    label_names: tuple[str, ...] = ()
    max_length: PositiveInt = 128
    companion_name: str | None = None
    classifier: ClassifierSpec = field(default_factory=ClassifierSpec)
