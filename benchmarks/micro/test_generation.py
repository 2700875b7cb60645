"""Decoding without exits against stock ``generate``, and a static exit against a model of half the depth."""

import copy
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch
from conftest import in_rounds, report, seconds
from transformers import LlamaConfig, LlamaForCausalLM

from baselines.references import StaticRule
from benchmarks.tasks.loader import load_classification_task
from benchmarks.testing.decoders import make_decoder_tokenizer, random_prompts
from consistentee.backbones.decoders import decoder_stepper_for
from consistentee.engine.generate import Generations, generate_encoded
from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import NeverExit

NEW_TOKENS = 32
PROMPT_TOKENS = 128
PROMPTS = {1: 1, 8: 8}
"""Batch size -> prompts a round."""
ROUNDS = {1: 21, 8: 7}
"""Batch size -> rounds: one row takes a second and is nearly all weights, so that a ratio of 1 needs many of them."""


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> MultiExitDecoder:
    """smollm2-135m with one untrained exit at half depth; where it cannot be had, a smaller random model."""
    try:
        return with_exit_at_half_depth("smollm2-135m")
    except UserError:
        return with_exit_at_half_depth(str(random_decoder(tmp_path_factory.mktemp("decoder"))))


def with_exit_at_half_depth(name: str) -> MultiExitDecoder:
    """Return a decoder with an untrained exit after half of its layers."""
    layers = MultiExitDecoder.from_backbone(name).num_layers
    return MultiExitDecoder.from_backbone(name, exit_layers=(layers // 2, layers))


def random_decoder(directory: Path) -> Path:
    """Write a small Llama with random weights, and return its folder."""
    config = LlamaConfig(
        vocab_size=16_000,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=16,
        num_attention_heads=6,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    make_decoder_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def prompts(decoder) -> list[list[int]]:
    """Movie snippets, one to six of them a prompt, so that lengths are mixed; or random words."""
    try:
        snippets = load_classification_task("movie-snippets").test.texts
    except UserError:
        snippets = random_prompts(200, longest=30)
    starts = range(0, 200, 6)
    joined = [" ".join(snippets[start : start + 1 + i % 6]) for i, start in enumerate(starts, start=3)]
    return decoder.encode(joined, max_tokens=PROMPT_TOKENS)


def first_half(decoder: MultiExitDecoder) -> MultiExitDecoder:
    """Return a model of its own with the embeddings, the first half of the layers, the final norm and the LM head."""
    layers = decoder.exit_layers[0]
    config = copy.deepcopy(decoder.backbone.config)
    config.num_hidden_layers = layers
    stock = type(decoder.backbone)(config)
    stock.model.embed_tokens, stock.model.norm = decoder.backbone.model.embed_tokens, decoder.backbone.model.norm
    stock.model.layers, stock.lm_head = decoder.backbone.model.layers[:layers], decoder.backbone.lm_head
    return MultiExitDecoder(
        decoder_stepper_for(stock), decoder.tokenizer, replace(decoder.description, exit_layers=(layers,))
    )


@torch.inference_mode()
def stock_generate(decoder: MultiExitDecoder, rows: list[list[int]], batch_size: int) -> list[list[int]]:
    """Return what the stock model's own greedy ``generate`` writes, batch by batch, padded on the left."""
    written = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        longest = max(map(len, batch))
        tokens = torch.tensor([[decoder.pad_id] * (longest - len(row)) + row for row in batch])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch])
        out = decoder.backbone.generate(
            tokens, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=decoder.pad_id
        )
        written += out[:, longest:].tolist()
    return written


@pytest.mark.parametrize("batch_size", sorted(PROMPTS))
def test_never_exit_decodes_as_fast_as_stock_generate(benchmark, request, decoder, prompts, batch_size):
    """Both read the same prompts and write the same tokens, so that the ratio of times is that of tokens a second."""
    rows = prompts[: PROMPTS[batch_size]]

    def ours() -> Generations:
        return generate_encoded(decoder, rows, NeverExit(), max_new_tokens=NEW_TOKENS, batch_size=batch_size)

    for stock_tokens, text in zip(stock_generate(decoder, rows, batch_size), ours().tokens, strict=True):
        assert stock_tokens[: len(text)] == text.tolist()
    stock, never = in_rounds(
        lambda: seconds(lambda: stock_generate(decoder, rows, batch_size)),
        lambda: seconds(ours),
        rounds=ROUNDS[batch_size],
    )
    ratio = median(theirs / mine for theirs, mine in zip(stock, never, strict=True))
    benchmark.extra_info["never-exit / stock, tokens a second"] = ratio
    report(request, f"never-exit / stock generate, tokens a second, batch {batch_size}: {ratio:.3f} (at least 1.0)")
    benchmark.pedantic(ours, rounds=3)
    assert ratio >= 1.0


@pytest.mark.parametrize("batch_size", sorted(PROMPTS))
def test_a_static_exit_is_as_fast_as_its_layers_allow(benchmark, request, decoder, prompts, batch_size):
    """Compare with a model that has only the layers below the exit, and the same head.

    Prompts run at full depth, so that it is the time after them that is compared.
    """
    rows, half, short = prompts[: PROMPTS[batch_size]], StaticRule(decoder.exit_layers[0]), first_half(decoder)

    def decoding(model: MultiExitDecoder, rule) -> float:
        options = {"max_new_tokens": NEW_TOKENS, "batch_size": batch_size, "end_at_eos": False}
        return generate_encoded(model, rows, rule, **options).decode_seconds

    full, real, allowed = in_rounds(
        lambda: decoding(decoder, NeverExit()), lambda: decoding(decoder, half), lambda: decoding(short, NeverExit())
    )
    ratio = median(shortest / static for shortest, static in zip(allowed, real, strict=True))
    speed_up = median(deep / static for deep, static in zip(full, real, strict=True))
    benchmark.extra_info["real / allowed speed-up"] = ratio
    report(
        request,
        f"static exit at layer {half.layer} of {decoder.num_layers}, batch {batch_size}: decoding {speed_up:.2f} times "
        f"as fast as full depth, real / allowed speed-up {ratio:.3f} (at least 0.90)",
    )
    benchmark.pedantic(decoding, args=(decoder, half), rounds=3)
    assert ratio >= 0.90
