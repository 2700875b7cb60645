"""The checks of methods, one function each: a check returns nothing, or raises BrokenContractError.

The numbers are those of the project's invariants: never exit = the stock model (1), replay = reality (2), a row's
result is its own (3), layers counted = layers run (4), the knob is ordered (5), no hole in the cache (6), same seed,
same numbers (7). The messages are for the author of the method: they name the fault, not the assertion.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, asdict, dataclass, fields, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from benchmarks.testing.cases import (
    FEW,
    NEW_TOKENS,
    RECIPE,
    TOKEN_RECIPE,
    AnyCase,
    InstanceCase,
    Row,
    TokenCase,
    texts_of,
)
from benchmarks.testing.report import (
    COUNTS_FROM_0,
    FIT_SECTION,
    KNOB_SECTION,
    STATE_SECTION,
    TOKEN_SECTION,
    BrokenContractError,
    any_error_is,
    state_breaks,
)
from benchmarks.testing.tiny import make_task
from benchmarks.testing.watching import WatchedRule, attributes_of, modules_of_later_layers
from consistentee.engine.generate import Generations
from consistentee.engine.speculation import SpeculativeGenerations
from consistentee.errors import UserError
from consistentee.methods.method import AnyMethod
from consistentee.methods.token_methods import DraftingMethod, TokenMethod

_CLOSE = 1e-4


@dataclass(frozen=True)
class Check:
    """One check, and in ``title`` what must hold.

    Attributes:
        live: it runs new texts with the rule, which a rule that reads labels cannot.
        every_family: the result can depend on the family of the backbone.
    """

    title: str
    run: Callable[[Any], None]
    live: bool = True
    every_family: bool = True


def never_exit_is_the_stock_model(case: AnyCase) -> None:
    """1: with a rule that never exits, logits or greedy tokens equal the stock model's."""
    if isinstance(case, TokenCase) and (
        case.model.backbone_fingerprint() != case.models.model(case.family).backbone_fingerprint()
    ):
        raise BrokenContractError(
            "fit() changes the backbone, which the recipe wants frozen",
            "recipe.trains is 'exits'",
            "train_exits() sees to that; what you train yourself must begin with exit_adapters. or exit_heads.",
            FIT_SECTION,
        )
    for where, stock, ours in case.at_full_depth():
        for place, pair in enumerate(zip(stock, ours, strict=True), start=1):
            if not _alike(*pair, within=1e-5):
                raise BrokenContractError(
                    "after fit(), the model that never exits is not the stock model",
                    f"{case.text} {place} has other {'logits' if pair[0].is_floating_point() else 'tokens'} {where}",
                    "Nothing may come between the layers, or before the last classifier or LM head",
                    FIT_SECTION,
                )


def _alike(first: Tensor, second: Tensor, within: float = _CLOSE) -> bool:
    return first.shape == second.shape and torch.allclose(first.double(), second.double(), rtol=within, atol=within)


def replay_is_reality(case: AnyCase) -> None:
    """2: a replay gives the exits and answers of a live run; of tokens, one with exact keys and values."""
    for knob in case.knobs:
        (exits, answers), (replayed, replayed_answers) = case.live_and_replayed(knob)
        if not torch.equal(replayed, exits):
            fault = f"the same {case.row} gets other exits each time the rule is asked"
            raise why_exits_differ(case, knob) or BrokenContractError(fault, f"knob {knob:g}", "Does it draw numbers?")
        if not _alike(replayed_answers, answers):
            fault = "live and replayed answers differ at the same exit layer"
            advice = "An exit must give a row the same answer live and in a full-depth pass"
            raise BrokenContractError(fault, f"knob {knob:g}", advice)


def a_rows_result_is_its_own(case: AnyCase) -> None:
    """3: exits and answers do not depend on batch neighbours, padding or order, nor on how the engine regroups."""
    for knob in case.knobs:
        for where, alone, together in case.neighbourhoods(knob):
            for number, rows in enumerate(zip(alone, together, strict=True), start=1):
                _check_same_row(case, knob, f"{case.text} {number}", where, rows)


def _check_same_row(case: AnyCase, knob: float, name: str, where: str, rows: tuple[Row, Row]) -> None:
    one, other = rows
    if differ := _first_difference(one.layers, other.layers):
        row = f"token {differ.place} of {name}" if isinstance(case, TokenCase) else name
        raise why_exits_differ(case, knob) or _looks_at_neighbours(row, differ, f"{where} (knob {knob:g})")
    if not _alike(one.answers, other.answers):
        raise BrokenContractError(
            f"the answer to a {case.text} depends on its neighbours at the same exit layers",
            f"{name} has another answer {where} (knob {knob:g})",
        )


def why_exits_differ(case: AnyCase, knob: float) -> BrokenContractError | None:
    """Find by experiment why exit layers depend on how rows are run; None if nothing is found.

    In a replay no row leaves its batch, and one row alone has no neighbours: comparing the combinations separates the
    causes.
    """
    live_alone, live_together, trace, singles = case.alone_and_together(knob)
    rule = case.rule(knob)
    before, together = attributes_of(rule), case.replayed(knob, trace, rule).tolist()
    after, again = attributes_of(rule), case.replayed(knob, trace, rule).tolist()
    if together != again:
        changed = ", ".join(f"self.{name}" for name in after if after[name] != before.get(name)) or "it"
        return BrokenContractError(
            "the rule carries something over from batch to batch",
            f"the same rows get other exits when it is used again (knob {knob:g}); {changed} changed",
            "What a rule remembers must lie in `state`, which begins anew with start()",
            STATE_SECTION,
        )
    alone = torch.cat([case.replayed(knob, one) for one in singles]).tolist()
    if differ := _first_difference(alone, together):
        return _looks_at_neighbours(f"{case.row} {differ.place}", differ, f"among other rows (knob {knob:g})")
    if differ := _first_difference(live_alone, live_together):
        return state_breaks(
            f"{case.row} {differ.place} exits at layer {differ.first} alone but at layer {differ.second} once other "
            f"rows have left (knob {knob:g})"
        )
    if differ := _first_difference(live_alone, alone):
        return BrokenContractError(
            "the rule reads something that a trace does not hold as it is live",
            f"{case.row} {differ.place} exits at layer {differ.second} in a replay but at {differ.first} live "
            f"(knob {knob:g})",
        )
    return None


class _Difference(NamedTuple):
    place: int
    first: object
    second: object


def _first_difference(first: Sequence[object], second: Sequence[object]) -> _Difference | None:
    """Return the first place, from 1, where two sequences differ, and their items there."""
    pairs = enumerate(zip_longest(first, second, fillvalue="none: the text has ended"), start=1)
    return next((_Difference(place, *pair) for place, pair in pairs if pair[0] != pair[1]), None)


def _looks_at_neighbours(row: str, layers: _Difference, where: str) -> BrokenContractError:
    return BrokenContractError(
        "the rule looks at its batch neighbours",
        f"{row} exits at layer {layers.first} alone but at layer {layers.second} {where}",
        "Decide each row from that row alone: reduce over the last dimension, not the first, and leave padding out",
    )


def layers_counted_are_layers_run(case: AnyCase) -> None:
    """4: the layers reported are those that hooks on the stock modules count; of tokens, late ones included."""
    for knob in case.knobs:
        for ran, reported in case.work(knob):
            if ran != reported:
                raise BrokenContractError(
                    "layers run that nobody counts",
                    f"{reported} are reported and {ran} ran (knob {knob:g})",
                    "A rule or a head must not run layers of its own",
                )


def layers_count_from_one(case: AnyCase) -> None:
    """At layer t, counted from 1, a rule uses no classifier, pooler, exit adapter or head of a later layer."""
    watched = WatchedRule(case.rule(case.knobs[-1]))
    with modules_of_later_layers(case.model, watched) as later:
        case.decided(case.knobs[-1], watched)
    if later:
        advice = "Layers count from 1, lists from 0: what belongs to view.layer stands at view.layer - 1"
        raise BrokenContractError(COUNTS_FROM_0, later[0], advice)


def knob_is_ordered(case: AnyCase) -> None:
    """5: exits lie in 1..L; a stricter knob never exits earlier; the ends are the first exit and full depth.

    A single value has no ends: such a method is swept by what it was trained with, as the paper's prices are.
    """
    layers, values = case.model.num_layers, case.values
    exits = case.swept(values)
    _check_order(case, exits, values)
    if case.method.replay_only or len(values) == 1:
        return
    if not exits[-1].eq(layers).all():
        raise BrokenContractError(
            f"the last value of the knob must give full depth; perhaps {COUNTS_FROM_0}",
            f"with {values[-1]:g}, {case.row}s exit at layer {exits[-1].min()} of {layers}",
            f"Layers count from 1, and the last one is num_layers, here {layers}",
            KNOB_SECTION,
        )
    drafts = isinstance(case.method, TokenMethod) and case.method.drafts
    if not (drafts and exits.eq(layers).all()):  # a method may draft without any exit
        _check_first_exit(case, exits[0], values[0])


def _check_order(case: AnyCase, exits: Tensor, values: Sequence[float]) -> None:
    earlier = (exits[1:] < exits[:-1]).nonzero().tolist()
    if earlier:
        step, place = earlier[0]
        is_reversed = bool(exits[0].sum() > exits[-1].sum())
        raise BrokenContractError(
            "a stricter knob exits earlier" + (": the values run from the latest exits" if is_reversed else ""),
            f"{case.row} {place + 1} exits at layer {exits[step, place]} with {values[step]:g}, and at layer "
            f"{exits[step + 1, place]} with the next value, {values[step + 1]:g}",
            "The values of the knob must run from the earliest exits to the latest",
            KNOB_SECTION,
        )


def _check_first_exit(case: AnyCase, exits: Tensor, knob: float) -> None:
    """A rule without memory has nothing to wait for; one with memory may need some layers before it can exit."""
    rule = case.rule(knob)
    before = attributes_of(rule)
    case.replayed(knob, rule=rule)
    if rule.start(1, case.model.num_layers) or attributes_of(rule) != before:
        if exits.min() == case.model.num_layers:
            fault = f"the first value of the knob lets no {case.row} exit early"
            example = f"with {knob:g}, every {case.row} runs to layer {case.model.num_layers}"
            raise BrokenContractError(fault, example, "", KNOB_SECTION)
        return
    first = case.first_exit(knob)
    if exits.max() > first:
        raise BrokenContractError(
            f"the first value of the knob must let every {case.row} of a rule without state exit at the first exit; "
            f"perhaps {COUNTS_FROM_0}",
            f"with {knob:g}, {case.row} {int(exits.argmax()) + 1} exits at layer {exits.max()}, and the first exit is "
            f"at layer {first}",
            f"Layers count from 1, and the first question is asked at view.layer == {first}",
            KNOB_SECTION,
        )


def knobs_out_of_range_are_refused(case: AnyCase) -> None:
    """5: a knob outside of its range is a UserError that names the knob."""
    values = case.values
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
    """7: trained again with the same seed, the method has the same weights."""
    weights, repeated = case.model.state_dict(), case.train(case.method, case.family, case.models).model.state_dict()
    for name in weights:
        if name not in repeated or not torch.equal(weights[name], repeated[name]):
            example, advice = f"{name} differs between two trainings", "Seed what you draw with recipe.seed"
            raise BrokenContractError("the same seed gives other numbers", example, advice, FIT_SECTION)


def saved_and_loaded_it_is_the_same(case: AnyCase) -> None:
    """7: a model that is saved and loaded gives the same exits and answers."""
    with tempfile.TemporaryDirectory() as folder:
        case.model.save_pretrained(Path(folder) / "model")
        advice = "What a method adds must be known to the model: add_head(), use_pooler() see to it"
        with any_error_is("a saved model cannot be loaded", FIT_SECTION, advice):
            loaded = case.reloaded(Path(folder) / "model")
    knob = case.middle_knob
    for before, after in zip(case.decided(knob), loaded.decided(knob), strict=True):
        if before.layers != after.layers or not torch.equal(before.answers, after.answers):
            raise BrokenContractError(
                "saved and loaded, the model gives other answers",
                f"knob {knob:g}",
                "What a rule uses must be in the weights or the method's parameters, not left elsewhere by fit()",
                FIT_SECTION,
            )


def other_tasks_work_or_are_refused(case: AnyCase) -> None:
    """A task that a method is not defined for is refused by name, before any training; a regression may work."""
    method: AnyMethod = case.method
    if isinstance(case, InstanceCase) and method.supports_regression:
        return replay_is_reality(InstanceCase.train(method, case.family, case.models, regression=True))
    try:
        method.check_task(make_task(regression=True))
    except UserError:
        return None
    if isinstance(case, TokenCase):
        fault, advice = "check_task() takes a task that asks for labels", "Do not override check_task()"
    else:
        fault = "check_task() takes a regression that is not supported"
        advice = "Set supports_regression, or do not override check_task()"
    raise BrokenContractError(fault, "", advice, FIT_SECTION)


def generate_keeps_to_the_texts(case: TokenCase) -> None:
    """A decoding loop of a method's own gives each prompt the same text in any company; at full depth, the stock's."""
    for knob in case.knobs if case.method.has_own_loop else case.knobs[-1:]:
        written = _generated(case, case.texts, knob)
        alone = [_generated(case, [text], knob).tokens[0].tolist() for text in case.texts[:FEW]]
        together = [tokens.tolist() for tokens in written.tokens]
        if differ := _first_difference(together[:FEW], alone):
            example = f"prompt {differ.place} goes on with other tokens alone than among others (knob {knob:g})"
            raise _wrong_texts("generate() lets a text depend on its neighbours", example)
        if any(len(row.answers) != len(row.layers) for row in texts_of(written)):
            raise _wrong_texts("generate() must give every new token an exit layer")
        if isinstance(written, SpeculativeGenerations) and not case.method.drafts:
            fault = "generate() drafts and verifies, and the method does not say so"
            example = f"a replay would not know the layers that it calls (knob {knob:g})"
            raise _wrong_texts(fault, example, "Set drafts: ClassVar[bool] = True in the class")
    if differ := _first_difference([tokens.tolist() for tokens in case.stock], together):
        fault = "at the last value of the knob, generate() must write the stock model's text"
        raise _wrong_texts(fault, f"prompt {differ.place} goes on with other tokens (knob {case.knobs[-1]:g})")


_wrong_texts = partial(BrokenContractError, section=TOKEN_SECTION)


def _generated(case: TokenCase, texts: Sequence[str], knob: float) -> Generations:
    with any_error_is("generate() fails", TOKEN_SECTION):
        return case.method.generate(case.model, texts, knob, max_new_tokens=NEW_TOKENS)


# Trained so long that some tokens are predicted right.
_TOKEN_RECIPE = replace(TOKEN_RECIPE, trains="all", backbone_steps=20, backbone_learning_rate=1e-2)
_NUMBERS = (0.0, 0.01, 0.3, 1.0, 1, 2)
"""Tried besides half, twice and one more than the value: some are far from it, so that a tiny model shows an effect."""


def every_parameter_has_an_effect(case: AnyCase) -> None:
    """Another valid value of a parameter changes weights, knob or exits, unless all of them are refused.

    This holds with the method's own other parameters, and while one of them is 0. Further combinations are not tried.
    """
    with tempfile.TemporaryDirectory() as store:
        outcome = partial(_outcome, case, Path(store))
        for where, method, before in _with_zeros(case.method, outcome):
            for parameter in (field for field in fields(method) if field.name not in method.hidden_effects):
                accepted: list[Any] = []
                for value in _other_values(case, method, parameter):
                    with suppress(UserError):
                        if outcome(replace(method, **{parameter.name: value})) != before:
                            accepted.clear()
                            break
                        accepted.append(value)
                if accepted:
                    raise BrokenContractError(
                        f"the parameter {parameter.name!r} has no effect{where}",
                        f"with {', '.join(map(repr, accepted))}, weights, knob and exits are the same",
                        "Remove it; refuse it where it has none, with no_effect_if or self.refuse(); put it into the "
                        "stage_key of its stage; or say in hidden_effects why four layers do not show it",
                        FIT_SECTION,
                    )


def _with_zeros(method: AnyMethod, outcome: Callable[[AnyMethod], Any]) -> Iterator[tuple[str, AnyMethod, Any]]:
    """Yield the method as it is, then with one number at a time at 0, if it may be: words for this, method, outcome."""
    if isinstance(method, DraftingMethod):  # tiny models are too unsure for drafts longer than a token
        method = replace(method, threshold=0.0)
    yield "", method, outcome(method)
    for name, value in method.parameters.items():
        zero: dict[str, Any] = {name: 0}
        if value and isinstance(value, int | float):
            with suppress(UserError):
                changed = replace(method, **zero)
                yield f" while {name} is 0", changed, outcome(changed)


def _other_values(case: AnyCase, method: AnyMethod, parameter: "Field[Any]") -> Iterator[Any]:
    """Yield values of a parameter other than its own, valid or not; none for a type that is not known here."""
    value = getattr(method, parameter.name)
    hint = get_type_hints(type(method))[parameter.name]
    types = {hint, *get_args(hint)}
    tried: list[Any] = [choice for part in types if get_origin(part) is Literal for choice in get_args(part)]
    if bool in types:
        tried += [True, False]
    elif types & {int, float}:
        near = [] if value is None else [value + 1, value * 2, value / 2]
        tried += [int(number) if float not in types else number for number in (*near, *_NUMBERS)]
    elif str in types:
        tried.append(str(case.models.backbone(case.family)))
    if parameter.default is not MISSING:
        tried.append(parameter.default)
    yield from (other for other in dict.fromkeys(tried) if other != value)


def _outcome(case: AnyCase, store: Path, method: AnyMethod) -> dict[str, Any]:
    """Return what a parameter may change: weights, description, knob, exits, and texts if the method drafts."""
    recipe: Any = _TOKEN_RECIPE if isinstance(case, TokenCase) else RECIPE
    try:
        case = case.train(method, case.family, case.models, recipe=replace(recipe, store=store, keep_stages=True))
    except BrokenContractError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from error
        raise
    outcome: dict[str, Any] = {"description": asdict(case.model.description), "knob": case.values}
    outcome["exits"] = case.swept(case.values)
    if isinstance(case, TokenCase) and case.method.drafts:
        with any_error_is("generate() fails"):
            written = case.method.generate(case.model, case.texts, case.values[0], max_new_tokens=4 * NEW_TOKENS)
        texts = [(row.layers, row.answers.tolist()) for row in texts_of(written)]
        outcome |= {"texts": texts, "calls": float(written.layer_calls)}
    outcome |= case.model.state_dict()
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in outcome.items()}


CHECKS = (
    Check("never exit = the stock model", never_exit_is_the_stock_model, live=False),
    Check("replay = reality", replay_is_reality),
    Check("a row's result is its own", a_rows_result_is_its_own),
    Check("layers counted = layers run", layers_counted_are_layers_run),
    Check("layers count from 1", layers_count_from_one),
    Check("the knob is ordered", knob_is_ordered, live=False),
    Check("knobs out of range are refused", knobs_out_of_range_are_refused, live=False, every_family=False),
    Check("same seed, same numbers", same_seed_same_numbers, live=False, every_family=False),
    Check("saved and loaded, the same", saved_and_loaded_it_is_the_same),
    Check("every parameter has an effect", every_parameter_has_an_effect, live=False, every_family=False),
    Check("other tasks work or are refused", other_tasks_work_or_are_refused, live=False, every_family=False),
)
TOKEN_CHECKS = (*CHECKS, Check("generate() keeps to the texts", generate_keeps_to_the_texts, every_family=False))
