"""The checks of generation, one function each: what always holds of a method whose tokens exit.

The numbers are those of the project's invariants, told of tokens: never exit = the stock model (1), replay = reality
where keys and values are exact (2), a text's fate is its own (3), layers counted = layers run (4), the knob is ordered
(5), no hole in the cache (6), same seed, same numbers (7). Each returns in silence, or raises BrokenContractError.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.contract.case import described
from benchmarks.contract.checks import Check, knobs_out_of_range_are_refused
from benchmarks.contract.faults import (
    COUNTS_FROM_0,
    FIT_SECTION,
    KNOB_SECTION,
    TOKEN_SECTION,
    BrokenContractError,
    check_order,
)
from benchmarks.contract.tiny_models import make_task
from benchmarks.contract.token_case import (
    NEW_TOKENS,
    PROMPTS,
    TokenCase,
    texts_of,
    tokens_of,
    train_token_case,
)
from benchmarks.contract.token_causes import compare_texts, first_difference, why_exits_differ
from benchmarks.contract.token_reference import counted_calls, eager_tokens
from benchmarks.contract.watching import WatchedRule, modules_of_later_layers
from consistentee.engine.generate import Generations, generate_encoded
from consistentee.engine.speculation import SpeculativeGenerations
from consistentee.errors import UserError
from consistentee.models.decoder import MultiExitDecoder
from consistentee.rules.exit_rule import NeverExit
from consistentee.traces.token_trace import TokenTrace
from consistentee.traces.walk import replay, sweep

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
        trace = case.trace_of(live)
        exits, written = torch.cat(live.exit_layers), torch.cat(live.tokens)
        if not torch.equal(case.replayed(knob, trace), exits):
            raise why_exits_differ(case, knob) or BrokenContractError(
                "the same token gets other exits each time the rule is asked", f"knob {knob:g}", "Does it draw numbers?"
            )
        if not torch.equal(_named_tokens(trace, exits), written):
            raise BrokenContractError(
                "live and replayed tokens differ at the same exit layer",
                f"knob {knob:g}",
                "An exit must say the same of a token live and in a full-depth pass",
            )


@torch.no_grad()
def _named_tokens(trace: TokenTrace, exits: Tensor) -> Tensor:
    """Return the token that each exit names: int64 [N]."""
    named = torch.empty_like(trace.targets)
    for index, layer in enumerate(trace.exit_layers):
        left_here = (exits == layer).nonzero().flatten()
        named[left_here] = trace.model.logits(layer, trace.states(index, left_here)).argmax(dim=-1).cpu()
    return named


def a_texts_fate_is_its_own(case: TokenCase) -> None:
    """3: exits and tokens do not depend on batch neighbours, on padding or on order, whatever fills skipped layers."""
    order = torch.randperm(PROMPTS, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = [case.prompts[place] for place in order]
    for knob in case.knobs:
        for kv in case.policies:
            alone, together = (texts_of(case.live(knob, kv, batch_size=batch_size)) for batch_size in (1, PROMPTS))
            compare_texts(case, knob, alone, together, "beside other prompts")
            moved = texts_of(case.continued(shuffled, knob, kv, batch_size=PROMPTS - 1))
            compare_texts(case, knob, [alone[place] for place in order], moved, "in another order of the prompts")
            padded = texts_of(case.continued([case.prompts[0], _LONG_PROMPT], knob, kv, batch_size=2))
            compare_texts(case, knob, alone[:1], padded[:1], "beside a longer prompt")


def layers_counted_are_layers_run(case: TokenCase) -> None:
    """4: the layers reported of every token, on time and late, are those that hooks on the stock layers count."""
    few = case.prompts[:_FEW]
    on_prompts = sum(len(prompt) for prompt in few) * case.model.num_layers
    for knob in case.knobs:
        with counted_calls(case.model) as calls:
            projected = case.continued(few, knob, "propagate", batch_size=_FEW)
        # Every prompt has more than one token: a call with one token a row is decoding.
        _check_count(sum(rows for rows, tokens in calls if tokens == 1), _layers_on_time(projected), knob)
        with counted_calls(case.model) as calls:
            run = case.continued(few, knob, "exact", batch_size=1)
        late = sum(int(layers.sum()) for layers in run.late_layers)
        _check_count(sum(rows * tokens for rows, tokens in calls), on_prompts + _layers_on_time(run) + late, knob)


def _layers_on_time(written: Generations) -> int:
    return sum(int(layers[1:].sum()) for layers in written.exit_layers)


def _check_count(ran: int, reported: int, knob: float) -> None:
    if ran != reported:
        raise BrokenContractError(
            "layers run that nobody counts",
            f"{reported} are reported and {ran} ran (knob {knob:g})",
            "A rule or a head must not run layers of its own",
        )


def no_hole_in_the_cache(case: TokenCase) -> None:
    """6: texts equal those of a decoder without batches that fills skipped layers at once.

    The engine itself holds at every read that nothing is missing; here it is shown from outside.
    """
    for knob in case.knobs:
        live = texts_of(case.live(knob, "propagate"))[:_FEW]
        eager = [eager_tokens(case.model, prompt, case.rule(knob), NEW_TOKENS) for prompt in case.prompts[:_FEW]]
        if (place := first_difference(live, eager)) is not None:
            raise BrokenContractError(
                "filling skipped layers late and at once gives other texts",
                f"prompt {place + 1}, knob {knob:g}",
                "What the rule decides must depend on the view and its state alone",
            )


def layers_count_from_one(case: TokenCase) -> None:
    """At layer t, counted from 1, a rule uses no exit adapter or head of a later layer."""
    knob = case.knobs[-1]
    watched = WatchedRule(case.rule(knob))
    with modules_of_later_layers(_modules_by_layer(case.model), watched) as later:
        case.continued(case.prompts, knob, case.method.kv, batch_size=PROMPTS, watched=watched)
    if later:
        advice = "Layers count from 1, lists from 0: what belongs to view.layer stands at view.layer - 1"
        raise BrokenContractError(COUNTS_FROM_0, later[0], advice)


def _modules_by_layer(model: MultiExitDecoder) -> Iterator[tuple[str, int, nn.Module]]:
    for layer in model.exit_layers[:-1]:
        yield "exit adapter", layer, model.adapter(layer)
    for name in model.exit_heads:
        modules = model.head(name).modules_by_layer
        if len(modules) == model.num_layers:  # else it is shared, and of no layer
            yield from ((f"head {name!r}", layer, module) for layer, module in enumerate(modules, start=1))


def knob_is_ordered(case: TokenCase) -> None:
    """5: a stricter knob never exits earlier; the ends are the first exit and full depth."""
    layers, values = case.model.num_layers, list(case.method.knob_values(case.model))
    may_exit = case.trace.may_exit
    try:
        exits = sweep([case.rule(value) for value in values], case.trace)[:, may_exit]
    except Exception as error:  # a user's rule may fail in any way at all
        raise BrokenContractError("the rule cannot be replayed on a trace", described(error)) from error
    check_order(exits, values, row="token")
    if not exits[-1].eq(layers).all():
        raise BrokenContractError(
            f"the last value of the knob must give full depth; perhaps {COUNTS_FROM_0}",
            f"with {values[-1]:g}, tokens leave at layer {exits[-1].min()} of {layers}",
            f"Layers count from 1, and the last one is num_layers, here {layers}",
            KNOB_SECTION,
        )
    if len(values) > 1:
        _check_first_exit(case, exits[0], values[0])


def _check_first_exit(case: TokenCase, exits: Tensor, knob: float) -> None:
    """A rule without memory leaves where it first reads anything, or at the first exit; others may have to wait."""
    watched = WatchedRule(case.rule(knob))
    replay(watched, case.trace)
    asked = [layer for layer in case.model.exit_layers[:-1] if watched.reads.get(layer)]
    first = min(asked, default=case.model.exit_layers[0])
    if watched.rule.start(1, case.model.num_layers):
        if exits.min() == case.model.num_layers:
            example = f"with {knob:g}, every token runs to layer {case.model.num_layers}"
            raise BrokenContractError(
                "the first value of the knob lets no token leave early", example, "", KNOB_SECTION
            )
    elif exits.max() > first:
        raise BrokenContractError(
            "the first value of the knob must let every token of a rule without state leave at the first exit; perhaps "
            + COUNTS_FROM_0,
            f"with {knob:g}, a token leaves at layer {exits.max()}, and the first exit is at layer {first}",
            "Layers count from 1, and the first question is asked at model.exit_layers[0]",
            KNOB_SECTION,
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
    try:
        return case.method.generate(case.model, texts, knob, max_new_tokens=NEW_TOKENS)
    except Exception as error:  # a user's method may fail in any way at all
        raise BrokenContractError("generate() fails", described(error), "", TOKEN_SECTION) from error


def same_seed_same_numbers(case: TokenCase) -> None:
    """7: trained again with the same seed, the method has the same weights and writes the same."""
    again = train_token_case(case.method, case.family, case.models)
    weights, repeated = case.model.state_dict(), again.model.state_dict()
    different = [name for name in weights if name not in repeated or not torch.equal(weights[name], repeated[name])]
    if different:
        raise BrokenContractError(
            "the same seed gives other numbers",
            f"{different[0]} differs between two trainings",
            "Seed what you draw with recipe.seed (model.add_head takes it)",
            FIT_SECTION,
        )


def saved_and_loaded_it_writes_the_same(case: TokenCase) -> None:
    """7: a model that is saved and loaded gives the same exits and tokens."""
    with tempfile.TemporaryDirectory() as folder:
        case.model.save_pretrained(Path(folder) / "model")
        try:
            loaded = MultiExitDecoder.from_pretrained(Path(folder) / "model")
        except UserError as error:
            advice = "What a method adds must be known to the model: add_head() and use_adapters() see to that"
            raise BrokenContractError("a saved model cannot be loaded", str(error), advice, FIT_SECTION) from error
    for knob in case.knobs:
        before = case.live(knob, case.method.kv)
        rule = case.method.rule(loaded, knob)
        after = generate_encoded(loaded, case.prompts, rule, kv=case.method.kv, max_new_tokens=NEW_TOKENS)
        if texts_of(before) != texts_of(after):
            raise BrokenContractError(
                "saved and loaded, the model gives other answers",
                f"knob {knob:g}",
                "What a rule uses must be in the weights or the method's parameters, not left elsewhere by fit()",
                FIT_SECTION,
            )


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
    Check("saved and loaded, the same", saved_and_loaded_it_writes_the_same),
    Check("tasks of labels are refused", tasks_of_labels_are_refused, live=False, every_family=False),
)
