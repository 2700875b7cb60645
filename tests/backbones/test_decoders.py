"""Layer-stepping of decoders: equal to the stock models, layer by layer, padding and caches included."""

import pytest
import torch
from tensors_by_hand import pad
from transformers import AutoModelForCausalLM, DynamicCache, Gemma2Config, MistralConfig, OPTConfig, Qwen2Config

from benchmarks.testing.tiny import DECODER_FAMILIES, random_prompts
from consistentee.backbones.decoders import decoder_stepper_for, positions_of
from consistentee.errors import UserError


def random_model(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(params=["left", "right"])
def batch(request, tiny_decoder):
    """Rows of 1 to 20 tokens: int64 tokens and padding mask."""
    return pad(tiny_decoder().encode(random_prompts(6, seed=2)), request.param)


@pytest.fixture(autouse=True)
def no_gradients():
    """Nothing is trained here."""
    with torch.no_grad():
        yield


@pytest.mark.parametrize("family", DECODER_FAMILIES)
class TestEveryFamily:
    def test_every_layer_its_keys_and_its_values_equal_the_stock_models(self, tiny_decoder, family, batch):
        model = tiny_decoder(family)
        tokens, mask = batch
        positions, cache = positions_of(mask), DynamicCache()
        inputs = {"attention_mask": mask.long(), "position_ids": positions, "past_key_values": cache}
        stock = model.backbone(tokens, **inputs, output_hidden_states=True)
        hidden, context = model.stepper.begin(tokens, mask)
        torch.testing.assert_close(hidden, stock.hidden_states[0])
        rotation = model.stepper.rotation(hidden, positions)
        for layer, cached in enumerate(cache.layers, start=1):
            (keys,), (values,) = model.stepper.keys_values([layer], stock.hidden_states[layer - 1], rotation)
            assert keys.shape == (*mask.shape[:1], model.stepper.kv_heads, mask.shape[1], model.stepper.head_dim)
            for mine, theirs in ((keys, cached.keys), (values, cached.values)):
                torch.testing.assert_close(mine.transpose(1, 2)[mask], theirs.transpose(1, 2)[mask])
            hidden = model.stepper.step(layer, hidden, context)
            if layer < 4:  # the stock model says of its last layer only what its norm leaves
                torch.testing.assert_close(hidden[mask], stock.hidden_states[layer][mask])
        state = model.stepper.final_norm(hidden)
        torch.testing.assert_close(state[mask], stock.hidden_states[4][mask])
        torch.testing.assert_close(model.backbone.lm_head(state)[mask], stock.logits[mask])


SMALL = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "max_position_embeddings": 64}
WINDOWS = {
    "mistral": lambda window: MistralConfig(**SMALL, sliding_window=window),
    "qwen2": lambda window: Qwen2Config(
        **SMALL, use_sliding_window=window is not None, sliding_window=window, max_window_layers=1
    ),
}


@pytest.mark.parametrize("family", sorted(WINDOWS))
def test_rows_end_where_a_sliding_window_would_hide_tokens(family):
    model = random_model(WINDOWS[family](8))
    stepper = decoder_stepper_for(model)
    assert stepper.position_limit == 8
    tokens = torch.arange(9).unsqueeze(0)
    with pytest.raises(UserError, match="9 tokens are more than the 8 "):
        stepper.begin(tokens, torch.ones_like(tokens, dtype=torch.bool))

    fits = tokens[:, :8]
    hidden, context = stepper.begin(fits, torch.ones_like(fits, dtype=torch.bool))
    for layer in (1, 2):
        hidden = stepper.step(layer, hidden, context)
    torch.testing.assert_close(model.lm_head(stepper.final_norm(hidden)), model(fits).logits)
    without = random_model(WINDOWS[family](None))
    without.load_state_dict(model.state_dict())
    assert decoder_stepper_for(without).position_limit == 64
    torch.testing.assert_close(without(fits).logits, model(fits).logits)
    assert not torch.allclose(without(tokens).logits, model(tokens).logits)  # one token more, and the window shows


def test_unsupported_architectures_are_named(tiny_backbone):
    config = OPTConfig(vocab_size=40, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4)
    supported = "decoders of architecture 'opt'; supported: gemma, gpt2, llama, mistral, qwen2, qwen3"
    with pytest.raises(UserError, match=supported):
        decoder_stepper_for(random_model(config))
    advice = r"'bert' is an encoder: .*train mcid --method consistentee-paper --backbone NAME"
    with pytest.raises(UserError, match=advice):
        decoder_stepper_for(AutoModelForCausalLM.from_pretrained(tiny_backbone("bert")))
    gemma2 = Gemma2Config(**SMALL, head_dim=8)
    with pytest.raises(UserError, match="'gemma2': exits are trained on logits without a soft cap; supported"):
        decoder_stepper_for(random_model(gemma2))
