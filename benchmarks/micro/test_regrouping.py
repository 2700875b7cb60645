"""Regrouping against what its layers allow and against stock ``generate``."""

from collections.abc import Callable
from statistics import mean, median, quantiles

import pytest
import torch
from conftest import in_rounds, report
from numpy.random import default_rng
from torch import nn

from baselines.references import RandomRule
from benchmarks.measure.decoding_clock import head_seconds, stock_times
from benchmarks.testing.reference import counted_calls
from benchmarks.testing.watching import watched_calls
from consistentee.engine.generate import Generations, generate_encoded
from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import NeverExit

ROWS = 32
BATCH = 8
NEW_TOKENS = 48
ROUNDS = 3


@pytest.fixture(scope="module")
def decoder() -> MultiExitDecoder:
    """smollm2-135m with five untrained exits, and no token that ends a text."""
    try:
        decoder = MultiExitDecoder.from_backbone("smollm2-135m").eval()
    except UserError as error:
        pytest.skip(str(error))
    decoder.backbone.generation_config.eos_token_id = decoder.stepper.vocabulary
    return decoder


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

    def ours(name: str, rule=rule, **options) -> Callable[[], float]:
        def run() -> float:
            options_of_all = {"max_new_tokens": NEW_TOKENS, "end_at_eos": False}
            written[name] = generate_encoded(decoder, prompts, rule, **options_of_all, **options)
            return written[name].decode_seconds

        return run

    def stock(batch_size: int) -> float:
        starts = range(0, ROWS, batch_size)
        batches = [stock_times(decoder, prompts[start : start + batch_size], NEW_TOKENS) for start in starts]
        assert sum(batch.decoded_tokens for batch in batches) == ROWS * (NEW_TOKENS - 1)
        return sum(batch.decoding for batch in batches)

    contenders = {
        "stock generate, 8 at once": lambda: stock(BATCH),
        "stock generate, 32 at once": lambda: stock(ROWS),
        "LM head and embedding": lambda: head_seconds(decoder, BATCH, ROWS // BATCH * (NEW_TOKENS - 1)),
        "full depth in step, batches of 8": ours("full 8", NeverExit(), batch_size=BATCH),
        "full depth in step, batches of 32": ours("full 32", NeverExit(), batch_size=ROWS),
        "in step, batches of 8": ours("in step 8", batch_size=BATCH),
        "in step, batches of 32": ours("in step 32", batch_size=ROWS),
        "32 in flight, batches of 8": ours("regrouped 8", batch_size=BATCH, in_flight=ROWS),
        "32 in flight, batches of 16": ours("regrouped 16", batch_size=2 * BATCH, in_flight=ROWS),
    }
    taken = dict(zip(contenders, in_rounds(*contenders.values(), rounds=ROUNDS), strict=True))
    assert written["in step 8"].layer_calls == written["regrouped 8"].layer_calls
    share = written["regrouped 8"].average_layers / decoder.num_layers
    tokens = written["regrouped 8"].decoded_tokens
    lines = [f"{ROWS} prompts, {NEW_TOKENS} tokens, random exits at {share * decoder.num_layers:.1f} layers on average"]
    for name, times in taken.items():
        pace = "" if "head" in name else f", {tokens / median(times):7.1f} tokens a second"
        lines.append(f"  {name:36s} {median(times):6.2f} s{pace}")
    for name in ("in step 8", "regrouped 8", "regrouped 16"):
        completed = written[name].completed_seconds
        late = quantiles(completed, n=10)[-1]
        lines.append(f"  {name:36s} completed after {median(completed):.2f} s, p90 {late:.2f} s")
    ratios = {}
    for name in ("in step, batches of 8", "32 in flight, batches of 8"):
        rounds = zip(taken["stock generate, 8 at once"], taken["LM head and embedding"], taken[name], strict=True)
        ratios[name] = median((head + (full - head) * share) / real for full, head, real in rounds)
        lines.append(f"  {name}: real / allowed {ratios[name]:.3f} (regrouped at least 0.90)")
    for name in ("32 in flight, batches of 8", "full depth in step, batches of 32"):
        pairs = zip(taken["stock generate, 32 at once"], taken[name], strict=True)
        lines.append(f"  {name} / stock at 32, tokens a second: {median(a / b for a, b in pairs):.3f}")
    of_layers, of_head = rows_in_a_call(decoder, prompts, rule)
    lines.append(f"  rows in a call of a layer {of_layers:.2f}, of the LM head {of_head:.2f}")
    report(request, "\n".join(lines))
    assert ratios["32 in flight, batches of 8"] >= 0.90


def rows_in_a_call(decoder: MultiExitDecoder, prompts: list[list[int]], rule: RandomRule) -> tuple[float, float]:
    """Return how full the batches of the layers and of the LM head are, while 32 rows are in flight for 8."""
    heads: list[int] = []

    def count(_: nn.Module, __: object, logits: torch.Tensor) -> None:
        heads.append(len(logits))

    with counted_calls(decoder) as calls, watched_calls([(decoder.backbone.lm_head, count)]):
        generate_encoded(
            decoder, prompts, rule, max_new_tokens=NEW_TOKENS, batch_size=BATCH, in_flight=ROWS, end_at_eos=False
        )
    return mean(rows for rows, tokens in calls if tokens == 1), mean(heads)
