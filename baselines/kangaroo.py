"""Kangaroo (Liu et al., NeurIPS 2024, arXiv 2404.18911): an adapter with attention drafts, the full model verifies.

The draft model is layers 1 to e, an adapter and the frozen LM head. The adapter is a norm, self-attention with a
residual, and a norm, with keys and values of its own for every token.

Training: the adapter learns, on cached states of a frozen backbone, the distribution of the last exit (cross-entropy),
here until the loss on validation rows stops falling.

Decoding ("double early exiting"): some tokens are drafted one by one, and no further after one whose probability is
below a threshold. Layers e + 1 to L read all drafted tokens in one pass. Tokens that agree are kept,
with one token of the full model after them. A greedy text is the full model's.

Choices: the knob is e, as in LayerSkip. Length and threshold of drafts are chosen for each e on validation texts; 6 and
0.6, as published, are among the candidates and hold without a choice. Every exit layer below L has an
adapter, trained in one stage, which starts from the norm and attention of the next layer; the authors' code starts at
random. An adapter also reads the last token of a draft, and this is counted. Errors of the authors' code are not
repeated: it stops up to ``draft_tokens`` + 1 tokens early, and its loss mask is off by one. An adapter counts as a part
of a layer, by its weights, for every token that it reads.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

import consistentee as ee
from consistentee.training import train_branches


@dataclass(frozen=True)
class Kangaroo(ee.DraftingMethod):
    """Self-speculative decoding with an attention adapter."""

    name: ClassVar[str] = "kangaroo"
    version: ClassVar[int] = 3
    paper: ClassVar[str] = "Liu et al., Kangaroo, NeurIPS 2024, arXiv 2404.18911"
    asks_exits: ClassVar[bool] = True

    published: ClassVar[tuple[int, float]] = (6, 0.6)

    threshold: Annotated[float, Field(ge=0, le=1)] | None = None

    def fit(self, model: ee.MultiExitDecoder, task: ee.TextTask, recipe: ee.TokenRecipe) -> ee.MultiExitDecoder:
        train_branches(model, task, recipe, lambda exit_layer: ee.BranchSpec(exit_layer + 1, with_mlp=False))
        return model
