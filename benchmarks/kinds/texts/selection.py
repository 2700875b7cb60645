"""Knobs are chosen on validation prompts alone: the whole knob is replayed on the full model's own texts of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.analysis.equal_cost import choose_all, mixture_at
from benchmarks.kinds.texts.decoding import PromptDecoder, Prompts
from benchmarks.specs.targets import FAITHFUL, TEXT_SPEEDUPS, Agreement, Budget, Target
from benchmarks.store.generation_records import ReplayPoint
from consistentee.data.metrics import token_match
from consistentee.engine.generate import Generations
from consistentee.methods.method import TokenMethod
from consistentee.methods.token_methods import VocabularyMethod
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule
from consistentee.traces.token_trace import TokenTrace, named_tokens, record_tokens
from consistentee.traces.walk import sweep

_DRAFTED_PROMPTS = 16
"""Validation prompts that a method which drafts and verifies decodes at every knob: its texts are known beforehand."""


@dataclass(frozen=True)
class Selection:
    """A method's knobs on validation prompts, and those of them that were chosen: index -> targets.

    Without targets are those that others are mixed with at equal cost.
    """

    points: list[ReplayPoint]
    chosen: dict[int, list[Target]]

    @property
    def default_knob(self) -> float:
        """The knob that a user of the saved model gets unasked: cheap, and nearly always as the full model."""
        return next(self.points[index].knob for index, targets in self.chosen.items() if FAITHFUL in targets)


def select_knobs(
    decoder: PromptDecoder, prompts: Prompts, budgets: Sequence[float], *, store: Path | None = None
) -> Selection:
    """Replay all knob values of a method on validation prompts, and choose operating points.

    Args:
        decoder: model and method.
        prompts: of the validation split.
        budgets: fractions of the layers.
        store: folder where full-depth passes are kept.

    Methods that draft and verify are not replayed but run, for the layers that they call depend on what is accepted.
    """
    full = decoder.full(prompts)
    if decoder.method.drafts:
        points = _drafted_points(decoder, prompts, full)
    else:
        points = replay_points(decoder.model, decoder.method, prompts, full, store=store)
    num_layers = decoder.model.num_layers
    chosen = choose_points(points, budgets, num_layers)
    beside = {index: chosen.get(index, []) for index in mixed_points(points, num_layers)}
    return Selection(points, dict(sorted((chosen | beside).items())))


def replay_points(
    model: MultiExitDecoder, method: TokenMethod, prompts: Prompts, full: Generations, *, store: Path | None = None
) -> list[ReplayPoint]:
    """Replay every knob value, token by token, on the texts that the full model wrote behind the prompts.

    What a token's exit says is compared with what layer L says after the same tokens, so that a replay tells how often
    a token goes wrong, not what becomes of the text after it.
    """
    encoded = model.encode(prompts.texts)
    rows = [(prompt, tokens.tolist()) for prompt, tokens in zip(encoded, full.tokens, strict=True)]
    trace = record_tokens(model, rows, store=store)
    says = said_at_exits(trace, method.candidates if isinstance(method, VocabularyMethod) else None)
    knobs = [float(knob) for knob in method.knob_values(model)]
    decoders = {knob: method.model_at(model, knob) for knob in knobs}
    rules = {knob: method.rule(model, knob) for knob in knobs if decoders[knob] is model}
    points = _replayed(rules, trace, says, wanted=says[:, -1])
    for knob in knobs:
        if knob not in rules:  # what decodes there is a model of its own
            own = record_tokens(decoders[knob], rows, store=store)
            points |= _replayed({knob: method.rule(model, knob)}, own, said_at_exits(own), wanted=says[:, -1])
    return [points[knob] for knob in knobs]


def _replayed(
    rules: dict[float, ExitRule], trace: TokenTrace, says: Tensor, *, wanted: Tensor
) -> dict[float, ReplayPoint]:
    """Replay the rules of some knobs: layers, and how often the exit's token (of ``says``) is the wanted one [tokens].

    ``says`` is int64 [tokens, exits].
    """
    if not rules:
        return {}
    exits = sweep(list(rules.values()), trace)[:, trace.may_exit]
    agrees = says == wanted.unsqueeze(1)
    points = {}
    for knob, exit_layers in zip(rules, exits, strict=True):
        places = torch.searchsorted(torch.tensor(trace.exit_layers), exit_layers)
        agreement = agrees.gather(1, places.unsqueeze(1)).double().mean()
        points[knob] = ReplayPoint(
            knob=knob, average_layers=float(exit_layers.double().mean()), agreement=float(agreement)
        )
    return points


def said_at_exits(trace: TokenTrace, candidates: int | None = None) -> Tensor:
    """Return the token that every exit names, for every token that may exit: int64 [tokens, exits].

    ``candidates``: see :func:`consistentee.traces.token_trace.named_tokens`.
    """
    return named_tokens(trace, candidates)[trace.may_exit]


def choose_points(points: Sequence[ReplayPoint], budgets: Sequence[float], num_layers: int) -> dict[int, list[Target]]:
    """Choose operating points: index of the point -> what it was chosen for.

    Quality is the agreement with the full model. Where no knob agrees enough, the one that agrees best stands for it.
    """
    layers, agreement = [point.average_layers for point in points], [point.agreement for point in points]
    faithful = Agreement(agreement_at_least=min(FAITHFUL.agreement_at_least, max(agreement)))
    targets: list[Target] = [*(Budget(layers_at_most=budget) for budget in budgets), faithful]
    chosen = choose_all(targets, layers, agreement, num_layers=num_layers)
    return {index: [FAITHFUL if t is faithful else t for t in found] for index, found in chosen.items()}


def mixed_points(points: Sequence[ReplayPoint], num_layers: int) -> set[int]:
    """Return the knobs that mixtures of equal cost are made of: the neighbours of every budget on the hull."""
    layers, agreement = [point.average_layers for point in points], [point.agreement for point in points]
    mixtures = [mixture_at(num_layers / speedup, layers, agreement) for speedup in TEXT_SPEEDUPS]
    return {index for mixture in mixtures for index in (mixture.first, mixture.second)}


def _drafted_points(decoder: PromptDecoder, prompts: Prompts, full: Generations) -> list[ReplayPoint]:
    few = prompts.first(_DRAFTED_PROMPTS)
    points = []
    for knob in map(float, decoder.method.knob_values(decoder.model)):
        written = decoder.at(knob, few)
        match = token_match(full.tokens[: len(few)], written.tokens)
        layers = written.layer_calls / max(written.decoded_tokens, 1)
        points.append(ReplayPoint(knob=knob, average_layers=layers, agreement=float(match.mean())))
    return points
