"""SWIFT: sublayers left out of drafts, the search for them, and the full model's text whatever is skipped."""

import pytest
import torch
from comparing import tokens_of

from baselines.swift import SWIFT, LayerSetSearch, sublayers_at
from benchmarks.testing.tiny import DECODER_FAMILIES, make_text_task, random_prompts
from consistentee import DraftedTexts
from consistentee.backbones.decoders import DecoderStepper, LlamaStepper
from consistentee.engine.generate import generate
from consistentee.engine.speculation import generate_speculatively
from consistentee.errors import UserError
from consistentee.models.decoder.branches import SkippedSublayers
from consistentee.rules.exit_rule import NeverExit
from consistentee.training.recipe import TokenRecipe

PROMPTS = random_prompts(4, seed=3)
NEW_TOKENS = 8
NOTHING = SkippedSublayers((), ())
SOME = SkippedSublayers((2,), (2, 3))
QUICK = {"search_prompts": 2, "search_tokens": 8, "max_sets": 30}


@pytest.fixture(scope="module")
def model(tiny_decoders):
    return tiny_decoders.model("llama")


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

    def test_swift_refuses_a_family_without_separate_sublayers(self, tiny_decoder, monkeypatch):
        monkeypatch.setattr(LlamaStepper, "attend", DecoderStepper.attend)
        model = tiny_decoder()
        with pytest.raises(UserError, match="cannot be run apart"):
            SWIFT(**QUICK).fit(model, make_text_task(), TokenRecipe())

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
        written = generate_speculatively(model, PROMPTS[:2], skipped=NOTHING, draft_tokens=3, max_new_tokens=NEW_TOKENS)
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

        places, best = LayerSetSearch(8, 0.25, seed=1).run(score, SWIFT(max_sets=1000, max_failures=1000))
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
