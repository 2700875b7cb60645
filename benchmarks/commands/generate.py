"""Prompts, continued by a saved decoder, to watch where its tokens leave."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.terminal import output_console
from consistentee.deployment.pipeline import load_saved
from consistentee.engine.generate import Generations, generate
from consistentee.engine.transcript import NewToken
from consistentee.errors import UserError
from consistentee.methods.token_methods import TokenMethod
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder

if TYPE_CHECKING:
    from rich.console import Console

# Blue for the first layer, orange for the last one: distinct on dark and on light, and for colour-blind eyes.
_SHALLOW, _DEEP = (60, 140, 255), (255, 120, 30)


def write_texts(
    folder: Path,
    prompts: Sequence[str],
    *,
    knob: float | None = None,
    max_new_tokens: int | None = None,
    max_prompt_tokens: int | None = None,
    kv: str | None = None,
    in_flight: int | None = None,
    plain: bool = False,
    allow_code: bool = False,
) -> None:
    """Continue prompts with a saved decoder, and print every token as it is written, with the layer that it left at.

    On a terminal the layer is a colour; elsewhere, or where ``plain`` is set, every token is written as ``token/12``,
    one line a text, and the summary of a text goes to standard error.

    The options are those of the command. With ``in_flight``, so many prompts are under way at a time, in batches of a
    quarter as many; a text is printed once it and those before it have ended. Raises UserError if the folder holds no
    trained decoder, a prompt is empty, or an option is out of its range.
    """
    model, method, knob = load_saved(folder, MultiExitDecoder, knob, allow_code=allow_code)
    assert isinstance(method, TokenMethod)
    decode = _decoding(model, method, knob, kv)
    length = max_new_tokens if max_new_tokens is not None else model.description.max_new_tokens or 64
    options: dict[str, Any] = {"max_new_tokens": length, "max_prompt_tokens": max_prompt_tokens}
    console = output_console()
    screen = _Colours(console, model.num_layers) if not plain and console.is_terminal else _Lines()
    about = f"{method.name}, {method.knob.name}={knob:.4g}"
    unit = "layer calls a token" if method.drafts else "layers on average"
    if in_flight is not None:
        _check_ways(method, "--in-flight")
        together = _InOrder(screen, prompts)
        sizes = {"in_flight": in_flight, "batch_size": max(in_flight // 4, 1)}
        try:
            written = decode(prompts, options | sizes | {"stream": together.take})
        finally:
            together.show_the_rest()
        screen.show_summary(_summary(written, about, model.num_layers, unit))
        return
    for prompt in prompts:
        screen.begin(prompt)
        written = decode([prompt], options | {"batch_size": 1, "stream": screen.show})
        screen.end()
        screen.show_summary(_summary(written, about, model.num_layers, unit))


Decoding = Callable[[Sequence[str], dict[str, Any]], Generations]


def _decoding(model: MultiExitDecoder, method: TokenMethod, knob: float, kv: str | None) -> Decoding:
    """Return what decodes: the method itself, or its rule with another way to fill keys and values."""
    if kv is None:
        return lambda prompts, options: method.generate(model, prompts, knob, **options)
    _check_ways(method, "--kv")
    rule, decodes = method.rule(model, knob), method.model_at(model, knob)
    return lambda prompts, options: generate(decodes, prompts, rule, kv=kv, **options)  # type: ignore[arg-type]


def _check_ways(method: TokenMethod, option: str) -> None:
    """Raise UserError where an option is meant for the engine, and a method does not use it."""
    if type(method).generate is not TokenMethod.generate:
        raise UserError(f"{method.name} decodes in a way of its own: {option} does not apply to it")


class _Lines:
    """One line a text, every token as ``token/12``."""

    def begin(self, prompt: str) -> None:
        pass

    def show(self, token: NewToken) -> None:
        text = token.text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        print(f"{text}/{token.exit_layer}", end="", flush=True)

    def end(self) -> None:
        print(flush=True)

    def show_summary(self, summary: str) -> None:
        print(summary, file=sys.stderr)


class _Colours(_Lines):
    """Every text behind its prompt, every token in the colour of its layer."""

    def __init__(self, console: "Console", num_layers: int) -> None:
        self._console = console
        self._num_layers = num_layers

    def begin(self, prompt: str) -> None:
        self._console.print(prompt, style="dim", end="", markup=False, highlight=False, soft_wrap=True)

    def show(self, token: NewToken) -> None:
        colour = colour_of(token.exit_layer, self._num_layers)
        self._console.print(token.text, style=colour, end="", markup=False, highlight=False, soft_wrap=True)

    def show_summary(self, summary: str) -> None:
        self._console.print(summary, style="dim", highlight=False)


class _InOrder:
    """Shows texts that are written together one after the other, in the order of their prompts."""

    def __init__(self, screen: _Lines, prompts: Sequence[str]) -> None:
        self._screen = screen
        self._prompts = prompts
        self._tokens: list[list[NewToken]] = [[] for _ in prompts]
        self._next = 0

    def take(self, token: NewToken) -> None:
        self._tokens[token.row].append(token)
        while self._next < len(self._prompts) and self._has_ended(self._next):
            self._show(self._next)
            self._next += 1

    def show_the_rest(self) -> None:
        """Show the texts that have ended behind one that has not, and never will."""
        for row in range(self._next, len(self._prompts)):
            if self._has_ended(row):
                self._show(row)

    def _has_ended(self, row: int) -> bool:
        return bool(self._tokens[row]) and self._tokens[row][-1].ended_by is not None

    def _show(self, row: int) -> None:
        self._screen.begin(self._prompts[row])
        for token in self._tokens[row]:
            self._screen.show(token)
        self._screen.end()


def colour_of(layer: int, num_layers: int) -> str:
    """Return the colour of an exit layer, as rich writes it."""
    depth = (layer - 1) / max(num_layers - 1, 1)
    parts = (round(a + (b - a) * depth) for a, b in zip(_SHALLOW, _DEEP, strict=True))
    return f"rgb({','.join(map(str, parts))})"


def _summary(written: Generations, about: str, num_layers: int, unit: str) -> str:
    """Return one line about one text or several; ``unit`` names what the average is of."""
    several = len(written.texts) > 1
    parts = [about, f"{len(written.texts)} texts"] if several else [about]
    parts.append(f"{sum(map(len, written.tokens))} new tokens")
    if written.decoded_tokens:
        parts.append(f"{written.average_layers:.1f} of {num_layers} {unit}")
        parts.append(f"{written.decoded_tokens / written.decode_seconds:.1f} tokens/s")
    if not several:
        return ", ".join([*parts, f"ended by {written.ended_by[0]}"])
    completed = [latency.completed for latency in written.latencies] or [0.0]
    return ", ".join([*parts, f"a text after {median(completed):.2f} s at the median, {max(completed):.2f} s at most"])
