# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Where tokens exit
#
# In decoding the row that exits is a token. First a few tokens of SmolLM2-135M, live and without any training, then the
# published comparison. Backbone and text come from the package index (125 MB, kept in the user cache).

# %% tags=["nbval-ignore-output"]
# %matplotlib inline
from pathlib import Path

import benchmarks
import consistentee as ee

model = ee.MultiExitDecoder.from_backbone("smollm2-135m", exit_layers=(18, 24, 27))  # layer 30, the last, is added
prompts = ["The council voted on Tuesday to", "To make bread you need"]
full = ee.generate(model, prompts, ee.NeverExit(), max_new_tokens=12)
for prompt, text in zip(prompts, full.texts, strict=True):
    print(prompt + text)

# %% [markdown]
# CALM's rule: a token exits where the probabilities of the two likeliest next tokens differ by a threshold, which falls
# along the text (Schuster et al., NeurIPS 2022, section 3.3). The prompt is read at full depth and gives the first
# token; from the second on every token has a layer of its own. These exits are not trained: they read the model's own
# LM head, which answers poorly below the last layers, so the texts soon differ.

# %% tags=["nbval-ignore-output"]
method = ee.get_method("calm-tokens-softmax")
for threshold in (1.0, 0.6, 0.3):
    out = method.generate(model, prompts, knob=threshold, max_new_tokens=12)
    print(f"threshold {threshold}: {out.average_layers:.1f} layers a token")
    print("  ", out.exit_layers[0].tolist(), out.texts[0])

# %% [markdown]
# `consistentee suitability smollm2-135m` shows why, layer by layer: at layer 26 of 30 only 41% of the tokens are those
# of layer 30. Trained exits change that. The published suite trains the backbone with exits and decodes four tasks:
# points of ROUGE-L against the full model, at 1.25, 1.5 and 2 times the speed in layers.

# %%
results = benchmarks.load_results(Path(benchmarks.__file__).parents[1] / "results" / "decoding-methods")
headline = benchmarks.headline(results)
headline.pivot(index="method", columns="budget", values="points").loc[headline["method"].unique()].round(1)

# %%
benchmarks.draw_figure("equal-cost", results)

# %%
benchmarks.draw_figure("exits", results)
