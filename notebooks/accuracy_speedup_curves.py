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
# A method with a knob is a curve. `knobs` has a line for every value of the knob of every trained model: layers and
# scores on validation and test rows, and where they are known FLOPs and measured speed-ups.

# %%
# %matplotlib inline
from pathlib import Path

import seaborn as sns

import benchmarks

folder = Path(benchmarks.__file__).parents[1] / "results" / "cpu-6-layers"
results = benchmarks.load_results(folder)
mcid = results.only(tasks=["mcid"])

# %%
mcid.knobs[["label", "seed", "knob", "validation_layers", "layers", "score", "flops_ratio", "speedup_b1"]].sample(
    5, random_state=0
)

# %% [markdown]
# All methods at equal cost, means over tasks: `consistentee plot` writes these figures as files.

# %%
benchmarks.draw_figure("equal-cost", results)

# %%
benchmarks.draw_figure("curves", mcid)

# %%
benchmarks.draw_figure("exits", mcid)

# %% [markdown]
# A figure of your own takes a few lines: seaborn averages over seeds.

# %%
some = mcid.knobs[mcid.knobs["label"].isin(["consistentee-curve", "deebert", "pabee", "static"])].copy()
some["layer ratio"] = some["num_layers"] / some["layers"]
some["accuracy, %"] = 100 * some["score"]
grid = sns.relplot(some, x="layer ratio", y="accuracy, %", hue="label", style="seed", height=3.5, aspect=1.4)

# %% [markdown]
# Does the clock follow the layers? On the diagonal, measured and allowed speed-up are equal.

# %%
timed = results.knobs.dropna(subset=["speedup_b1"]).copy()
timed["allowed"] = timed["num_layers"] / timed["layers"]
assert timed["speedup_b1"].corr(timed["allowed"], method="spearman") > 0.8
grid = sns.relplot(timed, x="allowed", y="speedup_b1", hue="task", height=3.5, aspect=1.4)
