"""Readouts (pooling): how an activation of any shape becomes what is measured or stored.

The store records the name of the readout, because the readout changes the measured value: mean pooling of an early
convolutional layer, for example, hides information that a 4 by 4 grid still shows.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from mikit.core.errors import InputError

__all__ = [
    "FirstToken",
    "Flatten",
    "Grid",
    "Pool",
    "Projection",
    "Readout",
    "Tokens",
    "Whole",
]

_PROJECTION_BLOCK = 1 << 22  # entries of a projection matrix drawn at once


class Readout(abc.ABC):
    """A fixed map from the activation of a layer to what is measured of it; samples are the first axis of both.

    Readouts have no learned parameters and use no random numbers except from their own seed, so the same name means the
    same map on every machine. They are differentiable and compute in at least float32 outside autocast. The input is
    vectors ``(n, d)``, tokens ``(n, t, d)`` or feature maps ``(n, c, ...)``, as each class states; an activation with
    three axes is treated as tokens.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The name from which :func:`~mikit.activations.parse_readout` makes an equal readout."""

    @abc.abstractmethod
    def __call__(self, activation: Tensor) -> Tensor:
        """Return the readout of ``activation``; it may share its memory."""


@final
@dataclass(frozen=True)
class Pool(Readout):
    r"""Mean over space or over tokens: :math:`z_c = \frac{1}{hw} \sum_{ij} a_{cij}`. Named ``"pool"``.

    ``(n, c, h, w)``, and with any other number of spatial axes, becomes ``(n, c)``; tokens ``(n, t, d)`` become
    ``(n, d)``; vectors pass through.

    Raises:
        InputError: If the activation is not floating point, or has no axis besides that of the samples.

    Cost: One pass over the activation; sums in at least float32.

    Pitfalls:
        Pooling underestimates the information in early convolutional layers, because positions are averaged out.
        Compare with ``Grid(4)`` before you conclude that an early layer contains little information. One-dimensional
        feature maps ``(n, c, l)`` have three axes and are treated as tokens; use ``Flatten`` for them. Padding tokens
        are averaged like all others.

    Example:
        >>> Pool()(torch.ones(2, 3, 4, 4)).shape
        torch.Size([2, 3])
    """

    @property
    def name(self) -> str:
        """``"pool"``."""
        return "pool"

    def __call__(self, activation: Tensor) -> Tensor:
        """Return the mean over space or tokens, ``(n, c)`` or ``(n, d)``."""
        _require_numbers(activation, self.name)
        if activation.ndim == 2:
            return activation
        axes = (1,) if activation.ndim == 3 else tuple(range(2, activation.ndim))
        return activation.mean(dim=axes, dtype=_wide(activation.dtype)).to(activation.dtype)


@final
@dataclass(frozen=True)
class Flatten(Readout):
    """All values of a sample as one vector: ``(n, ...)`` becomes ``(n, d)``. Named ``"flatten"``.

    Raises:
        InputError: If the activation is not floating point, or has no axis besides that of the samples.

    Cost: None, or one copy of the activation.

    Pitfalls:
        The vectors are long: 64 channels of 32 by 32 are 65,536 features, 2.6 GB for 10,000 samples in float32, and no
        estimator here is reliable with more features than samples. Prefer ``Grid(4)`` or ``Projection(64)``.

    Example:
        >>> Flatten()(torch.ones(2, 3, 4, 4)).shape
        torch.Size([2, 48])
    """

    @property
    def name(self) -> str:
        """``"flatten"``."""
        return "flatten"

    def __call__(self, activation: Tensor) -> Tensor:
        """Return ``(n, d)`` with ``d`` the product of all axes but the first."""
        _require_numbers(activation, self.name)
        return activation.flatten(1)


@final
@dataclass(frozen=True)
class Tokens(Readout):
    """One vector per token or per location: ``(n, t, d)``. Named ``"tokens"``.

    Tokens are not changed; a feature map ``(n, c, h, w)`` becomes ``(n, h w, c)``, with its locations row by row.

    Raises:
        InputError: If the activation is a vector, ``(n, d)``, which has no tokens, or is not floating point.

    Cost: None; the result shares the activation's memory.

    Pitfalls:
        The tokens of one sample are not independent. If you measure tokens as samples, pass their sample as
        ``groups=``; otherwise every interval is too narrow.

    Example:
        >>> Tokens()(torch.ones(2, 3, 4, 5)).shape
        torch.Size([2, 20, 3])
    """

    @property
    def name(self) -> str:
        """``"tokens"``."""
        return "tokens"

    def __call__(self, activation: Tensor) -> Tensor:
        """Return ``(n, t, d)``."""
        _require_numbers(activation, self.name)
        if activation.ndim == 2:
            raise InputError(
                f'The readout "tokens" needs (n, t, d) or (n, c, h, w), but the activation has shape '
                f'{tuple(activation.shape)}, which has no tokens. Use "pool" or "flatten" for this layer.'
            )
        return activation if activation.ndim == 3 else activation.flatten(2).transpose(1, 2)


@final
@dataclass(frozen=True)
class FirstToken(Readout):
    """The first token, the class token of most vision transformers: ``(n, t, d)`` to ``(n, d)``. Named ``"cls"``.

    Raises:
        InputError: If the activation is not ``(n, t, d)`` of floating-point values.

    Cost: None; the result shares the activation's memory.

    Pitfalls:
        In a network without a class token, the first token is the first patch or word.

    Example:
        >>> FirstToken()(torch.arange(12.0).reshape(2, 3, 2))
        tensor([[0., 1.],
                [6., 7.]])
    """

    @property
    def name(self) -> str:
        """``"cls"``."""
        return "cls"

    def __call__(self, activation: Tensor) -> Tensor:
        """Return the first token, ``(n, d)``."""
        _require_numbers(activation, self.name)
        if activation.ndim != 3:
            raise InputError(
                f'The readout "cls" needs tokens (n, t, d), but the activation has shape {tuple(activation.shape)}. '
                'Use "pool" for this layer.'
            )
        return activation[:, 0]


@final
@dataclass(frozen=True)
class Whole(Readout):
    """The unchanged activation, for losses on feature maps or tokens. Named ``"whole"``.

    Raises:
        InputError: If the activation is not floating point, or has no axis besides that of the samples.

    Cost: None.

    Pitfalls:
        Most estimators need ``(n, d)`` and refuse feature maps. Feature maps of many samples need much disk space.

    Example:
        >>> Whole()(torch.ones(2, 3, 4, 4)).shape
        torch.Size([2, 3, 4, 4])
    """

    @property
    def name(self) -> str:
        """``"whole"``."""
        return "whole"

    def __call__(self, activation: Tensor) -> Tensor:
        """Return ``activation``."""
        _require_numbers(activation, self.name)
        return activation


@final
@dataclass(frozen=True)
class Grid(Readout):
    """Means over a grid of at most ``cells`` by ``cells`` cells, flattened. ``Grid(4)`` is named ``"pool4"``.

    ``(n, c, h, w)`` becomes ``(n, c g_h g_w)`` with ``g_h = min(cells, h)`` and ``g_w = min(cells, w)``: a map smaller
    than the grid keeps its resolution, because repeated values would only be copies of the same features. Vectors are
    not changed, so that one name can be used for all layers of a network.

    Args:
        cells: Cells along each side, from 1 to 1024.

    Raises:
        InputError: If ``cells`` is out of range, or the activation is neither a vector nor a map ``(n, c, h, w)``.

    Cost: One pass over the activation.

    Pitfalls:
        ``Grid(4)`` has sixteen times the features of ``Pool``. With a few thousand samples reduce them to principal
        components first; too many features for the number of samples lower a held-out estimate.

    Example:
        >>> Grid(4)(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 48])
    """

    cells: int

    def __post_init__(self) -> None:
        if not 1 <= self.cells <= 1024:
            raise InputError(f"cells is {self.cells}; a grid needs between 1 and 1024 cells along each side.")

    @property
    def name(self) -> str:
        """``"pool"`` and the number of cells along each side."""
        return f"pool{self.cells}"

    def __call__(self, activation: Tensor) -> Tensor:
        """Return the means over the cells, ``(n, c g_h g_w)``."""
        _require_numbers(activation, self.name)
        if activation.ndim == 2:
            return activation
        if activation.ndim != 4:
            raise InputError(
                f'The readout "{self.name}" needs feature maps (n, c, h, w), but the activation has shape '
                f'{tuple(activation.shape)}. Use "pool" or "flatten" for this layer.'
            )
        size = (min(self.cells, activation.shape[2]), min(self.cells, activation.shape[3]))
        return (
            nn.functional.adaptive_avg_pool2d(activation.to(_wide(activation.dtype)), size)
            .to(activation.dtype)
            .flatten(1)
        )


@final
@dataclass(frozen=True)
class Projection(Readout):
    r"""A seeded Gaussian random projection of the flattened activation to ``width`` features. ``"projection:64"``.

    :math:`z = a G / \sqrt{\text{width}}` with independent standard normal :math:`G`, which preserves squared distances
    on average (Johnson and Lindenstrauss). :math:`G` is drawn on the CPU and depends only on ``seed`` and the number of
    features, so it is the same map for both networks of a comparison and at every phase.

    Args:
        width: Features of the result, at least 1.
        seed: Seed of :math:`G`; part of the name, ``"projection:64@7"``, unless it is 0.

    Raises:
        InputError: If a sample has no more than ``width`` values, so that a projection would not reduce it.

    Cost: ``d × width`` normal draws and ``2 n d width`` operations at every call; the matrix is drawn in blocks of at
    most 16 MiB.

    Pitfalls:
        A projection loses information, so the estimate of a consistent estimator is a lower bound of that for the whole
        layer. Another seed gives another value; state the seed when you report one.

    Example:
        >>> Projection(8)(torch.ones(2, 3, 4, 4)).shape
        torch.Size([2, 8])
        >>> Projection(8, seed=7).name
        'projection:8@7'
    """

    width: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.width < 1 or not 0 <= self.seed < 2**63:
            raise InputError(
                f"width is {self.width} and seed is {self.seed}; a projection needs a width of at least 1 and a seed "
                "from 0 to 2**63 - 1."
            )

    @property
    def name(self) -> str:
        """``"projection:<width>"``, and ``"@<seed>"`` unless the seed is 0."""
        return f"projection:{self.width}" + (f"@{self.seed}" if self.seed else "")

    def __call__(self, activation: Tensor) -> Tensor:
        """Return the projected activation, ``(n, width)``."""
        _require_numbers(activation, self.name)
        rows = activation.flatten(1)
        length = rows.shape[1]
        if length <= self.width:
            raise InputError(
                f'The readout "{self.name}" reduces a sample to {self.width} values, but this layer has only '
                f'{length}. Use "flatten" for this layer, or a smaller width.'
            )
        generator = torch.Generator().manual_seed(self.seed)
        wide = _wide(rows.dtype)
        projected = torch.zeros(rows.shape[0], self.width, dtype=wide, device=rows.device)
        with torch.autocast(rows.device.type, enabled=False):
            step = max(1, _PROJECTION_BLOCK // self.width)
            # The matrix is drawn block by block: for a large layer it would not fit into memory.
            for start in range(0, length, step):
                block = rows[:, start : start + step]
                matrix = torch.randn(block.shape[1], self.width, generator=generator, dtype=torch.float32)
                projected = projected + block.to(wide) @ matrix.to(device=rows.device, dtype=wide)
            return (projected / math.sqrt(self.width)).to(rows.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in: at least float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _require_numbers(activation: Tensor, name: str) -> None:
    if not activation.is_floating_point():
        raise InputError(
            f'The readout "{name}" was called with {activation.dtype}; an activation has a floating-point dtype. '
            "Choose a layer before the values are rounded or compared."
        )
    if activation.ndim < 2:
        raise InputError(
            f'The readout "{name}" was called with shape {tuple(activation.shape)}; it needs samples along the first '
            "axis and at least one more axis, (n, d)."
        )
