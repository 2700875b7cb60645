"""Evaluate a cell of generation: choose knobs, decode the test prompts, and build the record and the rows."""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from benchmarks.kinds.rows import CellRows
from benchmarks.kinds.texts.calibration_study import Study, check_calibrates, pooled, study_calibration
from benchmarks.kinds.texts.decoded_test import DecodedTest, Written, decode_test
from benchmarks.kinds.texts.decoding import PromptDecoder, Prompts, fitting_prompts
from benchmarks.kinds.texts.selection import Selection, select_knobs
from benchmarks.measure.decoding_flops import DecodingFlops
from benchmarks.measure.reference_loss import ReferenceLoss
from benchmarks.measure.text_scores import TextScores, mean_with_interval
from benchmarks.specs.generation import GenerationCellSpec
from benchmarks.specs.targets import Target
from benchmarks.store.folders import CALIBRATION_FILE, PREDICTIONS_FILE
from benchmarks.store.generation_records import DecodingPoint, Mean, ReadReferences, Speculation
from consistentee.data.prompts import TextTask
from consistentee.engine.generate import Generations
from consistentee.engine.speculation import SpeculativeGenerations
from consistentee.methods.method import TokenMethod
from consistentee.models.base import Precision
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.training.loop import training_device
from consistentee.training.precision import precision_used
from consistentee.training.recipe import TokenRecipeSettings

_KIBIBYTE = 1024


@dataclass(frozen=True)
class Choice:
    """A model that decodes, and the operating points chosen on validation prompts."""

    spec: GenerationCellSpec
    rows: CellRows[TextTask]
    decoder: PromptDecoder
    validation: Prompts
    selection: Selection

    @property
    def default_knob(self) -> float:
        """The cheapest knob whose tokens nearly always agree with the full model's."""
        return self.selection.default_knob

    def columns(self) -> list[tuple[float, list[Target], dict[str, str]]]:
        """List agreement and layers on validation prompts."""
        points = [(self.selection.points[index], targets) for index, targets in self.selection.chosen.items()]
        agreement, layers = "agreement with full %", f"layers of {self.decoder.model.num_layers}"
        return [
            (point.knob, targets, {agreement: f"{100 * point.agreement:.1f}", layers: f"{point.average_layers:.2f}"})
            for point, targets in points
            if targets
        ]

    def measure(self) -> "Outcome":
        """Decode the test prompts at the chosen knobs, and study calibrated thresholds if the suite asks for it."""
        spec, decoder = self.spec, self.decoder
        test = fitted(decoder.model, spec, self.rows, "test")
        decoded = decode_test(decoder, test, self.selection, self.rows.task.metrics)
        study = study_calibration(decoder, pooled(self.validation, test), spec.study) if spec.study else None
        return Outcome(spec, self.rows, decoder, self.selection, decoded, study)


@dataclass(frozen=True)
class Outcome:
    """Everything that a cell of generation measured."""

    spec: GenerationCellSpec
    rows: CellRows[TextTask]
    decoder: PromptDecoder
    selection: Selection
    test: DecodedTest
    study: Study | None

    def findings(self) -> dict[str, object]:
        """Collect the fields of the record that are specific to generation."""
        method, model, spec = self.decoder.method, self.decoder.model, self.spec
        flops = DecodingFlops(model)
        return {
            "num_layers": model.num_layers,
            "train_task": self.rows.training.name,
            "training_precision": layers_trained_in(spec.recipe),
            "exit_layers": list(model.exit_layers),
            "closing_layers": len(model.closing),
            "max_prompt_tokens": prompt_limit(spec, self.rows),
            "max_new_tokens": new_tokens(spec, self.rows),
            "kv": method.kv,
            "truncated_prompts": sum(self.test.prompts.truncated),
            "full_scores": means(spec, self.test.full_scores),
            "full_new_tokens": sum(map(len, self.test.full.tokens)),
            "full_reference_nats": self.test.full_references.mean,
            "curve_validation": self.selection.points,
            "operating_points": [operating_point(self, flops, number) for number in range(len(self.test.written))],
            "peak_memory_bytes": peak_memory(),
            "calibration": None if self.study is None else self.study.record,
        }

    def tables(self) -> dict[str, pd.DataFrame]:
        """Build the table of predictions, and that of the study if there is one."""
        found = {PREDICTIONS_FILE: generation_table(self.test)}
        return found if self.study is None else {CALIBRATION_FILE: self.study.losses, **found}


def choose(
    spec: GenerationCellSpec,
    rows: CellRows[TextTask],
    method: TokenMethod,
    model: MultiExitDecoder,
    *,
    key: str = "",
    store: Path | None = None,
) -> Choice:
    """Sweep the knob of a trained model on validation prompts.

    Args:
        spec, rows, method, model: the cell, its rows, its method and the trained model.
        key: key of the cell, under which texts are stored.
        store: folder that keeps texts and full-depth passes.

    Raises:
        UserError: the suite asks for a study of thresholds, and the method has none.
    """
    if spec.study is not None:
        check_calibrates(method)
    decoder = PromptDecoder(
        model, method, key, max_new_tokens=new_tokens(spec, rows), batch_size=spec.batch_size, store=store
    )
    validation = fitted(model, spec, rows, "validation")
    return Choice(spec, rows, decoder, validation, select_knobs(decoder, validation, spec.budgets, store=store))


def new_tokens(spec: GenerationCellSpec, rows: CellRows[TextTask]) -> int:
    """Return the largest number of new tokens of a text."""
    return spec.max_new_tokens or rows.task.max_new_tokens


def prompt_limit(spec: GenerationCellSpec, rows: CellRows[TextTask]) -> int:
    """Return the largest number of tokens of a prompt."""
    return spec.max_prompt_tokens or rows.task.max_prompt_tokens


def fitted(model: MultiExitDecoder, spec: GenerationCellSpec, rows: CellRows[TextTask], split: str) -> Prompts:
    """Return the prompts of a split, cut to the cell's limit."""
    return fitting_prompts(model, getattr(rows.task, split), prompt_limit(spec, rows), rows.task.keep)


def layers_trained_in(recipe: TokenRecipeSettings) -> Precision | None:
    """Return the precision that a recipe trains layers in on this machine; None if it trains none."""
    return None if recipe.trains == "exits" else precision_used(recipe.precision, training_device())


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
