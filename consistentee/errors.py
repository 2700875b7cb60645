"""The one exception that is a message to the user, and the hint that goes with an unknown name."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: one clear sentence. The command line prints it and exits with code 2."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Build the error for an unknown ``name`` of some ``kind``, with the nearest known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(repr(n) for n in near)}?"
    else:
        hint = f"known: {', '.join(names)}." if names else "there are none."
    return UserError(f"unknown {kind} {name!r}; {hint}")
