"""ReadPrompts: batches of prompts as full depth read them, so that the next knob need not read them again."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from consistentee.arguments import NotNegative, checked
from consistentee.backbones.decoders import DecoderStepper
from consistentee.engine.step.cache import StoredColumns
from consistentee.engine.step.prompt_batch import PromptBatch

_Key = tuple[int, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True, eq=False)
class _Read:
    """What reading a batch of prompts gives.

    Attributes:
        stepper: whose layers read them; held here, so that no other can get its identity.
        states: of the last tokens after layer L, [rows, 1, width].
        columns: of all layers, as far as the prompts go.
    """

    stepper: DecoderStepper
    states: Tensor
    columns: StoredColumns


@checked
class ReadPrompts:
    """What prompts give: their keys, values and last states, which no rule and no knob has a part in.

    For who decodes the same prompts many times with the same weights, as a sweep over knobs does: reading 256 tokens
    costs a CPU several times what writing 48 does. Batches are found again if they hold the same prompts in the same
    order, and a batch for which there is no room is read each time. Weights must not change meanwhile.
    """

    def __init__(self, max_bytes: NotNegative = 2 * 2**30) -> None:
        """``max_bytes``: what is kept at most, on the device of the model."""
        self._room = max_bytes
        self._read: dict[_Key, _Read] = {}

    def states(self, batch: PromptBatch, prompts: Sequence[Sequence[int]]) -> Tensor:
        """As :meth:`PromptBatch.prefill`, of prompts that may have been read before; ``batch`` is one of them."""
        key = id(batch.stepper), tuple(map(tuple, prompts))
        known = self._read.get(key)
        if known is not None:
            batch.cache.take_over(known.columns)
            return known.states
        states = batch.prefill()
        columns = batch.cache.stored(batch.prompt_columns)
        if (needed := states.nbytes + columns.nbytes) <= self._room:
            self._room -= needed
            self._read[key] = _Read(batch.stepper, states, columns.copy())
        return states
