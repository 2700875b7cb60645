"""ConsistentEE's distilled variant: weights by exits, its loss, and its stages."""

import torch
from conftest import make_task

from consistentee.methods.consistent_ee import distilled as consistent_ee_distilled
from consistentee.methods.consistent_ee.distilled import ConsistentEEDistilled
from consistentee.methods.reward import exit_shares
from consistentee.models.classifiers import AttentionClassifier, LinearClassifier
from consistentee.training.recipe import Recipe
from consistentee.training.encoder import layer_losses, train_last_exit, training_source

RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-1, max_length=32)


def test_shares_go_where_rows_leave():
    sure_early = torch.tensor([[9.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    sure_late = torch.tensor([[0.1, 0.0], [0.1, 0.0], [8.0, 0.0], [1.0, 0.0]])
    torch.manual_seed(0)
    doubt = 1 - torch.stack([sure_early, sure_late]).softmax(dim=-1).amax(dim=-1)
    shares = torch.stack([exit_shares(doubt, 0.8) for _ in range(200)]).mean(dim=0)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(2))
    assert (shares >= 0.2 / 4 - 1e-6).all(), "no exit forgets a row"
    assert shares[0].argmax() == 0
    assert shares[1].argmax() == 2


def test_without_exits_all_layers_weigh_alike():
    torch.testing.assert_close(exit_shares(torch.rand(5, 4), 0.0), torch.full((5, 4), 0.25))


def test_teacher_and_labels_share_the_loss(tiny_model):
    model, task = tiny_model(), make_task()
    batch = training_source(model, task, RECIPE).batch(torch.arange(6), 0)
    logits = model(batch.tokens).logits
    teacher = torch.full((6, logits.shape[-1]), 1 / logits.shape[-1]).log()

    def loss(distilled):
        method = ConsistentEEDistilled(at_exit=0.0, distilled=distilled)
        return consistent_ee_distilled.taught_loss(method, teacher, model, batch)

    divergence = (teacher.exp().unsqueeze(1) * (teacher.unsqueeze(1) - logits.log_softmax(dim=-1))).sum(dim=-1)
    torch.testing.assert_close(loss(0.0), layer_losses(logits, batch.labels).mean())
    torch.testing.assert_close(loss(1.0), divergence.mean())
    torch.testing.assert_close(loss(0.25), 0.75 * loss(0.0) + 0.25 * loss(1.0))


def test_exits_learn_from_the_fine_tuned_model_more_slowly(tiny_model, monkeypatch):
    stages, run = [], consistent_ee_distilled.run_stage

    def watched(model, source, stage, recipe):
        stages.append((stage, {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}))
        run(model, source, stage, recipe)

    monkeypatch.setattr(consistent_ee_distilled, "run_stage", watched)
    model, fine_tuned, task = tiny_model(), tiny_model(), make_task()
    ConsistentEEDistilled().fit(model, task, RECIPE)
    train_last_exit(fine_tuned, task, RECIPE)
    [(stage, start)] = stages
    assert all(torch.equal(start[name], tensor) for name, tensor in fine_tuned.backbone.state_dict().items())
    assert (stage.epochs, stage.learning_rate, stage.head_learning_rate) == (1, 5e-4, 1e-3)
    kinds = [type(model.classifier(layer)) for layer in range(1, model.num_layers + 1)]
    assert kinds == [AttentionClassifier] * (model.num_layers - 1) + [LinearClassifier]
