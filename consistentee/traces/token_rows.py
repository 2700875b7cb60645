"""Prompts and responses as tokens: what a decoder reads, and which of its states give a token of the response."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from consistentee.data.prompts import Keep, PromptSplit, fit_prompt
from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder

TokenRow = tuple[Sequence[int], Sequence[int]]
"""A prompt and its response, as tokens."""


def tokens_read(row: TokenRow) -> int:
    """Return how many tokens of a row the model reads: all but the last, where there is a response."""
    prompt, response = row
    return len(prompt) + max(len(response) - 1, 0)


def encode_rows(
    model: MultiExitDecoder,
    split: PromptSplit,
    *,
    max_prompt_tokens: int | None,
    max_new_tokens: int,
    keep: Keep = "end",
) -> list[TokenRow]:
    """Return prompts and references as tokens: what a decoder that answers as the reference reads and writes.

    A response ends with EOS, unless it is cut to ``max_new_tokens`` or to the model's context before.
    """
    end = _end_of_text(model)
    rows: list[TokenRow] = []
    for prompt, reference in zip(split.prompts, split.references, strict=True):
        prompt_tokens = fit_prompt(lambda text: model.encode([text])[0], prompt, max_prompt_tokens, keep)
        response = [*model.tokenizer(reference, add_special_tokens=False)["input_ids"], *end]
        room = model.stepper.position_limit - len(prompt_tokens)
        rows.append((prompt_tokens, response[: max(min(max_new_tokens, room), 0)]))
    return rows


def _end_of_text(model: MultiExitDecoder) -> list[int]:
    own = model.tokenizer.eos_token_id
    return [own] if own in model.end_tokens else sorted(model.end_tokens)[:1]


def check_prompt(model: MultiExitDecoder, prompt: Sequence[int], new_tokens: int, name: str) -> None:
    """Raise UserError for a prompt that is empty, or too long for the model together with its new tokens."""
    if not len(prompt):
        raise UserError(f"{name} is empty: there is nothing to go on from")
    model.check_tokens(prompt, name)
    limit, read = model.stepper.position_limit, len(prompt) + max(new_tokens - 1, 0)  # the last one is not read
    if read > limit:
        raise UserError(
            f"{name} has {len(prompt)} tokens, and with {new_tokens} new ones that is more than the {limit} that the "
            "model reads at once; cut it with max_prompt_tokens"
        )


@dataclass(frozen=True)
class TokenRows:
    """Rows as tensors, padded on the right, on the model's device.

    Attributes:
        tokens: what is read, all but the last token of a row: int64 [rows, T].
        padding_mask: bool [rows, T], True where there is a real token.
        gives_response: bool [rows, T], True where the token after this one belongs to the response.
        may_exit: bool [rows, T], True where this one belongs to it; a prompt's tokens run at full depth.
        targets: those tokens, row by row: int64 [N].
        step: their places in the response, from 0: int64 [N].
    """

    tokens: Tensor
    padding_mask: Tensor
    gives_response: Tensor
    may_exit: Tensor
    targets: Tensor
    step: Tensor


def collate_rows(model: MultiExitDecoder, rows: Sequence[TokenRow]) -> TokenRows:
    """Pad prompts and responses into one batch."""
    read = [[*row[0], *row[1]][: tokens_read(row)] for row in rows]
    lengths = torch.tensor([len(tokens) for tokens in read])
    first = torch.tensor([len(prompt) - 1 for prompt, _ in rows])
    count = torch.tensor([len(response) for _, response in rows])
    columns = torch.arange(int(lengths.max()))
    since_first = columns - first.unsqueeze(1)
    gives_response = (since_first >= 0) & (since_first < count.unsqueeze(1))
    tokens = torch.tensor([[*row, *[model.pad_id] * (len(columns) - len(row))] for row in read])
    targets = torch.tensor([token for _, response in rows for token in response], dtype=torch.long)
    rows_of_tokens = TokenRows(
        tokens=tokens,
        padding_mask=columns < lengths.unsqueeze(1),
        gives_response=gives_response,
        may_exit=gives_response & (since_first > 0),
        targets=targets,
        step=since_first[gives_response],
    )
    return TokenRows(**{name: tensor.to(model.device) for name, tensor in vars(rows_of_tokens).items()})
