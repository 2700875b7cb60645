"""Batched early-exit generation: every token leaves where a rule says, and finished rows leave the batch."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from consistentee.engine.decoding_step import TokenDecoder
from consistentee.engine.owed_tokens import KVPolicy
from consistentee.engine.sampling import Sampling
from consistentee.engine.transcript import EndedBy, Endings, NewToken, Transcript
from consistentee.errors import UserError
from consistentee.models.decoder import MultiExitDecoder
from consistentee.progress import Steps
from consistentee.rules.exit_rule import ExitRule

Stream = Callable[[NewToken], None]
"""What is called with every new token, as soon as it is known."""


@dataclass(frozen=True)
class Generations:
    """Texts in the order of the prompts.

    Attributes:
        texts: without the prompt, special tokens, and the stop string that ended a text.
        tokens: the new tokens of each row, int64; the token that ended it is the last of them.
        exit_layers: the layer that each new token was read off, int64, 1-based; L for the first, which the prompt
            gives.
        late_layers: for each new token, how many layers the token that was read for it has been given its keys and
            values in after it left, int64: projected from its state with ``kv="propagate"``, run with ``"exact"``.
        ended_by: what ended each text.
        prompt_tokens: number of tokens of each prompt.
        prefill_seconds: time spent on prompts, the first new tokens included.
        decode_seconds: time spent on all further tokens.
    """

    texts: list[str]
    tokens: list[Tensor]
    exit_layers: list[Tensor]
    late_layers: list[Tensor]
    ended_by: list[EndedBy]
    prompt_tokens: list[int]
    prefill_seconds: float
    decode_seconds: float

    @classmethod
    def of(
        cls,
        transcripts: Sequence[Transcript],
        prompts: Sequence[Sequence[int]],
        *,
        prefill_seconds: float,
        decode_seconds: float,
        **more: Any,
    ) -> Self:
        """Collect what was written behind some prompts; ``more``: the fields that a subclass adds."""
        return cls(
            texts=[transcript.text for transcript in transcripts],
            tokens=[_integers(transcript.tokens) for transcript in transcripts],
            exit_layers=[_integers(transcript.exit_layers) for transcript in transcripts],
            late_layers=[_integers(transcript.late_layers) for transcript in transcripts],
            ended_by=[transcript.ended_by or "length" for transcript in transcripts],
            prompt_tokens=[len(prompt) for prompt in prompts],
            prefill_seconds=prefill_seconds,
            decode_seconds=decode_seconds,
            **more,
        )

    @property
    def decoded_tokens(self) -> int:
        """Number of new tokens but for the first of each row: those that ``decode_seconds`` was spent on."""
        return sum(max(len(tokens) - 1, 0) for tokens in self.tokens)

    @property
    def layer_calls(self) -> int:
        """Layers that were called for all new tokens but the first of each row, each as often as it was called."""
        return sum(int(layers[1:].sum()) for layers in self.exit_layers)

    @property
    def average_layers(self) -> float:
        """Layers called for a new token, on average over all but the first of each row; NaN if there are none."""
        return self.layer_calls / self.decoded_tokens if self.decoded_tokens else math.nan


def generate(
    model: MultiExitDecoder,
    prompts: Sequence[str],
    rule: ExitRule,
    *,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    kv: KVPolicy = "propagate",
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    max_prompt_tokens: int | None = None,
    keep: Literal["start", "end"] = "end",
    stream: Stream | None = None,
    sort_by_length: bool = True,
) -> Generations:
    """Continue prompts, each new token leaving the model where ``rule`` says.

    Prompts run at full depth, and give the first new token. For every further one the rule is started anew, and asked
    at the model's exits but the last.

    Args:
        model: a multi-exit decoder.
        prompts: texts.
        rule: the exit rule; a row is a token that is being decoded.
        max_new_tokens: of each row; 0 gives empty texts.
        batch_size: rows a batch.
        kv: how layers that a token skipped get its keys and values, once a later token of its row reads them:
            ``"propagate"`` makes them of the state at the exit (CALM, section 3.3.1), ``"exact"`` runs the layers on
            the skipped tokens beside the later one (FREE), which gives those of full depth.
        sampling: how to draw tokens; by default the likeliest is taken.
        stop: strings that end a text.
        max_prompt_tokens: cut longer prompts to so many tokens.
        keep: which end of a cut prompt stays.
        stream: called with every new token.
        sort_by_length: batch prompts of similar length together; the answers keep the order of ``prompts``.

    Raises:
        UserError: a prompt is empty, or does not fit into the model's context together with its new tokens; an
            argument is out of its range.
    """
    return generate_encoded(
        model,
        model.encode(prompts, max_tokens=max_prompt_tokens, keep=keep),
        rule,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        kv=kv,
        sampling=sampling,
        stop=stop,
        stream=stream,
        sort_by_length=sort_by_length,
    )


def generate_encoded(
    model: MultiExitDecoder,
    rows: Sequence[Sequence[int]],
    rule: ExitRule,
    *,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    kv: KVPolicy = "propagate",
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    stream: Stream | None = None,
    sort_by_length: bool = False,
    end_at_eos: bool = True,
) -> Generations:
    """As :func:`generate`, on tokenised prompts: what is timed.

    ``end_at_eos=False`` goes on behind tokens that end a text, so that all texts are equally long.
    """
    model.eval()
    check_prompts(model, rows, max_new_tokens)
    endings = Endings(model.end_tokens if end_at_eos else frozenset(), tuple(stop), max_new_tokens)
    transcripts = [Transcript(row, model.decode, endings) for row in range(len(rows))]
    prefill_seconds = decode_seconds = 0.0
    order = sorted(range(len(rows)), key=lambda i: len(rows[i])) if sort_by_length else list(range(len(rows)))
    chunks = list(_chunks(order if max_new_tokens else [], batch_size))
    steps = Steps("decoding", len(chunks) * max_new_tokens)
    for chunk in chunks:
        start = clock(model.device)
        decoder = TokenDecoder(
            model, [rows[i] for i in chunk], rule, new_columns=max_new_tokens - 1, kv=kv, sampling=sampling
        )
        batch = _LiveBatch(decoder, [transcripts[i] for i in chunk], stream)
        batch.prefill()
        prefilled = clock(model.device)
        steps.add(1, len(chunk))
        while batch.transcripts:
            rows_in_step = len(batch.transcripts)
            batch.step()
            steps.add(1, rows_in_step)
        steps.leave_out(max_new_tokens - max(len(transcripts[i].tokens) for i in chunk))
        prefill_seconds += prefilled - start
        decode_seconds += clock(model.device) - prefilled
    return Generations.of(transcripts, rows, prefill_seconds=prefill_seconds, decode_seconds=decode_seconds)


class _LiveBatch:
    """A batch under way: its decoder, and the transcripts of the rows that have not ended, in the decoder's order."""

    def __init__(self, decoder: TokenDecoder, transcripts: list[Transcript], stream: Stream | None) -> None:
        self.transcripts = transcripts
        self._decoder = decoder
        self._stream = stream

    def prefill(self) -> None:
        """Read the prompts, and take the first new tokens."""
        tokens = self._decoder.prefill()
        self._take(tokens, [self._decoder.num_layers] * len(tokens))

    def step(self) -> None:
        """Take one more token for every row."""
        self._take(*self._decoder.step())

    def _take(self, tokens: list[int], exit_layers: list[int]) -> None:
        for transcript, token, layer in zip(self.transcripts, tokens, exit_layers, strict=True):
            transcript.add(token, layer)
            if self._stream is not None:
                self._stream(transcript.news())
        staying = [place for place, transcript in enumerate(self.transcripts) if transcript.ended_by is None]
        if len(staying) == len(self.transcripts):
            return
        for place, transcript in enumerate(self.transcripts):
            if transcript.ended_by is not None:
                self._note_late_layers(place, transcript)
        if staying:
            self._decoder.keep(staying)
        self.transcripts = [self.transcripts[place] for place in staying]

    def _note_late_layers(self, place: int, transcript: Transcript) -> None:
        read_for = zip(self._decoder.cached_layers(place), transcript.exit_layers[1:], strict=True)
        transcript.late_layers = [0, *(cached - left for cached, left in read_for)]


def check_prompts(model: MultiExitDecoder, rows: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raise UserError for a prompt that is empty, or too long for the model together with its new tokens."""
    limit = model.stepper.position_limit
    for place, row in enumerate(rows, start=1):
        if not row:
            raise UserError(f"prompt {place} of {len(rows)} is empty: there is nothing to go on from")
        read = len(row) + max(max_new_tokens - 1, 0)  # the last new token is written, not read
        if read > limit:
            raise UserError(
                f"prompt {place} of {len(rows)} has {len(row)} tokens, and with {max_new_tokens} new ones that is more "
                f"than the {limit} that the model reads at once; cut it with max_prompt_tokens"
            )


def _chunks(order: list[int], size: int) -> Iterator[list[int]]:
    if size < 1:
        raise UserError(f"the batch size must be at least 1, got {size}")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def clock(device: torch.device) -> float:
    """Return the time in seconds, once everything asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _integers(numbers: Sequence[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.long)
