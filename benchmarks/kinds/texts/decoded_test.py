"""The test prompts, decoded for real at full depth and at the chosen knobs; and their references, read."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.kinds.texts.decoding import PromptDecoder, Prompts
from benchmarks.kinds.texts.selection import Selection
from benchmarks.measure.reference_loss import ReferenceLoss, record_references, reference_losses
from benchmarks.measure.text_scores import TextScores, score_generations
from benchmarks.specs.targets import in_words
from consistentee.engine.generate import Generations
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule, NeverExit

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """Texts of a method for the test prompts at one value of its knob, and their scores."""

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


def decode_test(
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
