"""Golden cells are computed: a method is trained on tiny models, its knobs are chosen, and what is firm is found."""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from benchmarks.contract.golden.cells import CLOSE, GoldenCell, GoldenDecisions, GoldenFamily, GoldenKnob, shared
from benchmarks.contract.golden.rows import Decided, Decision, GoldenInstances, GoldenRows, GoldenTexts
from consistentee.errors import UserError
from consistentee.methods.method import Method, get_method
from consistentee.methods.token_method import TokenMethod
from consistentee.versions import ENGINE_VERSION, TRAINING_VERSION, Kind

_HALVINGS = 16
_DRAWS = 6


class Golden:
    """Computes golden cells; the tiny backbones are written to a folder once."""

    def __init__(self, folder: Path) -> None:
        self._instances = GoldenInstances(folder)
        self._texts = GoldenTexts(folder)

    def compute(self, name: str) -> GoldenCell:
        """Train a method on both families; note what it gives at the first value of its knob, the last, and between."""
        return self._cell(name, lambda rows, method, model, _: _with_firmness(rows, method, model))

    def compute_again(self, held: GoldenCell) -> GoldenCell:
        """Compute a cell anew, at the knobs that it has, to be compared with it; nothing is said of what is firm."""

        def decide(rows: GoldenRows, method: Any, model: Any, family: str) -> list[GoldenKnob]:
            knobs = [knob.knob for knob in held.families[family].knobs] if family in held.families else []
            return _at_knobs(rows, method, model, knobs)

        return self._cell(held.method, decide)

    def _cell(self, name: str, decide: Callable[[GoldenRows, Any, Any, str], list[GoldenKnob]]) -> GoldenCell:
        method = get_method(name)
        rows: GoldenRows = self._texts if isinstance(method, TokenMethod) else self._instances
        families = {}
        for family in rows.families:
            model = rows.trained(method, family)
            values = list(method.knob_values(model))
            families[family] = GoldenFamily(
                ends=(values[0], values[-1]),
                numbers={part: [_rounded(size) for size in sizes] for part, sizes in rows.numbers(model).items()},
                knobs=decide(rows, method, model, family),
            )
        libraries = {"torch": torch.__version__, "transformers": transformers.__version__}
        return GoldenCell(method=name, versions=versions_of(method), libraries=libraries, families=families)


def versions_of(method: Method) -> dict[str, int]:
    """Return the versions that results of a method depend on."""
    kind: Kind = "generation" if isinstance(method, TokenMethod) else "classification"
    return {"method": method.version, "engine": ENGINE_VERSION[kind], "training": TRAINING_VERSION}


def draws_alike() -> bool:
    """Return whether this machine draws what golden cells are made of: dropout on a CPU, by MKL; others draw others."""
    return torch.backends.mkl.is_available() and not torch.accelerator.is_available()


def _chosen(rows: GoldenRows, method: Any, model: Any) -> list[float]:
    """Return the first and the last value of the knob, and one between where rows leave at as many layers as may be.

    A method's own values may be too far apart for that on a tiny model: where its knob does not count, values between
    two of them are tried too, halving the distance.
    """
    values = list(method.knob_values(model))
    exits = rows.exits(method, model, values).double()
    middle = float(exits[0].mean() + exits[-1].mean()) / 2
    tried = list(zip(values, exits, strict=True))
    if not all(value.is_integer() for value in values):
        late = int((exits.mean(dim=1) >= middle).nonzero()[0])
        low, high = values[max(late - 1, 0)], values[late]
        for _ in range(_HALVINGS):
            knob = (low + high) / 2
            left = rows.exits(method, model, [knob]).double()[0]
            tried.append((knob, left))
            low, high = (knob, high) if left.mean() < middle else (low, knob)
    varied = max(tried, key=lambda knob_and_exits: _variety(knob_and_exits[1], middle))
    return list(dict.fromkeys((values[0], varied[0], values[-1])))


def _variety(exits: torch.Tensor, middle: float) -> tuple[float, float]:
    """Tell how much exits vary from row to row; and of those that do not, how near they are to a middle layer."""
    return exits.std().item(), -abs(exits.mean().item() - middle)


def _at_knobs(rows: GoldenRows, method: Any, model: Any, knobs: Sequence[float]) -> list[GoldenKnob]:
    """Decide at those of the knobs of a cell that the method takes; its own values may differ in their last digits."""
    values = method.knob_values(model)
    taken = {}
    for knob in knobs:
        nearest = min(values, key=lambda value: abs(value - knob))
        own = nearest if math.isclose(nearest, knob, rel_tol=1e-5) else knob
        with suppress(UserError):
            method.rule(model, own)
            taken[knob] = own
    decided = rows.decide(method, model, list(taken.values()))
    return [_golden(knob, told) for knob, told in zip(taken, decided, strict=True)]


def _golden(
    knob: float, decided: Decided, beside: Sequence[Decided] = (), jittered: Sequence[Decided] = ()
) -> GoldenKnob:
    """Put decisions down; firm are those that are the same beside the knob and with jittered weights.

    Rows that are certain lie on thresholds, as they should: for them, jittered weights alone count.
    """
    return GoldenKnob(
        knob=knob,
        score=_rounded(decided.score),
        rows=_decisions(decided.rows, [other.rows for other in (*beside, *jittered)]),
        certain=_decisions(decided.certain, [other.certain for other in jittered]),
    )


def _decisions(rows: list[list[Decision]], others: Sequence[list[list[Decision]]]) -> GoldenDecisions:
    firm = [min([len(row), *(shared(row, other[place]) for other in others)]) for place, row in enumerate(rows)]
    return GoldenDecisions(
        layers=[[layer for layer, _ in row] for row in rows],
        answers=[[answer for _, answer in row] for row in rows],
        firm=firm,
    )


def _with_firmness(rows: GoldenRows, method: Any, model: Any) -> list[GoldenKnob]:
    """Decide at some values of the knob, a little beside them, and with weights that differ a little."""
    knobs = _chosen(rows, method, model)
    by_knob = zip(
        knobs,
        rows.decide(method, model, knobs),
        zip(*(rows.decide(method, model, _beside(method, model, knobs, by)) for by in (-CLOSE, CLOSE)), strict=True),
        zip(*(rows.decide(method, _jittered(model, draw), knobs) for draw in range(_DRAWS)), strict=True),
        strict=True,
    )
    return [_golden(knob, decided, beside, jittered) for knob, decided, beside, jittered in by_knob]


def _beside(method: Any, model: Any, knobs: Sequence[float], by: float) -> list[float]:
    """Return the knobs, moved; those as they are that the method refuses then: at its ends, or if they count."""
    moved = []
    for knob in knobs:
        try:
            method.rule(model, knob + by)
            moved.append(knob + by)
        except UserError:
            moved.append(knob)
    return moved


@torch.no_grad()
def _jittered(model: nn.Module, seed: int) -> Any:
    """Return a copy of a model whose weights differ by about as much as trainings on two machines."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for weight in other.parameters():
        weight.mul_(1 + CLOSE * torch.randn(weight.shape, generator=generator))
    return other


def _rounded(number: float) -> float:
    return float(f"{number:.6g}")
