"""Rows that are regrouped while they are decoded: texts, exits and endings stay the same."""

from statistics import mean
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from comparing import written
from hypothesis import given, strategies as st

from baselines.references import RandomRule
from benchmarks.testing.tiny import random_prompts
from benchmarks.testing.watching import counted_calls
from consistentee.engine import cache as cache_module
from consistentee.engine.cache import Indices, Rows, RowTensors
from consistentee.engine.generate import generate, generate_encoded
from consistentee.errors import UserError
from consistentee.rules.exit_rule import ExitRule

PROMPTS = random_prompts(11, seed=3)
NEW_TOKENS = 8
MIXED = RandomRule(2.5, seed=1)
IN_FLIGHT = {"in_flight": 5, "batch_size": 2}


class HistoryRule(ExitRule):
    """Leaves by what the states at all exits so far add up to."""

    reads_history = True

    def should_exit(self, view, state):
        return view.history.sum(dim=(1, 2)) > 0


@pytest.fixture(scope="module")
def model(tiny_decoders):
    return tiny_decoders.model("llama")


class TestTexts:
    @pytest.mark.parametrize("kv", ["propagate", "exact"])
    def test_the_history_of_a_row_goes_with_it(self, model, kv):
        """The contract regroups the rules of all methods, none of which reads history."""
        options = {"max_new_tokens": NEW_TOKENS, "kv": kv}
        expected = written(generate(model, PROMPTS, HistoryRule(), **options, batch_size=1))
        assert written(generate(model, PROMPTS, HistoryRule(), **options, **IN_FLIGHT)) == expected


SCHEDULES = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.integers(1, 12), min_size=1, max_size=7),
        "new_tokens": st.integers(1, 7),
        "ends": st.sets(st.integers(4, 40), min_size=1, max_size=6),
        "mean_layer": st.floats(1, 4),
        "seed": st.integers(0, 999),
        "batch_size": st.integers(1, 4),
        "more_in_flight": st.integers(0, 4),
        "kv": st.sampled_from(["propagate", "exact"]),
    }
)


@given(SCHEDULES)
def test_texts_do_not_depend_on_the_schedule(model, plan):
    generator = torch.Generator().manual_seed(plan["seed"])
    prompts = [torch.randint(5, 40, (length,), generator=generator).tolist() for length in plan["lengths"]]
    rule = RandomRule(plan["mean_layer"], plan["seed"], model.exit_layers)
    options, size = {"max_new_tokens": plan["new_tokens"], "kv": plan["kv"]}, plan["batch_size"]
    with mock.patch.object(model.backbone.generation_config, "eos_token_id", sorted(plan["ends"])):
        alone = generate_encoded(model, prompts, rule, batch_size=1, **options)
        in_flight = size + plan["more_in_flight"]
        regrouped = generate_encoded(model, prompts, rule, batch_size=size, in_flight=in_flight, **options)
    assert written(regrouped) == written(alone)
    assert regrouped.ended_by == alone.ended_by


class TestBatches:
    def test_batches_are_full_though_tokens_leave_everywhere(self, model):
        def rows_in_a_call(**options) -> tuple[float, float]:
            """Return how many rows a layer and the LM head have on average."""
            heads = []
            hook = model.backbone.lm_head.register_forward_hook(lambda _, states, __: heads.append(len(states[0])))
            with counted_calls(model) as calls:
                options |= {"max_new_tokens": 20, "batch_size": 4, "end_at_eos": False}
                generate_encoded(model, model.encode(PROMPTS * 2), MIXED, **options)
            hook.remove()
            return mean([rows for rows, tokens in calls if tokens == 1]), mean(heads)

        in_step, in_flight = rows_in_a_call(), rows_in_a_call(in_flight=16)
        assert in_step[0] < 2.8
        assert in_flight[0] > 3.6
        assert in_flight[1] > 4.5, "the LM head reads two batches at once; prompts come one by one"

    def test_when_every_text_was_completed_is_noted(self, model):
        for options in ({"batch_size": 2}, IN_FLIGHT):
            out = generate(model, PROMPTS, MIXED, max_new_tokens=NEW_TOKENS, **options)
            assert len(out.completed_seconds) == len(PROMPTS)
            assert 0 < min(out.completed_seconds) < 0.9 * max(out.completed_seconds), "the last had to wait"
            assert max(out.completed_seconds) <= out.prefill_seconds + out.decode_seconds


class TestWhatGoesWrong:
    def test_a_cache_beyond_memory(self, model, monkeypatch):
        monkeypatch.setattr(cache_module.psutil, "virtual_memory", lambda: SimpleNamespace(total=1000))
        with pytest.raises(UserError, match=r"keys and values of 9 rows of up to .* ask for fewer rows at a time"):
            generate(model, PROMPTS, MIXED, max_new_tokens=20, in_flight=9, batch_size=2)


def test_tensors_of_all_rows_are_kept_without_a_copy_and_never_changed():
    """A rule may keep a tensor of its own in its state, or one whose rows share memory."""
    indices = Indices(torch.device("cpu"))
    kept, shared = RowTensors(4), torch.zeros(1).expand(4)
    kept.put(1, Rows(np.arange(4), indices), {"state": shared})
    assert kept.get(1, Rows(np.arange(4), indices))["state"] is shared
    kept.put(1, Rows(np.array([0, 3]), indices), {"state": torch.ones(2)})
    assert kept.get(1, Rows(np.arange(4), indices))["state"].tolist() == [1, 0, 0, 1]
    assert shared.tolist() == [0] * 4
    kept.keep(Rows(np.array([2, 3]), indices))
    assert kept.get(1, Rows(np.array([1]), indices))["state"].tolist() == [1]
    assert kept.get(2, Rows(np.array([1]), indices)) == {}
