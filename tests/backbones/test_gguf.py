"""Decoders in GGUF files: dequantised exactly, once, and only where the architecture is known."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.torch import load_file

from consistentee import MultiExitDecoder, UserError
from consistentee.backbones.catalog import resolve_decoder


def rotary_pairs_together(weight, heads):
    """Order the rows of a projection as GGUF files do: the two halves of a head's rotation side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, folder, architecture="llama"):
    """Write a tiny decoder as GGUF, in 8 bits where the blocks fit; return the weights that the blocks stand for."""
    stock = MultiExitDecoder.from_backbone(str(folder))
    writer = GGUFWriter(path, architecture)
    config, tokenizer = stock.backbone.config, stock.tokenizer
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    tokens = tokenizer.convert_ids_to_tokens(range(config.vocab_size))
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<") else 1 for token in tokens])
    writer.add_token_merges([f"{token[0]} {token[1:]}" for token in tokens if 1 < len(token) < 4 and token[0] != "<"])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_unk_token_id(0)
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[config.model_type], config.num_hidden_layers)
    expected = {}
    for name, weight in stock.backbone.named_parameters():
        module, _, ending = name.rpartition(".")
        array = weight.detach().numpy()
        kind = GGMLQuantizationType.Q8_0 if array.ndim == 2 and array.shape[1] % 32 == 0 else GGMLQuantizationType.F32
        stored = array
        if module.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads
            stored = rotary_pairs_together(array, heads)
        writer.add_tensor(f"{names.get_name(module)}.{ending}", gguf.quantize(stored, kind), raw_dtype=kind)
        expected[name] = torch.from_numpy(gguf.dequantize(gguf.quantize(array, kind), kind).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONSISTENTEE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_file_is_dequantised_once_to_the_weights_that_it_stands_for(
    tiny_decoder_backbone, cache, tmp_path, monkeypatch
):
    folder = tiny_decoder_backbone("llama")
    expected = write_gguf(tmp_path / "tiny.gguf", folder)
    model, stock = (MultiExitDecoder.from_backbone(str(path)) for path in (tmp_path / "tiny.gguf", folder))
    weights = dict(model.backbone.named_parameters())
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())
    assert model.encode(["ba de fi"], max_tokens=9)[0][-3:] == stock.encode(["ba de fi"])[0][1:]
    assert model.end_tokens == {3}
    first = resolve_decoder(str(tmp_path))  # a folder that holds one
    assert first.startswith(str(cache))
    assert {weight.dtype for weight in load_file(f"{first}/model.safetensors").values()} == {torch.float32}
    model_class = "transformers.AutoModelForCausalLM"
    monkeypatch.setattr(f"{model_class}.from_config", lambda *_, **__: pytest.fail("converted twice"))
    assert resolve_decoder(str(tmp_path / "tiny.gguf")) == first
    (tmp_path / "tiny.gguf").rename(tmp_path / "copy.gguf")
    (tmp_path / "copy.gguf").write_bytes((tmp_path / "copy.gguf").read_bytes() + b"\0")
    with pytest.raises(pytest.fail.Exception, match="converted twice"):
        resolve_decoder(str(tmp_path / "copy.gguf"))  # another content is another model


def test_files_that_cannot_be_read_are_named(tiny_decoder_backbone, cache, tmp_path):
    write_gguf(tmp_path / "falcon.gguf", tiny_decoder_backbone("llama"), architecture="falcon")
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    whole = (tmp_path / "falcon.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    for path, message in (
        ("falcon.gguf", "no layer-stepping for decoders of architecture 'falcon'"),
        ("bad.gguf", r"bad\.gguf cannot be read"),
        ("cut.gguf", r"cut\.gguf cannot be read"),
        ("absent.gguf", r"no such file or directory: .*absent\.gguf"),
        ("", "holds several GGUF files"),
    ):
        with pytest.raises(UserError, match=message):
            resolve_decoder(str(tmp_path / path))
    assert not list(cache.rglob("*.safetensors"))


def test_incomplete_gguf_files_are_refused(tiny_decoder_backbone, cache, tmp_path, monkeypatch):
    add_tensor = GGUFWriter.add_tensor
    with monkeypatch.context() as patch:
        patch.setattr(
            GGUFWriter,
            "add_tensor",
            lambda writer, name, *rest, **more: ".2." in name or add_tensor(writer, name, *rest, **more),
        )
        write_gguf(tmp_path / "hollow.gguf", tiny_decoder_backbone("llama"))
    with pytest.raises(UserError, match=r"hollow\.gguf lacks 9 of the model's weights, model\.layers\.2\."):
        resolve_decoder(str(tmp_path / "hollow.gguf"))
    for method in ("add_tokenizer_model", "add_token_list", "add_token_types", "add_token_merges"):
        monkeypatch.setattr(GGUFWriter, method, lambda *_: None)
    write_gguf(tmp_path / "dumb.gguf", tiny_decoder_backbone("llama"))
    with pytest.raises(UserError, match=r"dumb\.gguf cannot be read: 'tokens'"):
        resolve_decoder(str(tmp_path / "dumb.gguf"))
    assert not list(cache.rglob("*.safetensors"))
