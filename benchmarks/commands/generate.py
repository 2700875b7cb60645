"""Prompts, continued by a saved decoder, to watch where its tokens leave."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.terminal import output_console
from consistentee.deployment.saved import load_saved
from consistentee.engine.generate import Generations, generate
from consistentee.engine.transcript import NewToken
from consistentee.errors import UserError
from consistentee.methods.token_method import TokenMethod
from consistentee.models.decoder import MultiExitDecoder

if TYPE_CHECKING:
    from rich.console import Console

# Blue for the first layer, orange for the last one: told apart on dark and on light, and by colour-blind eyes.
_SHALLOW, _DEEP = (60, 140, 255), (255, 120, 30)


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
        folder: written by :func:`benchmarks.commands.single_model.train_model`, or by a run of a suite.
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
    model, method, knob = load_saved(folder, MultiExitDecoder, knob)
    assert isinstance(method, TokenMethod)
    decode = _decoding(model, method, knob, kv)
    length = max_new_tokens if max_new_tokens is not None else model.description.max_new_tokens or 64
    console = output_console()
    show_layers = not plain and console.is_terminal
    for prompt in prompts:
        show = _colouring(console, model.num_layers) if show_layers else spell
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


def spell(token: NewToken) -> None:
    """Print a token and its exit layer on one line, whatever the token holds."""
    text = token.text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    print(f"{text}/{token.exit_layer}", end="", flush=True)


def _summary(written: Generations, method: TokenMethod, knob: float, num_layers: int) -> str:
    parts = [f"{method.name}, {method.knob.name}={knob:.4g}", f"{len(written.tokens[0])} new tokens"]
    if written.decoded_tokens:
        calls = "layer calls a token" if method.drafts else "layers on average"
        parts.append(f"{written.average_layers:.1f} of {num_layers} {calls}")
        parts.append(f"{written.decoded_tokens / written.decode_seconds:.1f} tokens/s")
    return ", ".join([*parts, f"ended by {written.ended_by[0]}"])
