"""One model outside a suite: ``consistentee train``, ``predict``, ``risk`` and ``generate``."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from command_line import call, succeed
from safetensors.torch import load_file
from small_suite import write_task, write_text_task

from benchmarks.commands import train
from benchmarks.kinds.classification import Classification
from consistentee.models import classifiers
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.encoder import ModelDescription
from consistentee.progress import Position
from consistentee.training.recipe import RecipeSettings, TokenRecipeSettings

QUICK = ("--set", "epochs=1", "max_length=16", "max_rows=60")


@pytest.fixture(scope="module")
def task_file(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("task"), "toy")


@pytest.fixture(scope="module")
def trained(task_file, tiny_backbone, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "toy"
    options = ("--method", "pabee", "--backbone", tiny_backbone("bert"), "--out", out)
    done = succeed("train", task_file, *options, *QUICK)
    assert done.output.count("saved") == 2, "the line of the saved knob, and the title"
    assert "saved in" in done.output
    return out


def test_predict_shows_label_probability_layer_and_time(trained):
    done = succeed("predict", trained, "w1 w2 w3", "w55 [bold]w56")
    lines = [line.split() for line in done.output.splitlines() if line.strip().startswith("w")]
    assert len(lines) == 2
    assert "[bold]w56" in done.output  # texts are shown as they are, never read as markup
    label, probability, layer, milliseconds = lines[0][-4:]
    assert label in ModelDescription.read(trained).label_names
    assert 0.3 <= float(probability) <= 1
    assert 1 <= int(layer) <= 4
    assert float(milliseconds) > 0
    assert "patience=3" in call("predict", trained, "w1", "--knob", "3").output


METHOD_WITH_A_KIND = """
from consistentee.models.classifiers import CLASSIFIER_KINDS, ClassifierSpec, LinearClassifier
from consistentee.methods.method import method_class_of

CLASSIFIER_KINDS["mine"] = LinearClassifier

class Patient(method_class_of("pabee")):
    def fit(self, model, task, recipe):
        model.use_classifier(ClassifierSpec("mine"), recipe.seed)
        return super().fit(model, task, recipe)
"""


def test_predict_loads_a_method_with_its_own_kind_of_classifier(task_file, tiny_backbone, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(METHOD_WITH_A_KIND)
    shipped = dict(classifiers.CLASSIFIER_KINDS)
    monkeypatch.setattr(classifiers, "CLASSIFIER_KINDS", dict(shipped))
    options = ("--method", f"{tmp_path}/mine.py:Patient", "--backbone", tiny_backbone("bert"))
    assert "--allow-code" in succeed("train", task_file, *options, "--out", tmp_path / "model", *QUICK).output
    monkeypatch.setattr(classifiers, "CLASSIFIER_KINDS", shipped)  # as in a new process
    assert call("predict", tmp_path / "model", "w1 w2").exit_code == 2
    assert "w1 w2" in succeed("predict", tmp_path / "model", "w1 w2", "--allow-code").output


def test_risk_control_chooses_the_stored_knob(task_file, tiny_backbone, tmp_path):
    """Nothing can be proven of the few validation rows at 1 %; at 90 % anything can."""
    options = ("--method", "calm-softmax", "--backbone", tiny_backbone("bert"), "--param", "classifier=linear")
    options += (*QUICK, "--out", tmp_path / "model")
    done = succeed("train", task_file, *options, "--risk", "0.01")
    assert "no early exit is proven" in " ".join(done.output.split())  # lines break where the console ends
    assert ModelDescription.read(tmp_path / "model").default_knob == 1.0
    done = succeed("train", task_file, *options, "--risk", "0.9")
    assert "at most 90.00% of points lost" in " ".join(done.output.split())
    assert ModelDescription.read(tmp_path / "model").default_knob < 1.0
    done = call("train", task_file, *options, "--risk", "2")
    assert (done.exit_code, "between 0 and 1" in done.output) == (2, True)
    done = call("train", task_file, "--method", "consistentee-held-out", "--out", tmp_path / "other", "--risk", "0.1")
    assert (done.exit_code, "learns from validation rows" in done.output) == (2, True)


def test_the_help_of_train_names_every_setting():
    shown = call("train", "--help").output
    for declared in (RecipeSettings, TokenRecipeSettings):
        assert all(f"{field.name}=" in shown for field in dataclasses.fields(declared))
        assert all(field.description for field in declared.__pydantic_fields__.values()), "every setting is explained"
    for line in ("epochs=3", "precision=float32|bfloat16|auto", "max_rows=1000", "group_by_length=false"):
        assert line in shown


# ---------------------------------------------------------------------------------------------- interruptions

_DIES_IN_ITS_SECOND_STAGE = """
import os, signal
from benchmarks.cli import main
from benchmarks.commands import train
def die(position):
    if position.stage == "training off-ramps":
        os.kill(os.getpid(), signal.SIGKILL)
train.throttled = lambda *_: die
main()
"""


@pytest.fixture(scope="module")
def deebert(task_file, tiny_backbone):
    """The arguments of a training of two stages, of which methods share the first."""
    options = ("--method", "deebert", "--backbone", tiny_backbone("bert"), *QUICK, "frozen_steps=9", "batch_size=8")
    return ("train", task_file, *options)


@pytest.fixture(scope="module")
def straight(deebert, tmp_path_factory):
    """The folder of a model whose training nothing interrupted."""
    folder = tmp_path_factory.mktemp("straight") / "model"
    done = succeed(*deebert, "--out", folder)
    assert "training last-exit, step 0 of" in done.stderr
    assert "training off-ramps, step 0 of" in done.stderr
    return folder


def weights_of(folder):
    return {name: tensor.tolist() for name, tensor in load_file(folder / "model.safetensors").items()}


def test_a_training_killed_between_stages_ends_with_the_same_model(deebert, straight, tmp_path):
    command = [sys.executable, "-c", _DIES_IN_ITS_SECOND_STAGE, *deebert, "--out", tmp_path / "killed"]
    environment = {**os.environ, "CONSISTENTEE_DATA": ""}
    killed = subprocess.run(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    other = call(*deebert, "epochs=2", "--out", tmp_path / "killed", "--risk", "7")
    assert other.exit_code == 2, "what is wrong is refused as ever"
    resumed = succeed(*deebert, "--out", tmp_path / "killed")
    assert "continuing the interrupted training" in resumed.stderr
    assert "training last-exit" not in resumed.stderr
    assert "training off-ramps, step 0 of" in resumed.stderr
    assert weights_of(tmp_path / "killed") == weights_of(straight)
    assert ModelDescription.read(tmp_path / "killed") == ModelDescription.read(straight), "the knob is the same, too"
    assert not (tmp_path / "killed" / train.UNFINISHED).exists()


def test_ctrl_c_names_what_is_kept_and_other_settings_begin_anew(deebert, tmp_path, monkeypatch):
    out = tmp_path / "model"
    with monkeypatch.context() as patch:
        patch.setattr(Classification, "evaluate", Mock(side_effect=KeyboardInterrupt))
        late = call(*deebert, "--out", out)
    assert late.exit_code == 130
    kept = f"finished stages and checkpoints are kept in {out / train.UNFINISHED}; the same command continues"
    assert f"interrupted: {kept}" in late.stderr
    assert call("predict", out, "w1").exit_code == 2, "there is no model yet"
    other = succeed(*deebert, "frozen_steps=12", "--out", out)
    assert "continuing" not in other.stderr
    succeed("predict", out, "w1")


def test_ctrl_c_keeps_the_step_that_was_reached(deebert, straight, tmp_path, monkeypatch):
    def interrupt_after_the_first_step(position: Position) -> None:
        if (position.stage, position.done) == ("training last-exit", 1):
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(train, "throttled", lambda *_: interrupt_after_the_first_step)
        ended = call(*deebert, "--out", tmp_path / "model")
    assert ended.exit_code == 130, ended.stderr
    assert "ending after this step; Ctrl-C again ends at once" in ended.stderr
    assert "the same command continues" in ended.stderr
    resumed = succeed(*deebert, "--out", tmp_path / "model")
    assert "training last-exit, step 2 of" in resumed.stderr
    assert weights_of(tmp_path / "model") == weights_of(straight)


@pytest.mark.parametrize("place", ["/proc/x", "/dev/null/x", "task.yaml/x"])
def test_a_folder_that_cannot_be_written_is_refused_before_training(deebert, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.yaml").write_text("")
    refused = call(*deebert, "--out", place)
    assert (refused.exit_code, refused.output.count("\n")) == (2, 1), refused.output
    assert f"cannot write to {place}" in refused.output


def test_tables_and_data_sets_of_the_page_are_tasks(tmp_path, tiny_backbone):
    rows = [f'"w{i} w{i + 1}, w{i + 2}",{"good" if i % 2 else "bad"}' for i in range(60)]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label", *rows]))
    checked = succeed("check-task", tmp_path / "reviews.csv")
    assert "text from 'text', label from 'label'" in " ".join(checked.output.split())
    model = ("--backbone", tiny_backbone("bert"), "--out", tmp_path / "model")
    done = succeed("train", tmp_path / "reviews.csv", "--method", "deebert", *model, *QUICK, "frozen_steps=9")
    assert "deebert on reviews" in done.output


# ---------------------------------------------------------------------------------------------- decoders


RECIPE = ["--set", "exit_steps=3", "exit_batch_size=8", "head_steps=3", "head_tokens=32"]


@pytest.fixture(scope="module")
def text_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def trained_decoder(
    text_task: Path, tiny_decoder_backbone: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("trained") / "decoder"
    options = ("--method", "consistentee-tokens", "--backbone", tiny_decoder_backbone("llama"), *RECIPE, "--out", out)
    result = succeed("train", text_task, *options)
    assert "agreement" in result.output
    assert str(out) in "".join(result.output.split())  # a long path is broken over lines
    return out


def plain_tokens(line: str) -> list[tuple[str, int]]:
    return [(text, int(layer)) for text, layer in re.findall(r"(.*?)/(\d+)", line)]


def test_piped_text_is_tokens_with_their_layers(trained_decoder):
    result = succeed("generate", trained_decoder, "ba be", "bi", "--max-new-tokens", 5, "--knob", 0.5)
    model = MultiExitDecoder.from_pretrained(trained_decoder)
    assert (model.description.method_name, model.description.task_name) == ("consistentee-tokens", "toy-text")
    first, second = result.stdout.splitlines()
    for line in (first, second):
        tokens = plain_tokens(line)
        assert 1 <= len(tokens) <= 5
        assert tokens[0][1] == model.num_layers, "the first token is given by the prompt, at full depth"
        assert {layer for _, layer in tokens} <= set(range(1, 5))
    assert "tokens/s" in result.stderr
    assert "consistentee-tokens, threshold=0.5" in result.stderr


def test_end_of_a_long_prompt_stays(trained_decoder):
    long, options = "ba be bi " * 60, ["--max-new-tokens", 3, "--knob", 1.0]
    assert "cut it with max_prompt_tokens" in call("generate", trained_decoder, long, *options).output
    result = succeed("generate", trained_decoder, long, "--max-prompt-tokens", 7, *options)
    model = MultiExitDecoder.from_pretrained(trained_decoder)
    end = torch.tensor(model.encode([long], max_tokens=7, keep="end"))
    stock = model.backbone.generate(end, max_new_tokens=3, do_sample=False, pad_token_id=1)
    assert "".join(text for text, _ in plain_tokens(result.stdout)) == model.decode(stock[0, 7:])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "classifier", "w1", "--knob", "77"], "must lie in"),
        (["predict", "classifier", "w1", ""], "an empty text"),
        (["predict", "classifier", "w1", "--file", "rows.csv"], "not both"),
        (["predict", "decoder", "w1"], "holds a decoder"),
        (["generate", "decoder", "ba", "--knob", "7"], "the knob 'threshold' must lie in"),
        (["generate", "decoder", ""], "is empty"),
        (["generate", "decoder", "ba", "--max-new-tokens", "5000"], "than the 128 that the model reads at once"),
        (["generate", "classifier", "ba"], "holds a model of classification"),
        (["generate", "nothing", "ba"], "is not a saved multi-exit decoder"),
    ],
)
def test_faults_of_one_model_are_named_in_one_sentence(trained, trained_decoder, tmp_path, words, message):
    folders = {"classifier": trained, "decoder": trained_decoder, "nothing": tmp_path}
    done = call(*(folders.get(word, word) for word in words))
    assert (done.exit_code, done.output.count("\n")) == (2, 1), done.output
    assert message in done.output


def test_faults_of_train(text_task, tiny_decoder_backbone, tmp_path):
    places = ("--backbone", tiny_decoder_backbone("llama"), "--out", tmp_path / "o")

    def train(*options: object, method: str = "consistentee-tokens"):
        result = call("train", text_task, "--method", method, *places, *options)
        assert result.exit_code == 2
        return result.output

    assert "--set exit_learning_rate: Input should be greater than 0" in train("--set", "exit_learning_rate=-1")
    assert "deebert answers with labels, and task 'toy-text' asks for texts" in train(method="deebert")
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "notes.txt").write_text("mine")
    assert "holds other files than a trained model" in train()
