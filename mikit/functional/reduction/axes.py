"""Principal axes of standardized columns: exact where that is cheap, by subspace iteration otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

__all__ = ["PrincipalAxes", "leading_subspace"]

# Up to this many rows or columns the principal axes are exact; beyond, they come from subspace iteration.
_EXACT = 1200
_AXES = 512
# Axes whose variance is below this fraction of the largest are rounding (float32), not data.
_RANK_TOLERANCE = 1e-7
_ROWS_AT_A_TIME = 1024


@final
@dataclass(frozen=True)
class PrincipalAxes:
    """Principal axes of rows whose columns are standardized.

    Attributes:
        mean: Column means ``(d,)``, float64.
        axes: ``(d, q)``, float64, in the units of the columns: ``(rows - mean) @ axes`` are the coordinates.
        variances: Of the coordinates, ``(q,)``, in descending order. Columns of noise give variances near 1.
    """

    mean: Tensor
    axes: Tensor
    variances: Tensor

    @property
    def rank(self) -> int:
        """Number of axes; constant columns add none."""
        return int(self.variances.shape[0])

    @classmethod
    def of(cls, rows: Tensor, generator: torch.Generator) -> Self:
        """Return all axes of rows ``(n, d)``, or the leading 512 beyond 1,200 rows and columns.

        ``O(n d min(n, d))`` time for all, ``O(512 n d)`` for the leading ones, and one float32 copy of the rows.
        """
        n, d = rows.shape
        rows = rows.detach()
        mean = rows.mean(dim=0, dtype=torch.float64)
        peak = torch.maximum(rows.amax(dim=0).double() - mean, mean - rows.amin(dim=0).double())
        rounding = 1e-13 * n**0.5 if rows.dtype == torch.float64 else torch.finfo(rows.dtype).eps
        # An infinite scale turns a column that varies by rounding only into 0. The others are divided by their peak
        # first, which keeps the squares of huge and tiny columns within the range of float32.
        peak = torch.where(peak > rounding * mean.abs(), peak, torch.inf)
        z = torch.empty(n, d, dtype=torch.float32, device=rows.device)
        for start in range(0, n, _ROWS_AT_A_TIME):
            z[start : start + _ROWS_AT_A_TIME] = (rows[start : start + _ROWS_AT_A_TIME].double() - mean) / peak
        deviation = torch.linalg.vector_norm(z, dim=0, dtype=torch.float64) / n**0.5
        scale = torch.where(deviation > 0, deviation * peak, torch.inf)
        z /= torch.where(deviation > 0, deviation, 1.0).float()
        if min(n, d) <= _EXACT:
            # Zᵀ Z and Z Zᵀ have the same nonzero eigenvalues: decompose the smaller of the two.
            gram = (z.T @ z if d <= n else z @ z.T).double() / n
            values, vectors = torch.linalg.eigh(gram)
            values, vectors = values.flip(0), vectors.flip(1)
        else:
            basis = leading_subspace(z, _AXES, generator)
            core = (z @ basis).double()
            values, vectors = torch.linalg.eigh(core.T @ core / n)
            values, vectors = values.flip(0), basis.double() @ vectors.flip(1)
        kept = values > _RANK_TOLERANCE * values[:1].clamp(min=1e-30)
        values, vectors = values[kept], vectors[:, kept]
        if min(n, d) <= _EXACT and d > n:
            vectors = (z.T @ (vectors / (n * values).sqrt()).float()).double()
        return cls(mean, vectors / scale[:, None], values)

    def project(self, rows: Tensor) -> Tensor:
        """Return the coordinates ``(n, q)``, float32."""
        parts = (rows[i : i + _ROWS_AT_A_TIME].detach() for i in range(0, rows.shape[0], _ROWS_AT_A_TIME))
        return torch.cat([((part.double() - self.mean) @ self.axes).float() for part in parts])


def leading_subspace(matrix: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Return an orthonormal basis ``(d, width)`` of approximately the leading right singular vectors."""
    width = min(width, *matrix.shape)
    start = torch.randn(matrix.shape[1], width, generator=generator, dtype=torch.float32)
    basis: Tensor = torch.linalg.qr(start.to(matrix))[0]
    # Each step multiplies the part along a singular vector by its squared singular value; four separate the leading
    # subspace well enough, since the singular vectors inside it are computed exactly afterwards. Orthonormalizing in
    # between keeps the smaller ones from drowning in rounding.
    for _ in range(4):
        basis = torch.linalg.qr(matrix.T @ (matrix @ basis))[0]
    return basis
