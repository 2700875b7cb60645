"""A saved model in three lines: what it says is what the engines say."""

import re

import pytest
from typer.testing import CliRunner

import consistentee as ee
from benchmarks.cli import app
from benchmarks.testing.tiny import random_prompts, random_texts
from consistentee.errors import UserError


def saved(model, folder, method, knob=None, **description):
    model.description.method_name = method
    model.description.default_knob = knob
    for name, value in description.items():
        setattr(model.description, name, value)
    model.save_pretrained(folder)
    return folder


def test_a_classifier_answers_as_classify_does(tiny_model, tmp_path):
    names = ("red", "green", "blue")
    folder = saved(tiny_model("bert"), tmp_path / "model", "calm-softmax", 0.5, label_names=names)
    texts = random_texts(12)
    classifier = ee.pipeline(str(folder), knob=0.41)
    model = ee.MultiExitModel.from_pretrained(folder)
    found = ee.classify(model, texts, ee.get_method("calm-softmax").rule(model, 0.41))
    answers = classifier(texts)
    assert [answer["label"] for answer in answers] == [names[label] for label in found.predictions.tolist()]
    assert [answer["exit_layer"] for answer in answers] == found.exit_layers.tolist()
    assert [answer["score"] for answer in answers] == found.logits.softmax(dim=-1).amax(dim=-1).tolist()
    assert len(set(found.exit_layers.tolist())) > 1
    loaded, method, knob = ee.load(folder)
    assert (type(loaded), method, knob) == (ee.MultiExitModel, ee.get_method("calm-softmax"), 0.5)
    assert ee.pipeline(folder)(texts) != answers  # the stored knob is another one
    assert classifier(texts[0])[0].keys() == {"label", "score", "exit_layer"}
    assert len(classifier(("w1", "w2"))) == 1


def test_a_writer_goes_on_as_generate_does(tiny_decoder, tmp_path):
    folder = saved(tiny_decoder("llama"), tmp_path / "model", "calm-tokens-softmax", 0.8)
    prompts = random_prompts(4)
    answers = ee.pipeline(folder)(prompts, max_new_tokens=6)
    model = ee.MultiExitDecoder.from_pretrained(folder)
    found = ee.generate(model, prompts, ee.get_method("calm-tokens-softmax").rule(model, 0.8), max_new_tokens=6)
    assert [answer["generated_text"] for answer in answers] == [
        prompt + text for prompt, text in zip(prompts, found.texts, strict=True)
    ]
    assert ee.load(folder, knob=0.7)[1:] == (ee.get_method("calm-tokens-softmax"), 0.7)
    assert [answer["exit_layers"] for answer in answers] == [layers.tolist() for layers in found.exit_layers]
    assert ee.pipeline(folder)(prompts[0], max_new_tokens=6) == answers[:1]


@pytest.mark.parametrize("command", ["predict", "generate"])
def test_code_of_a_saved_method_runs_only_if_allowed(command, tiny_model, tiny_decoder, tmp_path):
    ran, code = tmp_path / "ran", tmp_path / "evil.py"
    code.write_text(f"open({str(ran)!r}, 'w')")
    model = tiny_model("bert") if command == "predict" else tiny_decoder("llama")
    folder = saved(model, tmp_path / "model", f"{code}:Evil", 0.5)
    refusal = (
        f"names a method in {folder / 'method' / 'evil.py'}, and that file was not run; .*--allow-code.*allow_code=True"
    )
    with pytest.raises(UserError, match=refusal):
        ee.pipeline(folder)
    done = CliRunner().invoke(app, [command, str(folder), "w1"], env={"COLUMNS": "500"})
    assert done.exit_code == 2
    assert re.search(refusal, done.output)
    assert not ran.exists()
    with pytest.raises(UserError, match="unknown class in"):
        ee.pipeline(folder, allow_code=True)
    assert ran.exists()
