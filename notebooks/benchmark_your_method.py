# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Benchmark your method
#
# A method is one class: how to train, which rule, which knob. In this one a row exits if the classifier is confident
# and its answer is that of layer 1. It is compared with DeeBERT on a few hundred rows. Backbone and data come from the
# package index (86 MB, kept in the user cache).

# %%
# %matplotlib inline
from pathlib import Path

import rich
from IPython.utils.capture import capture_output

import benchmarks
from benchmarks.run.sweep import run_suite
from benchmarks.specs.base import SuiteSpec
from benchmarks.specs.suites import Filters

folder = Path("../runs/mine")
folder.mkdir(parents=True, exist_ok=True)
source = '''
from dataclasses import dataclass
from typing import ClassVar

import torch

from consistentee import ExitRule, Knob, Method
from consistentee.signals import top_probability
from consistentee.training import train_jointly


@dataclass(frozen=True)
class SureAndSteady(Method):
    """Exit where the top probability is high and the answer is that of layer 1."""

    name: ClassVar[str] = "sure-and-steady"
    paper: ClassVar[str] = "notebooks/benchmark_your_method.py"
    knob: ClassVar[Knob] = Knob("confidence", (0.0, *torch.linspace(0.5, 0.999, 30).tolist(), 1.0))

    def fit(self, model, task, recipe):
        self.check_task(task)
        train_jointly(model, task, recipe)
        return model

    def rule(self, model, knob):
        self.check_knob(model, knob)
        return Rule(knob)


class Rule(ExitRule):
    def __init__(self, confidence):
        self.confidence = confidence

    def start(self, rows, num_layers):
        return {"first": torch.full((rows,), -1)}

    def should_exit(self, view, state):
        if view.layer == 1:
            state["first"] = view.predictions
        if self.confidence == 0:
            return torch.ones(view.rows, dtype=torch.bool)
        return (top_probability(view) > self.confidence) & (view.predictions == state["first"])
'''
length = (folder / "mine.py").write_text(source)

# %% [markdown]
# A suite is a few lines of YAML, or of Python. Put the full model and a static exit into every comparison.

# %% tags=["nbval-ignore-output"]
suite = SuiteSpec.model_validate(
    {
        "name": "mine",
        "description": "a small live run",
        "tasks": ["movie-snippets"],
        "backbones": ["minilm-l6"],
        "seeds": [0],
        "recipe": {"epochs": 1, "max_rows": 320, "max_length": 32, "learning_rate": 1e-4, "head_learning_rate": 1e-3},
        "validation_rows": 100,
        "test_rows": 200,
        "methods": ["full", "static", "deebert", f"{folder / 'mine.py'}:SureAndSteady"],
        "timing": {"rounds": 3, "batch_sizes": [1, 32], "rows": 32, "points_per_cell": 2, "warmup_batches": 1},
    }
)
with capture_output():  # a line every ten seconds
    outcome = run_suite(suite, Filters(), out=folder / "results")
assert not outcome.failed
rich.print(outcome.table)

# %% [markdown]
# Times and trained weights differ from machine to machine. These do not: the methods, the number of rows, and the
# layers at full depth.

# %%
results = benchmarks.load_results(folder / "results")
for label, knobs in results.knobs.groupby("label"):
    rows = sum(knobs["exit_histogram"].iloc[0])
    print(f"{label}: {rows} rows, {knobs['layers'].max():.2f} layers at full depth")

# %% tags=["nbval-ignore-output"]
benchmarks.draw_figure("curves", results)

# %% [markdown]
# Check a method before you trust its numbers. Every method here passes these checks: never exit = the stock model,
# replay = reality, a row's result is its own, an ordered knob.
#
# ```
# consistentee check-method runs/mine/mine.py:SureAndSteady
# ```
