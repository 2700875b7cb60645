"""Train a stage: one loop for every method, deterministic, resumable, and never run twice for the same result.

A *stage* is a loss on some of the model's weights. Its rows come from a *source*: tokens (the whole model runs), or
cached features (a frozen backbone has run once).

With a store, a stage has a key that covers all it depends on. Its weights are kept under this key if methods share the
stage, or if the recipe keeps all stages. An interrupted stage resumes from its last checkpoint with the same result.
"""

import hashlib
import inspect
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from transformers import get_linear_schedule_with_warmup

from consistentee.errors import UserError
from consistentee.files import computed_once, hash_json, hash_tensors, load_tensors, only_one, save_tensors
from consistentee.models.base import MultiExit, Precision, chosen_device
from consistentee.progress import StopAfterStepError, tracked
from consistentee.training.recipe import BaseSettings, PrecisionSetting, Recipe, TokenRecipe
from consistentee.versions import TRAINING_VERSION, users_code

CHECKPOINT_STEPS = 200
"""Steps between two checkpoints; fewer if steps take long."""

CHECKPOINT_SECONDS = 300.0

_BATCHES_SORTED_TOGETHER = 16
"""Enough to remove nearly all padding, few enough that a batch's rows still come from everywhere."""

LOSS_POINTS = 50
"""Most points of the curve of a stage's loss."""

_SCORES = "validation_by_epoch"
_LOSSES = "losses"
_WEIGHT, _BEST = "weight/", "best/"
_RANDOM, _DEVICE_RANDOM = "random_state", "random_state_device"

_log: ContextVar["TrainingLog | None"] = ContextVar("log", default=None)

_OWN_PACKAGE = f"{__name__.rpartition('.')[0]}."

AnyRecipe = Recipe | TokenRecipe

Loss = Callable[..., Tensor]
"""(model, batch of the source) -> scalar; every loss names the model and the batch that it takes."""


class Source(Protocol):
    """A number of rows, which a stage reads in batches. Sources that inherit from it are of a frozen backbone."""

    runs_backbone: bool = False
    """Whether the loss runs the backbone on the rows."""

    @property
    def lengths(self) -> Tensor | None:
        """Tokens of every row [N]; None if batches have no padding, or rows come in an order of their own."""
        return None

    def __len__(self) -> int:
        """Return the number of rows."""

    def batch(self, rows: Tensor, step: int) -> object:
        """Return the given rows, padded, on the model's device, as the loss takes them."""

    def fingerprint(self) -> str:
        """Return a hash of all rows."""


class Judge(Protocol):
    """A score on validation rows of the model that a stage trains."""

    def __call__(self) -> float:
        """Score the model as it is."""

    def fingerprint(self) -> str:
        """Return a hash of the rows and of the score."""


@dataclass(frozen=True)
class Stage:
    """A loss on some of the model's weights.

    Attributes:
        name: for progress bars and the store.
        loss: see :data:`Loss`.
        trains: prefixes of the names of the weights that change; all others are frozen.
        epochs, batch_size: how long.
        learning_rate: peak rate of the backbone, if it is trained.
        head_learning_rate: peak rate of everything else; by default the same.
        stage_key: the values that the loss depends on, besides its rows and the model: hyperparameters, tensors.
        shared: keep the weights in the store, for the next method that needs the same stage.
        dropout: train mode; a stage on cached features has no use for it.
        judge: scores the model after every epoch, for the model's description.
        patience: epochs without a better score after which the stage ends, with the weights of its best epoch; None
            runs all epochs, and keeps the last weights.
    """

    name: str
    loss: Loss
    trains: tuple[str, ...]
    batch_size: int
    learning_rate: float
    head_learning_rate: float | None = None
    epochs: int = 1
    stage_key: Mapping[str, object] = field(default_factory=dict)
    shared: bool = False
    dropout: bool = True
    judge: Judge | None = None
    patience: int | None = None


@dataclass
class TrainingLog:
    """Losses of the stages of a training, and the rows that they passed through the backbone.

    Attributes:
        losses: mean losses in equal parts of a stage's steps, by the stage's name.
        rows: rows that were passed through the whole backbone. A pass with gradients counts 1 a row, a pass without
            them a third. A shared stage counts for every method that uses it, even if it was trained before.
            Validation rows do not count.
    """

    losses: dict[str, list[float]] = field(default_factory=dict)
    rows: float = 0.0


@contextmanager
def logged_training() -> Iterator[TrainingLog]:
    """Collect losses and cost of every stage in the block."""
    log = TrainingLog()
    token = _log.set(log)
    try:
        yield log
    finally:
        _log.reset(token)


def count_rows(rows: float, *, with_gradients: bool) -> None:
    """Count rows that are passed through the backbone, see :class:`TrainingLog`."""
    log = _log.get()
    if log is not None:
        log.rows += rows if with_gradients else rows / 3


@contextmanager
def counting_rows_as(share: float) -> Iterator[None]:
    """Count every row in the block as a share of one: for a model with fewer layers than the one that is compared."""
    log = _log.get()
    before = 0.0 if log is None else log.rows
    yield
    if log is not None:
        log.rows = before + share * (log.rows - before)


def run_stage(model: MultiExit, source: Source, stage: Stage, recipe: AnyRecipe) -> None:
    """Train ``model`` in place, or load the weights if the store has this very stage already.

    Leaves the model in eval mode with every weight unfrozen. Processes that need the same stage at the same time take
    turns, so that a shared one is trained once. Raises UserError when the loss is not finite.
    """
    if source.runs_backbone:
        moves = any(prefix.startswith("backbone.") for prefix in stage.trains)
        count_rows(stage.epochs * len(source), with_gradients=moves)
    model.to(chosen_device())
    recipe = replace(recipe, precision=precision_used(recipe.precision, model.device))  # the key has what was used
    if recipe.store is None:
        _train(model, source, stage, recipe, checkpoint=None)
        return
    recipe.store.mkdir(parents=True, exist_ok=True)
    key = hash_of_stage(model, source, stage, recipe)
    final = recipe.store / f"{stage.name}-{key}.safetensors"
    checkpoint = recipe.store / f"{stage.name}-{key}.checkpoint.safetensors"
    with only_one(final):
        stored = load_tensors(final)
        if stored is not None:
            _put_scores(model, stage, stored)
            _note_losses(stage.name, stored.pop(_LOSSES, torch.empty(2, 0)))  # none of a stage without steps
            model.load_state_dict(stored, strict=False)  # the key covers all other weights
            model.eval()
        else:
            losses = _train(model, source, stage, recipe, checkpoint)
            if stage.shared or recipe.keep_stages:
                weights = {name: w for name, w in model.state_dict().items() if name.startswith(stage.trains)}
                weights = {name: weight.detach().to("cpu", copy=True) for name, weight in weights.items()}
                save_tensors(weights | _curves_of(model, stage, losses), final)
        checkpoint.unlink(missing_ok=True)


def _train(model: MultiExit, source: Source, stage: Stage, recipe: AnyRecipe, checkpoint: Path | None) -> Tensor:
    model.description.validation_by_epoch.pop(stage.name, None)
    model.train(stage.dropout)
    with onednn_products(model.device), _seeded(recipe.seed, model.device):
        losses = _run_steps(model, source, stage, recipe, checkpoint)
    model.requires_grad_(True).eval()
    _note_losses(stage.name, losses)
    return losses


def _run_steps(model: MultiExit, source: Source, stage: Stage, recipe: AnyRecipe, checkpoint: Path | None) -> Tensor:
    precision = precision_used(recipe.precision, model.device)
    parameters = _freeze_all_but(model, stage.trains)
    optimizer = AdamW(_parameter_groups(parameters, stage, recipe), fused=True)
    steps_per_epoch = math.ceil(len(source) / stage.batch_size)
    total_steps = steps_per_epoch * stage.epochs
    first_step, losses, best = _resume(checkpoint, model, stage, parameters, optimizer)
    if losses is None:
        losses = torch.zeros(2, min(LOSS_POINTS, total_steps), dtype=torch.float64)
    warmup_steps = int(recipe.warmup_ratio * total_steps)
    scheduler = get_linear_schedule_with_warmup(optimizer, warmup_steps, total_steps, last_epoch=first_step - 1)
    batches = _batches(source, stage, recipe, first_step)
    steps, title = range(first_step, total_steps), f"training {stage.name}"
    saved_at = time.monotonic()
    step = first_step - 1
    try:
        for step in tracked(steps, title, rows=stage.batch_size, first=first_step, shown=recipe.progress):
            batch = source.batch(next(batches), step)
            with model.layers_in(precision):
                loss = stage.loss(model, batch)
            value = loss.item()
            if not math.isfinite(value):
                raise UserError(f"the loss of stage {stage.name!r} is {value} at step {step + 1}; lower the rate")
            losses[:, step * losses.shape[1] // total_steps] += losses.new_tensor([value, 1])
            loss.backward()
            clip_grad_norm_(list(parameters.values()), recipe.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            if (step + 1) % steps_per_epoch == 0 and stage.judge is not None:
                scores = _add_score(model, stage, stage.judge)
                since_best = len(scores) - 1 - scores.index(max(scores))
                if stage.patience is not None and not since_best:
                    best = {f"{_BEST}{name}": weight.detach().clone() for name, weight in parameters.items()}
                if since_best == stage.patience:
                    break
            is_due = (step + 1) % CHECKPOINT_STEPS == 0 or time.monotonic() - saved_at > CHECKPOINT_SECONDS
            if checkpoint is not None and is_due and step + 1 < total_steps:
                _save_checkpoint(checkpoint, parameters, optimizer, step + 1, best | _curves_of(model, stage, losses))
                saved_at = time.monotonic()
    except StopAfterStepError:
        if checkpoint is not None:
            _save_checkpoint(checkpoint, parameters, optimizer, step + 1, best | _curves_of(model, stage, losses))
        raise
    if best:
        _put_weights(best, _BEST, parameters)
    return losses


def _note_losses(stage: str, losses: Tensor) -> None:
    log = _log.get()
    if log is not None and losses.numel():
        found = log.losses
        again = sum(name.partition(" (")[0] == stage for name in found)
        means = losses[0] / losses[1]  # a stage that ended early has no losses in its last parts
        found[f"{stage} ({again + 1})" if again else stage] = means[losses[1] > 0].tolist()


def _freeze_all_but(model: MultiExit, prefixes: tuple[str, ...]) -> dict[str, nn.Parameter]:
    trained = {name: weight for name, weight in model.named_parameters() if name.startswith(prefixes)}
    if not trained:
        raise ValueError(f"no weight of the model has a name that starts with one of {prefixes}")
    model.requires_grad_(False)
    for weight in trained.values():
        weight.requires_grad_()
    return trained


def _parameter_groups(parameters: dict[str, nn.Parameter], stage: Stage, recipe: AnyRecipe) -> list[dict[str, Any]]:
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        in_backbone, is_matrix = name.startswith("backbone."), parameter.ndim > 1
        rate = stage.learning_rate if in_backbone else stage.head_learning_rate or stage.learning_rate
        decay = recipe.weight_decay if is_matrix else 0.0
        # A schedule that does not start at step 0 reads the initial rate.
        group = {"params": [], "lr": rate, "initial_lr": rate, "weight_decay": decay}
        groups.setdefault((in_backbone, is_matrix), group)["params"].append(parameter)
    return list(groups.values())


def _batches(source: Source, stage: Stage, recipe: AnyRecipe, first_step: int) -> Iterator[Tensor]:
    steps_per_epoch = math.ceil(len(source) / stage.batch_size)
    for epoch in range(first_step // steps_per_epoch, stage.epochs):
        generator = torch.Generator().manual_seed(recipe.seed * 1_000 + epoch)
        batches = torch.randperm(len(source), generator=generator).split(stage.batch_size)
        if recipe.group_by_length and source.lengths is not None:
            batches = _of_like_length(batches, source.lengths, generator)
        skipped = first_step % steps_per_epoch if epoch == first_step // steps_per_epoch else 0
        yield from batches[skipped:]


def _of_like_length(batches: tuple[Tensor, ...], lengths: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Sort the rows of some batches at a time by length, split them into batches again, and shuffle these."""
    batch_size = len(batches[0])
    by_length = []
    for start in range(0, len(batches), _BATCHES_SORTED_TOGETHER):
        rows = torch.cat(batches[start : start + _BATCHES_SORTED_TOGETHER])
        by_length += rows[lengths[rows].argsort(stable=True)].split(batch_size)
    return tuple(by_length[number] for number in torch.randperm(len(by_length), generator=generator).tolist())


def _add_score(model: MultiExit, stage: Stage, judge: Judge) -> list[float]:
    model.eval()
    score = judge()
    model.train(stage.dropout)
    scores = model.description.validation_by_epoch.setdefault(stage.name, [])
    scores.append(score)
    return scores


def _curves_of(model: MultiExit, stage: Stage, losses: Tensor) -> dict[str, Tensor]:
    scores = model.description.validation_by_epoch.get(stage.name)
    curves = {} if scores is None else {_SCORES: torch.tensor(scores, dtype=torch.float64)}
    return curves | {_LOSSES: losses} if losses.numel() else curves


def _put_scores(model: MultiExit, stage: Stage, tensors: dict[str, Tensor]) -> None:
    if _SCORES in tensors:
        model.description.validation_by_epoch[stage.name] = tensors.pop(_SCORES).tolist()


def _save_checkpoint(
    path: Path, parameters: dict[str, nn.Parameter], optimizer: AdamW, step: int, also: dict[str, Tensor]
) -> None:
    tensors = also | {f"{_WEIGHT}{name}": parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value)
    tensors |= _random_states(next(iter(parameters.values())).device)
    tensors["step"] = torch.tensor(step)
    save_tensors(tensors, path)


def _resume(
    path: Path | None, model: MultiExit, stage: Stage, parameters: dict[str, nn.Parameter], optimizer: AdamW
) -> tuple[int, Tensor | None, dict[str, Tensor]]:
    tensors = None if path is None else load_tensors(path)
    if tensors is None:
        return 0, None, {}
    _put_scores(model, stage, tensors)
    _put_weights(tensors, _WEIGHT, parameters)
    for name, parameter in parameters.items():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            stored = f"optimizer/{key}/{name}"
            if stored in tensors:
                value = tensors[stored]
                optimizer.state[parameter][key] = value.to(parameter.device)  # the fused optimiser counts there too
    _put_random_states(tensors, model.device)
    best = {name: weight for name, weight in tensors.items() if name.startswith(_BEST)}
    return int(tensors["step"]), tensors.get(_LOSSES), best


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of the CPU and of a device inside the block; after it they go on as before."""
    before = _random_states(device)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        _put_random_states(before, device)


def _random_states(device: torch.device) -> dict[str, Tensor]:
    states = {_RANDOM: torch.get_rng_state()}
    if device.type != "cpu":
        states[_DEVICE_RANDOM] = torch.get_device_module(device).get_rng_state()
    return states


def _put_random_states(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(tensors[_RANDOM])
    if _DEVICE_RANDOM in tensors and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(tensors[_DEVICE_RANDOM])


@torch.no_grad()
def _put_weights(tensors: dict[str, Tensor], prefix: str, parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(tensors[f"{prefix}{name}"])


def hash_of_stage(model: MultiExit, source: Source, stage: Stage, recipe: AnyRecipe) -> str:
    """Return a hash of everything that the result depends on: the model as it is, rows, settings, loss, versions."""
    rates = stage.learning_rate, stage.head_learning_rate or stage.learning_rate
    parts = {
        "model": model.fingerprint(),
        "rows": source.fingerprint(),
        "stage": [stage.name, stage.trains, stage.epochs, stage.batch_size, *rates],
        "details": {k: hash_tensors({k: v}) if isinstance(v, Tensor) else v for k, v in stage.stage_key.items()},
        "recipe": {setting.name: getattr(recipe, setting.name) for setting in fields(BaseSettings)},
        "seed": recipe.seed,
        "loss": _name_of(stage.loss, recipe.method),
        "training_version": TRAINING_VERSION,
        "dropout": stage.dropout,
        "judge": stage.judge and stage.judge.fingerprint(),
    }
    parts |= {"patience": stage.patience} if stage.patience is not None else {}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _name_of(loss: Loss, method: str) -> list[str]:
    """Return what identifies a loss.

    Losses of this package are covered by TRAINING_VERSION: their name. Losses of a method: also the method. A user's
    loss: also the text of its file, since no version is raised for it.
    """
    if isinstance(loss, partial):
        wrapped = [given for given in loss.args if inspect.isfunction(given) or inspect.ismethod(given)]
        parts: list[Loss] = [loss.func, *wrapped]
        return [name for part in parts for name in _name_of(part, method)]
    if loss.__module__.startswith(_OWN_PACKAGE):
        return [loss.__qualname__]
    return [loss.__qualname__, method, *users_code([loss.__module__])]


def compute_once(
    recipe: AnyRecipe, name: str, depends_on: Sequence[object], compute: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Compute tensors, or read them from the recipe's store if another cell has computed them.

    ``depends_on`` are JSON values that determine the result, besides its ``name``.
    """
    if recipe.store is None:
        return compute()
    return computed_once(recipe.store / f"{name}-{hash_json(depends_on)[:16]}.safetensors", compute)


# Precision of products


def precision_used(setting: PrecisionSetting, device: torch.device) -> Precision:
    """Return the precision that a setting stands for on this machine.

    Layers train faster in bfloat16 than in float32 on GPUs, with AMX, and on AMD's CPUs. On Intel's CPUs with
    avx512_bf16 and no AMX they take twice as long, and far longer where it is emulated.
    """
    if setting != "auto":
        return setting
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)  # torch 2.6 has none
    found: dict[str, object] = dict(capabilities()) if device.type == "cpu" else {}
    is_amd = str(found.get("cpu_name")).startswith("AMD")
    return "bfloat16" if found.get("amx_bf16") or (found.get("avx512_bf16") and is_amd) else "float32"


@contextmanager
def onednn_products(device: torch.device) -> Iterator[None]:
    """Inside the block, let oneDNN multiply float32 matrices on a CPU, if it does so in float32.

    torch uses MKL unless less precise products are allowed. Then it uses oneDNN, which on most processors multiplies in
    float32 anyway, with faster code; results are equal up to rounding.
    """
    before = torch.get_float32_matmul_precision()
    if device.type != "cpu" or before != "highest" or not onednn_keeps_float32():
        yield
        return
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def onednn_keeps_float32() -> bool:
    """Multiply matrices of some sizes and compare: bfloat16 would be off by a thousandth."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    torch.set_float32_matmul_precision("medium")
    try:
        pairs = [torch.rand(2, size, size, generator=generator) for size in (16, 128, 512)]
        errors = [((left @ right).double() / (left.double() @ right.double()) - 1).abs().max() for left, right in pairs]
        return all(bool(error < 1e-5) for error in errors)
    finally:
        torch.set_float32_matmul_precision("highest")
