"""Cards of the methods of generation, found out on a tiny decoder as those of classification are on a tiny encoder."""

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.commands.method_cards import UNKNOWN, MethodCard, span_of_layers, stated_card
from benchmarks.contract.case import described
from benchmarks.contract.faults import BrokenContractError
from benchmarks.contract.tiny_decoders import TinyDecoders
from benchmarks.contract.token_case import TokenCase, train_token_case
from benchmarks.contract.watching import WatchedRule
from consistentee.methods.token_method import TokenMethod
from consistentee.models.decoder import MultiExitDecoder
from consistentee.models.heads import ExitHeads
from consistentee.traces.walk import replay

_FAMILY = "llama"
_PARTS = {"backbone": "backbone", "exit_adapters": "exit adapters"}
_READS = {"logits": "the LM head", "row_keys": "a hash of the prompt and the place"}
_SMOLLM2_135M = {"width": 576, "num_layers": 30}


def token_card(name: str, method: TokenMethod, models: TinyDecoders) -> MethodCard:
    """Train a method on a tiny decoder and describe it; what fails there is said on the card, and breaks nothing."""
    card = stated_card(name, method)
    try:
        before = models.model(_FAMILY).clone_weights()
        case = train_token_case(method, _FAMILY, models)
        values, model = list(method.knob_values(case.model)), case.model
        return replace(
            card,
            trains=_changed_parts(before, model),
            extra_parameters=_extra_on_smollm2(model),
            counted_on="SmolLM2-135M, beside one adapter an exit",
            reads=_what_it_reads(case),
            knob=f"{method.knob.name}, {values[0]:g} to {values[-1]:g} ({len(values)} values, L = {model.num_layers})",
            supports=_decoding(method),
        )
    except BrokenContractError as error:
        return replace(card, trains=f"{UNKNOWN}: {error}")
    except Exception as error:  # a user's method may fail in any way at all
        return replace(card, trains=f"{UNKNOWN}: {described(error)}")


def _changed_parts(before: dict[str, Tensor], model: MultiExitDecoder) -> str:
    changed = [
        name
        for name, tensor in model.state_dict().items()
        if name not in before or not torch.equal(before[name], tensor.cpu())
    ]
    parts = [f"head {name.split('.')[1]}" if name.startswith("exit_heads.") else name.split(".")[0] for name in changed]
    return ", ".join(_PARTS.get(part, part) for part in dict.fromkeys(parts)) or "nothing"


def _extra_on_smollm2(model: MultiExitDecoder) -> int:
    with torch.device("meta"):
        heads = [ExitHeads(spec, **_SMOLLM2_135M) for spec in model.description.heads.values()]
    return sum(parameter.numel() for head in heads for parameter in head.parameters())


def _what_it_reads(case: TokenCase) -> str:
    """Ask the rule at every value of the knob: at some, it may decide without looking."""
    reads: dict[int, set[str]] = {}
    for knob in case.method.knob_values(case.model):
        watched = WatchedRule(case.rule(knob))
        replay(watched, case.trace)
        for layer, names in watched.reads.items():
            reads.setdefault(layer, set()).update(names)
    by_words: dict[str, list[int]] = {}
    for layer, names in sorted(reads.items()):
        by_words.setdefault(_in_words(names), []).append(layer)
    if len(by_words) == 1:
        return next(iter(by_words))
    return "; ".join(f"{words} at layer{span_of_layers(layers)}" for words, layers in by_words.items())


def _in_words(reads: set[str]) -> str:
    words = [text for name, text in _READS.items() if name in reads]
    words += sorted(name for name in reads if name.startswith("head "))
    if not words and "pooled" in reads:  # whoever reads the LM head or a head has paid for the state already
        words = ["the hidden state"]
    return ", ".join(words) or "nothing"


def _decoding(method: TokenMethod) -> str:
    if type(method).generate is not TokenMethod.generate:
        return "generation, in a way of its own"
    filled = {"propagate": "are propagated", "exact": "are made exactly, later"}[method.kv]
    return f"generation; keys and values of skipped layers {filled}"
