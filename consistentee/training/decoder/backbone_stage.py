"""The stage in which a decoder's backbone learns, as a whole or by low-rank updates, with what its exits have.

It costs hours where the others cost minutes, so it is shared by all methods that ask for the same one, goes on where it
was interrupted, and keeps padding out: rows of like length make a batch.
"""

from collections.abc import Sequence
from functools import partial

from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.traces.token_rows import TokenRow
from consistentee.training.decoder.backbone_losses import RowsLoss
from consistentee.training.decoder.sources import DrawnRows, StepRows
from consistentee.training.loop import run_stage
from consistentee.training.recipe import TokenRecipe
from consistentee.training.stage import Stage

_SEEDS_APART = 10_000  # of the rows that runs of one stage draw: more than anybody has seeds


def train_backbone(
    model: MultiExitDecoder,
    rows: Sequence[TokenRow],
    recipe: TokenRecipe,
    loss: RowsLoss,
    *,
    name: str = "backbone",
    also_trains: tuple[str, ...] = (),
) -> None:
    """Train the backbone by ``recipe.trains``, which must not be "exits"; the model keeps stock layers.

    Args:
        model: changed in place.
        rows: prompts and responses.
        recipe: what is trained, how long, how fast, and how often over again.
        loss: what it learns; a partial's settings are part of what the stage is known by.
        name: of the stage.
        also_trains: prefixes of the names of other weights that learn, at the rate of exits.
    """
    learns: tuple[str, ...] = ("backbone.",)
    if recipe.trains == "lora":
        model.add_lora(recipe.lora_rank, seed=recipe.seed)
        learns = model.lora_weights
    stage: Stage[MultiExitDecoder, StepRows] = Stage(
        name=f"{name}-{recipe.trains}",
        loss=loss,
        trains=(*learns, *also_trains),
        epochs=1,
        batch_size=recipe.backbone_batch_size,
        learning_rate=recipe.backbone_learning_rate,
        head_learning_rate=recipe.exit_learning_rate,
        details=_settings_of(loss),
        shared=True,
    )
    for run in range(1 + recipe.backbone_restarts):
        seed = recipe.seed + run * _SEEDS_APART
        source = DrawnRows(model, rows, recipe.backbone_steps, recipe.backbone_batch_size, seed)
        run_stage(model, source, stage, recipe.for_loop())
    if recipe.trains == "lora":
        model.merge_lora()  # so that a layer costs what a stock layer costs


def _settings_of(loss: RowsLoss) -> dict[str, object]:
    """Return what identifies a loss of its module: its name, and the settings bound to it."""
    if isinstance(loss, partial):
        return {**_settings_of(loss.func), "settings": repr((loss.args, loss.keywords))}
    return {"loss": getattr(loss, "__qualname__", repr(loss))}
