"""Gaussians fitted to fewer rows than columns, without a matrix of columns by columns.

With shrinkage the covariance is a multiple of the identity plus that of the rows. Its inverse, its determinant and all
products with rows come from matrices of rows by rows (the identities of Woodbury and Sylvester).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self, final

import torch
from torch import Tensor

from mikit.functional.closed import unwanted

__all__ = ["FewRowGaussian", "divergence_of_few_rows"]

# Least share of the trace that shrinkage puts on the identity: below, differences from it lose digits.
_LEAST_AMOUNT = 1e-3


@final
class FewRowGaussian(NamedTuple):
    r"""A Gaussian of covariance :math:`\alpha I + \beta X^\top X`.

    Attributes:
        rows: :math:`X`, centred, ``(n, d)``, float64.
        mean: ``(d,)``.
        amount: Shrinkage.
        floor: :math:`\alpha`.
        factor: :math:`\beta`.
        gram: :math:`X X^\top`.
        inner: :math:`\beta (\alpha I + \beta X X^\top)^{-1}`, with which the inverse is
            :math:`(I - X^\top K X) / \alpha`.
        log_det: Logarithm of the determinant.
    """

    rows: Tensor
    mean: Tensor
    amount: Tensor
    floor: Tensor
    factor: Tensor
    gram: Tensor
    inner: Tensor
    log_det: Tensor

    @classmethod
    def fitted(cls, rows: Tensor, mean: Tensor, amount: Tensor) -> Self | None:
        """Return the Gaussian of centred rows, or None where it takes the whole covariance."""
        n, d = rows.shape
        gram = rows @ rows.T
        floor, factor = amount * gram.trace() / (n * d), (1 - amount) / n
        if n >= d or not bool((amount >= _LEAST_AMOUNT) & (floor > 0)):
            return None
        kernel = factor * gram
        kernel.diagonal().add_(floor)
        root, failed = torch.linalg.cholesky_ex(kernel)
        if failed:
            return None
        log_det = (d - n) * floor.log() + 2 * root.diagonal().log().sum()
        return cls(rows, mean, amount, floor, factor, gram, factor * torch.cholesky_inverse(root), log_det)

    def solved(self, others: Tensor) -> Tensor:
        """Return ``others`` ``(k, d)`` times the inverse covariance."""
        return (others - ((others @ self.rows.T) @ self.inner) @ self.rows) / self.floor

    def spread(self, others: Tensor) -> Tensor:
        """Return ``others`` ``(k, d)`` times the covariance."""
        return self.floor * others + self.factor * ((others @ self.rows.T) @ self.rows)

    def inverse_trace(self) -> Tensor:
        """Return the trace of the inverse covariance."""
        return (self.rows.shape[1] - (self.inner * self.gram).sum()) / self.floor

    def gradient(self, moved: Tensor, trace: Tensor, of_mean: Tensor) -> Tensor:
        """Return the gradient in the sample.

        Args:
            moved: The rows times the gradient in the covariance.
            trace: That gradient's trace.
            of_mean: The gradient in the mean.
        """
        n, d = self.rows.shape
        inner = (1 - self.amount) * moved + (self.amount * trace / d) * self.rows
        return (2 * inner + of_mean) / n


def divergence_of_few_rows(
    wants: Sequence[bool], x: Tensor, y: Tensor, a: FewRowGaussian, b: FewRowGaussian
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Kullback-Leibler divergence of ``a`` from ``b``, and its gradients in the samples ``x`` and ``y``."""
    d = x.shape[1]
    shift = (a.mean - b.mean)[None]
    seen = b.solved(shift)
    solved_a = b.solved(a.rows)
    trace = a.floor * b.inverse_trace() + a.factor * (solved_a * a.rows).sum()
    value = (trace + (shift * seen).sum() - d + b.log_det - a.log_det) / 2
    gradient_x, gradient_y = unwanted(x), unwanted(y)
    if wants[0]:
        moved = (solved_a - a.solved(a.rows)) / 2
        gradient_x = a.gradient(moved, (b.inverse_trace() - a.inverse_trace()) / 2, seen[0])
    if wants[1]:
        solved_b = b.solved(b.rows)
        moved = (solved_b - b.solved(a.spread(solved_b)) - (b.rows @ seen[0])[:, None] * seen) / 2
        inner_gram = b.inner @ b.gram
        squared = (d - 2 * inner_gram.trace() + (inner_gram * inner_gram.T).sum()) / b.floor**2
        seen_twice = a.floor * squared + a.factor * solved_a.square().sum()
        gradient_y = b.gradient(moved, (b.inverse_trace() - seen_twice - seen.square().sum()) / 2, -seen[0])
    return value, gradient_x, gradient_y
