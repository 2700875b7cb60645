"""check-backbone passes every family, and names what is wrong with backbones that are broken on purpose."""

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
from command_line import call
from safetensors.torch import load_file, save_file
from transformers import GPT2Config

from benchmarks.testing import check_backbone as module
from benchmarks.testing.check_backbone import check_backbone
from benchmarks.testing.report import Report
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


def with_tokenizer(folder, *more: str, **special: str | None) -> None:
    """Save a tokenizer that has more tokens, or other special ones."""
    tokenizer = make_tokenizer(uses_token_types=True)
    tokenizer.add_tokens(list(more))
    for name, token in special.items():
        setattr(tokenizer, name, token)
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
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), LOADS, "the backbone cannot be loaded"),
        (lambda folder: GPT2Config().save_pretrained(folder), LOADS, "is a decoder"),
        (with_an_empty_vocabulary, TOKENIZER, "knows hardly any word"),
        (partial(with_tokenizer, pad_token=None), TOKENIZER, "has no padding token"),
        (partial(with_tokenizer, pad_token="[UNK]"), TOKENIZER, "different padding tokens: 0 and 1"),
        (without_a_weight, LOADS, "lacks 1 of the model's weights, encoder.layer.2.output.dense.weight"),
        (lambda folder: with_tokenizer(folder, "one", "more"), TOKENIZER, "largest token is 65, and the embed"),
    ],
)
def test_damaged_files_are_named_and_nothing_else_is_run(tiny_backbone, tmp_path, damage, title, fault):
    folder = shutil.copytree(tiny_backbone("roberta"), tmp_path / "roberta")
    damage(folder)
    report = check_backbone(str(folder))
    assert set(faults(report)) == {title}
    assert fault in faults(report)[title]
    assert "pooling" in skipped(report)


def test_the_command_ends_as_check_method_does(bert, monkeypatch):
    only(monkeypatch, LOADS)

    def shown(backbone: object, exit_code: int) -> str:
        done = call("check-backbone", backbone)
        assert done.exit_code == exit_code, done.output
        return done.output

    assert "methods can be compared on it" in shown(bert, 0)
    (bert / "config.json").write_text('{"model_type": "no-such-thing"}')
    assert "methods cannot be compared on it" in shown(bert, 1)
    assert "did you mean 'minilm-l6'" in shown("minilm-16", 2)


@pytest.mark.real
def test_a_real_backbone_passes():
    report = check_backbone("minilm-l6")
    assert faults(report) == {}
    assert found(report, "pooling") == "mean of the tokens: as the catalogue defines it"
