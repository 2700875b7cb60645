"""Under lm-evaluation-harness: what never exits has the scores of its own ``hf`` model, and exits are the rule's."""

import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
import yaml

from benchmarks.lm_eval import main, register
from benchmarks.testing.tiny import random_prompts
from consistentee import UserError, record_tokens, replay

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: the extra lm-eval")
pytest.importorskip("accelerate", reason="its hf model needs accelerate: the extra lm-eval")
EarlyExitLM = pytest.importorskip("benchmarks.lm_eval.model").EarlyExitLM

WORDS = ["ba", "be", "bi", "bo", "da", "de"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Write a task of each kind of request as YAML and JSONL, and return their folder."""
    folder, generator = tmp_path_factory.mktemp("tasks"), random.Random(0)
    rows = [
        {
            "question": " ".join(generator.choices(WORDS, k=generator.randint(2, 9))),
            "choices": [" ".join(generator.choices(WORDS, k=generator.randint(1, 3))) for _ in range(3)],
            "answer": generator.randrange(3),
        }
        for _ in range(10)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"dataset_path": "json", "test_split": "test", "doc_to_text": "{{question}}", "doc_to_target": "answer"}
    common |= {"dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
    rolling = {"doc_to_text": "", "doc_to_target": "{{question}}"}
    writing = {"doc_to_target": "ba", "generation_kwargs": {"max_gen_toks": 6, "until": []}}
    for name, kind, metric, more in (
        ("toy-choice", "multiple_choice", "acc", {"doc_to_choice": "choices"}),
        ("toy-rolling", "loglikelihood_rolling", "word_perplexity", rolling),
        ("toy-writing", "generate_until", "exact_match", writing),
    ):
        task = {"task": name, "output_type": kind, "metric_list": [{"metric": metric}]}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(common | task | more))
    return folder


@pytest.fixture(scope="module")
def saved(tiny_decoder, tmp_path_factory):
    """Return the folder of a saved decoder, whose method has a threshold that lets some tokens out."""
    model = tiny_decoder("llama")
    model.description.method_name = "calm-tokens-softmax"
    folder = tmp_path_factory.mktemp("models") / "decoder"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def evaluate(tasks):
    """Return a function: (model, its arguments, tasks) -> the harness's results, samples included."""
    from lm_eval.tasks import TaskManager

    register()
    manager = TaskManager(include_path=str(tasks), include_defaults=False)

    def run(model, arguments, names=("toy-choice", "toy-rolling", "toy-writing"), **options):
        return lm_eval.simple_evaluate(
            model=model, model_args=arguments, tasks=list(names), task_manager=manager, bootstrap_iters=0, **options
        )

    return run


def responses(results):
    return {
        task: {sample["doc_id"]: sample["resps"] for sample in samples} for task, samples in results["samples"].items()
    }


def test_without_exits_scores_equal_the_stock_models(evaluate, saved, tiny_decoder_backbone):
    ours = evaluate("consistentee", {"pretrained": str(saved), "method": "token-full"}, batch_size=5)
    stock = evaluate(
        "hf",
        # Its cache of logits takes the first of several scored places where it means the last one (0.4.13).
        {"pretrained": str(tiny_decoder_backbone("llama")), "dtype": "float32", "logits_cache": False, "device": "cpu"},
    )
    assert ours["config"]["average_layers"] == ours["config"]["num_layers"] == 4
    assert ours["results"]["toy-choice"] == stock["results"]["toy-choice"]
    assert ours["results"]["toy-choice"]["acc,none"] not in (0.0, 1.0)
    ours, stock = responses(ours), responses(stock)
    assert ours["toy-writing"] == stock["toy-writing"]
    assert len({str(text) for text in stock["toy-writing"].values()}) > 5
    for doc, answers in stock["toy-choice"].items():
        for (ours_said,), (stock_said,) in zip(ours["toy-choice"][doc], answers, strict=True):
            assert ours_said[0] == pytest.approx(stock_said[0], abs=1e-4)
            assert ours_said[1] == stock_said[1]
    for doc, ((said,),) in stock["toy-rolling"].items():
        assert ours["toy-rolling"][doc][0][0] == pytest.approx(said, abs=1e-3)


@pytest.mark.parametrize("options", [{}, {"add_bos_token": False}, {"apply_chat_template": True}])
def test_contexts_are_tokenised_as_by_the_stock_model(evaluate, tiny_decoder, tmp_path, options):
    model = tiny_decoder("llama")
    model.tokenizer.chat_template = "{{ bos_token }}{% for m in messages %} {{ m['content'] }}{% endfor %}"
    model.description.method_name, model.description.chat_template = "calm-tokens-softmax", "auto"
    model.save_pretrained(tmp_path / "saved")
    model.backbone.save_pretrained(tmp_path / "stock")
    model.tokenizer.save_pretrained(tmp_path / "stock")
    given = {name: options[name] for name in options if name == "add_bos_token"}
    rest = {name: value for name, value in options.items() if name not in given}
    ours = {"pretrained": str(tmp_path / "saved"), "method": "token-full", **given}
    stock = {"pretrained": str(tmp_path / "stock"), "dtype": "float32", "device": "cpu", **given}
    found = [
        responses(evaluate(model, arguments, ["toy-writing"], **rest))
        for model, arguments in (("consistentee", ours), ("hf", stock))
    ]
    assert found[0] == found[1]


@torch.no_grad()
def test_every_scored_token_is_read_off_the_exit_that_the_rule_takes(saved):
    lm = EarlyExitLM(str(saved), knob=0.8)
    rows = [([2, *range(10 + i, 16 + i)], list(range(30 + i, 30 + i + 4))) for i in range(6)]
    found = lm._loglikelihood_tokens([(None, *row) for row in rows], disable_tqdm=True)
    trace = record_tokens(lm.decoder, rows)
    exits = replay(lm.scoring_rule, replace(trace, step=trace.step + 1))  # the first scored token may leave early too
    assert len(exits) == 24
    assert len(exits.unique()) > 1
    assert lm.get_model_info()["average_layers"] == pytest.approx(float(exits.double().mean()))
    alone = EarlyExitLM(str(saved), knob=0.8, batch_size=1)
    assert [score for score, _ in alone._loglikelihood_tokens([(None, *row) for row in rows], disable_tqdm=True)] == (
        pytest.approx([score for score, _ in found], abs=1e-4)
    )
    by_layer = iter(exits.tolist())
    for (context, scored), (score, _) in zip(rows, found, strict=True):
        tokens = torch.tensor([context + scored])
        states = lm.decoder.exit_states(tokens, torch.ones_like(tokens, dtype=torch.bool)).answer_states[0]
        total = 0.0
        for place, token in enumerate(scored, start=len(context) - 1):
            layer = next(by_layer)
            logits = lm.decoder.logits(layer, states[place, lm.decoder.exit_layers.index(layer)])
            total += float(logits.log_softmax(dim=-1)[token])
        assert score == pytest.approx(total, abs=1e-3)


def test_given_texts_are_not_scored_behind_closing_layers(tiny_decoder, tmp_path):
    model = tiny_decoder(adapter="shared", exit_layers=[2, 3], closing_layers=1)
    model.description.method_name = "token-static"
    model.save_pretrained(tmp_path)
    lm = EarlyExitLM(str(tmp_path), knob=2)
    with pytest.raises(UserError, match="closing layers"):
        lm._loglikelihood_tokens([(None, [2, 5], [6])])


@torch.no_grad()
def test_a_text_as_long_as_the_context_is_scored_and_no_longer_answer(saved):
    lm = EarlyExitLM(str(saved), method="token-full")
    long = lm.tok_encode(" ".join(random_prompts(40)))
    assert len(long) > 2 * lm.max_length
    (score,) = lm._loglikelihood_tokens([(None, long[:-5], long[-5:])], disable_tqdm=True)
    kept = torch.tensor([long[-lm.max_length - 1 : -1]])
    logits = lm.decoder.stock_logits(kept, torch.ones_like(kept, dtype=torch.bool))[0, -5:].log_softmax(dim=-1)
    assert score[0] == pytest.approx(float(logits.gather(1, torch.tensor(long[-5:])[:, None]).sum()), abs=1e-3)
    context, longest = [2, 11, 12], [13] * lm.max_length
    found = [lm._loglikelihood_tokens([(None, row, longest)], disable_tqdm=True) for row in (context, context[-1:])]
    assert found[0] == found[1], "one token of the context is read"
    with pytest.raises(UserError, match="cannot be scored"):
        lm._loglikelihood_tokens([(None, context, [*longest, 13])], disable_tqdm=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "deebert"}, "deebert is a method of another kind"),
        ({"knob": 77.0}, "must lie in"),
        ({"batch_size": "auto"}, "--batch_size must be a number, got auto"),
    ],
)
def test_impossible_options_are_refused(saved, arguments, message):
    with pytest.raises(UserError, match=message):
        EarlyExitLM(str(saved), **arguments)


@pytest.mark.slow
def test_the_command_line_of_the_harness_knows_the_model(tmp_path, saved, tasks):
    words = ["--model", "consistentee", "--model_args", f"pretrained={saved},method=token-full", "--batch_size", "4"]
    words += ["--tasks", str(tasks / "toy-choice.yaml")]
    program = [sys.executable, "-c", "from benchmarks.lm_eval import main; main()", *words]
    done = subprocess.run(program, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"toy-choice.*acc.*0\.\d", done.stdout)


def test_errors_of_the_user_are_one_sentence(monkeypatch, capsys):
    refused = Mock(side_effect=UserError("no such model folder: nowhere"))
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", refused)
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err == "error: no such model folder: nowhere\n"
