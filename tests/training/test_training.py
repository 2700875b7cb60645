"""Training of both kinds of rows: determinism, resuming, the store; and losses and batches of instances."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from conftest import make_task, make_text_task

from consistentee.data.metrics import score
from consistentee.errors import UserError
from consistentee.files import LOCK
from consistentee.traces.instance_trace import record_trace
from consistentee.training import loop
from consistentee.training.sources import DrawnRows, DrawnTokens
from consistentee.training.decoder import train_exits
from consistentee.training.loop import run_stage
from consistentee.training.recipe import Recipe, TokenRecipe
from consistentee.training.sources import TokenSource
from consistentee.training.encoder import depth_weighted_loss, layer_losses, token_stage, train_jointly, training_source

RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=32)
TOKEN_RECIPE = TokenRecipe(exit_steps=8, exit_batch_size=16, exit_learning_rate=1e-2, trains="all", backbone_steps=3)


@dataclass(frozen=True)
class Kind:
    """The training that all methods of one kind share.

    Attributes:
        new_model: () -> a fresh model.
        train: (model, task, recipe).
        task, recipe: what it is trained on, and how, in eight steps of the last stage.
        last_source: where the rows of the last stage come from.
        sources: all that rows come from.
        stage: the last one's name in the store.
        files: how many the store holds in the end.
    """

    new_model: Callable[[], Any]
    train: Callable[[Any, Any, Any], object]
    task: Any
    recipe: Any
    last_source: type
    sources: tuple[type, ...]
    stage: str
    files: int

    def trained(self, **changes: object) -> dict[str, torch.Tensor]:
        """Return the weights of a model trained with some changes of the recipe."""
        model = self.new_model()
        self.train(model, self.task, replace(self.recipe, **changes))
        return model.state_dict()


@pytest.fixture(params=["instances", "tokens"])
def kind(request, tiny_model, tiny_decoder) -> Kind:
    if request.param == "instances":
        return Kind(tiny_model, train_jointly, make_task(), RECIPE, TokenSource, (TokenSource,), "joint", files=1)
    sources, files = (DrawnRows, DrawnTokens), 4  # two passes and two stages
    return Kind(tiny_decoder, train_exits, make_text_task(), TOKEN_RECIPE, DrawnTokens, sources, "exits", files)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


class TestTheLoop:
    def test_seed_decides_everything(self, kind):
        weights = []
        for seed in (0, 0, 1):
            torch.rand(seed + 3)  # the state of the global generator must not matter
            weights.append(kind.trained(seed=seed))
        assert same(weights[0], weights[1])
        assert not same(weights[0], weights[2])

    def test_the_global_generator_is_left_alone(self, kind):
        model = kind.new_model()
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        kind.train(model, kind.task, kind.recipe)
        assert torch.equal(torch.rand(3), expected)

    def test_interrupted_it_ends_as_if_it_had_not_been(self, kind, tmp_path, monkeypatch):
        monkeypatch.setattr(loop, "CHECKPOINT_STEPS", 3)
        straight = kind.trained()
        steps, real = [], kind.last_source.batch

        def interrupted(source, rows, step):
            steps.append(step)
            if len(steps) == 6:
                raise KeyboardInterrupt
            return real(source, rows, step)

        monkeypatch.setattr(kind.last_source, "batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kind.trained(store=tmp_path)
        assert len(list(tmp_path.glob("*.checkpoint.safetensors"))) == 1
        resumed = kind.trained(store=tmp_path)
        assert steps == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7], "training goes on from the last checkpoint"
        assert same(straight, resumed)
        assert not list(tmp_path.glob("*.checkpoint.*"))


class TestTheJudge:
    def test_every_epoch_is_scored_and_the_store_keeps_it(self, tiny_model, tmp_path):
        def trained(**changes: object) -> dict[str, list[float]]:
            model = tiny_model()
            train_jointly(model, make_task(), replace(RECIPE, epochs=3, **changes))
            return model.description.validation_by_epoch

        scores = trained(store=tmp_path)
        assert [len(found) for found in scores.values()] == [3]
        assert trained(store=tmp_path) == scores == trained()
        assert all(0 <= score <= 1 for score in scores["joint"])

    def test_scores_on_other_validation_rows_are_not_taken_from_the_store(self, tiny_model, tmp_path):
        recipe = replace(RECIPE, store=tmp_path)
        train_jointly(tiny_model(), make_task(), recipe)
        other = tiny_model()
        train_jointly(other, make_task().capped(validation=5), recipe)
        assert len(list(tmp_path.glob("joint-*.safetensors"))) == 1
        assert other.description.validation_by_epoch == {}

    def test_the_last_score_is_that_of_the_trained_model(self, tiny_model):
        model, task = tiny_model(), make_task()
        train_jointly(model, task, replace(RECIPE, epochs=2))
        trace = record_trace(model, task.validation)
        exits = [trace.view(layer).predictions.numpy() for layer in range(1, model.num_layers + 1)]
        expected = [score(task.metric, task.validation.labels, answers) for answers in exits]
        assert model.description.validation_by_epoch["joint"][-1] == pytest.approx(sum(expected) / len(expected))

    def test_an_interrupted_run_knows_the_epochs_before(self, tiny_model, tmp_path, monkeypatch):
        monkeypatch.setattr(loop, "CHECKPOINT_STEPS", 1)
        recipe, model = replace(RECIPE, epochs=4), tiny_model()
        train_jointly(model, make_task(), recipe)
        real, steps = TokenSource.batch, []

        def interrupted(source, rows, step):
            steps.append(step)
            if len(steps) == 6:
                raise KeyboardInterrupt
            return real(source, rows, step)

        monkeypatch.setattr(TokenSource, "batch", interrupted)
        again = tiny_model()
        with pytest.raises(KeyboardInterrupt):
            train_jointly(again, make_task(), replace(recipe, store=tmp_path))
        resumed = tiny_model()
        train_jointly(resumed, make_task(), replace(recipe, store=tmp_path))
        assert resumed.description.validation_by_epoch == model.description.validation_by_epoch


class TestTheStore:
    def test_a_shared_stage_is_trained_once(self, kind, tmp_path, monkeypatch):
        first = kind.trained(store=tmp_path)
        assert len(list(tmp_path.glob("*.safetensors"))) == kind.files
        with monkeypatch.context() as patch:
            for source in kind.sources:
                patch.setattr(source, "batch", lambda *_: pytest.fail("the store was not used"))
            assert same(first, kind.trained(store=tmp_path))
            patch.setattr("consistentee.training.stage.TRAINING_VERSION", -1)
            with pytest.raises(pytest.fail.Exception, match="the store was not used"):
                kind.trained(store=tmp_path)

    @pytest.mark.parametrize("taken", ["float32", "bfloat16"])
    def test_auto_is_kept_as_the_precision_it_took(self, tiny_model, tmp_path, monkeypatch, taken):
        monkeypatch.setattr(loop, "precision_used", lambda setting, device: taken if setting == "auto" else setting)
        recipe = replace(RECIPE, epochs=1, store=tmp_path)
        for precision in (taken, "auto"):
            train_jointly(tiny_model(), make_task(), replace(recipe, precision=precision))
        assert len(list(tmp_path.glob("joint-*.safetensors"))) == 1

    @pytest.mark.parametrize(
        ("kind", "change"),
        [
            *(
                ("instances", change)
                for change in (
                    {"seed": 1},
                    {"epochs": 2},
                    {"learning_rate": 2e-3},
                    {"max_rows": 40},
                    {"max_length": 16},
                    {"precision": "bfloat16"},
                    {"group_by_length": True},
                )
            ),
            *(
                ("tokens", change)
                for change in (
                    {"seed": 1},
                    {"exit_steps": 2},
                    {"target": "label"},
                    {"max_rows": 20},
                    {"max_new_tokens": 3},
                )
            ),
        ],
        ids=str,
        indirect=["kind"],
    )
    def test_whatever_matters_changes_the_key(self, kind, tmp_path, change):
        short = {"epochs": 1} if isinstance(kind.recipe, Recipe) else {"exit_steps": 1, "trains": "exits"}
        for changes in (short, short | change):
            kind.trained(store=tmp_path, **changes)
        assert len(list(tmp_path.glob(f"{kind.stage}-*.safetensors"))) == 2

    def test_a_full_disk_is_named_and_leaves_nothing_behind(self, kind, tmp_path, monkeypatch):
        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(UserError, match="disk full while writing"):
            kind.trained(store=tmp_path)
        assert {path.suffix for path in tmp_path.iterdir()} == {LOCK}, "they are empty, and cleared by the next run"

    def test_a_damaged_stage_is_named_and_trained_again(self, kind, tmp_path, caplog):
        first = kind.trained(store=tmp_path)
        (stored,) = tmp_path.glob(f"{kind.stage}-*.safetensors")
        stored.write_bytes(stored.read_bytes()[:100])
        assert same(first, kind.trained(store=tmp_path))
        assert f"{stored} is damaged" in caplog.text

    def test_a_methods_own_loss_is_kept_by_the_methods_version(self, tiny_model, tmp_path):
        recipe = replace(RECIPE, epochs=1, store=tmp_path)

        def stages_kept(method: str) -> int:
            model = tiny_model()
            stage = token_stage("mine", own_loss, recipe, shared=True)
            run_stage(model, training_source(model, make_task(), recipe), stage, replace(recipe, method=method))
            return len(list(tmp_path.glob("mine-*.safetensors")))

        assert stages_kept("mine 1") == stages_kept("mine 1") == 1
        assert stages_kept("mine 2") == 2


def own_loss(model, batch):
    return model(batch.tokens).logits.square().mean()


# ---------------------------------------------------------------------------------------------- instances


def test_layer_losses_by_hand():
    logits = torch.tensor([[[0.0, 0.0], [20.0, 0.0]]])
    torch.testing.assert_close(
        layer_losses(logits, torch.tensor([0])), torch.tensor([[0.6931, 0.0]]), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        layer_losses(torch.tensor([[[1.0], [3.0]]]), torch.tensor([2.5])), torch.tensor([[2.25, 0.25]])
    )


def test_depth_weighted_loss_by_hand():
    losses = torch.tensor([[1.0, 2.0, 4.0], [3.0, 0.0, 0.0]])
    torch.testing.assert_close(depth_weighted_loss(losses), torch.tensor((1 * 2.0 + 2 * 1.0 + 3 * 2.0) / 6))


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_training_learns_the_toy_task(tiny_model, precision):
    task, model = make_task(rows=300), tiny_model()
    train_jointly(model, task, replace(RECIPE, epochs=6, learning_rate=3e-3, precision=precision))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    trace = record_trace(model, task.test)
    accuracy = (trace.logits[:, -1].argmax(-1) == trace.labels).double().mean()
    majority = max((trace.labels == label).double().mean() for label in range(3))
    assert accuracy > majority + 0.1
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_loss_that_is_not_finite_is_named(tiny_model):
    model = tiny_model()
    stage = token_stage("joint", lambda m, batch: own_loss(m, batch) * float("nan"), RECIPE)
    with pytest.raises(UserError, match="loss of stage 'joint' is nan at step 1"):
        run_stage(model, training_source(model, make_task(), RECIPE), stage, RECIPE)


class TestBatchesOfLikeLength:
    @pytest.fixture
    def drawn(self, tiny_model, monkeypatch):
        """Return a function: recipe -> the row numbers of every batch, and the width of each."""

        def draw(recipe: Recipe) -> tuple[list[torch.Tensor], list[int]]:
            model = tiny_model()
            source = training_source(model, make_task(rows=330), recipe)
            batches, real = [], TokenSource.batch
            with monkeypatch.context() as patch:
                patch.setattr(TokenSource, "batch", lambda s, rows, n: batches.append(rows) or real(s, rows, n))
                stage = token_stage("none", lambda model, _: model.classifiers[0].bias.sum(), recipe)
                run_stage(model, source, stage, recipe)
            return batches, [max(source.lengths[rows].tolist()) for rows in batches]

        return draw

    def test_they_hold_every_row_once_and_little_padding(self, drawn):
        batches, widths = drawn(replace(RECIPE, group_by_length=True))
        steps = len(batches) // 2
        for epoch in (batches[:steps], batches[steps:]):
            assert torch.equal(torch.cat(epoch).sort().values, torch.arange(330))
        assert not torch.equal(torch.cat(batches[:steps]), torch.cat(batches[steps:]))
        assert sum(widths) < 0.8 * sum(drawn(RECIPE)[1])
        assert widths[:steps] != sorted(widths[:steps]), "short batches first would be a curriculum"

    def test_they_go_on_after_an_interruption(self, tiny_model, tmp_path, monkeypatch):
        monkeypatch.setattr(loop, "CHECKPOINT_STEPS", 2)
        recipe = replace(RECIPE, group_by_length=True, store=tmp_path)
        seen, real = [], TokenSource.batch

        def interrupted(source, rows, step):
            seen.append((step, rows.tolist()))
            if len(seen) == 6:
                raise KeyboardInterrupt
            return real(source, rows, step)

        monkeypatch.setattr(TokenSource, "batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_jointly(tiny_model(), make_task(), recipe)
        train_jointly(tiny_model(), make_task(), recipe)
        first, again = dict(seen[:6]), dict(seen[6:])
        assert list(again) == [4, 5, 6, 7]
        assert again[4] == first[4]
        assert again[5] == first[5]
