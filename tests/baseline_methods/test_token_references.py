"""References of generation: schedules, static and random exits, the full model."""

from types import SimpleNamespace

import pytest
import torch
from conftest import make_text_task, random_prompts

from baselines.references import RandomRule, survival
from consistentee.engine.generate import generate
from consistentee.errors import UserError
from consistentee.methods.method import get_method
from consistentee.rules.schedules import ScheduledRule
from consistentee.training.recipe import TokenRecipe

RECIPE = TokenRecipe(exit_steps=3, exit_batch_size=16, backbone_steps=2, backbone_batch_size=2)
EXITS = (2, 5, 6, 12)


@pytest.mark.parametrize("mean", [2.0, 3.1, 6.25, 9.0, 12.0])
def test_random_exits_have_the_mean_that_is_asked(mean):
    """The mean is the sum over layers of the chance of running past the layer before."""
    runs_past = [1.0] * EXITS[0] + [survival(layer, EXITS, mean) for layer in range(EXITS[0], EXITS[-1])]
    assert sum(runs_past) == pytest.approx(mean)
    keys = SimpleNamespace(row_keys=torch.randint(2**31, (20_000,), generator=torch.Generator().manual_seed(0)))
    for layer in EXITS[:-1]:
        stays = ~RandomRule(mean, seed=3, exit_layers=EXITS).should_exit(SimpleNamespace(**vars(keys), layer=layer), {})
        assert float(stays.double().mean()) == pytest.approx(survival(layer, EXITS, mean), abs=0.02)


def test_a_schedule_holds_its_last_layer(tiny_decoder):
    model = tiny_decoder()
    written = generate(model, random_prompts(3), ScheduledRule([4, 3, 1, 2]), max_new_tokens=7)
    for layers in written.exit_layers:
        assert layers.tolist() == [4, 3, 1, 2, 2, 2, 2][: len(layers)]


def test_static_exits_where_there_is_an_exit_and_nowhere_else(tiny_decoder):
    method = get_method("token-static")
    model = method.fit(tiny_decoder(exit_layers=(2,)), make_text_task(), RECIPE)
    assert method.knob_values(model) == (2.0, 4.0)
    written = method.generate(model, random_prompts(3), 2.0, max_new_tokens=5)
    assert written.average_layers == 2
    with pytest.raises(UserError, match="no exit at layer 3"):
        method.rule(model, 3.0)


def test_the_full_model_is_fine_tuned_only_where_the_backbone_learns(tiny_decoder):
    method, task = get_method("token-full"), make_text_task()
    frozen, stock = method.fit(tiny_decoder(), task, RECIPE).state_dict(), tiny_decoder().state_dict()
    assert all(torch.equal(frozen[name], tensor) for name, tensor in stock.items())
    tuned = method.fit(tiny_decoder(), task, TokenRecipe(trains="all", backbone_steps=2)).state_dict()
    changed = {name.split(".")[0] for name, tensor in stock.items() if not torch.equal(tuned[name], tensor)}
    assert changed == {"backbone"}
