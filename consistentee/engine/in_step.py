"""The plain engine: batch by batch, every row of a batch goes on by one token a step, until all have ended."""

import time
from collections.abc import Iterator, Sequence

from consistentee.engine.clock import Latency, clock
from consistentee.engine.step.token_decoder import TokenDecoder
from consistentee.engine.transcript import Transcript
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
        began, max_new_tokens = time.perf_counter(), self._writing.max_new_tokens
        steps = Steps("decoding", len(self._chunks) * max_new_tokens)
        for chunk in self._chunks:
            yield from self._write_batch(self._prompts[chunk], self._transcripts[chunk], began, steps)
            steps.leave_out(max_new_tokens - max(len(row.tokens) for row in self._transcripts[chunk]))

    def _write_batch(
        self, prompts: Sequence[Sequence[int]], rows: Sequence[Transcript], began: float, steps: Steps
    ) -> Iterator[Transcript]:
        writing, start = self._writing, clock(self._model.device)
        decoder = TokenDecoder(
            self._model,
            prompts,
            writing.rule,
            new_columns=writing.max_new_tokens - 1,
            kv=writing.kv,
            sampling=writing.sampling,
            read=writing.read,
        )
        queued = time.perf_counter() - began
        tokens, exit_layers = decoder.prefill(), [decoder.num_layers] * len(rows)
        first_token = time.perf_counter() - began
        ended = self._add(rows, tokens, exit_layers, decoder)
        self.prefill_seconds += clock(self._model.device) - start
        while True:
            now = time.perf_counter() - began
            for transcript in ended:
                transcript.latency = Latency(queued, first_token, now)
            steps.add(1, len(rows))
            yield from ended
            rows = [transcript for transcript in rows if transcript.ended_by is None]
            if not rows:
                return
            ended = self._add(rows, *decoder.step(), decoder)

    def _add(
        self, rows: Sequence[Transcript], tokens: list[int], exit_layers: list[int], decoder: TokenDecoder
    ) -> list[Transcript]:
        """Add a token to every row, drop the rows that it has ended from the decoder, and return them."""
        for transcript, token, layer in zip(rows, tokens, exit_layers, strict=True):
            transcript.add(token, layer)
        staying = [place for place, transcript in enumerate(rows) if transcript.ended_by is None]
        if len(staying) == len(rows):
            return []
        for place, transcript in enumerate(rows):
            if transcript.ended_by is not None:
                transcript.late_layers = decoder.late_layers(place, transcript.exit_layers)
        if staying:
            decoder.keep(staying)
        return [transcript for transcript in rows if transcript.ended_by is not None]
