"""Records as ONE long table: a line for every cell (and so every seed), knob and split. Whole curves are read from it.

Columns of every kind of results: ``task``, ``backbone``, ``label``, ``method``, ``parameters``, ``seed``, ``cell`` (its
place in the panel), ``split`` (validation, test), ``place`` (of the knob among all that were tried), ``knob_name``,
``knob``, ``layers`` (average), ``num_layers``, and ``quality``, by which validation rows choose: the score, or the
agreement with the full model. The task's scores are columns by their names; of texts ``rougeL_to_full``, ``match`` and
``nats`` too. Lines of test rows at an operating point also have ``point`` (its place in the record) and ``targets``; at
a knob on the hull of the validation curve ``hull`` (its place there) and ``validation_flops_ratio``; at both
``flops_ratio`` and, where it was timed, ``speedup_b1``, ....
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.analysis.panels.results import AnyPanel
from benchmarks.analysis.rows.base import time_ratios
from benchmarks.specs.targets import in_words
from benchmarks.store.generation_records import DecodingPoint, GenerationRecord, ReplayPoint
from benchmarks.store.records import CellRecord, CurvePoint, OperatingPoint

if TYPE_CHECKING:
    import pandas as pd

    _Curves = dict[tuple[str, int | None], pd.DataFrame]

_Line = dict[str, Any]


def long_frame(panels: Sequence[AnyPanel]) -> "pd.DataFrame":
    """Return the long table of some panels of one kind."""
    import pandas as pd

    return pd.concat([panel_frame(panel) for panel in panels], ignore_index=True)


def panel_frame(panel: AnyPanel) -> "pd.DataFrame":
    """Return the long table of one (task, backbone)."""
    import pandas as pd

    cells = range(len(panel.cells))
    return panel.once("long table", lambda: pd.DataFrame([line for cell in cells for line in _lines(panel, cell)]))


def knobs_of(panel: AnyPanel, label: str, seed: int | None = None) -> "pd.DataFrame":
    """Return a line for every knob of every cell of a curve, in the order of the records.

    The lines are those of the test split, with two more columns: ``validation_layers``, ``validation_quality``. In
    classification all knobs were replayed on both splits; in generation these are the knobs that were decoded with.
    """
    return panel.once("knobs by curve", lambda: _by_curve(panel))[label, seed]


def _by_curve(panel: AnyPanel) -> "_Curves":
    frame = panel_frame(panel)
    test, validation = (frame[frame["split"] == split] for split in ("test", "validation"))
    measured = {"layers": "validation_layers", "quality": "validation_quality"}
    both = test.merge(validation[["cell", "place", *measured]].rename(columns=measured), on=["cell", "place"])
    found: _Curves = {}
    for label, of_label in both.groupby("label"):
        found[str(label), None] = of_label
        found |= {(str(label), int(seed)): of_label[of_label["seed"] == seed] for seed in of_label["seed"].unique()}
    return found


def _lines(panel: AnyPanel, number: int) -> Iterator[_Line]:
    """Yield the lines of one cell: its validation curve, then its test curve."""
    record = panel.cells[number].record
    common = {
        "task": record.task,
        "backbone": record.backbone,
        "label": record.label,
        "method": record.method,
        "parameters": ", ".join(f"{name}={value}" for name, value in sorted(record.parameters.items())),
        "seed": record.seed,
        "cell": number,
        "knob_name": record.knob_name,
        "num_layers": record.num_layers,
    }
    curves = _curves_of_texts(record) if isinstance(record, GenerationRecord) else _curves(record)
    at_points = {point.knob: _at_point(panel, number, i) for i, point in enumerate(record.operating_points)}
    hull = [] if isinstance(record, GenerationRecord) else record.hull
    at_hull = {point.place: _at_hull(panel, number, i) for i, point in enumerate(hull)}
    for line in curves:
        of_test = line["split"] == "test"
        more = at_hull.get(line["place"], {}) | at_points.get(line["knob"], {}) if of_test else {}
        yield common | line | more


def _curves(record: CellRecord) -> Iterator[_Line]:
    for split, curve in (("validation", record.curve_validation), ("test", record.curve_test)):
        for place, point in enumerate(curve):
            yield _measured(split, place, point) | {"quality": point.scores[record.metric], **point.scores}


def _curves_of_texts(record: GenerationRecord) -> Iterator[_Line]:
    for place, replayed in enumerate(record.curve_validation):
        yield _measured("validation", place, replayed) | {"quality": replayed.agreement}
    places = {replayed.knob: place for place, replayed in enumerate(record.curve_validation)}
    for point in record.operating_points:
        scores = {name: mean.value for name, mean in point.scores.items()}
        scores |= {"rougeL_to_full": point.full_text_score.value, "match": point.token_match.value}
        nats = math.nan if point.references is None else point.references.nats
        yield _measured("test", places[point.knob], point) | {
            "quality": point.token_match.value,
            **scores,
            "nats": nats,
        }


def _measured(split: str, place: int, point: CurvePoint | ReplayPoint | DecodingPoint) -> _Line:
    return {"split": split, "place": place, "knob": point.knob, "layers": point.average_layers}


def _at_point(panel: AnyPanel, cell: int, number: int) -> _Line:
    """Return what is known of an operating point alone."""
    record = panel.cells[cell].record
    point: OperatingPoint | DecodingPoint = record.operating_points[number]
    flops, full_flops = (
        (point.decode_flops, point.full_decode_flops)
        if isinstance(point, DecodingPoint)
        else (point.flops, record.full_flops)
    )
    return {
        "point": number,
        "targets": in_words(point.targets),
        "flops_ratio": full_flops / flops if flops else None,
        **_speedups(panel, record, point.knob),
    }


def _at_hull(panel: AnyPanel, cell: int, number: int) -> _Line:
    """Return what is known of a knob of the hull alone."""
    record: CellRecord = panel.cells[cell].record
    point, full_validation = record.hull[number], record.full_validation_flops
    return {
        "hull": number,
        "validation_flops_ratio": full_validation / point.validation_flops
        if full_validation and point.validation_flops
        else None,
        "flops_ratio": record.full_flops / point.flops,
        **_speedups(panel, record, record.curve_test[point.place].knob),
    }


def _speedups(panel: AnyPanel, record: CellRecord | GenerationRecord, knob: float) -> _Line:
    here = panel.contender(record, knob)
    stock = panel.stock(record.seed, beside=here)
    return {f"speedup_b{size}": ratio for size, ratio in time_ratios(here, stock).items()} if here and stock else {}
