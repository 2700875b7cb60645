"""Every command and every piece of Python in README and docs/ runs, or is read by the real command line.

By default with tiny models and toy tasks under the names of real ones, ``tox -e real`` as they stand.
"""

import json
import re
import shutil
import sys
import types
from pathlib import Path

import pytest
import typer
from command_line import call
from documents import DOCUMENTS, LANGUAGES, ROOT, Block, blocks_of, commands_of
from records_by_hand import write_results
from small_suite import carry_out_here, write_task, write_text_task

import benchmarks
from benchmarks.analysis.rendering import to_markdown
from benchmarks.analysis.tables import tables_of
from benchmarks.cli import app
from benchmarks.cli.application import normalised
from benchmarks.commands.publish import publish_run
from benchmarks.run import pool
from benchmarks.specs import suites
from benchmarks.specs.base import BaseSuite, TimingSpec
from consistentee.data.tasks import TaskData, TextTask
from consistentee.models import classifiers
from consistentee.training.recipe import RecipeSettings, TokenRecipeSettings

SMALL = {
    "movie-snippets": "toy.yaml",
    "nyt-continuation": "toy-text.yaml",
    "minilm-l6": "tiny-encoder",
    "smollm2-135m": "tiny-decoder",
}
"""Values that replace those of the page when examples run small."""

PROGRAMS = {"consistentee", "consistentee-lm-eval", "tox", "python", "dask", "uvicorn", "curl"}
"""The programs that examples call; only the first one is run or its arguments read."""


def parse(block: Block) -> None:
    commands = typer.main.get_command(app).commands
    for program, *words in commands_of(block.source):
        assert program in PROGRAMS, f"{block.place}: no test knows {program}"
        if program == "consistentee":
            command, *arguments = normalised(words, commands)
            assert command in commands, f"there is no command {command}"
            arguments = ["." if word == "DATA" else word for word in arguments]  # a folder of data has to exist
            commands[command].make_context(command, arguments, resilient_parsing=False)


def run_block(block: Block, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run commands, or a piece of Python in a module of its own: it needs nothing that it does not show."""
    if block.language == "sh":
        for program, *words in commands_of(source):
            if program == "consistentee":
                done = call(*words)
                assert done.exit_code == 0, f"{block.place}: {words[0]}: {done.output}"
    elif block.language == "python":
        module = types.ModuleType("example")
        monkeypatch.setitem(sys.modules, "example", module)
        exec(compile(source, block.place, "exec"), vars(module))


def in_small(source: str) -> str:
    for name, small in SMALL.items():
        source = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", small, source)
    return source


def shows_what_can_be_small(document: str) -> bool:
    shown = [block for block in blocks_of(document) if block.language in ("sh", "python") and not block.is_parsed_only]
    return any(in_small(block.source) != block.source for block in shown)


@pytest.fixture(scope="session")
def small_results(tmp_path_factory) -> Path:
    """Publish a made-up suite under the names of results that examples show."""
    folder = tmp_path_factory.mktemp("small")
    write_results(folder / "run", tasks=("mcid", "rte"))
    publish_run(folder / "run", folder / "results" / "cpu-6-layers-float32")
    shutil.copytree(folder / "results" / "cpu-6-layers-float32", folder / "results" / "cpu-12-layers")
    return folder / "results"


@pytest.fixture
def toys(tmp_path, tiny_backbone, tiny_decoder_backbone, monkeypatch) -> Path:
    """Work in a folder with toys of the names in ``SMALL``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(classifiers, "CLASSIFIER_KINDS", dict(classifiers.CLASSIFIER_KINDS))
    write_task(tmp_path, "toy")
    write_text_task(tmp_path, "toy-text")
    Path("tiny-encoder").symlink_to(tiny_backbone("bert"))
    Path("tiny-decoder").symlink_to(tiny_decoder_backbone("llama"))
    return tmp_path


@pytest.fixture
def small_world(toys, small_results) -> Path:
    """Work with toys, and with made-up results under the names of real ones."""
    shutil.copytree(small_results, "results")
    return toys


@pytest.fixture
def small_suites(small_world, monkeypatch) -> None:
    """Let the quick suites mean themselves on toys."""
    quick, decoding = suites.load_suite("quick"), suites.load_suite("quick-decoding")
    small: dict[str, BaseSuite] = {
        "quick": quick.model_copy(
            update={"tasks": ("toy.yaml",), "backbones": ("tiny-encoder",)}
            | {"recipe": RecipeSettings(epochs=1, max_length=24, frozen_steps=4)}
            | {"timing": TimingSpec(rows=8, batch_sizes=(1, 4))}
        ),
        "quick-decoding": decoding.model_copy(
            update={"tasks": ("toy-text.yaml",), "backbones": ("tiny-decoder",)}
            | {"recipe": TokenRecipeSettings(exit_steps=5, exit_batch_size=16, head_steps=5, head_tokens=64)}
            | {"timing": decoding.timing.model_copy(update={"rows": 4, "batch_sizes": (1, 4), "max_new_tokens": 3})}
        ),
    }
    monkeypatch.setattr(suites, "load_suite", small.__getitem__)


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if blocks_of(name)])
def test_examples_run_small(document, small_world, monkeypatch):
    for block in blocks_of(document):
        if block.language == "sh":
            parse(block)
        if not (block.is_parsed_only or block.is_slow or block.test):
            run_block(block, in_small(block.smaller()), monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("document", [name for name in DOCUMENTS if any(block.is_slow for block in blocks_of(name))])
def test_slow_examples_run_small(document, small_suites, monkeypatch):
    for block in blocks_of(document):
        if block.is_slow:
            run_block(block, in_small(block.smaller()), monkeypatch)


@pytest.mark.real
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("document", [name for name in DOCUMENTS if shows_what_can_be_small(name)])
def test_examples_run_on_what_they_name(document, toys, monkeypatch):
    shutil.copytree(ROOT / "results", "results")
    for block in blocks_of(document):
        if not (block.is_parsed_only or block.is_slow or block.test):
            run_block(block, block.smaller(on_tiny_models=False), monkeypatch)


def test_every_block_names_a_language_and_an_existing_test():
    files = [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("tests/**/test_*.py"))]
    for block in (block for document in DOCUMENTS for block in blocks_of(document)):
        assert block.language in LANGUAGES, f"{block.place}: say ```sh, ```python, ```yaml, or ```text (output)"
        assert not block.test or any(f"def {block.test}(" in file for file in files), f"{block.place}: no {block.test}"


def test_the_commands_of_the_guide_show_the_method_among_the_others(small_suites, monkeypatch):
    monkeypatch.setattr(pool, "execute", carry_out_here)
    others = ["full", "majority", "static", "calm-softmax"]  # published of the real suite
    assert call("run", "quick", "--methods", *others).exit_code == 0
    shown = blocks_of("docs/add_a_method.md", "sh")[0].source.splitlines()
    shorter = {"check-method": ["--families", "bert"]}
    printed = {}
    for command, *arguments in (line.split()[1:] for line in shown):
        done = call(command, *arguments, *shorter.get(command, []))
        assert done.exit_code == 0, f"{command}: {done.output}"
        printed[command] = done.output
    assert list(printed) == ["new-method", "check-method", "run", "table"]
    assert "all checks pass" in printed["check-method"]
    assert "gate" in printed["table"]
    assert list(Path("runs/quick").glob("*.png"))
    found = benchmarks.load_results("runs/quick")
    assert {"gate", "calm-softmax"} <= set(found.labels_to_compare)
    assert re.search(r"^\| gate \| .*confidence=", to_markdown(tables_of(found)), re.MULTILINE)


def test_the_suite_of_the_guide_loads(tmp_path):
    (block,) = blocks_of("docs/running.md", "yaml")
    (tmp_path / "mine.yaml").write_text(block.source, encoding="utf-8")
    assert len(suites.expand(suites.load_suite(tmp_path / "mine.yaml"))) == 15


def test_the_tasks_of_the_guide_load(tmp_path):
    """Their rows are those that the page shows, with a number in each."""
    text = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in re.findall(r"^`(\{.*\})`", text, re.MULTILINE)]
    tickets, pages = blocks_of("docs/tasks.md", "yaml")
    for file, row in (("train.jsonl", rows[0]), ("test.jsonl", rows[0]), ("answers.jsonl", rows[1])):
        first = next(iter(row))
        lines = [json.dumps(row | {first: f"{row[first]} {file} {number}"}) for number in range(20)]
        if "team" in row:
            lines += [line.replace("billing", "shipping") for line in lines]
        (tmp_path / file).write_text("\n".join(lines), encoding="utf-8")
    for block in (tickets, pages):
        (tmp_path / f"{block.line}.yaml").write_text(block.source, encoding="utf-8")
    task = benchmarks.load_task(tmp_path / f"{tickets.line}.yaml")
    assert isinstance(task, TaskData)
    assert task.label_names == ("billing", "shipping")
    texts = benchmarks.load_task(tmp_path / f"{pages.line}.yaml")
    assert isinstance(texts, TextTask)
    assert "Question: Who answers refunds?" in texts.test.prompts[0]
