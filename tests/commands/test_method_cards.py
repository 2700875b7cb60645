"""Method cards: found out on a tiny model, for the project's methods and for anybody's, broken ones too."""

import re
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from benchmarks.cli import app
from benchmarks.commands.method_cards import MethodCard, method_card, stated_card
from benchmarks.commands.new_method import write_method
from consistentee.methods.method import get_method


@pytest.fixture
def card(tiny_models, tiny_decoders) -> Callable[[str], MethodCard]:
    return lambda name: method_card(name, get_method(name), tiny_models, tiny_decoders)


def test_a_card_says_what_is_trained_added_and_read(card):
    berxit = card("berxit")
    assert (berxit.paper, berxit.year) == ("Xin et al., BERxiT, EACL 2021", "2021")
    assert berxit.trains == "backbone, classifiers, poolers, head uncertainty"
    assert berxit.extra_parameters == 768 + 1
    assert berxit.reads == "head uncertainty"
    assert berxit.knob == "uncertainty, 1 to 0 (75 values, L = 4)"
    assert berxit.supports == "single texts, pairs"
    assert berxit.what == "Alternating training, learning-to-exit rule."


def test_extra_parameters_are_those_of_bert_base(card):
    assert card("calm-softmax").extra_parameters == 0
    assert card("deebert").extra_parameters == 11 * (768 * 768 + 768)  # a pooler for every off-ramp


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("full", "nothing"),
        ("random", "a hash of the tokens"),
        ("calm-state", "the pooled vector"),
        ("calm-softmax", "the classifier"),
        ("consistentee", "the classifier, head policy"),
        ("oracle", "the classifier, the true labels"),
    ],
)
def test_what_a_rule_reads_is_what_it_asks_for(card, name, reads):
    assert card(name).reads == reads


def test_one_classifier_alone_is_named(card):
    assert "the classifier of layer 4" in card("full").trains


def test_what_a_class_says_of_itself_costs_no_training():
    stated = stated_card("pabee", get_method("pabee"))
    assert (stated.year, stated.knob, stated.extra_parameters) == ("2020", "patience", None)
    assert {stated.trains, stated.reads, stated.supports} == {"could not be found out"}


def test_kinds_of_tasks(card):
    assert card("pabee").supports == "single texts, pairs, regression"
    assert card("oracle").supports == "single texts, pairs; replayed on a trace only"


def test_a_method_that_fails_says_so_on_its_card(tmp_path, card):
    name = write_method("gate", tmp_path)
    path = tmp_path / "gate.py"
    path.write_text(path.read_text().replace("rows = cached_rows", "rows = 1 / 0, cached_rows"))
    broken = card(name)
    assert "could not be found out: fit() fails: ZeroDivisionError: division by zero (gate.py, line" in broken.trains
    assert broken.extra_parameters is None
    assert broken.paper == "unpublished"


def test_a_rule_that_reads_more_at_some_layers(tmp_path, card):
    name = write_method("gate", tmp_path)
    path = tmp_path / "gate.py"
    late = 'ThresholdRule(lambda v: v.head("gate") if v.layer > 1 else v.logits.amax(-1) - 9e9, knob, "above")'
    path.write_text(path.read_text().replace('ThresholdRule(head_probability("gate"), knob, exit_when="above")', late))
    assert card(name).reads == "the classifier at layer 1; head gate at layers 2 to 3"


@pytest.mark.parametrize(
    ("name", "trains", "extra", "reads"),
    [
        ("token-full", "nothing", 0, "nothing"),
        ("calm-tokens-softmax", "exit adapters", 0, "the LM head"),
        ("calm-tokens-state", "exit adapters", 0, "the hidden state"),
        ("calm-tokens-classifier", "exit adapters, head confidence", 576 + 1, "head confidence"),
        ("token-random", "exit adapters", 0, "a hash of the prompt and the place"),
    ],
)
def test_a_card_of_generation(card, name, trains, extra, reads):
    found = card(name)
    assert (found.trains, found.extra_parameters, found.reads) == (trains, extra, reads)
    assert found.supports == "generation; keys and values of skipped layers are propagated"
    assert "SmolLM2-135M" in found.counted_on


def test_a_method_that_decodes_in_its_own_way_says_so(card):
    assert card("layerskip").supports == "generation, in a way of its own"


def test_branches_are_counted_on_a_card(card):
    """A layer of SmolLM2-135M has 3,540,096 weights, 884,736 of them in its attention; a norm has 576."""
    balcony, kangaroo = card("balcony"), card("kangaroo")
    assert (balcony.trains, kangaroo.trains) == ("branches", "branches")
    assert balcony.extra_parameters == 4 * (3_540_096 + 576)
    assert kangaroo.extra_parameters == 4 * (884_736 + 2 * 576)
    assert balcony.supports == "generation, by a decoder of its own for every value of the knob"


def test_the_command_shows_cards_of_files_and_of_broken_ones(tmp_path, monkeypatch):
    from benchmarks.commands import inventory

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inventory, "available_methods", lambda group="": ["token-static"] if group else [])
    write_method("gate")
    (tmp_path / "broken.py").write_text("raise SystemExit(1)")
    done = CliRunner().invoke(app, ["list", "methods", "--detail", "--methods", "gate.py", "broken.py"])
    assert done.exit_code == 0, done.output
    assert "head gate" in done.output
    assert re.search(r"token-static.*generation; keys and values", done.output, re.DOTALL)
    assert "broken.py: unavailable: broken.py cannot be imported: SystemExit: 1" in done.output
