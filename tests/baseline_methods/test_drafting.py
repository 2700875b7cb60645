"""Methods that draft: branches, transformers' own drafts, skipped sublayers; texts, and counts that hooks confirm."""

from collections import Counter

import pytest
import torch
from comparing import tokens_of
from torch import nn

from baselines.kangaroo import Kangaroo
from baselines.stock_drafts import AssistantEarlyExit, PromptLookup
from baselines.swift import SWIFT, LayerSetSearch, sublayers_at
from benchmarks.measure.flops import DecodingFlops
from benchmarks.testing.tiny import DECODER_FAMILIES, make_text_task, random_prompts
from benchmarks.testing.watching import stock_tokens
from consistentee import DraftedTexts, NeverExit, Sampling, StaticRule, TokenRecipe, UserError, generate
from consistentee.engine.speculation import generate_speculatively
from consistentee.models.decoder.branches import BranchSpec, SkippedSublayers
from consistentee.models.decoder.multi_exit_decoder import DecoderStack

PROMPTS = random_prompts(4, seed=5)
NEW_TOKENS = 10


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_texts_of_a_stack_are_those_of_a_stock_model_of_its_layers(tiny_decoder, family):
    model = tiny_decoder(family)
    model.add_branch(2, BranchSpec(copied_layer=4))
    written = [
        generate(DecoderStack(model, 2), PROMPTS, StaticRule(2), max_new_tokens=NEW_TOKENS, **way)
        for way in ({"batch_size": 1}, {"batch_size": 5}, {"batch_size": 2, "in_flight": 3})
    ]
    stock = model.backbone.model if family == "llama" else model.backbone.transformer
    layers, norm = ("layers", "norm") if family == "llama" else ("h", "ln_f")
    setattr(stock, layers, nn.ModuleList([*getattr(stock, layers)[:2], model.branch(2).layer]))
    setattr(stock, norm, model.branch(2).norm)
    model.backbone.config.num_hidden_layers = 3
    expected = [stock_tokens(model, prompt, NEW_TOKENS) for prompt in model.encode(PROMPTS)]
    for out in written:
        assert tokens_of(out) == expected
        assert torch.cat(out.exit_layers).unique().tolist() == [3]


def test_texts_equal_the_full_models(tiny_decoder):
    model = tiny_decoder("llama")
    full = generate(model, PROMPTS, NeverExit(), max_new_tokens=NEW_TOKENS)
    for method in (PromptLookup(), AssistantEarlyExit()):
        for knob in method.knob_values(model):
            written = method.generate(model, PROMPTS, knob, max_new_tokens=NEW_TOKENS, batch_size=3)
            assert tokens_of(written) == tokens_of(full)
            assert (written.texts, written.ended_by) == (full.texts, full.ended_by)
    stop = full.texts[0][2:5]
    stopped = generate(model, PROMPTS, NeverExit(), max_new_tokens=NEW_TOKENS, stop=[stop])
    assert PromptLookup().generate(model, PROMPTS, 3.0, max_new_tokens=NEW_TOKENS, stop=[stop]).texts == stopped.texts


@pytest.mark.parametrize(("method", "knob", "draft_layer"), [(PromptLookup(), 3.0, 0), (AssistantEarlyExit(), 2.0, 2)])
def test_stock_drafts_count_their_layers(tiny_decoder, method, knob, draft_layer):
    model = tiny_decoder("llama")
    calls = Counter[int]()
    for layer in range(1, 5):
        model.stepper.layer_module(layer).register_forward_hook(lambda *_, layer=layer: calls.update([layer]))
    written = method.generate(model, PROMPTS[:1], knob, max_new_tokens=NEW_TOKENS)
    assert written.passes == [calls[4] - 1], "the first pass reads the prompt"
    assert written.drafted[0] > 0
    if draft_layer:
        assert written.drafted == [calls[1] - calls[4]], "layer 1 runs in every pass, and for every drafted token"
    assert written.layer_calls == calls.total() - 4
    assert written.accepted[0] == len(written.tokens[0]) - calls[4]
    flops = DecodingFlops(model)
    read, columns = written.drafted[0] + written.passes[0], written.prompt_tokens[0] + len(written.tokens[0]) / 2
    layers = sum(layer(read, round(read * columns)) for layer in flops.layers)
    again = sum(layer(written.drafted[0], round(written.drafted[0] * columns)) for layer in flops.layers[:draft_layer])
    heads = read + (written.drafted[0] if draft_layer else 0)
    assert flops.speculating(written) == layers + again + heads * flops.head


def test_drafts_refuse_sampling_and_rows_in_flight(tiny_decoder):
    assert AssistantEarlyExit().knob_values(tiny_decoder("gpt2")) == (4.0,)
    model = tiny_decoder("llama")
    for method, knob in ((PromptLookup(), 3.0), (AssistantEarlyExit(), 2.0), (Kangaroo(), 2.0)):
        for option in ({"sampling": Sampling()}, {"in_flight": 4}):
            with pytest.raises(UserError, match=f"takes no {next(iter(option))}; {method.knob.name}"):
                method.generate(model, PROMPTS, knob, **option)
    assert PromptLookup().generate(model, PROMPTS, 0.0, sampling=Sampling(), max_new_tokens=2).decoded_tokens == 4
    assert torch.equal(
        PromptLookup().generate(model, PROMPTS[:1], 3.0, max_new_tokens=1).tokens[0],
        generate(model, PROMPTS[:1], NeverExit(), max_new_tokens=1).tokens[0],
    )


NOTHING = SkippedSublayers((), ())
SOME = SkippedSublayers((2,), (2, 3))
QUICK = {"search_prompts": 2, "search_tokens": 8, "max_sets": 30}


@pytest.fixture(scope="module")
def fitted(tiny_decoders):
    return SWIFT(**QUICK).fit(tiny_decoders.model("llama"), make_text_task(), TokenRecipe())


class TestSublayers:
    @pytest.mark.parametrize("family", DECODER_FAMILIES)
    def test_attention_and_mlp_sublayers_equal_the_whole_layer(self, tiny_decoder, family):
        model = tiny_decoder(family)
        tokens = torch.arange(4, 18).view(2, 7)
        hidden, context = model.stepper.begin(tokens, torch.ones_like(tokens, dtype=torch.bool))
        for layer in range(1, 5):
            whole = model.stepper.step(layer, hidden, context)
            in_parts = model.stepper.feed_forward(layer, model.stepper.attend(layer, hidden, context))
            torch.testing.assert_close(in_parts, whole)
            hidden = whole

    def test_remaining_layers_are_counted_by_weights(self, model):
        assert NOTHING.layers_left(model.stepper) == 4
        share = model.stepper.mlp_share(2)
        assert share == pytest.approx((3 * 32 * 48 + 32) / (3 * 32 * 48 + 32 + 2 * 32 * 32 + 2 * 32 * 16 + 32))
        assert SOME.layers_left(model.stepper) == pytest.approx(3 - share)
        assert len(SOME) == 3

    def test_unknown_sublayers_are_refused(self, model):
        with pytest.raises(UserError, match="layer 5 has no sublayers"):
            generate_speculatively(model, PROMPTS[:1], skipped=SkippedSublayers((), (5,)))
        with pytest.raises(UserError, match="not both"):
            generate_speculatively(model, PROMPTS[:1], draft_layer=2, skipped=SOME)

    @pytest.mark.parametrize(("family", "attention"), [("llama", "eager"), ("llama", "sdpa"), ("gpt2", "sdpa")])
    def test_texts_equal_the_full_models_whatever_is_skipped(self, tiny_decoder, family, attention):
        model = tiny_decoder(family)
        model.backbone.set_attn_implementation(attention)
        full = generate(model, PROMPTS, NeverExit(), max_new_tokens=NEW_TOKENS)
        for skipped, threshold in ((SOME, 0.0), (SkippedSublayers((1, 4), (3,)), 0.3)):
            options = {"draft_tokens": 3, "threshold": threshold, "max_new_tokens": NEW_TOKENS}
            written = generate_speculatively(model, PROMPTS, skipped=skipped, **options)
            assert tokens_of(written) == tokens_of(full)
            assert sum(written.drafted) > 0
        endless = random_prompts(4, seed=3)[:2]  # no draft is cut by the end of a text
        written = generate_speculatively(model, endless, skipped=NOTHING, draft_tokens=3, max_new_tokens=8)
        assert written.acceptance_rate == 1.0
        assert written.layer_calls == 4 * (sum(written.drafted) + sum(written.passes))


class TestSearch:
    @pytest.mark.parametrize(("share", "mlps"), [(0.5, (2, 4, 6, 8)), (0.45, (2, 4, 6))])
    def test_first_set_is_every_second_layer_at_a_half(self, share, mlps):
        first = LayerSetSearch(10, share, seed=0).first()
        assert sublayers_at(first) == SkippedSublayers((2, 4, 6, 8), mlps)

    def test_the_search_finds_the_best_set(self):
        """Skipping anything but three sublayers costs; their places are found, and nothing stops the search before."""
        free = SkippedSublayers((3, 5), (7,))
        tried = []

        def score(skipped):
            tried.append(skipped)
            hits = len({*skipped.attention} & {3, 5}) + len({*skipped.mlp} & {7})
            return hits / 3

        places, best = LayerSetSearch(8, 0.25, seed=1).run(score, SWIFT())
        assert (sublayers_at(places), best) == (free, 1.0)
        assert 1 < len(tried) == len(set(tried)) < 220, "no set is tried twice, and not all of them"
        assert all(len(skipped) == 3 and not {1, 8} & {*skipped.attention, *skipped.mlp} for skipped in tried)

    def test_the_search_stops_at_its_limits(self):
        def tries(score, **limits):
            tried = []
            LayerSetSearch(10, 0.4, seed=0).run(lambda skipped: tried.append(skipped) or score(tried), SWIFT(**limits))
            return len(tried)

        assert tries(lambda tried: 0.94) == 1, "the first set may be good enough"
        assert tries(lambda tried: 0.93, max_failures=7) == 8, "a score must be above, and better ones reset the count"
        assert tries(lambda tried: len(tried) / 1000, max_sets=60) == 60
        assert tries(lambda tried: float(len(tried) == 4) / 2, max_failures=7) == 4 + 7
        places, _ = LayerSetSearch(2, 0.45, seed=0).run(lambda skipped: 0.0, SWIFT())
        assert sublayers_at(places) == NOTHING, "two layers have nothing between them"

    def test_a_score_is_the_share_of_next_tokens_and_leaves_no_trace(self, model):
        texts = DraftedTexts(model, model.encode(PROMPTS[:3]), 8)
        scores = [texts.score(skipped) for skipped in (NOTHING, SOME, NOTHING, SOME)]
        assert scores[0] == scores[2] == 1.0
        assert 0 < scores[1] == scores[3] < 1

    def test_the_search_skips_the_share_of_the_knob(self, fitted):
        sublayers = {share: len(skipped) for share, skipped in fitted.description.skipped.items()}
        assert sublayers == {45: 1, 30: 1, 15: 0, 0: 0}

    def test_a_search_is_done_once_for_a_backbone(self, tiny_decoder, tmp_path, monkeypatch):
        recipe = TokenRecipe(store=tmp_path)
        first = SWIFT(**QUICK).fit(tiny_decoder(), make_text_task(), recipe).description.skipped
        monkeypatch.delattr(LayerSetSearch, "run")
        assert SWIFT(**QUICK).fit(tiny_decoder(), make_text_task(), recipe).description.skipped == first
        with pytest.raises(AttributeError, match="run"):
            SWIFT(search_tokens=7).fit(tiny_decoder(), make_text_task(), recipe)

    def test_swift_refuses_unknown_knobs_and_untrained_models(self, model, fitted):
        with pytest.raises(UserError, match="train it with swift"):
            SWIFT().generate(model, PROMPTS, 45.0)
        with pytest.raises(UserError, match="searches for 45, 30, 15, 0 %, not 20"):
            SWIFT().rule(fitted, 20.0)
