"""DecoderDescription, and checks of exit layers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import PositiveInt

from consistentee.data.tasks import ChatTemplate
from consistentee.errors import UserError
from consistentee.models.base import Description
from consistentee.models.decoder.adapters import AdapterKind, LoraSpec
from consistentee.models.decoder.branches import BranchSpec, SkippedSublayers


@dataclass(kw_only=True)
class DecoderDescription(Description):
    """Everything besides the weights that a saved multi-exit decoder needs.

    Attributes:
        backbone_name: a name of the catalogue, an absolute path, or a hub id.
        backbone_hash: of the weights that were loaded under this name.
        exit_layers: 1-based, increasing; the last one is L.
        closing_layers, chat_template: see :meth:`consistentee.MultiExitDecoder.from_backbone`.
        skipped: sublayers that drafts leave out, by their share of all that may be skipped, in per cent.
        drafts: length and threshold of drafts, by the knob.
        with_backbone: the backbone's weights are saved with the model, and not only its name and hash. Set it before
            giving away a model whose backbone is a directory of yours.
        max_prompt_tokens, max_new_tokens: the longest prompts and texts that it was trained on; None where it was not.
    """

    kind: ClassVar[str] = "decoder"
    file: ClassVar[str] = "multi_exit_decoder.json"

    backbone_name: str
    backbone_hash: str
    exit_layers: tuple[int, ...]
    adapter: AdapterKind = "low-rank"
    rank: int = 128
    closing_layers: int = 0
    chat_template: ChatTemplate = "never"
    lora: LoraSpec | None = None
    branches: dict[int, BranchSpec] = field(default_factory=dict)
    skipped: dict[int, SkippedSublayers] = field(default_factory=dict)
    drafts: dict[float, tuple[PositiveInt, float]] = field(default_factory=dict)
    with_backbone: bool = False
    max_prompt_tokens: PositiveInt | None = None
    max_new_tokens: PositiveInt | None = None


def chosen_exit_layers(layers: Sequence[int] | None, num_layers: int) -> tuple[int, ...]:
    """Return exit layers, with layer L at the end; by default five, evenly spaced, or all where there are fewer.

    Raises UserError unless they increase within 1..L.
    """
    if layers is None:
        count = min(5, num_layers)
        return tuple(round(num_layers * i / count) for i in range(1, count + 1))
    chosen = tuple(int(layer) for layer in layers)
    if list(chosen) != sorted(set(chosen)) or not all(1 <= layer <= num_layers for layer in chosen):
        raise UserError(f"exit layers must increase and lie in 1..{num_layers}, got {list(chosen)}")
    return chosen if chosen[-1:] == (num_layers,) else (*chosen, num_layers)


def check_closing_layers(closing_layers: int, exit_layers: Sequence[int], adapter: AdapterKind) -> int:
    """Return the number of closing layers; raise UserError unless every exit has a layer before them and no weights."""
    if not 0 <= closing_layers < exit_layers[0]:
        raise UserError(
            "closing layers are among the layers of every exit, so there must be at least 0 and fewer than the "
            f"{exit_layers[0]} of the first one; got {closing_layers}"
        )
    if closing_layers and adapter != "shared":
        raise UserError(
            f"behind closing layers all exits read the model's own norm and LM head: adapter 'shared', not {adapter!r}"
        )
    return closing_layers
