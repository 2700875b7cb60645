"""The training loop: determinism, resuming, the store, frozen weights, bad losses."""

from dataclasses import replace

import pytest
import torch
from conftest import make_task

from consistentee.errors import UserError
from consistentee.files import LOCK
from consistentee.traces.instance_trace import record_trace
from consistentee.training import loop as training
from consistentee.training import stages
from consistentee.training.loop import run_stage
from consistentee.training.recipe import Recipe
from consistentee.training.stages import depth_weighted_loss, layer_losses, token_stage, train_jointly, training_source

RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=32)


def same_weights(first, second):
    state = second.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in first.state_dict().items())


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


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_learns_the_toy_task(tiny_model, precision):
    task = make_task(rows=300)
    model = tiny_model()
    train_jointly(model, task, replace(RECIPE, epochs=12, precision=precision))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    trace = record_trace(model, task.test)
    accuracy = (trace.logits[:, -1].argmax(-1) == trace.labels).double().mean()
    majority = max((trace.labels == label).double().mean() for label in range(3))
    assert accuracy > majority + 0.1
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_batches_of_like_length_hold_every_row_once_and_little_padding(tiny_model):
    recipe = replace(RECIPE, group_by_length=True)
    source = training_source(tiny_model(), make_task(rows=330), recipe)
    stage = token_stage("joint", stages._joint_loss, recipe)
    batches = list(training._batches(source, stage, recipe, 0))
    at_random = list(training._batches(source, stage, RECIPE, 0))
    steps = len(batches) // 2
    for epoch in (batches[:steps], batches[steps:]):
        assert torch.equal(torch.cat(epoch).sort().values, torch.arange(len(source)))
    assert not torch.equal(torch.cat(batches[:steps]), torch.cat(batches[steps:]))

    def widths(batches):
        return [max(source.lengths[rows].tolist()) for rows in batches]

    assert sum(widths(batches)) < 0.8 * sum(widths(at_random))
    assert widths(batches[:steps]) != sorted(widths(batches[:steps])), "short batches first would be a curriculum"
    rest = list(training._batches(source, stage, recipe, steps + 2))
    assert all(torch.equal(*pair) for pair in zip(rest, batches[steps + 2 :], strict=True)), "as if never interrupted"


def test_seed_decides_everything(tiny_model):
    models = []
    for seed in (0, 0, 1):
        model = tiny_model()
        torch.rand(seed + 3)  # the state of the global generator must not matter
        train_jointly(model, make_task(), replace(RECIPE, seed=seed))
        models.append(model)
    assert same_weights(models[0], models[1])
    assert not same_weights(models[0], models[2])


def test_training_leaves_the_global_generator_alone(tiny_model):
    model = tiny_model()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_jointly(model, make_task(), RECIPE)
    assert torch.equal(torch.rand(3), expected)


def test_interrupted_training_ends_as_if_it_had_not_been(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 3)
    straight = tiny_model()
    train_jointly(straight, make_task(), RECIPE)

    recipe = replace(RECIPE, store=tmp_path)
    steps = []

    def interrupted_loss(model, batch):
        steps.append(batch.step)
        if batch.step == 5:
            raise KeyboardInterrupt
        return stages._joint_loss(model, batch)

    def stage(loss):
        return token_stage("joint", loss, recipe, shared=True)

    monkeypatch.setattr(training, "_name_of", lambda *loss: ["the same"])
    model = tiny_model()
    with pytest.raises(KeyboardInterrupt):
        run_stage(model, training_source(model, make_task(), recipe), stage(interrupted_loss), recipe)
    assert [path.name.endswith(".checkpoint.safetensors") for path in tmp_path.glob("*.safetensors")] == [True]

    resumed = tiny_model()
    steps.clear()

    def watched_loss(model, batch):
        steps.append(batch.step)
        return stages._joint_loss(model, batch)

    run_stage(resumed, training_source(resumed, make_task(), recipe), stage(watched_loss), recipe)
    assert steps == list(range(3, 8)), "training goes on from the last checkpoint"
    assert same_weights(straight, resumed)
    assert not list(tmp_path.glob("*.checkpoint.*"))


def test_a_shared_stage_is_trained_once(tiny_model, tmp_path, monkeypatch):
    recipe = replace(RECIPE, store=tmp_path)
    first = tiny_model()
    train_jointly(first, make_task(), recipe)
    trained = []
    monkeypatch.setattr(training, "_train", lambda *args, **kwargs: trained.append(args[2].name))
    monkeypatch.setattr(training, "TRAINING_VERSION", -1)
    second = tiny_model()
    train_jointly(second, make_task(), recipe)
    assert trained == ["joint"], "another version, another key"
    monkeypatch.undo()
    monkeypatch.setattr(training, "_batches", lambda *args: pytest.fail("the store was not used"))
    train_jointly(second, make_task(), recipe)
    assert same_weights(first, second)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"epochs": 1},
        {"learning_rate": 2e-3},
        {"max_rows": 40},
        {"max_length": 16},
        {"precision": "bfloat16"},
        {"group_by_length": True},
    ],
    ids=str,
)
def test_whatever_matters_changes_the_key(tiny_model, tmp_path, change):
    train_jointly(tiny_model(), make_task(), replace(RECIPE, store=tmp_path))
    train_jointly(tiny_model(), make_task(), replace(RECIPE, store=tmp_path, **change))
    assert len(list(tmp_path.glob("joint-*.safetensors"))) == 2


def test_a_loss_that_is_not_finite_is_named(tiny_model):
    model = tiny_model()
    stage = token_stage("joint", lambda m, batch: stages._joint_loss(m, batch) * float("nan"), RECIPE)
    with pytest.raises(UserError, match="loss of stage 'joint' is nan at step 1"):
        run_stage(model, training_source(model, make_task(), RECIPE), stage, RECIPE)


def test_a_full_disk_is_named_and_leaves_nothing_behind(tiny_model, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(UserError, match="disk full while writing"):
        train_jointly(tiny_model(), make_task(), replace(RECIPE, store=tmp_path))
    assert [path.suffix for path in tmp_path.iterdir()] == [LOCK], "a lock file is empty, and cleared by the next run"


def test_a_damaged_stored_stage_is_named_and_trained_again(tiny_model, tmp_path, caplog):
    recipe = replace(RECIPE, store=tmp_path)
    first, second = tiny_model(), tiny_model()
    train_jointly(first, make_task(), recipe)
    (stored,) = tmp_path.glob("joint-*.safetensors")
    stored.write_bytes(stored.read_bytes()[:100])
    train_jointly(second, make_task(), recipe)
    assert f"{stored} is damaged" in caplog.text
    assert same_weights(first, second)


def test_a_methods_own_loss_is_kept_by_the_methods_version(tiny_model, tmp_path):
    recipe = replace(RECIPE, store=tmp_path)

    def stages_kept(method: str) -> int:
        model = tiny_model()
        run_stage(
            model,
            training_source(model, make_task(), recipe),
            token_stage("mine", own_loss, recipe, shared=True),
            replace(recipe, method=method),
        )
        return len(list(tmp_path.glob("mine-*.safetensors")))

    assert stages_kept("mine 1") == stages_kept("mine 1") == 1
    assert stages_kept("mine 2") == 2


def own_loss(model, batch):
    return model(batch.tokens).logits.square().mean()
