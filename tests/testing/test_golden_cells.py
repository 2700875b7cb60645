"""No number changes unnoticed (DESIGN, "What must always hold", 8): golden cells, and planted faults that they catch.

If a cell differs: fix what broke; or raise the method's version, explain it in docs/versions.md, and write its cell
again, ``python -m benchmarks.testing.golden METHOD``.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from baselines.pabee import PABEE
from benchmarks.testing import cases
from benchmarks.testing.golden import FOLDER, Golden, all_methods, check_cell, differences, read_cell, write_cell
from consistentee.backbones.decoders import GPT2Stepper, LlamaStepper
from consistentee.errors import UserError
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.models.heads import ExitHeads
from consistentee.rules.exit_rule import ConsecutiveRule, ThresholdRule
from consistentee.traces.instance_trace import Trace
from consistentee.traces.walk import replay


@pytest.fixture(scope="session")
def golden(tmp_path_factory):
    return Golden(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", all_methods())
def test_no_number_changed_without_a_version(golden, name):
    message = check_cell(name, golden)
    assert message is None, message


def test_there_is_no_cell_without_a_method():
    assert sorted(path.stem for path in FOLDER.iterdir()) == all_methods()


# ---------------------------------------------------------------------------------------------- faults that are caught


@pytest.fixture
def found(golden):
    """Return a function: method -> the differences between its golden cell and the code as it is now."""

    def compare(name: str) -> str:
        held = read_cell(FOLDER / f"{name}.json")
        return "\n".join(differences(held, golden.compute(name, held)))

    return compare


def test_patience_that_must_be_exceeded(found, monkeypatch):
    def should_exit(self, view, state):
        wants_out = self.rule.should_exit(view, state)
        state["consecutive"] = torch.where(wants_out, state["consecutive"] + 1, 0)
        return state["consecutive"] > self.patience

    monkeypatch.setattr(ConsecutiveRule, "should_exit", should_exit)
    assert "albert, knob 1: row 1 is 4:" in found("pabee")
    assert "llama, knob 1: row" in found("token-patience")


@pytest.mark.parametrize("name", ["calm-softmax", "deebert"])
def test_a_threshold_that_may_be_met(found, monkeypatch, name):
    def should_exit(self, view, state):
        value = self.signal(view)
        return value >= self.threshold if self.exit_when == "above" else value <= self.threshold

    monkeypatch.setattr(ThresholdRule, "should_exit", should_exit)
    assert "row 21 is 1:" in found(name)  # the first of the certain rows


def test_exit_layers_off_by_one(found, monkeypatch):
    off = lambda rule, trace: (replay(rule, trace) + 1).clamp_max(trace.num_layers)  # noqa: E731
    monkeypatch.setattr(cases, "replay", off)
    assert "bert, knob 1: row 1 is 2:" in found("static")


def test_views_of_the_next_layer(found, monkeypatch):
    true_view = Trace.view
    monkeypatch.setattr(Trace, "view", lambda self, layer: true_view(self, min(layer + 1, self.num_layers)))
    assert ": row " in found("calm-softmax")


def test_classifiers_of_the_next_layer(found, monkeypatch):
    true_classifier = MultiExitModel.classifier
    after = lambda self, layer: true_classifier(self, min(layer + 1, self.num_layers))  # noqa: E731
    monkeypatch.setattr(MultiExitModel, "classifier", after)
    assert "bert, logits of exit 1: " in found("deebert")


@pytest.mark.parametrize("name", ["consistentee", "consistentee-tokens"])
def test_heads_of_the_next_layer(found, monkeypatch, name):
    true_forward = ExitHeads.forward

    def forward(self, layer, pooled, extra=None):
        return true_forward(self, min(layer + 1, self.num_layers), pooled, extra)

    monkeypatch.setattr(ExitHeads, "forward", forward)
    assert ": row " in found(name)


@pytest.mark.parametrize(
    ("stepper", "norm", "family"), [(LlamaStepper, "input_layernorm", "llama"), (GPT2Stepper, "ln_1", "gpt2")]
)
def test_states_propagated_without_the_input_norm(found, monkeypatch, stepper, norm, family):
    true_keys_values = stepper.keys_values

    def keys_values(self, layer, hidden, rotation):
        module = self.layer_module(layer)
        stock = getattr(module, norm)
        setattr(module, norm, nn.Identity())
        try:
            return true_keys_values(self, layer, hidden, rotation)
        finally:
            setattr(module, norm, stock)

    monkeypatch.setattr(stepper, "keys_values", keys_values)
    lines = found("calm-tokens-softmax").splitlines()
    assert lines
    assert all(line.startswith(f"{family}, knob") for line in lines)


@pytest.mark.parametrize(("name", "part"), [("pabee", "logits of exit 1"), ("calm-classifier", "exit_heads")])
def test_training_that_gives_other_weights(found, monkeypatch, name, part):
    rates = {name: 1.001 * getattr(cases.RECIPE, name) for name in ("learning_rate", "frozen_learning_rate")}
    monkeypatch.setattr(cases, "RECIPE", replace(cases.RECIPE, **rates))
    assert part in found(name)


# ---------------------------------------------------------------------------------------------- files and versions


def test_a_missing_cell_is_written_and_an_equal_one_is_left_alone(golden, tmp_path):
    message = check_cell("pabee", golden, tmp_path)
    assert message == "pabee has no golden cell yet. Write it: python -m benchmarks.testing.golden pabee"
    assert write_cell("pabee", golden, tmp_path) == "written"
    path = tmp_path / "pabee.json"
    path.write_text(path.read_text().replace("\n ", "\n"))
    text = path.read_text()
    assert write_cell("pabee", golden, tmp_path) == "unchanged"
    assert path.read_text() == text


@pytest.fixture
def other_numbers(tmp_path):
    """Return a folder with a cell of PABEE in which row 1 of BERT exits at another layer."""
    cell = (FOLDER / "pabee.json").read_text()
    (tmp_path / "pabee.json").write_text(cell.replace('"1.0": "', '"1.0": "9:'))
    return tmp_path


def test_changed_numbers_are_written_once_the_version_is_raised(golden, other_numbers, monkeypatch):
    path = other_numbers / "pabee.json"
    before = path.read_text()
    with pytest.raises(UserError, match="no version was raised") as refusal:
        write_cell("pabee", golden, other_numbers)
    assert "bert, knob 1: row 1 is 4:0, golden: 9:4:0" in str(refusal.value)
    assert "PABEE.version" in str(refusal.value)
    assert path.read_text() == before
    monkeypatch.setattr(PABEE, "version", 2)
    assert "'method': 2" in check_cell("pabee", golden, other_numbers)
    assert write_cell("pabee", golden, other_numbers) == "written"
    assert check_cell("pabee", golden, other_numbers) is None


def test_a_version_that_falls_is_refused(golden, other_numbers, monkeypatch):
    monkeypatch.setattr(PABEE, "version", 0)
    with pytest.raises(UserError, match="Write it"):
        write_cell("pabee", golden, other_numbers)


def test_a_file_that_is_no_cell_is_named(tmp_path):
    (tmp_path / "pabee.json").write_text("{}")
    with pytest.raises(UserError, match=r"pabee\.json is not a golden cell"):
        read_cell(tmp_path / "pabee.json")
