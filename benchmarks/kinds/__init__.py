"""The two kinds of suites: classification and generation. Planning uses them without loading torch."""

from benchmarks.kinds.classification import Classification
from benchmarks.kinds.generation import Generation
from benchmarks.kinds.kind import AnyKind

_KINDS: dict[str, AnyKind] = {"classification": Classification(), "generation": Generation()}


def kind_named(name: str) -> AnyKind:
    """Return a kind by the name that suites and cells give it."""
    return _KINDS[name]
