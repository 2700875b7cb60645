"""What is held of a method: the schema of a golden cell."""

from collections.abc import Sequence

from benchmarks.contract.golden.rows import Decision
from benchmarks.specs.schema import Strict

CLOSE = 1e-4
"""How near a signal may come to a threshold before the decision counts as open; machines differ by less."""


class GoldenDecisions(Strict):
    """Decisions of some rows.

    Attributes:
        layers, answers: of every row, one after the other; an instance has one, a text one for every new token.
        firm: how many of a row's decisions, from the first on, do not hang on the last digits.
    """

    layers: list[list[int]]
    answers: list[list[int]]
    firm: list[int]

    @property
    def rows(self) -> list[list[Decision]]:
        """Every row's decisions."""
        pairs = zip(self.layers, self.answers, strict=True)
        return [list(zip(layers, answers, strict=True)) for layers, answers in pairs]


class GoldenKnob(Strict):
    """What was decided at one value of the knob; see :class:`benchmarks.contract.golden.rows.Decided`."""

    knob: float
    score: float
    rows: GoldenDecisions
    certain: GoldenDecisions


class GoldenFamily(Strict):
    """One family of backbones.

    Attributes:
        ends: the first and the last value of the knob.
        numbers: see :meth:`benchmarks.contract.golden.rows.GoldenRows.numbers`.
        knobs: three values, or fewer where there are fewer.
    """

    ends: tuple[float, float]
    numbers: dict[str, list[float]]
    knobs: list[GoldenKnob]


class GoldenCell(Strict):
    """All that is held of one method.

    Attributes:
        versions: of all that may change its numbers.
        libraries: versions of the libraries that it was computed with; told, never compared.
    """

    method: str
    versions: dict[str, int]
    libraries: dict[str, str]
    families: dict[str, GoldenFamily]


def shared(row: Sequence[Decision], other: Sequence[Decision]) -> int:
    """Return how many first decisions two rows share."""
    pairs = zip(row, other, strict=False)
    return next((place for place, (one, another) in enumerate(pairs) if one != another), min(len(row), len(other)))
