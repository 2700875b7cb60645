"""Encoding: the tokens of one row. Batch: padded tensors of several rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from consistentee.data.tasks import Text
from consistentee.errors import UserError
from consistentee.files import hash_json

_MODULUS = 2**31 - 1
_MULTIPLIER = 1_000_003

TEXTS_AT_A_TIME = 1024
"""Texts tokenised together: a tokenizer makes several times as much of a text as is kept."""


@dataclass(frozen=True)
class Encoding:
    """Tokens of one row; ``token_type_ids`` is None if the tokenizer has none."""

    input_ids: list[int]
    token_type_ids: list[int] | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @cached_property
    def key(self) -> int:
        """A hash of the tokens, the same on every machine."""
        key = 7
        for token in self.input_ids:
            key = (key * _MULTIPLIER + token + 1) % _MODULUS
        return key


@dataclass(frozen=True)
class Batch:
    """Rows, padded on the right: int64 [rows, tokens]. The mask is True for real tokens.

    ``lengths`` are the numbers of real tokens, as integers, so that cutting columns never waits for a device.
    """

    input_ids: Tensor
    padding_mask: Tensor
    token_type_ids: Tensor | None
    lengths: list[int]
    encodings: Sequence[Encoding]

    @property
    def is_padded(self) -> bool:
        """Whether some row is shorter than another."""
        return min(self.lengths) < self.padding_mask.shape[1]

    @property
    def model_inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of a stock model's forward."""
        inputs = {"input_ids": self.input_ids, "attention_mask": self.padding_mask.long()}
        if self.token_type_ids is not None:
            inputs["token_type_ids"] = self.token_type_ids
        return inputs

    def select(self, keep: Sequence[int], rows: Tensor) -> "Batch":
        """Keep some rows and cut padding columns.

        ``keep`` and ``rows`` are the same row numbers, as integers and as a tensor on the device of the batch.
        """
        lengths = [self.lengths[i] for i in keep]
        width = max(lengths)
        token_types = self.token_type_ids
        return Batch(
            input_ids=self.input_ids[:, :width].index_select(0, rows),
            padding_mask=self.padding_mask[:, :width].index_select(0, rows),
            token_type_ids=None if token_types is None else token_types[:, :width].index_select(0, rows),
            lengths=lengths,
            encodings=[self.encodings[i] for i in keep],
        )


def collate(encodings: Sequence[Encoding], pad_id: int, device: torch.device | None = None) -> Batch:
    """Pad ``encodings`` to the longest of them."""
    lengths = [len(encoding) for encoding in encodings]
    width = max(lengths)
    input_ids = torch.tensor([e.input_ids + [pad_id] * (width - len(e)) for e in encodings])
    padding_mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    token_types = []
    if encodings[0].token_type_ids is not None:
        token_types.append(torch.tensor([(e.token_type_ids or []) + [0] * (width - len(e)) for e in encodings]))
    if device is not None and device.type != "cpu":  # in one copy
        input_ids, padding_mask, *token_types = torch.stack([input_ids, padding_mask.long(), *token_types]).to(device)
    return Batch(input_ids, padding_mask.bool(), token_types[0] if token_types else None, lengths, encodings)


def fingerprint(encodings: Sequence[Encoding]) -> str:
    """Hash all rows and their order."""
    return hash_json([(encoding.input_ids, encoding.token_type_ids) for encoding in encodings])


def tokenize(tokenizer: Any, texts: Sequence[Text], max_length: int) -> list[Encoding]:
    """Tokenise single sentences or pairs, truncated to ``max_length`` tokens (the longer text of a pair first).

    Raises UserError when single sentences and pairs are mixed, and for a tuple of more or fewer than two texts.
    """
    if not texts:
        return []
    pairs = isinstance(texts[0], tuple)
    if any(isinstance(text, tuple) != pairs for text in texts):
        raise UserError("texts must be all single sentences or all pairs, not both")
    if pairs and any(len(text) != 2 for text in texts):
        raise UserError("a tuple is a pair of texts; give several texts as a list")
    encodings: list[Encoding] = []
    for start in range(0, len(texts), TEXTS_AT_A_TIME):
        chunk = texts[start : start + TEXTS_AT_A_TIME]
        columns = [[text[i] for text in chunk] for i in (0, 1)] if pairs else [list(chunk)]
        rows = tokenizer(*columns, truncation=True, max_length=max_length, padding=False)
        token_types = rows.get("token_type_ids") or [None] * len(chunk)
        encodings += [Encoding(ids, types) for ids, types in zip(rows["input_ids"], token_types, strict=True)]
    return encodings
