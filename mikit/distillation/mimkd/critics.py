"""Critics with bounded scores, so that student and critic cannot drive each other to infinity."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from mikit.core import require
from mikit.critics import Critic, EmbeddingCritic, Joint

__all__ = ["BoundedJoint", "Cosine", "take_statistics"]

# Keeps the gradient finite where an embedding passes 0; embeddings start with a norm of a few units.
_SOFTENING = 1e-3


@final
class Cosine(EmbeddingCritic):
    r"""Cosine of two embeddings, times a bound: :math:`s(x, y) = b \cos(u(x), v(y)) + a`.

    ``u`` and ``v`` are perceptrons with one hidden layer and a linear shortcut, on standardized features; ``b`` is
    fixed and ``a`` is learned.

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
            x, y = self._standardized(x, y)
            u = self.bound * _normalized(self.encoder_x(x) + self.linear_x(x))
            v = _normalized(self.encoder_y(y) + self.linear_y(y))
            offset = self.offset.expand(u.shape[0], 1)
            return torch.cat([u, offset], dim=1), torch.cat([v, torch.ones_like(v[:, :1])], dim=1)

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"{self.d_x}, {self.d_y}, width={self.width}, bound={self.bound:g}"


@final
class BoundedJoint(Critic):
    """A perceptron with two hidden layers on both sides together, with a bounded score: ``b tanh(g([x, y]) / b)``.

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
            return self.bound * torch.tanh(self.joint.scores(*self._standardized(x, y)) / self.bound)

    def pair_scores(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``(n,)``."""
        with torch.autocast(x.device.type, enabled=False):
            return self.bound * torch.tanh(self.joint.pair_scores(*self._standardized(x, y)) / self.bound)

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"{self.d_x}, {self.d_y}, width={self.width}, bound={self.bound:g}"


@torch.no_grad()
def take_statistics(critic: Critic, x: Tensor, y: Tensor) -> None:
    """Standardize a critic by example features: the teacher by feature, the student by one scale for all features.

    Example:
        >>> critic = Cosine(2, 2)
        >>> take_statistics(critic, torch.tensor([[1.0, 5.0], [-1.0, 5.0]]), torch.eye(2))
        >>> critic.scale_x.tolist()  # the second feature is constant, and not divided by 0
        [0.7071067690849304, 0.7071067690849304]
    """
    critic.standardise_by(x, y)
    # An untrained student has features that hardly vary. Divided by their own deviation they would become very large as
    # soon as training makes them vary.
    spread = (x.detach().double() - critic.mean_x.double()).square().mean().sqrt()
    one = torch.where(spread > 0, spread, 1.0).to(critic.scale_x.dtype)
    critic.scale_x = one.expand_as(critic.scale_x).clone()


def _normalized(rows: Tensor) -> Tensor:
    return rows * torch.rsqrt(rows.square().sum(dim=1, keepdim=True) + _SOFTENING)


def _encoder(d_in: int, width: int) -> tuple[nn.Sequential, nn.Linear]:
    return (
        nn.Sequential(nn.Linear(d_in, width), nn.SiLU(), nn.Linear(width, width)),
        nn.Linear(d_in, width, bias=False),
    )


def _require_bound(width: int, bound: float) -> None:
    require.at_least(width, "width")
    require.positive(bound, "bound", "in nats")
