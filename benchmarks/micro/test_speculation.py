"""Self-speculative decoding against full depth by the clock, one draft layer after the other: won or lost."""

import os
from statistics import median

import pytest
from conftest import in_rounds, report

from baselines.layerskip import LayerSkip
from benchmarks.tasks.loader import load_text_task
from consistentee.data.prompts import TextTask
from consistentee.engine.generate import generate_encoded
from consistentee.engine.speculation import SpeculativeGenerations, speculate_encoded
from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import NeverExit
from consistentee.training.recipe import TokenRecipe

PROMPTS = 3
NEW_TOKENS = 32
ROUNDS = 3
RECIPE = TokenRecipe(max_rows=200, max_prompt_tokens=128, max_new_tokens=NEW_TOKENS, exit_steps=60)


@pytest.fixture(scope="session")
def texts() -> TextTask:
    """Alpaca where there is a folder of data, and newspaper sentences from a package elsewhere."""
    data = os.environ.get("CONSISTENTEE_DATA")
    return load_text_task("alpaca", data) if data else load_text_task("nyt-continuation")


@pytest.fixture(scope="session")
def drafting(texts) -> MultiExitDecoder:
    """smollm2-135m with exits trained on 200 rows, which takes a minute or two."""
    try:
        decoder = MultiExitDecoder.from_backbone("smollm2-135m")
    except UserError as error:
        pytest.skip(str(error))
    return LayerSkip().fit(decoder, texts, RECIPE)


def test_drafting_against_full_depth(request, drafting, texts):
    """Texts must be the full model's; whether drafts pay is reported, and has no bound: a lost race is a result too."""
    prompts = drafting.encode(texts.test.prompts[:PROMPTS], max_tokens=128)
    full = generate_encoded(drafting, prompts, NeverExit(), max_new_tokens=NEW_TOKENS, batch_size=1)
    written: dict[int, SpeculativeGenerations] = {}

    def draft(layer: int) -> float:
        written[layer] = speculate_encoded(drafting, prompts, draft_layer=layer, max_new_tokens=NEW_TOKENS)
        return written[layer].decode_seconds

    def deep() -> float:
        return generate_encoded(drafting, prompts, NeverExit(), max_new_tokens=NEW_TOKENS, batch_size=1).decode_seconds

    layers = drafting.exit_layers[:-1]
    at_full_depth, *drafted = in_rounds(deep, *(lambda layer=layer: draft(layer) for layer in layers), rounds=ROUNDS)
    for layer, times in zip(layers, drafted, strict=True):
        assert written[layer].texts == full.texts
        assert sum(written[layer].drafted) > 0
        ratio = median(theirs / ours for theirs, ours in zip(at_full_depth, times, strict=True))
        report(
            request,
            f"drafting at layer {layer} of {drafting.num_layers}: {written[layer].acceptance_rate:.0%} of "
            f"{sum(written[layer].drafted)} drafted tokens accepted, {ratio:.2f} times as fast as full depth",
        )
