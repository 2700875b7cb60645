"""Download a source distribution without running its ``setup.py``; run as a process of its own.

``pip download`` builds a source distribution's metadata, which runs code of the package. Here pip only finds the link
and streams the file, with whatever index, certificates and proxy pip is configured for.
"""

import sys
from pathlib import Path

from pip._internal.commands import create_command
from pip._internal.network.utils import response_chunks


def download(distribution: str, version: str, filename: str, folder: str) -> None:
    """Write ``filename`` of ``distribution`` ``version`` into ``folder``; exits with a message if it is not found."""
    command = create_command("download")
    options, _ = command.parse_args(["--no-deps", "--dest", folder, f"{distribution}=={version}"])
    with command.main_context():
        session = command.get_default_session(options)
        finder = command._build_package_finder(options, session)
        candidates = finder.find_all_candidates(distribution)
        links = [c.link for c in candidates if str(c.version) == version and c.link.filename == filename]
        if not links:
            raise SystemExit(f"ERROR: no file {filename} found for {distribution}=={version}")
        # Unencoded, or a proxy might unpack the .gz on the way and the hash would differ.
        response = session.get(links[0].url_without_fragment, headers={"Accept-Encoding": "identity"}, stream=True)
        response.raise_for_status()
        with (Path(folder) / filename).open("wb") as file:
            for chunk in response_chunks(response):
                file.write(chunk)


if __name__ == "__main__":
    download(*sys.argv[1:])
