"""Cells of generation: choose knobs on validation prompts, decode the test prompts for real, and score the texts.

Their names are those of :class:`benchmarks.kinds.kind.KindFunctions`, as classification's are.
"""

import logging
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from benchmarks.kinds.calibration_study import Study, pooled, study_calibration
from benchmarks.kinds.decoding import PromptDecoder, Prompts, fitting_prompts
from benchmarks.kinds.generation_selection import Selection, select_knobs
from benchmarks.kinds.rows import CellRows
from benchmarks.measure.decoding_clock import DecodingTimes, stock_times_with_head
from benchmarks.measure.decoding_flops import DecodingFlops
from benchmarks.measure.reference_loss import ReferenceLoss, record_references, reference_losses
from benchmarks.measure.text_scores import TextScores, mean_with_interval, score_generations
from benchmarks.specs.generation import DecodingTimingSpec, GenerationCellSpec, Regrouped
from benchmarks.specs.targets import Target, in_words
from benchmarks.store.folders import CALIBRATION_FILE, PREDICTIONS_FILE
from benchmarks.store.generation_records import DecodingPoint, DecodingSamples, Mean, ReadReferences, Speculation
from consistentee.backbones.decoders import decoder_stepper_for
from consistentee.data.prompts import TextTask
from consistentee.engine.generate import Generations
from consistentee.engine.speculation import SpeculativeGenerations
from consistentee.methods.token_method import TokenMethod
from consistentee.models.base import Precision
from consistentee.models.decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule, NeverExit
from consistentee.training.loop import training_device
from consistentee.training.precision import precision_used
from consistentee.training.recipe import TokenRecipeSettings

STOCK = "stock generate"

_KIBIBYTE = 1024

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """What decodes, and the operating points that validation prompts chose."""

    decoder: PromptDecoder
    validation: Prompts
    selection: Selection

    @property
    def default_knob(self) -> float:
        """The knob that a user of the saved model gets unasked: cheap, and nearly always as the full model."""
        return self.selection.default_knob

    def columns(self) -> list[tuple[float, list[Target], dict[str, str]]]:
        """Return agreement and layers on validation prompts."""
        points = [(self.selection.points[index], targets) for index, targets in self.selection.chosen.items()]
        agreement, layers = "agreement with full %", f"layers of {self.decoder.model.num_layers}"
        return [
            (point.knob, targets, {agreement: f"{100 * point.agreement:.1f}", layers: f"{point.average_layers:.2f}"})
            for point, targets in points
            if targets
        ]


@dataclass(frozen=True)
class Written:
    """What a method wrote behind the test prompts at one value of its knob, and what it scores."""

    knob: float
    generations: Generations
    scores: TextScores
    references: ReferenceLoss


@dataclass(frozen=True)
class DecodedTest:
    """The test prompts, decoded at full depth and at every chosen knob (in the order of the selection)."""

    prompts: Prompts
    full: Generations
    full_scores: TextScores
    full_references: ReferenceLoss
    written: list[Written]


@dataclass(frozen=True)
class Outcome:
    """All that a cell finds out."""

    spec: GenerationCellSpec
    rows: CellRows[TextTask]
    decoder: PromptDecoder
    selection: Selection
    test: DecodedTest
    study: Study | None


def build_model(spec: GenerationCellSpec, rows: CellRows[TextTask]) -> MultiExitDecoder:
    """Return the backbone of a cell with untrained exits."""
    return MultiExitDecoder.from_backbone(
        spec.backbone,
        exit_layers=spec.exits.layers,
        adapter=spec.exits.adapter,
        rank=spec.exits.rank,
        seed=spec.seed,
    )


def choose(
    spec: GenerationCellSpec,
    rows: CellRows[TextTask],
    method: TokenMethod,
    model: MultiExitDecoder,
    *,
    key: str = "",
    store: Path | None = None,
) -> Choice:
    """Sweep the knob of a trained model on validation prompts; texts are kept under the cell's key."""
    decoder = PromptDecoder(
        model, method, key, max_new_tokens=new_tokens(spec, rows), batch_size=spec.batch_size, store=store
    )
    validation = fitted(model, spec, rows, "validation")
    return Choice(decoder, validation, select_knobs(decoder, validation, spec.budgets, store=store))


def evaluate(spec: GenerationCellSpec, rows: CellRows[TextTask], chosen: Choice) -> Outcome:
    """Decode the test prompts for real at the chosen knobs, and study calibrated thresholds where that is asked for."""
    decoder = chosen.decoder
    test = fitted(decoder.model, spec, rows, "test")
    decoded = _decode_test(decoder, test, chosen.selection, rows.task.metrics)
    study = study_calibration(decoder, pooled(chosen.validation, test), spec.study) if spec.study else None
    return Outcome(spec, rows, decoder, chosen.selection, decoded, study)


def new_tokens(spec: GenerationCellSpec, rows: CellRows[TextTask]) -> int:
    """Return how many tokens a text of a cell has at most."""
    return spec.max_new_tokens or rows.task.max_new_tokens


def prompt_limit(spec: GenerationCellSpec, rows: CellRows[TextTask]) -> int:
    """Return how many tokens a prompt of a cell has at most."""
    return spec.max_prompt_tokens or rows.task.max_prompt_tokens


def fitted(model: MultiExitDecoder, spec: GenerationCellSpec, rows: CellRows[TextTask], split: str) -> Prompts:
    """Return the prompts of a split, cut to what the cell allows."""
    return fitting_prompts(model, getattr(rows.task, split), prompt_limit(spec, rows), rows.task.keep)


def _decode_test(
    decoder: PromptDecoder, prompts: Prompts, selection: Selection, metrics: tuple[str, ...]
) -> DecodedTest:
    """Decode the test prompts for real at the chosen knobs."""
    full = decoder.full(prompts)
    knobs = [selection.points[index].knob for index in selection.chosen]
    full_references, references = read_references(decoder, prompts, knobs)
    written = []
    for knob, targets, read in zip(knobs, selection.chosen.values(), references, strict=True):
        generations = decoder.at(knob, prompts)
        scores = score_generations(generations, full, prompts.references, metrics)
        written.append(Written(knob, generations, scores, read))
        _logger.info("%s: knob %g, %.2f layers", in_words(targets) or "mixed", knob, generations.average_layers)
    full_scores = score_generations(full, full, prompts.references, metrics)
    return DecodedTest(prompts, full, full_scores, full_references, written)


def read_references(
    decoder: PromptDecoder, prompts: Prompts, knobs: Sequence[float]
) -> tuple[ReferenceLoss, list[ReferenceLoss]]:
    """Return what references lose in the full model, and at every knob: all that is verified is at full depth."""
    model, method = decoder.model, decoder.method

    def read(reader: MultiExitDecoder, rules: Sequence[ExitRule]) -> list[ReferenceLoss]:
        trace = record_references(reader, prompts.split, decoder.options["max_new_tokens"], decoder.store)
        return reference_losses(trace, rules, len(prompts))

    readers = {knob: method.model_at(model, knob) for knob in knobs}
    rules: dict[float, ExitRule] = {
        knob: NeverExit() if method.drafts else method.rule(model, knob) for knob in knobs if readers[knob] is model
    }
    full, *found = read(model, [NeverExit(), *rules.values()])
    losses = dict(zip(rules, found, strict=True))
    for knob in knobs:
        if knob not in losses:  # what decodes there is a model of its own
            (losses[knob],) = read(readers[knob], [method.rule(model, knob)])
    return full, [losses[knob] for knob in knobs]


def findings(spec: GenerationCellSpec, done: Outcome) -> dict[str, Any]:
    """Return the fields of the record that only generation has, or counts in its own way."""
    method, model = done.decoder.method, done.decoder.model
    flops = DecodingFlops(model)
    return {
        "num_layers": model.num_layers,
        "train_task": done.rows.training.name,
        "training_precision": layers_trained_in(spec.recipe),
        "exit_layers": list(model.exit_layers),
        "max_prompt_tokens": prompt_limit(spec, done.rows),
        "max_new_tokens": new_tokens(spec, done.rows),
        "kv": method.kv,
        "truncated_prompts": sum(done.test.prompts.truncated),
        "full_scores": _means(spec, done.test.full_scores),
        "full_new_tokens": sum(map(len, done.test.full.tokens)),
        "full_reference_nats": done.test.full_references.mean,
        "curve_validation": done.selection.points,
        "operating_points": [_point(done, flops, number) for number in range(len(done.test.written))],
        "peak_memory_bytes": peak_memory(),
        "calibration": None if done.study is None else done.study.record,
    }


def layers_trained_in(recipe: TokenRecipeSettings) -> Precision | None:
    """Return what a recipe's layers were trained in on this machine; None where they were not trained."""
    return None if recipe.trains == "exits" else precision_used(recipe.precision, training_device())


def tables(done: Outcome) -> dict[str, pd.DataFrame]:
    """Return the table of predictions, and that of the study where there is one."""
    found = {PREDICTIONS_FILE: generation_table(done.test)}
    return found if done.study is None else {CALIBRATION_FILE: done.study.losses, **found}


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
    prefill_flops, decode_flops = _flops(decoder, flops, written)
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


# What is timed: a batch of prompts, read and continued.


def load_model(folder: Path, loaded: Sequence[MultiExitDecoder] = ()) -> MultiExitDecoder:
    """Load a trained decoder; those whose backbone has the same weights share it, since all are in memory at once."""
    model = MultiExitDecoder.from_pretrained(folder)
    same = [other for other in loaded if other.description.backbone_hash == model.description.backbone_hash]
    if same:
        model.backbone, model.stepper = same[0].backbone, decoder_stepper_for(same[0].backbone)
    return model


def stock_model(specs: Sequence[GenerationCellSpec], models: Sequence[MultiExitDecoder]) -> MultiExitDecoder:
    """Return what stands for the stock model: any; time does not tell weights."""
    return models[0]


def timed_rows(
    model: MultiExitDecoder, spec: GenerationCellSpec, rows: CellRows[TextTask], at_most: int
) -> Sequence[str]:
    """Return the first test prompts, cut to what the cell allows."""
    return fitted(model, spec, rows, "test").first(at_most).texts


def timing_options(spec: GenerationCellSpec, rows: CellRows[TextTask], protocol: DecodingTimingSpec) -> dict[str, int]:
    """Return how long a timed text gets."""
    return {"max_new_tokens": protocol.max_new_tokens or new_tokens(spec, rows)}


def stock_contender(model: MultiExitDecoder, max_new_tokens: int) -> Callable[[Sequence[str]], DecodingTimes]:
    """Return the stock model's own greedy ``generate``, on prompts padded on the left: a whole batch at once."""
    return lambda batch: stock_times_with_head(model, model.encode(batch), max_new_tokens)


def contender(
    method: TokenMethod, model: MultiExitDecoder, knob: float, max_new_tokens: int
) -> Callable[[Sequence[str]], DecodingTimes]:
    """Return a decoder with a method's own way to decode, a batch in step."""
    return lambda batch: _times(
        method.generate(model, batch, knob, max_new_tokens=max_new_tokens, batch_size=len(batch))
    )


def regrouping_contenders(
    method: TokenMethod, model: MultiExitDecoder, knob: float, protocol: DecodingTimingSpec, max_new_tokens: int
) -> list[tuple[Regrouped, Callable[[Sequence[str]], DecodingTimes]]]:
    """Return the same with a batch as rows under way, for every setting; of methods that decode as all do."""
    if type(method).generate is not TokenMethod.generate:
        return []

    def regrouped(setting: Regrouped) -> Callable[[Sequence[str]], DecodingTimes]:
        options: dict[str, Any] = setting.model_dump() | {"max_new_tokens": max_new_tokens}
        return lambda batch: _times(method.generate(model, batch, knob, **options))

    return [(setting, regrouped(setting)) for setting in protocol.regrouped]


def _times(written: Generations) -> DecodingTimes:
    return DecodingTimes(
        prefill=written.prefill_seconds,
        decoding=written.decode_seconds,
        decoded_tokens=written.decoded_tokens,
        layer_calls=written.layer_calls,
        completed=[latency.completed for latency in written.latencies],
    )


def average_layers(batches: Sequence[DecodingTimes]) -> float:
    """Return the mean over decoded tokens."""
    return sum(times.layer_calls for times in batches) / max(sum(times.decoded_tokens for times in batches), 1)


def samples(batch_size: int, rows: int, rounds: Sequence[Sequence[DecodingTimes]]) -> DecodingSamples:
    """Return the tokens of every batch, and its seconds in every round: reading and writing apart."""
    return DecodingSamples(
        batch_size=batch_size,
        prompts=rows,
        decoded_tokens=[times.decoded_tokens for times in rounds[0]],
        prefill_seconds=[[times.prefill for times in batches] for batches in rounds],
        decode_seconds=[[times.decoding for times in batches] for batches in rounds],
        layer_calls=[times.layer_calls for times in rounds[0]],
        completed_seconds=_noted([[second for times in batches for second in times.completed] for batches in rounds]),
        head_seconds=_noted([[times.head for times in batches if times.head is not None] for batches in rounds]),
    )


def _noted(rounds: list[list[float]]) -> list[list[float]]:
    """Return what was noted in every round; nothing where it was not."""
    return rounds if any(rounds) else []
