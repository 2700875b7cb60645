"""Internal classifiers of exits, in kinds that differ in how much of the model they read.

A kind of one method is a subclass of :class:`InternalClassifier` in the method's file. An installed package registers
it in the entry-point group :data:`CLASSIFIER_ENTRY_POINT_GROUP`, so that saved models load; any other file enters it in
:data:`CLASSIFIER_KINDS`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, ClassVar, Final, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from consistentee.arguments import Positive, checked
from consistentee.backbones.decoders import refuse_decoder_family
from consistentee.backbones.encoders import check_encoder_family
from consistentee.backbones.pretrained import Pooling
from consistentee.errors import UserError, unknown_name
from consistentee.versions import module_source

CLASSIFIER_ENTRY_POINT_GROUP: Final = "consistentee.classifiers"


@checked
@dataclass(frozen=True)
class ClassifierSpec:
    """Specify the classifiers of a model.

    Attributes:
        kind: a name, see :func:`classifier_class`.
        width, attention_heads: inner width and number of heads, for the kinds that have them.
        at_last_layer: whether layer L has this kind too. If not, its classifier is linear, as the stock model's.
    """

    kind: str = "linear"
    width: Positive = 128
    attention_heads: Positive = 2
    at_last_layer: bool = True


@dataclass(frozen=True)
class ExitPlace:
    """The exit that a classifier is built for; ``layer`` is 1-based, ``before`` the classifiers of earlier layers."""

    layer: int
    num_layers: int
    width: int
    num_labels: int
    pooling: Pooling
    dropout: float
    before: "tuple[InternalClassifier, ...]" = ()

    def output_layer(self, inputs: int) -> nn.Linear:
        """Return an untrained linear layer of so many inputs that gives the logits."""
        linear = nn.Linear(inputs, self.num_labels)
        nn.init.normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        return linear


class ReadableLayer(Protocol):
    """Inputs that a layer offers its classifier; a live view computes each one on demand."""

    @property
    def hidden(self) -> Tensor:
        """Hidden states: [rows, tokens, width]."""

    @property
    def padding_mask(self) -> Tensor:
        """True where there is a real token: bool [rows, tokens]."""

    @property
    def pooled(self) -> Tensor:
        """The tokens as one vector, after the pooler: [rows, width]."""

    @property
    def history(self) -> Tensor:
        """``pooled`` of layers 1..t: [rows, t, width]."""


NO_TOKENS = torch.empty(0)  # stands for token states that were not kept


@dataclass(frozen=True)
class RecordedLayer:
    """A layer of a finished pass: pooled vectors so far, and token states if they were kept."""

    history: Tensor
    hidden: Tensor = NO_TOKENS
    padding_mask: Tensor = NO_TOKENS

    @property
    def pooled(self) -> Tensor:
        return self.history[:, -1]


class InternalClassifier(nn.Module, ABC):
    """The classifier of one exit.

    Class attributes:
        reads_tokens: ``forward`` reads ``hidden`` or ``padding_mask``: a full-depth pass keeps every layer's tokens.
        reads_history: ``forward`` reads ``history``: inference pools at every layer and keeps the vectors of each row.
        source_code: text of the file that defines the class, for fingerprints; set automatically.
    """

    reads_tokens: ClassVar[bool] = False
    reads_history: ClassVar[bool] = False
    source_code: ClassVar[str] = ""

    def __init_subclass__(cls, **keywords: Any) -> None:
        # Now, because the file may be edited and read again in the same process.
        super().__init_subclass__(**keywords)
        cls.source_code = module_source(cls.__module__)

    @abstractmethod
    def __init__(self, spec: ClassifierSpec, place: ExitPlace) -> None:
        super().__init__()
        self.dropout = nn.Dropout(place.dropout)

    @abstractmethod
    def forward(self, layer: ReadableLayer) -> Tensor:
        """Return the logits: [rows, classes], or [rows, 1] for a regression."""


class LinearClassifier(InternalClassifier):
    """Pooled vector, dropout, one linear layer."""

    def __init__(self, spec: ClassifierSpec, place: ExitPlace) -> None:
        super().__init__(spec, place)
        linear = place.output_layer(place.width)
        self.weight, self.bias = linear.weight, linear.bias  # saved as weight and bias, with no name in between

    def forward(self, layer: ReadableLayer) -> Tensor:
        return functional.linear(self.dropout(layer.pooled), self.weight, self.bias)


class MLPClassifier(InternalClassifier):
    """Pooled vector, a tanh layer of the same width, dropout, one linear layer: DeeBERT's off-ramp on BERT."""

    def __init__(self, spec: ClassifierSpec, place: ExitPlace) -> None:
        super().__init__(spec, place)
        self.dense = nn.Linear(place.width, place.width)
        self.output = place.output_layer(place.width)

    def forward(self, layer: ReadableLayer) -> Tensor:
        return self.output(self.dropout(self.dense(layer.pooled).tanh()))


class AttentionClassifier(InternalClassifier):
    """FastBERT's: a narrow projection, self-attention, pooling, a layer of the same width, the output.

    Source: Liu et al., ACL 2020, section 3.1. Tokens are pooled as the backbone pools. The hidden layer comes after the
    pooling, with a tanh, as in BERT's own pooler; there is no residual connection.
    """

    reads_tokens: ClassVar[bool] = True

    def __init__(self, spec: ClassifierSpec, place: ExitPlace) -> None:
        super().__init__(spec, place)
        if spec.width % spec.attention_heads:
            raise UserError(
                f"an attention classifier of width {spec.width} cannot have {spec.attention_heads} heads: "
                "the heads must divide the width"
            )
        self.attention_heads = spec.attention_heads
        self.pooling = place.pooling
        self.narrow = nn.Linear(place.width, spec.width)
        self.query_key_value = nn.Linear(spec.width, 3 * spec.width)
        self.mix = nn.Linear(spec.width, spec.width)
        self.dense = nn.Linear(spec.width, spec.width)
        self.output = place.output_layer(spec.width)

    def forward(self, layer: ReadableLayer) -> Tensor:
        attended = self._attend(self.narrow(layer.hidden), layer.padding_mask)
        pooled = pool_tokens(attended, layer.padding_mask, self.pooling)
        return self.output(self.dropout(self.dense(pooled).tanh()))

    def _attend(self, tokens: Tensor, padding_mask: Tensor) -> Tensor:
        by_head = self.query_key_value(tokens).unflatten(-1, (3, self.attention_heads, -1))
        query, key, value = by_head.permute(2, 0, 3, 1, 4)  # each [rows, heads, tokens, width of a head]
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=padding_mask[:, None, None])
        return self.mix(mixed.transpose(1, 2).flatten(2))


CLASSIFIER_KINDS: dict[str, type[InternalClassifier]] = {
    "linear": LinearClassifier,
    "mlp": MLPClassifier,
    "attention": AttentionClassifier,
}
"""Kinds of classifiers that several methods use, and those of a file that is not installed, by name."""


def classifier_class(kind: str) -> type[InternalClassifier]:
    """Return the class of a kind: one of :data:`CLASSIFIER_KINDS`, or of an entry point of an installed package.

    Raises UserError for an unknown kind.
    """
    registered = {point.name: point for point in entry_points(group=CLASSIFIER_ENTRY_POINT_GROUP)}
    if kind not in {*CLASSIFIER_KINDS, *registered}:
        raise unknown_name("kind of classifier", kind, {*CLASSIFIER_KINDS, *registered})
    found: type[InternalClassifier] = CLASSIFIER_KINDS.get(kind) or registered[kind].load()
    return found


def pool_tokens(hidden: Tensor, padding_mask: Tensor, pooling: Pooling) -> Tensor:
    """Turn [rows, tokens, width] into [rows, width]: the mean of the real tokens, or the first token."""
    if pooling == "cls":
        return hidden[:, 0]
    weights = padding_mask.to(hidden.dtype)
    return torch.einsum("bth,bt->bh", hidden, weights) / weights.sum(dim=1, keepdim=True)


_SUFFIX = "ForSequenceClassification"


def _first_token(stock: Any) -> nn.Module:
    """Undo the pooling of a vector for heads that look up the first token themselves: add a dimension."""
    return nn.Unflatten(1, (1, stock.config.hidden_size))


def _head(stock: Any) -> list[nn.Module]:
    return [_first_token(stock), stock.classifier]


_PARTS: dict[str, Callable[[Any], list[nn.Module]]] = {
    "albert": lambda m: [m.albert.pooler, m.albert.pooler_activation, m.dropout, m.classifier],
    "bert": lambda m: [_first_token(m), m.bert.pooler, m.dropout, m.classifier],
    "deberta-v2": lambda m: [_first_token(m), m.pooler, m.dropout, m.classifier],
    "distilbert": lambda m: [m.pre_classifier, nn.ReLU(), m.dropout, m.classifier],
    "electra": _head,
    "modernbert": lambda m: [m.head, m.drop, m.classifier],
    "mpnet": _head,
    "roberta": _head,
    "xlm-roberta": _head,
}
"""``config.model_type`` -> the modules between the pooled last layer and the logits, in the order they run."""


class KeptHead(InternalClassifier):
    """The own modules of a stock model between its last layer and its logits, such as dense, tanh and projection."""

    def __init__(self, stock: Any) -> None:
        nn.Module.__init__(self)
        self.network = nn.Sequential(*_PARTS[stock.config.model_type](stock))
        self._pools_all = getattr(stock.config, "classifier_pooling", "cls") == "mean"

    def pool(self, hidden: Tensor, padding_mask: Tensor) -> Tensor:
        """Pool the last hidden states [rows, tokens, width] with the operations of the stock model: [rows, width]."""
        if not self._pools_all:
            return hidden[:, 0]
        mask = padding_mask.long()
        return (hidden * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)

    def forward(self, layer: ReadableLayer) -> Tensor:
        return self.network(layer.pooled)


def check_classifier(name: object, config: Any) -> None:
    """Raise UserError unless a configuration is that of a fine-tuned encoder that puts each text into one class."""
    refuse_decoder_family(config.model_type)
    check_encoder_family(config.model_type)
    kind = next(iter(config.architectures or ()), "model without a classification head")
    if not kind.endswith(_SUFFIX):
        raise UserError(
            f"{name} is a {kind}, which does not label whole texts; give a fine-tuned *{_SUFFIX}, "
            "or train one with `consistentee train`"
        )
    asked = config.problem_type or ("regression" if config.num_labels == 1 else "")
    if asked not in ("", "single_label_classification"):
        what = {"regression": "predicts numbers", "multi_label_classification": "gives a text several labels"}[asked]
        raise UserError(f"{name} {what}; exits, and the promise about their loss, are for one label a text")
