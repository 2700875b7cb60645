"""Judge methods with one knob a model, such as the paper's, at the layers that they chose themselves.

At a budget such a model is mixed with layer 1 or full depth, which hides what its rule has learned. Here its score is
compared with that of all rows at one layer of the same exits, and with another rule on them, at as many layers.
"""

import numpy as np
import pandas as pd

from benchmarks.analysis.equal_cost import full_lines, mix, scores_of_mixtures
from benchmarks.analysis.frames import TASK, Results
from benchmarks.analysis.rendering import Column, Table
from benchmarks.analysis.statistics import known_mean
from benchmarks.measure.terms import has_terms, score_of_means, terms_of
from consistentee.errors import UserError

_MEANS = ["layers", "most", "points", "gain", "other"]


def own_layers(results: Results) -> pd.DataFrame:
    """Compare every cell that has one knob with other rules on its own exits.

    Returns:
        A line for each cell: ``layers`` and ``score`` of its knob on test rows; ``most``, the share of rows at the exit
        that most rows take, NaN where exits were not kept; ``points`` against the full model of the same seed; ``gain``
        over all rows at one layer (two neighbouring layers are mixed); ``other``, the gain of a rule with many knobs,
        of a cell whose answers are the same at every layer. All but layers in percent or points.
    """
    knobs, full = results.knobs, full_lines(results)
    many = knobs.groupby("cell")["knob"].transform("count") > 1
    depth = knobs["layers"].where(knobs["knob"].isna()).groupby(knobs["cell"]).transform("max")
    rows_exit = np.isclose(depth, knobs["num_layers"])  # else tokens exit, and run fewer layers
    lines = []
    for place in knobs.index[~many & knobs["knob"].notna() & rows_exit]:
        line = knobs.loc[place]
        cell, group = line["cell"], [line["task"], line["backbone"], line["seed"]]
        if line["label"] not in results.labels_to_compare or not has_terms(line["metric"], results.labels(cell)):
            continue
        exits, answers = results.exits(cell).get(line["place"]), results.answers_by_layer(cell)
        at_one, other = _at_one_layer(results, cell, line["layers"]), np.nan
        curves = knobs[many & (knobs[[*TASK, "seed"]] == group).all(axis=1)].groupby("cell")
        same = [curve for number, curve in curves if np.array_equal(results.answers_by_layer(number), answers)]
        if same:
            mixture = mix(same[0], [line["num_layers"] / line["layers"]])
            other = float(scores_of_mixtures(results, mixture)[0]) - at_one
        reference = knobs["score"][full[*group]] if tuple(group) in full.index else np.nan
        most = np.nan if exits is None else np.bincount(exits).max() / len(exits)
        gains = {"points": line["score"] - reference, "gain": line["score"] - at_one, "other": other}
        lines.append({**line, "most": most, **gains})
    found = pd.DataFrame(lines, columns=[*knobs.columns, "most", "points", "gain", "other"])
    return found.assign(**{name: 100 * found[name].astype(float) for name in _MEANS[1:]})


def own_layers_table(results: Results) -> Table:
    """Return the means of :func:`own_layers` over tasks and seeds. Raises UserError if no cell has one knob."""
    found = own_layers(results).drop(columns="method").rename(columns={"label": "method"})
    found = found.sort_values(["method", "parameters"], kind="stable")
    if found.empty:
        raise UserError("every model has several knobs: nothing to show at a model's own layers")
    groups = found.groupby(["method", "parameters"], sort=False)
    means = groups[_MEANS].agg(known_mean)
    means["tasks"] = groups["task"].nunique()
    columns = [
        Column("method"),
        Column("parameters"),
        Column("tasks", form="d"),
        Column("layers", form=".2f"),
        Column("at one layer, %", "most", ".0f"),
        Column("points", form="+.1f"),
        Column("gain", form="+.1f"),
        Column("other rule", "other", "+.1f"),
    ]
    notes = [
        f"Tasks: {', '.join(sorted(set(found['task'])))}. Points: against the full model of the same seed. Gain: over "
        "all rows at one layer of the same exits, at as many layers. Other rule: its gain on the same exits, there.",
    ]
    return Table("Models with one knob, at their own layers", "own-layers", means.reset_index(), columns, notes)


def _at_one_layer(results: Results, cell: int, layers: float) -> float:
    """Score all rows at one exit of a cell, two neighbouring layers mixed to this mean."""
    metric, labels, answers = results.cells.at[cell, "metric"], results.labels(cell), results.answers_by_layer(cell)
    low = min(int(layers), len(answers) - 1)
    terms = [terms_of(metric, labels, answers[layer - 1]).mean(axis=0) for layer in (low, low + 1)]
    return float(score_of_means(metric, terms[0] + (layers - low) * (terms[1] - terms[0])))
