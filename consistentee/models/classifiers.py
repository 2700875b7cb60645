"""Internal classifiers of exits, in kinds that differ in how much of the model they read.

A kind of your own is one subclass of :class:`InternalClassifier`, entered in :data:`CLASSIFIER_KINDS` under its name
before a model is built or loaded with it. Training, tracing, batched inference, FLOPs and saving follow from what its
``forward`` reads, and from the two class attributes that declare it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from consistentee.arguments import Positive, checked
from consistentee.backbones.pretrained import Pooling
from consistentee.errors import UserError, unknown_name
from consistentee.versions import module_source


@checked
@dataclass(frozen=True)
class ClassifierSpec:
    """Specify the classifiers of a model.

    Attributes:
        kind: a name in :data:`CLASSIFIER_KINDS`.
        width, attention_heads: inner width and number of heads, for the kinds that have them.
        at_last_layer: whether layer L has this kind too. If not, its classifier is linear, and the full model is the
            stock one, as for the other methods.
    """

    kind: str = "linear"
    width: Positive = 128
    attention_heads: Positive = 2
    at_last_layer: bool = True


@dataclass(frozen=True)
class Exit:
    """The exit that a classifier is built for; ``layer`` is 1-based, ``before`` the classifiers of earlier layers."""

    layer: int
    num_layers: int
    width: int
    num_labels: int
    pooling: Pooling
    dropout: float
    before: "tuple[InternalClassifier, ...]" = ()


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
    """A layer of a finished pass: pooled vectors, and token states if they were kept."""

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
    def __init__(self, spec: ClassifierSpec, place: Exit) -> None:
        super().__init__()
        self.dropout = nn.Dropout(place.dropout)

    @abstractmethod
    def forward(self, layer: ReadableLayer) -> Tensor:
        """Return the logits: [rows, classes], or [rows, 1] for a regression."""


class LinearClassifier(InternalClassifier):
    """Pooled vector, dropout, one linear layer."""

    def __init__(self, spec: ClassifierSpec, place: Exit) -> None:
        super().__init__(spec, place)
        linear = _output_layer(place.width, place.num_labels)
        self.weight, self.bias = linear.weight, linear.bias  # saved as weight and bias, with no name in between

    def forward(self, layer: ReadableLayer) -> Tensor:
        return functional.linear(self.dropout(layer.pooled), self.weight, self.bias)


class MLPClassifier(InternalClassifier):
    """Pooled vector, a tanh layer of the same width, dropout, one linear layer: DeeBERT's off-ramp on BERT."""

    def __init__(self, spec: ClassifierSpec, place: Exit) -> None:
        super().__init__(spec, place)
        self.dense = nn.Linear(place.width, place.width)
        self.output = _output_layer(place.width, place.num_labels)

    def forward(self, layer: ReadableLayer) -> Tensor:
        return self.output(self.dropout(self.dense(layer.pooled).tanh()))


class SharedClassifier(InternalClassifier):
    """Pooled vector, dropout, and one linear layer for all exits, which belongs to the first.

    Source: PALBERT, Balagansky & Gavrilov, NeurIPS 2022.
    """

    def __init__(self, spec: ClassifierSpec, place: Exit) -> None:
        super().__init__(spec, place)
        self._before = place.before[:1]  # a tuple, so that the layer belongs to its own exit alone
        if not self._before:
            self.output = _output_layer(place.width, place.num_labels)

    def forward(self, layer: ReadableLayer) -> Tensor:
        owner = self._before[0] if self._before else self
        return owner.get_submodule("output")(self.dropout(layer.pooled))


class AttentionClassifier(InternalClassifier):
    """FastBERT's: a narrow projection, self-attention, pooling, a layer of the same width, the output.

    Source: Liu et al., ACL 2020, section 3.1. The attention sees the real tokens alone, and they are pooled as the
    backbone pools. The hidden layer comes after the pooling, with a tanh, as in BERT's own pooler; there is no residual
    connection.
    """

    reads_tokens: ClassVar[bool] = True

    def __init__(self, spec: ClassifierSpec, place: Exit) -> None:
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
        self.output = _output_layer(spec.width, place.num_labels)

    def forward(self, layer: ReadableLayer) -> Tensor:
        attended = self._attend(self.narrow(layer.hidden), layer.padding_mask)
        pooled = pool_tokens(attended, layer.padding_mask, self.pooling)
        return self.output(self.dropout(self.dense(pooled).tanh()))

    def _attend(self, tokens: Tensor, padding_mask: Tensor) -> Tensor:
        """Let every token [rows, tokens, width] read the real ones."""
        by_head = self.query_key_value(tokens).unflatten(-1, (3, self.attention_heads, -1))
        query, key, value = by_head.permute(2, 0, 3, 1, 4)  # each [rows, heads, tokens, width of a head]
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=padding_mask[:, None, None])
        return self.mix(mixed.transpose(1, 2).flatten(2))


class LayerGate(nn.Module):
    """Weight the states of several layers for each row; the initial weights are equal."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(layers))
        nn.init.zeros_(self.score.weight)

    def forward(self, states: Tensor) -> Tensor:
        """Return the weighted mean of [rows, layers, width]: [rows, width]."""
        weights = (self.score(states).squeeze(-1) + self.bias).softmax(dim=-1)
        return (weights.unsqueeze(1) @ states).squeeze(1)


class PastFutureClassifier(InternalClassifier):
    """GPFEE's classifier: gated states of all layers so far, and gated predictions of the states of later layers.

    Source: Liao et al., NAACL 2021. A later state is predicted as the current one plus a step; the steps come from one
    narrow hidden layer, so that the predictors of all exits together stay small. Layer L has no future, and reads the
    past.
    """

    reads_history: ClassVar[bool] = True

    def __init__(self, spec: ClassifierSpec, place: Exit) -> None:
        super().__init__(spec, place)
        self.layers_to_come = place.num_layers - place.layer
        self.past = LayerGate(place.width, place.layer)
        if self.layers_to_come:
            steps = nn.Linear(spec.width, self.layers_to_come * place.width)
            self.predictor = nn.Sequential(nn.Linear(place.width, spec.width), nn.GELU(), steps)
            self.future = LayerGate(place.width, self.layers_to_come)
        self.output = _output_layer(place.width * (2 if self.layers_to_come else 1), place.num_labels)

    def predict_future(self, state: Tensor) -> Tensor:
        """Predict the pooled vectors of layers t+1..L from that of layer t [rows, width]: [rows, L-t, width]."""
        return state.unsqueeze(1) + self.predictor(state).unflatten(-1, (self.layers_to_come, -1))

    def forward(self, layer: ReadableLayer) -> Tensor:
        history = layer.history
        parts = [self.past(history)]
        if self.layers_to_come:
            parts.append(self.future(self.predict_future(history[:, -1])))
        return self.output(self.dropout(torch.cat(parts, dim=-1)))


class EnsembleClassifier(InternalClassifier):
    """ZTW's classifier: a linear head that also reads the previous head's logits, and a geometric mean of all heads.

    Source: Wolczyk et al., NeurIPS 2021. Every head reads the normalised logits of the one before, which its gradient
    does not reach. The answer of layer m is ``softmax(mean_{j<=m} exp(a_j) log p_j + b)``. Earlier heads belong to the
    other exits' classifiers and are not saved again; their logits are computed again from the pooled vectors.
    """

    reads_history: ClassVar[bool] = True

    def __init__(self, spec: ClassifierSpec, place: Exit) -> None:
        super().__init__(spec, place)
        # A tuple, so that the heads belong to their own exits alone.
        self._heads = (*(other for other in place.before if isinstance(other, EnsembleClassifier)), self)
        self.output = _output_layer(place.width + (place.num_labels if place.before else 0), place.num_labels)
        self.exponents = nn.Parameter(torch.empty(place.layer).normal_(std=0.01))
        self.bias = nn.Parameter(torch.zeros(place.num_labels))

    def head_logits(self, history: Tensor) -> Tensor:
        """Return the logits of heads 1..m, of pooled vectors [rows, m, width]: [rows, m, classes]."""
        logits: list[Tensor] = []
        for head, pooled in zip(self._heads, history.unbind(dim=1), strict=True):
            parts = [head.dropout(pooled)]
            if logits:
                parts.append(functional.layer_norm(logits[-1].detach(), logits[-1].shape[-1:]))
            logits.append(head.output(torch.cat(parts, dim=-1)))
        return torch.stack(logits, dim=1)

    def average(self, logits: Tensor) -> Tensor:
        """Return the logits of the ensemble [rows, classes], given those of heads 1..m [rows, m, classes]."""
        return (self.exponents.exp().unsqueeze(1) * logits.log_softmax(dim=-1)).mean(dim=1) + self.bias

    def forward(self, layer: ReadableLayer) -> Tensor:
        return self.average(self.head_logits(layer.history))


class ProductClassifier(LinearClassifier):
    """Product of experts: linear classifiers whose logits f_j give ``prod_{j<=m} softplus(f_j)^(j/L)``.

    Source: Jazbec et al., NeurIPS 2023. Earlier classifiers belong to the other exits and are not saved again.
    """

    reads_history: ClassVar[bool] = True

    def __init__(self, spec: ClassifierSpec, place: Exit) -> None:
        super().__init__(spec, place)
        # A tuple, so that the classifiers belong to their own exits alone.
        self._experts = (*(other for other in place.before if isinstance(other, ProductClassifier)), self)
        self._num_layers = place.num_layers

    def forward(self, layer: ReadableLayer) -> Tensor:
        experts = zip(self._experts, layer.history.unbind(dim=1), strict=True)
        said = [functional.linear(expert.dropout(pooled), expert.weight, expert.bias) for expert, pooled in experts]
        logits = torch.stack(said, dim=1)
        # The logarithm of softplus is the logit itself far below 0, where softplus would be rounded to 0.
        logs = torch.where(logits < -15, logits, functional.softplus(logits).log())
        shares = torch.arange(1, len(said) + 1, device=logs.device) / self._num_layers
        return (logs * shares.unsqueeze(1)).sum(dim=1)


class ClassMeansClassifier(InternalClassifier):
    """E2CM's classifier: minus the distance from each class mean, divided by the average distance of training rows.

    Source: Goermez et al., IJCNN 2022. Nothing is trained by gradients: a method sets means and average distances.
    """

    def __init__(self, spec: ClassifierSpec, place: Exit) -> None:
        super().__init__(spec, place)
        self.means = nn.Parameter(torch.empty(place.num_labels, place.width).normal_(std=0.02))
        self.mean_distances = nn.Parameter(torch.ones(place.num_labels))

    def distances(self, pooled: Tensor) -> Tensor:
        """Return the distances of pooled vectors [rows, width] from the means: [rows, classes].

        They are counted from the middle of the means: squares of vectors far from 0 would cancel to rounding errors.
        """
        middle = self.means.mean(dim=0)
        vectors, means = pooled - middle, self.means - middle
        squares = vectors.square().sum(dim=-1, keepdim=True) + means.square().sum(dim=-1)
        return (squares - 2 * functional.linear(vectors, means)).clamp_min(0).sqrt()

    def forward(self, layer: ReadableLayer) -> Tensor:
        return -self.distances(layer.pooled) / self.mean_distances


CLASSIFIER_KINDS: dict[str, type[InternalClassifier]] = {
    "linear": LinearClassifier,
    "mlp": MLPClassifier,
    "shared": SharedClassifier,
    "attention": AttentionClassifier,
    "past-future": PastFutureClassifier,
    "ensemble": EnsembleClassifier,
    "product": ProductClassifier,
    "class-means": ClassMeansClassifier,
}
"""Kinds of classifiers by name."""


def build_classifiers(
    spec: ClassifierSpec, *, num_layers: int, width: int, num_labels: int, pooling: Pooling, dropout: float
) -> nn.ModuleList:
    """Return untrained classifiers, one a layer. Raises UserError for an unknown kind."""
    if spec.kind not in CLASSIFIER_KINDS:
        raise unknown_name("kind of classifier", spec.kind, CLASSIFIER_KINDS)
    classifiers: list[InternalClassifier] = []
    for layer in range(1, num_layers + 1):
        kind = spec.kind if layer < num_layers or spec.at_last_layer else "linear"
        place = Exit(layer, num_layers, width, num_labels, pooling, dropout, tuple(classifiers))
        classifiers.append(CLASSIFIER_KINDS[kind](spec, place))
    return nn.ModuleList(classifiers)


def pool_tokens(hidden: Tensor, padding_mask: Tensor, pooling: Pooling) -> Tensor:
    """Turn [rows, tokens, width] into [rows, width]: the mean of the real tokens, or the first token."""
    if pooling == "cls":
        return hidden[:, 0]
    weights = padding_mask.to(hidden.dtype)
    return torch.einsum("bth,bt->bh", hidden, weights) / weights.sum(dim=1, keepdim=True)


def _output_layer(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear
