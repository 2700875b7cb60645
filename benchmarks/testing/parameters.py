"""The check that finds parameters without effect: another value trains other weights or another rule, or is refused."""

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import MISSING, Field, asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from benchmarks.testing.cases import NEW_TOKENS, RECIPE, TOKEN_RECIPE, AnyCase, TokenCase, texts_of
from benchmarks.testing.report import FIT_SECTION, BrokenContractError, any_error_is
from consistentee.errors import UserError
from consistentee.methods.method import AnyMethod
from consistentee.methods.token_methods import DraftingMethod

# Trained so long that some tokens are predicted right.
_TOKEN_RECIPE = replace(TOKEN_RECIPE, trains="all", backbone_steps=20, backbone_learning_rate=1e-2)
_NUMBERS = (0.0, 0.01, 0.3, 1.0, 1, 2)
"""Tried besides half, twice and one more than the value: some are far from it, so that a tiny model shows an effect."""


def every_parameter_has_an_effect(case: AnyCase) -> None:
    """Another valid value of a parameter changes weights, knob or exits, unless all of them are refused."""
    with tempfile.TemporaryDirectory() as store:
        train = partial(_trained_with, case, Path(store))
        method: AnyMethod = case.method
        if isinstance(method, DraftingMethod):  # tiny models are too unsure for drafts longer than a token
            method = replace(method, threshold=0.0)
        before = _outcome(train(method))
        for parameter in (field for field in fields(method) if field.name not in method.hidden_effects):
            accepted = []
            for value in _other_values(case, method, parameter):
                with suppress(UserError):
                    changed = train(replace(method, **{parameter.name: value}))
                    accepted.append(value)
                    if not _is_same(before, _outcome(changed)):
                        accepted.clear()
                        break
            if accepted:
                raise BrokenContractError(
                    f"the parameter {parameter.name!r} has no effect",
                    f"with {', '.join(map(repr, accepted))}, weights, knob and exits are the same",
                    "Remove it; refuse it where it has none, with self.refuse(); put it into the stage_key of its "
                    "stage; or say in hidden_effects why four layers do not show it",
                    FIT_SECTION,
                )


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


def _trained_with(case: AnyCase, store: Path, method: AnyMethod) -> AnyCase:
    """Train a method as that of a case, with stages from a store, so that a value missing in a stage's key shows.

    Raises UserError if the method refuses its parameters for this task.
    """
    recipe: Any = _TOKEN_RECIPE if isinstance(case, TokenCase) else RECIPE
    try:
        return case.train(method, case.family, case.models, recipe=replace(recipe, store=store, keep_stages=True))
    except BrokenContractError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from error
        raise


def _outcome(case: AnyCase) -> dict[str, Any]:
    """Return what a parameter may change: weights, description, knob, exits, and texts if the method drafts."""
    outcome: dict[str, Any] = {
        "description": asdict(case.model.description),
        "knob": case.values,
        "exits": case.swept(case.values),
    }
    if isinstance(case, TokenCase) and case.method.drafts:
        with any_error_is("generate() fails"):
            written = case.method.generate(case.model, case.texts, case.values[0], max_new_tokens=4 * NEW_TOKENS)
        outcome |= {"layers": texts_of(written), "calls": float(written.layer_calls)}
    return outcome | dict(case.model.state_dict())


def _is_same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(_equal(first[name], second[name]) for name in first)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
