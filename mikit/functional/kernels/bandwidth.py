"""The median bandwidth of Gaussian kernels, and linear CKA."""

from __future__ import annotations

import torch
from torch import Tensor

from mikit.core import require
from mikit.functional.engine.samples import (
    constant_columns,
    require_paired,
    require_rows,
    require_same_width,
    working_dtype,
)

__all__ = ["linear_cka", "median_bandwidth", "median_distance"]


def median_bandwidth(x: Tensor, y: Tensor | None = None, *, most: int = 2048) -> float:
    """Median Euclidean distance between distinct rows: the usual bandwidth of a Gaussian kernel.

    Args:
        x: Sample, ``(n, d)``.
        y: Second sample, ``(m, d)``, pooled with the first; None for one sample.
        most: Largest number of rows to use; where there are more, evenly spaced rows of the pooled sample.

    Returns:
        The median over all pairs of rows that differ, a number in the unit of the features. 1.0 if no two rows differ,
        where every bandwidth gives the same kernel.

    Raises:
        InputError: If a sample is not ``(n, d)``, the widths differ, or ``most`` is below 2.

    Cost:
        O(most² d) time and O(most²) memory, for any n.

    Pitfalls:
        It depends on the data, and kernel quantities with different bandwidths are not comparable: fix the bandwidth
        for a curve over layers or training steps. Above ``most`` rows it depends slightly on the order of the rows.

    Source:
        The median heuristic, common practice.

    Example:
        >>> median_bandwidth(torch.tensor([[0.0], [1.0], [3.0]]))
        2.0
    """
    return float(median_distance(x, y, most=most))


def median_distance(x: Tensor, y: Tensor | None = None, *, most: int = 2048) -> Tensor:
    """Return :func:`median_bandwidth` as a 0-dim float64 tensor, so that no computation has to wait for its value."""
    require_rows(x, "x")
    rows = x.detach()
    if y is not None:
        require_rows(y, "y")
        require_same_width(x, y)
        rows = torch.cat([rows.double(), y.detach().double()])
    require.at_least(most, "most", 2)
    n = rows.shape[0]
    if n > most:
        rows = rows[torch.arange(most, device=rows.device) * (n - 1) // (most - 1)]
    rows = rows.to(torch.float64)
    distances = torch.pdist(rows - rows.mean(dim=0))  # centered, so that a common offset costs no digits
    if not distances.numel():
        return distances.new_ones(())
    return torch.where(distances > 0, distances, torch.nan).nanmedian().nan_to_num(nan=1.0)


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    r"""Linear centered kernel alignment of two representations of the same inputs.

    .. math:: \mathrm{CKA} = \frac{\|X_c^\top Y_c\|_F^2}{\|X_c^\top X_c\|_F \, \|Y_c^\top Y_c\|_F}

    Args:
        x: First representation, ``(n, d_x)``.
        y: Second representation, ``(n, d_y)``, rows paired with ``x``.

    Returns:
        0-dim tensor in the common dtype of the inputs, float32 at least, between 0 and 1, differentiable. 0 if one of
        them is constant. Unit: dimensionless. Kind: an index, biased upwards unless ``n`` is much larger than the
        widths.

    Raises:
        InputError: If the inputs are not ``(n, d)`` or have different numbers of rows.

    Cost:
        O(n d_x d_y + n d_x² + n d_y²) time and O((d_x + d_y)²) memory; via the n x n Gram matrices where n is
        smaller than a width. In float64.

    Pitfalls:
        - Not information: a representation that contains all information about another can have any CKA with it.
        - Independent representations do not give 0 at finite n: about ``(d_x d_y)**0.5 / n`` for white ones.
        - Dominated by the directions of largest variance.

    Source:
        Kornblith, Norouzi, Lee and Hinton (2019), "Similarity of Neural Network Representations Revisited".

    Example:
        >>> x = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
        >>> round(linear_cka(x, 3 * x.flip(1) + 1).item(), 6)  # rotations, scale and offset do not matter
        1.0
    """
    require_rows(x, "x")
    require_rows(y, "y")
    require_paired(x, y)
    dtype = working_dtype(x, y)
    n = x.shape[0]
    with torch.autocast(x.device.type, enabled=False):
        a, b = (_unit_size(rows.to(torch.float64)) for rows in (x, y))
        if n < max(a.shape[1], b.shape[1]):
            gram_x, gram_y = a @ a.T, b @ b.T
            shared, norm_x, norm_y = (gram_x * gram_y).sum(), gram_x.square().sum(), gram_y.square().sum()
        else:
            shared = (a.T @ b).square().sum()
            norm_x, norm_y = (a.T @ a).square().sum(), (b.T @ b).square().sum()
        size = norm_x * norm_y
        constant = size == 0
        # Dividing by 1 where the norm is 0 keeps the gradient of the square root finite.
        return (shared / torch.where(constant, 1.0, size).sqrt()).to(dtype)


def _unit_size(rows: Tensor) -> Tensor:
    """Return the centered rows, exactly 0 in constant columns, with largest entry 1 (CKA ignores scale)."""
    centered = torch.where(constant_columns(rows), 0.0, rows - rows.mean(dim=0))
    largest = centered.detach().abs().amax()
    return centered / torch.where(largest > 0, largest, 1.0)
