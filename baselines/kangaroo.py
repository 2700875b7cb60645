"""Kangaroo (Liu et al., NeurIPS 2024, arXiv 2404.18911): an adapter that attends drafts, and the full model verifies.

The draft model is layers 1 to e, an adapter and the frozen LM head. The adapter is a norm, self-attention with a
residual, and a norm: a layer of the stock family without its MLP. It attends, so it has keys and values of its own for
every token of prompt and text.

Training: the adapter alone learns, on cached states of a frozen backbone, to say what the last exit says: cross-entropy
with its distribution.

Decoding ("double early exiting"): tokens are drafted one by one, at most ``draft_tokens`` of them, and no further
behind one whose probability is below ``threshold``. That one is verified too: layers e + 1 to L read all drafted tokens
in one pass, from the hidden states that layer e left. What agrees stays, and one token of the full model's behind it;
keys and values behind that are dropped, the adapter's too. A greedy text is the full model's.

Choices. The knob is e, as LayerSkip's is: an early layer drafts at little cost and is often refused, a late one the
other way round, which makes the curve. The threshold, which changes no text either, is a parameter, as published: 0.6.
Every exit layer below L has an adapter, all trained in one stage (mean of their losses); the paper's e, 2 of 32 layers,
is had by an exit there. An adapter starts from the norm and attention of the layer behind its exit, which reads the
same hidden states, where the authors' code starts at random. Optimiser and rate are the recipe's. An adapter reads the
last token of a draft too, which their code leaves out until it is needed: a part of a layer a pass, counted. Of their
code not repeated: it stops up to ``draft_tokens`` + 1 tokens before the end, and its loss mask is off by one.

Layers: an adapter counts by its weights, as a part of a layer, for every token that it reads.
"""

from dataclasses import dataclass
from typing import ClassVar

from consistentee.data.prompts import TextTask
from consistentee.methods.drafting import DraftingMethod
from consistentee.models.decoder.branches import BranchSpec
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.training.decoder.branch_stage import train_branches
from consistentee.training.recipe import TokenRecipe


@dataclass(frozen=True)
class Kangaroo(DraftingMethod):
    """Self-speculative decoding with an adapter that attends."""

    name: ClassVar[str] = "kangaroo"
    paper: ClassVar[str] = "Liu et al., Kangaroo, NeurIPS 2024, arXiv 2404.18911"

    draft_tokens: int = 6
    threshold: float = 0.6

    @property
    def asks_exits(self) -> bool:
        return True

    def fit(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> MultiExitDecoder:
        """Train an adapter for every exit."""
        self.check_task(task)
        train_branches(model, task, recipe, _adapter)
        return model


def _adapter(exit_layer: int) -> BranchSpec:
    return BranchSpec(copied_layer=exit_layer + 1, with_mlp=False)
