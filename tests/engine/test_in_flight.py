"""Rows that are regrouped while they are decoded: nothing changes but the company that a layer runs in."""

from statistics import mean
from types import SimpleNamespace

import pytest
import torch
from conftest import random_prompts
from hypothesis import given, strategies as st

from baselines.calm import DecayingThresholdRule
from baselines.references import RandomRule
from benchmarks.testing.watching import counted_calls
from consistentee.engine import cache as cache_module
from consistentee.engine.generate import Generations, generate, generate_encoded
from consistentee.engine.in_flight import InFlight
from consistentee.engine.sampling import Sampling
from consistentee.engine.token_batch import TokenBatch
from consistentee.engine.token_decoder import TokenDecoder, Writing
from consistentee.engine.transcript import Endings, Transcript
from consistentee.errors import UserError
from consistentee.rules.exit_rule import ConsecutiveRule, ExitRule, NeverExit, SameAnswerRule
from consistentee.rules.schedules import ScheduledRule
from consistentee.signals import margin

PROMPTS = random_prompts(11, seed=3)
NEW_TOKENS = 8
MIXED = RandomRule(2.5, seed=1)
IN_FLIGHT = {"in_flight": 5, "batch_size": 2}


class HistoryRule(ExitRule):
    """Leaves by what the states at all exits so far add up to."""

    reads_history = True

    def should_exit(self, view, state):
        return view.history.sum(dim=(1, 2)) > 0


RULES = {
    "random": MIXED,
    "never": NeverExit(),
    "state of the rule": ConsecutiveRule(SameAnswerRule(), 1),
    "falling threshold": DecayingThresholdRule(margin, 0.1, 4.0, NEW_TOKENS, 32),
    "states before": DecayingThresholdRule(None, 0.5, 0.0, NEW_TOKENS, 32),
    "history": HistoryRule(),
    "schedule": ScheduledRule([4, 3, 1, 2, 4, 1]),
}


@pytest.fixture(scope="module")
def model(tiny_decoders):
    return tiny_decoders.model("llama")


def written(out: Generations) -> list[tuple[list[int], list[int], list[int]]]:
    """Return all that is said of every token."""
    rows = zip(out.tokens, out.exit_layers, out.late_layers, strict=True)
    return [(tokens.tolist(), exits.tolist(), late.tolist()) for tokens, exits, late in rows]


class TestTexts:
    @pytest.mark.parametrize("kv", ["propagate", "exact"])
    @pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
    def test_they_are_those_of_every_row_alone(self, model, rule, kv):
        options = {"max_new_tokens": NEW_TOKENS, "kv": kv}
        expected = written(generate(model, PROMPTS, rule, **options, batch_size=1))
        assert written(generate(model, PROMPTS, rule, **options, **IN_FLIGHT)) == expected

    def test_drawn_ones_too(self, model):
        options = {"max_new_tokens": NEW_TOKENS, "sampling": Sampling(0.8, seed=4)}
        expected = written(generate(model, PROMPTS, MIXED, **options, batch_size=1))
        assert written(generate(model, PROMPTS, MIXED, **options, **IN_FLIGHT)) == expected

    def test_a_slot_holds_nothing_of_the_row_before(self, model, monkeypatch):
        """Unwritten memory, and whatever a row leaves behind, holds NaN here, which would be in all that follows."""
        expected = generate(model, PROMPTS, MIXED, max_new_tokens=NEW_TOKENS, **IN_FLIGHT)
        nothing, free = torch.empty, TokenBatch.free

        def poisoned(*shape, **options):
            memory = nothing(*shape, **options)
            return memory.fill_(torch.nan) if memory.is_floating_point() else memory

        def leave_poison(self, numbers):
            for stored in self.cache.layers:
                stored[numbers] = torch.nan
            free(self, numbers)

        monkeypatch.setattr(torch, "empty", poisoned)
        monkeypatch.setattr(TokenBatch, "free", leave_poison)
        assert written(generate(model, PROMPTS, MIXED, max_new_tokens=NEW_TOKENS, **IN_FLIGHT)) == written(expected)


def kept_of(cache, row: int) -> list[torch.Tensor]:
    """Return the keys and values that every layer has of a row."""
    return [stored[row, :, :end].clone() for stored, end in zip(cache.layers, cache.ledger.stored[:, row], strict=True)]


def alone(model, prompt, rule, endings: Endings, kv: str) -> tuple[Transcript, list[torch.Tensor]]:
    """Write behind one prompt, token by token, without any company."""
    transcript = Transcript(0, model.decode, endings, prompt=prompt)
    decoder = TokenDecoder(model, [transcript], Writing(rule, endings.max_new_tokens, 1, kv))
    transcript.add(decoder.prefill()[0], model.num_layers)
    while transcript.ended_by is None:
        (token,), (layer,) = decoder.step()
        transcript.add(token, layer)
    return transcript, kept_of(decoder.batch.cache, 0)


def note_what_is_kept(engine: InFlight) -> dict[int, list[torch.Tensor]]:
    """Return a table that the engine fills, with what the cache holds of every row when it ends."""
    kept, end = {}, engine.texts.end

    def end_and_note(slots):
        kept.update(
            {
                text.row: kept_of(engine.slots.cache, slot)
                for slot, text in zip(slots, engine.texts.of(slots), strict=True)
            }
        )
        end(slots)

    engine.texts.end = end_and_note
    return kept


SCHEDULES = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.integers(1, 12), min_size=1, max_size=7),
        "new_tokens": st.integers(1, 7),
        "ends": st.sets(st.integers(0, 40), max_size=6),
        "mean_layer": st.floats(1, 4),
        "seed": st.integers(0, 999),
        "batch_size": st.integers(1, 4),
        "more_in_flight": st.integers(0, 4),
        "kv": st.sampled_from(["propagate", "exact"]),
    }
)


@given(SCHEDULES)
def test_any_schedule_is_as_good_as_no_company(model, plan):
    """Hold tokens, exits and cache of a random schedule against every row's alone."""
    generator = torch.Generator().manual_seed(plan["seed"])
    prompts = [torch.randint(5, 40, (length,), generator=generator).tolist() for length in plan["lengths"]]
    endings = Endings(frozenset(plan["ends"]), (), plan["new_tokens"])
    rule = RandomRule(plan["mean_layer"], plan["seed"], model.exit_layers)
    transcripts = [Transcript(row, model.decode, endings, prompt=prompt) for row, prompt in enumerate(prompts)]
    writing = Writing(rule, plan["new_tokens"], plan["batch_size"], plan["kv"])
    engine = InFlight(model, transcripts, writing, plan["batch_size"] + plan["more_in_flight"])
    kept = note_what_is_kept(engine)
    engine.run()
    assert len(engine.texts.free) == len(engine.slots)
    assert not engine.slots.cache.ledger.lengths.any()
    for row, (prompt, transcript) in enumerate(zip(prompts, transcripts, strict=True)):
        expected, cache = alone(model, prompt, rule, endings, plan["kv"])
        assert (transcript.tokens, transcript.exit_layers) == (expected.tokens, expected.exit_layers)
        assert transcript.ended_by == expected.ended_by
        torch.testing.assert_close(kept[row], cache, rtol=1e-4, atol=1e-4)


class TestCompany:
    def test_batches_are_full_though_tokens_leave_everywhere(self, model):
        def rows_in_a_call(**options) -> tuple[float, float]:
            """Return how many rows a layer and the LM head have on average."""
            heads = []
            hook = model.backbone.lm_head.register_forward_hook(lambda _, states, __: heads.append(len(states[0])))
            with counted_calls(model) as calls:
                generate_encoded(
                    model,
                    model.encode(PROMPTS * 2),
                    MIXED,
                    max_new_tokens=20,
                    batch_size=4,
                    end_at_eos=False,
                    **options,
                )
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
        options = {"max_new_tokens": 20, "in_flight": 9, "batch_size": 2}

        monkeypatch.setattr(cache_module.psutil, "virtual_memory", lambda: SimpleNamespace(total=1000))
        with pytest.raises(UserError, match=r"keys and values of 9 rows of up to .* ask for fewer rows at a time"):
            generate(model, PROMPTS, MIXED, **options)

    def test_a_rule_that_reads_one_step_for_all(self, model):
        class OneStep(ExitRule):
            def should_exit(self, view, state):
                return torch.full((view.rows,), view.step > 2)

        with pytest.raises(UserError, match=r"let it read view\.steps"):
            generate(model, PROMPTS, OneStep(), **IN_FLIGHT)

    @pytest.mark.parametrize("prompts", [[], PROMPTS[:1]])
    def test_more_in_flight_than_prompts(self, model, prompts):
        out = generate(model, prompts, MIXED, max_new_tokens=4, in_flight=50)
        assert written(out) == written(generate(model, prompts, MIXED, max_new_tokens=4))
        assert generate(model, prompts, MIXED, max_new_tokens=0, in_flight=50).texts == [""] * len(prompts)
