"""Where a backbone comes from: the catalogue, directories, and a hub that may be missing."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from consistentee.backbones import hub
from consistentee.backbones.catalog import list_backbones, resolve, resolve_decoder
from consistentee.backbones.wheels import is_fetched
from consistentee.errors import UserError


def write_model(folder, config=None, pooling=None, weights="model.safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "bert"}))
    (folder / weights).write_bytes(b"")
    (folder / "tokenizer.json").write_text("{}")
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def test_encoders_and_decoders_are_told_apart():
    kinds = {name: backbone.kind for name, backbone in list_backbones().items()}
    assert (kinds["minilm-l6"], kinds["smollm2-135m"], kinds["gpt2"]) == ("encoder", "decoder", "decoder")
    with pytest.raises(UserError, match="'smollm2-135m' is a decoder: it generates text and classifies none"):
        resolve("smollm2-135m")
    with pytest.raises(UserError, match="'minilm-l6' is an encoder: it classifies text and generates none"):
        resolve_decoder("minilm-l6")


@pytest.mark.parametrize("find", [resolve, resolve_decoder])
def test_names_and_directories_that_are_no_model(tmp_path, find):
    with pytest.raises(UserError, match=r"no safetensors weights; pickle weights"):
        find(str(write_model(tmp_path / "pickled", weights="pytorch_model.bin")))
    with pytest.raises(UserError, match="no such file or directory"):
        find(str(tmp_path / "absent"))


def test_a_directory_with_a_decoder(tmp_path):
    folder = write_model(tmp_path / "mine", {"model_type": "llama"})
    assert resolve_decoder(str(folder)) == str(folder)
    with pytest.raises(UserError, match="unknown backbone 'smolm2-135m'; did you mean 'smollm2-135m'"):
        resolve_decoder("smolm2-135m")


@pytest.mark.parametrize(
    ("config", "pooling", "expected"),
    [
        ({"model_type": "bert"}, None, ("cls", True)),
        ({"model_type": "albert"}, None, ("cls", True)),
        ({"model_type": "electra"}, None, ("cls", False)),
        ({"model_type": "bert"}, {"pooling_mode_mean_tokens": True}, ("mean", False)),
        ({"model_type": "bert"}, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls", False)),
        ({"model_type": "mpnet"}, {"pooling_mode": "mean"}, ("mean", False)),
    ],
)
def test_directory_is_pooled_as_it_was_trained(tmp_path, config, pooling, expected):
    folder = write_model(tmp_path / "mine", config, pooling)
    assert resolve(str(folder))[:3] == (str(folder), *expected)


def test_a_directory_that_lacks_something(tmp_path):
    with pytest.raises(UserError, match=r"holds no config\.json"):
        resolve(str(tmp_path))
    (write_model(tmp_path / "mute") / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="mute holds no tokenizer"):
        resolve(str(tmp_path / "mute"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        resolve(str(tmp_path))
    with pytest.raises(UserError, match="neither mean nor cls"):
        resolve(str(write_model(tmp_path / "max", pooling={"pooling_mode_max_tokens": True})))


# ------------------------------------------------------------------------------------------------------- hub


HUB = {
    "someone/model": {
        "config.json": '{"model_type": "bert"}',
        "model.safetensors": "weights",
        "onnx/model.safetensors": "another format",
        "tokenizer.json": "{}",
        "pytorch_model.bin": "pickle",
        "1_Pooling/config.json": '{"pooling_mode_mean_tokens": true}',
    },
    "someone/pickled": {"config.json": "{}", "pytorch_model.bin": "pickle"},
}


@pytest.fixture
def small_hub(tmp_path, monkeypatch):
    """Let the hub have two repositories; without ``online`` it does not answer."""
    state = SimpleNamespace(online=True, cache=tmp_path / "hub")

    def model_info(_, repository, timeout):
        if not state.online:
            raise ConnectionError("no route")
        if repository not in HUB:
            raise RepositoryNotFoundError("not there", response=Mock(headers={}))
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in HUB[repository]])

    def snapshot_download(repository, local_files_only=False, **patterns):
        folder = state.cache / repository
        if local_files_only and not folder.is_dir():
            raise FileNotFoundError(repository)
        for file in filter_repo_objects(HUB[repository], **patterns):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(HUB[repository][file])
        return str(folder)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return state


def test_a_model_of_the_hub_is_downloaded_once_and_what_it_lacks_is_named(small_hub):
    found = resolve("someone/model")
    assert found[1:3] == ("mean", False)
    files = {path.name for path in (small_hub.cache / "someone" / "model").iterdir()}
    assert files == {"config.json", "model.safetensors", "tokenizer.json", "1_Pooling"}
    with pytest.raises(UserError, match="someone/pickled has no safetensors weights; pickle weights"):
        resolve("someone/pickled")
    with pytest.raises(UserError, match="the hub has no public repository someone/absent"):
        resolve("someone/absent")
    small_hub.online = False
    assert resolve("someone/model") == found
    of_the_same_kind = "no directory someone/else, and the hub cannot be reached .*no hub: minilm-l6, mpnet-base$"
    with pytest.raises(UserError, match=of_the_same_kind):
        resolve("someone/else")
    with pytest.raises(UserError, match="'bert-base-uncased' cannot be found: the catalogue ships it in no package"):
        resolve("bert-base-uncased")


def test_a_hub_without_an_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(hub, "DEADLINE", 0.05)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: time.sleep(0.5))
    with pytest.raises(hub.HubError, match=r"no answer within 0\.05 seconds"):
        hub.ask("model_info", "someone/model")


@pytest.mark.real
@pytest.mark.parametrize("name", ["minilm-l6", "mpnet-base", "smollm2-135m"])
def test_real_weights_are_what_the_catalogue_says(name):
    backbone = list_backbones()[name]
    if name != "minilm-l6" and not is_fetched(backbone.source):
        pytest.skip(f"{name} ({backbone.source.size / 1e6:.0f} MB) has not been fetched")
    path = resolve_decoder(name) if backbone.kind == "decoder" else resolve(name).path
    config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    assert (config["num_hidden_layers"], config["hidden_size"]) == (backbone.layers, backbone.width)
    if backbone.kind == "encoder":
        assert resolve(path)[:3] == resolve(name)[:3]
