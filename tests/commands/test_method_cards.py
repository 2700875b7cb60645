"""Method cards: read from the classes of the project's methods and of anybody's, broken ones too."""

import pytest
from typer.testing import CliRunner

from benchmarks.cli import app
from benchmarks.commands import inventory
from benchmarks.commands.own_methods import write_method
from consistentee.methods.method import available_methods, method_class_of


def card(name: str) -> dict[str, str]:
    return inventory.method_card(method_class_of(name))


def test_a_card_has_the_words_of_the_class():
    assert card("berxit") == {
        "what": "Alternating training, learning-to-exit or confidence rule.",
        "paper": "Xin et al., BERxiT, EACL 2021",
        "version": "1",
        "training": "Train backbone, classifiers and the guess in one stage, whose steps alternate.",
        "rule": "Exit where the uncertainty is below knob.",
        "knob": "uncertainty, 1 to 0 (75 values)",
        "parameters": "exit_when='sure'",
    }
    assert card("pabee")["knob"].endswith(", adapted to the model")


@pytest.mark.parametrize("group", ["consistentee.methods", "consistentee.token_methods"])
def test_every_method_says_how_it_trains_and_exits(group):
    cards = {name: card(name) for name in available_methods(group)}
    assert {name for name, found in cards.items() if not {"what", "training", "rule"} <= found.keys()} == set()


def test_the_command_shows_cards_of_files_and_of_broken_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inventory, "available_methods", lambda group="": ["token-static"] if group else [])
    write_method("gate")
    (tmp_path / "broken.py").write_text("raise SystemExit(1)")
    done = CliRunner().invoke(app, ["list", "methods", "--detail", "--methods", "gate.py", "broken.py"])
    assert done.exit_code == 0, done.output
    for text in ("gate.py:Gate", "unpublished", "token-static", "broken.py cannot be imported: SystemExit: 1"):
        assert text in done.output
