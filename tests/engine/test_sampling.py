"""Drawing tokens: the distribution, and that a draw is a matter of seed, prompt and place alone."""

import pytest
import torch

from consistentee.engine.sampling import Sampling

LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0, -torch.inf])


def frequencies(sampling: Sampling, draws: int = 4000) -> torch.Tensor:
    drawn = sampling.choose(LOGITS.expand(draws, -1), range(draws), [3] * draws)
    return torch.bincount(drawn, minlength=len(LOGITS)) / draws


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature):
    expected = (LOGITS / temperature).softmax(dim=-1)
    torch.testing.assert_close(frequencies(Sampling(temperature)), expected, rtol=0, atol=0.03)
    assert frequencies(Sampling(temperature))[4] == 0, "what has no probability is never drawn"


def test_only_the_likeliest_are_left():
    expected = torch.tensor([0.0, 2.0, 1.0, -torch.inf, -torch.inf])
    expected[0] = -torch.inf
    for sampling in (Sampling(top_k=2), Sampling(top_p=0.8)):
        torch.testing.assert_close(frequencies(sampling), expected.softmax(dim=-1), rtol=0, atol=0.03)
    assert frequencies(Sampling(top_k=1))[1] == 1


def test_a_draw_depends_on_seed_prompt_and_step_alone():
    logits = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    keys = list(range(64))
    together = Sampling(seed=5).choose(logits, keys, [2] * 64)
    alone = [int(Sampling(seed=5).choose(logits[i : i + 1], [i], [2])) for i in keys]
    assert together.tolist() == alone
    assert together.tolist() != Sampling(seed=6).choose(logits, keys, [2] * 64).tolist()
    assert together.tolist() != Sampling(seed=5).choose(logits, keys, [3] * 64).tolist()
