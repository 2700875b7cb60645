"""The contract catches methods that are broken on purpose, and says which fault it is."""

import textwrap

import pytest

from benchmarks.contract.checks import CHECKS
from benchmarks.contract.run import check_method, fault_lines
from consistentee.errors import UserError
from consistentee.methods.method import get_method

BASE = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from consistentee import ExitRule, Knob, Method, ThresholdRule
from consistentee.rules.signals import margin
from consistentee.training.stages import train_jointly

class Base(Method):
    name: ClassVar[str] = "base"
    paper: ClassVar[str] = "unpublished"
    knob: ClassVar[Knob] = Knob("margin", (-1.0, 0.1, 0.2, 0.5, 1.0))

    def fit(self, model, task, recipe):
        self.check_task(task)
        train_jointly(model, task, recipe)
        return model

    def rule(self, model, knob):
        self.check_knob(model, knob)
        return self.make(knob)

    def make(self, knob):
        return ThresholdRule(margin, knob, exit_when="above")

"""

NEIGHBOURS = """
class Rule(ExitRule):
    def __init__(self, threshold):
        self.threshold = threshold
    def should_exit(self, view, state):
        value = margin(view)
        return value - 0.2 * value.mean() > self.threshold

class Mine(Base):
    knob: ClassVar[Knob] = Knob("margin", (-2.0, 0.1, 0.2, 1.0))
    def make(self, knob):
        return Rule(knob)
"""

KNOB_FROM_0 = """
class Rule(ExitRule):
    def __init__(self, layer):
        self.layer = layer
    def should_exit(self, view, state):
        return torch.full((view.rows,), view.layer >= self.layer)

class Mine(Base):
    knob: ClassVar[Knob] = Knob("layer", (0.0, 1.0, 2.0, 3.0))
    def make(self, knob):
        return Rule(knob)
"""

RULE_FROM_0 = KNOB_FROM_0.replace("view.layer >=", "view.layer - 1 >=").replace(
    "(0.0, 1.0, 2.0, 3.0)", "(1.0, 2.0, 3.0, 4.0)"
)

LISTS_FROM_0 = """
class Rule(ExitRule):
    def __init__(self, model, threshold):
        self.classifiers, self.threshold = model.classifiers, threshold
    def should_exit(self, view, state):
        return self.classifiers[view.layer](view).softmax(-1).amax(-1) > self.threshold

class Mine(Base):
    knob: ClassVar[Knob] = Knob("confidence", (0.0, 0.5, 1.0))
    def rule(self, model, knob):
        self.check_knob(model, knob)
        return Rule(model, knob)
"""

HEADS_FROM_0 = """
from consistentee.models.heads import HeadSpec
from consistentee.training.stages import recorded_features, train_heads, training_source
from consistentee.training.loop import FeatureSource

def loss(model, batch):
    return sum(model.head("gate")(t, batch.outputs.pooled[:, t]).square().mean() for t in range(model.num_layers))

class Mine(Base):
    def fit(self, model, task, recipe):
        source = training_source(model, task, recipe)
        model.add_head("gate", HeadSpec(), seed=recipe.seed)
        rows = FeatureSource(model, recorded_features(model, source, recipe), source.labels.tolist())
        train_heads(model, rows, loss, recipe, name="gate", trains=("exit_heads.gate.",))
        return model
"""

PATIENCE_ON_SELF = """
class Rule(ExitRule):
    def __init__(self, patience):
        self.patience = patience
    def start(self, rows, num_layers):
        self.previous, self.count = torch.full((rows,), -1), torch.zeros(rows)
        return {}
    def should_exit(self, view, state):
        n = slice(None)
        self.count[n] = torch.where(view.predictions == self.previous[n], self.count[n] + 1, 0.0)
        self.previous[n] = view.predictions
        return self.count[n] >= self.patience

class Mine(Base):
    knob: ClassVar[Knob] = Knob("patience", (1.0, 2.0, 3.0))
    def make(self, knob):
        return Rule(knob)
"""

SILENT_PATIENCE_ON_SELF = PATIENCE_ON_SELF.replace("slice(None)", "slice(view.rows)")

ROWS_LAST = """
class Rule(ExitRule):
    def __init__(self, threshold):
        self.threshold = threshold
    def start(self, rows, num_layers):
        return {"seen": torch.full((num_layers, rows), -1)}
    def should_exit(self, view, state):
        state["seen"][view.layer - 1] = view.predictions
        return margin(view) > self.threshold

class Mine(Base):
    def make(self, knob):
        return Rule(knob)
"""

CARRIES_OVER = """
class Rule(ExitRule):
    def __init__(self, threshold):
        self.threshold, self.calls = threshold, 0
    def should_exit(self, view, state):
        self.calls += 1
        return margin(view) + 0.05 * self.calls > self.threshold

class Mine(Base):
    knob: ClassVar[Knob] = Knob("margin", (-1.0, 0.3, 0.5, 5.0))
    def make(self, knob):
        return Rule(knob)
"""

UNSEEDED = """
import itertools
counter = itertools.count()

class Mine(Base):
    def fit(self, model, task, recipe):
        with torch.no_grad():
            model.classifiers[0].bias.add_(next(counter))
        return model
"""

NOT_SAVED = """
class Mine(Base):
    def fit(self, model, task, recipe):
        model.learned = 0.999
        return model
    def rule(self, model, knob):
        self.check_knob(model, knob)
        return ThresholdRule(margin, getattr(model, "learned", -2.0) if 0 < knob < 1 else knob, exit_when="above")
"""


def faults(tmp_path, source: str) -> list[str]:
    path = tmp_path / "mine.py"
    path.write_text(BASE + textwrap.dedent(source))
    return fault_lines(check_method("mine.py:Mine", get_method(f"{path}:Mine"), ["bert"]))


def test_a_sound_method_passes_and_every_check_is_run(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(BASE + "class Mine(Base):\n    pass\n")
    report = check_method("mine.py:Mine", get_method(f"{path}:Mine"), ["bert", "distilbert"])
    assert report.passed
    assert [outcome.verdict for outcome in report.outcomes] == ["pass"] * (1 + len(CHECKS))
    assert fault_lines(report) == []


@pytest.mark.parametrize(
    ("source", "fault", "shown"),
    [
        (NEIGHBOURS, "looks at its batch neighbours", "alone but at layer"),
        (KNOB_FROM_0, "counts layers from 0", "with 3, rows leave at layer 3 of 4"),
        (RULE_FROM_0, "counts layers from 0", "with 1, row 1 leaves at layer 2"),
        (LISTS_FROM_0, "counts layers from 0", "at layer 1 the rule used the classifier of layer 2"),
        (HEADS_FROM_0, "fit() fails", "layers count from 1 to 4, and this head was asked for layer 0 (mine.py, line"),
        (PATIENCE_ON_SELF, "state breaks when rows leave", "rows have left (knob 1): RuntimeError"),
        (SILENT_PATIENCE_ON_SELF, "state breaks when rows leave", "once other rows have left"),
        (ROWS_LAST, "state breaks when rows leave", "the state 'seen' has the shape"),
        (CARRIES_OVER, "carries something over from batch to batch", "self.calls changed"),
        (UNSEEDED, "the same seed gives other numbers", "differs between two trainings"),
        (NOT_SAVED, "saved and loaded, the model gives other answers", "not left elsewhere by fit()"),
        (
            "class Mine(Base):\n    def make(self, knob):\n"
            "        return ThresholdRule(lambda view: view.hidden.mean((1, 2)), knob, 'above')",
            "cannot be replayed on a trace",
            "hidden states of every token",
        ),
        (
            "class Mine(Base):\n    knob: ClassVar[Knob] = Knob('margin', (1.0, 0.2, -1.0))\n",
            "a stricter knob exits earlier: the values run from the latest exits",
            "exits at layer 4 with 1, and at layer",
        ),
        (
            "class Mine(Base):\n    def check_knob(self, model, knob):\n        pass\n",
            "rule() takes knobs that are out of range",
            "self.check_knob(model, knob)",
        ),
        ("class Mine(Base):\n    def fit(self, *a):\n        return 3\n", "fit() must return the trained model", "int"),
        (
            "class Mine(Base):\n    def fit(self, model, task, recipe):\n        return 1 / 0\n",
            "fit() fails",
            "ZeroDivisionError: division by zero (mine.py, line",
        ),
        (
            "class Mine(Base):\n    def check_task(self, task):\n        pass\n",
            "check_task() takes a regression",
            "supports_regression",
        ),
    ],
)
def test_a_broken_method_is_caught_and_its_fault_named(tmp_path, source, fault, shown):
    found = [line for line in faults(tmp_path, source) if fault in line]
    assert len(found) == 1, f"no such fault: {fault}"
    assert shown in found[0]
    assert "docs/add_a_method.md" in found[0]


@pytest.mark.parametrize("source", [NEIGHBOURS, SILENT_PATIENCE_ON_SELF, PATIENCE_ON_SELF, ROWS_LAST])
def test_one_fault_is_told_once_and_no_other_is_blamed(tmp_path, source):
    assert len(faults(tmp_path, source)) == 1


def test_unknown_families_are_named():
    with pytest.raises(UserError, match="unknown family 'bertt'; did you mean 'bert'"):
        check_method("full", get_method("full"), ["bertt"])
