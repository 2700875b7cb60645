"""The contract of generation catches methods that are broken on purpose, and says which fault it is."""

import textwrap

import pytest

from benchmarks.contract import token_checks as checks
from benchmarks.contract.faults import BrokenContractError
from benchmarks.contract.run import check_method, fault_lines
from benchmarks.contract.token_case import train_token_case
from consistentee.errors import UserError
from consistentee.methods.method import get_method

BASE = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from consistentee import ExitRule, Knob, ThresholdRule, UserError
from consistentee.rules.signals import margin
from consistentee.methods.token_method import TokenMethod
from consistentee.training.token_stages import train_exits

class Base(TokenMethod):
    name: ClassVar[str] = "base"
    paper: ClassVar[str] = "unpublished"
    knob: ClassVar[Knob] = Knob("margin", (-1.0, 0.05, 0.1, 0.2, 0.5, 1.0))

    def fit(self, model, task, recipe):
        self.check_task(task)
        train_exits(model, task, recipe)
        return model

    def rule(self, model, knob):
        self.check_knob(model, knob)
        return self.make(knob)

    def make(self, knob):
        return ThresholdRule(margin, knob, exit_when="above")

class Threshold(ExitRule):
    def __init__(self, threshold):
        self.threshold = threshold

"""

NEIGHBOURS = """
class Rule(Threshold):
    def should_exit(self, view, state):
        value = margin(view)
        return value - 0.5 * value.mean() > self.threshold

class Mine(Base):
    knob: ClassVar[Knob] = Knob("margin", (-2.0, 0.02, 0.05, 0.1, 1.0))
    def make(self, knob):
        return Rule(knob)
"""

PATIENCE_ON_SELF = """
class Rule(Threshold):
    def start(self, rows, num_layers):
        self.previous, self.count = torch.full((rows,), -1), torch.zeros(rows)
        return {}
    def should_exit(self, view, state):
        n = SLICE
        wants_out = margin(view) > 0.1
        self.count[n] = torch.where(wants_out, self.count[n] + 1, 0.0)
        return self.count[n] >= self.threshold

class Mine(Base):
    knob: ClassVar[Knob] = Knob("patience", (1.0, 2.0, 4.0))
    def make(self, knob):
        return Rule(knob)
"""

CARRIES_OVER = """
class Rule(Threshold):
    calls = 0
    def should_exit(self, view, state):
        self.calls += 1
        return margin(view) + 0.01 * self.calls > self.threshold

class Mine(Base):
    knob: ClassVar[Knob] = Knob("margin", (-1.0, 0.3, 0.5, 1000.0))
    def make(self, knob):
        return Rule(knob)
"""

READS_THE_PROMPT_ONLY_LIVE = """
class Rule(Threshold):
    def should_exit(self, view, state):
        live = type(view).__name__ == "TokenView"
        return margin(view) > (self.threshold if live else 0.0)

class Mine(Base):
    def make(self, knob):
        return Rule(knob)
"""

STATIC = """
class Rule(Threshold):
    def should_exit(self, view, state):
        return torch.full((view.rows,), LAYER >= self.threshold)

class Mine(Base):
    knob: ClassVar[Knob] = Knob("layer", VALUES)
    def make(self, knob):
        return Rule(knob)
"""

ADAPTERS_FROM_0 = """
class Rule(Threshold):
    def __init__(self, model, threshold):
        self.model, self.threshold = model, threshold
    def should_exit(self, view, state):
        logits = self.model.logits(view.layer + 1, view.hidden.squeeze(1))
        return logits.softmax(-1).amax(-1) > self.threshold

class Mine(Base):
    knob: ClassVar[Knob] = Knob("confidence", (0.0, 0.5, 1.0))
    def rule(self, model, knob):
        self.check_knob(model, knob)
        return Rule(model, knob)
"""

RUNS_LAYERS = """
class Rule(Threshold):
    def __init__(self, model, threshold):
        self.model, self.threshold = model, threshold
    def should_exit(self, view, state):
        step = torch.zeros(view.rows, 1, dtype=torch.long)
        hidden, context = self.model.stepper.begin(step, step == 0)
        self.model.stepper.step(1, hidden, context)
        return margin(view) > self.threshold

class Mine(Base):
    def rule(self, model, knob):
        self.check_knob(model, knob)
        return Rule(model, knob)
"""

TRAINS_THE_BACKBONE = """
class Mine(Base):
    def fit(self, model, task, recipe):
        with torch.no_grad():
            model.backbone.lm_head.weight.mul_(1.01)
        return model
"""

UNSEEDED = """
import itertools
counter = itertools.count()

class Mine(Base):
    def fit(self, model, task, recipe):
        with torch.no_grad():
            model.adapter(1).norm.weight.add_(next(counter))
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

OTHER_TEXTS = """
class Mine(Base):
    def generate(self, model, prompts, knob, **options):
        return super().generate(model, prompts, -1.0, **options)
"""

TEXTS_OF_A_BATCH = """
class Mine(Base):
    def generate(self, model, prompts, knob, **options):
        return super().generate(model, prompts, 1.0 if len(prompts) == 1 else -1.0, **options)
"""


DRAFTS_IN_SILENCE = """
from consistentee import generate_speculatively
class Mine(Base):
    def generate(self, model, prompts, knob, **options):
        if knob == 1.0:
            return super().generate(model, prompts, knob, **options)
        return generate_speculatively(model, prompts, draft_layer=1, **options)
"""


def case_of(tmp_path, tiny_decoders, source):
    path = tmp_path / "mine.py"
    path.write_text(BASE + textwrap.dedent(source))
    return train_token_case(get_method(f"{path}:Mine"), "llama", tiny_decoders)


@pytest.mark.parametrize(
    ("source", "check", "expected"),
    [
        (NEIGHBOURS, checks.replay_is_reality, ("looks at its batch neighbours", "alone but at layer")),
        (NEIGHBOURS, checks.a_texts_fate_is_its_own, ("looks at its batch neighbours", "alone but at layer")),
        (
            PATIENCE_ON_SELF.replace("SLICE", "slice(None)"),
            checks.a_texts_fate_is_its_own,
            ("state breaks when rows leave", "rows have left (knob 1): RuntimeError"),
        ),
        (
            PATIENCE_ON_SELF.replace("SLICE", "slice(view.rows)"),
            checks.a_texts_fate_is_its_own,
            ("state breaks when rows leave", "once other rows have left"),
        ),
        (
            CARRIES_OVER,
            checks.a_texts_fate_is_its_own,
            ("carries something over from batch to batch", "self.calls changed"),
        ),
        (READS_THE_PROMPT_ONLY_LIVE, checks.replay_is_reality, ("something that a trace does not hold", "in a replay")),
        (
            STATIC.replace("LAYER", "view.layer").replace("VALUES", "(0.0, 1.0, 2.0, 3.0)"),
            checks.knob_is_ordered,
            ("counts layers from 0", "with 3, tokens leave at layer 3 of 4"),
        ),
        (
            STATIC.replace("LAYER", "(view.layer - 1)").replace("VALUES", "(1.0, 2.0, 3.0, 4.0)"),
            checks.knob_is_ordered,
            ("counts layers from 0", "with 1, token 1 leaves at layer 2, and the first exit is at layer 1"),
        ),
        (
            "class Mine(Base):\n    knob: ClassVar[Knob] = Knob('margin', (1.0, 0.2, -1.0))\n",
            checks.knob_is_ordered,
            (
                "a stricter knob exits earlier: the values run from the latest exits",
                "exits at layer 4 with 1, and at layer",
            ),
        ),
        (
            ADAPTERS_FROM_0,
            checks.layers_count_from_one,
            ("counts layers from 0", "at layer 1 the rule used the exit adapter of layer 2"),
        ),
        (RUNS_LAYERS, checks.layers_counted_are_layers_run, ("layers run that nobody counts", "are reported and")),
        (
            TRAINS_THE_BACKBONE,
            checks.never_exit_is_the_stock_model,
            ("fit() changes the backbone, which the recipe wants frozen", "recipe.trains is 'exits'"),
        ),
        (UNSEEDED, checks.same_seed_same_numbers, ("the same seed gives other numbers", "exit_adapters.1.norm.weight")),
        (
            NOT_SAVED,
            checks.saved_and_loaded_it_says_the_same,
            ("saved and loaded, the model gives other answers", "not left elsewhere by fit()"),
        ),
        (
            "class Mine(Base):\n    def check_knob(self, model, knob):\n        pass\n",
            checks.knobs_out_of_range_are_refused,
            ("rule() takes knobs that are out of range", "self.check_knob(model, knob)"),
        ),
        (
            "class Mine(Base):\n    def check_task(self, task):\n        pass\n",
            checks.tasks_of_labels_are_refused,
            ("takes a task that asks for labels", "Do not override"),
        ),
        (
            OTHER_TEXTS,
            checks.generate_keeps_to_the_texts,
            ("generate() must write the stock model's text", "with other tokens (knob 1)"),
        ),
        (
            TEXTS_OF_A_BATCH,
            checks.generate_keeps_to_the_texts,
            ("generate() lets a text depend on its neighbours", "alone than beside others"),
        ),
        (
            DRAFTS_IN_SILENCE,
            checks.generate_keeps_to_the_texts,
            ("generate() drafts and verifies, and the method does not say so", "drafts: ClassVar[bool] = True"),
        ),
    ],
)
def test_a_broken_method_is_caught_and_its_fault_named(tmp_path, tiny_decoders, source, check, expected):
    case = case_of(tmp_path, tiny_decoders, source)
    with pytest.raises(BrokenContractError) as found:
        check(case)
    fault, shown = expected
    assert fault in found.value.fault
    assert shown in str(found.value)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("class Mine(Base):\n    def fit(self, *a):\n        return 3\n", "fit() must return the trained model"),
        (
            "class Mine(Base):\n    def fit(self, model, task, recipe):\n        return 1 / 0\n",
            "fit() fails: ZeroDivisionError: division by zero (mine.py, line",
        ),
        (
            "class Mine(Base):\n    def knob_values(self, model):\n        return ()\n",
            "knob_values() is empty",
        ),
    ],
)
def test_a_method_that_cannot_be_trained_is_told_so(tmp_path, tiny_decoders, source, shown):
    with pytest.raises(BrokenContractError) as found:
        case_of(tmp_path, tiny_decoders, source)
    assert shown in str(found.value)


def test_a_sound_method_passes_and_every_check_is_run(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(BASE + "class Mine(Base):\n    pass\n")
    report = check_method("mine.py:Mine", get_method(f"{path}:Mine"), ["gpt2"])
    assert report.passed, fault_lines(report)
    assert [outcome.verdict for outcome in report.outcomes] == ["pass"] * (1 + len(checks.TOKEN_CHECKS))


READS_EARLIER_EXITS = """
class Rule(Threshold):
    reads_history = True
    def should_exit(self, view, state):
        first, newest = view.history[:, 0], view.history[:, -1]
        return torch.nn.functional.cosine_similarity(first, newest, dim=-1) < self.threshold

class Mine(Base):
    knob: ClassVar[Knob] = Knob("cosine", (1.5, 0.5, 0.2, -1.5))
    def make(self, knob):
        return Rule(knob)
"""


def test_a_rule_that_reads_earlier_exits_is_checked_like_others(tmp_path, tiny_decoders):
    case = case_of(tmp_path, tiny_decoders, READS_EARLIER_EXITS)
    checks.replay_is_reality(case)
    checks.no_hole_in_the_cache(case)
    exits = {layer for layers in case.live(case.knobs[1], "propagate").exit_layers for layer in layers[1:].tolist()}
    assert len(exits) > 1


def test_families_are_those_of_decoders():
    with pytest.raises(UserError, match="unknown family 'bert'; known: gpt2, llama"):
        check_method("token-full", get_method("token-full"), ["bert"])
