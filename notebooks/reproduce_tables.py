# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Reproduce the tables
#
# Committed results hold raw numbers: exit histograms, FLOPs, answers of rows, wall-clock samples. Everything in a table
# is derived from them here and now; nothing is trained.

# %%
from pathlib import Path

import pandas as pd

import benchmarks

folder = Path(benchmarks.__file__).parents[1] / "results" / "cpu-6-layers"
results = benchmarks.load_results(folder)
pd.set_option("display.max_rows", None, "display.max_columns", None)
print(len(results.tasks), "tasks,", len(results.cells), "records,", len(results.faults), "unreadable")

# %% [markdown]
# The headline: points against the full model at equal cost, means over tasks, with 95% paired bootstrap intervals.

# %%
headline = benchmarks.headline(results)
headline.pivot(index="method", columns="budget", values="points").loc[headline["method"].unique()].round(1)

# %% [markdown]
# Operating points: the knob is chosen on validation data, the numbers are those of the test split.

# %%
points = benchmarks.operating_points(results)
mcid = points[points["task"] == "mcid"]
mcid[["label", "knob", "chosen_for", "score", "score_low", "score_high", "layers", "flops_ratio", "speedup_b1"]].round(
    3
)

# %% [markdown]
# A budget holds on validation rows, on which knobs are chosen; on test rows the average may lie a little above.

# %%
half = points[points["chosen_for"].str.contains("budget 0.50", na=False)]
on_validation = [results.knobs.loc[list(chosen), "validation_layers"] for chosen in half["chosen"]]
assert all((layers <= depth / 2 + 1e-9).all() for layers, depth in zip(on_validation, half["num_layers"], strict=True))
half.pivot(index="label", columns="task", values=["score", "layers"]).round(3)

# %% [markdown]
# Times: a line for everything that was timed, batch size and round; ratios are within rounds.

# %%
times = results.times[results.times["key"] != ""]
ratios = times["stock_seconds"] / times["seconds"]
ratios.groupby([times["label"], times["batch_size"]]).median().unstack().round(2)
