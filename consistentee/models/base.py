"""Base classes of multi-exit models: description, learned heads, weights, and saved folders."""

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, cast

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from consistentee.arguments import NotNegative, Number, Positive, check_layer, checked
from consistentee.backbones.decoders import DecoderStepper
from consistentee.backbones.encoders import EncoderStepper
from consistentee.backbones.int8 import check_not_quantized
from consistentee.backbones.pretrained import (
    CONFIG_FILE,
    TOKENIZER_CONFIG_FILE,
    check_finite,
    read_json,
    read_tokenizer,
    read_weights,
    reading,
)
from consistentee.errors import UserError, unknown_name
from consistentee.files import hash_file, hash_tensors

FORMAT_VERSION = 1
BACKBONE_FOLDER = "backbone"
TOKENIZER_FOLDER = "tokenizer"
METHOD_FOLDER = "method"
WEIGHTS_FILE = "model.safetensors"

Precision = Literal["float32", "bfloat16"]
"""Type in which the matrix products of layers are computed while they are trained."""


def chosen_device() -> torch.device:
    """Return the device on which models are trained, and saved ones are loaded.

    ``CONSISTENTEE_DEVICE`` names it, such as cpu, cuda:1 or mps; "auto", the default, is an accelerator if torch finds
    one, else the CPU. Raises UserError for a device that cannot be used.
    """
    name = os.environ.get("CONSISTENTEE_DEVICE", "auto")
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.empty(0, device=name).device
        if accelerator is not None and device.type == accelerator.type:
            names = ("set_device_index", "set_device_idx")  # the second one in torch 2.6
            set_device = next(getattr(torch.accelerator, one) for one in names if hasattr(torch.accelerator, one))
            set_device(device)  # its random state is used
        return device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"the device {name!r} cannot be used: {reason}; give auto, cpu, cuda, cuda:1 or mps") from error


@checked
@dataclass(frozen=True)
class HeadSpec:
    """A small network that reads the pooled vector of a layer.

    Attributes:
        hidden: width of a hidden layer with GELU, or None for a linear head.
        shared: one module for all layers, instead of one a layer.
        extra_inputs: number of inputs that the rule concatenates to the pooled vector.
        reads_pooled: whether the pooled vector is an input at all.
    """

    outputs: Positive = 1
    hidden: Positive | None = None
    shared: bool = False
    extra_inputs: NotNegative = 0
    reads_pooled: bool = True
    initial_bias: Number = 0.0


class ExitHeads(nn.Module):
    """The modules of one HeadSpec: one a layer, or one shared."""

    def __init__(self, spec: HeadSpec, width: int, num_layers: int) -> None:
        super().__init__()
        self.spec = spec
        self.num_layers = num_layers
        count = 1 if spec.shared else num_layers
        inputs = (width if spec.reads_pooled else 0) + spec.extra_inputs
        self.modules_by_layer = nn.ModuleList(_network(spec, inputs) for _ in range(count))

    def forward(self, layer: int, pooled: Tensor, extra: Tensor | None = None) -> Tensor:
        """Return the output at layer ``layer`` (1-based): [rows], or [rows, outputs] if there are several."""
        check_layer(layer, self.num_layers)
        given = 0 if extra is None else extra.shape[-1]
        if given != self.spec.extra_inputs:
            raise ValueError(f"this head takes {self.spec.extra_inputs} extra inputs a row, got {given}")
        parts = [pooled] if self.spec.reads_pooled else []
        parts += [] if extra is None else [extra.to(pooled.dtype)]
        features = torch.cat(parts, dim=-1)
        output = self.modules_by_layer[0 if self.spec.shared else layer - 1](features)
        return output.squeeze(-1) if self.spec.outputs == 1 else output

    def at_layers(self, layers: Sequence[int], pooled: Tensor, extra: Tensor | None = None) -> Tensor:
        """Return the outputs at some layers (1-based): [rows, layers], or [rows, layers, outputs].

        ``pooled`` is [rows, layers, width], and ``extra`` [rows, layers, extra inputs].
        """
        extras = [None] * len(layers) if extra is None else extra.unbind(dim=1)
        inputs = zip(layers, pooled.unbind(dim=1), extras, strict=True)
        return torch.stack([self(layer, vectors, more) for layer, vectors, more in inputs], dim=1)


def _network(spec: HeadSpec, inputs: int) -> nn.Module:
    last = nn.Linear(spec.hidden or inputs, spec.outputs)
    nn.init.constant_(last.bias, spec.initial_bias)
    if spec.hidden is None:
        return last
    return nn.Sequential(nn.Linear(inputs, spec.hidden), nn.GELU(), last)


@dataclass(kw_only=True)
class Description:
    """Everything besides the weights that a saved model needs; JSON-serialisable.

    Class attributes:
        kind: name of such a model in messages.
        file: name of the description's file in a saved folder.

    Attributes:
        method_sha256: hash of the method's file, if the method is in one; the file lies in the saved folder.
        validation_by_epoch: score on validation rows after every epoch, by stage: ``joint``, the mean over exits,
            ``last-exit``, the full model's, and ``branches``, minus the loss.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)
    kind: ClassVar[str]
    file: ClassVar[str]

    task_name: str | None = None
    method_name: str | None = None
    method_sha256: str | None = None
    method_parameters: dict[str, Any] = field(default_factory=dict)
    default_knob: float | None = None
    heads: dict[str, HeadSpec] = field(default_factory=dict)
    validation_by_epoch: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the description of a saved model. Raises UserError that names the file unless it is valid."""
        path = folder / cls.file
        if not path.is_file():
            raise UserError(f"{folder} is not a saved multi-exit {cls.kind}: it has no {cls.file}")
        values = read_json(path)
        version = values.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path} has format {version!r}, which cannot be read; this version reads format {FORMAT_VERSION}"
            )
        try:
            description = TypeAdapter(cls).validate_json(json.dumps(values))
            if description.method_sha256 is not None:  # its file lies in the folder, wherever that is now
                description.method_name = str(folder.resolve() / str(description.method_name))
            return description
        except ValidationError as error:
            first = error.errors()[0]
            field_name = ".".join(map(str, first["loc"]))
            raise UserError(f"{path} cannot be read: {field_name}: {first['msg']}") from error


class MultiExit(nn.Module, ABC):
    """A stock model whose layers are run one by one, with exits and the learned heads of methods.

    ``precision``: type of the layers' matrix products in training passes, see :meth:`layers_in`.
    """

    description_class: ClassVar[type[Description]]

    stepper: EncoderStepper | DecoderStepper
    description: Description
    precision: Precision = "float32"

    def __init__(self, stepper: EncoderStepper | DecoderStepper, tokenizer: Any, description: Description) -> None:
        super().__init__()
        self.backbone = stepper.backbone
        self.tokenizer = tokenizer
        self.description = description
        self.stepper = stepper
        self._build_exits()
        self.exit_heads = nn.ModuleDict()
        self.eval()

    @abstractmethod
    def _build_exits(self) -> None:
        """Make the untrained modules of the exits."""

    @property
    def num_layers(self) -> int:
        """Number of layers that can be run, L."""
        return self.stepper.num_layers

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return self.stepper.width

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, the hidden states and the outputs."""
        return next(self.parameters()).dtype

    @contextmanager
    def layers_in(self, precision: Precision) -> Iterator[None]:
        """Compute the layers' matrix products of training passes in this precision, within the ``with`` block.

        Hidden states between layers, exits, all weights and inference keep their type.
        """
        before, self.precision = self.precision, precision
        try:
            yield
        finally:
            self.precision = before

    def _layers_precision(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.precision == "float32" else torch.autocast(self.device.type, torch.bfloat16)

    @checked
    def add_head(self, name: Annotated[str, Field(pattern=r"^[^.]+$")], spec: HeadSpec, seed: int = 0) -> ExitHeads:
        """Add (or replace) a learned head, which rules read as ``view.head(name)``; ``seed`` seeds its weights."""
        with new_weights(seed):
            heads = ExitHeads(spec, self.width, self.num_layers).to(self.device, self.dtype)
        self.exit_heads[name] = heads
        self.description.heads[name] = spec
        return heads

    def head(self, name: str) -> ExitHeads:
        """Return a head that a method added. Raises UserError for an unknown name."""
        if name not in self.exit_heads:
            raise unknown_name("head of this model", name, self.exit_heads)
        return cast(ExitHeads, self.exit_heads[name])

    @torch.no_grad()
    def add_factors(self, name: str, factors: Tensor) -> None:
        """Add a head that multiplies its one extra input by the number of the layer: float [L]."""
        heads = self.add_head(name, HeadSpec(extra_inputs=1, reads_pooled=False))
        for module, factor in zip(heads.modules_by_layer, factors, strict=True):
            module.get_parameter("weight").fill_(factor)

    def factors(self, name: str) -> list[float]:
        """Return the numbers of layers 1..L that :meth:`add_factors` has added."""
        return [module.get_parameter("weight").item() for module in self.head(name).modules_by_layer]

    @abstractmethod
    def fingerprint(self, *, with_heads: bool = True) -> str:
        """Return a hash of all that determines outputs; ``with_heads=False`` excludes the learned heads."""

    def _hash_weights(self, with_heads: bool) -> str:
        excluded = () if with_heads else ("exit_heads.",)
        weights = self._own_weights().items()
        return hash_tensors({name: tensor for name, tensor in weights if not name.startswith(excluded)})

    def clone_weights(self) -> dict[str, Tensor]:
        """Return a copy of all weights, on the CPU."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.state_dict().items()}

    def _own_weights(self) -> dict[str, Tensor]:
        """Return the weights that are saved with the model."""
        return self.state_dict()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as safetensors and JSON into a folder, which is made if needed."""
        check_not_quantized(self)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._save_backbone(folder)
        self.tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)
        weights = {name: tensor.contiguous() for name, tensor in self._own_weights().items()}
        save_file(weights, folder / WEIGHTS_FILE)
        fields = asdict(self.description) | _saved_method(self.description.method_name, folder)
        text = json.dumps({"format_version": FORMAT_VERSION, **fields}, indent=2)
        (folder / self.description.file).write_text(text, encoding="utf-8")

    @abstractmethod
    def _save_backbone(self, folder: Path) -> None:
        """Write the files from which the stock model is rebuilt."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, backbone: str | Path | None = None) -> Self:
        """Load a saved model; ``backbone`` is the directory with a decoder's backbone if it is not where it was.

        Raises UserError that names a missing or damaged file.
        """
        folder = Path(folder)
        description = cls.description_class.read(folder)
        weights = read_weights(folder / WEIGHTS_FILE)
        with reading(folder / description.file):
            model = cls._without_weights(folder, description, weights, backbone)
            for name, spec in description.heads.items():
                model.add_head(name, spec)
        with reading(folder / WEIGHTS_FILE):
            for name, tensor in model._own_weights().items():
                if name in weights and weights[name].is_floating_point() != tensor.is_floating_point():
                    raise ValueError(f"{name} is {weights[name].dtype}, expected {tensor.dtype}")
            if weights.keys() != model._own_weights().keys():
                raise ValueError(f"it holds other weights than {description.file} names")
            model.load_state_dict(weights, strict=False)  # a decoder's backbone has its own already
        with reading(folder / BACKBONE_FOLDER / CONFIG_FILE), torch.inference_mode():
            check_finite({"the answer of the model": model.eval()._try_out()})
        return model

    @staticmethod
    def _saved_tokenizer(folder: Path) -> Any:
        """Read the tokenizer of a saved model; without its settings transformers would build another one."""
        read_json(folder / TOKENIZER_FOLDER / TOKENIZER_CONFIG_FILE)
        return read_tokenizer(folder / TOKENIZER_FOLDER)

    @abstractmethod
    def _try_out(self) -> Tensor:
        """Run every layer and exit on two tokens, so that impossible settings fail while the model is loaded."""

    @classmethod
    @abstractmethod
    def _without_weights(
        cls, folder: Path, description: Any, weights: dict[str, Tensor], backbone: str | Path | None
    ) -> Self:
        """Return the model of a saved folder, without its own weights and its learned heads."""


def _saved_method(name: str | None, folder: Path) -> dict[str, str]:
    """Copy the file of a method into a saved folder; return the fields that name it there, relative to the folder."""
    file, _, class_name = (name or "").rpartition(":")
    if not file.endswith(".py") or not Path(file).is_file():
        return {}
    copy = folder / METHOD_FOLDER / Path(file).name
    copy.parent.mkdir(exist_ok=True)
    if not (copy.is_file() and copy.samefile(file)):
        shutil.copyfile(file, copy)
    return {"method_name": f"{METHOD_FOLDER}/{copy.name}:{class_name}", "method_sha256": hash_file(copy)}


@contextmanager
def new_weights(seed: int) -> Iterator[None]:
    """Seed the weights made within the ``with`` block; the global generator does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed accelerators too
        yield
