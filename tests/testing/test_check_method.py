"""The contract catches methods of both kinds that are broken on purpose, and says which fault it is."""

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from benchmarks.testing import checks
from benchmarks.testing.cases import AnyCase
from benchmarks.testing.check_method import check_method, trained
from benchmarks.testing.checks import every_parameter_has_an_effect
from benchmarks.testing.report import BrokenContractError
from consistentee import ExitRule, Knob, Method, ThresholdRule, TokenMethod, generate_speculatively
from consistentee.methods.method import AnyMethod
from consistentee.signals import margin
from consistentee.training import layer_losses, run_stage, token_stage, train_exits, train_jointly, training_source


class Common:
    name: ClassVar[str] = "mine"
    paper: ClassVar[str] = "unpublished"
    knob: ClassVar[Knob] = Knob("margin", (-1.0, 0.05, 0.1, 0.2, 0.5, 1.0))

    def rule(self, model, knob):
        self.check_knob(model, knob)
        return self.make(model, knob)

    def make(self, model, knob):
        return ThresholdRule(margin, knob, exit_when="above")


class OfInstances(Common, Method):
    def fit(self, model, task, recipe):
        self.check_task(task)
        train_jointly(model, task, recipe)
        return model


class OfTokens(Common, TokenMethod):
    def fit(self, model, task, recipe):
        self.check_task(task)
        train_exits(model, task, recipe)
        return model


KINDS = {"instances": (OfInstances, "bert"), "tokens": (OfTokens, "llama")}


def broken(kind: str, **changes: object) -> AnyMethod:
    """Return a sound method with some attributes replaced."""
    return type("Mine", (KINDS[kind][0],), changes)()


class Threshold(ExitRule):
    def __init__(self, threshold, model=None):
        self.threshold, self.model = threshold, model


def made_of(rule: type[Threshold], *values: float, name: str = "margin") -> dict[str, object]:
    return {"make": lambda self, model, knob: rule(knob, model), "knob": Knob(name, values or Common.knob.values)}


def rule_of(should_exit: Callable[..., Tensor]) -> type[Threshold]:
    """Return a rule that asks a function of the rule, the view and the state."""
    return type("Asked", (Threshold,), {"should_exit": should_exit})


Neighbours = rule_of(lambda rule, view, _: margin(view) - margin(view).mean() >= rule.threshold)
Static = rule_of(lambda rule, view, _: torch.full((view.rows,), view.layer >= rule.threshold))
StaticFrom0 = rule_of(lambda rule, view, _: torch.full((view.rows,), view.layer - 1 >= rule.threshold))
ReadsEveryToken = rule_of(lambda rule, view, _: view.hidden.mean((1, 2)) > rule.threshold)


@rule_of
def ListsFrom0(rule, view, _):
    return rule.model.classifiers[view.layer](view).softmax(-1).amax(-1) > rule.threshold


@rule_of
def AdaptersFrom0(rule, view, _):
    logits = rule.model.logits(view.layer + 1, view.hidden.squeeze(1))
    return logits.softmax(-1).amax(-1) > rule.threshold


@rule_of
def ReadsMoreLive(rule, view, _):
    live = type(view).__name__ == "TokenView"
    return margin(view) > (rule.threshold if live else 0.0)


@rule_of
def RunsLayers(rule, view, _):
    step = torch.zeros(view.rows, 1, dtype=torch.long)
    hidden, context = rule.model.stepper.begin(step, step == 0)
    rule.model.stepper.step(1, hidden, context)
    return margin(view) > rule.threshold


class PatienceOnSelf(Threshold):
    def start(self, rows, num_layers):
        self.count = torch.zeros(rows)
        return {}

    def should_exit(self, view, state):
        rows = self.counted(view)
        self.count[rows] = torch.where(margin(view) > 0.02, self.count[rows] + 1, 0.0)
        return self.count[rows] >= self.threshold

    def counted(self, view):
        return slice(None)


class SilentPatienceOnSelf(PatienceOnSelf):
    def counted(self, view):
        return slice(view.rows)


class CarriesOver(Threshold):
    calls = 0

    def should_exit(self, view, state):
        self.calls += 1
        return margin(view) + 0.01 * self.calls > self.threshold


class RowsLast(Threshold):
    def start(self, rows, num_layers):
        return {"seen": torch.full((num_layers, rows), -1)}

    def should_exit(self, view, state):
        state["seen"][view.layer - 1] = view.predictions
        return margin(view) > self.threshold


counter = itertools.count()


@torch.no_grad()
def unseeded(self, model, task, recipe):
    exits = ("classifiers.", "exit_adapters.")
    next(weight for name, weight in model.named_parameters() if name.startswith(exits)).add_(next(counter))
    return model


def leaves_something(self, model, task, recipe):
    model.learned = 0.999
    return model


def uses_what_is_left(self, model, knob):
    return ThresholdRule(margin, getattr(model, "learned", -2.0) if 0 < knob < 1 else knob, exit_when="above")


@torch.no_grad()
def trains_the_backbone(self, model, task, recipe):
    model.backbone.lm_head.weight.mul_(1.01)
    return model


def other_texts(self, model, prompts, knob, **options):
    return TokenMethod.generate(self, model, prompts, -1.0, **options)


def texts_of_a_batch(self, model, prompts, knob, **options):
    return TokenMethod.generate(self, model, prompts, 1.0 if len(prompts) == 1 else -1.0, **options)


def drafts_in_silence(self, model, prompts, knob, **options):
    if knob == 1.0:
        return TokenMethod.generate(self, model, prompts, knob, **options)
    return generate_speculatively(model, prompts, draft_layer=1, **options)


NEIGHBOURS = made_of(Neighbours, -2.0, 0.0, 1.0)
PATIENCE, SILENT = (made_of(rule, 1.0, 2.0, 4.0, name="patience") for rule in (PatienceOnSelf, SilentPatienceOnSelf))
NOT_SAVED = {"fit": leaves_something, "make": uses_what_is_left}
CONFIDENCE = (0.0, 0.5, 1.0)

OF_BOTH = [
    (NEIGHBOURS, checks.replay_is_reality, "looks at its batch neighbours", "alone but at layer"),
    (NEIGHBOURS, checks.a_rows_result_is_its_own, "looks at its batch neighbours", "alone but at layer"),
    (PATIENCE, checks.a_rows_result_is_its_own, "state breaks when rows leave", "rows have left (knob"),
    (SILENT, checks.a_rows_result_is_its_own, "state breaks when rows leave", "once other rows have left"),
    (
        made_of(CarriesOver, -1.0, 0.3, 0.5, 1000.0),
        checks.a_rows_result_is_its_own,
        "carries something over from batch to batch",
        "self.calls changed",
    ),
    (made_of(Static, 0.0, 1.0, 2.0, 3.0), checks.knob_is_ordered, "counts layers from 0", "exit at layer 3 of 4"),
    (made_of(StaticFrom0, 1.0, 2.0, 3.0, 4.0), checks.knob_is_ordered, "counts layers from 0", "exits at layer 2"),
    ({"knob": Knob("margin", (1.0, 0.2, -1.0))}, checks.knob_is_ordered, "from the latest exits", "layer 4 with 1,"),
    ({"fit": unseeded}, checks.same_seed_same_numbers, "the same seed gives other numbers", "between two trainings"),
    (NOT_SAVED, checks.saved_and_loaded_it_is_the_same, "the model gives other answers", "not left elsewhere by fit()"),
    (
        {"check_knob": lambda *_: None},
        checks.knobs_out_of_range_are_refused,
        "takes knobs that are out of range",
        "self.check_knob(model, knob)",
    ),
    ({"check_task": lambda *_: None}, checks.other_tasks_work_or_are_refused, "check_task() takes a", "override"),
]
ONLY_INSTANCES = [
    (made_of(ListsFrom0, *CONFIDENCE), checks.layers_count_from_one, "from 0", "layer 1 the rule used the classifier"),
    (made_of(RowsLast), checks.a_rows_result_is_its_own, "state breaks when rows leave", "'seen' has the shape"),
    (made_of(ReadsEveryToken), checks.replay_is_reality, "cannot be replayed on a trace", "states of every token"),
]
ONLY_TOKENS = [
    (made_of(ReadsMoreLive), checks.replay_is_reality, "something that a trace does not hold", "in a replay"),
    (made_of(AdaptersFrom0, *CONFIDENCE), checks.layers_count_from_one, "from 0", "the exit adapter of layer 2"),
    (made_of(RunsLayers), checks.layers_counted_are_layers_run, "layers run that nobody counts", "are reported and"),
    ({"fit": trains_the_backbone}, checks.never_exit_is_the_stock_model, "fit() changes the backbone", "'exits'"),
    ({"generate": other_texts}, checks.generate_keeps_to_the_texts, "must write the stock model's text", "(knob 1)"),
    ({"generate": texts_of_a_batch}, checks.generate_keeps_to_the_texts, "depend on its neighbours", "than among"),
    ({"generate": drafts_in_silence}, checks.generate_keeps_to_the_texts, "does not say so", "drafts: ClassVar[bool]"),
]


@pytest.fixture(scope="module")
def case_of(tmp_path_factory) -> Callable[..., AnyCase]:
    """Return a function: (kind, changes) -> the method on a tiny model, which is trained once unless they are of it."""

    @functools.cache
    def trained_on(kind: str, changes: tuple[tuple[str, object], ...]) -> AnyCase:
        return trained(broken(kind, **dict(changes)), KINDS[kind][1], tmp_path_factory.getbasetemp())

    def case(kind: str, **changes: object) -> AnyCase:
        of_training = tuple((name, changes[name]) for name in ("fit", "knob_values") if name in changes)
        return replace(trained_on(kind, of_training), method=broken(kind, **changes))

    return case


@pytest.mark.parametrize(
    ("kind", "changes", "check", "fault", "shown"),
    [
        *((kind, *row) for kind in KINDS for row in OF_BOTH),
        *(("instances", *row) for row in ONLY_INSTANCES),
        *(("tokens", *row) for row in ONLY_TOKENS),
    ],
)
def test_a_broken_method_is_caught_and_its_fault_named(case_of, kind, changes, check, *, fault, shown):
    case = case_of(kind, **changes)
    with pytest.raises(BrokenContractError) as found:
        check(case)
    assert fault in found.value.fault
    assert shown in str(found.value)


@dataclass(frozen=True)
class Scaled(OfInstances):
    """A method whose parameter scales the loss, and is in the key of its stage."""

    scale: float = 1.0

    def fit(self, model, task, recipe):
        source, loss = training_source(model, task, recipe), functools.partial(scaled_loss, self.scale)
        run_stage(model, source, token_stage("mine", loss, recipe, stage_key=self.stage_key()), recipe)
        return model

    def stage_key(self):
        return {"scale": self.scale}


def scaled_loss(scale, model, batch):
    return scale * layer_losses(model(batch.tokens).logits, batch.labels).square().mean()


class LeftOut(Scaled):
    def stage_key(self):
        return {}


@dataclass(frozen=True)
class Unused(OfTokens):
    scale: float | None = None


class Refused(Unused):
    def check_task(self, task):
        super().check_task(task)
        self.refuse("scale", because="it is not used")


class Stated(Unused):
    hidden_effects: ClassVar[Mapping[str, str]] = {"scale": "it needs more layers"}


@pytest.mark.parametrize(("method", "is_broken"), [(Scaled, 0), (LeftOut, 1), (Unused, 1), (Refused, 0), (Stated, 0)])
def test_a_parameter_without_effect_is_found(tmp_path, method, is_broken):
    case = trained(method(), "llama" if issubclass(method, TokenMethod) else "bert", tmp_path)
    if is_broken:
        with pytest.raises(BrokenContractError, match="'scale' has no effect: with "):
            every_parameter_has_an_effect(case)
    else:
        every_parameter_has_an_effect(case)


def fails(self, model, task, recipe):
    return 1 / 0


@pytest.mark.parametrize(
    ("kind", "changes", "shown"),
    [
        ("tokens", {"fit": lambda *_: 3}, "fit() must return the trained model: it returned int"),
        ("instances", {"fit": fails}, "fit() fails: ZeroDivisionError: division by zero (test_check_method.py, line"),
        ("instances", {"knob_values": lambda *_: ()}, "knob_values() is empty"),
    ],
)
def test_a_training_error_is_reported(case_of, kind, changes, shown):
    with pytest.raises(BrokenContractError) as found:
        case_of(kind, **changes)
    assert shown in str(found.value)


def test_one_fault_is_reported_once_and_alone():
    (line,) = check_method("mine", broken("instances", **NEIGHBOURS), ["bert"]).fault_lines()
    assert "docs/add_a_method.md" in line


def test_a_method_that_cannot_be_trained_is_not_checked():
    report = check_method("mine", broken("instances", fit=fails), ["bert"])
    assert [finding.verdict for finding in report.findings] == ["fail"] + ["not run"] * (len(report.findings) - 1)
    (line,) = report.fault_lines()
    assert "docs/add_a_method.md" in line
