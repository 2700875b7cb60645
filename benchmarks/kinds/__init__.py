"""The two kinds of suites: classification and generation. Planning uses them without loading torch."""

from benchmarks.kinds.classification import Classification
from benchmarks.kinds.generation import Generation
from benchmarks.kinds.kind import Kind

_KINDS: dict[str, Kind] = {"classification": Classification(), "generation": Generation()}


def kind_named(name: str) -> Kind:
    """Return a kind by the name that suites and cells give it."""
    return _KINDS[name]
