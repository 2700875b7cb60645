"""Wrong arguments of public functions raise UserError, in one sentence that names what is wrong."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import make_task, make_text_task

import benchmarks
import consistentee as ee
from benchmarks.run.sweep import run_suite
from benchmarks.specs.suites import Filters, load_suite
from benchmarks.tasks.check import check_task, report_tables
from benchmarks.terminal import output_console
from consistentee.models.classifiers import ClassifierSpec
from consistentee.models.decoder.branches import BranchSpec
from consistentee.models.heads import HeadSpec

HALF = "\ud800"
NAN = math.nan


@pytest.fixture(scope="module")
def made(tiny_models, tiny_decoders):
    """Return models, tasks and traces for all calls: wrong calls change none of them."""
    model, decoder, task, text_task = tiny_models.model(), tiny_decoders.model(), make_task(), make_text_task()
    rows = [([4, 5], [6, 7])]
    return SimpleNamespace(
        model=model,
        decoder=decoder,
        task=task,
        text_task=text_task,
        trace=ee.record_trace(model, task.validation),
        tokens=ee.record_tokens(decoder, rows),
        rule=ee.NeverExit(),
        method=ee.get_method("deebert"),
        token_method=ee.get_method("token-static"),
        encoder_folder=str(tiny_models.backbone("bert")),
        decoder_folder=str(tiny_decoders.backbone()),
    )


WRONG = {
    # inference
    "one text": lambda m: ee.classify(m.model, "one text", m.rule),
    "no texts": lambda m: ee.classify(m.model, None, m.rule),
    "number for a text": lambda m: ee.classify(m.model, ["a", 3], m.rule),
    "surrogate": lambda m: ee.classify(m.model, ["a", HALF], m.rule),
    "surrogate in a pair": lambda m: ee.classify(m.model, [("a", HALF)], m.rule),
    "three texts": lambda m: ee.classify(m.model, [("a", "b", "c")], m.rule),
    "mixed": lambda m: ee.classify(m.model, ["a", ("b", "c")], m.rule),
    "texts in a generator": lambda m: ee.classify(m.model, (text for text in "ab"), m.rule),
    "model by name": lambda m: ee.classify("minilm-l6", ["a"], m.rule),
    "decoder as classifier": lambda m: ee.classify(m.decoder, ["a"], m.rule),
    "rule class": lambda m: ee.classify(m.model, ["a"], ee.NeverExit),
    "no rule": lambda m: ee.classify(m.model, ["a"]),
    "batch of 0": lambda m: ee.classify(m.model, ["a"], m.rule, batch_size=0),
    "batch of None": lambda m: ee.classify(m.model, ["a"], m.rule, batch_size=None),
    "batch of a text": lambda m: ee.classify(m.model, ["a"], m.rule, batch_size="8"),
    "batch of True": lambda m: ee.classify(m.model, ["a"], m.rule, batch_size=True),
    "batch of 1.5": lambda m: ee.classify(m.model, ["a"], m.rule, batch_size=1.5),
    "negative length": lambda m: ee.classify(m.model, ["a"], m.rule, max_length=-1),
    "misspelt": lambda m: ee.classify(m.model, ["a"], m.rule, batchsize=8),
    "too many": lambda m: ee.classify(m.model, ["a"], m.rule, 8),
    "one prompt": lambda m: ee.generate(m.decoder, "ba", m.rule),
    "prompt of bytes": lambda m: ee.generate(m.decoder, [b"ba"], m.rule),
    "prompt None": lambda m: ee.generate(m.decoder, [None], m.rule),
    "empty prompt": lambda m: ee.generate(m.decoder, [""], m.rule),
    "surrogate prompt": lambda m: ee.generate(m.decoder, [HALF], m.rule),
    "encoder as decoder": lambda m: ee.generate(m.model, ["ba"], m.rule),
    "kv None": lambda m: ee.generate(m.decoder, ["ba"], m.rule, kv=None),
    "kv misspelt": lambda m: ee.generate(m.decoder, ["ba"], m.rule, kv="exat"),
    "keep": lambda m: ee.generate(m.decoder, ["ba"], m.rule, keep="x"),
    "negative new tokens": lambda m: ee.generate(m.decoder, ["ba"], m.rule, max_new_tokens=-1),
    "no prompt tokens": lambda m: ee.generate(m.decoder, ["ba"], m.rule, max_prompt_tokens=0),
    "few in flight": lambda m: ee.generate(m.decoder, ["ba"], m.rule, in_flight=2),
    "in flight 0": lambda m: ee.generate(m.decoder, ["ba"], m.rule, in_flight=0),
    "one stop string": lambda m: ee.generate(m.decoder, ["ba"], m.rule, stop="x"),
    "empty stop string": lambda m: ee.generate(m.decoder, ["ba"], m.rule, stop=[""]),
    "stop numbers": lambda m: ee.generate(m.decoder, ["ba"], m.rule, stop=[3]),
    "temperature for sampling": lambda m: ee.generate(m.decoder, ["ba"], m.rule, sampling=0.7),
    "stream no function": lambda m: ee.generate(m.decoder, ["ba"], m.rule, stream=True),
    "read True": lambda m: ee.generate(m.decoder, ["ba"], m.rule, read=True),
    "token too large": lambda m: ee.generate_encoded(m.decoder, [[10**6]], m.rule),
    "negative token": lambda m: ee.generate_encoded(m.decoder, [[-1]], m.rule),
    "flat tokens": lambda m: ee.generate_encoded(m.decoder, [4, 5], m.rule),
    "no tokens": lambda m: ee.generate_encoded(m.decoder, [[]], m.rule),
    "stream one prompt": lambda m: ee.stream_texts(m.decoder, "ba", m.rule),
    "stream batch": lambda m: ee.stream_texts(m.decoder, ["ba"], m.rule, batch_size=0),
    "drafts nowhere": lambda m: ee.generate_speculatively(m.decoder, ["ba"]),
    "drafts at L": lambda m: ee.generate_speculatively(m.decoder, ["ba"], draft_layer=4),
    "no draft": lambda m: ee.generate_speculatively(m.decoder, ["ba"], draft_layer=1, draft_tokens=0),
    "threshold 2": lambda m: ee.generate_speculatively(m.decoder, ["ba"], draft_layer=1, threshold=2),
    "threshold NaN": lambda m: ee.generate_speculatively(m.decoder, ["ba"], draft_layer=1, threshold=NAN),
    "temperature 0": lambda m: ee.Sampling(temperature=0),
    "temperature NaN": lambda m: ee.Sampling(temperature=NAN),
    "temperature infinite": lambda m: ee.Sampling(temperature=math.inf),
    "top_k 0": lambda m: ee.Sampling(top_k=0),
    "top_p 1.1": lambda m: ee.Sampling(top_p=1.1),
    "top_p 0": lambda m: ee.Sampling(top_p=0.0),
    "negative bytes": lambda m: ee.ReadPrompts(-1),
    # rules and methods
    "rule NaN": lambda m: ee.ThresholdRule(len, NAN, "above"),
    "rule side": lambda m: ee.ThresholdRule(len, 0.5, "abve"),
    "rule signal": lambda m: ee.ThresholdRule("entropy", 0.5, "above"),
    "knob without values": lambda m: ee.Knob("confidence", ()),
    "knob NaN": lambda m: ee.Knob("confidence", (0.0, NAN)),
    "knob of texts": lambda m: ee.Knob("confidence", ("a",)),
    "unknown method": lambda m: ee.get_method("deebrt"),
    "method None": lambda m: ee.get_method(None),
    "method parameter": lambda m: ee.get_method("pabee", tolerence=1),
    "method group": lambda m: ee.available_methods("methods"),
    "knob beyond": lambda m: m.method.rule(m.model, 1e9),
    "knob given NaN": lambda m: m.method.rule(m.model, NAN),
    "knob given text": lambda m: m.method.rule(m.model, "0.5"),
    "fit by name": lambda m: m.method.fit(m.model, "sst2", ee.Recipe()),
    "fit text task": lambda m: m.method.fit(m.model, m.text_task, ee.Recipe()),
    "fit without recipe": lambda m: m.method.fit(m.model, m.task, None),
    "fit with settings": lambda m: m.method.fit(m.model, m.task, {"epochs": 2}),
    "fit with recipe of texts": lambda m: m.method.fit(m.model, m.task, ee.TokenRecipe()),
    "fit a decoder": lambda m: m.method.fit(m.decoder, m.task, ee.Recipe()),
    "generate one prompt": lambda m: m.token_method.generate(m.decoder, "ba", 4.0),
    "recipe misspelt": lambda m: ee.Recipe(epoch=2),
    "recipe of 0 epochs": lambda m: ee.Recipe(epochs=0),
    "recipe precision": lambda m: ee.Recipe(precision="bf16"),
    "recipe rate": lambda m: ee.Recipe(learning_rate=-1.0),
    "recipe rate NaN": lambda m: ee.Recipe(learning_rate=NAN),
    "recipe rate infinite": lambda m: ee.Recipe(learning_rate=math.inf),
    "recipe positional": lambda m: ee.Recipe(3),
    "recipe None": lambda m: ee.Recipe(batch_size=None),
    "token recipe trains": lambda m: ee.TokenRecipe(trains="everything"),
    "token recipe rank": lambda m: ee.TokenRecipe(lora_rank=0),
    # traces
    "trace of texts": lambda m: ee.record_trace(m.model, ["a", "b"]),
    "trace of a task": lambda m: ee.record_trace(m.model, m.task),
    "trace batch": lambda m: ee.record_trace(m.model, m.task.test, batch_size=0),
    "trace store": lambda m: ee.record_trace(m.model, m.task.test, store="folder"),
    "trace layer 0": lambda m: m.trace.view(0),
    "trace layer 5": lambda m: m.trace.view(5),
    "replay trace of texts": lambda m: ee.replay(m.rule, ["a"]),
    "replay no rule": lambda m: ee.replay(0.5, m.trace),
    "sweep one rule": lambda m: ee.sweep(m.rule, m.trace),
    "sweep knobs": lambda m: ee.sweep([0.1, 0.2], m.trace),
    "token trace of texts": lambda m: ee.record_token_trace(
        m.decoder, ["ba"], max_prompt_tokens=None, max_new_tokens=4
    ),
    "token trace keep": lambda m: ee.record_token_trace(
        m.decoder, m.text_task.test, max_prompt_tokens=None, max_new_tokens=4, keep="middle"
    ),
    "token trace without rows": lambda m: ee.record_tokens(m.decoder, []),
    "token trace dtype": lambda m: ee.record_tokens(m.decoder, [([4], [5])], dtype="float16"),
    "token trace tokens": lambda m: ee.record_tokens(m.decoder, [([10**6], [5])]),
    "risk NaN": lambda m: ee.control_risk(m.method, m.model, m.trace, NAN),
    "risk 2": lambda m: ee.control_risk(m.method, m.model, m.trace, 2.0),
    "risk bound": lambda m: ee.control_risk(m.method, m.model, m.trace, 0.1, bound="ucv"),
    "risk by name": lambda m: ee.control_risk("deebert", m.model, m.trace, 0.1),
    "pipeline of nothing": lambda m: ee.pipeline("no-such-folder"),
    "pipeline of a model": lambda m: ee.pipeline(m.model),
    # models
    "backbone None": lambda m: ee.MultiExitModel.from_backbone(None, 2),
    "backbone unknown": lambda m: ee.MultiExitModel.from_backbone("minilm", 2),
    "no classes": lambda m: ee.MultiExitModel.from_backbone(m.encoder_folder, 0),
    "label names": lambda m: ee.MultiExitModel.from_backbone(m.encoder_folder, 2, label_names="ab"),
    "label names of others": lambda m: ee.MultiExitModel.from_backbone(m.encoder_folder, 2, label_names=["a"]),
    "pooling": lambda m: ee.MultiExitModel.from_backbone(m.encoder_folder, 2, pooling="max"),
    "tokenize": lambda m: m.model.tokenize("a"),
    "pooler": lambda m: m.model.use_pooler("one"),
    "classifier kind": lambda m: m.model.use_classifier("linear"),
    "classifier spec": lambda m: m.model.use_classifier(ClassifierSpec("liner")),
    "classifier width": lambda m: ClassifierSpec(width=0),
    "classifier layer 0": lambda m: m.model.classifier(0),
    "head name": lambda m: m.model.add_head("a.b", HeadSpec()),
    "head of nothing": lambda m: m.model.add_head("a", None),
    "head outputs": lambda m: HeadSpec(outputs=0),
    "unknown head": lambda m: m.model.head("gate"),
    "exits 0": lambda m: ee.MultiExitDecoder.from_backbone(m.decoder_folder, exit_layers=[0]),
    "exits 9": lambda m: ee.MultiExitDecoder.from_backbone(m.decoder_folder, exit_layers=[9]),
    "exits number": lambda m: ee.MultiExitDecoder.from_backbone(m.decoder_folder, exit_layers=2),
    "exits halves": lambda m: ee.MultiExitDecoder.from_backbone(m.decoder_folder, exit_layers=[1.5]),
    "adapter": lambda m: ee.MultiExitDecoder.from_backbone(m.decoder_folder, adapter="low-rnk"),
    "rank": lambda m: ee.MultiExitDecoder.from_backbone(m.decoder_folder, rank=0),
    "closing layers": lambda m: ee.MultiExitDecoder.from_backbone(m.decoder_folder, closing_layers=-1),
    "use adapters": lambda m: m.decoder.use_adapters("none"),
    "branch at 9": lambda m: m.decoder.add_branch(9, BranchSpec(1)),
    "branch of 9": lambda m: m.decoder.add_branch(1, BranchSpec(9)),
    "no branch": lambda m: m.decoder.branch(1),
    "lora rank": lambda m: m.decoder.add_lora(rank=-1),
    "encode one text": lambda m: m.decoder.encode("ba"),
    "encode keep": lambda m: m.decoder.encode(["ba"], keep="x"),
    # data
    "split of one text": lambda m: ee.Split("train", "ab", [0, 1]),
    "split of numbers": lambda m: ee.Split("train", [1, 2], [0, 1]),
    "split with a surrogate": lambda m: ee.Split("train", ["a", HALF], [0, 1]),
    "ragged split": lambda m: ee.Split("train", ["a"], [0, 1]),
    "empty split": lambda m: ee.Split("train", [], []),
    "split of labels None": lambda m: ee.Split("train", ["a"], None),
    "negative cap": lambda m: m.task.train.capped(-1, seed=0),
    "task of splits None": lambda m: ee.TaskData("t", 1, None, None, None, ("a", "b"), ("accuracy",)),
    "task of labels": lambda m: ee.TaskData(
        "t", 1, *[ee.Split("train", ["a"], ["x"])] * 3, label_names=(), metrics=("pearson",)
    ),
    "prompts of one text": lambda m: ee.PromptSplit("train", "ab", ["c", "d"]),
    "prompts with numbers": lambda m: ee.PromptSplit("train", ["a"], [1]),
    "prompt of numbers": lambda m: ee.Prompt(1, 2),
    # the harness
    "unknown task": lambda m: benchmarks.load_task("sst-2"),
    "task None": lambda m: benchmarks.load_task(None),
    "data folder": lambda m: benchmarks.load_task("sst2", data_dir=3),
    "unknown suite": lambda m: load_suite("quik"),
    "suite None": lambda m: load_suite(None),
    "run of a name": lambda m: run_suite("quick", out=Path("runs")),
    "run out None": lambda m: run_suite(load_suite("quick"), out=None),
    "filters of one name": lambda m: Filters(tasks="sst2"),
    "filters of seeds": lambda m: Filters(seeds=["a"]),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_a_wrong_argument_raises_a_user_error_of_one_sentence(made, call):
    with pytest.raises(ee.UserError) as raised:
        call(made)
    message = str(raised.value)
    assert 10 < len(message) < 400
    assert message.isprintable()


def test_the_nearest_known_names_are_suggested(made):
    for call, suggestion in {
        lambda: ee.Recipe(epoch=2): "'epochs'",
        lambda: ee.classify(made.model, ["a"], made.rule, batchsize=8): "'batch_size'",
        lambda: ee.generate(made.decoder, ["ba"], made.rule, kv="exat"): "'exact'",
    }.items():
        with pytest.raises(ee.UserError, match=suggestion):
            call()


def test_numbers_of_other_libraries_are_numbers(made):
    found = ee.classify(made.model, ["w1", "w2"], made.rule, batch_size=torch.tensor(2))
    assert len(found.predictions) == 2
    assert ee.ThresholdRule(len, torch.tensor(0.5), "above").threshold == 0.5
    assert ee.ThresholdRule(len, math.inf, "above").threshold == math.inf


BAD_YAML = {
    "date": "notes: 2020-13-45",
    "empty integer": 'version: !!int ""',
    "integer of letters": "version: !!int abc",
    "empty number": 'version: !!float ""',
    "timestamp": 'notes: !!timestamp "x"',
    "deep": "notes: " + "[" * 20_000,
    "deep mappings": "notes: " + "{a: " * 5_000,
    "itself": "notes: &a [*a]",
    "aliases": "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]" for n in range(1, 20))]),
    "merges": "\n".join(["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [{f'*a{n - 1}, ' * 9}]}}" for n in range(1, 20))]),
    "no key": "? [a, b]\n: 1",
    "object": "notes: !!python/object/apply:os.getcwd []",
    "control character": "notes: \x07",
}


@pytest.mark.parametrize("text", BAD_YAML.values(), ids=BAD_YAML)
def test_yaml_that_is_none_is_refused_in_one_sentence(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    for read in (load_suite, benchmarks.load_task):
        with pytest.raises(ee.UserError, match=r"mine\.yaml is not valid YAML") as raised:
            read(path)
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 600


def task_of(folder, rows, file="train.csv", file_format="csv"):
    (folder / file).write_text(rows, encoding="utf-8")
    fields = {
        "schema_version": 1,
        "name": "mine",
        "version": 1,
        "description": "",
        "metrics": ["accuracy"],
        "files": {"format": file_format, "train": file, "text": "text", "label": "label"},
    }
    path = folder / "mine.yaml"
    path.write_text(json.dumps(fields), encoding="utf-8")
    return path


def test_half_of_a_surrogate_pair_in_a_file_is_named_with_its_line(tmp_path):
    rows = '{"text": "good", "label": "a"}\n{"text": "b\\ud800d", "label": "b"}\n'
    with pytest.raises(ee.UserError, match=r"train.jsonl:2: .* half of a surrogate pair, '\\ud800', at character 2"):
        benchmarks.load_task(task_of(tmp_path, rows, "train.jsonl", "jsonl"))


def test_json_that_is_nested_too_deeply_is_named_with_its_line(tmp_path):
    rows = '{"text": "good", "label": "a"}\n{"text": ' + "[" * 100_000 + "\n"
    with pytest.raises(ee.UserError, match=r"train.jsonl:2: not JSON"):
        benchmarks.load_task(task_of(tmp_path, rows, "train.jsonl", "jsonl"))


def test_long_cells_and_control_characters_do_no_harm(tmp_path, capsys):
    names = "x" * 5_000, "\x1b[31mred\x07"
    rows = "text,label\n" + "".join(f"{'word ' * 30_000}{row},{names[row % 2]}\n" for row in range(40))
    path = task_of(tmp_path, rows)
    task = benchmarks.load_task(path)
    assert len(task.train.texts[0]) > 131_072
    assert set(task.label_names) == set(names)
    output_console().print(report_tables(check_task(str(path))))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) < 1_000
    assert "\x1b" not in shown
    assert "\\x1b[31mred\\x07" in shown
    with pytest.raises(ee.UserError, match=r"\[\.\.\.\]|\.\.\.") as raised:
        ee.TaskData("t", 1, task.train, task.train, ee.Split("test", ["a"], ["y" * 5_000]), names, ("accuracy",))
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("label", ["x" * 5_000, "\x1b[31mred", "two\nlines"])
def test_a_label_that_cannot_name_a_curve_is_refused(tmp_path, label):
    fields = {"name": "mine", "description": "", "tasks": ["rte"], "backbones": ["minilm-l6"], "seeds": [0]}
    path = tmp_path / "suite.yaml"
    path.write_text(json.dumps(fields | {"methods": [{"method": "full", "label": label}]}), encoding="utf-8")
    with pytest.raises(ee.UserError, match=r"methods\.0\.label: String should"):
        load_suite(path)
