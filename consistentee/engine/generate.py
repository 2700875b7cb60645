"""Generate in batches: a rule decides where every token exits, and finished rows are dropped from the batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from consistentee.arguments import NotNegative, Positive, Texts, checked
from consistentee.data.tasks import Keep
from consistentee.engine.decoding import Decoding, DecodingOptions
from consistentee.engine.missing_keys import KVPolicy
from consistentee.engine.sampling import Sampling, begin_texts, sampling_of
from consistentee.engine.token_batch import ReadPrompts
from consistentee.engine.transcript import EndedBy, Stream, Transcript, clock
from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.progress import Steps
from consistentee.rules.exit_rule import ExitRule
from consistentee.traces.token_trace import check_prompt


@dataclass(frozen=True)
class Generations:
    """Texts in the order of the prompts.

    Attributes:
        texts: without the prompt, special tokens, and the stop string that ended a text.
        tokens: the new tokens of each row, int64; the token that ended it is the last of them.
        exit_layers: of each new token, int64, 1-based; L for the first, which the prompt gives.
        late_layers: number of layers that got their keys and values of the token read for each new token after its
            exit, int64: projected from its state with ``kv="propagate"``, run with ``"exact"``.
        prompt_tokens: number of tokens of each prompt.
        prefill_seconds, decode_seconds: spent on prompts, the first new tokens included, and on all further tokens.
        completed_seconds: when the last token of each text was there, since all of them were asked.
    """

    texts: list[str]
    tokens: list[Tensor]
    exit_layers: list[Tensor]
    late_layers: list[Tensor]
    ended_by: list[EndedBy]
    prompt_tokens: list[int]
    prefill_seconds: float
    decode_seconds: float
    completed_seconds: list[float] = field(default_factory=list, kw_only=True)

    @classmethod
    def of(
        cls, transcripts: Sequence[Transcript], *, prefill_seconds: float, decode_seconds: float, **more: Any
    ) -> Self:
        """Collect finished transcripts; ``more``: the fields that a subclass adds."""
        return cls(
            texts=[transcript.text for transcript in transcripts],
            tokens=[_integers(transcript.tokens) for transcript in transcripts],
            exit_layers=[_integers(transcript.exit_layers) for transcript in transcripts],
            late_layers=[_integers(transcript.late_layers) for transcript in transcripts],
            ended_by=[transcript.ended_by or "length" for transcript in transcripts],
            prompt_tokens=[len(transcript.prompt) for transcript in transcripts],
            prefill_seconds=prefill_seconds,
            decode_seconds=decode_seconds,
            completed_seconds=[transcript.completed_seconds for transcript in transcripts],
            **more,
        )

    @property
    def decoded_tokens(self) -> int:
        """Number of new tokens but the first of each row."""
        return sum(max(len(tokens) - 1, 0) for tokens in self.tokens)

    @property
    def layer_calls(self) -> float:
        """Number of calls of layers for all new tokens but the first of each row."""
        return sum(int(layers[1:].sum()) for layers in self.exit_layers)

    @property
    def average_layers(self) -> float:
        """Calls of layers for a new token, on average over all but the first of each row; NaN if there are none."""
        return self.layer_calls / self.decoded_tokens if self.decoded_tokens else math.nan


@checked
def generate(
    model: MultiExitDecoder,
    prompts: Texts,
    rule: ExitRule,
    *,
    max_new_tokens: NotNegative = 64,
    batch_size: Positive = 8,
    in_flight: Positive | None = None,
    kv: KVPolicy = "propagate",
    sampling: Sampling | None = None,
    stop: Texts = (),
    max_prompt_tokens: Positive | None = None,
    keep: Keep = "end",
    stream: Stream | None = None,
    sort_by_length: bool = True,
    read: ReadPrompts | None = None,
) -> Generations:
    """Continue prompts; ``rule`` decides after which layer each new token exits.

    Prompts run at full depth, and give the first new token. For every further one the rule is started anew, and asked
    at the model's exits but the last.

    Args:
        model, prompts, batch_size, sort_by_length: answers keep the order of ``prompts``, however they are batched.
        rule: the exit rule; a row is a token that is being decoded.
        max_new_tokens: of each row; 0 gives empty texts.
        in_flight: rows under way, of which a batch runs at a time: rows that exit go on with their next token at once,
            and a prompt takes the place of a text that has ended. Texts and exit layers are the same. None lets the
            rows of a batch go in step until all have ended.
        kv: how layers that a token skipped get its keys and values, once a later token of its row reads them:
            ``"propagate"`` makes them of the state at the exit (CALM, section 3.3.1), ``"exact"`` runs the layers on
            the skipped tokens with the later one (FREE), which gives those of full depth.
        sampling: how to draw tokens; by default the likeliest is taken, whatever the model's ``do_sample``.
        stop: strings that end a text.
        max_prompt_tokens, keep: cut longer prompts to so many tokens, and keep this end.
        stream: called with every new token.
        read: keeps the prompts that are read, for other calls with the same prompts. Not for rows in flight.

    Raises:
        UserError: a prompt is empty, or does not fit into the model's context together with its new tokens; an
            argument is out of its range; there is no memory for so many rows in flight; the model's generation_config
            sets what an early exit cannot follow, see :mod:`consistentee.engine.sampling`.
    """
    return generate_encoded(
        model,
        model.encode(prompts, max_tokens=max_prompt_tokens, keep=keep),
        rule,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        in_flight=in_flight,
        kv=kv,
        sampling=sampling,
        stop=stop,
        stream=stream,
        sort_by_length=sort_by_length,
        read=read,
    )


@checked
def generate_encoded(
    model: MultiExitDecoder,
    rows: Sequence[Sequence[int]],
    rule: ExitRule,
    *,
    max_new_tokens: NotNegative = 64,
    batch_size: Positive = 8,
    in_flight: Positive | None = None,
    kv: KVPolicy = "propagate",
    sampling: Sampling | None = None,
    stop: Texts = (),
    stream: Stream | None = None,
    sort_by_length: bool = False,
    read: ReadPrompts | None = None,
    end_at_eos: bool = True,
) -> Generations:
    """As :func:`generate`, on tokenised prompts: what is timed.

    ``end_at_eos=False`` goes on behind tokens that end a text, so that all texts are equally long.
    """
    model.eval()
    drawn = None if sampling is None else sampling_of(model, sampling)
    options = DecodingOptions(rule, max_new_tokens, batch_size, kv, drawn, read)
    check_prompts(model, rows, max_new_tokens)
    _check_options(model, options, in_flight)
    start = clock(model.device)
    written = begin_texts(model, rows, max_new_tokens=max_new_tokens, stop=stop, stream=stream, end_at_eos=end_at_eos)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]) if sort_by_length else 0)
    texts = [written[row] for row in order if max_new_tokens]
    size = batch_size if in_flight is None else max(len(texts), 1)
    steps = Steps("decoding", len(texts) * max_new_tokens)
    batches = (texts[first : first + size] for first in range(0, len(texts), size))
    prefill_seconds = sum(Decoding(model, batch, options, steps, in_flight).run() for batch in batches)
    decode_seconds = clock(model.device) - start - prefill_seconds
    return Generations.of(written, prefill_seconds=prefill_seconds, decode_seconds=decode_seconds)


def check_prompts(model: MultiExitDecoder, rows: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raise UserError for a prompt that is empty, or too long for the model together with its new tokens."""
    for place, row in enumerate(rows, start=1):
        check_prompt(model, row, max_new_tokens, f"prompt {place} of {len(rows)}")


def _check_options(model: MultiExitDecoder, options: DecodingOptions, in_flight: int | None) -> None:
    if model.last_layers and options.kv == "exact":
        raise UserError(
            "kv='exact' gives skipped layers the keys and values of full depth, and closing layers have theirs from "
            "the exit: use kv='propagate'"
        )
    if in_flight is not None and in_flight < options.batch_size:
        raise UserError(
            f"a batch of {options.batch_size} cannot be filled from {in_flight} rows in flight: let in_flight be at "
            "least the batch size, and better a few times as many"
        )
    if in_flight is not None and options.read is not None:
        raise UserError("rows in flight are read one after the other; prompts that were read before go in step")


def _integers(numbers: Sequence[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.long)
