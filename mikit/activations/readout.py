"""Readouts: how an activation of any shape becomes what is measured or stored.

A readout is chosen by name, and the name is recorded with the activations, because it decides the number: pooling
early convolutional layers, say, hides information that a 4 by 4 grid still shows.
"""

from __future__ import annotations

import abc
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from mikit.core.errors import InputError

__all__ = [
    "READOUT_NAMES",
    "FirstToken",
    "Flatten",
    "Grid",
    "Pool",
    "Projection",
    "Readout",
    "Tokens",
    "Whole",
    "parse_readout",
]

READOUT_NAMES = (
    "pool",
    "flatten",
    "tokens",
    "cls",
    "whole",
    "pool<g>",
    "projection:<width>",
    "projection:<width>@<seed>",
)
"""The names :func:`parse_readout` knows; ``<...>`` stands for a whole number."""

_PROJECTION_BLOCK = 1 << 22  # entries of a projection matrix drawn at once


class Readout(abc.ABC):
    """A fixed map from the activation of a layer to what is measured of it, rows first in and out.

    Readouts have no learned parameters and draw no randomness beyond their own seed, so the same name means the same
    map on every machine. They are differentiable, compute in at least float32
    outside autocast, and take vectors ``(n, d)``, tokens ``(n, t, d)`` and feature maps
    ``(n, c, ...)`` as each says. An activation with three axes is read as tokens.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The name that :func:`parse_readout` turns back into an equal readout."""

    @abc.abstractmethod
    def __call__(self, activation: Tensor) -> Tensor:
        """Return what is measured of ``activation``; may share its memory."""


@final
@dataclass(frozen=True)
class Pool(Readout):
    r"""Mean over space or over tokens: :math:`z_c = \frac{1}{hw} \sum_{ij} a_{cij}`. Named ``"pool"``.

    ``(n, c, h, w)``, and with any other number of spatial axes, becomes ``(n, c)``; tokens ``(n, t, d)`` become
    ``(n, d)``; vectors pass through.

    Raises:
        InputError: If the activation is not made of floating-point numbers, or has no axis but that of the samples.

    Cost: One pass over the activation; sums in at least float32.

    Pitfalls:
        Pooling understates the information in early convolutional layers: where a pattern stands is averaged away.
        Compare with ``Grid(4)`` before saying that an early layer knows little. One-dimensional feature maps
        ``(n, c, l)`` have three axes and would be taken for tokens; use ``Flatten`` there. Padding tokens are
        averaged like the others.

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
    """All numbers of a sample in one row: ``(n, ...)`` becomes ``(n, d)``. Named ``"flatten"``.

    Raises:
        InputError: If the activation is not made of floating-point numbers, or has no axis but that of the samples.

    Cost: None, or one copy of the activation.

    Pitfalls:
        Rows get long: 64 channels of 32 by 32 are 65,536 columns, 2.6 GB for 10,000 samples in float32, and no
        estimator here is sound with more columns than samples. Prefer ``Grid(4)`` or ``Projection(64)``.

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

    Tokens stay as they are; a feature map ``(n, c, h, w)`` becomes ``(n, h w, c)``, its locations row by row.

    Raises:
        InputError: If the activation is a vector, ``(n, d)``, which has no tokens, or is not floating point.

    Cost: None; the result shares the activation's memory.

    Pitfalls:
        The tokens of one sample are not independent. When measuring them as rows, pass the sample as ``groups=``, or
        every interval is too narrow.

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
                f'The readout "tokens" reads (n, t, d) or (n, c, h, w), but the activation has shape '
                f'{tuple(activation.shape)}: there are no tokens in it. Use "pool" or "flatten" for this layer.'
            )
        return activation if activation.ndim == 3 else activation.flatten(2).transpose(1, 2)


@final
@dataclass(frozen=True)
class FirstToken(Readout):
    """The first token, the class token of most vision transformers: ``(n, t, d)`` to ``(n, d)``. Named ``"cls"``.

    Raises:
        InputError: If the activation is not ``(n, t, d)`` of floating-point numbers.

    Cost: None; the result shares the activation's memory.

    Pitfalls:
        It is the first token, whatever that is. In a network without a class token it is the first patch or word.

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
                f'The readout "cls" reads tokens (n, t, d), but the activation has shape {tuple(activation.shape)}. '
                'Use "pool" for this layer.'
            )
        return activation[:, 0]


@final
@dataclass(frozen=True)
class Whole(Readout):
    """The activation as it is, for losses that read feature maps or tokens themselves. Named ``"whole"``.

    Raises:
        InputError: If the activation is not made of floating-point numbers, or has no axis but that of the samples.

    Cost: None.

    Pitfalls:
        Most measures read ``(n, d)`` and refuse feature maps. Whole feature maps of a few thousand samples fill a disk.

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
    """Means over a coarse grid of at most ``cells`` by ``cells`` fields, flattened. ``Grid(4)`` is named ``"pool4"``.

    ``(n, c, h, w)`` becomes ``(n, c g_h g_w)`` with ``g_h = min(cells, h)`` and ``g_w = min(cells, w)``: a map smaller
    than the grid keeps its own resolution, because repeating its values would only add copies of the same columns.
    Vectors pass through, so that one name serves all layers of a network.

    Args:
        cells: Fields along each side, at least 1.

    Raises:
        InputError: If the activation is neither a vector nor a feature map ``(n, c, h, w)``.

    Cost: One pass over the activation.

    Pitfalls:
        Sixteen times the columns of ``Pool``. With few thousand samples reduce them by principal components before
        measuring; more columns than samples can bear lower a held-out value.

    Example:
        >>> Grid(4)(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 48])
    """

    cells: int

    def __post_init__(self) -> None:
        if not 1 <= self.cells <= 1024:
            raise InputError(f"A grid needs between 1 and 1024 fields along each side, not {self.cells}.")

    @property
    def name(self) -> str:
        """``"pool"`` and the number of fields along each side."""
        return f"pool{self.cells}"

    def __call__(self, activation: Tensor) -> Tensor:
        """Return the means over the fields, ``(n, c g_h g_w)``."""
        _require_numbers(activation, self.name)
        if activation.ndim == 2:
            return activation
        if activation.ndim != 4:
            raise InputError(
                f'The readout "{self.name}" reads feature maps (n, c, h, w), but the activation has shape '
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
    r"""A seeded Gaussian random projection of the flattened activation to ``width`` columns. ``"projection:64"``.

    :math:`z = a G / \sqrt{\text{width}}` with independent standard normal :math:`G`, which keeps squared distances
    right on average (Johnson and Lindenstrauss). :math:`G` is drawn on the CPU from ``seed`` and the number of columns
    alone, so both networks of a comparison, and every phase, see the same map.

    Args:
        width: Columns of the result, at least 1.
        seed: Seed of the draw; named ``"projection:64@7"`` unless it is 0.

    Raises:
        InputError: If a sample has no more than ``width`` numbers, so that a projection would only add columns.

    Cost: ``d × width`` normal draws and ``2 n d width`` operations at every call; the matrix is drawn in blocks of at
    most 16 MiB.

    Pitfalls:
        A projection loses information, so a measured value is a lower bound of what the whole layer would give, for
        estimators that are consistent. Another seed gives another number; name the seed when reporting.

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
                f"A projection needs a width of at least 1 and a seed from 0 to 2**63 - 1, not width {self.width} and "
                f"seed {self.seed}."
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
                f'The readout "{self.name}" reduces a sample to {self.width} numbers, but this layer has only '
                f'{length}. Use "flatten" for this layer, or a smaller width.'
            )
        generator = torch.Generator().manual_seed(self.seed)
        wide = _wide(rows.dtype)
        projected = torch.zeros(rows.shape[0], self.width, dtype=wide, device=rows.device)
        with torch.autocast(rows.device.type, enabled=False):
            step = max(1, _PROJECTION_BLOCK // self.width)
            for start in range(0, length, step):
                block = rows[:, start : start + step]
                matrix = torch.randn(block.shape[1], self.width, generator=generator, dtype=torch.float32)
                projected = projected + block.to(wide) @ matrix.to(device=rows.device, dtype=wide)
            return (projected / math.sqrt(self.width)).to(rows.dtype)


_FIXED: dict[str, Callable[[], Readout]] = {
    "pool": Pool,
    "flatten": Flatten,
    "tokens": Tokens,
    "cls": FirstToken,
    "whole": Whole,
}
_GRID = re.compile(r"pool([1-9][0-9]{0,3})")
_PROJECTION = re.compile(r"projection:([1-9][0-9]{0,8})(?:@(0|[1-9][0-9]{0,18}))?")


def parse_readout(name: str | Readout) -> Readout:
    """Return the readout called ``name``; a readout passes through.

    Args:
        name: One of :data:`READOUT_NAMES`.

    Raises:
        InputError: If there is no such readout.

    Cost: None.

    Pitfalls:
        ``"pool4"`` is a grid of 4 by 4 fields, not a pooling to four columns.

    Example:
        >>> parse_readout("projection:64")
        Projection(width=64, seed=0)
        >>> parse_readout("pool4").name
        'pool4'
    """
    if isinstance(name, Readout):
        return name
    if isinstance(name, str):
        if name in _FIXED:
            return _FIXED[name]()
        if match := _GRID.fullmatch(name):
            return Grid(int(match[1]))
        if match := _PROJECTION.fullmatch(name):
            return Projection(int(match[1]), int(match[2] or 0))
    raise InputError(f"There is no readout {name!r}. The readouts are {', '.join(READOUT_NAMES)}.")


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in: at least float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _require_numbers(activation: Tensor, name: str) -> None:
    if not activation.is_floating_point():
        raise InputError(
            f'The readout "{name}" was given {activation.dtype}; an activation is made of floating-point numbers. '
            "Choose the layer before they are rounded or compared."
        )
    if activation.ndim < 2:
        raise InputError(
            f'The readout "{name}" was given the shape {tuple(activation.shape)}, which is not one row per sample, '
            "(n, d) or more axes."
        )
