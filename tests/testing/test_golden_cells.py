"""No number changes unnoticed (DESIGN, "What must always hold", 8): golden cells, and planted faults that they catch.

If a cell differs: fix what broke; or raise the method's version, explain it in docs/versions.md, and write its cell
again, ``pytest tests/testing/test_golden_cells.py --write-golden -k METHOD``.
"""

from dataclasses import replace

import pytest
from golden_cells import FOLDER, Golden, all_methods, check_cell, differences, read_cell, write_cell
from torch import nn

from baselines.pabee import PABEE
from benchmarks.testing import cases
from consistentee.backbones.decoders import GPT2Stepper, LlamaStepper
from consistentee.errors import UserError
from consistentee.rules.exit_rule import ThresholdRule


@pytest.fixture(scope="session")
def golden(tmp_path_factory):
    return Golden(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", all_methods())
def test_no_number_changed_without_a_version(golden, name, pytestconfig):
    if pytestconfig.getoption("write_golden"):
        write_cell(name, golden)
    message = check_cell(name, golden)
    assert not message, message


def test_there_is_no_cell_without_a_method():
    assert sorted(path.stem for path in FOLDER.iterdir()) == all_methods()


# ---------------------------------------------------------------------------------------------- faults that are caught


@pytest.fixture
def found(golden):
    """Return a function: method -> the differences between its golden cell and the code as it is now."""

    def compare(name: str) -> str:
        held = read_cell(name)
        return "\n".join(differences(held, golden.compute(name, held)))

    return compare


@pytest.mark.parametrize("name", ["calm-softmax", "deebert"])
def test_a_threshold_that_may_be_met(found, monkeypatch, name):
    def should_exit(self, view, state):
        value = self.signal(view)
        return value >= self.threshold if self.exit_when == "above" else value <= self.threshold

    monkeypatch.setattr(ThresholdRule, "should_exit", should_exit)
    assert "row 21 is 1:" in found(name)  # the first of the certain rows


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


def test_changed_numbers_are_written_once_the_version_is_raised(golden, tmp_path, monkeypatch):
    assert check_cell("pabee", golden, tmp_path).startswith("pabee has no golden cell yet. Write it: pytest ")
    write_cell("pabee", golden, tmp_path)
    assert not list(differences(read_cell("pabee"), read_cell("pabee", tmp_path)))
    path = tmp_path / "pabee.json"
    changed = (FOLDER / "pabee.json").read_text().replace('"1.0": "', '"1.0": "9:')
    path.write_text(changed)
    with pytest.raises(UserError, match="no version was raised") as refusal:
        write_cell("pabee", golden, tmp_path)
    assert "bert, knob 1: row 1 is 4:0, golden: 9:4:0" in str(refusal.value)
    assert "PABEE.version" in str(refusal.value)
    monkeypatch.setattr(PABEE, "version", 0)
    with pytest.raises(UserError, match="Write it"):
        write_cell("pabee", golden, tmp_path)
    assert path.read_text() == changed
    monkeypatch.setattr(PABEE, "version", 2)
    write_cell("pabee", golden, tmp_path)
    assert not check_cell("pabee", golden, tmp_path)
