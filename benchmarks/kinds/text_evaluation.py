"""Evaluate a cell of generation: choose knobs, decode the test prompts, and build the record and the rows.

Knobs are chosen on validation prompts alone: the whole knob is replayed on the full model's own texts of them. Then the
test prompts are decoded for real at full depth and at the chosen knobs, and their references are read.
"""

import logging
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import compress
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from benchmarks.analysis.statistics import MEAN, score_interval
from benchmarks.kinds.kind import CellRows, TrainedCell
from benchmarks.kinds.prompt_decoder import PromptDecoder
from benchmarks.measure.decoding_flops import DecodingFlops
from benchmarks.measure.text_scores import ReferenceLoss, TextScores, record_references, reference_losses
from benchmarks.specs.generation import GenerationCellSpec
from benchmarks.specs.knob_choice import choose_all, mixture_at
from benchmarks.specs.targets import FAITHFUL, SPEEDUPS, Agreement, Budget, Target, in_words
from benchmarks.store.folders import PREDICTIONS_FILE
from benchmarks.store.generation_records import DecodingPoint, Mean, ReadReferences, ReplayPoint, Speculation
from consistentee.data.metrics import rouge, token_match
from consistentee.data.prompts import PromptSplit, TextTask
from consistentee.engine.generate import Generations
from consistentee.engine.speculation import SpeculativeGenerations
from consistentee.methods.calibration import textual_losses
from consistentee.methods.token_methods import DraftingMethod, TokenMethod, VocabularyMethod
from consistentee.models.base import chosen_device
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule, NeverExit
from consistentee.traces.token_rows import TokenRow
from consistentee.traces.token_trace import record_tokens
from consistentee.traces.walk import sweep
from consistentee.training.loop import precision_used
from consistentee.training.token_answers import exit_answers

_DRAFTED_PROMPTS = 16
"""Validation prompts that a method which drafts and verifies decodes at every knob: its texts are known beforehand."""

_logger = logging.getLogger(__name__)


class Written(NamedTuple):
    """Texts of a method for the test prompts at one value of its knob, and their scores."""

    validation: ReplayPoint
    targets: list[Target]
    texts: Generations
    scores: TextScores
    references: ReferenceLoss


class TextEvaluation:
    """A model that decodes, its knobs on validation prompts, and the test prompts at the chosen ones.

    Methods that draft and verify choose their drafts by replay, and are then run for the layers that they call.
    """

    def __init__(self, cell: TrainedCell[GenerationCellSpec, TextTask, TokenMethod, MultiExitDecoder]) -> None:
        self.spec, self.rows = cell.spec, cell.rows
        self.decoder = PromptDecoder(
            cell.model,
            cell.method,
            cell.key,
            max_new_tokens=token_limits(cell.spec, cell.rows)[1],
            batch_size=cell.spec.batch_size,
            store=cell.store,
        )
        self.prompts, self.truncated = fitted(cell.model, cell.spec, cell.rows, "test")
        validation, _ = fitted(cell.model, cell.spec, cell.rows, "validation")
        self.points = (drafted_points if cell.method.drafts else replay_points)(self.decoder, validation)
        self.chosen = choose_points(self.points, cell.spec.budgets, cell.model.num_layers)

    @property
    def default_knob(self) -> float:
        """The cheapest knob whose tokens nearly always agree with the full model's; the last if drafts cost more."""
        model, last = self.decoder.model, float(self.decoder.method.knob_values(self.decoder.model)[-1])
        point = next(self.points[index] for index, targets in self.chosen.items() if FAITHFUL in targets)
        return point.knob if point.average_layers <= model.num_layers else last

    def columns(self) -> list[tuple[float, list[Target], dict[str, str]]]:
        agreement, layers = "agreement with full %", f"layers of {self.decoder.model.num_layers}"
        return [
            (point.knob, targets, {agreement: f"{100 * point.agreement:.1f}", layers: f"{point.average_layers:.2f}"})
            for point, targets in ((self.points[index], targets) for index, targets in self.chosen.items())
            if targets
        ]

    @cached_property
    def full(self) -> Generations:
        return self.decoder.full(self.prompts)

    @cached_property
    def full_scores(self) -> TextScores:
        return self._scores(self.full)

    @cached_property
    def references(self) -> tuple[ReferenceLoss, list[ReferenceLoss]]:
        """The losses of the references in the full model, and at every chosen knob."""
        return read_references(self.decoder, self.prompts, [self.points[index].knob for index in self.chosen])

    @cached_property
    def written(self) -> list[Written]:
        found = []
        for (index, targets), read in zip(self.chosen.items(), self.references[1], strict=True):
            point = self.points[index]
            texts = self.decoder.at(point.knob, self.prompts)
            found.append(Written(point, targets, texts, self._scores(texts), read))
            _logger.info("%s: knob %g, %.2f layers", in_words(targets) or "mixed", point.knob, texts.average_layers)
        return found

    def _scores(self, texts: Generations) -> TextScores:
        return TextScores(
            reference=rouge(self.prompts.references, texts.texts, self.rows.task.metrics),
            full_text=1 - textual_losses(texts.texts, self.full.texts),
            match=token_match(self.full.tokens, texts.tokens),
        )

    def findings(self) -> dict[str, object]:
        spec, rows, decoder = self.spec, self.rows, self.decoder
        model, recipe, flops = decoder.model, spec.recipe, DecodingFlops(decoder.model)
        trains_layers = recipe.trains != "exits"
        max_prompt_tokens, max_new_tokens = token_limits(spec, rows)
        return {
            "num_layers": model.num_layers,
            "train_task": rows.training.name,
            "training_precision": precision_used(recipe.precision, chosen_device()) if trains_layers else None,
            "exit_layers": list(model.exit_layers),
            "closing_layers": len(model.last_layers),
            "max_prompt_tokens": max_prompt_tokens,
            "max_new_tokens": max_new_tokens,
            "kv": decoder.method.kv,
            "truncated_prompts": sum(self.truncated),
            "full_scores": self._means(self.full_scores),
            "full_new_tokens": sum(map(len, self.full.tokens)),
            "full_reference_nats": self.references[0].mean,
            "curve_validation": self.points,
            "operating_points": [self._operating_point(flops, written) for written in self.written],
        }

    def _operating_point(self, flops: DecodingFlops, written: Written) -> DecodingPoint:
        texts, read, num_layers = written.texts, written.references, self.decoder.model.num_layers
        decoded = [layers[1:] for layers in texts.exit_layers]  # all tokens but the first, which the prompt gives
        exits = torch.cat([*decoded, torch.empty(0, dtype=torch.long)])
        by_position = pd.DataFrame([layers.tolist() for layers in decoded])
        prefill_flops, decode_flops = self._flops(flops, written)
        return DecodingPoint(
            knob=written.validation.knob,
            targets=written.targets,
            validation=written.validation,
            scores=self._means(written.scores),
            full_text_score=self._mean(written.scores.full_text),
            token_match=self._mean(written.scores.match),
            new_tokens=sum(map(len, texts.tokens)),
            decoded_tokens=texts.decoded_tokens,
            average_layers=texts.average_layers if texts.decoded_tokens else num_layers,
            exit_histogram=torch.bincount(exits, minlength=num_layers + 1)[1:].tolist(),
            layers_by_position=by_position.mean().tolist(),
            texts_by_position=by_position.count().tolist(),
            decode_flops=float(decode_flops),
            full_decode_flops=float(flops.full_decoding(texts)),
            prefill_flops=float(prefill_flops),
            prefill_seconds=texts.prefill_seconds,
            decode_seconds=texts.decode_seconds,
            speculation=Speculation(drafted=sum(texts.drafted), accepted=sum(texts.accepted), passes=sum(texts.passes))
            if isinstance(texts, SpeculativeGenerations)
            else None,
            references=None
            if read.mean is None
            else ReadReferences(nats=read.mean, average_layers=read.average_layers),
        )

    def _means(self, scores: TextScores) -> dict[str, Mean]:
        return {name: self._mean(values) for name, values in scores.reference.items()}

    def _mean(self, values: NDArray[np.float64]) -> Mean:
        resamples, seed = self.spec.bootstrap_resamples, self.spec.seed
        interval = score_interval(MEAN, np.zeros(values.size), values, resamples=resamples, seed=seed)
        return Mean(value=float(values.mean()), interval=interval)

    def _flops(self, flops: DecodingFlops, written: Written) -> tuple[int, int]:
        decoder, texts, knob = self.decoder, written.texts, written.validation.knob
        method, model = decoder.method, decoder.model
        if isinstance(texts, SpeculativeGenerations):
            return flops.prefill_to_speculate(texts), flops.speculating(texts)
        decodes = method.model_at(model, knob)
        own = flops if decodes is model else DecodingFlops(decodes)
        return own.prefill(texts.prompt_tokens), own.decoding(texts, method.rule(model, knob), method.kv)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Build the table of predictions, one line a test prompt: tokens, exit layers and scores, and no text.

        Columns: ``row``, ``truncated``, ``prompt_tokens``, ``full_tokens``, ``full_METRIC``, ``reference_tokens`` (but
        the first) and ``full_nats`` (what these lose); and for operating point i (the order of the record)
        ``tokens_i``, ``exit_layers_i``, ``METRIC_i``, ``rougeL_to_full_i``, ``match_i`` and ``nats_i``.
        """
        columns: dict[str, object] = {
            "row": np.arange(len(self.prompts)),
            "truncated": self.truncated,
            "prompt_tokens": self.full.prompt_tokens,
            "full_tokens": [tokens.tolist() for tokens in self.full.tokens],
            **{f"full_{name}": values for name, values in self.full_scores.reference.items()},
            "reference_tokens": self.references[0].tokens,
            "full_nats": self.references[0].nats,
        }
        for number, written in enumerate(self.written):
            columns |= {
                f"tokens_{number}": [tokens.tolist() for tokens in written.texts.tokens],
                f"exit_layers_{number}": [layers.tolist() for layers in written.texts.exit_layers],
                **{f"{name}_{number}": values for name, values in written.scores.reference.items()},
                f"rougeL_to_full_{number}": written.scores.full_text,
                f"match_{number}": written.scores.match,
                f"nats_{number}": written.references.nats,
            }
        return {PREDICTIONS_FILE: pd.DataFrame(columns)}


def token_limits(spec: GenerationCellSpec, rows: CellRows[TextTask]) -> tuple[int, int]:
    """Return the largest number of tokens of a prompt, and of new tokens of a text."""
    return spec.max_prompt_tokens or rows.task.max_prompt_tokens, spec.max_new_tokens or rows.task.max_new_tokens


def fitted(
    model: MultiExitDecoder, spec: GenerationCellSpec, rows: CellRows[TextTask], split: str
) -> tuple[PromptSplit, list[bool]]:
    """Return the prompts of a split, cut to the cell's limit, and which were cut; see :meth:`PromptSplit.cut`."""
    prompts: PromptSplit = getattr(rows.task, split)
    return prompts.cut(lambda text: model.encode([text])[0], token_limits(spec, rows)[0], rows.task.keep)


def replay_points(decoder: PromptDecoder, prompts: PromptSplit) -> list[ReplayPoint]:
    """Replay every knob value, token by token, on the texts that the full model wrote behind the prompts.

    The prediction of a token's exit is compared with that of layer L after the same tokens, so a replay gives how often
    a token goes wrong, not what becomes of the text after it.
    """
    model, method = decoder.model, decoder.method
    rows = _rows_of(model, prompts, decoder.full(prompts))
    candidates = method.candidates if isinstance(method, VocabularyMethod) else None
    knobs = [float(knob) for knob in method.knob_values(model)]
    points: dict[float, ReplayPoint] = {}
    wanted = torch.empty(0)
    for reader, own in _by_model(decoder, knobs):
        trace = record_tokens(reader, rows, store=decoder.store)
        named = exit_answers(trace, candidates=candidates).predictions[trace.may_exit]  # int64 [tokens, exits]
        if reader is model:
            wanted = named[:, -1:]
        if not own:
            continue
        exits = sweep([method.rule(model, knob) for knob in own], trace)[:, trace.may_exit]
        for knob, layers in zip(own, exits, strict=True):
            places = torch.searchsorted(torch.tensor(trace.exit_layers), layers)
            agreement = float((named == wanted).gather(1, places.unsqueeze(1)).double().mean())
            points[knob] = ReplayPoint(knob=knob, average_layers=float(layers.double().mean()), agreement=agreement)
    return [points[knob] for knob in knobs]


def _by_model(decoder: PromptDecoder, knobs: Iterable[float]) -> list[tuple[MultiExitDecoder, list[float]]]:
    """Return the models that decode, with their knobs: first the whole model, then parts that decode by themselves."""
    whole: list[float] = []
    found = [(decoder.model, whole)]
    for knob in knobs:
        reader = decoder.method.model_at(decoder.model, knob)
        if reader is decoder.model:
            whole.append(knob)
        else:
            found.append((reader, [knob]))
    return found


def drafted_points(decoder: PromptDecoder, prompts: PromptSplit) -> list[ReplayPoint]:
    """Choose the drafts of every knob value on the full model's texts, then decode a few prompts with them.

    A value at which nothing is drafted is left out, for it is the full model, unless there is no other.
    """
    few, full = prompts.select(range(min(_DRAFTED_PROMPTS, len(prompts)))), decoder.full(prompts)
    model, method = decoder.model, decoder.method
    if isinstance(method, DraftingMethod):
        method.choose_drafts(model, _rows_of(model, prompts, full), decoder.options["max_new_tokens"], decoder.store)
    points, drafting = [], []
    for knob in map(float, method.knob_values(model)):
        written = decoder.at(knob, few)
        drafting.append(isinstance(written, SpeculativeGenerations))
        match = token_match(full.tokens[: len(few)], written.tokens)
        layers = written.layer_calls / max(written.decoded_tokens, 1)
        draft = model.description.drafts.get(knob)
        points.append(ReplayPoint(knob=knob, average_layers=layers, agreement=float(match.mean()), draft=draft))
    return list(compress(points, drafting)) or points


def _rows_of(model: MultiExitDecoder, prompts: PromptSplit, written: Generations) -> list[TokenRow]:
    encoded = model.encode(prompts.prompts)
    return [(prompt, tokens.tolist()) for prompt, tokens in zip(encoded, written.tokens, strict=True)]


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
    for speedup in SPEEDUPS["generation"]:
        mixture = mixture_at(num_layers / speedup, layers, agreement)
        chosen = {mixture.first: [], mixture.second: []} | chosen
    return dict(sorted(chosen.items()))


def read_references(
    decoder: PromptDecoder, prompts: PromptSplit, knobs: Sequence[float]
) -> tuple[ReferenceLoss, list[ReferenceLoss]]:
    """Return what references lose in the full model, and at every knob: all that is verified is at full depth."""
    model, method = decoder.model, decoder.method
    losses: dict[float | None, ReferenceLoss] = {}
    for reader, own in _by_model(decoder, knobs):
        rules: dict[float | None, ExitRule] = {None: NeverExit()} if reader is model else {}
        rules |= {knob: NeverExit() if method.drafts else method.rule(model, knob) for knob in own}
        trace = record_references(reader, prompts, decoder.options["max_new_tokens"], decoder.store)
        losses |= zip(rules, reference_losses(trace, list(rules.values()), len(prompts)), strict=True)
    return losses[None], [losses[knob] for knob in knobs]
