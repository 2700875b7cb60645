"""The checks of methods of classification, one function each; those that are told of any row lie in base_checks.

The numbers are those of the project's invariants: never exit = the stock model (1), replay = reality (2), a row's fate
is its own (3), layers counted = layers run (4).
"""

import itertools
from collections.abc import Sequence

import torch

from benchmarks.contract.base_case import fitted
from benchmarks.contract.base_checks import (
    Check,
    check_count,
    knob_is_ordered,
    knobs_out_of_range_are_refused,
    layers_count_from_one,
    same_seed_same_numbers,
    saved_and_loaded_it_says_the_same,
)
from benchmarks.contract.case import RECIPE, ROWS, Case
from benchmarks.contract.causes import draws_numbers, first_difference, why_exits_differ
from benchmarks.contract.faults import FIT_SECTION, BrokenContractError, looks_at_neighbours
from benchmarks.contract.reference import counted_work, reference_logits, reported_work
from benchmarks.contract.tiny.encoders import make_task
from consistentee.backbones.token_exits import TokenExitStepper
from consistentee.engine.classify import Predictions, classify, classify_encoded
from consistentee.errors import UserError
from consistentee.rules.exit_rule import NeverExit
from consistentee.traces.instance_trace import record_trace
from consistentee.traces.walk import replay

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
                raise why_exits_differ(case, knob) or draws_numbers(case.row, knob)
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


def a_rows_fate_is_its_own(case: Case) -> None:
    """3: exit layer and answer do not depend on batch neighbours, on padding or on order."""
    shuffled = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0)).tolist()
    for knob in case.knobs:
        alone = case.alone(knob)
        _compare(case, knob, range(ROWS), case.live(knob, batch_size=ROWS), "beside other rows")
        moved = case.live(knob, [case.texts[i] for i in shuffled], batch_size=7, sort_by_length=False)
        _compare(case, knob, shuffled, moved, "in another order of the rows")
        padded = case.live(knob, [case.texts[3], _LONG_TEXT], batch_size=2)
        _compare(case, knob, [3], padded, "beside a longer row")
        if not torch.allclose(padded.logits[0], alone.logits[3], rtol=_CLOSE, atol=_CLOSE):
            raise BrokenContractError(
                "a row's answer depends on padding", f"row 4 gets other logits beside a longer row (knob {knob:g})"
            )


def _compare(case: Case, knob: float, rows: Sequence[int], other: Predictions, company: str) -> None:
    """Raise BrokenContractError where rows, the first of ``other``, leave elsewhere than alone."""
    alone, together = case.alone(knob).exit_layers[list(rows)].tolist(), other.exit_layers[: len(rows)].tolist()
    if (place := first_difference(alone, together)) is not None:
        neighbours = looks_at_neighbours(f"row {rows[place] + 1}", alone[place], together[place], knob, company)
        raise why_exits_differ(case, knob) or neighbours


def layers_counted_are_layers_run(case: Case) -> None:
    """4: the layers reported are the layers that hooks on the stock modules count."""
    batch_size = 1 if isinstance(case.model.stepper, TokenExitStepper) else 7
    for knob in case.knobs:
        with counted_work(case.model) as counts:
            live = case.live(knob, batch_size=batch_size)
        check_count(sum(counts), reported_work(case.model, case.trace, live), knob)


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
    model = fitted(method, case.models.model(case.family, num_labels=1), task, RECIPE)
    trace = record_trace(model, task.test)
    for knob in (method.knob_values(model)[0], method.knob_values(model)[-1]):
        exits = replay(method.rule(model, knob), trace)
        live = classify(model, task.test.texts, method.rule(model, knob))
        same = torch.equal(live.exit_layers, exits)
        if not (same and torch.allclose(live.predictions, trace.predictions(exits), rtol=_CLOSE, atol=_CLOSE)):
            what = "answers" if same else "exits"
            raise BrokenContractError(f"on a regression, live {what} are not the replayed ones", f"knob {knob:g}")


CHECKS = (
    Check("never exit = the stock model", never_exit_is_the_stock_model, live=False),
    Check("replay = reality", replay_is_reality),
    Check("a row's fate is its own", a_rows_fate_is_its_own),
    Check("layers counted = layers run", layers_counted_are_layers_run),
    Check("layers count from 1", layers_count_from_one),
    Check("the knob is ordered", knob_is_ordered, live=False),
    Check("knobs out of range are refused", knobs_out_of_range_are_refused, live=False, every_family=False),
    Check("same seed, same numbers", same_seed_same_numbers, live=False, every_family=False),
    Check("saved and loaded, the same", saved_and_loaded_it_says_the_same),
    Check("regression works or is refused", regression_works_or_is_refused, live=False, every_family=False),
)
