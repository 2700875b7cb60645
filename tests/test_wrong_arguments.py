"""Wrong arguments of public functions raise UserError, in one sentence that names what is wrong."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import benchmarks
import consistentee as ee
from benchmarks.run.sweep import run_suite
from benchmarks.specs.base import MethodEntry
from benchmarks.specs.suites import Filters, load_suite
from benchmarks.testing.tiny import make_task, make_text_task
from consistentee import BranchSpec, HeadSpec

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


Calls = dict[str, tuple[Callable[[SimpleNamespace, Any], object], list[Any]]]
"""Name -> a call, and the values of which each is a wrong argument of it. Options are given as dictionaries."""

CALLS: Calls = {
    "classify texts": (
        lambda m, texts: ee.classify(m.model, texts, m.rule),
        ["one text", None, ["a", 3], ["a", HALF], [("a", HALF)], [("a", "b", "c")], ["a", ("b", "c")], iter("ab")],
    ),
    "classify model": (lambda m, model: ee.classify(model, ["a"], m.rule), ["minilm-l6", 3]),
    "classify rule": (lambda m, rule: ee.classify(m.model, ["a"], *rule), [(), (ee.NeverExit,), (ee.NeverExit(), 8)]),
    "classify options": (
        lambda m, options: ee.classify(m.model, ["a"], m.rule, **options),
        [{"batch_size": wrong} for wrong in (0, None, "8", True, 1.5)]
        + [{"max_length": -1}, {"batchsize": 8}]
        + [{"in_flight": wrong} for wrong in (0, 31, "64")],
    ),
    "generate prompts": (
        lambda m, prompts: ee.generate(m.decoder, prompts, m.rule),
        ["ba", [b"ba"], [None], [""], [HALF]],
    ),
    "generate options": (
        lambda m, options: ee.generate(m.decoder, ["ba"], m.rule, **options),
        [{"kv": "exat"}, {"keep": "x"}, {"max_new_tokens": -1}, {"max_prompt_tokens": 0}]
        + [{"in_flight": wrong} for wrong in (0, 2)]
        + [{"sampling": 0.7}, {"stream": True}, {"read": True}],
    ),
    "generate stop": (lambda m, stop: ee.generate(m.decoder, ["ba"], m.rule, stop=stop), ["x", [""], [3]]),
    "encoded prompts": (
        lambda m, tokens: ee.generate_encoded(m.decoder, tokens, m.rule),
        [[[10**6]], [[-1]], [4, 5], [[]]],
    ),
    "speculation": (
        lambda m, options: ee.generate_speculatively(m.decoder, ["ba"], **options),
        [{}, {"draft_layer": 4}, {"draft_layer": 1, "draft_tokens": 0}]
        + [{"draft_layer": 1, "threshold": wrong} for wrong in (2, NAN)],
    ),
    "sampling": (
        lambda m, options: ee.Sampling(**options),
        [{"temperature": wrong} for wrong in (0, NAN, math.inf)] + [{"top_k": -1}, {"top_p": 1.1}, {"top_p": 0.0}],
    ),
    "rule": (
        lambda m, arguments: ee.ThresholdRule(*arguments),
        [(len, NAN, "above"), (len, 0.5, "abve"), ("entropy", 0.5, "above")],
    ),
    "method": (lambda m, name: ee.get_method(name), ["deebrt", None]),
    "method parameter": (lambda m, options: ee.get_method("pabee", **options), [{"tolerence": 1}]),
    "knob": (lambda m, knob: m.method.rule(m.model, knob), [1e9, NAN, "0.5"]),
    "fit task": (lambda m, task: m.method.fit(m.model, task, ee.Recipe()), ["sst2"]),
    "fit recipe": (lambda m, recipe: m.method.fit(m.model, m.task, recipe), [None, {"epochs": 2}, ee.TokenRecipe()]),
    "generate one prompt": (lambda m, prompts: m.token_method.generate(m.decoder, prompts, 4.0), ["ba"]),
    "recipe": (
        lambda m, options: ee.Recipe(**options),
        [{"epoch": 2}, {"epochs": 0}, {"precision": "bf16"}, {"batch_size": None}]
        + [{"learning_rate": wrong} for wrong in (-1.0, NAN, math.inf)],
    ),
    "token recipe": (lambda m, options: ee.TokenRecipe(**options), [{"trains": "everything"}, {"lora_rank": 0}]),
    "trace split": (lambda m, split: ee.record_trace(m.model, split), [["a", "b"]]),
    "trace task": (lambda m, name: ee.record_trace(m.model, getattr(m, name)), ["task"]),
    "trace options": (
        lambda m, options: ee.record_trace(m.model, m.task.test, **options),
        [{"batch_size": 0}, {"store": "folder"}],
    ),
    "replayed rule": (lambda m, rule: ee.replay(rule, m.trace), [0.5]),
    "swept rules": (lambda m, rules: ee.sweep(rules, m.trace), [ee.NeverExit(), [0.1, 0.2]]),
    "token trace rows": (lambda m, rows: ee.record_tokens(m.decoder, rows), [[], [([10**6], [5])]]),
    "risk": (lambda m, risk: ee.control_risk(m.method, m.model, m.trace, risk), [NAN, 2.0]),
    "risk options": (
        lambda m, options: ee.control_risk(m.method, m.model, m.trace, 0.1, **options),
        [{"bound": "ucv"}, {"loss": "gaps"}],
    ),
    "saved encoder": (lambda m, folder: ee.MultiExitModel.from_pretrained(folder), ["no-such-folder"]),
    "saved decoder": (lambda m, folder: ee.MultiExitDecoder.from_pretrained(folder), ["no-such-folder"]),
    "pipeline": (lambda m, folder: ee.pipeline(folder), ["no-such-folder"]),
    "backbone": (lambda m, name: ee.MultiExitModel.from_backbone(name, 2), [None, "minilm"]),
    "model options": (
        lambda m, options: ee.MultiExitModel.from_backbone(m.encoder_folder, 2, **options),
        [{"label_names": "ab"}, {"label_names": ["a"]}, {"pooling": "max"}],
    ),
    "tokenize": (lambda m, texts: m.model.tokenize(texts), ["a"]),
    "classifier kind": (lambda m, spec: m.model.use_classifier(spec), ["linear"]),
    "head": (lambda m, arguments: m.model.add_head(*arguments), [("a.b", HeadSpec()), ("a", None)]),
    "unknown head": (lambda m, name: m.model.head(name), ["gate"]),
    "decoder options": (
        lambda m, options: ee.MultiExitDecoder.from_backbone(m.decoder_folder, **options),
        [{"exit_layers": wrong} for wrong in ([0], [9], [3, 2], 2, [1.5])]
        + [{"adapter": "low-rnk"}, {"rank": 0}, {"closing_layers": -1}],
    ),
    "branch": (lambda m, arguments: m.decoder.add_branch(*arguments), [(9, BranchSpec(1)), (1, BranchSpec(9))]),
    "encode": (lambda m, options: m.decoder.encode(**options), [{"prompts": "ba"}, {"prompts": ["ba"], "keep": "x"}]),
    "split": (
        lambda m, arguments: ee.Split("train", *arguments),
        [("ab", [0, 1]), ([1, 2], [0, 1]), (["a", HALF], [0, 1]), (["a"], [0, 1]), ([], []), (["a"], None)],
    ),
    "task of labels": (
        lambda m, labels: ee.TaskData("t", 1, *[ee.Split("train", ["a"], labels)] * 3, (), ("pearson",)),
        [["x"]],
    ),
    "prompts": (lambda m, arguments: ee.PromptSplit("train", *arguments), [("ab", ["c", "d"]), (["a"], [1])]),
    "task": (lambda m, name: benchmarks.load_task(name), ["sst-2", None]),
    "suite": (lambda m, name: load_suite(name), ["quik", None]),
    "run of a name": (lambda m, suite: run_suite(suite, out=Path("runs")), ["quick"]),
    "filters": (lambda m, options: Filters(**options), [{"tasks": "sst2"}, {"seeds": ["a"]}]),
}
CASES = [
    pytest.param(call, value, id=ascii(f"{name}: {value!r}".partition(" object at ")[0][:60]))
    for name, (call, values) in CALLS.items()
    for value in values
]


@pytest.mark.parametrize(("call", "value"), CASES)
def test_a_wrong_argument_raises_a_user_error_of_one_sentence(made, call, value):
    with pytest.raises(ee.UserError) as raised:
        call(made, value)
    message = str(raised.value)
    assert 10 < len(message) < 400
    assert message.isprintable()


def test_the_nearest_known_names_are_suggested(made):
    with pytest.raises(ee.UserError, match="'batch_size'"):
        ee.classify(made.model, ["a"], made.rule, batchsize=8)
    with pytest.raises(ee.UserError, match="'exact'"):
        ee.generate(made.decoder, ["ba"], made.rule, kv="exat")


def test_numbers_of_other_libraries_are_numbers(made):
    assert len(ee.classify(made.model, ["w1", "w2"], made.rule, batch_size=torch.tensor(2)).predictions) == 2
    assert ee.ThresholdRule(len, torch.tensor(0.5), "above").threshold == 0.5


BAD_YAML = {
    "date": "notes: 2020-13-45",
    "timestamp": 'notes: !!timestamp "x"',
    "deep": "notes: " + "[" * 600,
    "no key": "? [a, b]\n: 1",
    "object": "notes: !!python/object/apply:os.getcwd []",
    "control character": "notes: \x07",
}


@pytest.mark.parametrize("text", BAD_YAML.values(), ids=BAD_YAML)
def test_malformed_yaml_is_refused_in_one_sentence(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    for read in (load_suite, benchmarks.load_task):
        with pytest.raises(ee.UserError, match=r"mine\.yaml is not valid YAML") as raised:
            read(path)
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 600


@pytest.mark.parametrize("label", ["x" * 5_000, "\x1b[31mred", "two\nlines"])
def test_a_label_that_cannot_name_a_curve_is_refused(label):
    with pytest.raises(ValueError, match="label\n  String should"):
        MethodEntry(method="full", label=label)
