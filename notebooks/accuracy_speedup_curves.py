# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Accuracy against speed-up
#
# A method with a knob is a curve. Three things are called speed-up; one function derives all of them from raw counts.

# %%
# %matplotlib inline
from pathlib import Path

import matplotlib.pyplot as plt
from benchmarks.analysis.comparisons.curve_summaries import curve_summaries
from benchmarks.analysis.figures.curves import curve_on_test, figure
from benchmarks.analysis.figures.equal_cost import equal_cost_figure
from benchmarks.analysis.figures.exits import exit_histogram_figure
from benchmarks.analysis.figures.gains import gains_figure
from benchmarks.analysis.figures.speeds import speedup_figure
from benchmarks.analysis.panels.curves import speedups
from benchmarks.analysis.panels.results import load_panels

import benchmarks

results = Path(benchmarks.__file__).parents[1] / "results" / "cpu-6-layers"
panels, _ = load_panels(results)
panel = next(panel for panel in panels if panel.task == "mcid")

# %%
point = next(cell for cell in panel.cells if cell.record.label == "deebert").record.operating_points[-1]
speedups(point.test.average_layers, panel.num_layers)

# %% [markdown]
# All methods at equal cost, means over tasks; and the curves of one task, against layers and against time.

# %%
equal_cost_figure(panels)

# %%
figure([panel])

# %% [markdown]
# Which method beats exits that look at nothing? Points over a static exit of as many layers, at 2x; * where the
# interval excludes 0.

# %%
gains_figure(panels)

# %% [markdown]
# Does the clock follow the layers? On the diagonal, measured and allowed speed-up are equal.

# %%
speedup_figure(panels)

# %%
exit_histogram_figure([panel])

# %% [markdown]
# A figure of your own takes a few lines: `curve_on_test` gives a curve averaged over seeds, and of a grid of parameters
# only what validation data would choose.

# %%
fig, axes = plt.subplots(figsize=(5, 3.5))
for label in ("consistentee-curve", "deebert", "pabee", "static"):
    curve = curve_on_test(panel, label)
    axes.plot(panel.num_layers / curve.layers, 100 * curve.scores, label=label)
axes.set(xlabel="layer ratio, L / average layers", ylabel=f"{panel.metric}, %", title=panel.task)
axes.legend(frameon=False)
plt.close(fig)
fig

# %% [markdown]
# One number for a whole curve: the area under its Pareto front, the mean score over all budgets of layers.

# %%
areas = {summary.label: summary.layers_area for summary in curve_summaries(panel)}
assert all(0 <= area <= 1 for area in areas.values())
{label: round(area, 4) for label, area in sorted(areas.items(), key=lambda item: -item[1])}
