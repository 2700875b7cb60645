"""The timing run of one (task, backbone, seed) of generation: operating points and stock ``generate``, on one clock.

Reading prompts and writing after them are timed apart, in rounds interleaved over all contenders. Texts end where they
end when the model is used, so that what is compared is the time of decoding a token.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks.kinds.generation import fitted, new_tokens, token_method
from benchmarks.kinds.kind import TextRows
from benchmarks.measure.clock import passes_of_round
from benchmarks.run.plan import PlannedCell, timed_points
from benchmarks.store.environment import describe_conditions, describe_environment, now
from benchmarks.store.folders import TIMING_FILE, RunFolder, set_aside, write_record
from benchmarks.store.generation_records import (
    DecodingContender,
    DecodingSamples,
    DecodingTimingRecord,
    GenerationRecord,
)
from benchmarks.store.generation_spec import DecodingTimingSpec, GenerationCellSpec
from benchmarks.store.keys import timing_key
from benchmarks.store.spec import display_name
from consistentee.backbones.decoders import decoder_stepper_for
from consistentee.engine.generate import clock
from consistentee.errors import UserError
from consistentee.methods.token_method import TokenMethod
from consistentee.models.decoder import MultiExitDecoder

STOCK = "stock generate"


@dataclass(frozen=True)
class DecodingTimes:
    """What the clock said of one batch.

    Attributes:
        prefill: seconds of reading the prompts, the first new tokens included.
        decoding: seconds of all further tokens.
        decoded_tokens: number of further tokens.
        average_layers: that they ran.
    """

    prefill: float
    decoding: float
    decoded_tokens: int
    average_layers: float


Decode = Callable[[Sequence[str]], DecodingTimes]
"""Decodes one batch of prompts."""


@dataclass(frozen=True)
class _Timed:
    """A contender before it is timed."""

    cell_key: str
    label: str
    knob: float | None
    decode: Decode


def run_decoding_timing(
    cells: Sequence[PlannedCell],
    rows: TextRows,
    protocol: DecodingTimingSpec,
    folder: RunFolder,
    *,
    command: str,
) -> DecodingTimingRecord:
    """Time the operating points of finished cells of one (task, backbone, seed), and write the timing record.

    Args:
        cells: finished cells with their models on disk.
        rows: their task.
        protocol: how to time.
        folder: the run's folder.
        command: what the user typed.
    """
    specs = [cell.spec for cell in cells if isinstance(cell.spec, GenerationCellSpec)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = load_models([folder.model(cell.key) for cell in cells], device)
    task, first = rows.task, specs[0]
    prompts = fitted(models[0], first, rows, "test").first(protocol.rows).texts
    length = protocol.max_new_tokens or new_tokens(first, rows)
    before = describe_environment() | describe_conditions()
    timed = [_stock(models[0], length)]
    for cell, spec, model in zip(cells, specs, models, strict=True):
        assert isinstance(cell.record, GenerationRecord)
        knobs = [point.knob for point in timed_points(cell.record, protocol)]
        timed += [_contender(cell, token_method(spec), model, knob=knob, length=length) for knob in knobs]
    taken = time_decoding([contender.decode for contender in timed], prompts, protocol)
    record = DecodingTimingRecord(
        key=timing_key(protocol, "generation"),
        task=task.name,
        backbone=display_name(first.backbone),
        seed=first.seed,
        rounds=protocol.rounds,
        max_new_tokens=length,
        contenders=[
            _measured(contender, batches, len(prompts)) for contender, batches in zip(timed, taken, strict=True)
        ],
        environment_before=before,
        environment_after=describe_conditions(),
        command=command,
        finished_at=now(),
    )
    write_record(folder.timing(*cells[0].group) / TIMING_FILE, record)
    return record


def load_models(folders: Sequence[Any], device: torch.device) -> list[MultiExitDecoder]:
    """Load trained decoders; those whose backbone has the same weights share it, since all are in memory at once.

    One that cannot be loaded is set aside, so that the next run makes it again.
    """
    models: list[MultiExitDecoder] = []
    backbones: dict[str, Any] = {}
    for folder in folders:
        try:
            model = MultiExitDecoder.from_pretrained(folder).eval()
        except UserError:
            set_aside(folder, "damaged")
            raise
        backbone = backbones.setdefault(model.description.backbone_hash, model.backbone)
        if backbone is not model.backbone:
            model.backbone, model.stepper = backbone, decoder_stepper_for(backbone)
        models.append(model.to(device))
    return models


def _contender(cell: PlannedCell, method: TokenMethod, model: MultiExitDecoder, *, knob: float, length: int) -> _Timed:
    def decode(batch: Sequence[str]) -> DecodingTimes:
        written = method.generate(model, batch, knob, max_new_tokens=length, batch_size=len(batch))
        layers = written.average_layers if written.decoded_tokens else 0.0
        return DecodingTimes(written.prefill_seconds, written.decode_seconds, written.decoded_tokens, layers)

    return _Timed(cell.key, cell.spec.label, knob, decode)


class _FirstToken(StoppingCriteria):
    """Ends nothing; notes when the first new token is there, which is when the stock model has read its prompts."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.at: float | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        if self.at is None:
            self.at = clock(self.device)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _stock(model: MultiExitDecoder, length: int) -> _Timed:
    """Return the stock model's own greedy ``generate``, on prompts padded on the left."""

    def decode(batch: Sequence[str]) -> DecodingTimes:
        return stock_times(model, model.encode(batch), length)

    return _Timed("", STOCK, None, decode)


@torch.inference_mode()
def stock_times(model: MultiExitDecoder, rows: Sequence[Sequence[int]], length: int) -> DecodingTimes:
    """Time the stock model's own greedy ``generate`` on tokenised prompts, ``length`` new tokens at most."""
    longest = max(len(row) for row in rows)
    padding = [[model.pad_id] * (longest - len(row)) for row in rows]
    tokens = [[*gap, *row] for gap, row in zip(padding, rows, strict=True)]
    mask = [[0] * len(gap) + [1] * len(row) for gap, row in zip(padding, rows, strict=True)]
    ends = sorted(model.end_tokens)
    first = _FirstToken(model.device)
    start = clock(model.device)
    output = model.backbone.generate(
        input_ids=torch.tensor(tokens, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        max_new_tokens=length,
        do_sample=False,
        eos_token_id=ends or None,
        pad_token_id=model.pad_id,
        stopping_criteria=StoppingCriteriaList([first]),
    )
    end = clock(model.device)
    assert first.at is not None
    new = output[:, longest:].tolist()
    decoded = sum(_length(row, set(ends)) - 1 for row in new)
    return DecodingTimes(first.at - start, end - first.at, decoded, float(model.num_layers))


def _length(row: Sequence[int], ends: set[int]) -> int:
    """Return the tokens of a row up to the one that ends it; the stock model pads behind that."""
    return next((place for place, token in enumerate(row, start=1) if token in ends), len(row))


Rounds = list[list[DecodingTimes]]
"""[rounds][batches]."""


def time_decoding(
    contenders: Sequence[Decode], prompts: Sequence[str], protocol: DecodingTimingSpec
) -> list[dict[int, Rounds]]:
    """Time all contenders on the same prompts, in interleaved rounds; return what was taken of each, by batch size."""
    taken: list[dict[int, Rounds]] = [{size: [] for size in protocol.batch_sizes} for _ in contenders]
    for round_number in range(protocol.rounds):
        gc.collect()
        gc.freeze()  # what lives now is not looked at again: a collection would fall into somebody's time
        for planned in passes_of_round(round_number, len(contenders), protocol.batch_sizes):
            decode, size = contenders[planned.contender], planned.batch_size
            batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
            for batch in batches[: protocol.warmup_batches]:
                decode(batch)
            taken[planned.contender][size].append([decode(batch) for batch in batches])
        gc.unfreeze()
    return taken


def _measured(contender: _Timed, taken: dict[int, Rounds], prompts: int) -> DecodingContender:
    batches = next(iter(taken.values()))[0]
    tokens = sum(times.decoded_tokens for times in batches)
    return DecodingContender(
        cell_key=contender.cell_key,
        label=contender.label,
        knob=contender.knob,
        average_layers=sum(times.average_layers * times.decoded_tokens for times in batches) / max(tokens, 1),
        samples=[_samples(size, rounds, prompts) for size, rounds in taken.items()],
    )


def _samples(batch_size: int, rounds: Rounds, prompts: int) -> DecodingSamples:
    return DecodingSamples(
        batch_size=batch_size,
        prompts=prompts,
        decoded_tokens=[times.decoded_tokens for times in rounds[0]],
        prefill_seconds=[[times.prefill for times in batches] for batches in rounds],
        decode_seconds=[[times.decoding for times in batches] for batches in rounds],
    )
