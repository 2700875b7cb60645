"""The code that README and docs/ show, and what is said beside it for the tests.

A fenced block is ``sh`` (commands), ``python``, ``yaml`` (tasks) or ``text`` (what is printed, which nobody runs). A
comment above a block says what a test does otherwise than to run what stands there::

    <!-- test: parsed, for it takes hours -->            the real command line reads the arguments, and no more is done
    <!-- test: slow -->                                  the same, but `-m slow` runs it; `slow, with ...` as below
    <!-- test: with "epochs=6" as "epochs=1" -->         run with this in place of that
    <!-- test: on tiny models with "6" as "2" -->        the same, but as it stands on what it names, under `-m real`
    <!-- test: test_name -->                             the test of this name runs it
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent

DOCUMENTS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")))

LANGUAGES = {"sh", "python", "yaml", "text"}

_SAID = re.compile(r"<!-- test: (.*?)\s*-->", re.DOTALL)
_SMALLER = re.compile(r'"([^"]*)" as "([^"]*)"')


@dataclass(frozen=True)
class Block:
    """A fenced block: where its fence stands, and what the comment above it says to a test, or nothing."""

    place: str
    line: int
    language: str
    source: str
    said: str

    @property
    def is_parsed_only(self) -> bool:
        return self.said.startswith("parsed")

    @property
    def is_slow(self) -> bool:
        return self.said.startswith("slow")

    @property
    def test(self) -> str:
        """The name of the test that runs it in place of the general one."""
        return self.said if self.said.startswith("test_") else ""

    def smaller(self, *, on_tiny_models: bool = True) -> str:
        """Return the source with the replacements that are declared beside it; some are for tiny models alone."""
        source = self.source
        if self.said.startswith("on tiny models") and not on_tiny_models:
            return source
        for shown, run in _SMALLER.findall(self.said):
            assert shown in source, f"{self.place}: there is no {shown!r} to replace"
            source = source.replace(shown, run)
        return source


def blocks_of(document: str, language: str = "") -> list[Block]:
    """Return the fenced blocks of a document, of one language or of all, in order."""
    tokens = MarkdownIt().parse((ROOT / document).read_text(encoding="utf-8"))
    found = []
    for before, token in pairwise([None, *tokens]):
        if token is None or token.type != "fence" or token.map is None:
            continue
        said = _SAID.search(before.content) if before is not None and before.type == "html_block" else None
        line = token.map[0] + 1
        name = token.info.split()[0] if token.info else ""
        found.append(Block(f"{document}:{line}", line, name, token.content, said[1] if said else ""))
    return [block for block in found if language in ("", block.language)]


def commands_of(source: str) -> Iterator[list[str]]:
    """Yield the commands of a shell block as words; comments and variables set before a command are left out."""
    for line in source.replace("\\\n", " ").splitlines():
        for part in re.split(r"\s&&\s", line):
            words = shlex.split(part, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words = words[1:]
            if words:
                yield words
