"""Checks that are one for both kinds of rows: each returns in silence, or raises BrokenContractError.

The numbers are those of the project's invariants: layers counted = layers run (4), the knob is ordered (5), same seed,
same numbers (7). The messages are for the author of the method: they name the fault, and not the assertion.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contract.base_case import BaseCase
from benchmarks.contract.faults import COUNTS_FROM_0, FIT_SECTION, KNOB_SECTION, BrokenContractError, check_order
from benchmarks.contract.watching import WatchedRule, attributes_of, modules_of_later_layers
from consistentee.errors import UserError
from consistentee.methods.token_method import TokenMethod

AnyCase = BaseCase[Any, Any]


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        title: what must hold.
        run: the check.
        live: it runs new texts with the rule, which a rule that reads labels cannot.
        every_family: whether the family of the backbone can matter.
    """

    title: str
    run: Callable[[Any], None]
    live: bool = True
    every_family: bool = True


def check_count(ran: int, reported: int, knob: float) -> None:
    """4: raise BrokenContractError where other layers are reported than ran."""
    if ran != reported:
        raise BrokenContractError(
            "layers run that nobody counts",
            f"{reported} are reported and {ran} ran (knob {knob:g})",
            "A rule or a head must not run layers of its own",
        )


def layers_count_from_one(case: AnyCase) -> None:
    """At layer t, counted from 1, a rule uses no classifier, pooler, exit adapter or head of a later layer."""
    knob = case.knobs[-1]
    watched = WatchedRule(case.rule(knob))
    with modules_of_later_layers(case.modules_by_layer(), watched) as later:
        case.ask(watched, knob)
    if later:
        advice = "Layers count from 1, lists from 0: what belongs to view.layer stands at view.layer - 1"
        raise BrokenContractError(COUNTS_FROM_0, later[0], advice)


def knob_is_ordered(case: AnyCase) -> None:
    """5: exits lie in 1..L; a stricter knob never exits earlier; the ends are the first exit and full depth."""
    layers, values = case.model.num_layers, list(case.method.knob_values(case.model))
    exits = case.swept(values)
    check_order(exits, values, case.row)
    if case.method.replay_only:
        return
    if not exits[-1].eq(layers).all():
        raise BrokenContractError(
            f"the last value of the knob must give full depth; perhaps {COUNTS_FROM_0}",
            f"with {values[-1]:g}, {case.row}s leave at layer {exits[-1].min()} of {layers}",
            f"Layers count from 1, and the last one is num_layers, here {layers}",
            KNOB_SECTION,
        )
    if len(values) > 1 and not _drafts_without_exits(case, exits):
        _check_first_exit(case, exits[0], values[0])


def _drafts_without_exits(case: AnyCase, exits: Tensor) -> bool:
    """Tell whether a method drafts by other means than an exit: then no row leaves early at any value of the knob."""
    drafts = isinstance(case.method, TokenMethod) and case.method.drafts
    return drafts and bool(exits.eq(case.model.num_layers).all())


def _check_first_exit(case: AnyCase, exits: Tensor, knob: float) -> None:
    """A rule without memory has nothing to wait for; one with memory may need some layers before it can leave."""
    if _remembers(case, knob):
        if exits.min() == case.model.num_layers:
            fault = f"the first value of the knob lets no {case.row} leave early"
            example = f"with {knob:g}, every {case.row} runs to layer {case.model.num_layers}"
            raise BrokenContractError(fault, example, "", KNOB_SECTION)
        return
    first = case.first_exit(knob)
    if exits.max() > first:
        raise BrokenContractError(
            f"the first value of the knob must let every {case.row} of a rule without state leave at the first exit; "
            f"perhaps {COUNTS_FROM_0}",
            f"with {knob:g}, {case.row} {int(exits.argmax()) + 1} leaves at layer {exits.max()}, and the first exit is "
            f"at layer {first}",
            f"Layers count from 1, and the first question is asked at view.layer == {first}",
            KNOB_SECTION,
        )


def _remembers(case: AnyCase, knob: float) -> bool:
    rule = case.rule(knob)
    before = attributes_of(rule)
    case.replayed(knob, rule=rule)
    return bool(rule.start(1, case.model.num_layers)) or attributes_of(rule) != before


def knobs_out_of_range_are_refused(case: AnyCase) -> None:
    """5: a knob outside of its range is a UserError that names the knob."""
    values = case.method.knob_values(case.model)
    for knob in (min(values) - 1, max(values) * 2 + 1):
        try:
            case.rule(knob)
        except UserError as error:
            if case.method.knob.name in str(error):
                continue
        raise BrokenContractError(
            "rule() takes knobs that are out of range",
            f"{knob:g}, where the values lie in [{min(values):g}, {max(values):g}]",
            "Begin it with self.check_knob(model, knob)",
            KNOB_SECTION,
        )


def same_seed_same_numbers(case: AnyCase) -> None:
    """7: trained again with the same seed, the method has the same weights and says the same."""
    again = case.trained_again()
    weights, repeated = case.model.state_dict(), again.model.state_dict()
    different = [name for name in weights if name not in repeated or not torch.equal(weights[name], repeated[name])]
    if different or not torch.equal(case.numbers(), again.numbers()):
        raise BrokenContractError(
            "the same seed gives other numbers",
            f"{different[0] if different else 'what it says'} differs between two trainings",
            "Seed what you draw with recipe.seed (model.add_head takes it)",
            FIT_SECTION,
        )


def saved_and_loaded_it_says_the_same(case: AnyCase) -> None:
    """7: a model that is saved and loaded gives the same exits and answers."""
    with tempfile.TemporaryDirectory() as folder:
        case.model.save_pretrained(Path(folder) / "model")
        try:
            loaded = case.with_model(type(case.model).from_pretrained(Path(folder) / "model"))
        except UserError as error:
            advice = "What a method adds must be known to the model: add_head(), use_pooler(), use_adapters() see to it"
            raise BrokenContractError("a saved model cannot be loaded", str(error), advice, FIT_SECTION) from error
    for knob in case.knobs:
        pairs = zip(case.answers(knob), loaded.answers(knob), strict=True)
        if not all(torch.equal(before, after) for before, after in pairs):
            raise BrokenContractError(
                "saved and loaded, the model gives other answers",
                f"knob {knob:g}",
                "What a rule uses must be in the weights or the method's parameters, not left elsewhere by fit()",
                FIT_SECTION,
            )
