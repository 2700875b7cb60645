"""Show from which layer on a stock decoder predicts its final tokens, as a table, a figure and JSON."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Group
from rich.text import Text
from transformers import AutoModelForCausalLM

from benchmarks.measure.suitability import GREEDY, REFERENCE, Suitability, measure_suitability
from benchmarks.terminal import filled_table
from consistentee.backbones.catalog import resolve_decoder
from consistentee.backbones.pretrained import read_model, read_tokenizer
from consistentee.errors import UserError
from consistentee.models.base import chosen_device
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder

_ROWS = 12  # layers shown in the table, spread over the depth; all are in the JSON file
_USUAL_TEXTS = Path(__file__).parents[1] / "measure" / "suitability.txt"
_HEADINGS = ["layer", "agrees, greedy", "agrees, references", "KL, greedy", "cosine", "cosine, normed"]


def suitability_of(name: str, texts: Path | None) -> Suitability:
    """Measure a decoder of the catalogue, a folder (a trained one's too) or a hub id on the lines of a file."""
    content = (texts or _USUAL_TEXTS).read_text(encoding="utf-8")
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{texts} holds no text")
    if (Path(name) / MultiExitDecoder.description_class.file).is_file():
        trained = MultiExitDecoder.from_pretrained(name)
        model, tokenizer = trained.backbone, trained.tokenizer
    else:
        folder = resolve_decoder(name)
        (model, _), tokenizer = read_model(folder, AutoModelForCausalLM), read_tokenizer(folder)
    return measure_suitability(model.to(chosen_device()), tokenizer, lines, progress=True)


def described(name: str, found: Suitability) -> Group:
    """Return the table of layers, the summary and the verdict."""
    by_layer = found.by_layer.pivot(index="layer", columns="text")
    step = max(1, round(found.layers / _ROWS))
    rows = []
    for layer in [*range(step, found.layers, step), found.layers]:
        row = by_layer.loc[layer]
        shares = [f"{row['agreement', kind]:.0%}" for kind in (GREEDY, REFERENCE)]
        rows.append([layer, *shares, *(f"{row[name, GREEDY]:.2f}" for name in ("kl", "cosine", "normed_cosine"))])
    title = f"{name}: {found.layers} layers, read through the final norm and the LM head"
    draft = found.draft
    lines = [
        f"first layer that agrees with the last: {found.first_agreement[GREEDY]:.1f} on {found.tokens[GREEDY]} greedy "
        f"tokens, {found.first_agreement[REFERENCE]:.1f} on {found.tokens[REFERENCE]} tokens of references",
        f"first layer from which on all agree: {found.saturation_layer[GREEDY]:.1f} and "
        f"{found.saturation_layer[REFERENCE]:.1f}; an oracle saves {found.oracle_saves:.1f} layers a token",
        f"cheapest drafts: {draft.tokens} from layer {draft.exit_layer}, {draft.layers_per_token:.1f} layers a token, "
        f"{draft.cost:.0%} of the cost with the LM head, which is worth {found.head_in_layers:.1f} layers",
        f"{name} is {found.judgement}",
    ]
    return Group(filled_table([], _HEADINGS, rows, title), *(Text(line) for line in lines))


def write(name: str, found: Suitability, folder: Path) -> list[Path]:
    """Write ``suitability.json`` and ``suitability.png`` into a folder; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = asdict(found) | {"model": name, "judgement": found.judgement, "oracle_saves": found.oracle_saves}
    numbers["by_layer"] = found.by_layer.to_dict(orient="records")
    paths = [folder / "suitability.json", folder / "suitability.png"]
    paths[0].write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    _draw(name, found, paths[1])
    return paths


def _draw(name: str, found: Suitability, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import seaborn

    titles = {"agreement": "agreement with layer L", "cosine": "cosine to layer L", "normed_cosine": "cosine, normed"}
    long = found.by_layer.rename(columns=titles).melt(["text", "layer"], list(titles.values()), "quantity", "value")
    columns = {"x": "layer", "y": "value", "hue": "text", "col": "quantity"}
    grid = seaborn.relplot(long, **columns, kind="line", height=2.4, aspect=1.2, facet_kws={"ylim": (0, 1)})
    grid.set_titles("{col_name}")
    grid.figure.suptitle(f"{name}: {found.judgement}", y=1.05, fontsize=9)
    grid.savefig(path, dpi=150)
