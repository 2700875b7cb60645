"""The contract catches methods of both kinds that are broken on purpose, and says which fault it is."""

import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.testing.check_method import check_method, contract_of
from benchmarks.testing.faults import BrokenContractError
from consistentee.errors import UserError
from consistentee.methods.method import get_method

BASE = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from consistentee import ExitRule, Knob, Method, ThresholdRule, TokenMethod
from consistentee.signals import margin
from consistentee.training.encoder import train_jointly
from consistentee.training.decoder import train_exits

class Base(PARENT):
    name: ClassVar[str] = "base"
    paper: ClassVar[str] = "unpublished"
    knob: ClassVar[Knob] = Knob("margin", (-1.0, 0.05, 0.1, 0.2, 0.5, 1.0))

    def fit(self, model, task, recipe):
        self.check_task(task)
        TRAIN(model, task, recipe)
        return model

    def rule(self, model, knob):
        self.check_knob(model, knob)
        return self.make(knob)

    def make(self, knob):
        return ThresholdRule(margin, knob, exit_when="above")

class Threshold(ExitRule):
    def __init__(self, threshold):
        self.threshold = threshold

class ReadsTheModel(Threshold):
    def __init__(self, model, threshold):
        self.model, self.threshold = model, threshold

"""
BASES = {
    "instances": BASE.replace("PARENT", "Method").replace("TRAIN", "train_jointly"),
    "tokens": BASE.replace("PARENT", "TokenMethod").replace("TRAIN", "train_exits"),
}
SOUND = "class Mine(Base):\n    pass\n"

OF_THE_RULE = """
class Mine(Base):
    knob: ClassVar[Knob] = Knob("KNOB", VALUES)
    def make(self, knob):
        return Rule(knob)
"""
OF_THE_MODEL = """
class Mine(Base):
    knob: ClassVar[Knob] = Knob("confidence", (0.0, 0.5, 1.0))
    def rule(self, model, knob):
        self.check_knob(model, knob)
        return Rule(model, knob)
"""


def swept(knob: str, values: str) -> str:
    return OF_THE_RULE.replace("KNOB", knob).replace("VALUES", values)


# ------------------------------------------------------------------------------------------------ both kinds

NEIGHBOURS = """
class Rule(Threshold):
    def should_exit(self, view, state):
        value = margin(view)
        return value - 0.5 * value.mean() > self.threshold
""" + swept("margin", "(-2.0, 0.02, 0.05, 0.1, 1.0)")

STATIC = """
class Rule(Threshold):
    def should_exit(self, view, state):
        return torch.full((view.rows,), LAYER >= self.threshold)
"""
KNOB_FROM_0 = STATIC.replace("LAYER", "view.layer") + swept("layer", "(0.0, 1.0, 2.0, 3.0)")
RULE_FROM_0 = STATIC.replace("LAYER", "(view.layer - 1)") + swept("layer", "(1.0, 2.0, 3.0, 4.0)")

PATIENCE_ON_SELF = """
class Rule(Threshold):
    def start(self, rows, num_layers):
        self.count = torch.zeros(rows)
        return {}
    def should_exit(self, view, state):
        n = slice(None)
        self.count[n] = torch.where(margin(view) > 0.02, self.count[n] + 1, 0.0)
        return self.count[n] >= self.threshold
""" + swept("patience", "(1.0, 2.0, 4.0)")
SILENT_PATIENCE_ON_SELF = PATIENCE_ON_SELF.replace("slice(None)", "slice(view.rows)")

CARRIES_OVER = """
class Rule(Threshold):
    calls = 0
    def should_exit(self, view, state):
        self.calls += 1
        return margin(view) + 0.01 * self.calls > self.threshold
""" + swept("margin", "(-1.0, 0.3, 0.5, 1000.0)")

UNSEEDED = """
import itertools
counter = itertools.count()

class Mine(Base):
    def fit(self, model, task, recipe):
        exits = ("classifiers.", "exit_adapters.")
        with torch.no_grad():
            next(weight for name, weight in model.named_parameters() if name.startswith(exits)).add_(next(counter))
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
REVERSED = "class Mine(Base):\n    knob: ClassVar[Knob] = Knob('margin', (1.0, 0.2, -1.0))\n"
ANY_KNOB = "class Mine(Base):\n    def check_knob(self, model, knob):\n        pass\n"
ANY_TASK = "class Mine(Base):\n    def check_task(self, task):\n        pass\n"

FATE, OTHER_TASKS = "a_rows_result_is_its_own", "other_tasks_work_or_are_refused"

OF_BOTH = [
    (NEIGHBOURS, "replay_is_reality", ("looks at its batch neighbours", "alone but at layer")),
    (NEIGHBOURS, FATE, ("looks at its batch neighbours", "alone but at layer")),
    (PATIENCE_ON_SELF, FATE, ("state breaks when rows leave", "): RuntimeError")),
    (SILENT_PATIENCE_ON_SELF, FATE, ("state breaks when rows leave", "once other rows have left")),
    (CARRIES_OVER, FATE, ("carries something over from batch to batch", "self.calls changed")),
    (KNOB_FROM_0, "knob_is_ordered", ("counts layers from 0", "leave at layer 3 of 4")),
    (RULE_FROM_0, "knob_is_ordered", ("counts layers from 0", "leaves at layer 2")),
    (REVERSED, "knob_is_ordered", ("the values run from the latest exits", "exits at layer 4 with 1, and at layer")),
    (UNSEEDED, "same_seed_same_numbers", ("the same seed gives other numbers", "differs between two trainings")),
    (
        NOT_SAVED,
        "saved_and_loaded_it_is_the_same",
        ("saved and loaded, the model gives other answers", "not left elsewhere by fit()"),
    ),
    (ANY_KNOB, "knobs_out_of_range_are_refused", ("takes knobs that are out of range", "self.check_knob(model, knob)")),
    (ANY_TASK, OTHER_TASKS, ("check_task() takes a", "check_task()")),
]

# ------------------------------------------------------------------------------------------------ one kind

LISTS_FROM_0 = (
    """
class Rule(ReadsTheModel):
    def should_exit(self, view, state):
        return self.model.classifiers[view.layer](view).softmax(-1).amax(-1) > self.threshold
"""
    + OF_THE_MODEL
)

ROWS_LAST = """
class Rule(Threshold):
    def start(self, rows, num_layers):
        return {"seen": torch.full((num_layers, rows), -1)}
    def should_exit(self, view, state):
        state["seen"][view.layer - 1] = view.predictions
        return margin(view) > self.threshold

class Mine(Base):
    def make(self, knob):
        return Rule(knob)
"""
READS_EVERY_TOKEN = (
    "class Mine(Base):\n    def make(self, knob):\n"
    "        return ThresholdRule(lambda view: view.hidden.mean((1, 2)), knob, 'above')"
)

READS_THE_PROMPT_ONLY_LIVE = """
class Rule(Threshold):
    def should_exit(self, view, state):
        live = type(view).__name__ == "TokenView"
        return margin(view) > (self.threshold if live else 0.0)

class Mine(Base):
    def make(self, knob):
        return Rule(knob)
"""

ADAPTERS_FROM_0 = (
    """
class Rule(ReadsTheModel):
    def should_exit(self, view, state):
        logits = self.model.logits(view.layer + 1, view.hidden.squeeze(1))
        return logits.softmax(-1).amax(-1) > self.threshold
"""
    + OF_THE_MODEL
)

RUNS_LAYERS = (
    """
class Rule(ReadsTheModel):
    def should_exit(self, view, state):
        step = torch.zeros(view.rows, 1, dtype=torch.long)
        hidden, context = self.model.stepper.begin(step, step == 0)
        self.model.stepper.step(1, hidden, context)
        return margin(view) > self.threshold
"""
    + OF_THE_MODEL
)

TRAINS_THE_BACKBONE = """
class Mine(Base):
    def fit(self, model, task, recipe):
        with torch.no_grad():
            model.backbone.lm_head.weight.mul_(1.01)
        return model
"""

GENERATES = """
from consistentee import generate_speculatively
class Mine(Base):
    def generate(self, model, prompts, knob, **options):
"""
OTHER_TEXTS = GENERATES + "        return super().generate(model, prompts, -1.0, **options)\n"
TEXTS_OF_A_BATCH = (
    GENERATES + "        return super().generate(model, prompts, 1.0 if len(prompts) == 1 else -1.0, **options)\n"
)
DRAFTS_IN_SILENCE = (
    GENERATES
    + """
        if knob == 1.0:
            return super().generate(model, prompts, knob, **options)
        return generate_speculatively(model, prompts, draft_layer=1, **options)
"""
)

OF_INSTANCES = [
    (
        LISTS_FROM_0,
        "layers_count_from_one",
        ("counts layers from 0", "layer 1 the rule used the classifier of layer 2"),
    ),
    (ROWS_LAST, FATE, ("state breaks when rows leave", "the state 'seen' has the shape")),
    (READS_EVERY_TOKEN, "replay_is_reality", ("cannot be replayed on a trace", "hidden states of every token")),
    (ANY_TASK, OTHER_TASKS, ("check_task() takes a regression", "supports_regression")),
]
OF_TOKENS = [
    (READS_THE_PROMPT_ONLY_LIVE, "replay_is_reality", ("something that a trace does not hold", "in a replay")),
    (ADAPTERS_FROM_0, "layers_count_from_one", ("counts layers from 0", "layer 1 the rule used the exit adapter of")),
    (RUNS_LAYERS, "layers_counted_are_layers_run", ("layers run that nobody counts", "are reported and")),
    (
        TRAINS_THE_BACKBONE,
        "never_exit_is_the_stock_model",
        ("fit() changes the backbone, which the recipe wants frozen", "recipe.trains is 'exits'"),
    ),
    (ANY_TASK, OTHER_TASKS, ("takes a task that asks for labels", "Do not override")),
    (
        OTHER_TEXTS,
        "generate_keeps_to_the_texts",
        ("generate() must write the stock model's text", "with other tokens (knob 1)"),
    ),
    (
        TEXTS_OF_A_BATCH,
        "generate_keeps_to_the_texts",
        ("generate() lets a text depend on its neighbours", "alone than among others"),
    ),
    (
        DRAFTS_IN_SILENCE,
        "generate_keeps_to_the_texts",
        ("generate() drafts and verifies, and the method does not say so", "drafts: ClassVar[bool] = True"),
    ),
]


@pytest.fixture
def write(tmp_path) -> Callable[[str, str], str]:
    """Return a function: (kind, source of a class Mine) -> the name of that method."""

    def written(kind: str, source: str) -> str:
        (tmp_path / "mine.py").write_text(BASES[kind] + textwrap.dedent(source))
        return f"{tmp_path / 'mine.py'}:Mine"

    return written


@pytest.fixture
def case_of(write, tiny_models, tiny_decoders) -> Callable[[str, str], Any]:
    """Return a function: (kind, source) -> the method, trained on a tiny model."""

    def trained(kind: str, source: str) -> Any:
        method = get_method(write(kind, source))
        family, models = {"instances": ("bert", tiny_models), "tokens": ("llama", tiny_decoders)}[kind]
        return contract_of(method).train(method, family, models)

    return trained


@pytest.mark.parametrize(
    ("kind", "source", "check", "expected"),
    [
        *((kind, *row) for kind in BASES for row in OF_BOTH),
        *(("instances", *row) for row in OF_INSTANCES),
        *(("tokens", *row) for row in OF_TOKENS),
    ],
)
def test_a_broken_method_is_caught_and_its_fault_named(case_of, kind, source, check, expected):
    case = case_of(kind, source)
    (run,) = (each.run for each in contract_of(case.method).checks if each.run.__name__ == check)
    with pytest.raises(BrokenContractError) as found:
        run(case)
    fault, shown = expected
    assert fault in found.value.fault
    assert shown in str(found.value)


HEADS_FROM_0 = """
from consistentee.models.heads import HeadSpec
from consistentee.training.encoder import recorded_features, train_heads, training_source
from consistentee.training.encoder import FeatureSource

def loss(model, batch):
    return sum(model.head("gate")(t, batch.outputs.pooled[:, t]).square().mean() for t in range(model.num_layers))

class Mine(Base):
    def fit(self, model, task, recipe):
        source = training_source(model, task, recipe)
        model.add_head("gate", HeadSpec(), seed=recipe.seed)
        rows = FeatureSource(model, recorded_features(model, source, recipe), source.labels)
        train_heads(model, rows, loss, recipe, name="gate", trains=("exit_heads.gate.",))
        return model
"""
WRONG_RESULT = "class Mine(Base):\n    def fit(self, *a):\n        return 3\n"
FAILS = "class Mine(Base):\n    def fit(self, model, task, recipe):\n        return 1 / 0\n"
NO_KNOB = "class Mine(Base):\n    def knob_values(self, model):\n        return ()\n"


@pytest.mark.parametrize(
    ("kind", "source", "shown"),
    [
        *(
            (kind, source, shown)
            for kind in BASES
            for source, shown in (
                (WRONG_RESULT, "fit() must return the trained model: it returned int"),
                (FAILS, "fit() fails: ZeroDivisionError: division by zero (mine.py, line"),
                (NO_KNOB, "knob_values() is empty"),
            )
        ),
        ("instances", HEADS_FROM_0, "layers count from 1 to 4, got 0 (mine.py, line"),
    ],
)
def test_a_method_that_cannot_be_trained_is_told_so(case_of, kind, source, shown):
    with pytest.raises(BrokenContractError) as found:
        case_of(kind, source)
    assert shown in str(found.value)


@pytest.mark.parametrize(("kind", "families"), [("instances", ["bert", "distilbert"]), ("tokens", ["gpt2"])])
def test_a_sound_method_passes_and_every_check_is_run(write, kind, families):
    method = get_method(write(kind, SOUND))
    report = check_method("mine.py:Mine", method, families)
    assert report.passed, report.fault_lines()
    assert [finding.verdict for finding in report.findings] == ["pass"] * (1 + len(contract_of(method).checks))
    assert report.fault_lines() == []


@pytest.mark.parametrize("source", [NEIGHBOURS, SILENT_PATIENCE_ON_SELF, PATIENCE_ON_SELF, ROWS_LAST])
def test_one_fault_is_told_once_and_no_other_is_blamed(write, source):
    (line,) = check_method("mine.py:Mine", get_method(write("instances", source)), ["bert"]).fault_lines()
    assert "docs/add_a_method.md" in line


def test_a_method_that_cannot_be_trained_is_not_checked(write):
    report = check_method("mine.py:Mine", get_method(write("instances", FAILS)), ["bert"])
    assert [finding.verdict for finding in report.findings] == ["fail"] + ["not run"] * (len(report.findings) - 1)
    (line,) = report.fault_lines()
    assert "docs/add_a_method.md" in line


READS_EARLIER_EXITS = """
class Rule(Threshold):
    reads_history = True
    def should_exit(self, view, state):
        first, newest = view.history[:, 0], view.history[:, -1]
        return torch.nn.functional.cosine_similarity(first, newest, dim=-1) < self.threshold
""" + swept("cosine", "(1.5, 0.5, 0.2, -1.5)")


def test_a_rule_that_reads_earlier_exits_is_checked_like_others(case_of):
    case = case_of("tokens", READS_EARLIER_EXITS)
    for check in contract_of(case.method).checks:
        if check.run.__name__ in ("replay_is_reality", "no_hole_in_the_cache"):
            check.run(case)
    exits = {layer for layers in case.live(case.knobs[1], "propagate").exit_layers for layer in layers[1:].tolist()}
    assert len(exits) > 1


@pytest.mark.parametrize(
    ("method", "family", "message"),
    [
        ("full", "bertt", "unknown family 'bertt'; did you mean 'bert'"),
        ("token-full", "bert", "unknown family 'bert'; known: gpt2, llama"),
    ],
)
def test_families_are_those_of_the_kind(method, family, message):
    with pytest.raises(UserError, match=message):
        check_method(method, get_method(method), [family])
