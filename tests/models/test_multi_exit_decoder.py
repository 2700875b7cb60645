"""MultiExitDecoder: exits, adapters and their start, branches, text and tokens, saving and loading."""

import json
import shutil

import pytest
import torch
from comparing import same_weights
from safetensors.torch import load_file, save
from tensors_by_hand import pad
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from benchmarks.testing.tiny import DECODER_FAMILIES, random_prompts
from consistentee import BranchSpec, DecoderStack, HeadSpec, MultiExitDecoder, UserError, extras
from consistentee.models.decoder.adapters import StateMoments
from consistentee.models.decoder.description import chosen_exit_layers
from consistentee.traces.token_trace import recorded_states
from consistentee.training.branches import RowStates, ValidationLoss, branch_logits, branch_loss


@torch.no_grad()
def all_logits(model):
    """Return what every exit says of a padded batch: [exits, rows, tokens, vocabulary]; 0 for padding."""
    tokens, mask = pad(model.encode(random_prompts(5, seed=4)), "left")
    hidden = model.exit_states(tokens, mask).answer_states
    logits = torch.stack([model.logits(t, hidden[:, :, i]) for i, t in enumerate(model.exit_layers)])
    return torch.where(mask.unsqueeze(-1), logits, 0)


def train_a_little(model, prefix):
    for name, parameter in model.named_parameters():
        if name.startswith(prefix):
            parameter.data.add_(0.1)


def test_default_exits_are_spread_evenly():
    assert chosen_exit_layers(None, 30) == (6, 12, 18, 24, 30)
    assert chosen_exit_layers(None, 12) == (2, 5, 7, 10, 12)
    assert chosen_exit_layers(None, 4) == (1, 2, 3, 4)


@pytest.mark.parametrize("kind", ["norm", "low-rank", "head"])
@pytest.mark.parametrize("family", DECODER_FAMILIES)
def test_untrained_exits_read_as_the_stock_model_does(tiny_decoder_backbone, family, kind):
    model = MultiExitDecoder.from_backbone(str(tiny_decoder_backbone(family)), adapter=kind)
    hidden = torch.randn(3, 5, model.width)
    stock = model.backbone.lm_head(model.state(hidden))
    assert all(torch.equal(model.logits(layer, hidden), stock) for layer in model.exit_layers)


class TestText:
    @pytest.mark.parametrize(("keep", "text"), [("end", " fo gu"), ("start", "ba pe")])
    def test_prompts_keep_the_special_tokens_and_are_cut(self, tiny_decoder, keep, text):
        model = tiny_decoder()
        (row,) = model.encode(["ba pe di fo gu"], max_tokens=3, keep=keep)
        assert row[0] == model.tokenizer.bos_token_id
        assert len(row) == 3
        assert model.decode(row) == text
        assert model.encode(["ba pe"], max_tokens=3, keep=keep) == model.encode(["ba pe"])
        (whole,) = model.encode(["ba pe di fo gu"])  # no cut outlives its call
        assert len(whole) == 6
        assert model.decode(torch.tensor([*whole, *model.end_tokens])) == "ba pe di fo gu"
        with pytest.raises(UserError, match="cannot be cut to 1 tokens: the tokenizer adds 1"):
            model.encode(["ba de"], max_tokens=1)

    def test_prompts_are_put_into_the_chat_template(self, tiny_decoder):
        model, plain = tiny_decoder(chat_template="auto"), tiny_decoder()
        assert model.encode(["ba pe"]) == plain.encode(["ba pe"]), "a tokenizer without a template has plain prompts"
        template = "{{ bos_token }}{% for m in messages %} gu{{ m.content }}{% endfor %}"
        model.tokenizer.chat_template = template + "{% if add_generation_prompt %} de{% endif %}"
        (row,) = model.encode(["ba pe"])
        assert row == plain.encode([" guba pe de"])[0]
        assert model.without_exits().description.chat_template == "auto"
        (cut,) = model.encode(["ba pe di fo"], max_tokens=len(row), keep="start")
        assert cut == row, "the message is cut, and not the template"
        with pytest.raises(UserError, match="prompt 2 of 2 is empty"):
            model.encode(["ba", " "])
        model.tokenizer.chat_template = "{{ raise_exception('no users') }}"
        with pytest.raises(UserError, match="the chat template cannot be read: no users"):
            model.encode(["ba"])

    def test_a_tokenizer_without_padding_works(self, tiny_decoder):
        model, usual = tiny_decoder(), tiny_decoder()
        model.tokenizer.pad_token = None
        rows = model.encode(random_prompts(5))
        padded = [pad(rows, side, pad_id) for side in ("left", "right") for pad_id in (model.pad_id, 9)]
        logits = [model.stock_logits(*batch)[batch[1]] for batch in padded]
        assert rows == usual.encode(random_prompts(5))
        for other in logits[1:]:
            torch.testing.assert_close(other, logits[0])

    def test_end_tokens_are_those_of_the_stock_generate(self, tiny_decoder):
        model = tiny_decoder()
        assert model.end_tokens == {3}
        model.backbone.generation_config.eos_token_id = [3, 7]
        assert model.end_tokens == {3, 7}
        model.backbone.generation_config.eos_token_id = None
        assert model.end_tokens == {model.tokenizer.eos_token_id}


class TestFiles:
    def test_a_moved_or_changed_backbone_is_noticed(self, tiny_decoder_backbone, tmp_path, monkeypatch):
        shutil.copytree(tiny_decoder_backbone(), tmp_path / "stock")
        monkeypatch.chdir(tmp_path)
        model = MultiExitDecoder.from_backbone("stock")
        model.save_pretrained("saved")
        monkeypatch.chdir("/")
        saved, moved = str(tmp_path / "saved"), str(tmp_path / "moved")
        assert torch.equal(all_logits(MultiExitDecoder.from_pretrained(saved)), all_logits(model))
        (tmp_path / "stock").rename(moved)
        with pytest.raises(UserError, match="saved without its backbone"):
            MultiExitDecoder.from_pretrained(saved)
        assert torch.equal(all_logits(MultiExitDecoder.from_pretrained(saved, backbone=moved)), all_logits(model))
        train_a_little(model, "backbone.model.norm")
        model.backbone.save_pretrained(moved)
        with pytest.raises(UserError, match="its weights differ"):
            MultiExitDecoder.from_pretrained(saved, backbone=moved)

    def test_incomplete_folders_are_refused(self, tiny_decoder_backbone, tmp_path):
        """Nothing random stands in for weights that are not there, such as the LM head of a bare model."""
        whole = tiny_decoder_backbone("mistral")

        weights = load_file(whole / "model.safetensors")
        del weights["lm_head.weight"]
        config = json.loads((whole / "config.json").read_text()) | {"model_type": "nonesuch"}
        for name, file, content, message in (
            ("bare", "model.safetensors", save(weights, {"format": "pt"}), "bare lacks 1 .* lm_head.weight"),
            ("cut", "model.safetensors", save(weights)[:5000], r"cut/model\.safetensors cannot be read: "),
            ("new", "config.json", json.dumps(config).encode(), r"new/config\.json cannot be .*nonesuch"),
            ("dumb", "tokenizer.json", b"{", r"dumb/tokenizer\.json cannot be read: "),
        ):
            shutil.copytree(whole, tmp_path / name)
            (tmp_path / name / file).write_bytes(content)
            with pytest.raises(UserError, match=message):
                MultiExitDecoder.from_backbone(str(tmp_path / name))


def test_the_fingerprint_of_hidden_states_depends_on_the_backbone_alone(tiny_decoder):
    model = tiny_decoder()
    before = model.backbone_fingerprint()
    model.add_head("gate", HeadSpec())
    assert model.backbone_fingerprint() == before
    assert tiny_decoder(exit_layers=[2]).backbone_fingerprint() != before
    train_a_little(model, "backbone.model.layers.2.")
    assert model.backbone_fingerprint() != before


@pytest.mark.parametrize("family", ["llama", "gpt2"])
class TestLora:
    def test_lora_changes_nothing_until_it_is_trained_and_merged_it_gives_the_same(self, tiny_decoder, family):
        model = tiny_decoder(family)
        names, untrained, hash_before = list(model.state_dict()), all_logits(model), model.fingerprint()
        model.add_lora(rank=2)
        assert torch.equal(all_logits(model), untrained)
        assert model.fingerprint() != hash_before
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert len(model.lora_weights) == 2 * 4 * {"llama": 2, "gpt2": 1}[family], "two for each target of a layer"
        train_a_little(model, model.lora_weights)
        trained = all_logits(model)
        assert not torch.allclose(trained, untrained)
        model.merge_lora()
        torch.testing.assert_close(all_logits(model), trained, atol=1e-4, rtol=1e-5)
        assert list(model.state_dict()) == names

    def test_save_and_load(self, tiny_decoder, tmp_path, family):
        model = tiny_decoder(family)
        model.add_lora(rank=2, targets=["c_proj"] if family == "gpt2" else ["k_proj", "down_proj"])
        train_a_little(model, model.lora_weights)
        model.description.with_backbone = family == "llama"
        model.save_pretrained(tmp_path / "saved")
        again = MultiExitDecoder.from_pretrained(tmp_path / "saved")
        assert again.description == model.description
        assert torch.equal(all_logits(again), all_logits(model))
        assert (tmp_path / "saved" / "backbone").exists() == (family == "llama")
        model.description.with_backbone = False  # but a changed one is saved in any case
        model.merge_lora()
        model.save_pretrained(tmp_path / "merged")
        assert torch.equal(all_logits(MultiExitDecoder.from_pretrained(tmp_path / "merged")), all_logits(model))
        stock = AutoModelForCausalLM.from_pretrained(tmp_path / "merged" / "backbone")  # anyone can load it
        assert same_weights(stock, model.backbone)

    def test_lora_refuses_unknown_modules_and_a_second_lora(self, tiny_decoder, family, monkeypatch):
        model = tiny_decoder(family)
        with pytest.raises(UserError, match=r"no modules named \['wq'\] for LoRA; it has .*c_proj|down_proj"):
            model.add_lora(targets=["wq"])
        with pytest.raises(UserError, match=r"rank of .* must be at least 1"):
            model.add_lora(rank=0)
        monkeypatch.setattr(extras, "packages_of", lambda extra: ["not-to-be-had"])
        with pytest.raises(UserError, match=r"consistentee\[lora\]"):
            model.add_lora()
        monkeypatch.undo()
        model.add_lora(rank=2)
        with pytest.raises(UserError, match="LoRA already"):
            model.add_lora(rank=2)


ROWS = [([2, 7, 9, 20], [30, 31, 3]), ([2, 8], [40, 3]), ([2, 8, 11], [41])]
LAST = BranchSpec(copied_layer=4)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moments_of(inputs, outputs, lm_head):
    return StateMoments.zero(lm_head).plus(inputs, outputs)


def test_least_squares_by_hand():
    """x = 1, 2, 3 and y = 2, 4, 7: s = (2 + 8 + 21) / 14."""
    moments = moments_of(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[2.0], [4.0], [7.0]]), torch.eye(1))
    assert moments.scale.item() == pytest.approx(31 / 14)
    assert moments.channel_scales.tolist() == pytest.approx([31 / 14])
    assert moments.map.item() == pytest.approx(31 / 14, rel=2e-3), "but for the ridge"


def test_a_low_rank_is_nearest_in_logits():
    """No residual of rank 2 is nearer to the logits than their singular values allow."""
    inputs, lm_head = draw(300, 6), draw(20, 6, seed=2)
    outputs = inputs @ draw(6, 6, seed=3) + draw(300, 6, seed=4)
    moments = moments_of(inputs, outputs, lm_head)
    left, right = moments.low_rank(2)
    inputs, lm_head = inputs.double(), lm_head.double()
    target = (inputs @ moments.map - moments.scale * inputs) @ lm_head.T
    distance = (inputs @ left @ right @ lm_head.T - target).square().sum()
    torch.testing.assert_close(distance, torch.linalg.svdvals(target)[2:].square().sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(left.norm(), right.norm())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("adapter", "rank"), [("low-rank", 32), ("low-rank", 40), ("head", 1)])
def test_an_adapter_of_full_rank_reads_the_mapped_state(tiny_decoder_backbone, family, adapter, rank):
    model = MultiExitDecoder.from_backbone(str(tiny_decoder_backbone(family)), adapter=adapter, rank=rank)
    inputs, outputs = draw(400, 32), draw(400, 32, seed=1)
    moments = moments_of(model.state(inputs), model.state(outputs), model.backbone.lm_head.weight.detach())
    model.adapter(2).start_from(moments)
    expected = model.backbone.lm_head(model.state(inputs) @ moments.map.float())
    torch.testing.assert_close(model.logits(2, inputs), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_norms_are_scaled_with_the_offset_of_their_gain(tiny_decoder, family):
    model = tiny_decoder(family, adapter="norm")
    adapter, hidden = model.adapter(model.exit_layers[0]), draw(3, model.width)
    state = draw(200, model.width)
    with torch.no_grad():
        before = adapter.state(hidden, model.stepper)
        adapter.start_from(moments_of(state, 2 * state, model.backbone.lm_head.weight))
        torch.testing.assert_close(adapter.state(hidden, model.stepper), 2 * before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_layer_without_mlp_equals_one_with_a_zero_mlp(tiny_decoder, family):
    model = tiny_decoder(family)
    model.add_branch(2, BranchSpec(copied_layer=3, with_mlp=False))
    hidden, context = model.stepper.begin(torch.tensor([[2, 7, 9, 11]]), torch.ones(1, 4, dtype=torch.bool))
    stack = DecoderStack(model, 2)
    ours = stack.stepper.step(3, hidden, context)
    mlp, norm = model.stepper.mlp
    assert isinstance(getattr(model.stepper.layer_module(3), norm), nn.Module)
    with torch.no_grad():
        for name, weight in getattr(model.stepper.layer_module(3), mlp).named_parameters():
            if name.startswith(("down_proj", "c_proj")):
                weight.zero_()
        torch.testing.assert_close(ours, model.stepper.step(3, hidden, context))
    assert 0 < model.branch(2).size_in_layers < 1
    assert model.add_branch(2, LAST).size_in_layers == 1


def test_a_branch_must_follow_an_exit_layer(tiny_decoder):
    model = tiny_decoder(exit_layers=(2,))
    with pytest.raises(UserError, match="no exit adapter"):
        model.add_branch(1, LAST)
    with pytest.raises(UserError, match="exit layer 2 has no branch"):
        DecoderStack(model, 2)


def test_loss_is_that_of_the_tokens_that_give_the_response(tiny_decoder):
    """Each token looks at its own row alone: rows one by one, without padding, give the same loss."""
    model = tiny_decoder()
    for layer in (1, 2, 3):
        model.add_branch(layer, LAST)
    states = RowStates(ROWS, recorded_states(model, ROWS, whole_rows=True, dtype=torch.float32, store=None), model)
    with torch.no_grad():
        together = branch_loss(model, states.batch(torch.arange(3)))
        losses = []
        for number, (prompt, response) in enumerate(ROWS):
            alone = states.batch(torch.tensor([number]))
            gives = slice(len(prompt) - 1, len(prompt) - 1 + len(response))
            wanted = model.logits(4, alone.hidden[0, gives, -1]).softmax(-1)
            for place, layer in enumerate((1, 2, 3)):
                logits = branch_logits(model, layer, alone.hidden[:, :, place], alone)
                losses.append(functional.cross_entropy(logits, wanted, reduction="none"))
        by_hand = torch.stack([torch.cat(losses[place::3]).mean() for place in range(3)]).mean()
    torch.testing.assert_close(together, by_hand)
    assert ValidationLoss(states)() == pytest.approx(-float(by_hand), rel=1e-5)
