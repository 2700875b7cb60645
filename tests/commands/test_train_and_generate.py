"""One decoder outside a suite: ``consistentee train`` on a task of texts, and ``consistentee generate``."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from small_generation_suite import write_text_task
from typer.testing import CliRunner

from benchmarks.cli import app
from benchmarks.commands import generate
from benchmarks.commands.generate import colour_of, write_texts
from consistentee.engine.transcript import NewToken
from consistentee.methods.token_methods import TokenMethod
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder

RECIPE = ["--set", "exit_steps=3", "exit_batch_size=8", "head_steps=3", "head_tokens=32"]


def call(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


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


def test_trained_decoder_knows_its_method_and_knob(trained):
    description = MultiExitDecoder.from_pretrained(trained).description
    assert description.method_name == "consistentee-tokens"
    assert description.task_name == "toy-text"
    assert description.default_knob is not None


def test_piped_text_is_tokens_with_their_layers(trained):
    result = call("generate", trained, "ba be", "bi", "--max-new-tokens", 5, "--knob", 0.5)
    assert result.exit_code == 0, result.output
    model = MultiExitDecoder.from_pretrained(trained)
    first, second = result.stdout.splitlines()
    for line in (first, second):
        tokens = plain_tokens(line)
        assert 1 <= len(tokens) <= 5
        assert tokens[0][1] == model.num_layers, "the first token is given by the prompt, at full depth"
        assert {layer for _, layer in tokens} <= set(range(1, 5))
    assert "tokens/s" in result.stderr
    assert "consistentee-tokens, threshold=0.5" in result.stderr


def test_full_depth_writes_what_the_stock_model_writes(trained):
    result = call("generate", trained, "ba be bi", "--knob", 1.0, "--max-new-tokens", 6)
    text = "".join(text for text, _ in plain_tokens(result.stdout.splitlines()[0]))
    model = MultiExitDecoder.from_pretrained(trained)
    tokens = model.tokenizer(["ba be bi"], return_tensors="pt")["input_ids"]
    stock = model.backbone.generate(tokens, max_new_tokens=6, do_sample=False, pad_token_id=1)
    assert text == model.decode(stock[0, tokens.shape[1] :])


def test_terminal_gets_colours_by_depth(trained, monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system="truecolor", width=100)
    monkeypatch.setattr(generate, "output_console", lambda: console)
    write_texts(trained, ["ba be"], max_new_tokens=4, knob=1.0)
    deepest = colour_of(4, 4).removeprefix("rgb(").removesuffix(")").replace(",", ";")
    assert f"38;2;{deepest}m" in screen.getvalue()
    assert "/4" not in screen.getvalue()
    assert colour_of(1, 4) != colour_of(2, 4) != colour_of(4, 4)


def test_plain_on_a_terminal(trained, monkeypatch, capsys):
    console = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(generate, "output_console", lambda: console)
    write_texts(trained, ["ba be"], max_new_tokens=2, plain=True)
    assert plain_tokens(capsys.readouterr().out)


def test_texts_in_flight_come_in_the_order_of_their_prompts(trained):
    prompts = ["ba be", "bi", "ba be bi bo bu", "be", "bo bi"]
    one_by_one = call("generate", trained, *prompts, "--knob", 0.5)
    together = call("generate", trained, *prompts, "--knob", 0.5, "--in-flight", 4)
    assert together.exit_code == 0, together.output
    assert together.stdout == one_by_one.stdout
    assert "5 texts" in together.stderr
    assert "at the median" in together.stderr


def test_texts_that_have_ended_are_shown_though_a_later_one_fails(trained, monkeypatch, capsys):
    first, last = (NewToken(row, 0, 5, text, 3, "eos") for row, text in ((0, "a\nb\\"), (2, "c")))

    def fails(self, model, prompts, knob, *, stream, **_):
        for token in (last, NewToken(1, 0, 5, "b", 3, None), first):
            stream(token)
        raise MemoryError

    monkeypatch.setattr(TokenMethod, "generate", fails)
    with pytest.raises(MemoryError):
        write_texts(trained, ["ba", "be", "bi"], in_flight=4)
    assert capsys.readouterr().out == "a\\nb\\\\/3\nc/3\n", "newlines of a token stay on one line"


def test_keys_and_values_may_be_filled_exactly(trained):
    both = [call("generate", trained, "ba be", "--kv", kv, "--max-new-tokens", 6) for kv in ("propagate", "exact")]
    assert [result.exit_code for result in both] == [0, 0]
    assert "unknown kv" in call("generate", trained, "ba be", "--kv", "copied").output


def test_end_of_a_long_prompt_stays(trained):
    long, options = "ba be bi " * 60, ["--max-new-tokens", 3, "--knob", 1.0]
    assert "cut it with max_prompt_tokens" in call("generate", trained, long, *options).output
    result = call("generate", trained, long, "--max-prompt-tokens", 7, *options)
    assert result.exit_code == 0, result.output
    model = MultiExitDecoder.from_pretrained(trained)
    end = torch.tensor(model.encode([long], max_tokens=7, keep="end"))
    stock = model.backbone.generate(end, max_new_tokens=3, do_sample=False, pad_token_id=1)
    assert "".join(text for text, _ in plain_tokens(result.stdout)) == model.decode(stock[0, 7:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ba", "--knob", "7"], "the knob 'threshold' must lie in"),
        ([""], "is empty"),
        (["ba", "--max-new-tokens", "5000"], "than the 128 that the model reads at once"),
    ],
)
def test_faults_of_generate(trained, arguments, message):
    result = call("generate", trained, *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_folders_of_something_else_are_told_apart(trained, tmp_path):
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


def test_no_tokens_are_no_text(trained):
    result = call("generate", trained, "ba", "--max-new-tokens", 0)
    assert (result.exit_code, result.stdout) == (0, "\n")


def test_faults_of_train(task, backbone, tmp_path):
    def train(*options: object, method: str = "consistentee-tokens"):
        result = call("train", task, "--method", method, "--backbone", backbone, "--out", tmp_path / "o", *options)
        assert result.exit_code == 2
        return result.output

    assert "unknown field of --set 'exit_step'; did you mean 'exit_steps'" in train("--set", "exit_step=3")
    assert "unknown field of --set 'epochs'" in train("--set", "epochs=3")
    assert "--set exit_learning_rate: Input should be greater than 0" in train("--set", "exit_learning_rate=-1")
    assert "deebert answers with labels, and task 'toy-text' asks for texts" in train(method="deebert")
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "notes.txt").write_text("mine")
    assert "holds other files than a trained model" in train()
    assert "no such model folder" in call("generate", tmp_path / "q", "ba").output
