"""What a cell of generation found out, and what is kept of it: operating points, and a line a test prompt."""

import resource
import sys
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from benchmarks.kinds.rows import CellRows
from benchmarks.kinds.texts.calibration_study import Study
from benchmarks.kinds.texts.decoded_test import DecodedTest, Written
from benchmarks.kinds.texts.decoding import PromptDecoder
from benchmarks.kinds.texts.selection import Selection
from benchmarks.measure.decoding_flops import DecodingFlops
from benchmarks.measure.reference_loss import ReferenceLoss
from benchmarks.measure.text_scores import TextScores, mean_with_interval
from benchmarks.specs.generation import GenerationCellSpec
from benchmarks.store.generation_records import DecodingPoint, Mean, ReadReferences, Speculation
from consistentee.data.prompts import TextTask
from consistentee.engine.generate import Generations
from consistentee.engine.speculation import SpeculativeGenerations

_KIBIBYTE = 1024


@dataclass(frozen=True)
class Outcome:
    """All that a cell finds out."""

    spec: GenerationCellSpec
    rows: CellRows[TextTask]
    decoder: PromptDecoder
    selection: Selection
    test: DecodedTest
    study: Study | None


def means(spec: GenerationCellSpec, scores: TextScores) -> dict[str, Mean]:
    """Return the mean of every score against the references, with its interval."""
    return {name: _mean(spec, values) for name, values in scores.reference.items()}


def _mean(spec: GenerationCellSpec, values: NDArray[np.float64]) -> Mean:
    return mean_with_interval(values, resamples=spec.bootstrap_resamples, seed=spec.seed)


def operating_point(done: Outcome, flops: DecodingFlops, number: int) -> DecodingPoint:
    """Return the operating point with this number in the order of the selection."""
    spec, decoder, written = done.spec, done.decoder, done.test.written[number]
    index, targets = list(done.selection.chosen.items())[number]
    generations = written.generations
    layers, texts = layers_by_position(generations)
    prefill_flops, decode_flops = _flops(decoder, flops, written)
    return DecodingPoint(
        knob=written.knob,
        targets=targets,
        validation=done.selection.points[index],
        scores=means(spec, written.scores),
        full_text_score=_mean(spec, written.scores.full_text),
        token_match=_mean(spec, written.scores.match),
        new_tokens=sum(map(len, generations.tokens)),
        decoded_tokens=generations.decoded_tokens,
        average_layers=generations.average_layers if generations.decoded_tokens else decoder.model.num_layers,
        exit_histogram=exit_histogram(generations, decoder.model.num_layers),
        layers_by_position=layers,
        texts_by_position=texts,
        decode_flops=float(decode_flops),
        full_decode_flops=float(flops.full_decoding(generations)),
        prefill_flops=float(prefill_flops),
        prefill_seconds=generations.prefill_seconds,
        decode_seconds=generations.decode_seconds,
        speculation=_speculation(generations),
        references=_references(written.references),
    )


def _references(read: ReferenceLoss) -> ReadReferences | None:
    return None if read.mean is None else ReadReferences(nats=read.mean, average_layers=read.average_layers)


def _flops(decoder: PromptDecoder, flops: DecodingFlops, written: Written) -> tuple[int, int]:
    """Return the operations of prompts and of decoded tokens; ``flops`` counts those of the whole model."""
    method, model, generations = decoder.method, decoder.model, written.generations
    if isinstance(generations, SpeculativeGenerations):
        return flops.prefill_to_speculate(generations), flops.speculating(generations)
    decodes = method.model_at(model, written.knob)
    own = flops if decodes is model else DecodingFlops(decodes)
    rule = method.rule(model, written.knob)
    return own.prefill(generations.prompt_tokens), own.decoding(generations, rule, method.kv)


def _speculation(generations: Generations) -> Speculation | None:
    if not isinstance(generations, SpeculativeGenerations):
        return None
    return Speculation(
        drafted=sum(generations.drafted), accepted=sum(generations.accepted), passes=sum(generations.passes)
    )


def exit_histogram(generations: Generations, num_layers: int) -> list[int]:
    """Return how many decoded tokens exit at layer 1, 2, ..., L."""
    exits = torch.cat([*(layers[1:] for layers in generations.exit_layers), torch.empty(0, dtype=torch.long)])
    counts: list[int] = torch.bincount(exits, minlength=num_layers + 1)[1:].tolist()
    return counts


def layers_by_position(generations: Generations) -> tuple[list[float], list[int]]:
    """Return the mean exit layer of the second, third, ... token of a text, and how many texts have such a token."""
    longest = max((len(layers) for layers in generations.exit_layers), default=0)
    at_place = [
        [int(layers[place]) for layers in generations.exit_layers if len(layers) > place] for place in range(1, longest)
    ]
    return [float(np.mean(layers)) for layers in at_place], [len(layers) for layers in at_place]


def peak_memory() -> int:
    """Return the most bytes that this process has held, or that its tensors have held on the GPU where there is one."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * _KIBIBYTE


def generation_table(done: DecodedTest) -> pd.DataFrame:
    """Return one line a test prompt: tokens, exit layers and scores, and no text.

    Columns: ``row``, ``truncated``, ``prompt_tokens``, ``full_tokens``, ``full_METRIC``, ``reference_tokens`` (but the
    first) and ``full_nats`` (what these lose); and for operating point i (the order of the record) ``tokens_i``,
    ``exit_layers_i``, ``METRIC_i``, ``rougeL_to_full_i``, ``match_i`` and ``nats_i``.
    """
    columns: dict[str, object] = {
        "row": np.arange(len(done.prompts)),
        "truncated": done.prompts.truncated,
        "prompt_tokens": done.full.prompt_tokens,
        "full_tokens": [tokens.tolist() for tokens in done.full.tokens],
        **{f"full_{name}": values for name, values in done.full_scores.reference.items()},
        "reference_tokens": done.full_references.tokens,
        "full_nats": done.full_references.nats,
    }
    for number, written in enumerate(done.written):
        columns |= {
            f"tokens_{number}": [tokens.tolist() for tokens in written.generations.tokens],
            f"exit_layers_{number}": [layers.tolist() for layers in written.generations.exit_layers],
            **{f"{name}_{number}": values for name, values in written.scores.reference.items()},
            f"rougeL_to_full_{number}": written.scores.full_text,
            f"match_{number}": written.scores.match,
            f"nats_{number}": written.references.nats,
        }
    return pd.DataFrame(columns)
