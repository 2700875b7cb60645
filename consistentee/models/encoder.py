"""MultiExitModel: a stock backbone, its pooling, one internal classifier a layer, and what a method adds."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
import transformers
from huggingface_hub import ModelHubMixin, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from consistentee.backbones.cascade import CascadeStepper, check_same_tokens, first_layers
from consistentee.backbones.catalog import Pooling, resolve
from consistentee.backbones.encoders import Stepper, stepper_for
from consistentee.backbones.token_exits import TokenExits, TokenExitStepper
from consistentee.data.encoding import Batch, Encoding, collate, tokenize
from consistentee.data.instances import Text
from consistentee.errors import UserError, unknown_name
from consistentee.files import hash_tensors
from consistentee.models.classifiers import (
    ClassifierSpec,
    InternalClassifier,
    LinearClassifier,
    ReadableLayer,
    RecordedLayer,
    build_classifiers,
    pool_tokens,
)
from consistentee.models.heads import ExitHeads, HeadSpec
from consistentee.models.source_code import code_of
from consistentee.versions import ENGINE_VERSION

PoolerSharing = Literal["none", "shared", "per_exit"]
"""Whether a tanh layer follows the pooling: none, one for all layers (BERT's own), or one an exit (DeeBERT)."""

Precision = Literal["float32", "bfloat16"]
"""What the matrix products of layers are computed in while they are trained."""

FORMAT_VERSION = 1
_DESCRIPTION_FILE = "multi_exit.json"
_WEIGHTS_FILE = "model.safetensors"
_TOKEN_EXITS = "token_exits.schedule"


@dataclass(frozen=True)
class LayerOutputs:
    """All layers of a full-depth pass.

    Attributes:
        vectors: the tokens pooled, before the tanh layer of a pooler: [rows, L, width].
        pooled: what the classifiers read; the same tensor as ``vectors`` where there is no pooler.
        logits: [rows, L, classes].
    """

    vectors: Tensor
    pooled: Tensor
    logits: Tensor


@dataclass
class ModelDescription:
    """Everything beside the weights that a saved model needs: JSON-serialisable.

    ``companion_name`` says where the weights of the companion came from; None where there is none.
    """

    num_labels: int
    pooling: Pooling
    pooler: PoolerSharing
    backbone_name: str
    label_names: tuple[str, ...] = ()
    max_length: int = 128
    task_name: str | None = None
    method_name: str | None = None
    method_parameters: dict[str, Any] = field(default_factory=dict)
    default_knob: float | None = None
    heads: dict[str, HeadSpec] = field(default_factory=dict)
    companion_name: str | None = None
    classifier: ClassifierSpec = field(default_factory=ClassifierSpec)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        heads = {name: spec.to_json() for name, spec in self.heads.items()}
        values = dict(self.__dict__, heads=heads, classifier=self.classifier.to_json())
        return {"format_version": FORMAT_VERSION, **values}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ModelDescription":
        """Rebuild a description. Raises UserError for another format."""
        values = dict(values)
        version = values.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise UserError(f"a saved model of format {version!r} cannot be read; this version reads {FORMAT_VERSION}")
        try:
            values["label_names"] = tuple(values["label_names"])
            values["heads"] = {name: HeadSpec(**spec) for name, spec in values["heads"].items()}
            values["classifier"] = ClassifierSpec(**values.get("classifier", {}))  # older models say none: linear
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise UserError(f"{_DESCRIPTION_FILE} of the saved model is damaged: {error}") from error

    @classmethod
    def read(cls, folder: Path) -> "ModelDescription":
        """Return the description of a saved model. Raises UserError if the folder holds none that can be read."""
        path = folder / _DESCRIPTION_FILE
        if not path.is_file():
            raise UserError(f"{folder} is not a saved multi-exit model: it has no {_DESCRIPTION_FILE}")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"the saved model {folder} is damaged or incomplete: {error}") from error
        return cls.from_json(values)


class MultiExitModel(
    nn.Module,
    ModelHubMixin,
    library_name="consistentee",
    tags=["early-exit"],
):
    """A stock encoder with an exit after every layer. Build it with :meth:`from_backbone`.

    It may have a companion: a smaller complete model that runs first, see :meth:`add_companion`.
    """

    token_exits: TokenExits | None

    def __init__(self, backbone: Any, tokenizer: Any, description: ModelDescription) -> None:
        super().__init__()
        self.backbone = backbone
        self.companion: Any = None
        self.tokenizer = tokenizer
        self.description = description
        self.stepper: Stepper = stepper_for(backbone)
        self._precision: Precision = "float32"
        self.register_module("token_exits", None)
        self.classifiers = self._build_classifiers(description.classifier)
        self.poolers = nn.ModuleList()
        self.exit_heads = nn.ModuleDict()
        self._build_poolers(description.pooler)
        self.eval()

    @classmethod
    def from_backbone(
        cls,
        name: str,
        num_labels: int,
        *,
        label_names: Sequence[str] = (),
        pooling: Pooling | None = None,
        pooler: PoolerSharing | None = None,
        seed: int = 0,
    ) -> Self:
        """Put untrained exits on a pretrained backbone.

        Args:
            name: a name of the catalogue, a directory, or an id on the Hugging Face hub.
            num_labels: number of classes, or 1 for a regression.
            label_names: class names, kept for predictions.
            pooling, pooler: override what the catalogue knows of the backbone.
            seed: seeds the new weights.

        Raises:
            UserError: the name is unknown, the weights cannot be had, or the architecture is not supported.
        """
        found = resolve(name)
        tokenizer = AutoTokenizer.from_pretrained(found.path)
        transformers.utils.logging.disable_progress_bar()
        backbone = AutoModel.from_pretrained(found.path, use_safetensors=True, dtype=torch.float32)
        pretrained_pooler = _take_pooler(backbone)
        description = ModelDescription(
            num_labels=num_labels,
            pooling=pooling or found.pooling,
            pooler=pooler or ("shared" if found.pooler else "none"),
            backbone_name=name,
            label_names=tuple(label_names),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(backbone, tokenizer, description)
        if description.pooler != "none" and pretrained_pooler is not None:
            for dense in model.poolers:
                dense.load_state_dict(pretrained_pooler)
        return model

    @property
    def num_layers(self) -> int:
        """Number of layers that the engine runs: L, or k + L behind a companion of k layers."""
        return self.stepper.num_layers

    @property
    def stock_layers(self) -> int:
        """Number of layers of the stock model, L: what layers are compared with."""
        return stepper_for(self.backbone).num_layers

    @property
    def companion_layers(self) -> int:
        """Number of layers of the companion, k; 0 where there is none."""
        return self.num_layers - self.stock_layers

    @property
    def backbones(self) -> list[Any]:
        """The stock models, in the order they run: the companion, if there is one, and the backbone."""
        return [self.backbone] if self.companion is None else [self.companion, self.backbone]

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return int(self.backbone.config.hidden_size)

    @property
    def num_labels(self) -> int:
        """Number of outputs of a classifier; 1 means a regression."""
        return self.description.num_labels

    @property
    def label_names(self) -> tuple[str, ...]:
        """Class names, in the order of the logits; may be empty."""
        return self.description.label_names

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.classifiers.parameters()).device

    @property
    def max_length(self) -> int:
        """Number of tokens that texts are cut to."""
        return self.description.max_length

    def add_head(self, name: str, spec: HeadSpec, seed: int = 0) -> ExitHeads:
        """Add (or replace) a learned head, which rules read as ``view.head(name)``; ``seed`` seeds its weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            heads = ExitHeads(spec, self.width, self.num_layers).to(self.device)
        self.exit_heads[name] = heads
        self.description.heads[name] = spec
        return heads

    def head(self, name: str) -> ExitHeads:
        """Return a head that a method added. Raises UserError for an unknown name."""
        if name not in self.exit_heads:
            raise unknown_name("head of this model", name, self.exit_heads)
        return cast(ExitHeads, self.exit_heads[name])

    def first_layers(self, layers: int, seed: int = 0) -> Self:
        """Return a complete model of its own: copies of the embeddings, the first layers and their poolers.

        Its classifiers are new, seeded with ``seed``. Raises UserError if there are not more layers than that, or if
        they share weights in a way that no stock model of fewer layers can.
        """
        backbone = first_layers(stepper_for(self.backbone), layers)
        _take_pooler(backbone)
        name = f"{self.description.backbone_name}, layers 1 to {layers}"
        description = replace(self.description, backbone_name=name, heads={}, companion_name=None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = type(self)(backbone, self.tokenizer, description)
        for dense, mine in zip(model.poolers, self.poolers, strict=False):
            dense.load_state_dict(mine.state_dict())
        return model.to(self.device)

    def check_companion(self, companion: Self) -> CascadeStepper:
        """Return what would run a companion and this model. Raises UserError if they do not fit together."""
        check_same_tokens(companion.tokenizer, self.tokenizer)
        settings = [(d.num_labels, d.pooling, d.pooler) for d in (companion.description, self.description)]
        if settings[0] != settings[1]:
            raise UserError(f"a companion must have its model's labels, pooling and pooler: {settings}")
        if {companion.description.classifier.kind, self.description.classifier.kind} != {"linear"}:
            raise UserError("a companion and its model must have linear classifiers")
        return CascadeStepper(stepper_for(companion.backbone), stepper_for(self.backbone))

    def add_companion(self, companion: Self) -> None:
        """Put a smaller complete model before this one, which takes over its modules.

        From now on layers 1..k are the companion's, with its classifiers; this model's own follow, and start from the
        tokens. Every exit gets a pooler of its own, where there are poolers, because the two models' differ.

        Raises:
            UserError: the companion reads other tokens, has another width, pooling, pooler or number of labels, or one
                of the two has classifiers that are not linear.
            ValueError: this model has learned heads or token exits, which belong to its layers as they are, or a
                companion already.
        """
        if self.exit_heads or self.token_exits is not None or self.companion is not None:
            raise ValueError("a companion must be added once, before any learned head, and without token exits")
        stepper = self.check_companion(companion)
        if self.description.pooler == "shared":
            companion.use_pooler("per_exit")
            self.use_pooler("per_exit")
        companion.to(self.device)
        self.classifiers = nn.ModuleList([*companion.classifiers, *self.classifiers])
        self.poolers = nn.ModuleList([*companion.poolers, *self.poolers])
        self.companion = companion.backbone
        self.stepper = stepper
        self.description.companion_name = companion.description.backbone_name

    def use_pooler(self, sharing: PoolerSharing) -> None:
        """Change the pooler; one a layer starts from the shared one where there is one."""
        shared = self.poolers[0].state_dict() if len(self.poolers) else None
        self.description.pooler = sharing
        self._build_poolers(sharing)
        if shared is not None:
            for dense in self.poolers:
                dense.load_state_dict(shared)

    def use_classifier(self, spec: ClassifierSpec, seed: int = 0) -> None:
        """Give the exits untrained classifiers of another kind, whose weights ``seed`` seeds.

        Where the spec leaves layer L its linear classifier, that one stays as it is. Raises UserError for an unknown
        kind.
        """
        last = self.classifiers[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.classifiers = self._build_classifiers(spec).to(self.device).train(self.training)
        if not spec.at_last_layer and isinstance(last, LinearClassifier):
            self.classifiers[-1] = last
        self.description.classifier = spec

    def classifier(self, layer: int) -> InternalClassifier:
        """Return the internal classifier of layer ``layer`` (1-based)."""
        return cast(InternalClassifier, self.classifiers[layer - 1])

    @property
    def reads_history(self) -> bool:
        """Whether some classifier reads the pooled vectors of the layers before its own."""
        return any(self.classifier(t).reads_history for t in range(1, self.num_layers + 1))

    @property
    def reads_tokens(self) -> bool:
        """Whether some classifier reads every token of its layer, and not the pooled vector alone."""
        return any(self.classifier(t).reads_tokens for t in range(1, self.num_layers + 1))

    def use_token_exits(self, schedule: Tensor) -> None:
        """From now on, let every token exit by itself, in training and at inference; rules still let rows exit.

        Args:
            schedule: the 1-based exit layer of every token of the vocabulary: int64 [vocabulary].

        Raises ValueError for a schedule of another shape, or with layers outside of 1..L; or behind a companion.
        """
        if self.companion is not None:
            raise ValueError("tokens cannot exit by themselves in a cascade")
        vocabulary = self.backbone.config.vocab_size
        if schedule.shape != (vocabulary,):
            raise ValueError(f"a schedule of token exits must be [{vocabulary}], got {list(schedule.shape)}")
        self.token_exits = TokenExits(schedule, self.num_layers).to(self.device)
        self.stepper = TokenExitStepper(stepper_for(self.backbone), self.token_exits)

    def live_tokens(self, encodings: Sequence[Encoding]) -> Tensor | None:
        """Return how many tokens of each row run each layer that the row runs: int64 [N, L], on the CPU.

        None where no token exits by itself: then all of them do.
        """
        return None if self.token_exits is None else self.token_exits.live_tokens(encodings)

    def tokenize(self, texts: Sequence[Text], max_length: int | None = None) -> list[Encoding]:
        """Tokenise texts, cut to ``max_length`` tokens (by default the model's own)."""
        encodings = tokenize(self.tokenizer, texts, min(max_length or self.max_length, self.stepper.position_limit))
        if not self.stepper.uses_token_types:
            return [Encoding(encoding.input_ids) for encoding in encodings]
        return encodings

    def collate(self, encodings: Sequence[Encoding]) -> Batch:
        """Pad rows into a batch on the model's device."""
        return collate(encodings, self.tokenizer.pad_token_id, self.device)

    def pool_tokens(self, hidden: Tensor, padding_mask: Tensor) -> Tensor:
        """Turn [rows, tokens, width] into [rows, width]: the mean of the real tokens, or the first token."""
        return pool_tokens(hidden, padding_mask, self.description.pooling)

    def apply_pooler(self, layer: int, vector: Tensor) -> Tensor:
        """Apply the tanh layer of the pooler, where there is one, to [rows, width]."""
        if not len(self.poolers):
            return vector
        dense = self.poolers[0 if len(self.poolers) == 1 else layer - 1]
        return dense(vector).tanh()

    def pool(self, layer: int, hidden: Tensor, padding_mask: Tensor) -> Tensor:
        """Return what the classifier of layer ``layer`` reads: [rows, width]."""
        return self.apply_pooler(layer, self.pool_tokens(hidden, padding_mask))

    def classify(self, layer: int, readable: ReadableLayer) -> Tensor:
        """Return the logits of the internal classifier of layer ``layer``, whatever it reads: [rows, classes]."""
        return self.classifier(layer)(readable)

    def classify_pooled(self, layer: int, pooled: Tensor) -> Tensor:
        """As :meth:`classify`, of the pooled vector [rows, width]. Raises UserError where that is not all it reads."""
        classifier = self.classifier(layer)
        if classifier.reads_tokens or classifier.reads_history:
            kind = self.description.classifier.kind
            raise UserError(f"the {kind} classifier of layer {layer} reads more than the pooled vector of its layer")
        return classifier(RecordedLayer(pooled.unsqueeze(1)))

    def forward(self, batch: Batch) -> LayerOutputs:
        """Run all layers on all rows: what training and tracing read."""
        keeps_tokens = self.reads_tokens
        vectors, states = [], []
        with self._layers_precision():
            hidden, context = self.stepper.begin(batch)
        for layer in range(1, self.num_layers + 1):
            with self._layers_precision():
                hidden = self.stepper.step(layer, hidden, context).float()
            vectors.append(self.pool_tokens(hidden, context.padding_mask))
            states.append(hidden if keeps_tokens else None)
        return self._read(torch.stack(vectors, dim=1), states, context.padding_mask)

    @contextmanager
    def layers_in(self, precision: Precision) -> Iterator[None]:
        """For the time being, multiply the matrices of layers in this precision in passes to train on.

        What passes between layers, pooling, classifiers, heads and all weights stay in float32, and so does whatever
        :func:`consistentee.classify` does.
        """
        before, self._precision = self._precision, precision
        try:
            yield
        finally:
            self._precision = before

    def _layers_precision(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._precision == "float32" else torch.autocast(self.device.type, torch.bfloat16)

    def read_vectors(self, vectors: Tensor) -> LayerOutputs:
        """Apply every layer's pooler and classifier to pooled tokens [rows, L, width], left by a frozen backbone.

        Raises UserError where a classifier reads every token, which the backbone has not left.
        """
        return self._read(vectors, [None] * self.num_layers, None)

    def _read(self, vectors: Tensor, states: Sequence[Tensor | None], padding_mask: Tensor | None) -> LayerOutputs:
        layers = range(1, self.num_layers + 1)
        pooled = vectors
        if len(self.poolers):
            pooled = torch.stack([self.apply_pooler(t, vectors[:, t - 1]) for t in layers], dim=1)
        readable = [RecordedLayer(pooled[:, :t], states[t - 1], padding_mask) for t in layers]
        logits = torch.stack([self.classify(t, readable[t - 1]) for t in layers], dim=1)
        return LayerOutputs(vectors, pooled, logits)

    def stock_logits(self, batch: Batch) -> Tensor:
        """Run the stock backbone's own forward and the last classifier: [rows, classes]. The model without exits."""
        keeps_all = self.classifier(self.num_layers).reads_history
        with self._layers_precision():
            output = self.backbone(**batch.model_inputs, output_hidden_states=keeps_all)
        states = [state.float() for state in (output.hidden_states[1:] if keeps_all else (output.last_hidden_state,))]
        return self.classify(self.num_layers, _StockLayer(self, states, batch.padding_mask))

    def fingerprint(self, *, with_heads: bool = True) -> str:
        """Return a hash of what a pass gives: weights, pooling, configuration, and the version of the engine.

        A user's own kind of classifier counts with its code, and a backbone without the place it was loaded from.
        ``with_heads=False`` leaves the learned heads out, on which neither hidden states nor logits depend.
        """
        heads = () if with_heads else ("exit_heads.",)
        weights = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(heads)}
        configs = [_config_without_place(backbone.config) for backbone in self.backbones]
        shapes = [self.description.pooling, self.description.classifier.to_json(), *configs]
        parts = [
            hash_tensors(weights),
            *shapes,
            self.device.type,
            ENGINE_VERSION["classification"],
            *code_of(self.classifiers),
        ]
        parts += [torch.__version__, transformers.__version__]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def clone_weights(self) -> dict[str, Tensor]:
        """Return a copy of all weights, on the CPU."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.state_dict().items()}

    def _build_classifiers(self, spec: ClassifierSpec) -> nn.ModuleList:
        return build_classifiers(
            spec,
            num_layers=self.num_layers,
            width=self.width,
            num_labels=self.num_labels,
            pooling=self.description.pooling,
            dropout=_dropout_of(self.backbone.config),
        )

    def _build_poolers(self, sharing: PoolerSharing) -> None:
        count = {"none": 0, "shared": 1, "per_exit": self.num_layers}[sharing]
        self.poolers = nn.ModuleList(nn.Linear(self.width, self.width) for _ in range(count)).to(self.device)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_directory.mkdir(parents=True, exist_ok=True)
        self.backbone.config.save_pretrained(save_directory / "backbone")
        if self.companion is not None:
            self.companion.config.save_pretrained(save_directory / "companion")
        self.tokenizer.save_pretrained(save_directory / "tokenizer")
        save_file(
            {name: tensor.contiguous() for name, tensor in self.state_dict().items()},
            save_directory / _WEIGHTS_FILE,
        )
        text = json.dumps(self.description.to_json(), indent=2)
        (save_directory / _DESCRIPTION_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **_: Any,
    ) -> Self:
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        description = ModelDescription.read(folder)
        try:
            return cls._load(folder, description)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"the saved model {model_id} is damaged or incomplete: {reason}") from error

    @classmethod
    def _load(cls, folder: Path, description: ModelDescription) -> Self:
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        bare = replace(description, heads={}, companion_name=None)
        model = cls(_unloaded_backbone(folder / "backbone"), tokenizer, bare)
        if description.companion_name is not None:
            named = replace(bare, backbone_name=description.companion_name)
            model.add_companion(cls(_unloaded_backbone(folder / "companion"), tokenizer, named))
        for name, spec in description.heads.items():
            model.add_head(name, spec)
        weights = load_file(folder / _WEIGHTS_FILE)
        if _TOKEN_EXITS in weights:
            model.use_token_exits(weights[_TOKEN_EXITS])
        model.load_state_dict(weights)
        return model.eval()


def _unloaded_backbone(folder: Path) -> Any:
    """Return a stock model of a saved configuration, without its pooler; its weights are yet to be loaded."""
    backbone = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    _take_pooler(backbone)
    return backbone


class _StockLayer:
    """The last layer of a stock forward, as its classifier reads it; pooled only when asked for."""

    def __init__(self, model: MultiExitModel, states: Sequence[Tensor], padding_mask: Tensor) -> None:
        """``states``: hidden states of layers 1..L, or of layer L alone where its classifier reads no history."""
        self._model = model
        self._states = states
        self.hidden = states[-1]
        self.padding_mask = padding_mask

    @cached_property
    def pooled(self) -> Tensor:
        """The last layer's tokens as one vector: [rows, width]."""
        return self._model.pool(self._model.num_layers, self.hidden, self.padding_mask)

    @cached_property
    def history(self) -> Tensor:
        """All layers' pooled vectors: [rows, L, width]."""
        pooled = [self._model.pool(t, hidden, self.padding_mask) for t, hidden in enumerate(self._states, start=1)]
        return torch.stack(pooled, dim=1)


def _config_without_place(config: Any) -> str:
    return json.dumps({**json.loads(config.to_json_string(use_diff=False)), "_name_or_path": None}, sort_keys=True)


def _dropout_of(config: Any) -> float:
    for name in (
        "classifier_dropout",
        "seq_classif_dropout",
        "classifier_dropout_prob",
        "hidden_dropout_prob",
    ):
        value = getattr(config, name, None)
        if value is not None:
            return float(value)
    return 0.0


def _take_pooler(backbone: Any) -> dict[str, Tensor] | None:
    """Remove the stock pooler, so that no pass pays for what is not read; return its weights, if it has one.

    ALBERT's pooler is a bare linear layer, the others' has it inside.
    """
    pooler = getattr(backbone, "pooler", None)
    if pooler is None:
        return None
    backbone.pooler = None
    dense = getattr(pooler, "dense", pooler)
    return {name: tensor.clone() for name, tensor in dense.state_dict().items()}
