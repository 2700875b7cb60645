"""Regrouping against what its layers allow and against stock ``generate``."""

from collections.abc import Callable
from statistics import median

import pytest
from conftest import in_rounds, ratio_of_rounds, report, smollm2
from numpy.random import default_rng

from baselines.references import RandomRule
from benchmarks.measure.clock import head_seconds, stock_times
from consistentee.engine.generate import Generations, generate_encoded
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder

ROWS = 32
BATCH = 8
NEW_TOKENS = 48
ROUNDS = 3


@pytest.fixture(scope="module")
def decoder() -> MultiExitDecoder:
    """smollm2-135m with five untrained exits."""
    return smollm2()


@pytest.fixture(scope="module")
def prompts(decoder) -> list[list[int]]:
    """Random tokens: time does not tell them from others; lengths are mixed."""
    numbers = default_rng(0)
    return [
        numbers.integers(100, decoder.stepper.vocabulary, length).tolist() for length in numbers.integers(16, 64, ROWS)
    ]


def test_regrouping_is_as_fast_as_its_layers_allow(request, decoder, prompts):
    """Allowed: the time of stock ``generate`` at the same batch, its layers cut to those that the tokens run."""
    rule = RandomRule(decoder.num_layers / 2, 0, decoder.exit_layers)
    written: dict[str, Generations] = {}

    def ours(name: str, **options) -> Callable[[], float]:
        def run() -> float:
            options_of_all = {"max_new_tokens": NEW_TOKENS, "end_at_eos": False}
            written[name] = generate_encoded(decoder, prompts, rule, **options_of_all, **options)
            return written[name].decode_seconds

        return run

    def stock(batch_size: int) -> float:
        starts = range(0, ROWS, batch_size)
        batches = [stock_times(decoder, prompts[start : start + batch_size], NEW_TOKENS) for start in starts]
        assert sum(batch.units for batch in batches) == ROWS * (NEW_TOKENS - 1)
        return sum(batch.seconds for batch in batches)

    contenders = {
        "stock generate, 8 at once": lambda: stock(BATCH),
        "stock generate, 32 at once": lambda: stock(ROWS),
        "LM head and embedding": lambda: head_seconds(decoder, BATCH, ROWS // BATCH * (NEW_TOKENS - 1)),
        "in step, batches of 8": ours("in step", batch_size=BATCH),
        "32 in flight, batches of 8": ours("regrouped", batch_size=BATCH, in_flight=ROWS),
    }
    taken = dict(zip(contenders, in_rounds(*contenders.values(), rounds=ROUNDS), strict=True))
    assert written["in step"].layer_calls == written["regrouped"].layer_calls
    average, tokens = written["regrouped"].average_layers, written["regrouped"].decoded_tokens
    lines = [f"{ROWS} prompts, {NEW_TOKENS} tokens, random exits at {average:.1f} layers on average"]
    for name, times in taken.items():
        pace = "" if "head" in name else f", {tokens / median(times):7.1f} tokens a second"
        lines.append(f"  {name:36s} {median(times):6.2f} s{pace}")
    rounds = zip(taken["stock generate, 8 at once"], taken["LM head and embedding"], strict=True)
    allowed = [head + (full - head) * average / decoder.num_layers for full, head in rounds]
    ratios = {name: ratio_of_rounds(allowed, taken[name]) for name in list(contenders)[-2:]}
    lines += [f"  {name}: real / allowed {ratio:.3f} (regrouped at least 0.90)" for name, ratio in ratios.items()]
    pace = ratio_of_rounds(taken["stock generate, 32 at once"], taken["32 in flight, batches of 8"])
    lines.append(f"  32 in flight, batches of 8 / stock at 32, tokens a second: {pace:.3f}")
    report(request, "\n".join(lines))
    assert ratios["32 in flight, batches of 8"] >= 0.90
