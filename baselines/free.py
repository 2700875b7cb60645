"""FREE (Bae et al., EMNLP 2023, arXiv 2310.05424): one shallow exit or full depth, without approximation.

Rule ("shallow-deep module"): there is one exit, after a shallow layer; a token exits there if the difference of the two
largest probabilities is above a threshold. Keys and values ("synchronized parallel decoding"): tokens that exited wait
and run the deep layers together with the next token that runs them, which is ``kv="exact"`` here.

Choices: the shallow exit is by default the one nearest to a quarter of the depth. With a frozen backbone exits are
adapters, trained in the shared stage. If the backbone is trained, the loss is the weighted sum over all exits, without
the paper's distillation of hidden states. The threshold is swept; the paper's online estimator is not used.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import consistentee as ee
from consistentee.signals import even_log_odds, margin


@dataclass(frozen=True)
class FREE(ee.TokenMethod):
    """One shallow exit, or full depth.

    Attributes:
        shallow_layer: the exit; None for the one nearest to a quarter of the depth.
    """

    name: ClassVar[str] = "free"
    paper: ClassVar[str] = "Bae et al., FREE, EMNLP 2023, arXiv 2310.05424"
    knob: ClassVar[ee.Knob] = ee.Knob("threshold", (-1.0, *even_log_odds(-7, 7, 57), 1.0))
    kv: ClassVar[Literal["propagate", "exact"]] = "exact"
    asks_exits: ClassVar[bool] = True

    shallow_layer: int | None = None

    def fit(self, model: ee.MultiExitDecoder, task: ee.TextTask, recipe: ee.TokenRecipe) -> ee.MultiExitDecoder:
        self.shallow_exit(model)  # raises UserError before the training if there is no such exit
        return super().fit(model, task, recipe)

    def shallow_exit(self, model: ee.MultiExitDecoder) -> int:
        if self.shallow_layer is not None:
            return model.check_exit_layer(self.shallow_layer)
        return min(model.exit_layers, key=lambda layer: (abs(layer - model.num_layers / 4), layer))

    def rule(self, model: ee.MultiExitDecoder, knob: float) -> ee.ExitRule:
        return ee.SomeLayersRule(ee.ThresholdRule(margin, knob, exit_when="above"), self.shallow_exit(model))
