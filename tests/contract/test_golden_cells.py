"""No number moves in silence (DESIGN, "What must always hold", 8): golden cells, and faults planted to be caught.

On a difference: mend what broke; or raise the method's version, say so in docs/versions.md, and write its cell anew,
``python -m benchmarks.contract.golden METHOD``.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from baselines.pabee import PABEE
from benchmarks.contract.golden import rows as golden_rows
from benchmarks.contract.golden.computing import Golden, draws_alike
from benchmarks.contract.golden.differences import differences
from benchmarks.contract.golden.files import FOLDER, all_methods, cell_path, check_cell, read_cell, write_cell
from consistentee.backbones.decoders import GPT2Stepper, LlamaStepper
from consistentee.errors import UserError
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.models.heads import ExitHeads
from consistentee.rules.exit_rule import ConsecutiveRule, ThresholdRule
from consistentee.traces.instance_trace import Trace

pytestmark = pytest.mark.skipif(not draws_alike(), reason="golden cells are of an x86 CPU alone")


@pytest.fixture(scope="session")
def golden(tmp_path_factory):
    return Golden(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", all_methods())
def test_no_number_moved_without_a_version(golden, name):
    message = check_cell(name, golden)
    assert message is None, message


# ---------------------------------------------------------------------------------------------- what is committed


def test_there_is_no_cell_without_a_method():
    assert sorted(path.stem for path in FOLDER.iterdir()) == all_methods()


@pytest.mark.parametrize("name", all_methods())
def test_most_decisions_are_firm(name):
    knobs = [knob for family in read_cell(name).families.values() for knob in family.knobs]
    firm = sum(sum(knob.rows.firm) for knob in knobs)
    assert firm >= 0.8 * sum(len(row) for knob in knobs for row in knob.rows.rows)


# ---------------------------------------------------------------------------------------------- faults that are caught


@pytest.fixture
def moved(golden):
    """Return a function: method -> what its golden cell says of the code as it now is."""

    def say(name: str) -> str:
        held = read_cell(name)
        return "\n".join(differences(held, golden.compute_again(held)))

    return say


def test_patience_that_must_be_exceeded(moved, monkeypatch):
    def should_exit(self, view, state):
        wants_out = self.rule.should_exit(view, state)
        state["consecutive"] = torch.where(wants_out, state["consecutive"] + 1, 0)
        return state["consecutive"] > self.patience

    monkeypatch.setattr(ConsecutiveRule, "should_exit", should_exit)
    assert "bert, knob 1: row 1 leaves at layer" in moved("pabee")
    assert "llama, knob 1: row 6, token 2 leaves at layer 4" in moved("token-patience")


@pytest.mark.parametrize("name", ["calm-softmax", "deebert"])
def test_a_threshold_that_may_be_met(moved, monkeypatch, name):
    def should_exit(self, view, state):
        value = self.signal(view)
        return value >= self.threshold if self.exit_when == "above" else value <= self.threshold

    monkeypatch.setattr(ThresholdRule, "should_exit", should_exit)
    assert "certain row 1 leaves at layer 1" in moved(name)


def test_exit_layers_off_by_one(moved, monkeypatch):
    true_sweep = golden_rows.sweep
    off = lambda rules, trace: (true_sweep(rules, trace) + 1).clamp_max(trace.num_layers)  # noqa: E731
    monkeypatch.setattr(golden_rows, "sweep", off)
    assert "bert, knob 1: row 1 leaves at layer 2" in moved("static")


def test_views_of_the_layer_after(moved, monkeypatch):
    true_view = Trace.view
    monkeypatch.setattr(Trace, "view", lambda self, layer: true_view(self, layer + 1))
    assert "row" in moved("calm-softmax")


def test_classifiers_of_the_layer_after(moved, monkeypatch):
    true_classifier = MultiExitModel.classifier
    after = lambda self, layer: true_classifier(self, min(layer + 1, self.num_layers))  # noqa: E731
    monkeypatch.setattr(MultiExitModel, "classifier", after)
    assert "bert, logits: mean absolute values" in moved("deebert")


@pytest.mark.parametrize("name", ["consistentee", "consistentee-tokens"])
def test_heads_of_the_layer_after(moved, monkeypatch, name):
    true_forward = ExitHeads.forward

    def forward(self, layer, pooled, extra=None):
        return true_forward(self, min(layer + 1, self.num_layers), pooled, extra)

    monkeypatch.setattr(ExitHeads, "forward", forward)
    assert "leaves at layer" in moved(name)


@pytest.mark.parametrize(
    ("stepper", "norm", "family"), [(LlamaStepper, "input_layernorm", "llama"), (GPT2Stepper, "ln_1", "gpt2")]
)
def test_states_propagated_without_the_input_norm(moved, monkeypatch, stepper, norm, family):
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
    found = moved("calm-tokens-softmax")
    assert all(line.startswith(f"{family}, knob") for line in found.splitlines())
    assert "leaves at layer" in found


@pytest.mark.parametrize(("name", "part"), [("pabee", "logits"), ("calm-classifier", "head:confidence")])
def test_training_that_gives_other_weights(moved, monkeypatch, name, part):
    recipe = golden_rows.RECIPE
    rates = {name: 1.02 * getattr(recipe, name) for name in ("learning_rate", "frozen_learning_rate")}
    monkeypatch.setattr(golden_rows, "RECIPE", replace(recipe, **rates))
    assert f"bert, {part}: mean absolute" in moved(name)


# ---------------------------------------------------------------------------------------------- files and versions


def test_a_method_without_a_cell_is_told_the_command(golden, tmp_path):
    message = check_cell("pabee", golden, tmp_path)
    assert message == "pabee has no golden cell yet. Write it: python -m benchmarks.contract.golden pabee"
    assert write_cell("pabee", golden, tmp_path) == "written"
    assert check_cell("pabee", golden, tmp_path) is None


def test_cells_whose_numbers_stand_are_left_alone(golden, tmp_path):
    text = cell_path("pabee").read_text(encoding="utf-8").replace('"torch": "', '"torch": "0.')
    cell_path("pabee", tmp_path).write_text(text, encoding="utf-8")
    assert write_cell("pabee", golden, tmp_path) == "as it was"
    assert cell_path("pabee", tmp_path).read_text(encoding="utf-8") == text


@pytest.fixture
def other_numbers(tmp_path):
    """Return a folder with a cell of PABEE, where row 1 of BERT leaves elsewhere at the first knob."""
    cell = read_cell("pabee").model_dump()
    cell["families"]["bert"]["knobs"][0]["rows"]["layers"][0] = [4]
    path = cell_path("pabee", tmp_path)
    path.write_text(type(read_cell("pabee")).model_validate(cell).model_dump_json(), encoding="utf-8")
    return tmp_path


def test_moved_numbers_are_told_row_by_row_and_what_to_do(golden, other_numbers):
    lines = check_cell("pabee", golden, other_numbers).splitlines()
    assert lines[0] == "pabee: numbers moved, and no version was raised."
    assert lines[1].startswith("  bert, knob 1: row 1 leaves at layer 2 with answer 0, golden: leaves at layer 4 with")
    assert "raise PABEE.version" in lines[2]
    assert "docs/versions.md" in lines[3]
    assert lines[3].endswith("python -m benchmarks.contract.golden pabee")


def test_moved_numbers_are_written_once_the_version_is_raised(golden, other_numbers, monkeypatch):
    before = cell_path("pabee", other_numbers).read_text(encoding="utf-8")
    with pytest.raises(UserError, match="no version was raised"):
        write_cell("pabee", golden, other_numbers)
    assert cell_path("pabee", other_numbers).read_text(encoding="utf-8") == before
    monkeypatch.setattr(PABEE, "version", 2)
    message = check_cell("pabee", golden, other_numbers)
    assert "pabee is at version method 2, engine 1, training 1, its golden cell at version method 1, " in message
    assert write_cell("pabee", golden, other_numbers) == "written"
    assert check_cell("pabee", golden, other_numbers) is None


def test_a_version_that_falls_is_refused(golden, other_numbers, monkeypatch):
    monkeypatch.setattr(PABEE, "version", 0)
    assert "Write it anew" in check_cell("pabee", golden, other_numbers)
    with pytest.raises(UserError, match="no version was raised"):
        write_cell("pabee", golden, other_numbers)


def test_a_file_that_is_no_cell_is_named(tmp_path):
    cell_path("pabee", tmp_path).write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"pabee\.json is not a golden cell"):
        read_cell("pabee", tmp_path)
