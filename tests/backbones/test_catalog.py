"""Where a backbone comes from: the catalogue, directories, and a hub that may be missing."""

import json
import os
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar

import pytest

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
# The hub's address is read when the library is imported, so these run in processes of their own.

RESOLVE = """
import sys
from consistentee.backbones.catalog import resolve
from consistentee.errors import UserError
for name in sys.argv[1:]:
    try:
        print(resolve(name))
    except UserError as error:
        print("UserError:", error)
"""


def resolve_elsewhere(tmp_path, port, *names):
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path / "hub")}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", RESOLVE, *names]
    return subprocess.check_output(command, env=environment, text=True, timeout=60).splitlines()


def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs."""

    commit = "a" * 40
    repositories: ClassVar[dict[str, dict[str, bytes]]] = {
        "someone/model": {
            "config.json": b'{"model_type": "bert"}',
            "model.safetensors": b"weights",
            "onnx/model.safetensors": b"another format",
            "tokenizer.json": b"{}",
            "pytorch_model.bin": b"pickle",
            "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
        },
        "someone/pickled": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
    }

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def log_message(self, *_args):
        pass

    def answer(self):
        path = self.path.split("?")[0].removeprefix("/").removeprefix("api/models/")
        name = "/".join(path.split("/")[:2])
        files = self.repositories.get(name)
        if files is None:
            return self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if "/resolve/" in path:
            file = path.split("/resolve/")[1].split("/", 1)[1]
            return self.send(200, files[file], {"X-Repo-Commit": self.commit, "ETag": f'"{len(files[file])}"'})
        if "/tree/" in path:
            tree = [{"type": "file", "path": f, "size": len(b), "oid": f} for f, b in files.items()]
            return self.send(200, json.dumps(tree).encode(), {})
        info = {"id": name, "sha": self.commit, "siblings": [{"rfilename": file} for file in files]}
        return self.send(200, json.dumps(info).encode(), {})

    def send(self, status, content, headers):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def test_hub_download_then_offline(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    names = ("someone/model", "someone/pickled", "someone/absent")
    answers = resolve_elsewhere(tmp_path, server.server_port, *names)
    server.shutdown()
    server.server_close()
    assert "pooling='mean', pooler=False" in answers[0]
    assert "someone/pickled has no safetensors weights; pickle weights" in answers[1]
    assert "the hub has no public repository someone/absent" in answers[2]
    fetched = {path.name for path in (tmp_path / "hub").rglob("snapshots/*/*")}
    assert fetched == {"config.json", "model.safetensors", "tokenizer.json", "1_Pooling"}

    again = resolve_elsewhere(tmp_path, closed_port(), "someone/model", "someone/else", "bert-base-uncased")
    assert again[0] == answers[0]
    assert "no directory someone/else, and the hub cannot be reached" in again[1]
    assert again[1].endswith("use one that needs no hub: minilm-l6, mpnet-base")  # of the same kind
    assert "'bert-base-uncased' cannot be found: the catalogue ships it in no package" in again[2]


@pytest.mark.real
@pytest.mark.parametrize("name", ["minilm-l6", "mpnet-base", "smollm2-135m"])
def test_real_weights_are_what_the_catalogue_says(name):
    backbone = list_backbones()[name]
    if name != "minilm-l6" and not is_fetched(backbone.source):
        pytest.skip(f"{name} ({backbone.source.size / 1e6:.0f} MB) has not been fetched")
    path = resolve_decoder(name) if backbone.kind == "decoder" else resolve(name).path
    with open(os.path.join(path, "config.json")) as file:
        config = json.load(file)
    assert (config["num_hidden_layers"], config["hidden_size"]) == (backbone.layers, backbone.width)
    if backbone.kind == "encoder":
        assert resolve(path)[:3] == resolve(name)[:3]
