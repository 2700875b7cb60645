"""Suitability of stock decoders: readings of layers, saturation and drafts by hand; and the command."""

import json

import numpy as np
import pytest
import torch
from command_line import call
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from benchmarks.measure.suitability import GREEDY, best_draft, measure_suitability, saturation_layers
from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder

TEXTS = ["ba be bi bo bu da de di do", "fa fe fi fo fu ga ge gi go gu ha he"]


@pytest.fixture
def stock(tiny_decoder_backbone):
    """A tiny Llama whose exits are read as they are, and its tokenizer."""
    model = MultiExitDecoder.from_backbone(str(tiny_decoder_backbone("llama")))
    return model.backbone, model.tokenizer


def test_layers_are_read_through_the_final_norm_and_head(stock):
    model, tokenizer = stock
    found = measure_suitability(model, tokenizer, TEXTS, new_tokens=5)
    assert found.layers == 4
    lengths = [len(tokenizer(text)["input_ids"]) for text in TEXTS]
    assert found.tokens["reference"] == sum(length - length // 3 for length in lengths)
    tokens = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    prompt = tokens.shape[1] // 3
    states = model(tokens, output_hidden_states=True).hidden_states[1:-1]  # the last one is normed already
    logits = [*(model.lm_head(model.model.norm(state)) for state in states), model(tokens).logits]
    answers = torch.stack([each[0, prompt - 1 : -1].argmax(dim=-1) for each in logits])
    expected = (answers == answers[-1]).float().mean(dim=1)
    one = measure_suitability(model, tokenizer, TEXTS[:1], new_tokens=5).by_layer
    torch.testing.assert_close(torch.tensor(one[one.text == "reference"].agreement.to_numpy()).float(), expected)


def test_saturation_by_hand():
    agrees = np.array([[1, 0, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1]], dtype=bool)
    assert saturation_layers(agrees).tolist() == [3, 4, 2]
    assert saturation_layers(np.ones((4, 2), dtype=bool)).tolist() == [1, 1]


def test_the_cheapest_draft_by_hand():
    """Layer 1 of 10 is right on two of three tokens: drafts of 2 give 3 tokens for 3 + 9 layers and 3 heads."""
    agrees = np.zeros((10, 9), dtype=bool)
    agrees[0] = [True, True, False] * 3
    agrees[9] = True
    draft = best_draft([agrees], head_in_layers=0.5)
    assert (draft.exit_layer, draft.tokens) == (1, 2)
    assert draft.layers_per_token == pytest.approx((3 * 1 + 9) / 3)
    assert draft.cost == pytest.approx((12 + 3 * 0.5) / 3 / 10.5)


def test_a_random_model_is_unsuited(stock):
    found = measure_suitability(*stock, TEXTS, new_tokens=5)
    assert found.judgement.startswith("unsuited")
    assert found.by_layer.query("layer == 4").agreement.tolist() == [1, 1]


def test_a_family_without_a_stepper_can_be_read(stock):
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    config = GPTNeoXConfig(vocab_size=stock[0].config.vocab_size, **sizes)
    assert measure_suitability(GPTNeoXForCausalLM(config), stock[1], TEXTS, new_tokens=3).layers == 3


def test_a_model_without_a_head_that_can_be_found_is_refused(stock, monkeypatch):
    monkeypatch.setattr(type(stock[0]), "get_output_embeddings", lambda self: None)
    with pytest.raises(UserError, match="cannot be read"):
        measure_suitability(*stock, TEXTS)


@pytest.mark.parametrize("trained", [False, True])
def test_the_command_writes_a_table_a_figure_and_json(tiny_decoder, tiny_decoder_backbone, tmp_path, trained):
    folder = tiny_decoder_backbone("llama")
    if trained:
        folder = tmp_path / "trained"
        tiny_decoder("llama").save_pretrained(folder)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    result = call("suitability", folder, "--texts", tmp_path / "texts.txt", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "first layer that agrees" in result.output
    numbers = json.loads((tmp_path / "out" / "suitability.json").read_text())
    assert numbers["layers"] == 4
    assert {row["text"] for row in numbers["by_layer"]} == {GREEDY, "reference"}
    assert (tmp_path / "out" / "suitability.png").stat().st_size > 10_000


def test_texts_that_are_missing_are_named(tiny_decoder_backbone):
    result = call("suitability", tiny_decoder_backbone("llama"), "--texts", "none.txt")
    assert result.exit_code == 2
    assert "none.txt" in result.output
