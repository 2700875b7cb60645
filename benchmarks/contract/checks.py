"""The checks, one function each: what always holds of a method. Each returns in silence, or raises BrokenContractError.

The numbers are those of the project's invariants: never exit = the stock model (1), replay = reality (2), a row's fate
is its own (3), layers counted = layers run (4), the knob is ordered (5), same seed, same numbers (7). The messages are
for the author of the method: they name the fault, and not the assertion.
"""

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contract.case import ROWS, Case, described, fitted, rows_of, train_case
from benchmarks.contract.faults import (
    COUNTS_FROM_0,
    FIT_SECTION,
    KNOB_SECTION,
    BrokenContractError,
    carries_over,
    check_order,
    looks_at_neighbours,
    state_breaks,
)
from benchmarks.contract.reference import counted_work, reference_logits, reported_work
from benchmarks.contract.tiny_models import make_task
from benchmarks.contract.watching import WatchedRule, attributes_of, modules_by_layer, modules_of_later_layers
from consistentee.backbones.token_exits import TokenExitStepper
from consistentee.engine.classify import classify, classify_encoded
from consistentee.errors import UserError
from consistentee.models.cascade import companion_layers
from consistentee.models.encoder import MultiExitModel
from consistentee.rules.exit_rule import NeverExit
from consistentee.traces.instance_trace import record_trace
from consistentee.traces.walk import replay, sweep

_CLOSE = 1e-4
_LONG_TEXT = "w1 " * 60


def never_exit_is_the_stock_model(case: Case) -> None:
    """1: with a rule that never exits, logits equal the stock model's."""
    encodings = case.model.tokenize(case.texts)
    for batch_size in (1, 8):
        stock = reference_logits(case.model, encodings, batch_size)
        ours = classify_encoded(case.model, encodings, NeverExit(), batch_size=batch_size)
        if not torch.allclose(ours.logits, stock, rtol=1e-5, atol=1e-5):
            worst = float((ours.logits - stock).abs().max())
            raise BrokenContractError(
                "after fit(), the model that never exits is not the stock model",
                f"logits differ by up to {worst:.2g} at batch size {batch_size}",
                "Nothing may come between the layers, or before the last classifier",
                FIT_SECTION,
            )


def replay_is_reality(case: Case) -> None:
    """2: exits, answers and logits of a replay are those of live runs, at any batch size, sorted or not."""
    for knob in case.knobs:
        exits = case.replayed(knob)
        ways = itertools.product((7, 32), (False, True))
        runs = [case.live(knob, batch_size=size, sort_by_length=by_length) for size, by_length in ways]
        for live in (case.alone(knob), *runs):
            if not torch.equal(live.exit_layers, exits):
                raise why_exits_differ(case, knob)
            if not torch.equal(live.predictions, case.trace.predictions(exits)):
                raise BrokenContractError("live and replayed answers differ at the same exit layer", f"knob {knob:g}")
            if not torch.equal(live.layers_run, case.trace.layers_run(exits)):
                raise BrokenContractError("live and replayed layers differ at the same exit layer", f"knob {knob:g}")
            if not torch.allclose(live.logits, case.trace.logits_at(exits), rtol=_CLOSE, atol=_CLOSE):
                raise BrokenContractError(
                    "live and replayed logits differ at the same exit layer",
                    f"knob {knob:g}",
                    "A classifier must give a row the same live and in a full-depth pass",
                )


def why_exits_differ(case: Case, knob: float) -> BrokenContractError:
    """Find by experiment why a row's exit layer depends on how it is asked for.

    In a replay no row leaves its batch, and one row alone has no neighbours: comparing the four combinations tells
    the causes apart.
    """
    together = case.replayed(knob)
    alone = torch.cat([case.replayed(knob, rows_of(case.trace, [row])) for row in range(ROWS)])
    if (row := _first_difference(alone, together)) is not None:
        return looks_at_neighbours(f"row {row + 1}", alone[row], together[row], knob, "beside other rows")
    if (memory := _memory_between_batches(case, knob)) is not None:
        return memory
    live_alone, live_together = case.alone(knob).exit_layers, case.live(knob, batch_size=ROWS).exit_layers
    if (row := _first_difference(live_alone, live_together)) is not None:
        return state_breaks(
            f"row {row + 1} exits at layer {live_alone[row]} alone but at layer {live_together[row]} once other rows "
            f"have left (knob {knob:g})"
        )
    if (row := _first_difference(live_alone, alone)) is not None:
        return BrokenContractError(
            "the rule reads something that a trace does not hold as it is live",
            f"row {row + 1} exits at layer {alone[row]} in a replay but at {live_alone[row]} live (knob {knob:g})",
        )
    return BrokenContractError(
        "the same row gets other exits each time the rule is asked", f"knob {knob:g}", "Does it draw numbers?"
    )


def _memory_between_batches(case: Case, knob: float) -> BrokenContractError | None:
    rule = case.rule(knob)
    before, first = attributes_of(rule), replay(rule, case.trace)
    after, again = attributes_of(rule), replay(rule, case.trace)
    if torch.equal(first, again):
        return None
    return carries_over(knob, before, after)


def _first_difference(first: Tensor, second: Tensor) -> int | None:
    """Return the first row where two tensors of exit layers [N] differ, or None."""
    rows = (first != second).nonzero().flatten().tolist()
    return rows[0] if rows else None


def a_rows_fate_is_its_own(case: Case) -> None:
    """3: exit layer and answer do not depend on batch neighbours, on padding or on order."""
    for knob in case.knobs:
        alone, together = case.alone(knob), case.live(knob, batch_size=ROWS)
        if (row := _first_difference(alone.exit_layers, together.exit_layers)) is not None:
            exits = int(alone.exit_layers[row]), int(together.exit_layers[row])
            if _agrees_while_nobody_leaves(case, knob, row):
                raise why_exits_differ(case, knob)
            raise looks_at_neighbours(f"row {row + 1}", *exits, knob, "beside other rows")
        shuffled = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0)).tolist()
        moved = case.live(knob, [case.texts[i] for i in shuffled], batch_size=7, sort_by_length=False)
        if (place := _first_difference(moved.exit_layers, alone.exit_layers[shuffled])) is not None:
            exits = int(alone.exit_layers[shuffled[place]]), int(moved.exit_layers[place])
            raise looks_at_neighbours(f"row {shuffled[place] + 1}", *exits, knob, "in another order of the rows")
        padded = case.live(knob, [case.texts[3], _LONG_TEXT], batch_size=2)
        if padded.exit_layers[0] != alone.exit_layers[3]:
            exits = int(alone.exit_layers[3]), int(padded.exit_layers[0])
            raise looks_at_neighbours("row 4", *exits, knob, "beside a longer row")
        if not torch.allclose(padded.logits[0], alone.logits[3], rtol=_CLOSE, atol=_CLOSE):
            raise BrokenContractError(
                "a row's answer depends on padding", f"row 4 gets other logits beside a longer row (knob {knob:g})"
            )


def _agrees_while_nobody_leaves(case: Case, knob: float, row: int) -> bool:
    try:
        return int(case.replayed(knob)[row]) == int(case.replayed(knob, rows_of(case.trace, [row]))[0])
    except BrokenContractError:  # it cannot be replayed, which another check says
        return False


def layers_counted_are_layers_run(case: Case) -> None:
    """4: the layers reported are the layers that hooks on the stock modules count."""
    batch_size = 1 if isinstance(case.model.stepper, TokenExitStepper) else 7
    for knob in case.knobs:
        with counted_work(case.model) as counts:
            live = case.live(knob, batch_size=batch_size)
        reported = reported_work(case.model, case.trace, live)
        if sum(counts) != reported:
            raise BrokenContractError(
                "layers run that nobody counts",
                f"{reported} are reported and {sum(counts)} ran (knob {knob:g})",
                "A rule or a head must not run layers of its own",
            )


def layers_count_from_one(case: Case) -> None:
    """At layer t, counted from 1, a rule uses no classifier, pooler or head of a later layer."""
    knob = case.knobs[-1]
    watched = WatchedRule(case.rule(knob))
    with modules_of_later_layers(modules_by_layer(case.model), watched) as later:
        case.live(knob, watched=watched)
    if later:
        advice = "Layers count from 1, lists from 0: what belongs to view.layer stands at view.layer - 1"
        raise BrokenContractError(COUNTS_FROM_0, later[0], advice)


def knob_is_ordered(case: Case) -> None:
    """5: exits lie in 1..L; a stricter knob never exits earlier; the ends are the first exit and full depth."""
    layers, values = case.model.num_layers, list(case.method.knob_values(case.model))
    try:
        exits = sweep([case.rule(value) for value in values], case.trace)
    except Exception as error:  # a user's rule may fail in any way at all
        raise BrokenContractError("the rule cannot be replayed on a trace", described(error)) from error
    check_order(exits, values)
    if not (exits[-1].eq(layers).all() or case.method.replay_only):
        raise BrokenContractError(
            f"the last value of the knob must give full depth; perhaps {COUNTS_FROM_0}",
            f"with {values[-1]:g}, rows leave at layer {exits[-1].min()} of {layers}",
            f"Layers count from 1, and the last one is num_layers, here {layers}",
            KNOB_SECTION,
        )
    if len(values) > 1 and not case.method.replay_only:
        _check_first_exit(case, exits[0], values[0])


def _check_first_exit(case: Case, exits: Tensor, knob: float) -> None:
    """A rule without memory has nothing to wait for; one with memory may need some layers before it can leave."""
    if _remembers(case, knob):
        if exits.min() == case.model.num_layers:
            example = f"with {knob:g}, every row runs to layer {case.model.num_layers}"
            raise BrokenContractError("the first value of the knob lets no row leave early", example, "", KNOB_SECTION)
    elif exits.max() > max(1, companion_layers(case.model)):  # a cascade's first exit is its companion's last layer
        raise BrokenContractError(
            "the first value of the knob must let every row of a rule without state leave at layer 1; perhaps "
            + COUNTS_FROM_0,
            f"with {knob:g}, row {int(exits.argmax()) + 1} leaves at layer {exits.max()}",
            "Layers count from 1, and the first question is asked at view.layer == 1",
            KNOB_SECTION,
        )


def _remembers(case: Case, knob: float) -> bool:
    rule = case.rule(knob)
    before = attributes_of(rule)
    replay(rule, case.trace)
    return bool(rule.start(ROWS, case.model.num_layers)) or attributes_of(rule) != before


def knobs_out_of_range_are_refused(case: Any) -> None:
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


def same_seed_same_numbers(case: Case) -> None:
    """7: trained again with the same seed, the method has the same weights and says the same."""
    again = train_case(case.method, case.family, case.models)
    weights, repeated = case.model.state_dict(), again.model.state_dict()
    different = [name for name in weights if name not in repeated or not torch.equal(weights[name], repeated[name])]
    if different or not torch.equal(case.trace.logits, again.trace.logits):
        raise BrokenContractError(
            "the same seed gives other numbers",
            f"{different[0] if different else 'the logits'} differs between two trainings",
            "Seed what you draw with recipe.seed (model.add_head takes it)",
            FIT_SECTION,
        )


def saved_and_loaded_it_predicts_the_same(case: Case) -> None:
    """7: a model that is saved and loaded gives the same exits and logits."""
    with tempfile.TemporaryDirectory() as folder:
        case.model.save_pretrained(Path(folder) / "model")
        try:
            loaded = MultiExitModel.from_pretrained(Path(folder) / "model")
        except UserError as error:
            advice = "What a method adds must be known to the model: add_head() and use_pooler() see to that"
            raise BrokenContractError("a saved model cannot be loaded", str(error), advice, FIT_SECTION) from error
    for knob in case.knobs:
        before = case.live(knob)
        after = classify(loaded, case.texts, case.method.rule(loaded, knob))
        if not (torch.equal(before.exit_layers, after.exit_layers) and torch.equal(before.logits, after.logits)):
            raise BrokenContractError(
                "saved and loaded, the model gives other answers",
                f"knob {knob:g}",
                "What a rule uses must be in the weights or the method's parameters, not left elsewhere by fit()",
                FIT_SECTION,
            )


def regression_works_or_is_refused(case: Case) -> None:
    """A method is refused for a regression by name, before any training; or it works there, live as replayed."""
    method, task = case.method, make_task(regression=True)
    if not method.supports_regression:
        try:
            method.check_task(task)
        except UserError:
            return
        advice = "Set supports_regression, or do not override check_task()"
        raise BrokenContractError("check_task() takes a regression that is not supported", "", advice, FIT_SECTION)
    model = fitted(method, case.models.model(case.family, num_labels=1), task)
    trace = record_trace(model, task.test)
    for knob in (method.knob_values(model)[0], method.knob_values(model)[-1]):
        exits = replay(method.rule(model, knob), trace)
        live = classify(model, task.test.texts, method.rule(model, knob))
        same = torch.equal(live.exit_layers, exits)
        if not (same and torch.allclose(live.predictions, trace.predictions(exits), rtol=_CLOSE, atol=_CLOSE)):
            what = "answers" if same else "exits"
            raise BrokenContractError(f"on a regression, live {what} are not the replayed ones", f"knob {knob:g}")


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        title: what must hold.
        run: the check.
        live: it classifies new texts with the rule, which a rule that reads labels cannot.
        every_family: whether the family of the backbone can matter.
    """

    title: str
    run: Callable[[Any], None]
    live: bool = True
    every_family: bool = True


CHECKS = (
    Check("never exit = the stock model", never_exit_is_the_stock_model, live=False),
    Check("replay = reality", replay_is_reality),
    Check("a row's fate is its own", a_rows_fate_is_its_own),
    Check("layers counted = layers run", layers_counted_are_layers_run),
    Check("layers count from 1", layers_count_from_one),
    Check("the knob is ordered", knob_is_ordered, live=False),
    Check("knobs out of range are refused", knobs_out_of_range_are_refused, live=False, every_family=False),
    Check("same seed, same numbers", same_seed_same_numbers, live=False, every_family=False),
    Check("saved and loaded, the same", saved_and_loaded_it_predicts_the_same),
    Check("regression works or is refused", regression_works_or_is_refused, live=False, every_family=False),
)
