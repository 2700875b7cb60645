"""ReadPrompts: what batches of prompts give at full depth, kept so that the next knob need not read them again."""

from collections.abc import Sequence

from torch import Tensor

from consistentee.arguments import NotNegative, checked
from consistentee.backbones.decoders import DecoderStepper
from consistentee.engine.step.prompt_batch import PromptBatch

_Key = tuple[DecoderStepper, tuple[tuple[int, ...], ...]]


@checked
class ReadPrompts:
    """Keys, values and last states of prompts, which depend on no rule and no knob.

    For callers that decode the same prompts many times with the same weights, as a sweep over knobs does: reading 256
    tokens costs a CPU several times what writing 48 does. Batches are found again if they hold the same prompts in the
    same order, and a batch for which there is no room is read each time. Weights must not change meanwhile.
    """

    def __init__(self, max_bytes: NotNegative = 2 * 2**30) -> None:
        """``max_bytes``: what is kept at most, on the device of the model."""
        self._room = max_bytes
        self._read: dict[_Key, tuple[Tensor, list[Tensor]]] = {}

    def states(self, batch: PromptBatch, prompts: Sequence[Sequence[int]]) -> Tensor:
        """As :meth:`PromptBatch.prefill`, of prompts that may have been read before; ``batch`` is one of them."""
        key = batch.stepper, tuple(map(tuple, prompts))
        if key in self._read:
            states, columns = self._read[key]
            batch.cache.begin_with(columns)
            return states
        states = batch.prefill()
        cache, columns_read = batch.cache, batch.prompt_columns
        kept = (tensor[:, :, :columns_read].nbytes for tensor in (*cache.keys, *cache.values))
        if (needed := states.nbytes + sum(kept)) <= self._room:
            self._room -= needed
            self._read[key] = states, cache.copy_of(columns_read)
        return states
