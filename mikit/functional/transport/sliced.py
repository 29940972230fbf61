"""Sliced Wasserstein distances of two samples: exact transport on lines, averaged over directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mikit.core import require
from mikit.core.errors import InputError
from mikit.functional.engine.operators import closed_form, unwanted
from mikit.functional.engine.samples import centered, require_one_device, require_rows, require_same_width
from mikit.functional.transport.plans import require_order

__all__ = [
    "QuantilePieces",
    "directions_of_draw",
    "generator_of_draw",
    "sliced_wasserstein",
    "sliced_wasserstein2",
]

_Array = npt.NDArray[Any]

# Projected values sorted at a time, so that they and their order stay in cache.
_ENTRIES_ON_CPU, _ENTRIES_ON_GPU = 2**19, 2**26


def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    *,
    projections: int = 128,
    generator: torch.Generator | None = None,
    p: float = 2.0,
    directions: Tensor | None = None,
) -> Tensor:
    r"""Sliced Wasserstein distance of two samples.

    .. math:: SW_p = \Bigl( \frac1L \sum_{l=1}^L W_p^p(\langle\theta_l, x\rangle, \langle\theta_l, y\rangle)
              \Bigr)^{1/p}

    with :math:`L` unit vectors :math:`\theta_l`, drawn uniformly. The distance on each line is exact: samples are
    sorted and their quantile functions compared. Samples of different sizes need no interpolation.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``.
        projections: Number of directions to draw.
        generator: Generator of the directions; None: torch's default generator of the CPU.
        p: The order, at least 1.
        directions: Directions to use instead, ``(L, d)``, one per row, without normalization. The gradient treats them
            as constants.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both. Unit: that of
        the features. Kind: a distance, an estimate of its mean over all directions. For ``p = 2`` the expectation of
        its square is at most the squared Wasserstein distance divided by ``d``.

    Raises:
        InputError: If a sample is not ``(n, d)``, widths or devices differ, the directions do not have that width, or
            there are none, or ``p`` is below 1.

    Cost:
        O(L (n + m) (d + log(n + m))) time, gradient included; O(L + (n + m) d) memory in addition to a block of
        projected values.

    Pitfalls:
        - Other directions give another value: to compare values, pass the same ``directions`` each time.
        - Too large on small samples, like every distance of empirical distributions.
        - At distance 0 the root has no derivative; the gradient there is 0, its smallest subgradient. Tied projections
          are matched in an arbitrary order.
        - Blind to pairing: shuffling the rows of one sample does not change the value.

    Source:
        Bonneel, Rabin, Peyré and Pfister (2015), "Sliced and Radon Wasserstein Barycenters of Measures".

    Example:
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> axes = torch.eye(3)
        >>> round(sliced_wasserstein(x, x + 2, directions=axes).item(), 6)  # by 2 along each axis
        2.0
    """
    require_order(p)
    a, b, rows = _prepared(x, y, projections, generator, directions)
    power = _sliced_power(a, b, rows, float(p))
    at_zero = power == 0
    root = torch.where(at_zero, 1.0, power) ** (1 / p)
    return torch.where(at_zero, 0.0, root).to(a.dtype)


def sliced_wasserstein2(
    x: Tensor,
    y: Tensor,
    *,
    projections: int = 128,
    generator: torch.Generator | None = None,
    directions: Tensor | None = None,
) -> Tensor:
    r"""Squared sliced 2-Wasserstein distance of two samples, the square of :func:`sliced_wasserstein` with ``p = 2``.

    .. math:: SW_2^2 = \frac1L \sum_{l=1}^L W_2^2(\langle\theta_l, x\rangle, \langle\theta_l, y\rangle)

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``.
        projections: As in :func:`sliced_wasserstein`.
        generator: As in :func:`sliced_wasserstein`.
        directions: As in :func:`sliced_wasserstein`.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both. Unit: that of
        the features, squared. Kind: a squared distance; with drawn directions an unbiased estimate of its mean over
        all directions.

    Raises:
        InputError: As :func:`sliced_wasserstein`.

    Cost:
        As :func:`sliced_wasserstein`.

    Pitfalls:
        As :func:`sliced_wasserstein`; the square is smooth where the distance is 0.

    Source:
        As :func:`sliced_wasserstein`.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0]])
        >>> sliced_wasserstein2(x, y).item()  # one column: (9 + 4) / 2 on every line
        6.5
    """
    a, b, rows = _prepared(x, y, projections, generator, directions)
    return _sliced_power(a, b, rows, 2.0).to(a.dtype)


@closed_form
def _sliced_power(
    wants: Sequence[bool], x: Tensor, y: Tensor, directions: Tensor | None, p: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean of the distances on lines to the power ``p``, and its gradients."""
    assert directions is not None
    n, m = x.shape[0], y.shape[0]
    gradient_x = torch.zeros_like(x) if wants[0] else unwanted(x)
    gradient_y = torch.zeros_like(y) if wants[1] else unwanted(y)
    pieces = QuantilePieces(n, m, x) if n != m else None
    most = _ENTRIES_ON_GPU if x.is_cuda else _ENTRIES_ON_CPU
    values = []
    step = max(1, most // max(n, m))
    for start in range(0, directions.shape[0], step):
        part = directions[start : start + step]
        sorted_x, order_x = _sorted(part @ x.T, ordered=wants[0])
        sorted_y, order_y = _sorted(part @ y.T, ordered=wants[1])
        if pieces is not None:
            sorted_x, sorted_y = sorted_x[:, pieces.of_x], sorted_y[:, pieces.of_y]
        difference = sorted_x.sub_(sorted_y)
        distance = difference.abs()
        mass = distance.square() if p == 2 else distance.pow(p)
        values.append((mass * pieces.lengths).sum() if pieces is not None else mass.sum() / n)
        if not any(wants):
            continue
        # The derivative of |x - y|^p on each piece, for x; that for y is its negative.
        slope = difference.mul_(2) if p == 2 else difference.sign_().mul_(distance.pow_(p - 1)).mul_(p)
        slope = slope.mul_(pieces.lengths) if pieces is not None else slope.div_(n)
        for wanted, order, gradient, name in (
            (wants[0], order_x, gradient_x, "x"),
            (wants[1], order_y, gradient_y, "y"),
        ):
            if wanted:
                by_rank = slope if pieces is None else pieces.gathered(slope, name)
                back = torch.empty_like(by_rank).scatter_(1, order, by_rank)
                gradient.addmm_(back.T, part, alpha=(1.0 if name == "x" else -1.0) / directions.shape[0])
    value = torch.stack(values).sum(dtype=torch.float64) / directions.shape[0]
    return value, gradient_x, gradient_y


@final
class QuantilePieces:
    """The pieces of (0, 1] on which both quantile functions, of ``n`` and of ``m`` equal steps, are constant.

    ``of_x`` and ``of_y`` are the step of each piece in the two quantile functions, ``lengths`` the lengths of the
    pieces in the dtype and on the device of ``like``.
    """

    def __init__(self, n: int, m: int, like: Tensor) -> None:
        # Ends are integers in units of 1 / (n m), so that ends that coincide do so exactly.
        ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
        self._sizes = {"x": n, "y": m}
        self.of_x = torch.from_numpy((ends - 1) // m).to(like.device)
        self.of_y = torch.from_numpy((ends - 1) // n).to(like.device)
        self.lengths = torch.from_numpy(np.diff(ends, prepend=0) / (n * m)).to(like)

    def gathered(self, slope: Tensor, name: str) -> Tensor:
        """Return the sums over the pieces of each step of one sample's quantile function."""
        sums = slope.new_zeros(slope.shape[0], self._sizes[name])
        return sums.index_add_(1, self.of_x if name == "x" else self.of_y, slope)


def _sorted(rows: Tensor, *, ordered: bool) -> tuple[Tensor, Tensor]:
    """Return each row sorted, and if ``ordered`` the original position of each entry."""
    if rows.device.type != "cpu":
        return torch.sort(rows, dim=1)
    # NumPy sorts with vector instructions, several times as fast as torch, and releases the lock meanwhile, so that
    # threads sort parts of the rows.
    array, threads = rows.numpy(), torch.get_num_threads()
    if not ordered:
        return torch.from_numpy(_by_rows(np.sort, array, threads)), unwanted(rows)
    order = torch.from_numpy(_by_rows(np.argsort, array, threads))
    return rows.gather(1, order), order


def _prepared(
    x: Tensor, y: Tensor, projections: int, generator: torch.Generator | None, directions: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    require_rows(x, "x")
    require_rows(y, "y")
    require_same_width(x, y)
    require_one_device(x, y)
    d = x.shape[1]
    # A common shift does not change distances on lines, and without it projections keep their digits.
    a, b = centered(x, y)
    if directions is None:
        require.at_least(projections, "projections")
        if generator is None:  # torch.compile does not support generators
            drawn = torch.randn(projections, d, dtype=torch.float32)
        else:
            drawn = torch.randn(projections, d, generator=generator, device=generator.device, dtype=torch.float32)
        rows = _unit_vectors(drawn)
    else:
        rows = directions.detach()
        if rows.ndim != 2 or rows.shape[1] != d or rows.shape[0] == 0:
            raise InputError(f"directions has shape {tuple(rows.shape)}; pass one unit vector per row, (L, {d}).")
    return a, b, rows.to(device=a.device, dtype=a.dtype)


def _unit_vectors(drawn: Tensor) -> Tensor:
    return torch.nn.functional.normalize(drawn.double(), dim=1)


def generator_of_draw(draw: Tensor, seed: int) -> torch.Generator:
    """Return the generator of a draw, counted from 1; draw 0 has the seed itself."""
    count = int(draw)
    return torch.Generator().manual_seed((seed * 1_000_003 + count) % 2**63 if count else seed)


def directions_of_draw(draw: Tensor, seed: int, projections: int, d: int) -> Tensor:
    """Return the unit vectors ``(projections, d)`` of a draw; inside torch.compile, from an operator.

    Example:
        >>> one, two = (directions_of_draw(torch.tensor(draw), 0, 4, 3) for draw in (1, 2))
        >>> bool(torch.equal(one, two)), one.norm(dim=1).round(decimals=6).tolist()
        (False, [1.0, 1.0, 1.0, 1.0])
    """
    if torch.compiler.is_compiling():
        drawn: Tensor = _directions_of_draw(draw, seed, projections, d)
        return drawn
    return _unit_vectors(torch.randn(projections, d, generator=generator_of_draw(draw, seed), dtype=torch.float32))


@torch.library.custom_op("mikit::directions_of_draw", mutates_args=())
def _directions_of_draw(draw: Tensor, seed: int, projections: int, d: int) -> Tensor:
    rows = torch.randn(projections, d, generator=generator_of_draw(draw, seed), dtype=torch.float32)
    return _unit_vectors(rows).to(draw.device)


@_directions_of_draw.register_fake
def _(draw: Tensor, seed: int, projections: int, d: int) -> Tensor:
    return draw.new_empty((projections, d), dtype=torch.float64)


def _by_rows(sort: Callable[..., _Array], array: _Array, threads: int) -> _Array:
    if threads == 1:
        return sort(array, axis=1)
    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(lambda part: sort(part, axis=1), np.array_split(array, threads))))
