"""TextTask: splits of prompts and reference texts; and the rule that cuts long prompts."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from consistentee.arguments import Positive, Texts, checked
from consistentee.data.instances import LoadedSplit, LoadedTask
from consistentee.errors import UserError

Keep = Literal["start", "end"]
"""The end of a long text that is kept."""

ChatTemplate = Literal["auto", "never"]
"""Whether prompts are put into the tokenizer's chat template, as messages of a user, where it has one."""

Encode = Callable[[str], Sequence[int]]
"""Convert a prompt to its tokens, with special tokens."""

_PIECE = re.compile(r"\s*\S{1,24}")  # where a body may be cut: between words, and within very long ones


class Prompt(str):
    """A prompt ``before + body + after`` whose body may be cut: an article, but not the instruction around it."""

    before: str
    body: str
    after: str

    @checked
    def __new__(cls, before: str, body: str, after: str = "") -> "Prompt":
        prompt = super().__new__(cls, before + body + after)
        prompt.before, prompt.body, prompt.after = before, body, after
        return prompt

    def __getnewargs__(self) -> tuple[str, str, str]:  # type: ignore[override]  # str's own has one argument
        return self.before, self.body, self.after


def cut_prompt(encode: Encode, prompt: str, max_prompt_tokens: int | None, keep: Keep = "start") -> str:
    """Return ``prompt`` if its tokens fit, else the prompt with a shorter body.

    Keeps as many whole words of the body as fit, from its start or up to its end. A plain string is all body. None
    is no limit. Raises UserError if not one word of the body fits.
    """
    if max_prompt_tokens is None or len(encode(prompt)) <= max_prompt_tokens:
        return prompt
    whole = prompt if isinstance(prompt, Prompt) else Prompt("", prompt)
    # A piece has at least one token, so more pieces cannot fit.
    pieces = _PIECE.findall(whole.body)
    pieces = pieces[:max_prompt_tokens] if keep == "start" else pieces[-max_prompt_tokens:]

    def of_pieces(count: int) -> Prompt:
        kept = pieces[:count] if keep == "start" else pieces[len(pieces) - count :]
        return Prompt(whole.before, "".join(kept).strip(), whole.after)

    counts = range(1, len(pieces) + 1)
    fitting = bisect_right(counts, max_prompt_tokens, key=lambda count: len(encode(of_pieces(count))))
    if fitting == 0:
        raise UserError(
            f"a prompt may have {max_prompt_tokens} tokens, but {f'{whole.before}...{whole.after}'[:80]!r} leaves no "
            "room for a word of the text to be cut; raise max_prompt_tokens"
        )
    return of_pieces(fitting)


def fit_prompt(encode: Encode, prompt: str, max_prompt_tokens: int | None, keep: Keep = "start") -> list[int]:
    """Tokenise ``prompt``, cut as by :func:`cut_prompt`, with the same arguments and errors."""
    return list(encode(cut_prompt(encode, prompt, max_prompt_tokens, keep)))


@checked
@dataclass(frozen=True)
class PromptSplit(LoadedSplit):
    """Rows of one split: ``references[i]`` is a text that should follow ``prompts[i]``.

    A reference begins with the separator (a space or a line break), so that ``prompt + reference`` is the text that a
    model learns. Raises UserError when empty, ragged, or with an empty prompt.
    """

    columns = ("prompts", "references")
    name: str
    prompts: Texts
    references: Texts

    def __post_init__(self) -> None:
        super().__post_init__()
        for row, prompt in enumerate(self.prompts, start=1):
            if not prompt.strip():
                raise UserError(f"row {row} of the {self.name} split has an empty prompt")

    def cut(
        self, encode: Encode, max_prompt_tokens: int | None, keep: Keep = "start"
    ) -> tuple["PromptSplit", list[bool]]:
        """Return the split with prompts that fit, and which of them were cut; see :func:`cut_prompt`."""
        fitting = [cut_prompt(encode, prompt, max_prompt_tokens, keep) for prompt in self.prompts]
        return replace(self, prompts=fitting), [a is not b for a, b in zip(fitting, self.prompts, strict=True)]


@checked
@dataclass(frozen=True)
class TextTask(LoadedTask):
    """A loaded task whose answers are texts: three splits, metrics and lengths.

    Attributes:
        name, version, train, validation, test, metrics: as those of :class:`consistentee.TaskData`.
        template: the template of the prompts, for readers.
        max_prompt_tokens: longer prompts are cut by :func:`cut_prompt`.
        max_new_tokens: maximum length of a text.
        keep: the end of a cut body that is kept.
        notes: notes for readers of the scores (a subset, rows that were dropped, ...).

    Raises UserError without a metric, and for a limit below 1.
    """

    name: str
    version: int
    train: PromptSplit
    validation: PromptSplit
    test: PromptSplit
    metrics: tuple[str, ...]
    template: str
    max_prompt_tokens: Positive
    max_new_tokens: Positive
    keep: Keep = "start"
    notes: str = ""

    def fingerprint(self) -> str:
        """Hash of everything that a score depends on: prompts, how they are cut, references, metrics, version."""
        limits = [self.max_prompt_tokens, self.max_new_tokens, self.keep]
        return self._hash([self.metrics, limits], _rows_with_parts)


def _rows_with_parts(split: PromptSplit) -> Iterator[tuple[object, str]]:
    for prompt, reference in zip(split.prompts, split.references, strict=True):
        yield (prompt.__getnewargs__() if isinstance(prompt, Prompt) else prompt), reference
