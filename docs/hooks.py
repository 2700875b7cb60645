"""Hooks of MkDocs: copy the figures of results into the site, and remove roles of docstrings."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ENTRY = re.compile(r"<!-- (::: .*?) -->", re.DOTALL)
_SIGNATURE = re.compile(r"<!-- signature -->.*?<!-- end -->\n", re.DOTALL)
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code>)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the committed figures, which lie outside of docs/."""
    root = Path(config.config_file_path).parent
    for figure in sorted(root.glob("results/*/*.png")):
        files.append(File.generated(config, figure.relative_to(root).as_posix(), abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Show figures by the path that a reader of the repository follows, and whole entries of the API in its pages."""
    markdown = _SIGNATURE.sub("", _ENTRY.sub(r"\1", markdown))
    return markdown.replace("](../results/", "](results/")


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Take ``:class:`` and the like away from names, which are links by other means here."""
    return _ROLE.sub("", html)
