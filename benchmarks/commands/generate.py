"""Prompts, continued by a saved decoder, to watch where its tokens leave."""

import sys
from collections.abc import Sequence
from pathlib import Path

from consistentee import TokenMethod
from consistentee.deployment.pipeline import load_saved
from consistentee.engine.transcript import NewToken
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder


def write_texts(
    folder: Path,
    prompts: Sequence[str],
    knob: float | None = None,
    max_new_tokens: int | None = None,
    max_prompt_tokens: int | None = None,
    *,
    allow_code: bool = False,
) -> None:
    """Continue prompts one after the other: every token as ``token/12`` as it is written, one line a text.

    The summary of a text goes to standard error.
    """
    model, method, knob = load_saved(folder, MultiExitDecoder, knob, allow_code=allow_code)
    assert isinstance(method, TokenMethod)
    length = max_new_tokens if max_new_tokens is not None else model.description.max_new_tokens or 64
    unit = "layer calls a token" if method.drafts else "layers on average"
    for prompt in prompts:
        written = method.generate(
            model,
            [prompt],
            knob,
            max_new_tokens=length,
            max_prompt_tokens=max_prompt_tokens,
            batch_size=1,
            stream=_show,
        )
        print(flush=True)
        parts = [f"{method.name}, {method.knob.name}={knob:.4g}", f"{len(written.tokens[0])} new tokens"]
        if written.decoded_tokens:
            parts.append(f"{written.average_layers:.1f} of {model.num_layers} {unit}")
            parts.append(f"{written.decoded_tokens / written.decode_seconds:.1f} tokens/s")
        print(", ".join([*parts, f"ended by {written.ended_by[0]}"]), file=sys.stderr)


def _show(token: NewToken) -> None:
    text = token.text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    print(f"{text}/{token.exit_layer}", end="", flush=True)
