"""The one exception that is a message to the user, and what messages are made of."""

import difflib
import re
import reprlib
import textwrap
from collections.abc import Iterable
from typing import Literal

_LONGEST_MESSAGE = 2_000
_LONGEST_VALUE = 80

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = _LONGEST_VALUE


class UserError(Exception):
    """An error that the user can fix, in one clear sentence. The command line prints it and exits with code 2.

    Characters that a terminal obeys are escaped in the message, and a very long one is shortened.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message), _LONGEST_MESSAGE))


def unknown_name(what: str, name: str, known: Iterable[str]) -> UserError:
    """Build the error for an unknown ``name`` of ``what``, such as a method, with the nearest known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(repr(n) for n in near)}?"
    else:
        hint = f"known: {', '.join(names)}." if names else "there are none."
    return UserError(f"unknown {what} {shown(name)}; {hint}")


def wrong_kind(name: str, kind: Literal["encoder", "decoder"]) -> UserError:
    """Build the error for a model or an architecture that is of ``kind`` where the other one is wanted."""
    if kind == "encoder":
        return UserError(
            f"{name!r} is an encoder: it classifies text and generates none; use `consistentee train mcid --method "
            "consistentee-paper --backbone NAME`, `consistentee check-backbone`, or MultiExitModel"
        )
    return UserError(
        f"{name!r} is a decoder: it generates text and classifies none; use `consistentee train dolly --method "
        "consistentee-tokens --backbone NAME`, or MultiExitDecoder"
    )


def shown(value: object) -> str:
    """Return a short text of any value for a message, on one line."""
    return " ".join(_repr.repr(value).split())


def reason_of(error: BaseException) -> str:
    """Return the message of an error on one line, shortened; the name of its class if it has none."""
    return textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__


def printable(text: str, longest: int) -> str:
    """Escape the characters of a text that cannot be printed, but for line breaks, and shorten it in the middle."""
    if len(text) > longest:
        text = f"{text[: longest // 2]} [...] {text[-longest // 3 :]}"
    return re.sub(r"[^\n]", lambda one: one[0] if one[0].isprintable() else ascii(one[0])[1:-1], text)


def unencodable(text: str) -> str:
    """Return why a text cannot be encoded in UTF-8; an empty string if it can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"has half of a surrogate pair, {text[error.start]!a}, at character {error.start + 1}"
    return ""
