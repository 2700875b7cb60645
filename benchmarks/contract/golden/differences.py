"""Golden cells are compared: where numbers are others, in words."""

import math
from collections.abc import Iterator, Sequence

from benchmarks.contract.golden.cells import CLOSE, GoldenCell, GoldenDecisions, GoldenFamily, GoldenKnob, shared
from benchmarks.contract.golden.rows import Decision

_CLOSE_NUMBERS = 2e-4
"""Relative, for the averages: kernels for other processors moved them by up to 1e-5."""

_TOLD_AT_MOST = 5


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
        place = shared(row, other)
        if place < firm:
            where = f"{name} {number}" + (f", token {place + 1}" if len(row) > 1 else "")
            got = _said(other[place]) if place < len(other) else "ends before"
            told.append(f"{where} {got}, golden: {_said(row[place])}")
    more = [f"and {len(told) - _TOLD_AT_MOST} more {name}s"] if len(told) > _TOLD_AT_MOST else []
    return told[:_TOLD_AT_MOST] + more


def _said(decision: Decision) -> str:
    return f"leaves at layer {decision[0]} with answer {decision[1]}"
