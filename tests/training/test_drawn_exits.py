"""Drawn exits: what a backbone is trained on is what decoding leaves."""

import pytest
import torch
from conftest import DECODER_FAMILIES, make_text_task, random_prompts
from torch.nn import functional

from baselines.references import RandomRule
from consistentee.engine.generate import generate
from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.traces.token_rows import TokenRows, collate_rows
from consistentee.training.decoder_backbone import ExitLosses, drawn_loss, last_exit_loss, loss_of
from consistentee.training.decoder_backbone import draw_exits, drawn_exits_loss, states_where_tokens_leave
from consistentee.training.sources import StepRows
from consistentee.training.decoder import train_exits
from consistentee.training.recipe import TokenRecipe

PROMPTS = random_prompts(7, seed=3)
STACKS = {
    "skip the end": {"exit_layers": [1, 2, 3]},
    "skip the middle": {"adapter": "shared", "exit_layers": [2, 3], "closing_layers": 1},
}
EXITS = (2, 3, 4)


def rows_with_exits(model: MultiExitDecoder, rule: RandomRule) -> tuple[TokenRows, torch.Tensor, list[int]]:
    """Decode, and return rows of the texts, the exit of every token that is read, and the tokens that were said."""
    out = generate(model, PROMPTS, rule, max_new_tokens=8, batch_size=3)
    rows = [(prompt, tokens.tolist()) for prompt, tokens in zip(model.encode(PROMPTS), out.tokens, strict=True)]
    batch = collate_rows(model, rows)
    exits = torch.full_like(batch.tokens, model.num_layers)
    exits[batch.gives_response] = torch.cat(out.exit_layers)
    return batch, exits, [token for tokens in out.tokens for token in tokens.tolist()]


def step_rows(model: MultiExitDecoder) -> StepRows:
    batch, _, _ = rows_with_exits(model, RandomRule(2.5, seed=1))
    return StepRows(**vars(batch), number=0, done=0.0)


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("family", DECODER_FAMILIES)
def test_states_are_those_that_decoding_has(tiny_decoder, family, stack):
    """Whoever leaves where: the exits of a text's tokens say again what they have said when it was written."""
    model = tiny_decoder(family, **stack)
    batch, exits, said = rows_with_exits(model, RandomRule(2.6, seed=1))
    assert len(exits[batch.may_exit].unique()) == len(model.exit_layers)
    states = states_where_tokens_leave(model, batch.tokens, batch.padding_mask, exits)
    found = [
        int(model.logits(int(layer), state).argmax())
        for layer, state in zip(exits[batch.gives_response], states[batch.gives_response], strict=True)
    ]
    assert found == said


@pytest.mark.parametrize("adapter", ["low-rank", "head", "shared"])
def test_loss_by_hand(tiny_decoder, adapter):
    model = tiny_decoder(exit_layers=[2, 3], adapter=adapter)
    batch = step_rows(model)
    weights = torch.tensor([0.2, 0.5, 0.3])
    torch.manual_seed(5)
    found = drawn_exits_loss(weights, model, batch)
    torch.manual_seed(5)
    exits = draw_exits(model.exit_layers, weights, batch.may_exit)
    states = states_where_tokens_leave(model, batch.tokens, batch.padding_mask, exits)
    says = torch.stack(
        [
            model.logits(int(layer), state)
            for layer, state in zip(exits[batch.gives_response], states[batch.gives_response], strict=True)
        ]
    )
    torch.testing.assert_close(found, functional.cross_entropy(says, batch.targets))


def test_the_last_exit_alone_is_the_stock_models_loss(tiny_decoder):
    model = tiny_decoder(exit_layers=[2, 3], adapter="shared")
    batch = step_rows(model)
    torch.testing.assert_close(
        drawn_exits_loss(torch.tensor([0.0, 0.0, 1.0]), model, batch), last_exit_loss(model, batch)
    )


def test_half_of_the_rows_leave_at_one_exit_the_others_token_by_token():
    torch.manual_seed(0)
    weights = torch.tensor([0.2, 0.3, 0.5])
    may_exit = torch.ones(4000, 12, dtype=torch.bool)
    may_exit[:, :4] = False
    exits = draw_exits(EXITS, weights, may_exit)
    assert (exits[:, :4] == 4).all(), "a prompt runs at full depth"
    drawn = exits[:, 4:]
    assert [(drawn == layer).double().mean().item() for layer in EXITS] == pytest.approx(weights.tolist(), abs=0.02)
    assert (drawn == drawn[:, :1]).all(dim=1).double().mean().item() == pytest.approx(0.5, abs=0.03)


def test_exits_are_drawn_as_a_recipe_weighs_them(tiny_decoder):
    model = tiny_decoder(exit_layers=[2, 3], adapter="shared")
    batch = step_rows(model)
    torch.manual_seed(2)
    found = loss_of(TokenRecipe(exit_curriculum="drawn", exit_weights="equal"))(model, batch)
    torch.manual_seed(2)
    assert found.item() == drawn_exits_loss(torch.full((3,), 1 / 3), model, batch).item()
    torch.manual_seed(2)
    assert found.item() != drawn_loss(ExitLosses("squared depth", "drawn", 0.0), model, batch).item()


def test_a_backbone_learns_so(tiny_decoder, tmp_path):
    recipe = TokenRecipe(
        trains="all", exit_curriculum="drawn", backbone_steps=60, backbone_learning_rate=3e-3, exit_steps=0, seed=1
    )
    model = tiny_decoder(**STACKS["skip the middle"])
    batch = step_rows(model)
    weights = torch.full((3,), 1 / 3)

    def loss() -> float:
        torch.manual_seed(0)
        with torch.no_grad():
            return drawn_exits_loss(weights, model, batch).item()

    task, before = make_text_task(), None
    rows = recipe.training_rows(model, task)
    batch = StepRows(**vars(collate_rows(model, rows[:16])), number=0, done=0.0)
    before = loss()
    train_exits(model, task, recipe)
    assert loss() < 0.7 * before


@pytest.mark.parametrize("setting", [{"taught_share": 0.5}, {"layer_dropout": 0.1}])
def test_no_teacher_and_no_dropout(setting):
    with pytest.raises(UserError, match="at 0"):
        loss_of(TokenRecipe(exit_curriculum="drawn", **setting))
