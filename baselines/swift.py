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

import logging
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
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from consistentee import (
    DraftingMethod,
    ExitRule,
    Knob,
    MultiExitDecoder,
    NeverExit,
    SkippedSublayers,
    TextTask,
    TokenRecipe,
    UserError,
    generate_encoded,
)
from consistentee.arguments import Fraction
from consistentee.engine.token_batch import TokenBatch
from consistentee.files import computed_once, hash_json
from consistentee.methods.token_methods import DraftedBy
from consistentee.models.base import chosen_device
from consistentee.progress import tracked
from consistentee.training import train_exits
from consistentee.training.decoder import training_rows

_GUESSED_EVERY = 25
_KAPPA = 2.5
GUESSES = 1000
_NOISE = 1e-2

Places = NDArray[np.bool_]
"""Whether each sublayer is skipped: attentions of layers 2 to L - 1, then MLPs, bool [2 (L - 2)]."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SWIFT(DraftingMethod):
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
    knob: ClassVar[Knob] = Knob("skipped sublayers in %", (45.0, 30.0, 15.0, 0.0))

    published: ClassVar[tuple[int, float]] = (25, 0.8)
    hidden_effects: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("search_prompts", "search_tokens", "max_sets", "max_failures", "good_enough"),
        "there are four sets of one sublayer, and the same is the best on all texts",
    )

    threshold: Fraction | None = None
    search_prompts: PositiveInt = 2
    search_tokens: Annotated[int, Field(ge=2)] = 50
    max_sets: PositiveInt = 1000
    max_failures: PositiveInt = 300
    good_enough: float = 0.93

    def fit(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> MultiExitDecoder:
        """Search the sublayers to skip for every value of the knob, after training the backbone if the recipe does.

        Raises UserError for a family whose sublayers cannot be skipped.
        """
        model.stepper.check_sublayers()
        if recipe.trains != "exits":
            train_exits(model, task, recipe)
        model.to(chosen_device()).eval()
        prompts = [prompt for prompt, _ in training_rows(model, task, recipe)[: self.search_prompts]]
        search = partial(self._search, model, prompts, recipe)
        if recipe.store is None:
            found = search()
        else:  # once for all cells of a backbone and prompts
            limits = [self.search_tokens, self.max_sets, self.max_failures, self.good_enough]
            key = hash_json([model.backbone_fingerprint(), prompts, limits, self.version, recipe.seed])
            found = computed_once(recipe.store / f"skipped-{key[:16]}.safetensors", search)
        model.description.skipped = {int(share): sublayers_at(places.numpy()) for share, places in found.items()}
        return model

    def _search(self, model: MultiExitDecoder, prompts: list[Sequence[int]], recipe: TokenRecipe) -> dict[str, Tensor]:
        """Find the best places for every share: bool [2 (L - 2)] each."""
        texts = DraftedTexts(model, prompts, self.search_tokens)
        found = {}
        for share in map(round, self.knob.values):
            search = LayerSetSearch(model.num_layers, share / 100, seed=recipe.seed)
            places, score = search.run(texts.score, self, f"searching {share}%")
            found[str(share)] = torch.from_numpy(places)
            _logger.info("%d %% of sublayers: %d skipped, score %.3f", share, places.sum(), score)
        return found

    def knob_values(self, model: MultiExitDecoder) -> Sequence[float]:
        return self.knob.values

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Never exit: drafts use no exit."""
        if knob not in self.knob.values:
            raise UserError(f"{self.name} searches for {', '.join(f'{v:g}' for v in self.knob.values)} %, not {knob:g}")
        return NeverExit()

    def drafter(self, model: MultiExitDecoder, knob: float) -> DraftedBy:
        """Return the sublayers that drafts skip. Raises UserError for a model without a search."""
        if round(knob) not in model.description.skipped:
            raise UserError(f"no sublayers to skip were searched for in this model: train it with {self.name}")
        skipped = model.description.skipped[round(knob)]
        return {"skipped": skipped} if len(skipped) else {}


class DraftedTexts:
    """Texts of the full model after some prompts, and the share of their tokens that a draft predicts.

    ``tokens`` is the maximum length of a text. Raises UserError if no text has two tokens.
    """

    @torch.inference_mode()
    def __init__(self, model: MultiExitDecoder, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        count = min(tokens, model.stepper.position_limit - max(map(len, prompts)))
        texts = generate_encoded(model, prompts, NeverExit(), max_new_tokens=count).tokens
        self._model = model
        self.texts = pad_sequence(texts, batch_first=True, padding_value=model.pad_id).to(model.device)
        lengths = torch.tensor([len(text) for text in texts], device=model.device)
        columns = self.texts.shape[1] - 1
        self._follows = torch.arange(columns, device=model.device) < (lengths - 1).unsqueeze(1)  # bool [texts, columns]
        if not self._follows.any():
            raise UserError("no text has a second token to draft after the prompts that sublayers are searched on")
        self._batch = TokenBatch(model, len(prompts), max(map(len, prompts)) + columns)
        self._batch.read(self._batch.rows(), prompts)
        self._batch.begin(self._batch.rows(), columns)

    @torch.inference_mode()
    def score(self, skipped: SkippedSublayers) -> float:
        """Compute the share of tokens that the model without some sublayers predicts, in one pass."""
        model, columns = self._model, self.texts.shape[1] - 1
        rows = self._batch.rows()
        context = self._batch.context(rows, self._batch.newest_columns(rows, columns))
        hidden = model.stepper.embed(self.texts[:, :-1], context.positions)
        hidden = skipped.run(model.stepper, hidden, context)
        self._batch.cache.ledger.take_back(columns)
        predicted = model.logits(model.num_layers, hidden[self._follows]).argmax(dim=-1)
        return float((predicted == self.texts[:, 1:][self._follows]).double().mean())


class LayerSetSearch:
    """Search of the sublayers to skip: a share of those of layers 2 to L - 1."""

    def __init__(self, num_layers: int, share: float, seed: int) -> None:
        self._inner = max(num_layers - 2, 0)
        self._count = int(share * 2 * self._inner + 1e-9)
        self._random = np.random.default_rng([seed, self._count])
        self._scores: dict[bytes, float] = {}

    def run(
        self, score: Callable[[SkippedSublayers], float], limits: SWIFT, title: str = "searching"
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
        """Return the set, of new random ones, with the largest upper confidence bound."""
        process = GaussianProcessRegressor(Matern(nu=2.5), alpha=_NOISE, normalize_y=True, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length that lies at its bound will do
            tried = np.array([np.frombuffer(places, dtype=np.bool_) for places in self._scores], dtype=float)
            process.fit(tried, list(self._scores.values()))
        drawn = np.array([self._draw_new() for _ in range(GUESSES)])
        mean, deviation = process.predict(drawn.astype(float), return_std=True)
        best: Places = drawn[int(np.argmax(mean + _KAPPA * deviation))]
        return best


def sublayers_at(places: Places) -> SkippedSublayers:
    """Convert places to skipped sublayers."""
    halves = places.reshape(2, len(places) // 2)
    attention, mlp = (tuple((half.nonzero()[0] + 2).tolist()) for half in halves)
    return SkippedSublayers(attention, mlp)
