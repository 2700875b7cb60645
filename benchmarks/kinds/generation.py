"""One cell of generation: train, choose knobs on validation prompts, decode the test prompts for real, and score."""

import logging
import resource
import sys
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from transformers import set_seed

from benchmarks.kinds.calibration_study import Study, pooled, study_calibration
from benchmarks.kinds.classification import (
    _log_to as log_to,  # stays where it is: results of classification are keyed by it
)
from benchmarks.kinds.decoding import PromptDecoder, Prompts, fitting_prompts
from benchmarks.kinds.generation_selection import Selection, select_knobs
from benchmarks.kinds.kind import TextRows
from benchmarks.measure.decoding_flops import DecodingFlops
from benchmarks.measure.text_scores import TextScores, mean_with_interval, score_generations
from benchmarks.store.environment import describe_environment, now
from benchmarks.store.folders import (
    CALIBRATION_FILE,
    LOG_FILE,
    PREDICTIONS_FILE,
    RECORD_FILE,
    RunFolder,
    write_predictions,
    write_record,
)
from benchmarks.store.generation_records import DecodingPoint, GenerationRecord, Mean, Speculation
from benchmarks.store.generation_spec import GenerationCellSpec
from benchmarks.store.keys import code_hash
from benchmarks.store.records import KeyParts
from benchmarks.store.spec import display_name
from benchmarks.store.targets import in_words
from consistentee.engine.generate import Generations
from consistentee.engine.speculation import SpeculativeGenerations
from consistentee.files import replacing
from consistentee.methods.method import get_method, train_method
from consistentee.methods.token_method import TokenMethod
from consistentee.models.decoder import MultiExitDecoder

_KIBIBYTE = 1024

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """What a method wrote behind the test prompts at one value of its knob, and what it scores."""

    knob: float
    generations: Generations
    scores: TextScores


@dataclass(frozen=True)
class DecodedTest:
    """The test prompts, decoded at full depth and at every chosen knob (in the order of the selection)."""

    prompts: Prompts
    full: Generations
    full_scores: TextScores
    written: list[Written]


@dataclass(frozen=True)
class Outcome:
    """All that a cell finds out."""

    spec: GenerationCellSpec
    rows: TextRows
    decoder: PromptDecoder
    selection: Selection
    test: DecodedTest
    study: Study | None


def run_generation_cell(
    spec: GenerationCellSpec, parts: KeyParts, rows: TextRows, folder: RunFolder, *, command: str
) -> GenerationRecord:
    """Run one cell and write its folder: predictions, log, trained model, and last the record that makes it done.

    Args:
        spec: the cell.
        parts: what its results depend on, see :func:`benchmarks.store.keys.key_parts`.
        rows: of the task that is decoded, capped, and of the one that is trained on.
        folder: the run's folder.
        command: what the user typed.
    """
    cell = folder.cell(spec)
    with log_to(cell / LOG_FILE):
        _logger.info("%s, key %s", spec.name, parts.key)
        method = token_method(spec)
        started = time.perf_counter()
        model = _train(spec, method, rows, folder)
        train_seconds = time.perf_counter() - started
        _logger.info("trained in %.1f s", train_seconds)
        decoder = PromptDecoder(
            model,
            method,
            parts.key,
            max_new_tokens=new_tokens(spec, rows),
            batch_size=spec.batch_size,
            store=folder.stages,
        )
        done = _evaluate(spec, rows, decoder)
        if done.study is not None:
            write_predictions(cell / CALIBRATION_FILE, done.study.losses)
        model.description.default_knob = done.selection.default_knob
        record = _record(done, parts=parts, train_seconds=train_seconds, command=command)
        with replacing(folder.model(parts.key)) as temporary:
            model.save_pretrained(temporary)
        write_predictions(cell / PREDICTIONS_FILE, generation_table(done.test))
    write_record(cell / RECORD_FILE, record)
    return record


def _evaluate(spec: GenerationCellSpec, rows: TextRows, decoder: PromptDecoder) -> Outcome:
    validation, test = (fitted(decoder.model, spec, rows, split) for split in ("validation", "test"))
    selection = select_knobs(decoder, validation, spec.budgets, store=decoder.store)
    decoded = _decode_test(decoder, test, selection, rows.task.metrics)
    study = study_calibration(decoder, pooled(validation, test), spec.study) if spec.study else None
    return Outcome(spec, rows, decoder, selection, decoded, study)


def token_method(spec: GenerationCellSpec) -> TokenMethod:
    """Return the method of a cell."""
    method = get_method(spec.method, **spec.parameters)
    assert isinstance(method, TokenMethod)  # planning has asked it about its task
    return method


def new_tokens(spec: GenerationCellSpec, rows: TextRows) -> int:
    """Return how many tokens a text of a cell has at most."""
    return spec.max_new_tokens or rows.task.max_new_tokens


def _train(spec: GenerationCellSpec, method: TokenMethod, rows: TextRows, folder: RunFolder) -> MultiExitDecoder:
    set_seed(spec.seed)  # methods may draw from the global generators; no cell depends on the one before
    model = MultiExitDecoder.from_backbone(
        spec.backbone,
        exit_layers=spec.exits.layers,
        adapter=spec.exits.adapter,
        rank=spec.exits.rank,
        seed=spec.seed,
    )
    recipe = spec.recipe.to_recipe(spec.seed, folder.stages)
    return train_method(method, spec.method, model, rows.training, recipe).eval()


def prompt_limit(spec: GenerationCellSpec, rows: TextRows) -> int:
    """Return how many tokens a prompt of a cell has at most."""
    return spec.max_prompt_tokens or rows.task.max_prompt_tokens


def fitted(model: MultiExitDecoder, spec: GenerationCellSpec, rows: TextRows, split: str) -> Prompts:
    """Return the prompts of a split, cut to what the cell allows."""
    return fitting_prompts(model, getattr(rows.task, split), prompt_limit(spec, rows), rows.task.keep)


def _decode_test(
    decoder: PromptDecoder, prompts: Prompts, selection: Selection, metrics: tuple[str, ...]
) -> DecodedTest:
    """Decode the test prompts for real at the chosen knobs."""
    full = decoder.full(prompts)
    written = []
    for index, targets in selection.chosen.items():
        knob = selection.points[index].knob
        generations = decoder.at(knob, prompts)
        written.append(Written(knob, generations, score_generations(generations, full, prompts.references, metrics)))
        _logger.info("%s: knob %g, %.2f layers", in_words(targets), knob, generations.average_layers)
    return DecodedTest(prompts, full, score_generations(full, full, prompts.references, metrics), written)


def _record(done: Outcome, *, parts: KeyParts, train_seconds: float, command: str) -> GenerationRecord:
    spec, task, training = done.spec, done.rows.task, done.rows.training
    method, model = done.decoder.method, done.decoder.model
    flops = DecodingFlops(model)
    return GenerationRecord(
        key=parts.key,
        key_parts=parts,
        code_hash=code_hash(),
        task=task.name,
        task_version=task.version,
        metric=task.metric,
        task_notes=task.notes,
        backbone=display_name(spec.backbone),
        method=display_name(spec.method),
        label=spec.label,
        parameters=method.parameters,
        knob_name=method.knob.name,
        seed=spec.seed,
        num_layers=model.num_layers,
        train_task=training.name,
        train_rows=min(len(training.train), spec.recipe.max_rows or len(training.train)),
        validation_rows=len(task.validation),
        test_rows=len(task.test),
        exit_layers=list(model.exit_layers),
        max_prompt_tokens=prompt_limit(spec, done.rows),
        max_new_tokens=new_tokens(spec, done.rows),
        kv=method.kv,
        truncated_prompts=sum(done.test.prompts.truncated),
        full_scores=_means(spec, done.test.full_scores),
        full_new_tokens=sum(map(len, done.test.full.tokens)),
        curve_validation=done.selection.points,
        operating_points=[_point(done, flops, number) for number in range(len(done.test.written))],
        train_seconds=train_seconds,
        peak_memory_bytes=peak_memory(),
        calibration=None if done.study is None else done.study.record,
        command=command,
        environment=describe_environment(),
        finished_at=now(),
    )


def _means(spec: GenerationCellSpec, scores: TextScores) -> dict[str, Mean]:
    return {name: _mean(spec, values) for name, values in scores.reference.items()}


def _mean(spec: GenerationCellSpec, values: NDArray[np.float64]) -> Mean:
    return mean_with_interval(values, resamples=spec.bootstrap_resamples, seed=spec.seed)


def _point(done: Outcome, flops: DecodingFlops, number: int) -> DecodingPoint:
    """Return the operating point with this number in the order of the selection."""
    spec, decoder, written = done.spec, done.decoder, done.test.written[number]
    index, targets = list(done.selection.chosen.items())[number]
    generations = written.generations
    layers, texts = layers_by_position(generations)
    return DecodingPoint(
        knob=written.knob,
        targets=targets,
        validation=done.selection.points[index],
        scores=_means(spec, written.scores),
        full_text_score=_mean(spec, written.scores.full_text),
        token_match=_mean(spec, written.scores.match),
        new_tokens=sum(map(len, generations.tokens)),
        decoded_tokens=generations.decoded_tokens,
        average_layers=generations.average_layers if generations.decoded_tokens else decoder.model.num_layers,
        exit_histogram=exit_histogram(generations, decoder.model.num_layers),
        layers_by_position=layers,
        texts_by_position=texts,
        decode_flops=float(_decode_flops(decoder, flops, written)),
        full_decode_flops=float(flops.full_decoding(generations)),
        prefill_flops=float(flops.prefill(generations.prompt_tokens)),
        prefill_seconds=generations.prefill_seconds,
        decode_seconds=generations.decode_seconds,
        speculation=_speculation(generations),
    )


def _decode_flops(decoder: PromptDecoder, flops: DecodingFlops, written: Written) -> int:
    if isinstance(written.generations, SpeculativeGenerations):
        return flops.speculating(written.generations)
    return flops.decoding(written.generations, decoder.method.rule(decoder.model, written.knob), decoder.method.kv)


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

    Columns: ``row``, ``truncated``, ``prompt_tokens``, ``full_tokens``, ``full_METRIC``; and for operating point i (the
    order of the record) ``tokens_i``, ``exit_layers_i``, ``METRIC_i``, ``rougeL_to_full_i`` and ``match_i``.
    """
    columns: dict[str, object] = {
        "row": np.arange(len(done.prompts)),
        "truncated": done.prompts.truncated,
        "prompt_tokens": done.full.prompt_tokens,
        "full_tokens": [tokens.tolist() for tokens in done.full.tokens],
        **{f"full_{name}": values for name, values in done.full_scores.reference.items()},
    }
    for number, written in enumerate(done.written):
        columns |= {
            f"tokens_{number}": [tokens.tolist() for tokens in written.generations.tokens],
            f"exit_layers_{number}": [layers.tolist() for layers in written.generations.exit_layers],
            **{f"{name}_{number}": values for name, values in written.scores.reference.items()},
            f"rougeL_to_full_{number}": written.scores.full_text,
            f"match_{number}": written.scores.match,
        }
    return pd.DataFrame(columns)
