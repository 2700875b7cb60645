"""A closed-form start for exits: the least-squares map from an exit's states to the states of layer L.

A middle layer's states, read as layer L's are, give nonsense with great confidence (SmolLM2-135M: 23 nats a token after
layer 12 of 30). Gradient descent has to undo that through the LM head, which costs as much as several layers. The map
that undoes most of it needs no LM head and no descent: only sums over tokens of products of states (as a linear
"translator" of states: Belrose et al., 2023, arXiv 2303.08112, who train it).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-3
"""Added to the diagonal of the moments, relative to its mean: states of few tokens do not span every direction."""


@dataclass(frozen=True)
class StateMoments:
    """Sums over tokens, from which every least-squares map follows; float64 [width, width] each.

    Attributes:
        inputs: of ``x x^T``, with x the stock final norm of an exit's hidden state.
        products: of ``x y^T``, with y the same of layer L.
        metric: ``U^T U`` of the LM head U: how far apart two states are in logits.
    """

    inputs: Tensor
    products: Tensor
    metric: Tensor

    @classmethod
    def zero(cls, lm_head: Tensor) -> "StateMoments":
        """Return the moments of no tokens, for an LM head [vocabulary, width]."""
        metric = (lm_head.T @ lm_head).double()
        return cls(torch.zeros_like(metric), torch.zeros_like(metric), metric)

    def plus(self, inputs: Tensor, outputs: Tensor) -> "StateMoments":
        """Return the moments with some tokens more: states [tokens, width] each."""
        inputs, outputs = inputs.double(), outputs.double()
        return StateMoments(self.inputs + inputs.T @ inputs, self.products + inputs.T @ outputs, self.metric)

    @property
    def scale(self) -> Tensor:
        """The number s for which ``s x`` is nearest to y."""
        return self.products.trace() / self.inputs.trace()

    @property
    def channel_scales(self) -> Tensor:
        """The same for every channel by itself: [width]. It is 1 for a channel that the final norm sets to zero."""
        squares = self.inputs.diagonal()
        return torch.where(squares > 0, self.products.diagonal() / squares, 1.0)

    @property
    def map(self) -> Tensor:
        """The matrix W for which ``x W`` is nearest to y, but for the ridge: [width, width]."""
        identity = torch.eye(len(self.inputs), dtype=self.inputs.dtype, device=self.inputs.device)
        return torch.linalg.solve(self.inputs + RIDGE * self.inputs.diagonal().mean() * identity, self.products)

    def low_rank(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return matrices A [width, rank] and B [rank, width] for which ``s x + x A B`` is nearest to ``x W``.

        Nearest in logits: this is reduced-rank regression with the LM head as the metric. Both have the same norm. A
        rank above the width is taken for the width.
        """
        identity = torch.eye(len(self.inputs), dtype=self.inputs.dtype, device=self.inputs.device)
        residual = self.map - self.scale * identity
        values, vectors = torch.linalg.eigh(self.metric)
        root = values.clamp_min(values[-1] * 1e-12).sqrt()
        to_logits, from_logits = (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
        spread = to_logits @ residual.T @ self.inputs @ residual @ to_logits
        kept = torch.linalg.eigh(spread).eigenvectors.flip(dims=[1])[:, :rank]
        left, right = residual @ to_logits @ kept, kept.T @ from_logits
        balance = (right.norm() / left.norm().clamp_min(1e-12)).sqrt()
        return left * balance, right / balance
