"""MultiExitModel: a stock encoder with pooling, a classifier per layer, and heads of methods; and its companion."""

import json
from collections.abc import Collection, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
import transformers
from pydantic import PositiveInt
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification

from consistentee.arguments import Positive, Texts, TextsOrPairs, check_layer, checked
from consistentee.backbones.cascade import COMPANION, CascadeStepper, first_layers
from consistentee.backbones.decoders import refuse_decoder_family
from consistentee.backbones.encoders import EncoderStepper, check_encoder_family, stepper_for
from consistentee.backbones.int8 import Quantize, observing, quantize_layers
from consistentee.backbones.pretrained import Pooling, check_complete, read_config, read_model, read_tokenizer
from consistentee.backbones.token_exits import SCHEDULE, TokenExitStepper
from consistentee.data.encoding import Batch, Encoding, collate, tokenize
from consistentee.errors import UserError
from consistentee.files import hash_json
from consistentee.models.base import BACKBONE_FOLDER, Description, MultiExit, new_weights
from consistentee.models.classifiers import (
    NO_TOKENS,
    ClassifierSpec,
    ExitPlace,
    InternalClassifier,
    KeptHead,
    LinearClassifier,
    RecordedLayer,
    check_classifier,
    classifier_class,
    pool_tokens,
)
from consistentee.versions import ENGINE_VERSION, code_of

PoolerSharing = Literal["none", "shared", "per_exit"]
"""Whether a tanh layer follows the pooling: none, one for all layers (BERT's own), or one an exit (DeeBERT)."""


@dataclass(kw_only=True)
class ModelDescription(Description):
    """Everything besides the weights that a saved multi-exit encoder needs.

    Attributes:
        num_labels: number of classes, or 1 for a regression.
        label_names: in the order of the logits; may be empty.
        max_length: number of tokens that texts are cut to.
        companion_name: where the weights of the companion, if any, came from.
        cut_from: number of layers of the model whose first layers these are; None where no layer was removed.
        keeps_head: whether layer L has the classification head of a stock model that was fine-tuned before.
        asked_layers: layers at which exit rules are asked, 1-based; empty for all of them.
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
    cut_from: PositiveInt | None = None
    classifier: ClassifierSpec = field(default_factory=ClassifierSpec)
    keeps_head: bool = False
    quantize: Quantize = "none"
    asked_layers: tuple[PositiveInt, ...] = ()


def take_pooler(backbone: Any) -> dict[str, Tensor] | None:
    """Remove the stock pooler, so that no pass pays for what is not read; return its weights, if it has one."""
    pooler = getattr(backbone, "pooler", None)
    if pooler is None:
        return None
    backbone.pooler = None
    dense = getattr(pooler, "dense", pooler)  # ALBERT's is a bare linear layer
    return {name: tensor.clone() for name, tensor in dense.state_dict().items()}


@dataclass(frozen=True)
class LayerOutputs:
    """Outputs of all layers of a full-depth pass.

    Attributes:
        vectors: pooled tokens, before the tanh layer of a pooler: [rows, L, width].
        pooled: input of the classifiers; the same tensor as ``vectors`` if there is no pooler.
        logits: [rows, L, classes].
    """

    vectors: Tensor
    pooled: Tensor
    logits: Tensor


class MultiExitModel(MultiExit):
    """A stock encoder with an exit after every layer. Build it with :meth:`from_backbone`."""

    description_class = ModelDescription

    stepper: EncoderStepper
    description: ModelDescription

    def _build_exits(self) -> None:
        self._take_modules_of_stepper()
        self.classifiers = self._build_classifiers(self.description.classifier)
        self._build_poolers(self.description.pooler)

    @classmethod
    @checked
    def from_backbone(
        cls,
        name: str,
        num_labels: Positive,
        *,
        label_names: Texts = (),
        pooling: Pooling | None = None,
        pooler: PoolerSharing | None = None,
        seed: int = 0,
    ) -> Self:
        """Put untrained exits on a pretrained backbone.

        Args:
            name: a name of the catalogue, a directory, or an id on the Hugging Face hub.
            num_labels: number of classes, or 1 for a regression.
            label_names: class names, kept for predictions.
            pooling, pooler: override those of the catalogue.
            seed: of the new weights.

        Raises UserError for an unknown name, weights that cannot be had, and an architecture that is not supported.
        """
        if label_names and len(label_names) != num_labels:
            raise UserError(f"there are {len(label_names)} label_names for {num_labels} classes")
        from consistentee.backbones.catalog import resolve

        found = resolve(name)
        tokenizer = read_tokenizer(found.path)
        family = read_config(found.path).model_type
        refuse_decoder_family(family)
        check_encoder_family(family)
        backbone, missing = read_model(found.path, AutoModel)
        pretrained_pooler = take_pooler(backbone)
        missing_of_pooler = {weight for weight in missing if weight.startswith("pooler.")}
        check_complete(found.path, missing - missing_of_pooler)
        description = ModelDescription(
            num_labels=num_labels,
            pooling=pooling or found.pooling,
            pooler=pooler or ("shared" if found.pooler else "none"),
            backbone_name=name,
            label_names=tuple(label_names),
        )
        with new_weights(seed):
            model = cls(stepper_for(backbone), tokenizer, description)
        if pretrained_pooler is not None and not missing_of_pooler:
            for dense in model.poolers:
                dense.load_state_dict(pretrained_pooler)
        return model

    @checked
    def first_layers(self, layers: Positive, seed: int = 0) -> "MultiExitModel":
        """Return a model of its own, with copies of embeddings, first layers and their poolers, and new classifiers.

        Raises UserError if there are not more layers than that, if they share weights in a way that no stock model of
        fewer layers can, and for int8 layers.
        """
        if self.description.quantize != "none":
            raise UserError("the first layers of an int8 model cannot be copied; take the model it was made of")
        backbone = first_layers(stepper_for(self.backbone), layers)
        take_pooler(backbone)
        description = replace(
            self.description,
            backbone_name=f"{self.description.backbone_name}, layers 1 to {layers}",
            heads={},
            companion_name=None,
            cut_from=self.stock_layers,
            keeps_head=False,
            asked_layers=(),
            validation_by_epoch=dict(self.description.validation_by_epoch),
        )
        with new_weights(seed):
            model = MultiExitModel(stepper_for(backbone), self.tokenizer, description)
        for dense, its in zip(model.poolers, self.poolers, strict=False):
            dense.load_state_dict(its.state_dict())
        return model.to(self.device, self.dtype)

    @classmethod
    @checked
    def from_classifier(cls, name: str) -> Self:
        """Put untrained exits on a fine-tuned ``*ForSequenceClassification``, whose weights and head stay as they are.

        At full depth its logits are those of the stock model, bit for bit where the weights have the same alignment in
        memory. Exits pool the mean of all tokens. ``name`` is a directory, or an id on the Hugging Face hub.

        Raises UserError for a model that does not put each text into one class, and as :meth:`from_backbone` does.
        """
        from consistentee.backbones.catalog import resolve

        path = resolve(name).path
        config = read_config(path)
        check_classifier(name, config)
        tokenizer = read_tokenizer(path)
        stock, missing = read_model(path, AutoModelForSequenceClassification)
        check_complete(path, missing)
        description = ModelDescription(
            num_labels=config.num_labels,
            pooling="mean",
            pooler="none",
            backbone_name=name,
            label_names=tuple(config.id2label[index] for index in range(config.num_labels)),
            keeps_head=True,
        )
        model = cls._of_stock(stock, tokenizer, description)
        model.description.max_length = min(int(tokenizer.model_max_length), model.stepper.position_limit)
        return model

    @classmethod
    def _of_stock(cls, stock: Any, tokenizer: Any, description: ModelDescription) -> Self:
        """Put exits on the backbone of a stock model for classification, whose head becomes the last exit."""
        head = KeptHead(stock).eval()
        backbone = stock.base_model
        take_pooler(backbone)
        model = cls(stepper_for(backbone), tokenizer, description)
        model.classifiers[-1] = head
        return model

    def fresh(self, seed: int = 0) -> Self:
        """Return a model with untrained linear exits that shares this one's backbone and its last exit."""
        description = replace(self.description, heads={}, classifier=ClassifierSpec(), asked_layers=())
        with new_weights(seed):
            model = type(self)(self.stepper, self.tokenizer, description).to(self.device)
        model.classifiers[-1] = self.classifiers[-1]
        return model

    def quantized(self, rows: Sequence[Encoding]) -> Self:
        """Return a copy with untrained exits and int8 linear layers, whose ranges are taken from some hundred rows."""
        backbone = deepcopy(self.backbone)
        layers = quantize_layers(backbone)
        model = type(self)(stepper_for(backbone), self.tokenizer, replace(self.description, quantize="int8", heads={}))
        model.classifiers[-1] = self.classifiers[-1]
        with observing(layers), torch.inference_mode():
            for start in range(0, len(rows), 32):
                model.stock_logits(model.collate(rows[start : start + 32]))
        return model

    def use_stepper(self, stepper: EncoderStepper) -> None:
        """Replace the stepper and its modules; if the number of layers changes, replace classifiers and poolers too."""
        for name in self.stepper.own_modules:
            delattr(self, name)
        self.stepper = stepper
        self._take_modules_of_stepper()

    def _take_modules_of_stepper(self) -> None:
        for name, module in self.stepper.own_modules.items():
            self.add_module(name, module.to(self.device))

    @property
    def stock_layers(self) -> int:
        """Number of layers of the stock model, removed ones included; costs are relative to them."""
        return self.description.cut_from or self.stepper.stock_layers

    @property
    def companion_layers(self) -> int:
        """Number of layers of the companion, which run first; 0 without one."""
        return self.num_layers - self.stepper.stock_layers

    @property
    def backbones(self) -> list[Any]:
        """The stock models, in the order they run."""
        return list(self.stepper.backbones.values())

    @property
    def num_labels(self) -> int:
        """Number of outputs of a classifier; 1 means a regression."""
        return self.description.num_labels

    @checked
    def use_pooler(self, sharing: PoolerSharing) -> None:
        """Replace the pooler; new ones start from the shared one, if any."""
        shared = self.poolers[0].state_dict() if len(self.poolers) else None
        self.description.pooler = sharing
        self._build_poolers(sharing)
        if shared is not None:
            for dense in self.poolers:
                dense.load_state_dict(shared)

    def use_own_poolers(self) -> None:
        """Give every exit its own pooler, started from the shared one; do nothing without a shared pooler."""
        if self.description.pooler == "shared":
            self.use_pooler("per_exit")

    @checked
    def use_classifier(self, spec: ClassifierSpec, seed: int = 0) -> None:
        """Replace the classifiers by untrained ones of another kind; ``seed`` seeds their weights.

        Layer L keeps its linear classifier if the spec does not apply there. Raises UserError for an unknown kind.
        """
        last = self.classifiers[-1]
        with new_weights(seed):
            self.classifiers = self._build_classifiers(spec).to(self.device, self.dtype).train(self.training)
        if self.description.keeps_head or (not spec.at_last_layer and isinstance(last, LinearClassifier)):
            self.classifiers[-1] = last
        self.description.classifier = spec

    def classifier(self, layer: int) -> InternalClassifier:
        """Return the internal classifier of layer ``layer`` (1-based)."""
        return cast(InternalClassifier, self.classifiers[check_layer(layer, self.num_layers) - 1])

    @property
    def reads_history(self) -> bool:
        """Whether some classifier reads the pooled vectors of the layers before its own."""
        return any(classifier.reads_history for classifier in self.classifiers)

    @property
    def reads_tokens(self) -> bool:
        """Whether some classifier reads every token of its layer."""
        return any(classifier.reads_tokens for classifier in self.classifiers)

    @checked
    def tokenize(self, texts: TextsOrPairs, max_length: Positive | None = None) -> list[Encoding]:
        """Tokenise texts, cut to ``max_length`` tokens (by default the model's own)."""
        limit = min(max_length or self.description.max_length, self.stepper.position_limit)
        encodings = tokenize(self.tokenizer, texts, limit)
        if not self.stepper.uses_token_types:
            return [Encoding(encoding.input_ids) for encoding in encodings]
        return encodings

    def collate(self, encodings: Sequence[Encoding]) -> Batch:
        """Pad rows into a batch on the model's device."""
        return collate(encodings, self.tokenizer.pad_token_id, self.device)

    def pool_tokens(self, layer: int, hidden: Tensor, padding_mask: Tensor) -> Tensor:
        """Pool the tokens of a layer as the description names it, or as the kept head of layer L does."""
        if layer == self.num_layers and self.description.keeps_head:
            return cast(KeptHead, self.classifiers[-1]).pool(hidden, padding_mask)
        return pool_tokens(hidden, padding_mask, self.description.pooling)

    def apply_pooler(self, layer: int, vector: Tensor) -> Tensor:
        """Apply the tanh layer of the pooler, where there is one, to [rows, width]."""
        if not len(self.poolers):
            return vector
        dense = self.poolers[0 if len(self.poolers) == 1 else layer - 1]
        return dense(vector).tanh()

    def pool(self, layer: int, hidden: Tensor, padding_mask: Tensor) -> Tensor:
        """Return the pooled input of the classifier of layer ``layer``: [rows, width]."""
        return self.apply_pooler(layer, self.pool_tokens(layer, hidden, padding_mask))

    def forward(self, batch: Batch, *, cut_after: Collection[int] = ()) -> LayerOutputs:
        """Run all layers on all rows; no gradient of later layers passes the layers ``cut_after``."""
        keeps_tokens = self.reads_tokens
        vectors, states = [], []
        for layer, read in enumerate(self.layer_states(batch, cut_after=cut_after), start=1):
            vectors.append(self.pool_tokens(layer, read, batch.padding_mask))
            states.append(read if keeps_tokens else NO_TOKENS)
        return self._read(torch.stack(vectors, dim=1), states, batch.padding_mask)

    def layer_states(self, batch: Batch, *, cut_after: Collection[int] = ()) -> Iterator[Tensor]:
        """Run all layers as :meth:`forward`; yield what the classifiers of each may read: [rows, tokens, width]."""
        with self._layers_precision():
            hidden, context = self.stepper.begin(batch)
        for layer in range(1, self.num_layers + 1):
            with self._layers_precision():
                hidden = self.stepper.step(layer, hidden, context).to(self.dtype)
            yield self.stepper.read(layer, hidden)
            if layer in cut_after:
                hidden = hidden.detach()

    def read_vectors(self, vectors: Tensor) -> LayerOutputs:
        """Apply every layer's pooler and classifier to pooled tokens [rows, L, width] of a frozen backbone.

        Raises UserError if a classifier reads every token.
        """
        if self.reads_tokens:
            raise UserError("a classifier that reads every token cannot answer from pooled vectors; run it on tokens")
        return self._read(vectors, [NO_TOKENS] * self.num_layers, NO_TOKENS)

    def read_states(self, states: Tensor, padding_mask: Tensor) -> LayerOutputs:
        """Apply every layer's pooler and classifier to all tokens of a frozen backbone: [rows, L, tokens, width]."""
        by_layer = states.unbind(dim=1)
        vectors = [self.pool_tokens(t, tokens, padding_mask) for t, tokens in enumerate(by_layer, start=1)]
        return self._read(torch.stack(vectors, dim=1), by_layer, padding_mask)

    def _read(self, vectors: Tensor, states: Sequence[Tensor], padding_mask: Tensor) -> LayerOutputs:
        layers = range(1, self.num_layers + 1)
        pooled = vectors
        if len(self.poolers):
            pooled = torch.stack([self.apply_pooler(t, vectors[:, t - 1]) for t in layers], dim=1)
        logits = [self.classifier(t)(RecordedLayer(pooled[:, :t], states[t - 1], padding_mask)) for t in layers]
        return LayerOutputs(vectors, pooled, torch.stack(logits, dim=1))

    def stock_logits(self, batch: Batch) -> Tensor:
        """Run the stock backbone's own forward and the last classifier, without exits: [rows, classes]."""
        last = self.classifier(self.num_layers)
        with self._layers_precision():
            output = self.backbone(**batch.model_inputs, output_hidden_states=last.reads_history)
        earlier = output.hidden_states[1:-1] if last.reads_history else ()
        first = self.num_layers - len(earlier)
        states = [self.stepper.read(t, state.to(self.dtype)) for t, state in enumerate(earlier, start=first)]
        states.append(output.last_hidden_state.to(self.dtype))
        return last(_StockLayer(self, states, batch.padding_mask))

    def fingerprint(self, *, with_heads: bool = True) -> str:
        """Return a hash of all that determines outputs: weights, settings, versions, a user's own classifier code."""
        configs = [json.loads(backbone.config.to_json_string(use_diff=False)) for backbone in self.backbones]
        without_place = [json.dumps({**config, "_name_or_path": None}, sort_keys=True) for config in configs]
        shapes = [self.description.pooling, asdict(self.description.classifier), *without_place]
        versions = [ENGINE_VERSION["classification"], *code_of(self.classifiers)]
        libraries = [torch.__version__, transformers.__version__]
        return hash_json([self._hash_weights(with_heads), *shapes, self.device.type, *versions, *libraries])

    def _build_classifiers(self, spec: ClassifierSpec) -> nn.ModuleList:
        chosen, pooling = classifier_class(spec.kind), self.description.pooling
        dropout = _dropout_of(self.backbone.config)
        classifiers: list[InternalClassifier] = []
        for layer in range(1, self.num_layers + 1):
            kind = chosen if layer < self.num_layers or spec.at_last_layer else LinearClassifier
            before = tuple(classifiers)
            place = ExitPlace(layer, self.num_layers, self.width, self.num_labels, pooling, dropout, before)
            classifiers.append(kind(spec, place))
        return nn.ModuleList(classifiers)

    def _build_poolers(self, sharing: PoolerSharing) -> None:
        count = {"none": 0, "shared": 1, "per_exit": self.num_layers}[sharing]
        poolers = nn.ModuleList(nn.Linear(self.width, self.width) for _ in range(count))
        self.poolers = poolers.to(self.device, self.dtype)

    def _try_out(self) -> Tensor:
        return self(self.collate([Encoding([0]), Encoding([0, 1])])).logits

    def _save_backbone(self, folder: Path) -> None:
        for name, backbone in self.stepper.backbones.items():
            backbone.config.save_pretrained(folder / name)

    @classmethod
    def _without_weights(
        cls, folder: Path, description: ModelDescription, weights: dict[str, Tensor], backbone: str | Path | None
    ) -> Self:
        tokenizer = cls._saved_tokenizer(folder)
        if description.keeps_head:
            config = read_config(folder / BACKBONE_FOLDER)
            check_classifier(folder, config)
            model = cls._of_stock(AutoModelForSequenceClassification.from_config(config), tokenizer, description)
        else:
            model = cls(_saved_stepper(folder, weights), tokenizer, description)
        for stock in model.backbones if description.quantize == "int8" else ():
            quantize_layers(stock)
        return model


def add_companion(model: MultiExitModel, companion: MultiExitModel) -> None:
    """Put a smaller complete model, made by its ``first_layers``, before ``model``, which takes over its modules.

    From now on layers 1..k are the companion's, with its classifiers; the model's own follow, and start from the
    tokens. Every exit gets a pooler of its own, where there are poolers, because the two models' differ.

    Raises UserError for another companion, and ValueError if the model has learned heads, token exits or a companion
    already.
    """
    if model.exit_heads or model.stepper.own_modules:
        raise ValueError("a companion must be added once, before any learned head, and without token exits")
    if companion.tokenizer is not model.tokenizer:
        raise UserError("a companion must be made of its model, by first_layers()")
    if {companion.description.classifier.kind, model.description.classifier.kind} != {"linear"}:
        raise UserError("a companion and its model must have linear classifiers")
    stepper = CascadeStepper(stepper_for(companion.backbone), stepper_for(model.backbone))
    companion.use_own_poolers()
    model.use_own_poolers()
    companion.to(model.device)
    model.classifiers = nn.ModuleList([*companion.classifiers, *model.classifiers])
    model.poolers = nn.ModuleList([*companion.poolers, *model.poolers])
    model.use_stepper(stepper)
    model.description.companion_name = companion.description.backbone_name


class _StockLayer:
    """The last of some layers of a stock forward, pooled only for classifiers that read it so: a clock runs."""

    def __init__(self, model: MultiExitModel, states: Sequence[Tensor], padding_mask: Tensor) -> None:
        self._model = model
        self._states = states
        self.hidden = states[-1]
        self.padding_mask = padding_mask

    @cached_property
    def history(self) -> Tensor:
        layers = enumerate(self._states, start=self._model.num_layers - len(self._states) + 1)
        return torch.stack([self._model.pool(t, state, self.padding_mask) for t, state in layers], dim=1)

    @property
    def pooled(self) -> Tensor:
        return self.history[:, -1]


def _saved_stepper(folder: Path, weights: dict[str, Tensor]) -> EncoderStepper:
    """Return the stepper of a saved model, before the weights of its stock models are loaded."""
    stepper = _stepper_without_weights(folder / BACKBONE_FOLDER)
    if any(name.startswith(f"{COMPANION}.") for name in weights):
        return CascadeStepper(_stepper_without_weights(folder / COMPANION), stepper)
    return TokenExitStepper.over(stepper, weights[SCHEDULE]) if SCHEDULE in weights else stepper


def _stepper_without_weights(folder: Path) -> EncoderStepper:
    config = read_config(folder)
    check_encoder_family(config.model_type)
    backbone = AutoModel.from_config(config, trust_remote_code=False)
    take_pooler(backbone)
    return stepper_for(backbone)


def _dropout_of(config: Any) -> float:
    names = ("classifier_dropout", "seq_classif_dropout", "classifier_dropout_prob", "hidden_dropout_prob")
    values = (getattr(config, name, None) for name in names)
    return float(next((value for value in values if value is not None), 0.0))
