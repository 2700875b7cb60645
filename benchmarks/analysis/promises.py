"""Compare the speed-up at no loss that validation rows promise with what test rows deliver.

The knob with the fewest layers is chosen whose score on validation rows is at most so many points below the full
model's. Validation rows are few, and the best of many knobs is lucky: on test rows more is lost. "1.5 times as fast at
no loss", as papers print it, is such a promise.
"""

import pandas as pd

from benchmarks.analysis.comparison import comparison_of
from benchmarks.analysis.equal_cost import of_full_model
from benchmarks.analysis.frames import CURVE, Results
from benchmarks.analysis.rendering import Column, Table
from consistentee.errors import UserError

LOSSES = (0.0, 0.5, 1.0)
"""Points that may be lost."""
_BROKEN = 1.0
"""Points more than promised that count as a broken promise."""


def chosen_knobs(results: Results, loss: float) -> pd.DataFrame:
    """Choose the knob of every label, task and seed on validation rows, all cells of a grid together.

    Returns:
        A line for each, with ``promised`` (the speed-up in layers on validation rows) and ``lost`` (points against the
        full model of the same seed, or of the mean seed, on test rows).
    """
    found = results.knobs
    is_within = found["validation_score"] >= of_full_model(results, found, "validation_score") - loss / 100 - 1e-9
    # Who has no such knob stays at full depth.
    found = found[is_within | found["knob"].isna()].assign(within=is_within)
    order = ["within", "validation_layers", "validation_score"]
    found = found.sort_values(order, ascending=[False, True, False], kind="stable")
    first = found.groupby([*CURVE, "seed"], sort=False).head(1)
    return first.assign(
        promised=first["num_layers"] / first["validation_layers"],
        lost=100 * (of_full_model(results, first, "score") - first["score"]),
    )


def promises(results: Results) -> pd.DataFrame:
    """Average what is promised and lost over seeds and tasks, for the labels that have all compared tasks.

    Columns: ``method``, ``loss``, ``promised`` (the harmonic mean over tasks), ``lost`` (points) and ``broken`` (the
    share of models in percent that lose over a point more than promised).
    """
    means = ["promised", "lost", "broken"]
    chosen = pd.concat([chosen_knobs(results, loss).assign(loss=loss) for loss in LOSSES])
    chosen = comparison_of(results).in_means(chosen[chosen["label"].isin(results.labels_to_compare)])
    chosen["broken"] = 100.0 * (chosen["lost"] > chosen["loss"] + _BROKEN)
    chosen["promised"] = 1 / chosen["promised"]
    groups = chosen.groupby([*CURVE, "loss"])[means].mean().groupby(["label", "loss"])
    found = groups.mean()[groups.size() == len(comparison_of(results).compared)]
    found["promised"] = 1 / found["promised"]
    return found.reset_index().rename(columns={"label": "method"})


def promise_table(results: Results) -> Table:
    """Return the table of :func:`promises`, the largest promise at no loss first. Raises UserError if it is empty."""
    found = promises(results)
    if found.empty:
        raise UserError("no method has a knob on every task that counts, so that nothing is promised")
    wide = found.pivot(index="method", columns="loss").sort_values(("promised", 0.0), ascending=False)
    wide.columns = [f"{name} {loss:g}" for name, loss in wide.columns]
    columns = [Column("method")]
    for loss in LOSSES:
        columns += [
            Column(f"promised, loss {loss:g}", f"promised {loss:g}", ".2f"),
            Column(f"lost, {loss:g}", f"lost {loss:g}", "+.1f"),
            Column(f"broken %, {loss:g}", f"broken {loss:g}", ".0f"),
        ]
    notes = [
        "Promised: full depth over layers, of the fastest knob that loses at most so many points on validation rows.",
        "Lost: points against the full model on test rows. Broken: how many models lose over a point more than that. A "
        "few hundred validation rows prove nothing.",
    ]
    title = "Speed-up at no loss: promised on validation rows, delivered on test rows"
    return Table(title, "promises", wide.reset_index(), columns, notes)
