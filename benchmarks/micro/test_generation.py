"""Decoding without exits against stock ``generate``."""

import pytest
from conftest import in_rounds, ratio_of_rounds, report, smollm2

from benchmarks.measure.clock import stock_times
from consistentee.engine.generate import generate_encoded
from consistentee.rules.exit_rule import NeverExit

NEW_TOKENS = 32
ROUNDS = {1: 21, 8: 7}
"""Batch size, which is the number of prompts -> rounds: one row takes a second and is nearly all weights, so that a
ratio of 1 needs many of them."""


@pytest.mark.parametrize("batch_size", sorted(ROUNDS))
def test_never_exit_decodes_as_fast_as_stock_generate(request, task, batch_size):
    """Both write as many tokens, so that the ratio of times after the prompts is that of tokens a second."""
    decoder = smollm2()
    joined = [" ".join(task.test.texts[6 * i : 6 * i + 1 + i % 6]) for i in range(3, 3 + batch_size)]
    rows = decoder.encode(joined, max_tokens=128)

    def ours() -> float:
        options = {"max_new_tokens": NEW_TOKENS, "batch_size": batch_size, "end_at_eos": False}
        return generate_encoded(decoder, rows, NeverExit(), **options).decode_seconds

    stock, never = in_rounds(lambda: stock_times(decoder, rows, NEW_TOKENS).seconds, ours, rounds=ROUNDS[batch_size])
    ratio = ratio_of_rounds(stock, never)
    report(request, f"never-exit / stock generate, tokens a second, batch {batch_size}: {ratio:.3f} (at least 1.0)")
    assert ratio >= 1.0
