"""Evaluate a cell of generation: choose knobs, decode the test prompts, and build the record and the rows.

Knobs are chosen on validation prompts alone: the whole knob is replayed on the full model's own texts of them. Then the
test prompts are decoded for real at full depth and at the chosen knobs, and their references are read.
"""

import logging
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.analysis.equal_cost import choose_all, mixture_at
from benchmarks.kinds.calibration_study import Study, check_calibrates, pooled, study_calibration
from benchmarks.kinds.kind import CellRows
from benchmarks.kinds.prompt_decoder import PromptDecoder, Prompts, fitting_prompts
from benchmarks.measure.decoding_flops import DecodingFlops
from benchmarks.measure.text_scores import (
    ReferenceLoss,
    TextScores,
    mean_with_interval,
    record_references,
    reference_losses,
    score_generations,
)
from benchmarks.specs.generation import GenerationCellSpec
from benchmarks.specs.targets import FAITHFUL, TEXT_SPEEDUPS, Agreement, Budget, Target, in_words
from benchmarks.store.folders import CALIBRATION_FILE, PREDICTIONS_FILE
from benchmarks.store.generation_records import DecodingPoint, Mean, ReadReferences, ReplayPoint, Speculation
from consistentee.data.metrics import token_match
from consistentee.data.prompts import TextTask
from consistentee.engine.generate import Generations
from consistentee.engine.speculation import SpeculativeGenerations
from consistentee.methods.token_methods import TokenMethod, VocabularyMethod
from consistentee.models.base import chosen_device
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule, NeverExit
from consistentee.traces.token_trace import TokenTrace, named_tokens, record_tokens
from consistentee.traces.walk import sweep
from consistentee.training.loop import precision_used

_DRAFTED_PROMPTS = 16
"""Validation prompts that a method which drafts and verifies decodes at every knob: its texts are known beforehand."""
_KIBIBYTE = 1024

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """A model that decodes, and its knobs on validation prompts.

    Attributes:
        points: every knob.
        chosen: index of a chosen one -> targets; without targets are those that others are mixed with at equal cost.
    """

    spec: GenerationCellSpec
    rows: CellRows[TextTask]
    decoder: PromptDecoder
    validation: Prompts
    points: list[ReplayPoint]
    chosen: dict[int, list[Target]]

    @property
    def default_knob(self) -> float:
        """The cheapest knob whose tokens nearly always agree with the full model's."""
        return next(self.points[index].knob for index, targets in self.chosen.items() if FAITHFUL in targets)

    def columns(self) -> list[tuple[float, list[Target], dict[str, str]]]:
        """List agreement and layers on validation prompts."""
        agreement, layers = "agreement with full %", f"layers of {self.decoder.model.num_layers}"
        return [
            (point.knob, targets, {agreement: f"{100 * point.agreement:.1f}", layers: f"{point.average_layers:.2f}"})
            for point, targets in ((self.points[index], targets) for index, targets in self.chosen.items())
            if targets
        ]

    def measure(self) -> "Outcome":
        """Decode the test prompts at the chosen knobs, and study calibrated thresholds if the suite asks for it."""
        spec, decoder, metrics = self.spec, self.decoder, self.rows.task.metrics
        prompts = fitted(decoder.model, spec, self.rows, "test")
        full = decoder.full(prompts)
        knobs = [self.points[index].knob for index in self.chosen]
        full_references, references = read_references(decoder, prompts, knobs)
        written = []
        for (index, targets), read in zip(self.chosen.items(), references, strict=True):
            point = self.points[index]
            texts = decoder.at(point.knob, prompts)
            scores = score_generations(texts, full, prompts.references, metrics)
            written.append(Written(point, targets, texts, scores, read))
            _logger.info("%s: knob %g, %.2f layers", in_words(targets) or "mixed", point.knob, texts.average_layers)
        full_scores = score_generations(full, full, prompts.references, metrics)
        study = study_calibration(decoder, pooled(self.validation, prompts), spec.study) if spec.study else None
        return Outcome(self, prompts, full, full_scores, full_references, written, study)


@dataclass(frozen=True)
class Written:
    """Texts of a method for the test prompts at one value of its knob, and their scores."""

    validation: ReplayPoint
    targets: list[Target]
    texts: Generations
    scores: TextScores
    references: ReferenceLoss


@dataclass(frozen=True)
class Outcome:
    """The test prompts, decoded at full depth and at every chosen knob (in the order of the choice)."""

    choice: Choice
    prompts: Prompts
    full: Generations
    full_scores: TextScores
    full_references: ReferenceLoss
    written: list[Written]
    study: Study | None

    def findings(self) -> dict[str, object]:
        """Collect the fields of the record that are specific to generation."""
        spec, rows, decoder = self.choice.spec, self.choice.rows, self.choice.decoder
        model, recipe, flops = decoder.model, spec.recipe, DecodingFlops(decoder.model)
        trains_layers = recipe.trains != "exits"
        return {
            "num_layers": model.num_layers,
            "train_task": rows.training.name,
            "training_precision": precision_used(recipe.precision, chosen_device()) if trains_layers else None,
            "exit_layers": list(model.exit_layers),
            "closing_layers": len(model.closing),
            "max_prompt_tokens": prompt_limit(spec, rows),
            "max_new_tokens": new_tokens(spec, rows),
            "kv": decoder.method.kv,
            "truncated_prompts": sum(self.prompts.truncated),
            "full_scores": _means(spec, self.full_scores),
            "full_new_tokens": sum(map(len, self.full.tokens)),
            "full_reference_nats": self.full_references.mean,
            "curve_validation": self.choice.points,
            "operating_points": [operating_point(spec, decoder, flops, written) for written in self.written],
            "peak_memory_bytes": peak_memory(),
            "calibration": None if self.study is None else self.study.record,
        }

    def tables(self) -> dict[str, pd.DataFrame]:
        """Build the table of predictions, and that of the study if there is one."""
        found = {PREDICTIONS_FILE: generation_table(self)}
        return found if self.study is None else {CALIBRATION_FILE: self.study.losses, **found}


def new_tokens(spec: GenerationCellSpec, rows: CellRows[TextTask]) -> int:
    """Return the largest number of new tokens of a text."""
    return spec.max_new_tokens or rows.task.max_new_tokens


def prompt_limit(spec: GenerationCellSpec, rows: CellRows[TextTask]) -> int:
    """Return the largest number of tokens of a prompt."""
    return spec.max_prompt_tokens or rows.task.max_prompt_tokens


def fitted(model: MultiExitDecoder, spec: GenerationCellSpec, rows: CellRows[TextTask], split: str) -> Prompts:
    """Return the prompts of a split, cut to the cell's limit."""
    return fitting_prompts(model, getattr(rows.task, split), prompt_limit(spec, rows), rows.task.keep)


# ---------------------------------------------------------------------------------------------- choosing knobs


def choose(
    spec: GenerationCellSpec,
    rows: CellRows[TextTask],
    method: TokenMethod,
    model: MultiExitDecoder,
    *,
    key: str = "",
    store: Path | None = None,
) -> Choice:
    """Sweep the knob of a trained model on validation prompts, and choose operating points.

    Methods that draft and verify are not replayed but run, for the layers that they call depend on what is accepted.

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
    points = (drafted_points if method.drafts else replay_points)(decoder, validation)
    return Choice(spec, rows, decoder, validation, points, choose_points(points, spec.budgets, model.num_layers))


def replay_points(decoder: PromptDecoder, prompts: Prompts) -> list[ReplayPoint]:
    """Replay every knob value, token by token, on the texts that the full model wrote behind the prompts.

    The prediction of a token's exit is compared with that of layer L after the same tokens, so a replay gives how often
    a token goes wrong, not what becomes of the text after it.
    """
    model, method = decoder.model, decoder.method
    encoded, full = model.encode(prompts.texts), decoder.full(prompts)
    rows = [(prompt, tokens.tolist()) for prompt, tokens in zip(encoded, full.tokens, strict=True)]
    trace = record_tokens(model, rows, store=decoder.store)
    says = named_tokens(trace, method.candidates if isinstance(method, VocabularyMethod) else None)[trace.may_exit]
    knobs = [float(knob) for knob in method.knob_values(model)]
    decoders = {knob: method.model_at(model, knob) for knob in knobs}
    rules = {knob: method.rule(model, knob) for knob in knobs if decoders[knob] is model}
    points = _replayed(rules, trace, says, wanted=says[:, -1])
    for knob in knobs:
        if knob not in rules:  # what decodes there is a model of its own
            own = record_tokens(decoders[knob], rows, store=decoder.store)
            rule = {knob: method.rule(model, knob)}
            points |= _replayed(rule, own, named_tokens(own)[own.may_exit], wanted=says[:, -1])
    return [points[knob] for knob in knobs]


def _replayed(
    rules: dict[float, ExitRule], trace: TokenTrace, says: Tensor, *, wanted: Tensor
) -> dict[float, ReplayPoint]:
    """Replay the rules of some knobs: layers, and how often the exit's token is the wanted one.

    Args:
        rules: by knob.
        trace: of the tokens.
        says: the token that every exit names, for every token that may exit: int64 [tokens, exits].
        wanted: int64 [tokens].
    """
    if not rules:
        return {}
    exits = sweep(list(rules.values()), trace)[:, trace.may_exit]
    agrees = says == wanted.unsqueeze(1)
    points = {}
    for knob, layers in zip(rules, exits, strict=True):
        places = torch.searchsorted(torch.tensor(trace.exit_layers), layers)
        agreement = float(agrees.gather(1, places.unsqueeze(1)).double().mean())
        points[knob] = ReplayPoint(knob=knob, average_layers=float(layers.double().mean()), agreement=agreement)
    return points


def drafted_points(decoder: PromptDecoder, prompts: Prompts) -> list[ReplayPoint]:
    """Decode a few prompts at every knob value of a method that drafts and verifies."""
    few, full = prompts.first(_DRAFTED_PROMPTS), decoder.full(prompts)
    points = []
    for knob in map(float, decoder.method.knob_values(decoder.model)):
        written = decoder.at(knob, few)
        match = token_match(full.tokens[: len(few)], written.tokens)
        layers = written.layer_calls / max(written.decoded_tokens, 1)
        points.append(ReplayPoint(knob=knob, average_layers=layers, agreement=float(match.mean())))
    return points


def choose_points(points: Sequence[ReplayPoint], budgets: Sequence[float], num_layers: int) -> dict[int, list[Target]]:
    """Choose operating points: index of the point -> what it was chosen for, by rising index.

    Quality is the agreement with the full model. Where no knob agrees enough, the one that agrees best stands for it.
    The neighbours of every budget on the hull are there too, of which mixtures at equal cost are made.
    """
    layers, agreement = [point.average_layers for point in points], [point.agreement for point in points]
    faithful = Agreement(agreement_at_least=min(FAITHFUL.agreement_at_least, max(agreement)))
    targets: list[Target] = [*(Budget(layers_at_most=budget) for budget in budgets), faithful]
    found = choose_all(targets, layers, agreement, num_layers=num_layers)
    chosen = {index: [FAITHFUL if t is faithful else t for t in own] for index, own in found.items()}
    for speedup in TEXT_SPEEDUPS:
        mixture = mixture_at(num_layers / speedup, layers, agreement)
        chosen = {mixture.first: [], mixture.second: []} | chosen
    return dict(sorted(chosen.items()))


# ---------------------------------------------------------------------------------------------- test prompts


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


def operating_point(
    spec: GenerationCellSpec, decoder: PromptDecoder, flops: DecodingFlops, written: Written
) -> DecodingPoint:
    """Build the record of a chosen knob; ``flops`` counts the operations of the whole model."""
    texts, read, model = written.texts, written.references, decoder.model
    layers, at_position = layers_by_position(texts)
    prefill_flops, decode_flops = _flops(decoder, flops, written)
    return DecodingPoint(
        knob=written.validation.knob,
        targets=written.targets,
        validation=written.validation,
        scores=_means(spec, written.scores),
        full_text_score=_mean(spec, written.scores.full_text),
        token_match=_mean(spec, written.scores.match),
        new_tokens=sum(map(len, texts.tokens)),
        decoded_tokens=texts.decoded_tokens,
        average_layers=texts.average_layers if texts.decoded_tokens else model.num_layers,
        exit_histogram=exit_histogram(texts, model.num_layers),
        layers_by_position=layers,
        texts_by_position=at_position,
        decode_flops=float(decode_flops),
        full_decode_flops=float(flops.full_decoding(texts)),
        prefill_flops=float(prefill_flops),
        prefill_seconds=texts.prefill_seconds,
        decode_seconds=texts.decode_seconds,
        speculation=Speculation(drafted=sum(texts.drafted), accepted=sum(texts.accepted), passes=sum(texts.passes))
        if isinstance(texts, SpeculativeGenerations)
        else None,
        references=None if read.mean is None else ReadReferences(nats=read.mean, average_layers=read.average_layers),
    )


def _means(spec: GenerationCellSpec, scores: TextScores) -> dict[str, Mean]:
    return {name: _mean(spec, values) for name, values in scores.reference.items()}


def _mean(spec: GenerationCellSpec, values: NDArray[np.float64]) -> Mean:
    return mean_with_interval(values, resamples=spec.bootstrap_resamples, seed=spec.seed)


def _flops(decoder: PromptDecoder, flops: DecodingFlops, written: Written) -> tuple[int, int]:
    """Return the operations of prompts and of decoded tokens."""
    method, model, texts, knob = decoder.method, decoder.model, written.texts, written.validation.knob
    if isinstance(texts, SpeculativeGenerations):
        return flops.prefill_to_speculate(texts), flops.speculating(texts)
    decodes = method.model_at(model, knob)
    own = flops if decodes is model else DecodingFlops(decodes)
    return own.prefill(texts.prompt_tokens), own.decoding(texts, method.rule(model, knob), method.kv)


def exit_histogram(written: Generations, num_layers: int) -> list[int]:
    """Return how many decoded tokens exit at layer 1, 2, ..., L."""
    exits = torch.cat([*(layers[1:] for layers in written.exit_layers), torch.empty(0, dtype=torch.long)])
    counts: list[int] = torch.bincount(exits, minlength=num_layers + 1)[1:].tolist()
    return counts


def layers_by_position(written: Generations) -> tuple[list[float], list[int]]:
    """Return the mean exit layer of the second, third, ... token of a text, and how many texts have such a token."""
    by_text = pd.DataFrame([layers[1:].tolist() for layers in written.exit_layers])
    return by_text.mean().tolist(), by_text.count().tolist()


def peak_memory() -> int:
    """Return the most bytes that this process has held, or that its tensors have held on the GPU where there is one."""
    if chosen_device().type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * _KIBIBYTE


def generation_table(done: Outcome) -> pd.DataFrame:
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
            f"tokens_{number}": [tokens.tolist() for tokens in written.texts.tokens],
            f"exit_layers_{number}": [layers.tolist() for layers in written.texts.exit_layers],
            **{f"{name}_{number}": values for name, values in written.scores.reference.items()},
            f"rougeL_to_full_{number}": written.scores.full_text,
            f"match_{number}": written.scores.match,
            f"nats_{number}": written.references.nats,
        }
    return pd.DataFrame(columns)
