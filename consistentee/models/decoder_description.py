"""DecoderDescription: everything beside the weights that a saved multi-exit decoder needs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from consistentee.errors import UserError
from consistentee.models.adapters import AdapterKind
from consistentee.models.heads import HeadSpec
from consistentee.models.lora import LoraSpec

FORMAT_VERSION = 1
DESCRIPTION_FILE = "multi_exit_decoder.json"
_DEFAULT_EXITS = 5


@dataclass
class DecoderDescription:
    """JSON-serialisable.

    Attributes:
        backbone_name: a name of the catalogue, an absolute path, or a hub id.
        backbone_hash: of the weights that were loaded under this name.
        exit_layers: 1-based, increasing; the last one is L.
        adapter, rank: what the exits below L have of their own.
        heads: learned heads by name.
        lora: low-rank adaptation of the backbone, or None.
        with_backbone: the backbone's weights are saved with the model, and not only its name and hash.
        task_name, method_name, method_parameters, default_knob: what it was trained for, and by which method.
        max_prompt_tokens, max_new_tokens: the longest prompts and texts that it was trained on; None where it was not.
    """

    backbone_name: str
    backbone_hash: str
    exit_layers: tuple[int, ...]
    adapter: AdapterKind = "low-rank"
    rank: int = 128
    heads: dict[str, HeadSpec] = field(default_factory=dict)
    lora: LoraSpec | None = None
    with_backbone: bool = False
    task_name: str | None = None
    method_name: str | None = None
    method_parameters: dict[str, Any] = field(default_factory=dict)
    default_knob: float | None = None
    max_prompt_tokens: int | None = None
    max_new_tokens: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        heads = {name: spec.to_json() for name, spec in self.heads.items()}
        lora = None if self.lora is None else self.lora.to_json()
        return {"format_version": FORMAT_VERSION, **dict(self.__dict__, heads=heads, lora=lora)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DecoderDescription":
        """Rebuild a description. Raises UserError for another format."""
        values = dict(values)
        version = values.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise UserError(
                f"a saved decoder of format {version!r} cannot be read; this version reads {FORMAT_VERSION}"
            )
        try:
            values["exit_layers"] = tuple(values["exit_layers"])
            values["heads"] = {name: HeadSpec(**spec) for name, spec in values["heads"].items()}
            if values["lora"] is not None:
                values["lora"] = LoraSpec(values["lora"]["rank"], tuple(values["lora"]["targets"]))
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise UserError(f"{DESCRIPTION_FILE} of the saved decoder is damaged: {error}") from error


def default_exit_layers(num_layers: int) -> tuple[int, ...]:
    """Return five evenly spaced layers, or all where there are fewer; the last one is L."""
    count = min(_DEFAULT_EXITS, num_layers)
    return tuple(round(num_layers * i / count) for i in range(1, count + 1))


def check_exit_layers(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Return exit layers, with layer L at the end. Raises UserError unless they increase within 1..L."""
    chosen = tuple(int(layer) for layer in layers)
    if list(chosen) != sorted(set(chosen)) or not all(1 <= layer <= num_layers for layer in chosen):
        raise UserError(f"exit layers must increase and lie in 1..{num_layers}, got {list(chosen)}")
    return chosen if chosen[-1:] == (num_layers,) else (*chosen, num_layers)
