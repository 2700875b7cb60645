"""TextTask: splits of prompts and reference texts; and the rule by which a prompt that is too long is cut."""

import hashlib
import json
import random
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from consistentee.arguments import Positive, Texts, checked
from consistentee.errors import UserError

Keep = Literal["start", "end"]
"""Which end of a text that is too long stays."""

Encode = Callable[[str], Sequence[int]]
"""From a prompt to its tokens, the special ones included, as the model is given them."""

_PIECE = re.compile(r"\s*\S{1,24}")
"""Where a body may be cut: between words; within what is longer than a word, as text without spaces is."""


class Prompt(str):
    """The text of a prompt, which knows the part that may be cut: an article, but not the instruction around it.

    It is the plain string ``before + body + after`` wherever a string will do.
    """

    before: str
    body: str
    after: str

    @checked
    def __new__(cls, before: str, body: str, after: str = "") -> "Prompt":
        """Join the three parts."""
        prompt = super().__new__(cls, before + body + after)
        prompt.before, prompt.body, prompt.after = before, body, after
        return prompt

    def __getnewargs__(self) -> tuple[str, str, str]:  # type: ignore[override]  # str's own has one argument
        """Return what a copy is made of."""
        return self.before, self.body, self.after

    def with_body(self, body: str) -> "Prompt":
        """Return the prompt around another body."""
        return Prompt(self.before, body, self.after)


def cut_prompt(encode: Encode, prompt: str, max_prompt_tokens: int | None, keep: Keep = "start") -> str:
    """Return ``prompt`` itself if its tokens fit, else the same prompt around a shorter body.

    As many whole words of the body stay as fit, from its start or up to its end. Text is cut, not tokens, so that what
    stays is tokenized like any other prompt. A plain string is all body.

    Args:
        encode: see :data:`Encode`.
        prompt: a :class:`Prompt` or a plain string.
        max_prompt_tokens: how many tokens a prompt may have; None for any number.
        keep: which end of the body stays.

    Raises:
        UserError: not one word of the body fits, for what may not be cut takes too many tokens.
    """
    if max_prompt_tokens is None or len(encode(prompt)) <= max_prompt_tokens:
        return prompt
    whole = prompt if isinstance(prompt, Prompt) else Prompt("", prompt)
    # A piece takes a token or more, so pieces beyond that many need not be tried.
    pieces = _PIECE.findall(whole.body)
    pieces = pieces[:max_prompt_tokens] if keep == "start" else pieces[-max_prompt_tokens:]

    def of_pieces(count: int) -> Prompt:
        kept = pieces[:count] if keep == "start" else pieces[len(pieces) - count :]
        return whole.with_body("".join(kept).strip())

    counts = range(1, len(pieces) + 1)
    fitting = bisect_right(counts, max_prompt_tokens, key=lambda count: len(encode(of_pieces(count))))
    if fitting == 0:
        raise UserError(
            f"a prompt may have {max_prompt_tokens} tokens, but {str(whole.with_body('...'))[:80]!r} leaves no room "
            "for a word of the text to be cut; raise max_prompt_tokens"
        )
    return of_pieces(fitting)


def fit_prompt(encode: Encode, prompt: str, max_prompt_tokens: int | None, keep: Keep = "start") -> list[int]:
    """Return the tokens of ``prompt``, at most ``max_prompt_tokens``; arguments and errors as :func:`cut_prompt`."""
    return list(encode(cut_prompt(encode, prompt, max_prompt_tokens, keep)))


@checked
@dataclass(frozen=True)
class PromptSplit:
    """Rows of one split: ``references[i]`` is a text that should follow ``prompts[i]``.

    A reference begins with what separates it from its prompt (a space or a line break), so that ``prompt + reference``
    is the text that a model learns. Raises UserError when empty, ragged, or with an empty prompt.
    """

    name: str
    prompts: Texts
    references: Texts

    def __post_init__(self) -> None:
        if len(self.prompts) == 0:
            raise UserError(f"the {self.name} split is empty")
        if len(self.prompts) != len(self.references):
            raise UserError(
                f"the {self.name} split has {len(self.prompts)} prompts but {len(self.references)} references"
            )
        for row, prompt in enumerate(self.prompts, start=1):
            if not prompt.strip():
                raise UserError(f"row {row} of the {self.name} split has an empty prompt")

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, rows: Sequence[int]) -> "PromptSplit":
        """Return the given rows, in the given order."""
        return replace(self, prompts=[self.prompts[i] for i in rows], references=[self.references[i] for i in rows])

    @checked
    def capped(self, max_rows: Positive | None, seed: int) -> "PromptSplit":
        """Return at most ``max_rows`` rows, drawn at random with ``seed``, in their original order."""
        if max_rows is None or max_rows >= len(self):
            return self
        return self.select(sorted(random.Random(seed).sample(range(len(self)), max_rows)))

    def cut(
        self, encode: Encode, max_prompt_tokens: int | None, keep: Keep = "start"
    ) -> tuple["PromptSplit", list[bool]]:
        """Return the split with prompts that fit, and which of them were cut; see :func:`cut_prompt`."""
        fitting = [cut_prompt(encode, prompt, max_prompt_tokens, keep) for prompt in self.prompts]
        return replace(self, prompts=fitting), [a is not b for a, b in zip(fitting, self.prompts, strict=True)]


@checked
@dataclass(frozen=True)
class TextTask:
    """A task whose answers are texts, loaded: three splits, its metrics, and how much is read and written.

    Attributes:
        name: the task's name, as in its YAML.
        version: raised whenever the meaning of the task changes, so that scores are never mixed.
        train, validation, test: the splits. Knobs are chosen on validation; test is only reported.
        metrics: names of metrics (see :mod:`consistentee.data.text_metrics`); the first one is the task's score.
        template: how a row becomes a prompt, for readers: the prompts are made already.
        max_prompt_tokens: a prompt with more tokens is cut, by the rule of :func:`cut_prompt`.
        max_new_tokens: how many tokens are written at most.
        keep: which end of what is cut stays.
        notes: what a reader of the scores must know (a subset, rows that were dropped, ...).

    Raises UserError without a metric, and for a limit below 1.
    """

    name: str
    version: int
    train: PromptSplit
    validation: PromptSplit
    test: PromptSplit
    metrics: tuple[str, ...]
    template: str
    max_prompt_tokens: int
    max_new_tokens: int
    keep: Keep = "start"
    notes: str = ""

    def __post_init__(self) -> None:
        if not self.metrics:
            raise UserError(f"task {self.name!r} names no metric")
        for limit in ("max_prompt_tokens", "max_new_tokens"):
            if getattr(self, limit) < 1:
                raise UserError(f"task {self.name!r}: {limit} must be at least 1, got {getattr(self, limit)}")

    @property
    def metric(self) -> str:
        """The name of the task's score."""
        return self.metrics[0]

    def capped(self, train: int | None = None, validation: int | None = None, test: int | None = None) -> "TextTask":
        """Return the task with at most so many rows a split; the rows drawn never depend on a method's seed."""
        return replace(
            self,
            train=self.train.capped(train, seed=0),
            validation=self.validation.capped(validation, seed=1),
            test=self.test.capped(test, seed=2),
        )

    def fingerprint(self) -> str:
        """Hash of everything that a score depends on: prompts, how they are cut, references, metrics, version."""
        digest = hashlib.sha256()
        limits = [self.max_prompt_tokens, self.max_new_tokens, self.keep]
        digest.update(json.dumps([self.name, self.version, self.metrics, limits]).encode())
        for split in (self.train, self.validation, self.test):
            for prompt, reference in zip(split.prompts, split.references, strict=True):
                parts = prompt.__getnewargs__() if isinstance(prompt, Prompt) else prompt
                digest.update(json.dumps([parts, reference]).encode())
            digest.update(split.name.encode())
        return digest.hexdigest()
