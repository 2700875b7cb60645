"""Method cards: what each method of either kind is and costs, found out on a tiny model and not written down by hand.

What fit() changes, adds and reads is observed: weights before and after, parameters against the plain multi-exit model,
and what the rule asks of the view at every layer. Paper and one line of description are the class's own words.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, LlamaConfig

from benchmarks.commands.inventory import listed_methods, listed_token_methods
from benchmarks.contract.base_case import fitted
from benchmarks.contract.case import RECIPE
from benchmarks.contract.faults import BrokenContractError, described
from benchmarks.contract.tiny.decoders import TinyDecoders
from benchmarks.contract.tiny.encoders import TinyModels, make_task, random_texts
from benchmarks.contract.token_case import TokenCase, train_token_case
from benchmarks.contract.watching import WatchedRule
from benchmarks.terminal import add_columns, add_row, plain_table
from consistentee.backbones.decoders import decoder_stepper_for
from consistentee.backbones.encoders import stepper_for
from consistentee.engine.classify import classify
from consistentee.methods.method import AnyMethod, Method, get_method
from consistentee.methods.token_method import TokenMethod
from consistentee.models.classifiers import ClassifierSpec
from consistentee.models.decoder.branches import Branch, BranchSpec
from consistentee.models.decoder.description import default_exit_layers
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.encoder.description import ModelDescription
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.models.heads import ExitHeads
from consistentee.traces.instance_trace import record_trace
from consistentee.traces.walk import replay

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_ENCODER, _DECODER = "bert", "llama"
_SMOLLM2_135M = {"width": 576, "num_layers": 30}
_YEAR = re.compile(r"\b(?:19|20)\d\d\b")
_READS = {
    "logits": "the classifier",
    "hidden": "the hidden states of all tokens",
    "row_keys": "a hash of the tokens",
    "labels": "the true labels",
    "pooled": "the pooled vector",
}
_TOKEN_READS = {
    "logits": "the LM head",
    "row_keys": "a hash of the prompt and the place",
    "pooled": "the hidden state",
}
UNKNOWN = "could not be found out"


@dataclass(frozen=True)
class MethodCard:
    """What a user wants to know of a method before running it.

    Attributes:
        name: as users type it.
        what: first line of the class's docstring.
        paper, year: its source.
        trains: the parts whose weights fit() changes or adds.
        extra_parameters: beyond what every method has; None if unknown.
        counted_on: of which model, and what every method has there.
        reads: what the rule asks for at each layer, so what it costs.
        knob: its name and range.
        supports: kinds of tasks.
    """

    name: str
    what: str
    paper: str
    year: str
    trains: str
    extra_parameters: int | None
    reads: str
    knob: str
    supports: str
    counted_on: str


def write_cards(places: Sequence[str], console: "Console") -> None:
    """Print a card for every method that can be named, as soon as it is known; ``places`` as for the list."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        encoders, decoders = TinyModels(Path(folder, "encoders")), TinyDecoders(Path(folder, "decoders"))
        for listed in [*listed_methods(places), *listed_token_methods()]:
            if listed.method is None:
                console.print(f"{listed.name}: unavailable: {listed.reason}\n", markup=False, highlight=False)
                continue
            console.print(card_table(method_card(listed.name, get_method(listed.name), encoders, decoders)))


def method_card(name: str, method: AnyMethod, encoders: TinyModels, decoders: TinyDecoders) -> MethodCard:
    """Train a method on a tiny model and describe it; what fails there is said on the card, and breaks nothing."""
    card = stated_card(name, method)
    try:
        if isinstance(method, TokenMethod):
            return _found_on_a_decoder(card, method, decoders)
        return _found_on_an_encoder(card, method, encoders)
    except BrokenContractError as error:
        return replace(card, trains=f"{UNKNOWN}: {error}")
    except Exception as error:  # a user's method may fail in any way at all
        return replace(card, trains=f"{UNKNOWN}: {described(error)}")


def _found_on_an_encoder(card: MethodCard, method: Method, models: TinyModels) -> MethodCard:
    plain = models.model(_ENCODER)
    before, parameters = plain.clone_weights(), _count(plain)
    model = fitted(method, plain, make_task(rows=24), RECIPE)
    return replace(
        card,
        trains=_changed_parts(before, model),
        extra_parameters=_extra_on_bert_base(model, _count(model) - parameters),
        counted_on="BERT-base, beside one classifier a layer",
        reads=_what_it_reads(method, model),
        knob=_knob_in_words(method, model),
        supports=_tasks(method, model),
    )


def _found_on_a_decoder(card: MethodCard, method: TokenMethod, models: TinyDecoders) -> MethodCard:
    before = models.model(_DECODER).clone_weights()
    case = train_token_case(method, _DECODER, models)
    return replace(
        card,
        trains=_changed_parts(before, case.model),
        extra_parameters=_extra_on_smollm2(case.model),
        counted_on="SmolLM2-135M, beside one adapter an exit",
        reads=_what_it_reads_of_tokens(case),
        knob=_knob_in_words(method, case.model),
        supports=_decoding(method),
    )


def stated_card(name: str, method: AnyMethod) -> MethodCard:
    """Return what a class says of itself, whatever its rows are; what must be found out by training is left open."""
    year = _YEAR.search(method.paper)
    docstring = (type(method).__doc__ or "").strip().splitlines()
    return MethodCard(
        name=name,
        what=docstring[0] if docstring and type(method).__doc__ != Method.__doc__ else "",
        paper=method.paper,
        year=year.group() if year else "",
        trains=UNKNOWN,
        extra_parameters=None,
        reads=UNKNOWN,
        knob=method.knob.name,
        supports=UNKNOWN,
        counted_on="",
    )


def _knob_in_words(method: AnyMethod, model: MultiExitModel | MultiExitDecoder) -> str:
    values = list(method.knob_values(model))
    return f"{method.knob.name}, {values[0]:g} to {values[-1]:g} ({len(values)} values, L = {model.num_layers})"


def _tasks(method: Method, model: MultiExitModel) -> str:
    """Say which tasks a method whose rows are instances can be used on."""
    kinds = ["single texts"]
    with suppress(Exception):  # a user's rule may fail in any way at all: then it does not take pairs
        replay(method.rule(model, method.knob_values(model)[-1]), record_trace(model, make_task(pairs=True).test))
        kinds.append("pairs")
    kinds += ["regression"] if method.supports_regression else []
    return ", ".join(kinds) + ("; replayed on a trace only" if method.replay_only else "")


def _decoding(method: TokenMethod) -> str:
    """Say how a method of generation decodes."""
    if type(method).generate is not TokenMethod.generate:
        return "generation, in a way of its own"
    if type(method).model_at is not TokenMethod.model_at:
        return "generation, by a decoder of its own for every value of the knob"
    filled = {"propagate": "are propagated", "exact": "are made exactly, later"}[method.kv]
    return f"generation; keys and values of skipped layers {filled}"


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _changed_parts(before: dict[str, Tensor], model: MultiExitModel | MultiExitDecoder) -> str:
    """Name the parts of a model whose weights differ from before, or are new."""
    changed: dict[str, set[str]] = {}
    for name, tensor in model.state_dict().items():
        if name not in before or not torch.equal(before[name], tensor.cpu()):
            top, place, *_ = name.split(".")
            part = f"head {place}" if top == "exit_heads" else top
            changed.setdefault(part, set()).add(place)
    return ", ".join(_part_in_words(part, places) for part, places in changed.items()) or "nothing"


def _part_in_words(part: str, places: set[str]) -> str:
    if part == "classifiers" and len(places) == 1:
        return f"the classifier of layer {int(min(places)) + 1}"
    return part.replace("_", " ")


def _extra_on_bert_base(model: MultiExitModel, extra_here: int) -> int | None:
    """Count what a description adds to BERT-base, without its weights; None where it does not say all."""
    description = replace(model.description)
    if _described_extra(model.backbone.config, description) != extra_here:
        return None
    return _described_extra(BertConfig(), description)


def _described_extra(config: object, description: ModelDescription) -> int:
    with torch.device("meta"):
        counts = []
        for found in (description, replace(description, heads={}, pooler="shared", classifier=ClassifierSpec())):
            backbone = AutoModel.from_config(config)
            backbone.pooler = None
            model = MultiExitModel(stepper_for(backbone), None, replace(found, heads={}, companion_name=None))
            for name, spec in found.heads.items():
                model.add_head(name, spec)
            counts.append(_count(model))
    return counts[0] - counts[1]


def _extra_on_smollm2(model: MultiExitDecoder) -> int:
    """Count heads, and branches at the usual exits, without their weights."""
    described = model.description
    with torch.device("meta"):
        heads = sum(_count(ExitHeads(spec, **_SMOLLM2_135M)) for spec in described.heads.values())
        branches = list(described.branches.values())[:1]  # all are alike
        return heads + sum(_count_branches(spec) for spec in branches)


def _count_branches(spec: BranchSpec) -> int:
    layers = _SMOLLM2_135M["num_layers"]
    config = LlamaConfig(
        hidden_size=_SMOLLM2_135M["width"],
        num_hidden_layers=layers,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    stepper = decoder_stepper_for(AutoModelForCausalLM.from_config(config))
    usual = replace(spec, copied_layer=layers)  # layers are alike, too
    return sum(_count(Branch(usual, layer, stepper)) for layer in default_exit_layers(layers)[:-1])


def _what_it_reads(method: Method, model: MultiExitModel) -> str:
    """Ask the rule at its latest exits, where it is asked at every layer but the last."""
    watched = WatchedRule(method.rule(model, method.knob_values(model)[-1]))
    if method.replay_only:
        replay(watched, record_trace(model, make_task(rows=24).test))
    else:
        classify(model, random_texts(8), watched)
    return _reads_in_words(watched.reads, _READS) or "nothing: it is never asked"


def _what_it_reads_of_tokens(case: TokenCase) -> str:
    """Ask the rule at every value of the knob: at some, it may decide without looking."""
    reads: dict[int, set[str]] = {}
    for knob in case.method.knob_values(case.model):
        watched = WatchedRule(case.rule(knob))
        replay(watched, case.trace)
        for layer, names in watched.reads.items():
            reads.setdefault(layer, set()).update(names)
    return _reads_in_words(dict(sorted(reads.items())), _TOKEN_READS)


def _reads_in_words(reads: Mapping[int, set[str]], terms: Mapping[str, str]) -> str:
    """Say what is read at which layers; nothing if there are none."""
    by_words: dict[str, list[int]] = {}
    for layer, names in reads.items():
        by_words.setdefault(_in_words(names, terms), []).append(layer)
    if len(by_words) == 1:
        return next(iter(by_words))
    return "; ".join(f"{words} at layer{_span(layers)}" for words, layers in by_words.items())


def _in_words(reads: set[str], terms: Mapping[str, str]) -> str:
    words = [text for name, text in terms.items() if name in reads and name != "pooled"]
    words += sorted(name for name in reads if name.startswith("head "))
    if not words and "pooled" in reads:  # whoever reads a classifier or a head has paid for pooling already
        words = [terms["pooled"]]
    return ", ".join(words) or "nothing"


def _span(layers: Sequence[int]) -> str:
    """Return `` 3``, or ``s 1 to 5``, to stand behind the word layer."""
    return f" {layers[0]}" if len(layers) == 1 else f"s {layers[0]} to {layers[-1]}"


def card_table(card: MethodCard) -> "Table":
    """Return a card for a terminal."""
    table = plain_table(card.name)
    table.show_header = False
    add_columns(table, "", "")
    extra = "not known" if card.extra_parameters is None else f"{card.extra_parameters:,} on {card.counted_on}"
    lines = {
        "what": card.what,
        "paper": card.paper,
        "year": card.year,
        "trains": card.trains,
        "extra parameters": extra,
        "its rule reads, at each layer": card.reads,
        "knob": card.knob,
        "supports": card.supports,
    }
    for heading, text in lines.items():
        if text:
            add_row(table, heading, text)
    return table
