"""One decoder outside a suite: train its exits for a task of texts, and watch where its tokens leave."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.commands.settings import checked_settings
from benchmarks.kinds.decoding import PromptDecoder, fitting_prompts
from benchmarks.kinds.generation_selection import Selection, select_knobs
from benchmarks.kinds.kind import kind_named
from benchmarks.store.generation_spec import GenerationSuite
from benchmarks.store.targets import in_words
from benchmarks.tasks.loader import load_text_task
from benchmarks.terminal import add_columns, add_row, output_console, plain_table
from consistentee.engine.generate import Generations, generate
from consistentee.engine.transcript import NewToken
from consistentee.errors import UserError
from consistentee.methods.method import get_method, train_method
from consistentee.methods.token_method import TokenMethod
from consistentee.models.decoder import MultiExitDecoder
from consistentee.models.decoder_description import DecoderDescription
from consistentee.training.recipe import TokenRecipeSettings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_BUDGETS = GenerationSuite.model_fields["budgets"].default
_VALIDATION_PROMPTS = GenerationSuite.model_fields["validation_prompts"].default
_BATCH_SIZE = 8

# Blue for the first layer, orange for the last one: told apart on dark and on light, and by colour-blind eyes.
_SHALLOW, _DEEP = (60, 140, 255), (255, 120, 30)


def train_decoder(
    task_name: str,
    method_name: str,
    parameters: Mapping[str, Any],
    *,
    backbone: str,
    out: Path,
    settings: Mapping[str, Any],
    seed: int = 0,
    data_dir: Path | None = None,
) -> "Table":
    """Train one method on one task of texts and save the decoder with the knob that validation prompts chose.

    Args:
        task_name: a task's name, or its YAML file.
        method_name, parameters: see :func:`consistentee.methods.method.get_method`.
        backbone: catalogue name, directory or hub id.
        out: folder of the saved decoder.
        settings: fields of :class:`consistentee.training.recipe.TokenRecipeSettings`, where they are not as usual.
        seed: of the training.
        data_dir: where data files are looked for first.

    Returns:
        The operating points as a table for the terminal.

    Raises:
        UserError: a name, a parameter or a setting is unknown, or ``out`` may not be written.
    """
    method = _token_method(method_name, parameters)
    recipe = checked_settings(TokenRecipeSettings, settings).to_recipe(seed, progress=True)
    _check_out(out)
    task = load_text_task(task_name, data_dir)
    method.check_task(task)
    model = MultiExitDecoder.from_backbone(backbone, seed=seed)
    torch.manual_seed(seed)
    model = train_method(method, method_name, model, task, recipe).eval()
    decoder = PromptDecoder(model, method, "", max_new_tokens=task.max_new_tokens, batch_size=_BATCH_SIZE, store=None)
    split = task.capped(validation=_VALIDATION_PROMPTS).validation
    selection = select_knobs(decoder, fitting_prompts(model, split, task.max_prompt_tokens, task.keep), _BUDGETS)
    model.description.default_knob = selection.default_knob
    model.save_pretrained(out)
    return _operating_points(selection, method, model, out)


def _token_method(name: str, parameters: Mapping[str, Any]) -> TokenMethod:
    method = get_method(name, **parameters)
    if not isinstance(method, TokenMethod):
        raise UserError(f"{name} is a method of classification, and no token leaves early by it")
    return method


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / DecoderDescription.file).is_file():
        raise UserError(f"--out {out} is a folder that holds other files than a trained decoder; give a new one")


def _operating_points(selection: Selection, method: TokenMethod, model: MultiExitDecoder, out: Path) -> "Table":
    table = plain_table(
        f"{method.name} on {model.description.task_name}, saved in {out}",
        f"`consistentee generate {out} PROMPT` uses {method.knob.name}={selection.default_knob:.4g} unless --knob says "
        "otherwise; agreement: tokens that are the full model's, on validation prompts",
    )
    add_columns(table, method.knob.name, "chosen for")
    add_columns(table, "agreement %", f"layers of {model.num_layers}", numbers=True)
    for index, targets in selection.chosen.items():
        point = selection.points[index]
        add_row(
            table,
            f"{point.knob:.4g}",
            in_words(targets),
            f"{100 * point.agreement:.1f}",
            f"{point.average_layers:.2f}",
        )
    return table


def write_texts(
    folder: Path,
    prompts: Sequence[str],
    *,
    knob: float | None = None,
    max_new_tokens: int | None = None,
    max_prompt_tokens: int | None = None,
    kv: str | None = None,
    plain: bool = False,
) -> None:
    """Continue prompts with a saved decoder, and print every token as it is written, with the layer that it left at.

    On a terminal the layer is a colour; elsewhere, or where ``plain`` is set, every token is written as ``token/12``,
    one line a text, and what is to be said of a text goes to standard error.

    Args:
        folder: written by :func:`train_decoder`, or by a run of a suite.
        prompts: one or more, continued as they are, one after the other.
        knob: of the method; by default the one chosen in training.
        max_new_tokens: of a text; by default as many as the decoder was trained on.
        max_prompt_tokens: of a prompt; of a longer one the last tokens are read. By default a prompt that does not fit
            into the model's context is refused.
        kv: how skipped layers get their keys and values, ``propagate`` or ``exact``; by default as the method does.
        plain: no colours, on a terminal too.

    Raises:
        UserError: the folder holds no trained decoder, a prompt is empty, or an option is out of its range.
    """
    model, method, knob = _load(folder, knob)
    decode = _decoding(model, method, knob, kv)
    length = max_new_tokens if max_new_tokens is not None else model.description.max_new_tokens or 64
    console = output_console()
    show_layers = not plain and console.is_terminal
    for prompt in prompts:
        show = _colouring(console, model.num_layers) if show_layers else _spell
        if show_layers:
            console.print(prompt, style="dim", end="", markup=False, highlight=False, soft_wrap=True)
        options = {"max_new_tokens": length, "max_prompt_tokens": max_prompt_tokens, "batch_size": 1, "stream": show}
        written = decode([prompt], options)
        print(flush=True)
        summary = _summary(written, method, knob, model.num_layers)
        if show_layers:
            console.print(summary, style="dim", highlight=False)
        else:
            print(summary, file=sys.stderr)


def _load(folder: Path, knob: float | None) -> tuple[MultiExitDecoder, TokenMethod, float]:
    if not folder.is_dir():
        raise UserError(f"no such model folder: {folder}; `consistentee train` makes one")
    if (folder / kind_named("classification").model_file).is_file():
        raise UserError(f"{folder} holds a model of classification, which writes no text; see `consistentee predict`")
    DecoderDescription.read(folder)  # refuses another folder in one sentence, before the hub's mixin looks into it
    model = MultiExitDecoder.from_pretrained(folder).eval()
    description = model.description
    if description.method_name is None:
        raise UserError(f"{folder} does not say which method trained it, so there is no exit rule to use")
    method = _token_method(description.method_name, description.method_parameters)
    if knob is not None:
        method.check_knob(model, knob)
        return model, method, knob
    values = list(method.knob_values(model))
    chosen = description.default_knob if description.default_knob is not None else values[len(values) // 2]
    return model, method, float(chosen)


Decoding = Callable[[Sequence[str], dict[str, Any]], Generations]


def _decoding(model: MultiExitDecoder, method: TokenMethod, knob: float, kv: str | None) -> Decoding:
    """Return what decodes: the method itself, or its rule with another way to fill keys and values."""
    if kv is None:
        return lambda prompts, options: method.generate(model, prompts, knob, **options)
    if type(method).generate is not TokenMethod.generate:
        raise UserError(f"{method.name} decodes in a way of its own: --kv does not apply to it")
    rule = method.rule(model, knob)
    return lambda prompts, options: generate(model, prompts, rule, kv=kv, **options)  # type: ignore[arg-type]


def _colouring(console: "Console", num_layers: int) -> Callable[[NewToken], None]:
    def show(token: NewToken) -> None:
        colour = colour_of(token.exit_layer, num_layers)
        console.print(token.text, style=colour, end="", markup=False, highlight=False, soft_wrap=True)

    return show


def colour_of(layer: int, num_layers: int) -> str:
    """Return the colour of an exit layer, as rich writes it."""
    depth = (layer - 1) / max(num_layers - 1, 1)
    red, green, blue = (round(a + (b - a) * depth) for a, b in zip(_SHALLOW, _DEEP, strict=True))
    return f"rgb({red},{green},{blue})"


def _spell(token: NewToken) -> None:
    text = token.text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    print(f"{text}/{token.exit_layer}", end="", flush=True)


def _summary(written: Generations, method: TokenMethod, knob: float, num_layers: int) -> str:
    parts = [f"{method.name}, {method.knob.name}={knob:.4g}", f"{len(written.tokens[0])} new tokens"]
    if written.decoded_tokens:
        calls = "layer calls a token" if method.drafts else "layers on average"
        parts.append(f"{written.average_layers:.1f} of {num_layers} {calls}")
        parts.append(f"{written.decoded_tokens / written.decode_seconds:.1f} tokens/s")
    return ", ".join([*parts, f"ended by {written.ended_by[0]}"])
