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
# Committed results hold raw numbers: exit histograms, FLOPs, wall-clock samples. Everything in a table is derived from
# them here and now; nothing is trained.

# %%
from pathlib import Path

import pandas as pd
from benchmarks.analysis.panels.results import load_panels
from benchmarks.analysis.rows.frame import long_frame
from benchmarks.analysis.rows.instances import table_rows
from benchmarks.analysis.tables.equal_cost import headline_tables
from benchmarks.analysis.tables.operating import operating_lines, operating_table, panel_tables
from benchmarks.analysis.tables.overall import overall_tables
from benchmarks.analysis.tables.publications.published import published_table
from IPython.display import display

import benchmarks
from benchmarks.specs.targets import HALF

results = Path(benchmarks.__file__).parents[1] / "results" / "cpu-6-layers"
panels, faults = load_panels(results)
pd.set_option("display.max_rows", None, "display.max_columns", None)
print(len(panels), "tasks,", sum(len(panel.cells) for panel in panels), "records,", len(faults), "unreadable")


def frame(table):
    """Show a table of the analysis as pandas does."""
    return pd.DataFrame(table.cells, columns=table.headings).set_index(table.headings[0])


# %% [markdown]
# Operating points: the knob is chosen on validation data, the numbers are those of the test split.

# %%
mcid = next(panel for panel in panels if panel.task == "mcid")
table = operating_table(mcid)
print(*table.notes, sep="\n")
frame(table)

# %% [markdown]
# Whole curves, and tests at equal cost.

# %%
for table in panel_tables(mcid)[1:]:
    print(table.title)
    display(frame(table))

# %% [markdown]
# Over all tasks: the headline, ranks (with few tasks no pair can be told apart by Wilcoxon's test: the notes say what
# the smallest possible p is), points over a static exit, and how much of the allowed speed-up the clock
# shows.

# %%
for table in [*headline_tables(panels), *overall_tables(panels)]:
    print(table.title, *table.notes, sep="\n  ")
    display(frame(table))

# %% [markdown]
# Beside what papers print. Nobody published figures for MCID or StackOverflow that are in the collection, so all cells
# of theirs are "n/a".

# %%
frame(published_table(mcid))

# %% [markdown]
# With full precision, for your own analysis: `long_frame` has a line a cell, knob and split, `operating_lines` one an
# operating point. The budget holds on validation rows, on which knobs are chosen; on test
# rows the average may lie a little above.

# %%
every_knob = long_frame(panels)
assert (every_knob.groupby(["task", "label"]).split.nunique() == 2).all()
points = pd.DataFrame(operating_lines(panels))
half = points[points.chosen_for.str.contains("budget 0.50", na=False)]
chosen = [row for panel in panels for row in table_rows(panel) if HALF in row.targets]
on_validation = [(c.point.validation.average_layers, c.cell.record.num_layers) for row in chosen for c in row.choices]
assert on_validation
assert all(layers <= total / 2 + 1e-9 for layers, total in on_validation)
half.pivot(index="label", columns="task", values=["score", "average_layers"]).round(3)
