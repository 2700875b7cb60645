"""Training of both kinds of rows: determinism, resuming, the store; and losses and batches of instances."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from comparing import same_weights

from benchmarks.testing.tiny import make_task, make_text_task
from consistentee import Recipe, TokenRecipe, UserError, chosen_device, record_trace
from consistentee.data.metrics import score
from consistentee.files import LOCK
from consistentee.methods.method import get_method, train_method
from consistentee.training import encoder, loop
from consistentee.training.decoder import DrawnTokens, train_exits, train_last_token_exit
from consistentee.training.decoder_backbone import DrawnRows
from consistentee.training.encoder import (
    TokenSource,
    depth_weighted_loss,
    distillation_loss,
    hold_out,
    layer_losses,
    token_stage,
    train_early_exits,
    train_jointly,
    training_source,
)
from consistentee.training.loop import count_rows, counting_rows_as, logged_training, run_stage

RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=16)
TOKEN_RECIPE = TokenRecipe(exit_steps=8, exit_batch_size=16, exit_learning_rate=1e-2, trains="all", backbone_steps=3)
ROWS_RECIPE = replace(TOKEN_RECIPE, backbone_steps=8, exit_steps=0, precision="bfloat16", layer_dropout=0.3)


@dataclass(frozen=True)
class Kind:
    """The training that all methods of one kind share, with eight steps in the last stage."""

    new_model: Callable[[], Any]
    train: Callable[[Any, Any, Any], object]  # (model, task, recipe)
    task: Any
    recipe: Any
    source: type  # of the rows of the last stage
    stage: str  # the last one's name in the store
    files: int  # how many the store holds in the end

    def trained(self, **changes: object) -> Any:
        """Return a model trained with some changes of the recipe."""
        model = self.new_model()
        self.train(model, self.task, replace(self.recipe, **changes))
        return model


@pytest.fixture
def kinds(tiny_model, tiny_decoder) -> dict[str, Kind]:
    text_task, rows_recipe = make_text_task(), replace(ROWS_RECIPE, group_by_length=True)
    return {
        "instances": Kind(tiny_model, train_jointly, make_task(), RECIPE, TokenSource, "joint", files=1),
        "tokens": Kind(tiny_decoder, train_exits, text_task, TOKEN_RECIPE, DrawnTokens, "exits", files=4),
        "rows": Kind(tiny_decoder, train_exits, text_task, rows_recipe, DrawnRows, "backbone-all", files=3),
    }


@pytest.fixture(params=["instances", "tokens"])
def kind(request, kinds) -> Kind:
    return kinds[request.param]


def _mean_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return layer_losses(logits, labels).mean()


class TestTheLoop:
    def test_seed_decides_everything_and_the_global_generator_is_left_alone(self, kind):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        first = kind.trained(seed=0)
        assert torch.equal(torch.rand(3), expected)
        assert same_weights(first, kind.trained(seed=0)), "the state of the global generator does not matter"
        assert not same_weights(first, kind.trained(seed=1))

    @pytest.mark.parametrize("name", ["instances", "tokens", "rows"])
    def test_an_interrupted_stage_ends_with_the_same_weights(self, kinds, name, tmp_path, monkeypatch):
        monkeypatch.setattr(loop, "CHECKPOINT_STEPS", 3)
        kind, grouped = kinds[name], {"group_by_length": True}
        with logged_training() as log:
            straight = kind.trained(**grouped)
        steps, real = [], kind.source.batch

        def interrupted(source, rows, step):
            steps.append(step)
            if len(steps) == 6:
                raise KeyboardInterrupt
            return real(source, rows, step)

        monkeypatch.setattr(kind.source, "batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kind.trained(store=tmp_path, **grouped)
        assert len(list(tmp_path.glob("*.checkpoint.safetensors"))) == 1
        with logged_training() as log_again:
            resumed = kind.trained(store=tmp_path, **grouped)
        assert log_again == log
        assert steps == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7], "training resumes from the last checkpoint"
        assert same_weights(straight, resumed)
        scores = (model.description.validation_by_epoch for model in (straight, resumed))
        assert next(scores) == next(scores)
        assert not list(tmp_path.glob("*.checkpoint.*"))

    def test_a_checkpoint_is_due_after_some_minutes_too(self, tiny_decoder, tmp_path, monkeypatch):
        written = []
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
        monkeypatch.setattr(loop, "save_tensors", lambda tensors, _: written.append(tensors.get("step")))
        train_last_token_exit(tiny_decoder(), make_text_task(), replace(TOKEN_RECIPE, store=tmp_path))
        assert written == [1, 2, None], "the last one is the stage's result"

    def test_every_stage_has_a_curve_of_its_loss(self, kind, tmp_path, monkeypatch):
        monkeypatch.setattr(loop, "LOSS_POINTS", 4)
        noted = []
        for _ in range(2):  # the second time, shared stages come from the store
            with logged_training() as log:
                kind.trained(store=tmp_path)
                kind.trained(seed=1)
            noted.append(log)
        assert noted[0] == noted[1]
        assert {kind.stage, f"{kind.stage} (2)"} <= noted[0].losses.keys(), "a name that is there already gets a number"
        assert max(map(len, noted[0].losses.values())) == 4

    def test_the_points_of_a_curve_are_means_of_the_losses(self, tiny_model, monkeypatch):
        monkeypatch.setattr(loop, "LOSS_POINTS", 2)
        model, source = tiny_model(), training_source(tiny_model(), make_task(rows=48), RECIPE)
        stage = token_stage("counted", lambda model, batch: 0 * own_loss(model, batch) + batch.step, RECIPE)
        with logged_training() as log:
            run_stage(model, source, stage, RECIPE)
        assert log.losses == {"counted": [1.0, 4.0]}  # of the steps 0 to 5

    def test_rows_of_the_backbone_are_counted_for_stored_stages_too(self, tiny_model, tmp_path, monkeypatch):
        recipe = replace(RECIPE, store=tmp_path, frozen_steps=40)
        for _ in range(2):  # the second time, the shared stage comes from the store
            model = tiny_model()
            source = training_source(model, make_task(rows=48), recipe)
            with logged_training() as log:
                train_jointly(model, source, recipe)
                assert log.rows == 2 * 48
                train_early_exits(model, source, _mean_loss, recipe, name="cached", network="mlp")
                assert log.rows == pytest.approx(2 * 48 + 48 / 3)
        for epochs, rows in ((4, 4 * 48), (None, 48)):  # without gradients of the backbone; of states, one pass
            with logged_training() as log:
                train_early_exits(
                    model, source, _mean_loss, recipe, name="exits", network="attention", attention_epochs=epochs
                )
            assert log.rows == pytest.approx(rows / 3)
        monkeypatch.setattr(encoder, "cached_states", lambda *_: pytest.fail("states that are read once are recorded"))
        with logged_training() as log:
            once = replace(recipe, frozen_steps=1)
            train_early_exits(model, source, _mean_loss, once, name="exits", network="attention")
        assert log.rows == pytest.approx(48 / 3)
        with logged_training() as log:
            count_rows(12, with_gradients=True)
            with counting_rows_as(0.5):
                count_rows(6, with_gradients=False)
        assert log.rows == 12 + 1, "a third of the rows, in half of the layers"

    def test_exits_trained_on_recorded_states_equal_those_trained_on_tokens(self, tiny_model):
        """Two epochs either way; the recorded states are rounded to half precision."""
        trained = []
        recipe = replace(RECIPE, frozen_steps=2 * math.ceil(48 / RECIPE.batch_size))
        for epochs in (2, None):
            model = tiny_model()
            source = training_source(model, make_task(rows=48), RECIPE)
            train_early_exits(
                model, source, _mean_loss, recipe, name="exits", network="attention", attention_epochs=epochs
            )
            trained.append(torch.cat([weight.flatten() for weight in model.classifiers.parameters()]))
        run, recorded = trained
        most = 1e-3 if torch.__version__ >= "2.7" else 2e-3
        assert (recorded - run).abs().mean() < most * run.abs().mean()

    def test_a_loss_that_is_not_finite_is_named(self, tiny_model):
        model = tiny_model()
        stage = token_stage("joint", lambda m, batch: own_loss(m, batch) * float("nan"), RECIPE)
        with pytest.raises(UserError, match="'joint' is nan at step 1"):
            run_stage(model, training_source(model, make_task(), RECIPE), stage, RECIPE)


class TestTheStore:
    def test_a_shared_stage_is_trained_once(self, kind, tmp_path, monkeypatch):
        first = kind.trained(store=tmp_path)
        assert len(list(tmp_path.glob("*.safetensors"))) == kind.files
        with monkeypatch.context() as patch:
            patch.setattr(kind.source, "batch", lambda *_: pytest.fail("the store was not used"))
            assert same_weights(first, kind.trained(store=tmp_path))
            patch.setattr("consistentee.training.loop.TRAINING_VERSION", -1)
            with pytest.raises(pytest.fail.Exception, match="the store was not used"):
                kind.trained(store=tmp_path)

    @pytest.mark.parametrize(
        ("name", "parameters", "trainings"),
        [
            ("berxit", {"signal": "top_probability"}, 1),
            ("consistentee-paper", {"leave_by": "entropy"}, 1),
            ("consistentee-paper", {"alpha": 0.5}, 2),
        ],
    )
    def test_rules_on_the_same_exits_share_their_stage(self, name, parameters, trainings, tiny_model, tmp_path):
        recipe = replace(RECIPE, epochs=1, store=tmp_path)
        for changed in ({}, parameters):
            train_method(get_method(name, **changed), tiny_model(), make_task(rows=16), recipe)
        kept = [path for stage in ("alternating", "exit-consistent") for path in tmp_path.glob(f"{stage}-*")]
        assert len(kept) == trainings, "of the stage that only this method has"

    def test_auto_is_kept_as_the_precision_it_took(self, tiny_model, tmp_path, monkeypatch):
        monkeypatch.setattr(loop, "precision_used", lambda setting, device: setting.replace("auto", "bfloat16"))
        recipe = replace(RECIPE, epochs=1, store=tmp_path)
        for precision in ("bfloat16", "auto"):
            train_jointly(tiny_model(), make_task(rows=20), replace(recipe, precision=precision))
        assert len(list(tmp_path.glob("joint-*.safetensors"))) == 1

    @pytest.mark.parametrize(
        ("name", "short", "changes"),
        [
            ("instances", {"epochs": 1}, {"seed": 1, "max_rows": 10, "max_length": 12, "precision": "bfloat16"}),
            ("tokens", {"exit_steps": 1, "trains": "exits"}, {"seed": 1, "target": "label", "max_new_tokens": 3}),
            ("rows", {"backbone_steps": 1}, {"exit_weights": "equal", "taught_share": 0.5}),
        ],
        ids=["instances", "tokens", "rows"],
    )
    def test_every_setting_changes_the_key_of_a_stage(self, kinds, name, tmp_path, short, changes):
        kind = replace(kinds[name], task=make_task(rows=16)) if name == "instances" else kinds[name]
        for change in ({}, *({setting: value} for setting, value in changes.items())):
            kind.trained(store=tmp_path, **short | change)
        assert len(list(tmp_path.glob(f"{kind.stage}-*.safetensors"))) == 1 + len(changes)

    def test_a_full_disk_is_named_and_leaves_nothing_behind(self, kind, tmp_path, monkeypatch):
        monkeypatch.setattr("safetensors.torch.save_file", Mock(side_effect=OSError(28, "No space left on device")))
        with pytest.raises(UserError, match="disk full while writing"):
            kind.trained(store=tmp_path)
        assert {path.suffix for path in tmp_path.iterdir()} == {LOCK}, "they are empty, and cleared by the next run"

    def test_a_methods_own_loss_is_kept_by_the_methods_version(self, tiny_model, tmp_path):
        """If the stage is shared, or the recipe keeps all stages."""
        recipe, kept = replace(RECIPE, epochs=1, store=tmp_path), []
        for changes in ({}, {"keep_stages": True}, {"keep_stages": True}, {"method": "mine 2"}):
            model = tiny_model()
            stage = token_stage("mine", own_loss, recipe, shared="method" in changes)
            source = training_source(model, make_task(rows=16), recipe)
            run_stage(model, source, stage, replace(recipe, **{"method": "mine 1"} | changes))
            kept.append(len(list(tmp_path.glob("mine-*.safetensors"))))
        assert kept == [0, 1, 1, 2]

    @pytest.mark.parametrize("network", ["linear", "attention"])
    def test_exit_losses_on_a_frozen_model_are_kept_by_the_methods_version(self, tiny_model, tmp_path, network):
        recipe = replace(RECIPE, frozen_steps=1, store=tmp_path, keep_stages=True)
        loss = own_exit_loss if network == "linear" else MethodType(own_exit_loss, self)
        for method in ("mine 1", "mine 1", "mine 2"):
            model = tiny_model()
            source = training_source(model, make_task(rows=16), recipe)
            own = replace(recipe, method=method)
            train_early_exits(model, source, loss, own, name="mine", network=network)
        assert len(list(tmp_path.glob("mine-*.safetensors"))) == 2


def own_loss(model, batch):
    return model(batch.tokens).logits.square().mean()


def own_exit_loss(*arguments):
    return arguments[-2].square().mean()


class TestTheJudge:
    def test_every_epoch_is_scored_and_the_store_keeps_it(self, tiny_model, tmp_path):
        model, stored, other = tiny_model(), tiny_model(), tiny_model()
        task, recipe = make_task(), replace(RECIPE, store=tmp_path)
        train_jointly(model, task, recipe)
        scores = model.description.validation_by_epoch["joint"]
        train_jointly(stored, task, recipe)
        train_jointly(other, task.capped(validation=5), recipe)
        assert len(list(tmp_path.glob("joint-*.safetensors"))) == 2, "one for each set of validation rows"
        assert stored.description.validation_by_epoch == {"joint": scores}
        assert other.description.validation_by_epoch["joint"] != scores
        trace = record_trace(model, task.validation)
        exits = [trace.view(layer).predictions.numpy() for layer in range(1, model.num_layers + 1)]
        expected = [score(task.metric, task.validation.labels, answers) for answers in exits]
        assert len(scores) == 2
        assert scores[-1] == pytest.approx(sum(expected) / len(expected)), "the last is that of the trained model"

    @pytest.mark.parametrize("dies_at", [None, 5])
    def test_a_stage_with_patience_ends_with_its_best_weights(self, tiny_model, tmp_path, monkeypatch, dies_at):
        """The third score is the best one, and no better one follows in two epochs; a kill changes nothing."""
        monkeypatch.setattr(loop, "CHECKPOINT_STEPS", 3)
        judge, recipe = ScriptedJudge([0.1, 0.3, 0.5, 0.4, 0.5, 0.9], dies_at), replace(RECIPE, store=tmp_path)
        stage = replace(token_stage("mine", own_loss, RECIPE), epochs=6, judge=judge, patience=2)

        def trained() -> Any:
            judge.model = model = tiny_model()
            run_stage(model, training_source(model, make_task(rows=32), RECIPE), stage, recipe)
            return model

        if dies_at:
            with pytest.raises(KeyboardInterrupt):
                trained()
        model = trained()
        assert model.description.validation_by_epoch["mine"] == [0.1, 0.3, 0.5, 0.4, 0.5]
        assert torch.equal(model.classifiers[0].weight, judge.weights[2])
        assert not torch.equal(model.classifiers[0].weight, judge.weights[-1])


class ScriptedJudge:
    """Give the scores of a list, by epoch, and note weights; be killed at an epoch once, if one is given."""

    def __init__(self, scores: list[float], dies_at: int | None) -> None:
        self.scores, self.dies_at, self.weights = scores, dies_at, []
        self.model: Any = None

    def __call__(self) -> float:
        epoch = len(self.model.description.validation_by_epoch.get("mine", [])) + 1
        if epoch == self.dies_at:
            self.dies_at = None
            raise KeyboardInterrupt
        self.weights.append(self.model.classifiers[0].weight.detach().clone())
        return self.scores[epoch - 1]

    def fingerprint(self) -> str:
        return "scripted"


def test_losses_by_hand():
    found = layer_losses(torch.tensor([[[0.0, 0.0], [20.0, 0.0]]]), torch.tensor([0]))
    torch.testing.assert_close(found, torch.tensor([[0.6931, 0.0]]), atol=1e-4, rtol=0)
    regression = layer_losses(torch.tensor([[[1.0], [3.0]]]), torch.tensor([2.5]))
    torch.testing.assert_close(regression, torch.tensor([[2.25, 0.25]]))
    losses = torch.tensor([[1.0, 2.0, 4.0], [3.0, 0.0, 0.0]])
    torch.testing.assert_close(depth_weighted_loss(losses), torch.tensor((1 * 2.0 + 2 * 1.0 + 3 * 2.0) / 6))


def test_distillation_by_hand():
    logits = torch.tensor([[[0.0, 0.0], [2.0, 0.0]]], requires_grad=True)
    teacher = (logits[0, 1].detach() / 2).softmax(dim=0)
    loss = distillation_loss(logits, temperature=2.0)
    torch.testing.assert_close(loss, 4 * (teacher * (teacher * 2).log()).sum())
    loss.backward()
    assert (logits.grad[0, 1] == 0).all(), "the teacher gets no gradient"
    assert (logits.grad[0, 0] != 0).all()


def test_rows_are_held_out_once_and_some_remain(tiny_model):
    source = training_source(tiny_model(), make_task(rows=20), RECIPE)
    learned, held_out = hold_out(source, 0.1)
    assert (len(learned), len(held_out)) == (18, 2)
    assert sorted([*learned.encodings, *held_out.encodings], key=str) == sorted(source.encodings, key=str)
    with pytest.raises(UserError, match="no training row"):
        hold_out(source, 0.99)


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_training_learns_the_toy_task(tiny_model, precision):
    task, model = make_task(), tiny_model()
    train_jointly(model, task, replace(RECIPE, epochs=12, learning_rate=3e-3, precision=precision))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    trace = record_trace(model, task.train)
    accuracy = (trace.logits[:, -1].argmax(-1) == trace.labels).double().mean()
    majority = max((trace.labels == label).double().mean() for label in range(3))
    assert accuracy > majority + 0.2
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_batches_of_like_length_hold_every_row_once_and_little_padding(tiny_model, monkeypatch):
    def draw(recipe: Recipe) -> tuple[list[torch.Tensor], list[int]]:
        model = tiny_model()
        source = training_source(model, make_task(rows=330), recipe)
        batches, real = [], TokenSource.batch
        with monkeypatch.context() as patch:
            patch.setattr(TokenSource, "batch", lambda s, rows, n: batches.append(rows) or real(s, rows, n))
            stage = token_stage("none", lambda model, _: model.classifiers[0].bias.sum(), recipe)
            run_stage(model, source, stage, recipe)
        return batches, [max(source.lengths[rows].tolist()) for rows in batches]

    batches, widths = draw(replace(RECIPE, group_by_length=True))
    steps = len(batches) // 2
    for epoch in (batches[:steps], batches[steps:]):
        assert torch.equal(torch.cat(epoch).sort().values, torch.arange(330))
    assert not torch.equal(torch.cat(batches[:steps]), torch.cat(batches[steps:]))
    assert sum(widths) < 0.8 * sum(draw(RECIPE)[1])
    assert widths[:steps] != sorted(widths[:steps]), "short batches first would be a curriculum"


def test_the_device_of_the_environment_is_used_or_refused(monkeypatch):
    for device in ("cpu", "meta"):
        monkeypatch.setenv("CONSISTENTEE_DEVICE", device)
        assert chosen_device().type == device
    monkeypatch.setenv("CONSISTENTEE_DEVICE", "cuda:77")
    with pytest.raises(UserError, match="cuda:77"):
        chosen_device()
