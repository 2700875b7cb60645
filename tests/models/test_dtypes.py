"""Models whose weights are bfloat16, float16 or float64: never exit is the stock model in it, and replay is reality."""

from contextlib import suppress

import pytest
import torch
from comparing import tokens_of
from torch import Tensor

from benchmarks.testing.tiny import FAMILIES, make_task, random_prompts, random_texts
from benchmarks.testing.watching import reference_logits, stock_tokens
from consistentee import ClassifierSpec, HeadSpec, MultiExitModel, TokenExitStepper, add_companion, record_trace, replay
from consistentee.data.encoding import Batch
from consistentee.engine.classify import classify, classify_encoded
from consistentee.engine.generate import generate_encoded
from consistentee.rules.exit_rule import ExitRule, NeverExit, ThresholdRule
from consistentee.signals import margin
from consistentee.traces.token_trace import TokenTraceView, record_tokens

DTYPES = {torch.bfloat16: 2**-6, torch.float16: 2**-8, torch.float64: 1e-9}
"""Precision -> how far a number may move, relatively, where a row is computed beside others."""
NEW_TOKENS = 10


def change(model: MultiExitModel, kind: str) -> None:
    """Give a model what runs or reads its layers in another way."""
    if kind == "token exits":
        schedule = torch.arange(model.backbone.config.vocab_size) % model.num_layers + 1
        model.use_stepper(TokenExitStepper.over(model.stepper, schedule))
    elif kind == "companion":
        add_companion(model, model.first_layers(2))
    elif kind != "linear":
        model.use_classifier(ClassifierSpec(kind, width=16))


class AboveItsOwn(ExitRule):
    """Exit where a signal is above the threshold of its layer."""

    def __init__(self, signal, thresholds: list[float]) -> None:
        self.signal = signal
        self.thresholds = thresholds

    def should_exit(self, view, state):
        return self.signal(view) > self.thresholds[view.layer - 1]


SIGNALS = (lambda view: view.logits[:, 0] - view.logits[:, 1], lambda view: view.head("gate"))


def clear_of(thresholds: list[float], values: Tensor, distance: float) -> Tensor:
    """Return which rows of [rows, layers] have no value near the threshold of its layer: bool [rows]."""
    gaps = (values.double() - torch.tensor(thresholds, dtype=torch.double)).abs()
    return (gaps > distance * values.double().abs().amax(dim=0)).all(dim=1)


KINDS = [("linear", dtype) for dtype in DTYPES]
KINDS += [(kind, torch.bfloat16) for kind in ("attention", "past-future", "token exits", "companion")]


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
def test_never_exit_is_the_stock_model_and_replay_is_reality_in_encoders(tiny_model, kind, dtype):
    model, split, close = tiny_model(), make_task(rows=120).test, {"rtol": DTYPES[dtype], "atol": DTYPES[dtype]}
    change(model, kind)
    model.to(dtype).add_head("gate", HeadSpec(hidden=8))
    encodings, trace = model.tokenize(random_texts(20)), record_trace(model, split)
    never = classify_encoded(model, encodings, NeverExit(), batch_size=8).logits
    torch.testing.assert_close(never, reference_logits(model, encodings, batch_size=8), **close)
    assert {never.dtype, trace.logits.dtype, trace.pooled.dtype} == {dtype}
    for signal in SIGNALS:
        values = torch.stack([signal(trace.view(layer)) for layer in range(1, model.num_layers)], dim=1)
        rule = AboveItsOwn(signal, values.double().quantile(0.6, dim=0).tolist())
        exits = replay(rule, trace)
        clear = clear_of(rule.thresholds, values, DTYPES[dtype])
        assert exits[clear].unique().numel() > 1
        for size in (1, 7):
            live = classify_encoded(model, model.tokenize(split.texts), rule, batch_size=size)
            assert torch.equal(live.exit_layers[clear], exits[clear])
            looser = {name: 4 * most for name, most in close.items()}
            torch.testing.assert_close(live.logits[clear], trace.logits_at(exits)[clear], **looser)


@pytest.mark.parametrize(("family", "dtype"), [*(("llama", dtype) for dtype in DTYPES), ("gpt2", torch.bfloat16)])
def test_never_exit_is_the_stock_model_and_replay_is_reality_in_decoders(tiny_decoder, family, dtype):
    model = tiny_decoder(family).to(dtype)
    rows = model.encode(random_prompts(6, seed=3))
    never = generate_encoded(model, rows, NeverExit(), max_new_tokens=NEW_TOKENS, batch_size=1)
    assert tokens_of(never) == [stock_tokens(model, row, NEW_TOKENS) for row in rows]
    rows, rule = model.encode(random_prompts(7, seed=1)), ThresholdRule(margin, 0.15, "above")
    written = generate_encoded(model, rows, rule, kv="exact", max_new_tokens=NEW_TOKENS, batch_size=4)
    trace = record_tokens(model, list(zip(rows, tokens_of(written), strict=True)), dtype=dtype)
    assert trace.answer_states.dtype == dtype
    live, tokens = torch.cat(written.exit_layers), torch.arange(len(trace.targets))
    views = [TokenTraceView(trace, exit_index, tokens, step=1) for exit_index in range(len(trace.exit_layers) - 1)]
    values = torch.stack([margin(view) for view in views], dim=1)
    clear = clear_of([rule.threshold] * len(views), values, DTYPES[dtype])
    assert clear.double().mean() > 0.5
    assert live[clear].unique().numel() > 1
    assert torch.equal(replay(rule, trace)[clear], live[clear])


def batch_of(model: MultiExitModel) -> Batch:
    return model.collate(model.tokenize(random_texts(6)))


@pytest.mark.parametrize("family", FAMILIES)
def test_only_layers_are_computed_in_bfloat16(tiny_model, family):
    model = tiny_model(family)
    batch = batch_of(model)
    plain = model(batch)
    with model.layers_in("bfloat16"):
        rough, stock = model(batch), model.stock_logits(batch)
    assert {rough.vectors.dtype, rough.logits.dtype, stock.dtype} == {torch.float32}
    assert not torch.equal(rough.vectors, plain.vectors)
    torch.testing.assert_close(rough.vectors, plain.vectors, atol=0.1, rtol=0.05)
    assert torch.equal(rough.logits, model.read_vectors(rough.vectors).logits), "classifiers stay in float32"
    torch.testing.assert_close(stock, rough.logits[:, -1], atol=0.05, rtol=0.05)
    rough.logits.sum().backward()
    gradients = [p.grad for p in model.backbone.parameters() if p.grad is not None]
    assert gradients
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in gradients)


def test_bfloat16_ends_with_its_block_and_is_never_used_at_inference(tiny_model):
    model = tiny_model()
    batch = batch_of(model)
    plain, answers = model(batch), classify(model, random_texts(6), NeverExit()).logits
    with suppress(KeyError), model.layers_in("bfloat16"):
        assert torch.equal(classify(model, random_texts(6), NeverExit()).logits, answers)
        raise KeyError
    assert torch.equal(model(batch).logits, plain.logits)
