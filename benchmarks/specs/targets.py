"""Targets of operating points, typed, so that records keep them."""

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from pydantic import Field

from benchmarks.specs.schema import Strict
from consistentee.versions import Kind


class Budget(Strict):
    """The best quality within a share of the layers."""

    layers_at_most: float = Field(gt=0, description="as a share of the stock model's layers, L")

    def __str__(self) -> str:
        return f"budget {self.layers_at_most:.2f}"

    @property
    def short(self) -> str:
        return f"≤{100 * self.layers_at_most:g}%"


class PointsLost(Strict):
    """The fewest layers that lose at most a part of a reference's score."""

    lost_at_most: float = Field(ge=0, description="in units of the score: 0.01 is a point")

    def __str__(self) -> str:
        return f"within {100 * self.lost_at_most:g} point{'' if self.lost_at_most == 0.01 else 's'}"

    @property
    def short(self) -> str:
        return f"-{100 * self.lost_at_most:g} pt"


class Agreement(Strict):
    """The fewest layers at which a share of the answers equals the full model's."""

    agreement_at_least: float = Field(ge=0, le=1, description="as a share of the rows")

    def __str__(self) -> str:
        return f"agreement {self.agreement_at_least:.2f}"

    @property
    def short(self) -> str:
        return f"as full ≥{100 * self.agreement_at_least:g}%"


Target: TypeAlias = Budget | PointsLost | Agreement
"""Distinguished by the names of their fields."""

WITHIN_ONE_POINT = PointsLost(lost_at_most=0.01)
FAITHFUL = Agreement(agreement_at_least=0.9)

Speedups: TypeAlias = tuple[float, float, float]
"""Three budgets, full cost / cost. Tables are sorted by the middle one."""

SPEEDUPS: Mapping[Kind, Speedups] = {
    "classification": (1.5, 2.0, 3.0),
    "generation": (1.25, 1.5, 2.0),  # texts degrade at lower speed-ups than labels
}


def in_order(targets: Iterable[Target]) -> list[Target]:
    """Return distinct targets in the order of tables: budgets in increasing order, then the others by name."""
    found = set(targets)
    budgets = sorted((t for t in found if isinstance(t, Budget)), key=lambda target: target.layers_at_most)
    return [*budgets, *sorted((t for t in found if not isinstance(t, Budget)), key=str)]


def in_words(targets: Iterable[Target]) -> str:
    """Join targets as text: ``budget 0.50, within 1 point``."""
    return ", ".join(map(str, targets))
