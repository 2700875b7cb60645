"""LayerSkip (Elhoushi et al., ACL 2024, arXiv 2404.16710): draft with the first layers, verify with the others.

Decoding (section 4.3, "self-speculative decoding"): the exit at the draft layer writes some tokens, the remaining
layers then read them all at once, and what they agree with is kept, with one token of their own after it. Keys and
values of the first layers are shared. A greedy text is the full model's, token for token, whatever the exits were
trained on; what training changes is how many drafts are accepted.

Training (section 4.1), where the recipe trains the backbone: a row skips layer l with probability
``dropout * (exp((l - 1) ln 2 / (L - 1)) - 1)``, from 0 at layer 1 to ``dropout`` at layer L; and every exit learns to
say the next token, weights growing with depth. With a frozen backbone there is no layer dropout: the exits alone are
trained, by the stage that all methods share. Choices: exits have adapters; and, unless parameters say otherwise, every
step trains all exits, with weights in proportion to depth. The paper's exits take turns (``curriculum: rotational``, or
``gradual``) and weigh as the square of depth (``exit_weights: squared depth``): see
:mod:`consistentee.training.decoder.backbone_losses`.

The rule is the draft's: every token leaves at the draft layer. Without verification, that is a static exit.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from consistentee.data.prompts import TextTask
from consistentee.errors import UserError
from consistentee.methods.drafting import DraftingMethod
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.training.decoder.stages import train_exits
from consistentee.training.recipe import ExitCurriculum, ExitWeights, TokenRecipe


@dataclass(frozen=True)
class LayerSkip(DraftingMethod):
    """Self-speculative decoding.

    Attributes:
        dropout: probability that a row skips layer L in training.
        curriculum: which exits learn at a step.
        exit_weights: what their losses weigh. Without dropout and with the recipe's weights, LayerSkip drafts on the
            backbone that the other methods of a suite share.
    """

    name: ClassVar[str] = "layerskip"
    paper: ClassVar[str] = "Elhoushi et al., LayerSkip, ACL 2024, arXiv 2404.16710"

    dropout: float = 0.1
    curriculum: ExitCurriculum = "all"
    exit_weights: ExitWeights = "depth"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1:
            raise UserError(f"{self.name}: dropout must lie in [0, 1), got {self.dropout:g}")

    @property
    def asks_exits(self) -> bool:
        return True

    def fit(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> MultiExitDecoder:
        """Train the exits, with layer dropout where the backbone is trained."""
        self.check_task(task)
        own_loss = replace(
            recipe,
            layer_dropout=self.dropout,
            exit_curriculum=self.curriculum,
            exit_weights=self.exit_weights,
            taught_share=0.0,
        )
        train_exits(model, task, own_loss)
        return model
