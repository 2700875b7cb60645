"""Stages of classification that several methods share: their rows, their losses, and the stages."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from consistentee.data.encoding import Batch, Encoding, fingerprint
from consistentee.data.metrics import score
from consistentee.data.tasks import Label, TaskData
from consistentee.errors import UserError
from consistentee.files import empty_tensor, hash_json, hash_tensors
from consistentee.models.classifiers import ClassifierSpec
from consistentee.models.encoder import LayerOutputs, MultiExitModel
from consistentee.progress import tracked
from consistentee.rules.view import predictions_of
from consistentee.traces.instance_trace import record_logits, record_outputs
from consistentee.training.loop import Judge, Source, Stage, count_rows, precision_used, run_stage
from consistentee.training.recipe import ExitNetwork, PrecisionSetting, Recipe

BACKBONE_AND_CLASSIFIERS = ("backbone.", "poolers.", "classifiers.")


# Rows


@dataclass(frozen=True)
class TokenBatch:
    """Instances as tokens: ``labels`` [rows], ``rows`` [rows], their numbers in the source, and the step, from 0."""

    tokens: Batch
    labels: Tensor
    rows: Tensor
    step: int


@dataclass(frozen=True)
class FeatureBatch:
    """Instances as cached features of a frozen backbone; other fields as in :class:`TokenBatch`."""

    outputs: LayerOutputs
    labels: Tensor
    rows: Tensor
    step: int


@dataclass(frozen=True)
class ValidationJudge:
    """The score of a model on validation rows: the mean over exits, or that of the last exit."""

    model: MultiExitModel
    encodings: Sequence[Encoding]
    labels: Sequence[Label]
    metric: str
    precision: PrecisionSetting
    every_exit: bool = True

    def __call__(self) -> float:
        with self.model.layers_in(precision_used(self.precision, self.model.device)):
            answers = predictions_of(record_logits(self.model, self.encodings))
        scored = answers if self.every_exit else answers[:, -1:]
        return fmean(score(self.metric, self.labels, answer) for answer in scored.T.numpy())

    def fingerprint(self) -> str:
        return hash_json([fingerprint(self.encodings), list(self.labels), self.metric, self.every_exit])


@dataclass(frozen=True)
class TokenSource:
    """Instances as tokens; ``labels`` [N] are class indices or targets, ``judge`` scores a model that learns them."""

    model: MultiExitModel
    encodings: Sequence[Encoding]
    labels: Tensor
    judge: ValidationJudge | None = None

    runs_backbone = True

    @cached_property
    def lengths(self) -> Tensor:
        return torch.tensor([len(encoding) for encoding in self.encodings])

    def select(self, rows: Tensor) -> "TokenSource":
        """Return some of the rows, given by their numbers, without a judge."""
        return TokenSource(self.model, [self.encodings[i] for i in rows.tolist()], self.labels[rows])

    def __len__(self) -> int:
        return len(self.encodings)

    def batch(self, rows: Tensor, step: int) -> TokenBatch:
        tokens = self.model.collate([self.encodings[i] for i in rows.tolist()])
        return TokenBatch(tokens, self.labels[rows].to(self.model.device), rows, step)

    def fingerprint(self) -> str:
        return hash_json([fingerprint(self.encodings), self.labels.tolist()])


@dataclass(frozen=True)
class FeatureSource(Source):
    """Instances as cached features of a frozen backbone; ``labels`` as in :class:`TokenSource`."""

    model: MultiExitModel
    outputs: LayerOutputs
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Tensor, step: int) -> FeatureBatch:
        device = self.model.device
        parts = (self.outputs.vectors, self.outputs.pooled, self.outputs.logits)
        outputs = LayerOutputs(*(part[rows].to(device) for part in parts))
        return FeatureBatch(outputs, self.labels[rows].to(device), rows, step)

    def fingerprint(self) -> str:
        tensors = (self.outputs.vectors, self.outputs.logits, self.labels)
        return hash_tensors({str(i): tensor for i, tensor in enumerate(tensors)})


@dataclass(frozen=True)
class StateBatch:
    """All tokens of every layer, ``states`` [rows, L, tokens, width]; ``padding_mask`` is bool [rows, tokens]."""

    states: Tensor
    padding_mask: Tensor
    labels: Tensor


@dataclass(frozen=True)
class StateSource(Source):
    """Instances as all tokens of every layer of a frozen backbone, for classifiers that attend.

    ``states`` are of all rows, one after the other, in half precision: [all tokens, L, width].
    """

    tokens: TokenSource
    states: Tensor

    @property
    def lengths(self) -> Tensor:
        return self.tokens.lengths

    @cached_property
    def by_row(self) -> tuple[Tensor, ...]:
        """Views of the states of each row: [tokens, L, width] each."""
        return self.states.split(self.lengths.tolist())

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: Tensor, step: int) -> StateBatch:
        model = self.tokens.model
        states = pad_sequence([self.by_row[row] for row in rows.tolist()], batch_first=True).transpose(1, 2)
        padding_mask = torch.arange(states.shape[2]) < self.lengths[rows].unsqueeze(1)
        labels = self.tokens.labels[rows].to(model.device)
        return StateBatch(states.to(model.device, model.dtype), padding_mask.to(model.device), labels)

    def fingerprint(self) -> str:
        return self.tokens.fingerprint()


def label_tensor(labels: Sequence[Label]) -> Tensor:
    """Turn class indices into int64 [N], or numeric targets into float32 [N]."""
    tensor = torch.tensor(labels)
    return tensor.float() if tensor.is_floating_point() else tensor


def training_source(model: MultiExitModel, task: TaskData, recipe: Recipe) -> TokenSource:
    """Return the training rows of a task as tokens; from now on the model cuts texts as the recipe does."""
    model.description.max_length = recipe.max_length
    rows, validation = recipe.training_rows(task.train), validation_source(model, task, recipe)
    judge = ValidationJudge(model, validation.encodings, task.validation.labels, task.metric, recipe.precision)
    return TokenSource(model, model.tokenize(rows.texts, recipe.max_length), label_tensor(rows.labels), judge)


def validation_source(model: MultiExitModel, task: TaskData, recipe: Recipe) -> TokenSource:
    """Return the validation rows of a task as tokens, for what has to learn from rows that the exits have not seen."""
    encodings = model.tokenize(task.validation.texts, recipe.max_length)
    return TokenSource(model, encodings, label_tensor(task.validation.labels))


def hold_out(source: TokenSource, share: float) -> tuple[TokenSource, TokenSource]:
    """Split training rows into rows to train on, and a ``share`` of them, at least one, that is held out.

    The split depends on the number of rows alone: not on a seed, and not on validation rows.
    Raises UserError if no row is left to train on.
    """
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))
    count = max(1, round(share * len(source)))
    if count >= len(source):
        raise UserError(f"a share of {share:g} held out leaves no training row of {len(source)}")
    return source.select(order[count:].sort().values), source.select(order[:count].sort().values)


# Losses


def layer_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute every layer's loss on every row, CE_t, or the squared error in a regression: float [rows, L].

    ``logits`` are [rows, L, classes]; ``labels`` [rows] are class indices, or targets if there is one output.
    """
    rows, layers, classes = logits.shape
    repeated = labels.unsqueeze(1).expand(rows, layers)
    if classes == 1:
        return functional.mse_loss(logits.squeeze(-1), repeated.to(logits.dtype), reduction="none")
    return functional.cross_entropy(logits.flatten(0, 1), repeated.flatten(), reduction="none").view(rows, layers)


def depth_weighted_loss(losses: Tensor) -> Tensor:
    """Compute ``sum_t t * CE_t / sum_t t``, averaged over rows, from losses [rows, L] (PABEE, section 3.2)."""
    weights = torch.arange(1, losses.shape[1] + 1, dtype=losses.dtype, device=losses.device)
    return (losses.mean(dim=0) * weights).sum() / weights.sum()


def distillation_loss(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute ``T^2 sum_{t<L} KL(exit L || exit t)``, averaged over rows, of logits [rows, L, classes].

    The last exit teaches and gets no gradient.
    """
    softened = (logits / temperature).log_softmax(dim=-1)
    students, teacher = softened[:, :-1], softened[:, -1:].detach()
    divergences = functional.kl_div(students, teacher.expand_as(students), log_target=True, reduction="none")
    return temperature**2 * divergences.sum(dim=(1, 2)).mean()


def student_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute :func:`distillation_loss`, which has no use for labels, as :func:`train_early_exits` asks for it."""
    return distillation_loss(logits)


def exit_distribution(probabilities: Tensor) -> Tensor:
    """Compute ``q_t = p_t * prod_{s<t} (1 - p_s)`` from P(exit) [rows, L]; q_L is the rest, whatever p_L is."""
    ones = torch.ones_like(probabilities[:, :1])
    exits = torch.cat([probabilities[:, :-1], ones], dim=1)
    return exits * torch.cat([ones, 1 - probabilities[:, :-1]], dim=1).cumprod(dim=1)


# Stages that run the backbone


def use_exit_network(model: MultiExitModel, network: ExitNetwork, recipe: Recipe) -> None:
    """Give the exits before layer L untrained classifiers of a network."""
    if network != "linear":
        model.use_classifier(ClassifierSpec(network, at_last_layer=False), recipe.seed)


def train_jointly(model: MultiExitModel, rows: TaskData | TokenSource, recipe: Recipe) -> None:
    """Train backbone and all classifiers on the depth-weighted loss: stage 1 of ConsistentEE, and all of PABEE.

    ``rows``: a task, or its training rows from :func:`training_source`. Raises UserError for a model that keeps the
    head of a fine-tuned one, whose backbone must not change.
    """
    if model.description.keeps_head:
        raise UserError("joint training changes the backbone, and this model keeps a fine-tuned one as it is")
    source = rows if isinstance(rows, TokenSource) else training_source(model, rows, recipe)
    run_stage(model, source, token_stage("joint", _joint_loss, recipe, shared=True, judge=source.judge), recipe)


def train_last_exit(model: MultiExitModel, rows: TaskData | TokenSource, recipe: Recipe) -> None:
    """Fine-tune the stock model: backbone and last classifier on CE_L (the full model; stage 1 of DeeBERT).

    A model that keeps the head of a fine-tuned one stays as it is. ``rows``: see :func:`train_jointly`.
    """
    if model.description.keeps_head:
        return
    source = rows if isinstance(rows, TokenSource) else training_source(model, rows, recipe)
    judge = source.judge and replace(source.judge, every_exit=False)
    run_stage(model, source, token_stage("last-exit", _last_exit_loss, recipe, shared=True, judge=judge), recipe)


def _joint_loss(model: MultiExitModel, batch: TokenBatch) -> Tensor:
    return depth_weighted_loss(layer_losses(model(batch.tokens).logits, batch.labels))


def _last_exit_loss(model: MultiExitModel, batch: TokenBatch) -> Tensor:
    return layer_losses(model.stock_logits(batch.tokens).unsqueeze(1), batch.labels).mean()


def token_stage(
    name: str,
    loss: Callable[[MultiExitModel, TokenBatch], Tensor],
    recipe: Recipe,
    *,
    also_trains: tuple[str, ...] = (),
    stage_key: Mapping[str, object] | None = None,
    shared: bool = False,
    judge: Judge | None = None,
) -> Stage:
    """Return a stage that trains backbone, poolers and classifiers by the recipe.

    ``also_trains``: prefixes of the names of other weights to train; all else: see :class:`Stage`.
    """
    return Stage(
        name=name,
        loss=loss,
        trains=(*BACKBONE_AND_CLASSIFIERS, *also_trains),
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        head_learning_rate=recipe.head_learning_rate,
        stage_key=stage_key or {},
        shared=shared,
        judge=judge,
    )


def steps_of(source: TokenSource, recipe: Recipe) -> int:
    """Return the number of steps of a :func:`token_stage` on these rows, for losses that change along the stage."""
    return math.ceil(len(source) / recipe.batch_size) * recipe.epochs


# Stages on the features of a frozen backbone


def recorded_logits(model: MultiExitModel, source: TokenSource, recipe: Recipe) -> Tensor:
    """Return the logits of every layer for the training rows, under the model as it is: [rows, L, classes].

    Neither states nor logits are stored; a pass that :func:`cached_rows` stored is read.
    """
    count_rows(len(source), with_gradients=False)
    return record_logits(model, source.encodings, store=recipe.store)


def cached_rows(model: MultiExitModel, source: TokenSource, recipe: Recipe) -> FeatureSource:
    """Record every layer's outputs for the training rows, under the model as it is: a source for :func:`train_heads`.

    One pass in eval mode, kept in the recipe's store: up to 8 L d bytes a row, which is 74 KB for BERT-base, and
    memory-mapped above 1 GiB.
    """
    count_rows(len(source), with_gradients=False)
    return FeatureSource(model, record_outputs(model, source.encodings, store=recipe.store), source.labels)


@torch.no_grad()
def cached_states(model: MultiExitModel, source: TokenSource, batch_size: int = 64) -> StateSource:
    """Record all tokens of every layer for the training rows, under the model as it is.

    One pass in eval mode. Half precision takes 2 L d bytes a token, 4.6 KB for MiniLM and 18 KB for BERT-base; above
    1 GiB they are memory-mapped.
    """
    count_rows(len(source), with_gradients=False)
    model.eval()
    shape = (int(source.lengths.sum()), model.num_layers, model.width)
    recorded = StateSource(source, empty_tensor(shape, torch.float16))
    for rows in tracked(source.lengths.argsort().split(batch_size), "recording states", rows=batch_size):
        batch = model.collate([source.encodings[i] for i in rows.tolist()])
        states = torch.stack(list(model.layer_states(batch)), dim=2).half().cpu()
        for row, tokens in zip(rows.tolist(), states, strict=True):
            recorded.by_row[row].copy_(tokens[: recorded.lengths[row]])
    return recorded


def early_exits(model: MultiExitModel, *patterns: str) -> tuple[str, ...]:
    """Return prefixes of weights of the exits before layer L: for ``"poolers.{}."``, ``"poolers.0."`` and so on."""
    return tuple(pattern.format(exit_index) for pattern in patterns for exit_index in range(model.num_layers - 1))


def train_early_exits(
    model: MultiExitModel,
    source: TokenSource,
    loss: Callable[[Tensor, Tensor], Tensor],
    recipe: Recipe,
    *,
    name: str,
    network: ExitNetwork,
    attention_epochs: int | None = None,
) -> None:
    """Train the exits before layer L on a frozen model that is fine-tuned already, for the recipe's ``frozen_steps``.

    They learn from cached features, or, if they attend, from the states of all tokens, recorded if there is more than
    one epoch. If the backbone has a pooler, every exit that does not attend gets its own. The frozen model has no
    dropout. ``loss`` is a function of logits [rows, L, classes] and labels [rows]. If the exits attend,
    ``attention_epochs`` runs the backbone for as many epochs instead.
    """
    use_exit_network(model, network, recipe)
    if network != "attention":
        model.use_own_poolers()
        rows, exits = cached_rows(model, source, recipe), early_exits(model, "poolers.{}.", "classifiers.{}.")
        train_heads(model, rows, partial(_of_features, loss), recipe, name=name, trains=exits)
        return
    stage = Stage(
        name=name,
        loss=partial(_of_tokens, loss),
        trains=early_exits(model, "classifiers.{}."),
        epochs=attention_epochs or math.ceil(recipe.frozen_steps / math.ceil(len(source) / recipe.batch_size)),
        batch_size=recipe.batch_size,
        learning_rate=recipe.head_learning_rate,
        dropout=False,
        judge=source.judge,
    )
    if attention_epochs is not None or stage.epochs == 1:  # states that are read once need not be recorded
        run_stage(model, source, stage, recipe)
        return
    shared = loss.__module__ == __name__  # two methods' own losses may have the same name
    on_states = replace(stage, loss=partial(_of_states, loss), shared=shared)
    run_stage(model, cached_states(model, source), on_states, recipe)


def _of_tokens(loss: Callable[[Tensor, Tensor], Tensor], model: MultiExitModel, batch: TokenBatch) -> Tensor:
    return loss(model(batch.tokens).logits, batch.labels)


def _of_states(loss: Callable[[Tensor, Tensor], Tensor], model: MultiExitModel, batch: StateBatch) -> Tensor:
    return loss(model.read_states(batch.states, batch.padding_mask).logits, batch.labels)


def _of_features(loss: Callable[[Tensor, Tensor], Tensor], model: MultiExitModel, batch: FeatureBatch) -> Tensor:
    return loss(model.read_vectors(batch.outputs.vectors).logits, batch.labels)


def train_heads(
    model: MultiExitModel,
    source: FeatureSource,
    loss: Callable[[MultiExitModel, FeatureBatch], Tensor],
    recipe: Recipe,
    *,
    name: str,
    trains: tuple[str, ...],
    stage_key: Mapping[str, object] | None = None,
) -> None:
    """Train small heads on a frozen backbone, without dropout, for the recipe's steps rounded up to whole epochs.

    ``name``, ``trains`` and ``stage_key``: see :class:`consistentee.training.Stage`.
    """
    steps_per_epoch = math.ceil(len(source) / recipe.frozen_batch_size)
    stage = Stage(
        name=name,
        loss=loss,
        trains=trains,
        epochs=math.ceil(recipe.frozen_steps / steps_per_epoch),
        batch_size=recipe.frozen_batch_size,
        learning_rate=recipe.frozen_learning_rate,
        stage_key=stage_key or {},
        dropout=False,
    )
    run_stage(model, source, stage, recipe)
