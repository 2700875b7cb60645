"""One decoder outside a suite: ``consistentee train`` on a task of texts, and ``consistentee generate``."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import call
from small_suite import write_text_task

from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder

RECIPE = ["--set", "exit_steps=3", "exit_batch_size=8", "head_steps=3", "head_tokens=32"]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def backbone(tiny_decoder_backbone: Callable[..., Path]) -> Path:
    return tiny_decoder_backbone("llama")


@pytest.fixture(scope="module")
def trained(task: Path, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "decoder"
    result = call("train", task, "--method", "consistentee-tokens", "--backbone", backbone, *RECIPE, "--out", out)
    assert result.exit_code == 0, result.output
    assert "agreement" in result.output
    assert str(out) in "".join(result.output.split())  # a long path is broken over lines
    return out


def plain_tokens(line: str) -> list[tuple[str, int]]:
    return [(text, int(layer)) for text, layer in re.findall(r"(.*?)/(\d+)", line)]


def test_piped_text_is_tokens_with_their_layers(trained):
    result = call("generate", trained, "ba be", "bi", "--max-new-tokens", 5, "--knob", 0.5)
    assert result.exit_code == 0, result.output
    model = MultiExitDecoder.from_pretrained(trained)
    assert (model.description.method_name, model.description.task_name) == ("consistentee-tokens", "toy-text")
    first, second = result.stdout.splitlines()
    for line in (first, second):
        tokens = plain_tokens(line)
        assert 1 <= len(tokens) <= 5
        assert tokens[0][1] == model.num_layers, "the first token is given by the prompt, at full depth"
        assert {layer for _, layer in tokens} <= set(range(1, 5))
    assert "tokens/s" in result.stderr
    assert "consistentee-tokens, threshold=0.5" in result.stderr


def test_end_of_a_long_prompt_stays(trained):
    long, options = "ba be bi " * 60, ["--max-new-tokens", 3, "--knob", 1.0]
    assert "cut it with max_prompt_tokens" in call("generate", trained, long, *options).output
    result = call("generate", trained, long, "--max-prompt-tokens", 7, *options)
    assert result.exit_code == 0, result.output
    model = MultiExitDecoder.from_pretrained(trained)
    end = torch.tensor(model.encode([long], max_tokens=7, keep="end"))
    stock = model.backbone.generate(end, max_new_tokens=3, do_sample=False, pad_token_id=1)
    assert "".join(text for text, _ in plain_tokens(result.stdout)) == model.decode(stock[0, 7:])


def test_faults_of_generate(trained):
    for arguments, message in (
        (["ba", "--knob", "7"], "the knob 'threshold' must lie in"),
        ([""], "is empty"),
        (["ba", "--max-new-tokens", "5000"], "than the 128 that the model reads at once"),
    ):
        result = call("generate", trained, *arguments)
        assert (result.exit_code, message in result.output) == (2, True)


def test_folders_of_other_models_are_refused(trained, tmp_path):
    (tmp_path / "multi_exit.json").write_text("{}")
    for command, folder, message in (
        ("generate", tmp_path, "holds a model of classification"),
        ("predict", trained, "holds a decoder"),
        ("generate", tmp_path.parent, "is not a saved multi-exit decoder"),
    ):
        result = call(command, folder, "ba")
        assert result.exit_code == 2
        assert message in result.output
        assert result.output.count("\n") == 1


def test_faults_of_train(task, backbone, tmp_path):
    def train(*options: object, method: str = "consistentee-tokens"):
        result = call("train", task, "--method", method, "--backbone", backbone, "--out", tmp_path / "o", *options)
        assert result.exit_code == 2
        return result.output

    assert "--set exit_learning_rate: Input should be greater than 0" in train("--set", "exit_learning_rate=-1")
    assert "deebert answers with labels, and task 'toy-text' asks for texts" in train(method="deebert")
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "notes.txt").write_text("mine")
    assert "holds other files than a trained model" in train()
