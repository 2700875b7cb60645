"""Decoding without exits against stock ``generate``, and a static exit against a model of half the depth."""

import copy
from dataclasses import replace

import pytest
from conftest import in_rounds, ratio_of_rounds, report, smollm2

from baselines.references import StaticRule
from benchmarks.measure.decoding_clock import stock_times
from consistentee.backbones.decoders import decoder_stepper_for
from consistentee.engine.generate import generate_encoded
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule, NeverExit

NEW_TOKENS = 32
ROUNDS = {1: 21, 8: 7}
"""Batch size, which is the number of prompts -> rounds: one row takes a second and is nearly all weights, so that a
ratio of 1 needs many of them."""


@pytest.fixture(scope="session")
def decoder() -> MultiExitDecoder:
    """smollm2-135m with one untrained exit at half depth."""
    layers = smollm2().num_layers
    return smollm2(exit_layers=(layers // 2, layers))


@pytest.fixture(scope="session")
def prompts(decoder, task) -> list[list[int]]:
    """Movie snippets, one to six of them a prompt, so that lengths are mixed."""
    joined = [" ".join(task.test.texts[6 * i : 6 * i + 1 + i % 6]) for i in range(3, 11)]
    return decoder.encode(joined, max_tokens=128)


def first_half(decoder: MultiExitDecoder) -> MultiExitDecoder:
    """Return a model of its own with the embeddings, the first half of the layers, the final norm and the LM head."""
    layers = decoder.exit_layers[0]
    config = copy.deepcopy(decoder.backbone.config)
    config.num_hidden_layers = layers
    stock = type(decoder.backbone)(config)
    stock.model.embed_tokens, stock.model.norm = decoder.backbone.model.embed_tokens, decoder.backbone.model.norm
    stock.model.layers, stock.lm_head = decoder.backbone.model.layers[:layers], decoder.backbone.lm_head
    description = replace(decoder.description, exit_layers=(layers,))
    return MultiExitDecoder(decoder_stepper_for(stock), decoder.tokenizer, description)


def decoding(model: MultiExitDecoder, rows: list[list[int]], rule: ExitRule) -> float:
    """Return the seconds after the prompts, in one batch."""
    options = {"max_new_tokens": NEW_TOKENS, "batch_size": len(rows), "end_at_eos": False}
    return generate_encoded(model, rows, rule, **options).decode_seconds


@pytest.mark.parametrize("batch_size", sorted(ROUNDS))
def test_never_exit_decodes_as_fast_as_stock_generate(benchmark, request, decoder, prompts, batch_size):
    """Both read the same prompts and write as many tokens, so that the ratio of times is that of tokens a second."""
    rows = prompts[:batch_size]
    stock, never = in_rounds(
        lambda: stock_times(decoder, rows, NEW_TOKENS).decoding,
        lambda: decoding(decoder, rows, NeverExit()),
        rounds=ROUNDS[batch_size],
    )
    ratio = ratio_of_rounds(stock, never)
    report(request, f"never-exit / stock generate, tokens a second, batch {batch_size}: {ratio:.3f} (at least 1.0)")
    benchmark.pedantic(decoding, args=(decoder, rows, NeverExit()), rounds=3)
    assert ratio >= 1.0


@pytest.mark.parametrize("batch_size", sorted(ROUNDS))
def test_a_static_exit_is_as_fast_as_its_layers_allow(benchmark, request, decoder, prompts, batch_size):
    """Compare with a model that has only the layers below the exit, and the same head.

    Prompts run at full depth, so that it is the time after them that is compared.
    """
    rows, half, short = prompts[:batch_size], StaticRule(decoder.exit_layers[0]), first_half(decoder)
    full, real, allowed = in_rounds(
        lambda: decoding(decoder, rows, NeverExit()),
        lambda: decoding(decoder, rows, half),
        lambda: decoding(short, rows, NeverExit()),
    )
    ratio, speed_up = ratio_of_rounds(allowed, real), ratio_of_rounds(full, real)
    report(
        request,
        f"static exit at layer {half.layer} of {decoder.num_layers}, batch {batch_size}: decoding {speed_up:.2f} times "
        f"as fast as full depth, real / allowed speed-up {ratio:.3f} (at least 0.90)",
    )
    benchmark.pedantic(decoding, args=(decoder, rows, half), rounds=3)
    assert ratio >= 0.90
