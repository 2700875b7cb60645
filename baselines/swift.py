"""SWIFT (Xia et al., ICLR 2025, arXiv 2410.06916): the model without some sublayers drafts, and the whole verifies.

Nothing is trained. Drafts skip a share of the attentions and MLPs of layers 2 to L - 1 (section 4.1). The set is
searched (section 4.2): random sets, and every 25th the best by a Gaussian process over the tried sets (upper confidence
bound, kappa 2.5). A score is one pass over a text of the full model: the share of tokens that the draft predicts. The
search ends above a score of 0.93, after 300 failures in a row, or after 1000 sets.

Decoding: up to 25 tokens are drafted, none after one less probable than 0.8; here both numbers are chosen on validation
texts, with these among the candidates. The full model reads the draft in one
pass; tokens that agree are kept, with one of its own after them. Drafts attend to keys and values of the full model;
their own are discarded. A greedy text is the full model's.

Choices: the knob is the skipped share in per cent; 45 is the paper's. The search runs before decoding, on the first
training prompts, so that all sets are scored on the same texts; the paper searches while decoding. The first set, whole
layers spread evenly, has its score; the authors' code starts at 0. The process proposes one of 1000 random sets of the
right size; the paper's proposes a point and rounds it. A draft is one line of tokens, not a tree. A drafted token
counts the sublayers that it runs, by their share of the layer's weights.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch import Tensor

import consistentee as ee
from consistentee.training import compute_once, tracked, train_exits, training_rows

_GUESSED_EVERY = 25
_KAPPA = 2.5
GUESSES = 1000
_NOISE = 1e-2

Places = NDArray[np.bool_]
"""Whether each sublayer is skipped: attentions of layers 2 to L - 1, then MLPs, bool [2 (L - 2)]."""


@dataclass(frozen=True)
class SWIFT(ee.DraftingMethod):
    """Self-speculative decoding that skips sublayers.

    Attributes:
        search_prompts: training prompts whose texts score a set.
        search_tokens: maximum tokens of each text.
        max_sets: maximum number of sets to try.
        max_failures: failures in a row that end the search.
        good_enough: a score above which it ends.
    """

    name: ClassVar[str] = "swift"
    version: ClassVar[int] = 4
    paper: ClassVar[str] = "Xia et al., SWIFT, ICLR 2025, arXiv 2410.06916"
    knob: ClassVar[ee.Knob] = ee.Knob("skipped sublayers in %", (45.0, 30.0, 15.0, 0.0))

    published: ClassVar[tuple[int, float]] = (25, 0.8)
    hidden_effects: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("search_prompts", "search_tokens", "max_sets", "max_failures", "good_enough"),
        "there are four sets of one sublayer, and the same is the best on all texts",
    )

    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    search_prompts: PositiveInt = 2
    search_tokens: Annotated[int, Field(ge=2)] = 50
    max_sets: Annotated[int, Field(ge=2)] = 1000
    max_failures: PositiveInt = 300
    good_enough: Annotated[float, Field(ge=0, le=1)] = 0.93

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_failures >= self.max_sets - 1:
            self.refuse("max_failures", because="max_sets ends the search first")

    def fit(self, model: ee.MultiExitDecoder, task: ee.TextTask, recipe: ee.TokenRecipe) -> ee.MultiExitDecoder:
        """Search the sublayers to skip for every value of the knob, after training the backbone if the recipe does."""
        if recipe.trains != "exits":
            train_exits(model, task, recipe)
        model.to(ee.chosen_device()).eval()
        prompts = [prompt for prompt, _ in training_rows(model, task, recipe)[: self.search_prompts]]
        limits = [self.search_tokens, self.max_sets, self.max_failures, self.good_enough]
        depends_on = [model.backbone_fingerprint(), prompts, *limits, self.version, recipe.seed]
        found = compute_once(recipe, "skipped", depends_on, partial(self._search, model, prompts, recipe.seed))
        model.description.skipped = {int(share): sublayers_at(places.numpy()) for share, places in found.items()}
        return model

    def _search(self, model: ee.MultiExitDecoder, prompts: list[Sequence[int]], seed: int) -> dict[str, Tensor]:
        texts = ee.DraftedTexts(model, prompts, self.search_tokens)
        found = {}
        for share in map(round, self.knob.values):
            search = LayerSetSearch(model.num_layers, share / 100, seed=seed)
            places, _ = search.run(texts.score, self, f"searching {share}%")
            found[str(share)] = torch.from_numpy(places)
        return found

    def knob_values(self, model: ee.MultiExitDecoder) -> Sequence[float]:
        return self.knob.values

    def rule(self, model: ee.MultiExitDecoder, knob: float) -> ee.ExitRule:
        if knob not in self.knob.values:
            searched = ", ".join(f"{value:g}" for value in self.knob.values)
            raise ee.UserError(f"{self.name} searches for {searched} %, not {knob:g}")
        return ee.NeverExit()

    def drafter(self, model: ee.MultiExitDecoder, knob: float) -> ee.DraftedBy:
        """Return the sublayers that drafts skip. Raises UserError for a model without a search."""
        if round(knob) not in model.description.skipped:
            raise ee.UserError(f"no sublayers to skip were searched for in this model: train it with {self.name}")
        skipped = model.description.skipped[round(knob)]
        return {"skipped": skipped} if len(skipped) else {}


class LayerSetSearch:
    """Search of the sublayers to skip: a share of those of layers 2 to L - 1."""

    def __init__(self, num_layers: int, share: float, seed: int) -> None:
        self._inner = max(num_layers - 2, 0)
        self._count = int(share * 2 * self._inner + 1e-9)
        self._random = np.random.default_rng([seed, self._count])
        self._scores: dict[bytes, float] = {}

    def run(
        self, score: Callable[[ee.SkippedSublayers], float], limits: SWIFT, title: str = "searching"
    ) -> tuple[Places, float]:
        """Return the best set and its score; ``title`` is that of its progress."""
        best, best_score, failures = self.first(), -math.inf, 0
        sets = min(limits.max_sets, math.comb(2 * self._inner, self._count))
        for number in tracked(range(sets), title, rows=1):
            if best_score > limits.good_enough or failures == limits.max_failures:
                break
            guesses = number % _GUESSED_EVERY == 0
            proposed = best if number == 0 else self._guess() if guesses else self._draw_new()
            found = self._scores[proposed.tobytes()] = score(sublayers_at(proposed))
            failures = 0 if found > best_score else failures + 1
            if found > best_score:
                best, best_score = proposed, found
        return best, best_score

    def first(self) -> Places:
        """Return the first set: both sublayers of evenly spread layers."""
        whole, rest = divmod(self._count, 2)
        spread = np.arange(whole + rest) * self._inner // max(whole + rest, 1)
        places = np.zeros((2, self._inner), dtype=np.bool_)
        places[0, spread] = True
        places[1, spread[:whole]] = True
        return places.flatten()

    def _draw_new(self) -> Places:
        while True:
            places = np.zeros(2 * self._inner, dtype=np.bool_)
            places[self._random.choice(len(places), self._count, replace=False)] = True
            if places.tobytes() not in self._scores:
                return places

    def _guess(self) -> Places:
        try:
            from sklearn.exceptions import ConvergenceWarning
            from sklearn.gaussian_process import GaussianProcessRegressor
            from sklearn.gaussian_process.kernels import Matern
        except ModuleNotFoundError as error:
            raise ee.UserError('swift needs scikit-learn; run: pip install "consistentee[bench]"') from error
        process = GaussianProcessRegressor(Matern(nu=2.5), alpha=_NOISE, normalize_y=True, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length that lies at its bound will do
            tried = np.array([np.frombuffer(places, dtype=np.bool_) for places in self._scores], dtype=float)
            process.fit(tried, list(self._scores.values()))
        drawn = np.array([self._draw_new() for _ in range(GUESSES)])
        mean, deviation = process.predict(drawn.astype(float), return_std=True)
        best: Places = drawn[int(np.argmax(mean + _KAPPA * deviation))]
        return best


def sublayers_at(places: Places) -> ee.SkippedSublayers:
    """Convert places to skipped sublayers."""
    halves = places.reshape(2, len(places) // 2)
    attention, mlp = (tuple((half.nonzero()[0] + 2).tolist()) for half in halves)
    return ee.SkippedSublayers(attention, mlp)
