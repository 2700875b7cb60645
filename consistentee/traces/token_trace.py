"""TokenTrace: the states at every exit for every response token, recorded once; any rule is replayed on it.

The hidden state after reading token i gives token i + 1, so it is recorded with token i + 1, its *target*, and only
where the target belongs to the response.

Logits are not kept: a vocabulary is some hundred times as wide as a state. They are computed in chunks of tokens, once
for all the rules of a sweep.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from consistentee.arguments import Positive, checked
from consistentee.data.tasks import Keep, PromptSplit, fit_prompt
from consistentee.errors import UserError
from consistentee.files import computed_once, empty_tensor, hash_json, hash_tensors
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.progress import tracked
from consistentee.rules.view import LayerView, predictions_of
from consistentee.traces.token_view import TokenView, prompt_key, token_key

TokenRow = tuple[Sequence[int], Sequence[int]]
"""A prompt and its response, as tokens."""


def tokens_read(row: TokenRow) -> int:
    """Return the number of tokens of a row that the model reads: all but the last one of the response."""
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
    """Return prompts and references as tokens.

    A response ends with EOS, unless it is cut to ``max_new_tokens`` or to the model's context before.
    """
    own = model.tokenizer.eos_token_id
    end = [own] if own in model.end_tokens else sorted(model.end_tokens)[:1]
    rows: list[TokenRow] = []
    for prompt, reference in zip(split.prompts, split.references, strict=True):
        prompt_tokens = fit_prompt(lambda text: model.encode([text])[0], prompt, max_prompt_tokens, keep)
        response = [*model.tokenizer(reference, add_special_tokens=False)["input_ids"], *end]
        room = model.stepper.position_limit - len(prompt_tokens)
        rows.append((prompt_tokens, response[: max(min(max_new_tokens, room), 0)]))
    return rows


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
        tokens: all but the last token of a row: int64 [rows, T].
        padding_mask: bool [rows, T], True where there is a real token.
        gives_response: bool [rows, T], True where the token after this one belongs to the response.
        may_exit: bool [rows, T], True where this one belongs to it; a prompt's tokens run at full depth.
        targets, step: tokens of the responses, row by row, and their places there, from 0: int64 [N].
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


CHUNK = 256
"""Tokens whose logits at one exit are held at a time: 50 MB of a vocabulary of 49,152."""


@dataclass(frozen=True)
class TokenTrace:
    """Every response token of a split, row by row, each with the states that gave it.

    Attributes:
        answer_states: of the token before, at every exit, for the LM head: float16 or float32 [N, exits, width]. With
            closing layers, as if all tokens of the response before had exited at the same exit.
        rule_states: the same for rules and learned heads, which differ only where there are closing layers.
        targets: the response tokens: int64 [N].
        row: which row a token belongs to: int64 [N].
        step: its place in the response, from 0: int64 [N]. Token 0 is read off the prompt: it may not exit.
        row_keys: see :class:`consistentee.LayerView`: int64 [N].
        exit_layers: 1-based; the last one is L.
        model: whose states they are; its adapters, LM head and learned heads read them.
    """

    answer_states: Tensor
    rule_states: Tensor
    targets: Tensor
    row: Tensor
    step: Tensor
    row_keys: Tensor
    exit_layers: tuple[int, ...]
    model: MultiExitDecoder = field(repr=False)

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def may_exit(self) -> Tensor:
        """Numbers of the tokens that are decoded one by one, and hence may exit early: int64 [at most N]."""
        return (self.step > 0).nonzero().flatten()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of states and targets."""
        read = {} if self.rule_states is self.answer_states else {"rule_states": self.rule_states}
        return hash_tensors({"hidden": self.answer_states, "targets": self.targets, **read})

    @property
    def num_layers(self) -> int:
        """Number of layers, L."""
        return self.exit_layers[-1]

    def parts(self) -> Iterator[tuple[Tensor, list["TokenTraceView"]]]:
        """Yield tokens of the same step that may exit, and the views of the exits on them, a chunk at a time."""
        order = self.may_exit[self.step[self.may_exit].argsort(stable=True)]
        steps, counts = self.step[order].unique_consecutive(return_counts=True)
        for step, same_step in zip(steps.tolist(), order.split(counts.tolist()), strict=True):
            for tokens in same_step.split(CHUNK):
                exits = range(len(self.exit_layers))
                yield tokens, [TokenTraceView(self, index, tokens, step) for index in exits]

    def select(self, tokens: Tensor) -> "TokenTrace":
        """Return the trace of some tokens alone, given by their numbers, in the given order."""
        answers = self.answer_states[tokens]
        rules = answers if self.rule_states is self.answer_states else self.rule_states[tokens]
        chosen = {name: getattr(self, name)[tokens] for name in ("targets", "row", "step", "row_keys")}
        return replace(self, answer_states=answers, rule_states=rules, **chosen)

    def states(self, exit_index: int, tokens: Tensor) -> Tensor:
        """Return the states that the LM head reads at one exit, on the model's device: [tokens, width]."""
        return self.answer_states[tokens, exit_index].to(self.model.device, self.model.dtype)


class TokenTraceView(TokenView):
    """The view of one exit layer on some recorded tokens of the same step."""

    def __init__(self, trace: TokenTrace, exit_index: int, tokens: Tensor, step: int) -> None:
        # Not the parent's: states are read from the trace when they are asked for, and keys are known.
        LayerView.__init__(self, trace.exit_layers[exit_index], trace.num_layers, len(tokens), trace.model.device)
        self._trace = trace
        self._exit_index = exit_index
        self._tokens = tokens
        self._model = trace.model
        self.places = [step] * len(tokens)
        self._among = None

    @cached_property
    def hidden(self) -> Tensor:
        hidden = self._trace.rule_states[self._tokens, self._exit_index]
        return hidden.to(self.device, self._model.dtype).unsqueeze(1)

    @cached_property
    def history(self) -> Tensor:
        hidden = self._trace.rule_states[self._tokens, : self._exit_index + 1]
        return self._model.state(hidden.to(self.device, self._model.dtype))

    @cached_property
    def predictions(self) -> Tensor:
        """The likeliest token of the whole vocabulary, int64 [rows]: other rules may have read logits of a few."""
        return predictions_of(self.logits)

    @cached_property
    def row_keys(self) -> Tensor:
        return self._trace.row_keys[self._tokens].to(self.device)

    @cached_property
    def labels(self) -> Tensor:
        return self._trace.targets[self._tokens].to(self.device)


@checked
def record_tokens(
    model: MultiExitDecoder,
    rows: Sequence[TokenRow],
    *,
    batch_size: Positive = 16,
    dtype: torch.dtype = torch.float32,
    store: Path | None = None,
) -> TokenTrace:
    """Run ``model`` at full depth, in eval mode, over prompts and given responses (a reference's, or generated ones).

    Args:
        rows: prompts and responses, as tokens (of a split: :func:`consistentee.traces.token_trace.encode_rows`).
        dtype: of the hidden states kept. float16 halves the memory; states beyond its range stay float32.
        store: folder where passes are kept, so that methods that share a backbone share its pass.

    Raises UserError for an empty prompt, and a row that is longer than the model's context.
    """
    states = recorded_states(model, rows, whole_rows=False, batch_size=batch_size, dtype=dtype, store=store)
    answers = states[:, -len(model.exit_layers) :]
    lengths = torch.tensor([len(response) for _, response in rows], dtype=torch.long)
    steps = [step for _, response in rows for step in range(len(response))]
    prompts = ((prompt_key(prompt), response) for prompt, response in rows)
    keys = [token_key(key, step) for key, response in prompts for step in range(len(response))]
    return TokenTrace(
        answer_states=answers,
        rule_states=states[:, : len(model.exit_layers)] if model.last_layers else answers,
        targets=torch.tensor([token for _, response in rows for token in response], dtype=torch.long),
        row=torch.arange(len(rows)).repeat_interleave(lengths),
        step=torch.tensor(steps, dtype=torch.long),
        row_keys=torch.tensor(keys, dtype=torch.long),
        exit_layers=model.exit_layers,
        model=model,
    )


def compact_dtype(model: MultiExitDecoder) -> torch.dtype:
    """Return the type in which states are kept to train on: float16, or float64 for a model in float64."""
    return torch.float64 if model.dtype == torch.float64 else torch.float16


def recorded_states(
    model: MultiExitDecoder,
    rows: Sequence[TokenRow],
    *,
    whole_rows: bool,
    batch_size: int = 16,
    dtype: torch.dtype,
    store: Path | None,
) -> Tensor:
    """Return the states of tokens at every exit, row by row: [tokens, exits, width]; see :class:`TokenTrace`.

    With closing layers, those that rules read come before those that the LM head reads: [tokens, 2 * exits, width].
    ``whole_rows`` records every token that is read, else those that give one of a response.
    """
    if not rows:
        raise UserError("there are no rows to record")
    for number, (prompt, response) in enumerate(rows, start=1):
        check_prompt(model, prompt, len(response), f"the prompt of row {number}")
        model.check_tokens(response, f"the response of row {number}")
    run = partial(_record, model, rows, whole_rows, batch_size=batch_size, dtype=dtype)
    if store is None:
        return run()["hidden"]
    described = [[list(prompt), list(response)] for prompt, response in rows]
    parts = [model.backbone_fingerprint(), described, batch_size, str(dtype), whole_rows]
    path = store / f"hidden-{hash_json(parts)[:16]}.safetensors"
    return computed_once(path, run)["hidden"]


@torch.no_grad()
def _record(
    model: MultiExitDecoder, rows: Sequence[TokenRow], whole_rows: bool, *, batch_size: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    model.eval()
    ends = list(accumulate((tokens_read(row) if whole_rows else len(row[1]) for row in rows), initial=0))
    exits = len(model.exit_layers) * (2 if model.last_layers else 1)
    recorded = empty_tensor((ends[-1], exits, model.width), dtype)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    starts = range(0, len(order), batch_size)
    for start in tracked(starts, "tracing", rows=batch_size):
        chosen = order[start : start + batch_size]
        batch = collate_rows(model, [rows[i] for i in chosen])
        states = model.exit_states(batch.tokens, batch.padding_mask, batch.may_exit)
        hidden = (
            torch.cat([states.rule_states, states.answer_states], dim=2) if model.last_layers else states.answer_states
        )
        kept = batch.padding_mask if whole_rows else batch.gives_response
        together = hidden[kept].to("cpu", dtype)
        if not together.isfinite().all():
            together = hidden[kept].to("cpu", torch.float32)
        if together.dtype == torch.float32 != recorded.dtype:
            recorded = empty_tensor(recorded.shape, torch.float32).copy_(recorded)
        for i, row_states in zip(chosen, together.split([ends[i + 1] - ends[i] for i in chosen]), strict=True):
            recorded[ends[i] : ends[i + 1]] = row_states
    return {"hidden": recorded}
