"""What must hold of an encoder before methods are compared on it: checks on its real weights, one function each.

A check returns what it found in a few words, or raises BrokenContractError, whose message is for whoever brought the
backbone. The invariants are those of the project, of the backbone alone: no method is involved.
"""

import statistics
import tempfile
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.contract.backbones.candidate import EncoderCandidate, batches, difference
from benchmarks.contract.faults import BrokenContractError
from benchmarks.contract.reference import counted_work, reference_logits
from benchmarks.measure.flops import FlopModel
from consistentee.backbones.catalog import list_backbones
from consistentee.backbones.token_exits import TokenExitStepper
from consistentee.data.encoding import Batch, Encoding
from consistentee.engine.classify import classify_encoded, stock_encoded
from consistentee.errors import UserError
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.rules.exit_rule import ExitRule, NeverExit, State
from consistentee.rules.view import LayerView

_SAME_BATCH = 1e-5
"""How far numbers of the same batch may differ, computed in two ways."""
_OTHER_BATCH = 1e-4
"""How far a row's numbers may differ between batches, which sum in another order."""
_FEWEST_WORDS = 20
_LONGEST_RUN = 2048
_TIMED_TOKENS = 32


@dataclass(frozen=True)
class BackboneCheck:
    """One check.

    Attributes:
        title: what must hold.
        run: the check: returns what it found in a few words, or raises BrokenContractError.
        essential: nothing that follows can be checked where it fails.
        needs: titles of checks without which it says nothing new.
    """

    title: str
    run: Callable[[EncoderCandidate], str]
    essential: bool = False
    needs: tuple[str, ...] = ()


class ExitByHash(ExitRule):
    """Rows leave at layers that their tokens alone decide, spread over all layers."""

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        """Leave at layer 1 + key % L."""
        return view.row_keys % view.num_layers < view.layer


def the_tokenizer_fits(candidate: EncoderCandidate) -> str:
    """The tokenizer loads, can pad, and makes no token that the embeddings lack."""
    tokenizer, config = candidate.tokenizer, candidate.config
    if tokenizer.pad_token_id is None:
        raise BrokenContractError(
            "the tokenizer has no padding token",
            "",
            "Set tokenizer.pad_token and save the tokenizer again; any token that texts do not hold will do",
        )
    if len(candidate.words) < _FEWEST_WORDS:
        raise BrokenContractError(
            "the tokenizer knows hardly any word",
            f"{len(tokenizer.get_vocab())} tokens, special ones among them: nearly every text would be unknown tokens",
            "Are its files those of this model, and whole?",
        )
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.vocab_size:
        raise BrokenContractError(
            "the tokenizer makes tokens that the embeddings lack",
            f"its largest token is {largest}, and the embeddings end at {config.vocab_size - 1}",
            "Is it the tokenizer of this model?",
        )
    stepper = candidate.model.stepper
    if getattr(stepper, "reserved_positions", 0) and tokenizer.pad_token_id != config.pad_token_id:
        raise BrokenContractError(
            "tokenizer and configuration name different padding tokens",
            f"{tokenizer.pad_token_id} and {config.pad_token_id}; positions are counted from the latter",
        )
    first = candidate.encodings(pairs=True, count=1)[0]
    pairs = "token types" if first.token_type_ids and len(set(first.token_type_ids)) > 1 else "separators alone"
    return f"{largest + 1} tokens, padding is {tokenizer.pad_token!r}, {pairs} tell the texts of a pair apart"


def the_weights_are_complete(candidate: EncoderCandidate) -> str:
    """Every weight is in the files, and is a finite number; the pooler aside, which not every encoder has."""
    weights = candidate.weights
    missing = [name for name in weights.missing if not name.startswith("pooler.")]
    if missing:
        raise BrokenContractError(
            "weights are missing, and would be random",
            f"{len(missing)} of them, {missing[0]} the first",
            "Are the files those of this architecture, without a prefix that transformers does not know?",
        )
    if weights.infinite:
        raise BrokenContractError("weights are not finite", f"{weights.infinite[0]}", "Fetch or save them again")
    return f"{weights.parameters / 1e6:.1f} M parameters"


def the_pooling_is_known(candidate: EncoderCandidate) -> str:
    """Say how a layer's tokens become one vector, and who says so."""
    found = candidate.found
    pooling = {"mean": "mean of the tokens", "cls": "first token"}[found.pooling]
    if candidate.name in list_backbones():
        reason = "the catalogue says so"
    elif (Path(found.path) / "1_Pooling" / "config.json").is_file():
        reason = "1_Pooling/config.json says so"
    else:
        reason = f"no file says, and {candidate.config.model_type} models are usually read so"
    if not found.pooler:
        return f"{pooling}: {reason}"
    lacks = any(name.startswith("pooler.") for name in candidate.weights.missing)
    return f"{pooling} and the pooler: {reason}" + ("; the files hold no pooler: it starts at random" if lacks else "")


@torch.no_grad()
def stepped_is_stock(candidate: EncoderCandidate) -> str:
    """Layer by layer, stepping gives the hidden states of the stock forward: single texts and pairs, padded or not."""
    model, worst = candidate.model, 0.0
    for pairs in (False, True):
        encodings = candidate.encodings(pairs=pairs, count=8)
        for size in (1, 8):
            for rows in batches(encodings, size)[:2]:
                worst = max(worst, _compare_layers(model, model.collate(rows)))
    return f"hidden states differ by at most {worst:.1g}"


def _compare_layers(model: MultiExitModel, batch: Batch) -> float:
    worst = 0.0
    real = batch.padding_mask.unsqueeze(-1)
    for layer, (ours, theirs) in enumerate(zip(_stepped(model, batch), _stock(model, batch), strict=True), start=1):
        found = difference(ours * real, theirs * real)
        worst = max(worst, found)
        if not found <= _SAME_BATCH:  # true for what is no number, too
            raise BrokenContractError(
                "run layer by layer, the model is not the stock model",
                f"the hidden states of layer {layer} of {model.num_layers} differ by {found:.2g} in a batch of "
                f"{len(batch.lengths)}",
                "Its configuration asks for something that its family's stepper does not know: see "
                "consistentee/backbones/encoders.py",
            )
    return worst


def _stepped(model: MultiExitModel, batch: Batch) -> Iterator[Tensor]:
    hidden, context = model.stepper.begin(batch)
    for layer in range(1, model.num_layers + 1):
        hidden = model.stepper.step(layer, hidden, context)
        yield hidden


def _stock(model: MultiExitModel, batch: Batch) -> tuple[Tensor, ...]:
    return model.backbone(**batch.model_inputs, output_hidden_states=True).hidden_states[1:]


@torch.no_grad()
def a_row_is_its_own(candidate: EncoderCandidate) -> str:
    """The stock model gives a row the same hidden states alone as in a padded batch."""
    model, worst = candidate.model, 0.0
    encodings = candidate.encodings(count=8)
    together = _stock(model, model.collate(encodings))
    for row, encoding in enumerate(encodings):
        for layer, alone in enumerate(_stock(model, model.collate([encoding])), start=1):
            found = difference(together[layer - 1][row, : len(encoding)], alone[0])
            worst = max(worst, found)
            if not found <= _OTHER_BATCH:
                raise BrokenContractError(
                    "in the stock model, a row's hidden states depend on the rows beside it",
                    f"those of row {row + 1} differ by {found:.2g} at layer {layer} from those it has alone",
                    "A layer must not mix rows, nor read padding; no exit layer means anything otherwise",
                )
    return f"alone and in a batch, hidden states differ by at most {worst:.1g}"


def never_exit_is_stock(candidate: EncoderCandidate) -> str:
    """With a rule that never exits, batched inference gives the logits of the stock model."""
    model, encodings = candidate.model, candidate.encodings()
    sizes = (1, 7, 32)
    for size in sizes:
        ours = classify_encoded(model, encodings, NeverExit(), batch_size=size).logits
        found = difference(ours, stock_encoded(model, encodings, batch_size=size))
        if not found <= _SAME_BATCH:
            raise BrokenContractError(
                "the model that never exits is not the stock model", f"logits differ by {found:.2g} at batch {size}"
            )
    return f"at batch {', '.join(map(str, sizes))}"


def rows_that_leave_disturb_none(candidate: EncoderCandidate) -> str:
    """Rows leave at all layers, and those that stay get the logits that they have alone."""
    model, encodings, rule = candidate.model, candidate.encodings(), ExitByHash()
    alone = classify_encoded(model, encodings, rule, batch_size=1)
    for size in (7, 32):
        for by_length in (False, True):
            live = classify_encoded(model, encodings, rule, batch_size=size, sort_by_length=by_length)
            found = difference(live.logits, alone.logits)
            if not (torch.equal(live.exit_layers, alone.exit_layers) and found <= _OTHER_BATCH):
                raise BrokenContractError(
                    "rows that leave a batch disturb those that stay",
                    f"logits differ by {found:.2g} at batch {size} from those of rows alone",
                    "compact() of the family's stepper must cut whatever its layers read",
                )
    return f"exits at {len(set(alone.exit_layers.tolist()))} of {model.num_layers} layers"


def layers_counted_are_layers_run(candidate: EncoderCandidate) -> str:
    """Hooks on the stock layers count as many calls, row by row, as the answers say."""
    model, encodings = candidate.model, candidate.encodings()
    for size in (1, 32):
        with counted_work(model) as counts:
            live = classify_encoded(model, encodings, ExitByHash(), batch_size=size)
        if sum(counts) != int(live.exit_layers.sum()):
            raise BrokenContractError(
                "layers run that nobody counts",
                f"{int(live.exit_layers.sum())} are reported and {sum(counts)} ran at batch {size}",
                "layer_module() of the family's stepper must return what is called once a layer",
            )
    return f"{sum(counts)} layers for {len(encodings)} rows"


@torch.no_grad()
def long_texts_are_cut(candidate: EncoderCandidate) -> str:
    """A text beyond the limit is cut to it, and a row of that length runs."""
    model, limit = candidate.model, candidate.model.stepper.position_limit
    words = " ".join(str(text) for text in candidate.texts(8))
    encoding = model.tokenize([" ".join([words] * (1 + limit // len(words.split())))], max_length=2 * limit)[0]
    if len(encoding) != limit:
        raise BrokenContractError(
            "a text beyond the limit is not cut to it", f"it has {len(encoding)} tokens, and the limit is {limit}"
        )
    row = encoding if limit <= _LONGEST_RUN else model.tokenize([words], max_length=_LONGEST_RUN)[0]
    try:
        _compare_layers(model, model.collate([row]))
    except (IndexError, RuntimeError) as error:
        raise BrokenContractError(
            "a row of the longest length cannot be run", f"{len(row)} tokens: {' '.join(str(error).split())}"
        ) from error
    usual = candidate.tokenizer.model_max_length
    return f"{limit} tokens" + (f"; its tokenizer is set to {usual}" if usual < limit else "")


def operations_can_be_counted(candidate: EncoderCandidate) -> str:
    """The operations of a layer are a polynomial of the tokens, so that FLOPs can be told row by row."""
    try:
        flops = FlopModel(candidate.model)
    except ValueError as error:
        raise BrokenContractError("the operations of a layer cannot be counted", str(error)) from error
    costs = [int(layer(_TIMED_TOKENS)) for layer in flops.layers]
    return f"{statistics.mean(costs) / 1e6:.1f} MFLOPs a layer for {_TIMED_TOKENS} tokens"


def gradients_reach_every_layer(candidate: EncoderCandidate) -> str:
    """Trained on all exits together, every layer gets a gradient, and it is finite."""
    model = candidate.model
    batch = model.collate(candidate.encodings(count=4))
    with torch.enable_grad():
        logits = model(batch).logits
        targets = torch.zeros(logits.shape[:2], dtype=torch.long, device=logits.device)
        functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    try:
        for layer in range(1, model.num_layers + 1):
            gradients = [p.grad for p in model.stepper.layer_module(layer).parameters() if p.grad is not None]
            if not any(bool(g.any()) for g in gradients) or not all(bool(g.isfinite().all()) for g in gradients):
                raise BrokenContractError(
                    f"layer {layer} cannot be trained",
                    "its gradients are not finite" if gradients else "no gradient reaches it",
                )
    finally:
        model.zero_grad(set_to_none=True)
    return ""


def saved_and_loaded_is_the_same(candidate: EncoderCandidate) -> str:
    """Saved and loaded, the model gives the same exits and logits, and has the same fingerprint."""
    model, encodings = candidate.model, candidate.encodings()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        model.save_pretrained(path)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        try:
            loaded = MultiExitModel.from_pretrained(path)
        except UserError as error:
            raise BrokenContractError("a saved model cannot be loaded", str(error)) from error
    before, after = (classify_encoded(m, encodings, ExitByHash(), batch_size=7) for m in (model, loaded))
    same = torch.equal(before.logits, after.logits) and torch.equal(before.exit_layers, after.exit_layers)
    if not (same and loaded.fingerprint() == model.fingerprint()):
        raise BrokenContractError("saved and loaded, the model is another", "its answers or its fingerprint differ")
    return f"{size / 2**20:.0f} MiB"


def tokens_may_exit(candidate: EncoderCandidate) -> str:
    """Where the family lets tokens exit by themselves, that is the stock layers with exited states put back."""
    model = candidate.model
    schedule = torch.arange(model.backbone.config.vocab_size) % model.num_layers + 1
    try:
        with _token_exits(model, schedule):
            encodings = candidate.encodings(count=8)
            ours = classify_encoded(model, encodings, NeverExit(), batch_size=8).logits
            found = difference(ours, reference_logits(model, encodings, batch_size=8))
    except UserError as error:
        return f"{error}, so hashee cannot run"
    if not found <= _OTHER_BATCH:
        raise BrokenContractError(
            "where tokens exit by themselves, a layer is not the stock layer",
            f"logits differ by {found:.2g}",
            "parts() of the family's stepper must name the modules that the stock layer is made of",
        )
    return "supported"


@contextmanager
def _token_exits(model: MultiExitModel, schedule: Tensor) -> Iterator[None]:
    before = model.stepper
    model.use_stepper(TokenExitStepper.over(before, schedule))
    try:
        yield
    finally:
        model.use_stepper(before)


@torch.no_grad()
def it_takes_time(candidate: EncoderCandidate) -> str:
    """Say roughly what a layer takes, at batch 1 and 32."""
    model = candidate.model
    row = Encoding([next(i for i in range(9) if i != candidate.tokenizer.pad_token_id)] * _TIMED_TOKENS)
    taken = []
    for size in (1, 32):
        batch = model.collate([row] * size)
        _, *seconds = timeit.repeat(partial(model, batch), number=1, repeat=6)  # the first pays for more than itself
        taken.append(f"{1000 * statistics.median(seconds) / model.num_layers:.1f} ms at batch {size}")
    return f"{', '.join(taken)}, for rows of {_TIMED_TOKENS} tokens; threads: {torch.get_num_threads()}"


_STOCK, _ROWS = "stepped, full depth = the stock model", "in the stock model, a row is its own"
ENCODER_CHECKS = (
    BackboneCheck("the weights are complete", the_weights_are_complete, essential=True),
    BackboneCheck("the tokenizer fits", the_tokenizer_fits, essential=True),
    BackboneCheck("pooling", the_pooling_is_known),
    BackboneCheck(_ROWS, a_row_is_its_own),
    BackboneCheck(_STOCK, stepped_is_stock),
    BackboneCheck("never exit = the stock model", never_exit_is_stock, needs=(_STOCK,)),
    BackboneCheck("rows that leave disturb none", rows_that_leave_disturb_none, needs=(_STOCK, _ROWS)),
    BackboneCheck("layers counted = layers run", layers_counted_are_layers_run),
    BackboneCheck("long texts are cut", long_texts_are_cut, needs=(_STOCK,)),
    BackboneCheck("operations can be counted", operations_can_be_counted),
    BackboneCheck("gradients reach every layer", gradients_reach_every_layer),
    BackboneCheck("saved and loaded, the same", saved_and_loaded_is_the_same),
    BackboneCheck("tokens may exit by themselves", tokens_may_exit, needs=(_STOCK, _ROWS)),
    BackboneCheck("a layer takes", it_takes_time),
)
