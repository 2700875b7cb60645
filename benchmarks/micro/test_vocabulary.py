"""What a confidence costs on the whole vocabulary and on a few candidates, in seconds of one CPU core."""

import time
from collections.abc import Callable
from statistics import median

import pytest
import torch
from conftest import in_rounds, report
from torch import Tensor

from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule, ThresholdRule
from consistentee.rules.signals import margin
from consistentee.rules.vocabulary import prune_vocabulary
from consistentee.traces.token_view import TokenView

CANDIDATES = 256
REPEATS = 3


@pytest.fixture(scope="module")
def decoder() -> MultiExitDecoder:
    """smollm2-135m with five untrained exits."""
    try:
        return MultiExitDecoder.from_backbone("smollm2-135m").eval()
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("rows", [1, 8])
def test_a_confidence_over_candidates_is_cheap(benchmark, request, decoder, rows):
    """CALM's margin at four exits of a token that does not leave, and its parts; a layer stands beside them."""
    hidden = torch.randn(rows, 1, decoder.width, generator=torch.Generator().manual_seed(0))
    whole = ThresholdRule(margin, 2.0, "above")  # no margin is above 2
    pruned = prune_vocabulary(whole, CANDIDATES)
    early = decoder.exit_layers[:-1]
    asked = {
        "first exit, whole": lambda: _ask(decoder, hidden, whole, early[:1]),
        "first exit, pruned": lambda: _ask(decoder, hidden, pruned, early[:1]),
        "whole": lambda: _ask(decoder, hidden, whole, early),
        "pruned": lambda: _ask(decoder, hidden, pruned, early),
    }
    times = dict(zip(asked, map(median, in_rounds(*map(_on_the_cpu, asked.values()))), strict=True))
    later_whole, later_pruned = (
        (times[name] - times[f"first exit, {name}"]) / (len(early) - 1) for name in ("whole", "pruned")
    )
    report(
        request,
        f"margin of {rows} rows, {CANDIDATES} of {decoder.stepper.vocabulary} tokens: a later exit costs "
        f"{1e3 * later_pruned:.2f} ms against {1e3 * later_whole:.2f} ms of CPU time, the first "
        f"{1e3 * times['first exit, pruned']:.2f} against {1e3 * times['first exit, whole']:.2f}, all {len(early)} "
        f"{times['whole'] / times['pruned']:.1f} times less",
    )
    benchmark.pedantic(asked["pruned"], rounds=3)
    assert later_pruned < later_whole / 4


@torch.inference_mode()
def _ask(decoder: MultiExitDecoder, hidden: Tensor, rule: ExitRule, layers: tuple[int, ...]) -> None:
    state = rule.start(len(hidden), decoder.num_layers)
    for layer in layers:
        rule.should_exit(TokenView(decoder, layer, hidden, 1, [0] * len(hidden)), state)


def _on_the_cpu(run: Callable[[], None]) -> Callable[[], float]:
    def seconds() -> float:
        start = time.process_time()
        for _ in range(REPEATS):
            run()
        return (time.process_time() - start) / REPEATS

    return seconds
