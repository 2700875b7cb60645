"""Download one file of a package index with unearth, by the user's settings of pip; nothing of a package is run."""

import ast
import ssl
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unearth import PackageFinder

_SECTIONS = ("global", "download", ":env:")
"""Sections of pip's settings; a later one overrides those before."""


def download(distribution: str, filename: str, size: int, target: Path) -> None:
    """Write a file of a distribution to ``target``, with a progress bar on a terminal.

    Raises LookupError if the index has no such file, and what unearth and httpx raise for a connection that fails.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    finder = _finder(_pip_settings())
    links = [package.link for package in finder.find_all_packages(distribution) if package.link.filename == filename]
    if not links:
        raise LookupError(f"no file {filename} was found")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    # Unencoded, or a proxy might unpack the .gz on the way and the hash would differ.
    stream = finder.session.get_stream(links[0].normalized, headers={"Accept-Encoding": "identity"})
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(distribution, total=size)
        with stream as response, target.open("wb") as file:
            response.raise_for_status()
            for chunk in response.iter_raw():
                file.write(chunk)
                progress.advance(bar, len(chunk))


def _pip_settings() -> dict[str, str]:
    """Return pip's settings from its files and the environment; none where there is no pip."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    sections: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in sections:
            sections[section][key] = ast.literal_eval(value)
    return {key: value for section in _SECTIONS for key, value in sections[section].items()}


def _finder(settings: dict[str, str]) -> "PackageFinder":
    from unearth import PackageFinder
    from unearth.auth import MultiDomainBasicAuth
    from unearth.fetchers.sync import PyPIClient

    indexes = [settings.get("index-url", "https://pypi.org/simple/"), *settings.get("extra-index-url", "").split()]
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        indexes = []
    find_links = settings.get("find-links", "").split()
    if not indexes and not find_links:
        raise LookupError("pip is told to use no index, and no links")
    client = PyPIClient(
        trusted_hosts=settings.get("trusted-host", "").split(),
        verify=ssl.create_default_context(cafile=settings["cert"]) if "cert" in settings else True,
        cert=settings.get("client-cert"),
        proxy=settings.get("proxy"),
        timeout=float(settings.get("timeout", settings.get("default-timeout", "15"))),
        follow_redirects=True,
    )
    client.auth = MultiDomainBasicAuth(index_urls=indexes)
    return PackageFinder(client, index_urls=indexes, find_links=find_links, ignore_compatibility=True)
