"""The parts of a cell of generation: selection on validation prompts, kept texts, counts by position, the clock."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from comparing import written

from baselines.layerskip import LayerSkip
from baselines.references import TokenFull, TokenStatic
from baselines.stock_drafts import AssistantEarlyExit, PromptLookup
from benchmarks.kinds import text_evaluation
from benchmarks.kinds.generation import Generation
from benchmarks.kinds.text_evaluation import PromptDecoder, drafted_knobs, read_references, replay_knobs
from benchmarks.measure.clock import stock_times
from benchmarks.specs.base import DecodingTimingSpec, Regrouped
from benchmarks.specs.suites import expand, load_suite
from benchmarks.testing.tiny import random_prompts
from consistentee import Generations, NeverExit, PromptSplit, TokenMethod, generate
from consistentee.traces.token_trace import encode_rows


def prompts_of(count: int = 4, seed: int = 0) -> PromptSplit:
    texts = random_prompts(count, seed=seed, longest=6)
    return PromptSplit("test", texts, [" ba be bi"] * count)


def decoder_of(model, method=None, store=None, tokens: int = 6) -> PromptDecoder:
    return PromptDecoder(model, method or TokenStatic(), max_new_tokens=tokens, batch_size=4, store=store)


def equal(first: Generations, *others: Generations) -> bool:
    whole = [(written(one), one.texts, one.ended_by, one.prompt_tokens) for one in (first, *others)]
    return all(one == whole[0] for one in whole)


def test_a_replay_gives_the_answer_of_each_exit_after_the_full_models_tokens(model):
    prompts = prompts_of()
    full = decoder_of(model).full(prompts)
    points = {p.knob: p for p in replay_knobs(decoder_of(model), prompts)}
    assert {knob: p.layers for knob, p in points.items()} == {k: k for k in (1.0, 2.0, 3.0, 4.0)}
    assert points[4.0].agreement == 1.0
    agreed = []
    for prompt, tokens in zip(model.encode(prompts.prompts), full.tokens, strict=True):
        row = torch.tensor([[*prompt, *tokens.tolist()]])
        hidden = model.exit_states(row, torch.ones_like(row, dtype=torch.bool)).answer_states[0, :, 0]
        said = model.logits(1, hidden).argmax(dim=-1)
        places = range(len(prompt), len(prompt) + len(tokens) - 1)
        agreed += [bool(said[place] == row[0, place + 1]) for place in places]
    assert points[1.0].agreement == pytest.approx(np.mean(agreed))


def test_drafts_are_chosen_recorded_and_run(tiny_decoder):
    model, prompts = tiny_decoder("llama"), prompts_of(2)
    points = {point.knob: point for point in drafted_knobs(decoder_of(model, LayerSkip()), prompts)}
    assert all(point.agreement == 1 for point in points.values())
    assert list(points) == [1.0, 2.0, 3.0], "at 4 nothing is drafted"
    for knob, point in points.items():
        length, threshold = point.draft
        assert (length, threshold) == (model.description.drafts[knob][0], 0)
        drafted = LayerSkip(draft_tokens=length).generate(model, prompts.prompts, knob, max_new_tokens=6)
        assert point.layers == drafted.average_layers
    lookups = drafted_knobs(decoder_of(tiny_decoder("llama"), PromptLookup()), prompts)
    assert [(point.knob, point.draft) for point in lookups] == [(10, None), (3, None)], "nothing is to be chosen"
    (stock,) = drafted_knobs(decoder_of(tiny_decoder("gpt2"), AssistantEarlyExit()), prompts)
    assert (stock.knob, stock.layers) == (4, 4), "transformers runs all layers of GPT-2"


def test_references_are_judged_where_the_rule_lets_them_leave(model):
    split = PromptSplit("test", ["ba be", "bi bo bu", "de"], [" da di do", " du", ""])
    tokens, (full, static) = read_references(decoder_of(model, tokens=4), split, [2.0])
    rows = encode_rows(model, split, max_prompt_tokens=None, max_new_tokens=4)
    assert tokens.tolist() == [len(response) - 1 for _, response in rows]
    for losses, layer in ((full, 4), (static, 2)):
        expected = []
        for prompt, response in rows:
            row = torch.tensor([[*prompt, *response]])
            hidden = model.exit_states(row, torch.ones_like(row, dtype=torch.bool)).answer_states[0]
            said = model.logits(layer, hidden[:, model.exit_layers.index(layer)]).log_softmax(dim=-1).detach()
            places = range(len(prompt), len(prompt) + len(response) - 1)
            expected.append(-sum(float(said[place, row[0, place + 1]]) for place in places))
        assert losses == pytest.approx(expected, abs=1e-4)


def test_stock_generate_is_timed_on_the_tokens_that_it_writes(model):
    rows = model.encode(random_prompts(3, seed=5))
    full = generate(model, random_prompts(3, seed=5), NeverExit(), max_new_tokens=7)
    times = stock_times(model, rows, 7)
    assert times.units == full.decoded_tokens
    assert min(times.prefill_seconds, times.seconds, times.head_seconds) > 0
    assert times.layer_calls == 4 * times.units


def test_a_batch_in_step_and_more_prompts_under_way_are_timed(model, monkeypatch):
    asked = []
    generate_by_method = TokenMethod.generate

    def noted(self, model, prompts, knob, **options):
        asked.append((options["batch_size"], options.get("in_flight")))
        return generate_by_method(self, model, prompts, knob, **options)

    monkeypatch.setattr(TokenMethod, "generate", noted)
    setting = Regrouped(batch_size=2, in_flight=5)
    protocol = DecodingTimingSpec(batch_sizes=(2, 5), regrouped=(setting,))
    in_step = Generation().time_method(TokenStatic(), model, 2.0, max_new_tokens=4)
    assert Generation().regroupings(TokenStatic(), protocol) == (setting,)
    regrouping = Generation().time_method(TokenStatic(), model, 2.0, max_new_tokens=4, **dict(setting))
    prompts = random_prompts(5, seed=5)
    times = [in_step(prompts), regrouping(prompts)]
    assert asked == [(5, None), (2, 5)]
    for one in times:
        assert one.layer_calls == 2 * times[0].units > 0
        assert (len(one.completed), one.head_seconds) == (5, None)
    assert Generation().regroupings(LayerSkip(), protocol) == ()


def test_the_full_model_is_timed_as_the_stock_model(model):
    by_method = {spec.method: spec for spec in expand(load_suite("quick-decoding"))}
    full, static = by_method["token-full"], by_method["token-static"]
    other = copy.copy(model)
    assert Generation().stock_model([static, full], [other, model]) is model, "whichever was named first"
    assert Generation().stock_model([static, static], [other, model]) is other


def test_models_on_one_backbone_share_it(model, tmp_path: Path):
    model.save_pretrained(tmp_path)
    first = Generation().load_model(tmp_path)
    second = Generation().load_model(tmp_path, [first])
    assert first.backbone is second.backbone
    prompts = random_prompts(2)
    assert equal(*(generate(m, prompts, TokenStatic().rule(m, 2.0), max_new_tokens=5) for m in (first, second, model)))


def test_full_texts_are_shared_by_methods_on_one_backbone(model, tmp_path: Path, monkeypatch):
    prompts = prompts_of()
    full = decoder_of(model, store=tmp_path).full(prompts)
    assert equal(full, generate(model, prompts.prompts, NeverExit(), max_new_tokens=6))
    decoder_of(model, store=tmp_path, tokens=5).full(prompts)
    decoder_of(model, store=tmp_path).full(prompts_of(seed=1))
    assert len(list(tmp_path.glob("texts-*.safetensors"))) == 3, "one for each length and all prompts"
    monkeypatch.setattr(text_evaluation, "generate", lambda *_, **__: pytest.fail("decoded again"))
    assert equal(decoder_of(model, TokenFull(), store=tmp_path).full(prompts), full)
