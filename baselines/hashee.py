"""HashEE (Sun et al., Findings of ACL 2022, arXiv 2203.01670): every token has a fixed exit layer, found by a hash.

The hash is the paper's frequency hash: frequent tokens exit early, rare ones late. A token that has exited keeps its
hidden state and is still attended to. Training uses the same exits, and the answer is read after layer L. There is no
knob: operating points come from the parameters, one training each.

Choices, as in the authors' code unless stated:

- A bucket holds an equal share of the distinct tokens of the training rows, so most tokens exit at layer 1.
- Bucket b of B exits at layer 1 + (b - 1) * floor(M / B), where M is ``max_layer``; the rarest tokens, which do not
  fill a bucket, exit one step later if there is one.
- Special tokens and tokens never seen run to layer M.
- Counts are of the training rows alone, unlike the authors', because validation rows choose operating points here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import consistentee as ee
from consistentee.training import TokenBatch, TokenSource, layer_losses, run_stage, token_stage, training_source


@dataclass(frozen=True)
class HashEE(ee.Method):
    """Tokens exit by frequency, rows never do.

    Attributes:
        max_layer: the layer after which no token is updated; None for the last.
        buckets: groups of tokens of falling frequency; None for one for each layer.
    """

    name: ClassVar[str] = "hashee"
    paper: ClassVar[str] = "Sun et al., HashEE, Findings of ACL 2022, arXiv 2203.01670"
    knob: ClassVar[ee.Knob] = ee.Knob("layer", (12.0,))
    no_effect_if: ClassVar[dict[str, tuple[str, object]]] = {"buckets": ("max_layer", 1)}
    supports_regression: ClassVar[bool] = True

    max_layer: int | None = None
    buckets: int | None = None

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        source = training_source(model, task, recipe)
        model.use_stepper(ee.TokenExitStepper.over(model.stepper, self.schedule(model, source)))
        run_stage(model, source, token_stage("token-exits", _last_layer_loss, recipe, shared=True), recipe)
        return model

    def schedule(self, model: ee.MultiExitModel, source: TokenSource) -> Tensor:
        """Compute the exit layer of every token from the training rows: int64 [vocabulary]."""
        max_layer = model.num_layers if self.max_layer is None else self.max_layer
        buckets = max_layer if self.buckets is None else self.buckets
        if not 1 <= max_layer <= model.num_layers:
            raise ee.UserError(f"{self.name}: max_layer must lie in 1..{model.num_layers}, got {max_layer}")
        if not 1 <= buckets <= max_layer:
            raise ee.UserError(f"{self.name}: buckets must lie in 1..{max_layer}, the layers there are, got {buckets}")
        tokens = torch.tensor([token for row in source.encodings for token in row.input_ids])
        counts = torch.bincount(tokens, minlength=model.backbone.config.vocab_size)
        counts[model.tokenizer.all_special_ids] = 0
        layers = 1 + frequency_buckets(counts, buckets) * (max_layer // buckets)
        return layers.where(counts > 0, max_layer).clamp_max(max_layer)

    def knob_values(self, model: ee.MultiExitModel) -> Sequence[float]:
        return (float(model.num_layers),)

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return ee.NeverExit()


def frequency_buckets(counts: Tensor, buckets: int) -> Tensor:
    """Compute every token's bucket, 0 for the most frequent tokens: int64 [vocabulary].

    Every bucket has the same number of tokens that occur; the remaining ones, fewer than ``buckets``, come after the
    last. Equally frequent tokens are in the order of their ids.
    """
    rank = torch.empty_like(counts)
    rank[counts.argsort(descending=True, stable=True)] = torch.arange(len(counts))
    size = max(1, int((counts > 0).sum()) // buckets)
    return rank // size


def _last_layer_loss(model: ee.MultiExitModel, batch: TokenBatch) -> Tensor:
    return layer_losses(model(batch.tokens).logits[:, -1:], batch.labels).mean()
