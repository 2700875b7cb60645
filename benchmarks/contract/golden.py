"""Golden cells: what every method gives on tiny models, committed, so that no number moves in silence.

    python -m benchmarks.contract.golden            # write the cells of all registered methods
    python -m benchmarks.contract.golden pabee      # write one

A cell is a JSON file, ``tests/golden/cells/METHOD.json``: on two families of backbones, what the trained model's exits
and heads say on average, and at three values of the knob where every row leaves, with what answer, and the score. A
test computes it anew. Where numbers moved, either something is broken; or the method is now another, and its
``version`` must be raised, so that results of the two are never mixed. Writing holds this too: it refuses to write
other numbers over those of the same version. Cells whose numbers did not move are left as they are.

Machines differ in the last digits, and a decision may hang on them. So a cell says how many of a row's decisions are
*firm*: neither a threshold moved by :data:`CLOSE`, nor weights that differ by about as much, change them. Others may.
"""

import argparse
import copy
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from benchmarks.contract.golden_rows import Decided, Decision, GoldenInstances, GoldenRows, GoldenTexts
from consistentee.errors import UserError
from consistentee.methods.method import (
    ENTRY_POINT_GROUP,
    TOKEN_ENTRY_POINT_GROUP,
    Method,
    available_methods,
    get_method,
)
from consistentee.methods.token_method import TokenMethod
from consistentee.versions import ENGINE_VERSION, TRAINING_VERSION, Kind

FOLDER = Path(__file__).parents[2] / "tests" / "golden" / "cells"
COMMAND = "python -m benchmarks.contract.golden"

CLOSE = 1e-4
"""How near a signal may come to a threshold before the decision counts as open; machines differ by less."""

_CLOSE_NUMBERS = 2e-4
"""Relative, for the averages: kernels for other processors moved them by up to 1e-5."""

_OWN_PACKAGES = ("baselines", "consistentee")
_HALVINGS = 16
_DRAWS = 6
_TOLD_AT_MOST = 5


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GoldenDecisions(_Strict):
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


class GoldenKnob(_Strict):
    """What was decided at one value of the knob; see :class:`benchmarks.contract.golden_rows.Decided`."""

    knob: float
    score: float
    rows: GoldenDecisions
    certain: GoldenDecisions


class GoldenFamily(_Strict):
    """One family of backbones.

    Attributes:
        ends: the first and the last value of the knob.
        numbers: see :meth:`benchmarks.contract.golden_rows.GoldenRows.numbers`.
        knobs: three values, or fewer where there are fewer.
    """

    ends: tuple[float, float]
    numbers: dict[str, list[float]]
    knobs: list[GoldenKnob]


class GoldenCell(_Strict):
    """All that is held of one method.

    Attributes:
        versions: of all that may change its numbers.
        libraries: versions of the libraries that it was computed with; told, never compared.
    """

    method: str
    versions: dict[str, int]
    libraries: dict[str, str]
    families: dict[str, GoldenFamily]


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
    firm = [min([len(row), *(_shared(row, other[place]) for other in others)]) for place, row in enumerate(rows)]
    return GoldenDecisions(
        layers=[[layer for layer, _ in row] for row in rows],
        answers=[[answer for _, answer in row] for row in rows],
        firm=firm,
    )


def _shared(row: Sequence[Decision], other: Sequence[Decision]) -> int:
    """Return how many first decisions two rows share."""
    pairs = zip(row, other, strict=False)
    return next((place for place, (one, another) in enumerate(pairs) if one != another), min(len(row), len(other)))


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


# ---------------------------------------------------------------------------------------------------- comparing


def differences(held: GoldenCell, now: GoldenCell) -> list[str]:
    """Say where a cell, computed at the knobs of the one that is held, has other numbers; nothing if nowhere."""
    found = []
    if held.families.keys() != now.families.keys():
        found.append(f"the families are {', '.join(now.families)}, golden: {', '.join(held.families)}")
    for family, numbers in now.families.items():
        if family in held.families:
            found += [f"{family}, {told}" for told in _family_differences(held.families[family], numbers)]
    return found


def _family_differences(held: GoldenFamily, now: GoldenFamily) -> Iterator[str]:
    if not all(math.isclose(one, other, rel_tol=1e-5) for one, other in zip(held.ends, now.ends, strict=True)):
        yield f"the knob: its values run {_from_to(now.ends)}, golden: {_from_to(held.ends)}"
    yield from _number_differences(held.numbers, now.numbers)
    decided = {knob.knob: knob for knob in now.knobs}
    for knob in held.knobs:
        if knob.knob not in decided:
            yield f"knob {knob.knob:g}: the method does not take this value any more"
            continue
        for told in _knob_differences(knob, decided[knob.knob]):
            yield f"knob {knob.knob:g}: {told}"


def _from_to(ends: tuple[float, float]) -> str:
    return f"from {ends[0]:g} to {ends[1]:g}"


def _number_differences(held: dict[str, list[float]], now: dict[str, list[float]]) -> Iterator[str]:
    for part in sorted(held.keys() | now.keys()):
        sizes, others = held.get(part, []), now.get(part, [])
        if len(sizes) != len(others):
            yield f"{part}: {len(others)} exits or modules, golden: {len(sizes)}"
        elif any(not math.isclose(*pair, rel_tol=_CLOSE_NUMBERS) for pair in zip(sizes, others, strict=True)):
            what = "weights" if part.startswith("head:") else "values"
            yield f"{part}: mean absolute {what} {_listed(others)}, golden: {_listed(sizes)}"


def _listed(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:.6g}" for number in numbers)


def _knob_differences(held: GoldenKnob, now: GoldenKnob) -> list[str]:
    told = _row_differences("row", held.rows, now.rows) + _row_differences("certain row", held.certain, now.certain)
    other = sum(one != another for one, another in zip(held.rows.rows, now.rows.rows, strict=False))
    allowed = other / max(len(held.rows.rows), 1)  # what open decisions may have moved: scores are means over rows
    if not told and abs(held.score - now.score) > allowed + CLOSE:
        told.append(f"the score is {now.score:g}, golden: {held.score:g}")
    return told


def _row_differences(name: str, held: GoldenDecisions, now: GoldenDecisions) -> list[str]:
    if len(held.rows) != len(now.rows):
        return [f"{len(now.rows)} {name}s, golden: {len(held.rows)}"]
    told = []
    for number, (row, other, firm) in enumerate(zip(held.rows, now.rows, held.firm, strict=True), start=1):
        place = _shared(row, other)
        if place < firm:
            where = f"{name} {number}" + (f", token {place + 1}" if len(row) > 1 else "")
            got = _said(other[place]) if place < len(other) else "ends before"
            told.append(f"{where} {got}, golden: {_said(row[place])}")
    more = [f"and {len(told) - _TOLD_AT_MOST} more {name}s"] if len(told) > _TOLD_AT_MOST else []
    return told[:_TOLD_AT_MOST] + more


def _said(decision: Decision) -> str:
    return f"leaves at layer {decision[0]} with answer {decision[1]}"


# ---------------------------------------------------------------------------------------------------- files


def cell_path(name: str, folder: Path = FOLDER) -> Path:
    """Return where the golden cell of a method lies."""
    return folder / f"{name}.json"


def read_cell(name: str, folder: Path = FOLDER) -> GoldenCell | None:
    """Return the golden cell of a method, or None if it has none. Raises UserError for a file that is not one."""
    path = cell_path(name, folder)
    if not path.is_file():
        return None
    try:
        return GoldenCell.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise UserError(f"{path} is not a golden cell: {error.errors()[0]['msg']}") from error


def check_cell(name: str, golden: Golden, folder: Path = FOLDER) -> str | None:
    """Compute a method's cell anew; return what is wrong and what to do about it, or None if nothing is."""
    held = read_cell(name, folder)
    if held is None:
        return f"{name} has no golden cell yet. Write it: {COMMAND} {name}"
    now = golden.compute_again(held)
    if held.versions != now.versions:
        return f"{name} is at {_versions(now)}, its golden cell at {_versions(held)}. Write it anew: {COMMAND} {name}"
    found = differences(held, now)
    return _moved(name, found, held, now) if found else None


def _moved(name: str, found: Sequence[str], held: GoldenCell, now: GoldenCell) -> str:
    method = type(get_method(name)).__name__
    lines = [
        f"{name}: numbers moved, and no version was raised.",
        *(f"  {told}" for told in found),
        f"If something is broken, mend it. If {name} shall give other numbers from now on, raise {method}.version",
        f"above {held.versions['method']}, say why in a line of docs/versions.md, and write the cell: {COMMAND} {name}",
        "Where every method moves, it is ENGINE_VERSION or TRAINING_VERSION (consistentee/versions.py) that is raised.",
    ]
    if held.libraries != now.libraries:
        lines.append(f"(Golden numbers are of {_joined(held.libraries)}; here it is {_joined(now.libraries)}.)")
    return "\n".join(lines)


def _versions(cell: GoldenCell) -> str:
    return f"version {_joined(cell.versions)}"


def _joined(versions: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def write_cell(name: str, golden: Golden, folder: Path = FOLDER) -> str:
    """Write a method's golden cell where it has none, or where a version was raised; return what was done.

    Raises UserError, and writes nothing, where numbers moved and no version was raised above the one in the file.
    """
    held = read_cell(name, folder)
    if held is not None:
        now = golden.compute_again(held)
        found = differences(held, now)
        if found and not _raised(held.versions, now.versions):
            raise UserError(_moved(name, found, held, now))
        if not found and held.versions == now.versions:
            return "as it was"
    path = cell_path(name, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_as_json(golden.compute(name)), encoding="utf-8")
    return "written"


def _raised(held: dict[str, int], now: dict[str, int]) -> bool:
    """Return whether some version is above the one held, and none below."""
    pairs = [(now.get(part, 0), version) for part, version in held.items()]
    pairs += [(version, 0) for part, version in now.items() if part not in held]
    return any(new > old for new, old in pairs) and all(new >= old for new, old in pairs)


def _as_json(cell: GoldenCell) -> str:
    """Return a cell as JSON, one line a list: short, and what moved is seen in a diff."""
    return _lines(cell.model_dump(mode="json"), "") + "\n"


def _lines(value: Any, indent: str) -> str:
    deeper = indent + " "
    if isinstance(value, dict):
        parts = [f"{deeper}{json.dumps(key)}: {_lines(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(parts) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        parts = [deeper + _lines(item, deeper) for item in value]
        return "[\n" + ",\n".join(parts) + f"\n{indent}]"
    return json.dumps(value, separators=(",", ":"))


def draws_alike() -> bool:
    """Return whether this machine draws what golden cells are made of: dropout on a CPU, by MKL; others draw others."""
    return torch.backends.mkl.is_available() and not torch.accelerator.is_available()


def all_methods() -> list[str]:
    """Return the names of all methods of this project, of both kinds; not those of other packages."""
    points = {**available_methods(ENTRY_POINT_GROUP), **available_methods(TOKEN_ENTRY_POINT_GROUP)}
    return sorted(name for name, point in points.items() if point.module.partition(".")[0] in _OWN_PACKAGES)


def main() -> int:
    """Write golden cells; return 2 if numbers moved without a version."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Write the golden cells of methods.")
    parser.add_argument("method", nargs="*", help="a registered name; all of them by default")
    names = parser.parse_args().method or all_methods()
    if not draws_alike():
        parser.error("golden cells are of an x86 CPU alone: dropout draws other numbers here")
    torch.set_num_threads(1)  # tiny models are slower with more
    refused = 0
    with tempfile.TemporaryDirectory() as folder:
        golden = Golden(Path(folder))
        for name in names:
            try:
                print(f"{name}: {write_cell(name, golden)}", flush=True)
            except UserError as error:
                print(error, file=sys.stderr)
                refused = 2
    return refused


if __name__ == "__main__":
    sys.exit(main())
