"""suitability: whether a stock decoder knows its answers early, as a table and JSON."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text

from benchmarks.measure.suitability import GREEDY, REFERENCE, TEXTS, Suitability, measure_suitability
from benchmarks.terminal import add_columns, add_row, plain_table
from consistentee.errors import UserError
from consistentee.models.base import chosen_device

_ROWS = 12
"""Layers shown in the table, spread over the depth; all are in the JSON file."""


def suitability_of(name: str, texts: Path | None) -> Suitability:
    """Measure a decoder of any name on the texts of a file, one a line, or on those that come with the command."""
    lines: tuple[str, ...] = TEXTS
    if texts is not None:
        lines = tuple(line.strip() for line in texts.read_text(encoding="utf-8").splitlines() if line.strip())
    if not lines:
        raise UserError(f"{texts} holds no text")
    model, tokenizer = _load(name)
    model.to(chosen_device())
    return measure_suitability(model, tokenizer, lines, progress=True)


def _load(name: str) -> tuple[Any, Any]:
    from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder

    if (Path(name) / MultiExitDecoder.description_class.file).is_file():
        trained = MultiExitDecoder.from_pretrained(name)
        return trained.backbone, trained.tokenizer
    from transformers import AutoModelForCausalLM

    from consistentee.backbones.catalog import resolve_decoder
    from consistentee.backbones.pretrained import read_model, read_tokenizer

    folder = resolve_decoder(name)
    return read_model(folder, AutoModelForCausalLM)[0], read_tokenizer(folder)


def described(name: str, found: Suitability) -> Group:
    """Return the table of layers, the summary and the verdict."""
    table = plain_table(f"{name}: {found.layers} layers, read through the final norm and the LM head")
    add_columns(table, "layer", "agrees, greedy", "agrees, references", numbers=True)
    step = max(1, round(found.layers / _ROWS))
    for layer in [*range(step, found.layers, step), found.layers]:
        add_row(table, layer, *(f"{found.agreement.loc[layer, kind]:.0%}" for kind in (GREEDY, REFERENCE)))
    greedy, reference = found.summary.loc[GREEDY], found.summary.loc[REFERENCE]
    draft = found.draft
    lines = [
        f"first layer that agrees with the last: {greedy.first_agreement:.1f} on {greedy.tokens:.0f} greedy tokens, "
        f"{reference.first_agreement:.1f} on {reference.tokens:.0f} tokens of references",
        f"first layer from which on all agree: {greedy.saturation:.1f} and {reference.saturation:.1f}; "
        f"an oracle saves {found.oracle_saves:.1f} layers a token",
        f"cheapest drafts: {draft.tokens} from layer {draft.exit_layer}, {draft.layers_per_token:.1f} layers a token, "
        f"{draft.cost:.0%} of the cost with the LM head, which is worth {found.head_in_layers:.1f} layers",
        f"{name} is {found.judgement}",
    ]
    return Group(table, *(Text(line) for line in lines))


def write(name: str, found: Suitability, file: Path) -> None:
    """Write all numbers as JSON."""
    numbers = asdict(found) | {"model": name, "judgement": found.judgement, "oracle_saves": found.oracle_saves}
    numbers |= {"agreement": found.agreement.to_dict(), "summary": found.summary.to_dict(orient="index")}
    file.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
