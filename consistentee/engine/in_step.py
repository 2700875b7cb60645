"""The plain engine: batch by batch, every row of a batch goes on by one token a step, until all have ended."""

import time
from collections.abc import Iterator, Sequence

from consistentee.engine.clock import Latency, clock
from consistentee.engine.step.token_decoder import TokenDecoder
from consistentee.engine.transcript import Stream, Transcript
from consistentee.engine.writing import Writing
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.progress import Steps


class InStep:
    """Prompts that are continued, a batch of them at a time.

    Attributes:
        prefill_seconds: spent on prompts so far, the first new tokens included.
    """

    def __init__(
        self,
        model: MultiExitDecoder,
        prompts: Sequence[Sequence[int]],
        transcripts: Sequence[Transcript],
        writing: Writing,
    ) -> None:
        """``transcripts``: one a prompt."""
        self.prefill_seconds = 0.0
        self._model = model
        self._prompts = prompts
        self._transcripts = transcripts
        self._writing = writing
        size = writing.batch_size
        self._chunks = [slice(start, start + size) for start in range(0, len(prompts), size)]

    def run(self) -> Iterator[Transcript]:
        """Write all texts, and yield each as soon as it has ended."""
        began = time.perf_counter()
        max_new_tokens = self._writing.max_new_tokens
        steps = Steps("decoding", len(self._chunks) * max_new_tokens)
        for chunk in self._chunks:
            start = clock(self._model.device)
            batch = self._batch(chunk, began)
            ended = batch.prefill()
            self.prefill_seconds += clock(self._model.device) - start
            steps.add(1, len(self._prompts[chunk]))
            yield from ended
            while batch.transcripts:
                rows_in_step = len(batch.transcripts)
                ended = batch.step()
                steps.add(1, rows_in_step)
                yield from ended
            del batch  # its cache goes before the next one is made
            steps.leave_out(max_new_tokens - max(len(row.tokens) for row in self._transcripts[chunk]))

    def _batch(self, chunk: slice, began: float) -> "_LiveBatch":
        writing = self._writing
        decoder = TokenDecoder(
            self._model,
            self._prompts[chunk],
            writing.rule,
            new_columns=writing.max_new_tokens - 1,
            kv=writing.kv,
            sampling=writing.sampling,
            read=writing.read,
        )
        return _LiveBatch(decoder, list(self._transcripts[chunk]), writing.stream, began)


class _LiveBatch:
    """A batch under way: its decoder, and the transcripts of the rows that have not ended, in the decoder's order."""

    def __init__(
        self, decoder: TokenDecoder, transcripts: list[Transcript], stream: Stream | None, began: float
    ) -> None:
        self.transcripts = transcripts
        self._decoder = decoder
        self._stream = stream
        self._began = began
        self._queued = time.perf_counter() - began
        self._first_token = 0.0

    def prefill(self) -> list[Transcript]:
        """Read the prompts, take the first new tokens, and return the texts that these have ended."""
        tokens = self._decoder.prefill()
        self._first_token = time.perf_counter() - self._began
        return self._take(tokens, [self._decoder.num_layers] * len(tokens))

    def step(self) -> list[Transcript]:
        """Take one more token for every row, and return the texts that have ended."""
        return self._take(*self._decoder.step())

    def _take(self, tokens: list[int], exit_layers: list[int]) -> list[Transcript]:
        for transcript, token, layer in zip(self.transcripts, tokens, exit_layers, strict=True):
            transcript.add(token, layer)
            if self._stream is not None:
                self._stream(transcript.news())
        staying = [place for place, transcript in enumerate(self.transcripts) if transcript.ended_by is None]
        if len(staying) == len(self.transcripts):
            return []
        now = time.perf_counter() - self._began
        ended = [transcript for transcript in self.transcripts if transcript.ended_by is not None]
        for place, transcript in enumerate(self.transcripts):
            if transcript.ended_by is not None:
                transcript.latency = Latency(self._queued, self._first_token, now)
                transcript.late_layers = self._decoder.late_layers(place, transcript.exit_layers)
        if staying:
            self._decoder.keep(staying)
        self.transcripts = [self.transcripts[place] for place in staying]
        return ended
