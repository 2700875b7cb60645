"""Cells of generation: choose knobs on validation prompts, decode the test prompts for real, and score the texts.

Their names are those of :class:`benchmarks.kinds.kind.KindFunctions`, as classification's are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.kinds.rows import CellRows
from benchmarks.kinds.texts.calibration_study import check_calibrates, pooled, study_calibration
from benchmarks.kinds.texts.decoded_test import decode_test
from benchmarks.kinds.texts.decoding import PromptDecoder, Prompts, fitting_prompts
from benchmarks.kinds.texts.findings import Outcome, generation_table, means, operating_point, peak_memory
from benchmarks.kinds.texts.selection import Selection, select_knobs
from benchmarks.measure.decoding_clock import DecodingTimes, stock_times
from benchmarks.measure.decoding_flops import DecodingFlops
from benchmarks.specs.generation import DecodingTimingSpec, GenerationCellSpec, Regrouped
from benchmarks.specs.targets import Target
from benchmarks.store.folders import CALIBRATION_FILE, PREDICTIONS_FILE
from benchmarks.store.generation_records import DecodingSamples
from consistentee.backbones.decoders import decoder_stepper_for
from consistentee.data.prompts import TextTask
from consistentee.engine.generate import Generations
from consistentee.methods.token_method import TokenMethod
from consistentee.models.base import Precision
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.training.loop import training_device
from consistentee.training.precision import precision_used
from consistentee.training.recipe import TokenRecipeSettings

STOCK = "stock generate"
_FULL = "token-full"


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


def build_model(spec: GenerationCellSpec, rows: CellRows[TextTask]) -> MultiExitDecoder:
    """Return the backbone of a cell with untrained exits."""
    return MultiExitDecoder.from_backbone(
        spec.backbone,
        exit_layers=spec.exits.layers,
        adapter=spec.exits.adapter,
        rank=spec.exits.rank,
        closing_layers=spec.exits.closing_layers,
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
    """Sweep the knob of a trained model on validation prompts; texts are kept under the cell's key.

    Raises UserError where a study of thresholds is wanted of a method that has none.
    """
    if spec.study is not None:
        check_calibrates(method)
    decoder = PromptDecoder(
        model, method, key, max_new_tokens=new_tokens(spec, rows), batch_size=spec.batch_size, store=store
    )
    validation = fitted(model, spec, rows, "validation")
    return Choice(decoder, validation, select_knobs(decoder, validation, spec.budgets, store=store))


def evaluate(spec: GenerationCellSpec, rows: CellRows[TextTask], chosen: Choice) -> Outcome:
    """Decode the test prompts for real at the chosen knobs, and study calibrated thresholds where that is asked for."""
    decoder = chosen.decoder
    test = fitted(decoder.model, spec, rows, "test")
    decoded = decode_test(decoder, test, chosen.selection, rows.task.metrics)
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


def findings(spec: GenerationCellSpec, done: Outcome) -> dict[str, Any]:
    """Return the fields of the record that only generation has, or counts in its own way."""
    method, model = done.decoder.method, done.decoder.model
    flops = DecodingFlops(model)
    return {
        "num_layers": model.num_layers,
        "train_task": done.rows.training.name,
        "training_precision": layers_trained_in(spec.recipe),
        "exit_layers": list(model.exit_layers),
        "closing_layers": len(model.closing),
        "max_prompt_tokens": prompt_limit(spec, done.rows),
        "max_new_tokens": new_tokens(spec, done.rows),
        "kv": method.kv,
        "truncated_prompts": sum(done.test.prompts.truncated),
        "full_scores": means(spec, done.test.full_scores),
        "full_new_tokens": sum(map(len, done.test.full.tokens)),
        "full_reference_nats": done.test.full_references.mean,
        "curve_validation": done.selection.points,
        "operating_points": [operating_point(done, flops, number) for number in range(len(done.test.written))],
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


# What is timed: a batch of prompts, read and continued.


def load_model(folder: Path, loaded: Sequence[MultiExitDecoder] = ()) -> MultiExitDecoder:
    """Load a trained decoder; those whose backbone has the same weights share it, since all are in memory at once."""
    model = MultiExitDecoder.from_pretrained(folder)
    same = [other for other in loaded if other.description.backbone_hash == model.description.backbone_hash]
    if same:
        model.backbone, model.stepper = same[0].backbone, decoder_stepper_for(same[0].backbone)
    return model


def stock_model(specs: Sequence[GenerationCellSpec], models: Sequence[MultiExitDecoder]) -> MultiExitDecoder:
    """Return what stands for the stock model: the full one where there is one, else the first.

    Times of a token tell weights above batch 1 alone, where a text that ends leaves its batch a row short.
    """
    full = [model for spec, model in zip(specs, models, strict=True) if spec.method == _FULL]
    return next(iter([*full, *models]))


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
    return lambda batch: stock_times(model, model.encode(batch), max_new_tokens, with_head=True)


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
    """Return the same with a batch as rows under way, for every setting; of methods that decode as all do.

    Prompts are read in the order of their length, as ``generate`` has it by default: who is read beside whom is part of
    regrouping, and reading is timed apart.
    """
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
