"""check-backbone passes every family, and names what is wrong with backbones that are broken on purpose."""

import json
import shutil
from dataclasses import replace

import pytest
from command_line import call
from safetensors.torch import load_file, save_file
from transformers import AutoModel, GPT2Config

from benchmarks.testing import check_backbone as module
from benchmarks.testing.check_backbone import check_backbone
from benchmarks.testing.report import Finding, Report
from benchmarks.testing.tiny import FAMILIES, make_tokenizer
from consistentee.backbones.encoders import EncoderStepper, RobertaStepper


def faults(report: Report) -> dict[str, str]:
    return {finding.title: str(fault) for finding in report.findings for fault in finding.faults}


def found(report: Report, title: str) -> str:
    return next(finding.found for finding in report.findings if finding.title == title)


def skipped(report: Report) -> set[str]:
    return {finding.title for finding in report.findings if finding.verdict == "not run"}


@pytest.fixture
def bert(tiny_backbone, tmp_path):
    """A copy of the tiny BERT's folder, to break."""
    return shutil.copytree(tiny_backbone("bert"), tmp_path / "bert")


def only(monkeypatch, *titles: str) -> None:
    """Run these checks alone, for speed."""
    monkeypatch.setattr(module, "CHECKS", {title: module.CHECKS[title] for title in titles})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes_every_check(tiny_backbone, family):
    report = check_backbone(str(tiny_backbone(family)))
    assert faults(report) == {}
    assert skipped(report) == set()
    assert report.passed
    assert len(report.findings) == 10
    limit = 64 if family in ("roberta", "mpnet") else 66
    assert found(report, "long texts are cut") == f"{limit} tokens"


def test_layers_that_the_stepper_runs_in_another_way(bert):
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps({**config, "is_decoder": True}))
    report = check_backbone(str(bert))
    fault = faults(report)["stepped, full depth = the stock model"]
    assert "the hidden states of layer 1 of" in fault
    assert "encoders.py" in fault


def test_a_stepper_that_forgets_the_padding_once_rows_have_left(bert, monkeypatch):
    context = EncoderStepper.context

    def without_mask(self, layer, hidden, batch):
        whole = context(self, layer, hidden, batch)
        return whole if layer == 1 else replace(whole, attention_mask=None)

    monkeypatch.setattr(EncoderStepper, "context", without_mask)
    only(monkeypatch, "a row's result is its own")
    fault = faults(check_backbone(str(bert)))["a row's result is its own"]
    assert "encoders.py" in fault


def test_a_stepper_that_is_wrong_about_positions(tiny_backbone, monkeypatch):
    monkeypatch.setattr(RobertaStepper, "reserved_positions", 0)
    only(monkeypatch, "long texts are cut")
    report = check_backbone(str(tiny_backbone("roberta")))
    assert "a row of the longest length cannot be run: 66 tokens" in faults(report)["long texts are cut"]


def without_padding(folder) -> None:
    tokenizer = make_tokenizer(uses_token_types=True)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)


def with_more_tokens(folder) -> None:
    tokenizer = make_tokenizer(uses_token_types=True)
    tokenizer.add_tokens(["one", "more"])
    tokenizer.save_pretrained(folder)


def with_an_empty_vocabulary(folder) -> None:
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")


def without_a_weight(folder) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.2.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


TOKENIZER, LOADS = "the tokenizer fits", "it loads"


@pytest.mark.parametrize(
    ("damage", "title", "fault"),
    [
        (lambda bert: (bert / "tokenizer.json").write_text("{}"), LOADS, "the backbone cannot be loaded"),
        (with_an_empty_vocabulary, TOKENIZER, "knows hardly any word"),
        (without_padding, TOKENIZER, "has no padding token"),
        (without_a_weight, LOADS, "lacks 1 of the model's weights, encoder.layer.2.output.dense.weight"),
        (with_more_tokens, TOKENIZER, "its largest token is 65, and the embeddings end at 63"),
    ],
)
def test_damaged_files_are_named_and_nothing_else_is_run(bert, damage, title, fault):
    damage(bert)
    report = check_backbone(str(bert))
    assert set(faults(report)) == {title}
    assert fault in faults(report)[title]
    assert "pooling" in skipped(report)


def test_a_different_padding_token_is_reported(tiny_backbone, tmp_path):
    folder = shutil.copytree(tiny_backbone("roberta"), tmp_path / "roberta")
    tokenizer = make_tokenizer(uses_token_types=False)
    tokenizer.pad_token = "[UNK]"
    tokenizer.save_pretrained(folder)
    assert "different padding tokens: 0 and 1" in faults(check_backbone(str(folder)))[TOKENIZER]


def test_an_architecture_without_a_stepper(tmp_path):
    AutoModel.from_config(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=16)).save_pretrained(tmp_path)
    make_tokenizer(uses_token_types=False).save_pretrained(tmp_path)
    fault = faults(check_backbone(str(tmp_path)))[LOADS]
    assert "is a decoder" in fault


def test_pooling_as_sentence_transformers_say(bert, monkeypatch):
    only(monkeypatch, "pooling")
    (bert / "1_Pooling").mkdir()
    (bert / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    assert found(check_backbone(str(bert)), "pooling") == "mean of the tokens: as 1_Pooling/config.json defines it"


def test_the_command_ends_as_check_method_does(bert):
    def shown(backbone: object, exit_code: int) -> str:
        done = call("check-backbone", backbone)
        assert done.exit_code == exit_code, done.output
        return done.output

    assert "methods can be compared on it" in shown(bert, 0)
    (bert / "config.json").write_text('{"model_type": "no-such-thing"}')
    assert "methods cannot be compared on it" in shown(bert, 1)
    assert "did you mean 'minilm-l6'" in shown("minilm-16", 2)


def test_text_is_never_read_as_markup():
    from rich.console import Console

    finding = Finding("[bold]a", "[red]x")
    console = Console(width=100, record=True)
    console.print(Report("[b]name", "[i]what", [finding], "holds", "broken").table())
    shown = console.export_text()
    assert all(part in shown for part in ("[bold]a", "[red]x", "[b]name", "[i]what"))


@pytest.mark.real
def test_a_real_backbone_passes():
    report = check_backbone("minilm-l6")
    assert faults(report) == {}
    assert found(report, "pooling") == "mean of the tokens: as the catalogue defines it"
