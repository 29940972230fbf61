"""Critics whose scores are bounded, so that student and critic cannot drive each other to infinity."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from mikit.core.errors import InputError
from mikit.critics import Critic, EmbeddingCritic, Joint

__all__ = ["BoundedJoint", "Cosine", "take_statistics"]

# Keeps the gradient finite where an embedding passes 0; embeddings start with a norm of a few units.
_SOFTENING = 1e-3


@final
class Cosine(EmbeddingCritic):
    r"""Cosine of two embeddings, times a bound.

    Formula: :math:`s(x, y) = b \cos(u(x), v(y)) + a`: ``u`` and ``v`` are perceptrons with one hidden layer and a
    linear path beside it, on standardised rows; ``b`` is fixed, ``a`` a learned number.

    Args:
        d_x: Width of the student's rows.
        d_y: Width of the teacher's rows.
        width: Width of the hidden layers and of the embeddings.
        bound: ``b``, above 0.

    Raises:
        InputError: If a size is below 1 or the bound is not positive.

    Cost:
        ``O((n + m) width (d_x + d_y + width))`` for the embeddings and ``O(n m width)`` for all scores.

    Pitfalls:
        Scores end at ``a ± b``: no information beyond can be seen.

    Source:
        The two-tower critic of contrastive learning, normalised.

    Example:
        >>> critic = Cosine(3, 2, width=8, bound=5.0)
        >>> bool((critic.scores(1e4 * torch.randn(6, 3), torch.randn(4, 2)).abs() <= 5).all())
        True
    """

    def __init__(self, d_x: int, d_y: int, *, width: int = 128, bound: float = 10.0) -> None:
        super().__init__(d_x, d_y)
        _require_bound(width, bound)
        self.width = width
        self.bound = bound
        self.encoder_x, self.linear_x = _encoder(d_x, width)
        self.encoder_y, self.linear_y = _encoder(d_y, width)
        self.offset = nn.Parameter(torch.zeros(1))

    def embed(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``[b u/|u|, a] (n, width + 1)`` and ``[v/|v|, 1] (m, width + 1)``."""
        with torch.autocast(x.device.type, enabled=False):
            x, y = self._standardised(x, y)
            u = self.bound * _normalised(self.encoder_x(x) + self.linear_x(x))
            v = _normalised(self.encoder_y(y) + self.linear_y(y))
            offset = self.offset.expand(u.shape[0], 1)
            return torch.cat([u, offset], dim=1), torch.cat([v, torch.ones_like(v[:, :1])], dim=1)

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"{self.d_x}, {self.d_y}, width={self.width}, bound={self.bound:g}"


@final
class BoundedJoint(Critic):
    r"""A perceptron that reads both rows at once, its score bent into a bound.

    Formula: :math:`s(x, y) = b \tanh(g([x, y]) / b)`.

    Args:
        d_x: Width of the student's rows.
        d_y: Width of the teacher's rows.
        width: Hidden units per layer, two layers.
        bound: ``b``, above 0.

    Raises:
        InputError: If a size is below 1 or the bound is not positive.

    Cost:
        As :class:`mikit.critics.Joint`: ``O(n m width²)`` for all scores, ``O(n width²)`` for those of pairs.

    Pitfalls:
        Scores end at ``± b``.

    Source:
        The concatenated critic of contrastive bounds, bounded.

    Example:
        >>> BoundedJoint(3, 2, width=8).pair_scores(torch.zeros(5, 3), torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(self, d_x: int, d_y: int, *, width: int = 128, bound: float = 10.0) -> None:
        super().__init__(d_x, d_y)
        _require_bound(width, bound)
        self.width = width
        self.bound = bound
        self.joint = Joint(d_x, d_y, width=width, depth=2)

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``(n, m)``, computed in chunks of rows."""
        with torch.autocast(x.device.type, enabled=False):
            return self.bound * torch.tanh(self.joint.scores(*self._standardised(x, y)) / self.bound)

    def pair_scores(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``(n,)``."""
        with torch.autocast(x.device.type, enabled=False):
            return self.bound * torch.tanh(self.joint.pair_scores(*self._standardised(x, y)) / self.bound)

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"{self.d_x}, {self.d_y}, width={self.width}, bound={self.bound:g}"


@torch.no_grad()
def take_statistics(critic: Critic, x: Tensor, y: Tensor) -> None:
    """Standardise a critic by example rows: the teacher column by column, the student by one scale for all columns.

    A column of the student that is quiet when training starts would explode under a scale of its own once it wakes.

    Example:
        >>> critic = Cosine(2, 2)
        >>> take_statistics(critic, torch.tensor([[1.0, 5.0], [-1.0, 5.0]]), torch.eye(2))
        >>> critic.scale_x.tolist()  # the second column is constant, and not divided by 0
        [0.7071067690849304, 0.7071067690849304]
    """
    critic.standardise_by(x, y)
    spread = (x.detach().double() - critic.mean_x.double()).square().mean().sqrt()
    one = torch.where(spread > 0, spread, 1.0).to(critic.scale_x.dtype)
    critic.scale_x = one.expand_as(critic.scale_x).clone()


def _normalised(rows: Tensor) -> Tensor:
    return rows * torch.rsqrt(rows.square().sum(dim=1, keepdim=True) + _SOFTENING)


def _encoder(d_in: int, width: int) -> tuple[nn.Sequential, nn.Linear]:
    return (
        nn.Sequential(nn.Linear(d_in, width), nn.SiLU(), nn.Linear(width, width)),
        nn.Linear(d_in, width, bias=False),
    )


def _require_bound(width: int, bound: float) -> None:
    if width < 1:
        raise InputError(f"A critic was asked for a width of {width}; it must be at least 1.")
    if not 0 < bound < float("inf"):
        raise InputError(f"bound is {bound}; the limit of the scores must be positive and finite.")
