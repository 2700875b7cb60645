"""Models of both kinds: files, fingerprints, heads, seeds."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from comparing import same_weights
from safetensors.torch import load, save
from torch import Tensor

from benchmarks.testing.tiny import random_prompts, random_texts
from consistentee import HeadSpec, MultiExitDecoder, MultiExitModel, NeverExit, UserError, classify, generate


def logits_of_texts(model: MultiExitModel) -> Tensor:
    return classify(model, random_texts(12), NeverExit()).logits


def tokens_of_prompts(model: MultiExitDecoder) -> Tensor:
    return torch.cat(generate(model, random_prompts(4), NeverExit(), max_new_tokens=5).tokens)


class Kind(NamedTuple):
    """One kind of model."""

    model_class: Any
    new: Callable[..., Any]  # (family, ...) -> a fresh model whose exits disagree
    backbone: Callable[..., object]  # family -> the folder of its backbone
    answers: Callable[[Any], Tensor]  # model -> its answers on some texts
    file: str  # of the description
    exits: str  # prefix of the weights of the first exit


@pytest.fixture(params=["instances", "tokens"])
def kind(request, tiny_model, tiny_decoder, tiny_backbone, tiny_decoder_backbone) -> Kind:
    if request.param == "instances":
        file, exits = "multi_exit.json", "classifiers.0."
        return Kind(MultiExitModel, tiny_model, tiny_backbone, logits_of_texts, file, exits)
    file, exits = "multi_exit_decoder.json", "exit_adapters.1."
    return Kind(MultiExitDecoder, tiny_decoder, tiny_decoder_backbone, tokens_of_prompts, file, exits)


@pytest.fixture
def saved(kind, tmp_path):
    """Return the folder of a saved model."""
    model = kind.new()
    if kind.model_class is MultiExitDecoder:
        model.description.with_backbone = True
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_loaded_model_equals_the_saved_one_without_pickle(kind, tmp_path):
    """The contract has every family."""
    model = kind.new()
    model.add_head("policy", HeadSpec(hidden=8, extra_inputs=2))
    model.description.method_name = "pabee"
    model.save_pretrained(tmp_path / "saved")
    again = kind.model_class.from_pretrained(tmp_path / "saved")
    assert again.description == model.description
    assert again.fingerprint() == model.fingerprint()
    assert same_weights(model, again)
    assert torch.equal(kind.answers(model), kind.answers(again))
    files = [path for path in (tmp_path / "saved").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".jinja", ".txt", ".md"}


def test_a_description_of_another_format_is_refused(kind, saved):
    path = saved / kind.file
    described = json.loads(path.read_text())
    for change, message in (({"format_version": 99}, "format 99"), ({"surprise": 1}, "read: surprise")):
        path.write_text(json.dumps(described | change))
        with pytest.raises(UserError, match=message):
            kind.model_class.from_pretrained(saved)


def damages(path: Path) -> Iterator[bytes | None]:
    """Yield damaged contents of a file; None stands for a file that is not there."""
    content = path.read_bytes()
    yield from (None, b"", content[: len(content) // 2], bytes(range(256)), b"[]")
    if path.suffix == ".safetensors":
        weights = load(content)
        name = min(weights)
        first = weights[name]
        for other in (torch.full_like(first, torch.nan), torch.full_like(first, torch.inf), torch.zeros(3, 5)):
            yield save(weights | {name: other})
        yield save(weights | {name: first.long()})
        yield save({other: tensor for other, tensor in weights.items() if other != name})
    elif path.parent.name not in ("tokenizer", "backbone") or path.name == "config.json":
        values = json.loads(content)
        for name in values.keys() - {"_name_or_path", "transformers_version", "architectures"}:
            other_type = {"a": [1]} if isinstance(values[name], (int, float, str)) else "text"
            yield json.dumps(values | {name: other_type}).encode()


def answer_or_refusal(kind: Kind, folder: Path) -> Tensor | str:
    try:
        return kind.answers(kind.model_class.from_pretrained(folder))
    except UserError as error:
        return str(error)


def test_a_damaged_file_is_named_or_changes_nothing(kind, saved):
    expected = answer_or_refusal(kind, saved)
    refused: Counter[str] = Counter()
    for path in sorted(path for path in saved.rglob("*") if path.suffix in (".json", ".safetensors")):
        whole = path.read_bytes()
        for content in damages(path):
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            found = answer_or_refusal(kind, saved)
            path.write_bytes(whole)
            if isinstance(found, Tensor):
                assert torch.equal(found, expected), (path, content)
                continue
            refused[path.name] += 1
            assert "\n" not in found
            assert str(saved) in found
            if path.suffix == ".safetensors" or content in (b"", bytes(range(256)), b"[]"):
                assert path.name in found or str(path.parent) in found, (content, found)
    at_least = {"model.safetensors": 10, "tokenizer.json": 4, "config.json": 5, kind.file: 12}
    assert all(refused[name] >= count for name, count in at_least.items())


@pytest.mark.parametrize("model_type", [None, "nonesuch"])
def test_no_code_that_a_configuration_names_is_run(kind, saved, tmp_path, model_type):
    ran = tmp_path / "ran"
    for folder in (saved / "backbone", saved / "tokenizer"):
        (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')")
        for path in folder.glob("*config.json"):
            values = json.loads(path.read_text())
            names = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "evil.Evil")
            values["auto_map"] = names | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
            if model_type is not None and "model_type" in values:
                values["model_type"] = model_type
            path.write_text(json.dumps(values))
    found = answer_or_refusal(kind, saved)
    assert isinstance(found, Tensor if model_type is None else str)
    assert not ran.exists()


def test_the_fingerprint_sees_weights_and_heads(kind):
    model = kind.new()
    before, without_heads = model.fingerprint(), model.fingerprint(with_heads=False)
    assert kind.new().fingerprint() == before
    model.add_head("gate", HeadSpec())
    assert model.fingerprint() != before
    assert model.fingerprint(with_heads=False) == without_heads
    for name, parameter in model.named_parameters():
        if name.startswith(kind.exits):
            parameter.data.add_(1)
    assert model.fingerprint(with_heads=False) != without_heads


def test_same_seed_same_new_weights(kind):
    family, options = ("bert", {"num_labels": 3}) if kind.model_class is MultiExitModel else ("llama", {})
    folder = str(kind.backbone(family))
    first, again, other = (kind.model_class.from_backbone(folder, **options, seed=seed) for seed in (1, 1, 2))
    assert same_weights(first, again)
    assert not same_weights(first, other)
    heads = [model.add_head("h", HeadSpec(), seed=5) for model in (first, other)]
    assert torch.equal(*(next(head.parameters()) for head in heads))
