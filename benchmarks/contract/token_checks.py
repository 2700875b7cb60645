"""The checks of methods of generation, one function each; those that are told of any row lie in base_checks.

The numbers are those of the project's invariants, told of tokens: never exit = the stock model (1), replay = reality
where keys and values are exact (2), a text's fate is its own (3), layers counted = layers run (4), no hole in the
cache (6).
"""

from collections.abc import Sequence

import torch

from benchmarks.contract.base_checks import (
    Check,
    check_count,
    knob_is_ordered,
    knobs_out_of_range_are_refused,
    layers_count_from_one,
    same_seed_same_numbers,
    saved_and_loaded_it_says_the_same,
)
from benchmarks.contract.causes import draws_numbers, first_difference, layer_at, why_exits_differ
from benchmarks.contract.faults import (
    FIT_SECTION,
    TOKEN_SECTION,
    BrokenContractError,
    any_error_is,
    looks_at_neighbours,
)
from benchmarks.contract.tiny.encoders import make_task
from benchmarks.contract.token_case import NEW_TOKENS, PROMPTS, Text, TokenCase, texts_of, tokens_of
from benchmarks.contract.token_reference import counted_calls, eager_tokens
from consistentee.engine.generate import Generations, generate_encoded
from consistentee.engine.speculation import SpeculativeGenerations
from consistentee.errors import UserError
from consistentee.methods.vocabulary_method import VocabularyMethod
from consistentee.rules.exit_rule import NeverExit
from consistentee.traces.named_tokens import named_tokens

_LONG_PROMPT = [5] * 40
_FEW = 4
"""Prompts, where each is continued alone: enough to tell, and half the time."""


def never_exit_is_the_stock_model(case: TokenCase) -> None:
    """1: the frozen backbone is as it was, and with a rule that never exits, greedy tokens are the stock model's."""
    if case.model.backbone_fingerprint() != case.models.model(case.family).backbone_fingerprint():
        raise BrokenContractError(
            "fit() changes the backbone, which the recipe wants frozen",
            "recipe.trains is 'exits'",
            "train_exits() sees to that; what you train yourself must begin with exit_adapters. or exit_heads.",
            FIT_SECTION,
        )
    for batch_size in (1, PROMPTS):
        ours = generate_encoded(case.model, case.prompts, NeverExit(), max_new_tokens=NEW_TOKENS, batch_size=batch_size)
        if (place := first_difference(case.stock, tokens_of(ours))) is not None:
            raise BrokenContractError(
                "after fit(), the model that never exits is not the stock model",
                f"prompt {place + 1} goes on with other tokens at batch size {batch_size}",
                "Nothing may come between the layers, or before the LM head at the last one",
                FIT_SECTION,
            )


def replay_is_reality(case: TokenCase) -> None:
    """2: where keys and values are exact, a trace of the text that was written gives its very exits and tokens."""
    for knob in case.knobs:
        live = case.live(knob, "exact")
        trace = case.trace_of(live, knob)
        exits, written = torch.cat(live.exit_layers), torch.cat(live.tokens)
        if not torch.equal(case.replayed(knob, trace), exits):
            raise why_exits_differ(case, knob) or draws_numbers(case.row, knob)
        candidates = case.method.candidates if isinstance(case.method, VocabularyMethod) else None
        left_at = torch.searchsorted(torch.tensor(trace.exit_layers), exits)
        if not torch.equal(named_tokens(trace, candidates).gather(1, left_at.unsqueeze(1)).squeeze(1), written):
            raise BrokenContractError(
                "live and replayed tokens differ at the same exit layer",
                f"knob {knob:g}",
                "An exit must say the same of a token live and in a full-depth pass",
            )


def a_texts_fate_is_its_own(case: TokenCase) -> None:
    """3: exits and tokens do not depend on batch neighbours, on padding or on order, whatever fills skipped layers.

    Nor do they where rows of other steps are neighbours, as when the engine regroups.
    """
    order = torch.randperm(PROMPTS, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = [case.prompts[place] for place in order]
    for knob in case.knobs[:-1]:  # at the last one every token runs through all layers
        for kv in case.policies:
            alone, together = (texts_of(case.live(knob, kv, batch_size=batch_size)) for batch_size in (1, PROMPTS))
            _compare(case, knob, alone, together, "beside other prompts")
            moved = texts_of(case.continued(shuffled, knob, kv, batch_size=PROMPTS - 1))
            _compare(case, knob, [alone[place] for place in order], moved, "in another order of the prompts")
            padded = texts_of(case.continued([case.prompts[0], _LONG_PROMPT], knob, kv, batch_size=2))
            _compare(case, knob, alone[:1], padded[:1], "beside a longer prompt")
            regrouped = texts_of(case.continued(case.prompts, knob, kv, batch_size=2, in_flight=PROMPTS - 3))
            _compare(case, knob, alone, regrouped, "where rows are regrouped")


def _compare(case: TokenCase, knob: float, alone: Sequence[Text], other: Sequence[Text], company: str) -> None:
    """Raise BrokenContractError where texts, or the layers of their tokens, are not those of each prompt alone."""
    for row, ((tokens, layers), (other_tokens, other_layers)) in enumerate(zip(alone, other, strict=True), start=1):
        if (at := first_difference(layers, other_layers)) is not None:
            exits = layer_at(layers, at), layer_at(other_layers, at)
            neighbours = looks_at_neighbours(f"token {at + 1} of prompt {row}", *exits, knob, company)
            raise why_exits_differ(case, knob) or neighbours
        if tokens != other_tokens:
            example = f"prompt {row} goes on with other tokens {company} (knob {knob:g})"
            raise BrokenContractError("a text depends on its neighbours at the same exit layers", example)


def layers_counted_are_layers_run(case: TokenCase) -> None:
    """4: the layers reported of every token, on time and late, are those that hooks on the stock layers count."""
    few = case.prompts[:_FEW]
    for knob in case.knobs:
        model = case.model_at(knob)
        with counted_calls(model) as calls:
            projected = case.continued(few, knob, "propagate", batch_size=_FEW)
        # Every prompt has more than one token: a call with one token a row is decoding.
        check_count(sum(rows for rows, tokens in calls if tokens == 1), _layers_on_time(projected), knob)
        with counted_calls(model) as calls:
            run = case.continued(few, knob, "exact", batch_size=1)
        on_prompts = sum(len(prompt) for prompt in few) * model.num_layers
        late = sum(int(layers.sum()) for layers in run.late_layers)
        check_count(sum(rows * tokens for rows, tokens in calls), on_prompts + _layers_on_time(run) + late, knob)


def _layers_on_time(written: Generations) -> int:
    return sum(int(layers[1:].sum()) for layers in written.exit_layers)


def no_hole_in_the_cache(case: TokenCase) -> None:
    """6: texts equal those of a decoder without batches that fills skipped layers at once.

    The engine itself holds at every read that nothing is missing; here it is shown from outside.
    """
    for knob in case.knobs:
        live = texts_of(case.live(knob, "propagate"))[:_FEW]
        model, rule = case.model_at(knob), case.rule(knob)
        eager = [eager_tokens(model, prompt, rule, NEW_TOKENS) for prompt in case.prompts[:_FEW]]
        if (place := first_difference(live, eager)) is not None:
            raise BrokenContractError(
                "filling skipped layers late and at once gives other texts",
                f"prompt {place + 1}, knob {knob:g}",
                "What the rule decides must depend on the view and its state alone",
            )


def generate_keeps_to_the_texts(case: TokenCase) -> None:
    """A method that decodes in a way of its own answers every prompt, alone as in company; at the end, as the stock."""
    for knob in case.knobs:
        written = _generated(case, case.texts, knob)
        alone = [tokens_of(_generated(case, [text], knob))[0] for text in case.texts[:_FEW]]
        if (place := first_difference(tokens_of(written)[:_FEW], alone)) is not None:
            example = f"prompt {place + 1} goes on with other tokens alone than beside others (knob {knob:g})"
            raise BrokenContractError("generate() lets a text depend on its neighbours", example, "", TOKEN_SECTION)
        if any(len(tokens) != len(layers) for tokens, layers in texts_of(written)):
            raise BrokenContractError("generate() must give every new token an exit layer", section=TOKEN_SECTION)
        if isinstance(written, SpeculativeGenerations) and not case.method.drafts:
            raise BrokenContractError(
                "generate() drafts and verifies, and the method does not say so",
                f"a replay would not know the layers that it calls (knob {knob:g})",
                "Say drafts: ClassVar[bool] = True in the class",
                TOKEN_SECTION,
            )
    if (place := first_difference(case.stock, tokens_of(written))) is not None:
        raise BrokenContractError(
            "at the last value of the knob, generate() must write the stock model's text",
            f"prompt {place + 1} goes on with other tokens (knob {case.knobs[-1]:g})",
            section=TOKEN_SECTION,
        )


def _generated(case: TokenCase, texts: Sequence[str], knob: float) -> Generations:
    with any_error_is("generate() fails", TOKEN_SECTION):
        return case.method.generate(case.model, texts, knob, max_new_tokens=NEW_TOKENS)


def tasks_of_labels_are_refused(case: TokenCase) -> None:
    """A task that asks for labels is refused by name, before any training."""
    try:
        case.method.check_task(make_task())  # type: ignore[arg-type]
    except UserError:
        return
    raise BrokenContractError(
        "check_task() takes a task that asks for labels", "", "Do not override check_task()", FIT_SECTION
    )


TOKEN_CHECKS = (
    Check("never exit = the stock model", never_exit_is_the_stock_model, live=False),
    Check("replay = reality", replay_is_reality),
    Check("a text's fate is its own", a_texts_fate_is_its_own),
    Check("layers counted = layers run", layers_counted_are_layers_run),
    Check("no hole in the cache", no_hole_in_the_cache),
    Check("layers count from 1", layers_count_from_one),
    Check("the knob is ordered", knob_is_ordered, live=False),
    Check("knobs out of range are refused", knobs_out_of_range_are_refused, live=False, every_family=False),
    Check("generate() keeps to the texts", generate_keeps_to_the_texts, every_family=False),
    Check("same seed, same numbers", same_seed_same_numbers, live=False, every_family=False),
    Check("saved and loaded, the same", saved_and_loaded_it_says_the_same),
    Check("tasks of labels are refused", tasks_of_labels_are_refused, live=False, every_family=False),
)
