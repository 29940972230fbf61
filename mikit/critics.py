"""Critics: networks that score pairs of samples.

Besides the heads of :mod:`mikit.estimators.vid.heads` they are the only learned parts of the estimators.

A critic standardizes its inputs with buffers computed from example features, so that small initial weights suit
features of any scale. The buffers are part of ``state_dict``.
"""

from __future__ import annotations

import abc
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mikit.core.errors import InputError

__all__ = ["Bilinear", "Critic", "EmbeddingCritic", "Joint", "Separable"]

# Most hidden activations of a joint critic in memory at once.
_PAIR_ENTRIES = 2**24


class Critic(nn.Module, abc.ABC):
    """Scores every pair of a student sample and a teacher sample.

    Args:
        d_x: Width of the student features.
        d_y: Width of the teacher features.
    """

    mean_x: Tensor
    scale_x: Tensor
    mean_y: Tensor
    scale_y: Tensor

    def __init__(self, d_x: int, d_y: int) -> None:
        super().__init__()
        if d_x < 1 or d_y < 1:
            raise InputError(f"The widths of a critic are d_x = {d_x} and d_y = {d_y}; both must be at least 1.")
        self.d_x = d_x
        self.d_y = d_y
        for side, width in (("x", d_x), ("y", d_y)):
            self.register_buffer(f"mean_{side}", torch.zeros(width))
            self.register_buffer(f"scale_{side}", torch.ones(width))

    @abc.abstractmethod
    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the scores ``(n, m)`` of all pairs of rows ``(n, d_x)`` and ``(m, d_y)``."""

    @abc.abstractmethod
    def pair_scores(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the scores ``(n,)`` of the pairs ``(x_i, y_i)`` only."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return :meth:`scores`."""
        return self.scores(x, y)

    @torch.no_grad()
    def standardise_by(self, x: Tensor, y: Tensor) -> None:
        """Set mean and standard deviation of every column from example samples; a constant column gets scale 1."""
        for side, value in (("x", x), ("y", y)):
            value64 = value.detach().double()
            mean = value64.mean(dim=0)
            deviation = (value64 - mean).square().mean(dim=0).sqrt()
            # float64 examples keep float64 statistics, so that an offset of many standard deviations is subtracted
            # exactly.
            dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
            resolution = torch.finfo(dtype).eps * mean.abs()
            scale = torch.where(deviation > resolution, deviation, 1.0)
            setattr(self, f"mean_{side}", mean.to(dtype))
            setattr(self, f"scale_{side}", scale.to(dtype))

    def param_groups(self) -> list[dict[str, Any]]:
        """Return matrices in one group and vectors (biases) in another with ``weight_decay=0``."""
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim <= 1]
        return [{"params": matrices}, *([{"params": vectors, "weight_decay": 0.0}] if vectors else [])]

    def _standardized(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        for name, value, width in (("x", x, self.d_x), ("y", y, self.d_y)):
            if value.ndim != 2 or value.shape[1] != width:
                raise InputError(
                    f"{name} has shape {tuple(value.shape)}, but this critic was built for features of width "
                    f"{width}. Build it from features of the layer it is used on."
                )
        dtype = next(self.parameters()).dtype
        return ((x - self.mean_x) / self.scale_x).to(dtype), ((y - self.mean_y) / self.scale_y).to(dtype)


class EmbeddingCritic(Critic, abc.ABC):
    """A critic whose score is a dot product, so that all pairs can be processed in blocks from two thin matrices."""

    @abc.abstractmethod
    def embed(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``u (n, k)`` and ``v (m, k)`` with ``scores(x, y) = u @ v.T``."""

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``u @ v.T``, ``(n, m)``; if it does not fit in memory, use :meth:`embed` and process it in blocks."""
        with torch.autocast(x.device.type, enabled=False):
            u, v = self.embed(x, y)
            return u @ v.T

    def pair_scores(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``u_i . v_i``, ``(n,)``."""
        with torch.autocast(x.device.type, enabled=False):
            u, v = self.embed(x, y)
            return (u * v).sum(dim=1)


@final
class Separable(EmbeddingCritic):
    """Two encoders and a dot product.

    Formula: ``s(x, y) = <u(x), v(y)> + a(x) + b(y)``. ``u, a`` are outputs of a perceptron of the student sample and
    ``v, b`` of one of the teacher sample, each with a linear path in parallel to its hidden layers. The offsets are
    stored as two more embedding columns, ``[u, a, 1]`` and ``[v, 1, b]``.

    Args:
        d_x: Width of the student features.
        d_y: Width of the teacher features.
        width: Hidden units per layer.
        depth: Number of hidden layers.
        embedding: Width of ``u`` and ``v``: the rank of the score matrix.
        offsets: Whether to include ``a`` and ``b``.

    Raises:
        InputError: If a size is below 1.

    Cost:
        ``O((n + m) width²)`` for the encoders and ``O(n m embedding)`` for the scores.

    Pitfalls:
        The score matrix has rank ``embedding + 2`` at most: dependence that needs a higher rank is underestimated.

    Source:
        The two-tower critic of contrastive learning; offsets and linear path are mikit's own.

    Example:
        >>> critic = Separable(3, 2, embedding=4)
        >>> critic.scores(torch.zeros(5, 3), torch.zeros(6, 2)).shape
        torch.Size([5, 6])
    """

    def __init__(
        self, d_x: int, d_y: int, *, width: int = 128, depth: int = 2, embedding: int = 32, offsets: bool = True
    ) -> None:
        super().__init__(d_x, d_y)
        self.width = width
        self.depth = depth
        self.embedding = embedding
        self.offsets = offsets
        outputs = embedding + int(offsets)
        self.encoder_x = _perceptron(d_x, width, depth, outputs)
        self.encoder_y = _perceptron(d_y, width, depth, outputs)
        self.linear_x = _small_linear(d_x, outputs)
        self.linear_y = _small_linear(d_y, outputs)

    def embed(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``[u, a, 1] (n, embedding + 2)`` and ``[v, 1, b] (m, embedding + 2)``."""
        with torch.autocast(x.device.type, enabled=False):
            x, y = self._standardized(x, y)
            u = self.encoder_x(x) + self.linear_x(x)
            v = self.encoder_y(y) + self.linear_y(y)
            if not self.offsets:
                return u, v
            v, b = v[:, :-1], v[:, -1:]
            return torch.cat([u, torch.ones_like(u[:, :1])], dim=1), torch.cat([v, torch.ones_like(b), b], dim=1)

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"{self.d_x}, {self.d_y}, width={self.width}, depth={self.depth}, embedding={self.embedding}"


@final
class Bilinear(EmbeddingCritic):
    """A bilinear form of the two samples.

    Formula: ``s(x, y) = x^T W y`` on standardized features, with ``W`` initialized to 0.

    Args:
        d_x: Width of the student features.
        d_y: Width of the teacher features.

    Raises:
        InputError: If a width is below 1.

    Cost:
        ``O(n d_x d_y)`` for the embedding and ``O(n m d_y)`` for the scores; ``d_x d_y`` parameters.

    Pitfalls:
        Even for Gaussian data the exact log-ratio contains squares of ``x`` and ``y`` besides the product, so the bound
        with this critic stays below the true value unless the dependence is weak.

    Source:
        The critic of contrastive predictive coding.

    Example:
        >>> Bilinear(3, 2).scores(torch.ones(1, 3), torch.ones(1, 2)).tolist()
        [[0.0]]
    """

    def __init__(self, d_x: int, d_y: int) -> None:
        super().__init__(d_x, d_y)
        self.weight = nn.Parameter(torch.zeros(d_x, d_y))

    def embed(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x W (n, d_y)`` and ``y (m, d_y)``, both standardized."""
        with torch.autocast(x.device.type, enabled=False):
            x, y = self._standardized(x, y)
            return x @ self.weight, y

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"{self.d_x}, {self.d_y}"


@final
class Joint(Critic):
    """A perceptron of both samples together.

    Formula: ``s(x, y) = g([x, y])``. The first layer is applied to each side once and added for each pair.

    Args:
        d_x: Width of the student features.
        d_y: Width of the teacher features.
        width: Hidden units per layer.
        depth: Number of hidden layers.

    Raises:
        InputError: If a size is below 1.

    Cost:
        ``O(n m width² (depth - 1))`` time. Pairs are scored in blocks of rows. With gradients, each block is recomputed
        in ``backward``, so memory is the ``(n, m)`` scores plus 64 MiB per hidden layer.

    Pitfalls:
        About ``width`` times slower than :class:`Separable`, and the scores must fit in memory: keep ``n m`` in the
        millions.

    Source:
        The concatenated critic of contrastive bounds.

    Example:
        >>> Joint(3, 2).scores(torch.zeros(5, 3), torch.zeros(6, 2)).shape
        torch.Size([5, 6])
    """

    def __init__(self, d_x: int, d_y: int, *, width: int = 128, depth: int = 2) -> None:
        super().__init__(d_x, d_y)
        if width < 1 or depth < 1:
            raise InputError(f"width is {width} and depth is {depth}; a joint critic needs at least 1 of both.")
        self.width = width
        self.depth = depth
        self.first_x = nn.Linear(d_x, width)
        self.first_y = nn.Linear(d_y, width, bias=False)
        layers: list[nn.Module] = [nn.SiLU()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.SiLU()]
        self.rest = nn.Sequential(*layers, _small_linear(width, 1, bias=True))

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``(n, m)``, computed in blocks of rows."""
        with torch.autocast(x.device.type, enabled=False):
            x, y = self._standardized(x, y)
            h_x, h_y = self.first_x(x), self.first_y(y)
            rows = max(1, _PAIR_ENTRIES // (h_y.shape[0] * self.width))
            if rows >= h_x.shape[0]:
                return self._chunk(h_x, h_y)
            parts = h_x.split(rows)
            if torch.is_grad_enabled():
                kept = [
                    checkpoint(self._chunk, part, h_y, use_reentrant=False, preserve_rng_state=False) for part in parts
                ]
            else:
                kept = [self._chunk(part, h_y) for part in parts]
            return torch.cat(kept)

    def pair_scores(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``(n,)``."""
        with torch.autocast(x.device.type, enabled=False):
            x, y = self._standardized(x, y)
            pairs: Tensor = self.rest(self.first_x(x) + self.first_y(y))
            return pairs.squeeze(-1)

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"{self.d_x}, {self.d_y}, width={self.width}, depth={self.depth}"

    def _chunk(self, h_x: Tensor, h_y: Tensor) -> Tensor:
        scores: Tensor = self.rest(h_x[:, None, :] + h_y[None, :, :])
        return scores.squeeze(-1)


def _perceptron(d_in: int, width: int, depth: int, d_out: int) -> nn.Sequential:
    if min(width, depth, d_out) < 1:
        raise InputError(f"width is {width}, depth {depth} and embedding {d_out}; a critic needs at least 1 of each.")
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Linear(d_in if index == 0 else width, width), nn.SiLU()]
    return nn.Sequential(*layers, _small_linear(width, d_out, bias=True))


def _small_linear(d_in: int, d_out: int, *, bias: bool = False) -> nn.Linear:
    """Return a linear layer with small initial outputs, so that an untrained critic scores all pairs almost equally."""
    layer = nn.Linear(d_in, d_out, bias=bias)
    nn.init.normal_(layer.weight, std=0.3 / d_in**0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
