"""Discrepancies between the Gaussians fitted to two representations, as losses and as estimators."""

from __future__ import annotations

from typing import final

from torch import Tensor

from mikit.core.errors import InputError
from mikit.estimators.discrepancy import Discrepancy
from mikit.estimators.jackknife import jackknife_standard_error
from mikit.functional.engine.samples import working_dtype
from mikit.functional.gaussian.bures import gaussian_wasserstein2
from mikit.functional.gaussian.divergence import diagonal_gaussian_wasserstein2, gaussian_kl
from mikit.functional.gaussian.shrinkage import require_shrinkage, shrunk_sample

__all__ = ["GaussianKL", "GaussianWasserstein"]


@final
class GaussianWasserstein(Discrepancy):
    """Squared 2-Wasserstein distance of the Gaussians fitted to samples ``(n, d)`` and ``(m, d)``.

    Formula: ``|m_x - m_y|² + tr A + tr B - 2 tr (A^½ B A^½)^½`` with the means and covariances of the samples; see
    :func:`mikit.functional.gaussian_wasserstein2`. With ``diagonal``: ``|m_x - m_y|² + |σ_x - σ_y|²``.

    Args:
        diagonal: Whether to ignore all correlations, as the released code of KD²M does.
        shrinkage: Weight in [0, 1] with which each covariance (or its diagonal) is shrunk towards a multiple of the
            identity, or ``"ledoit-wolf"`` to estimate it; a constant for the gradient. None: the sample covariances,
            which may be singular.
        debias: Whether to subtract the value that halves of one sample give against each other.

    Shapes:
        ``x`` is ``(n, d)`` and ``y`` is ``(m, d)``, of the same width.

    Unit: feature².

    Kind: discrepancy. 0 for equal means and covariances, a lower bound on the exact ``W₂²`` of the samples without
    shrinkage, and too large on small samples.

    Raises:
        InputError: If the widths differ, the shrinkage is not in [0, 1], samples have weights, or there are fewer than
            four samples to debias with.

    Cost:
        O(k l (d + k)) with ``k = min(n, d)``, ``l = min(m, d)``, and O((n + m) d²) for more samples than columns, in
        float64; with shrinkage ``k = l = d``. ``diagonal``: O((n + m) d). The standard error takes twenty times that.

    Pitfalls:
        Blind to pairing, and to everything but means and covariances. With ``diagonal`` also to correlations: two
        distributions of variance 1 with correlations of 0.9 of opposite signs are at distance 0, where the full
        distance is 2.26 in 2 columns and 106 in 64. With few samples per column the value is mostly bias: shrink, or
        debias.

    Source:
        Dowson and Landau (1982), "The Fréchet distance between multivariate normal distributions"; Gelbrich (1990) for
        the bound; Ledoit and Wolf (2004) for the shrinkage.

    Example:
        >>> import torch
        >>> x = torch.randn(500, 1, generator=torch.Generator().manual_seed(0)) @ torch.ones(1, 2)
        >>> y = x * torch.tensor([1.0, -1.0])  # the opposite correlation
        >>> GaussianWasserstein().estimate(x, y).item() > 3
        True
        >>> GaussianWasserstein(diagonal=True).estimate(x, y).item() < 0.1
        True
    """

    name = "gaussian_wasserstein"
    unit = "feature²"

    def __init__(self, *, diagonal: bool = False, shrinkage: float | str | None = None, debias: bool = False) -> None:
        super().__init__(debias=debias)
        require_shrinkage(shrinkage)
        self.diagonal = diagonal
        self.shrinkage = shrinkage

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"diagonal={self.diagonal}, shrinkage={self.shrinkage!r}, debias={self.debias}"

    def between_laws(
        self, x: Tensor, y: Tensor, *, weights_x: Tensor | None = None, weights_y: Tensor | None = None
    ) -> Tensor:
        """Return the squared distance of the fitted Gaussians."""
        if self.diagonal:
            return diagonal_gaussian_wasserstein2(x, y, shrinkage=self.shrinkage)
        if self.shrinkage is None:
            return gaussian_wasserstein2(x, y)
        drawn = (shrunk_sample(sample, shrinkage=self.shrinkage) for sample in (x, y))
        return gaussian_wasserstein2(*drawn).to(working_dtype(x, y))

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float | None:
        """Return the jackknife standard error of twenty estimates, each without a twentieth of the samples."""
        self.require_samples(x, y)
        return jackknife_standard_error(self.estimate, x, y, groups=groups, fewest=4 if self.debias else 2)


@final
class GaussianKL(Discrepancy):
    """Kullback-Leibler divergence between the Gaussians fitted to samples ``(n, d)`` and ``(m, d)``.

    Formula: ``½ [tr(B⁻¹ A) + (m_x - m_y)ᵀ B⁻¹ (m_x - m_y) - d + log det B - log det A]`` for student ``N(m_x, A)`` and
    teacher ``N(m_y, B)``; see :func:`mikit.functional.gaussian_kl`.

    Args:
        direction: ``"student||teacher"``, ``"teacher||student"``, or ``"symmetric"``, the mean of both. The first
            penalizes a student with mass where the teacher has none, the second a student that lacks mass.
        shrinkage: Weight in [0, 1] with which each covariance is shrunk towards a multiple of the identity, or
            ``"ledoit-wolf"`` to estimate it; a constant for the gradient. None: the sample covariances, which must not
            be singular.
        diagonal: Whether to ignore all correlations, as the released code of KD²M does.
        debias: Whether to subtract the value that halves of one sample give against each other.

    Shapes:
        ``x`` is ``(n, d)`` and ``y`` is ``(m, d)``, of the same width.

    Unit: nats. It is the divergence of two distributions, not information that they share.

    Kind: discrepancy. 0 if and only if means and covariances are equal, and too large on small samples, by about
    ``d (d + 3) / 4 (1/n + 1/m)`` without shrinkage.

    Raises:
        InputError: If the widths differ, the direction or the shrinkage is invalid, samples have weights, there are
            fewer than four samples to debias with, or a covariance is singular: without shrinkage due to a dead unit,
            collinear columns or too few samples; with shrinkage if all samples are equal.

    Cost:
        O((n + m) d² + d³) time, twice that for ``"symmetric"``, in float64; ``diagonal``: O((n + m) d). The standard
        error takes twenty times that.

    Pitfalls:
        Blind to pairing, and to everything but means and covariances. If dead units or few samples make a covariance
        singular, the shrinkage determines the value: compare only values with the same shrinkage and size.

    Source:
        Kullback (1959), "Information Theory and Statistics"; Ledoit and Wolf (2004) for the shrinkage. The symmetric
        form is mikit's choice of a mean.

    Example:
        >>> import torch
        >>> x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
        >>> there, back = GaussianKL(), GaussianKL("teacher||student")
        >>> round(there.estimate(x, 2 * x).item(), 1), round(back.estimate(x, 2 * x).item(), 1)
        (1.0, 2.4)
    """

    name = "gaussian_kl"
    unit = "nats"
    symmetric = False

    def __init__(
        self,
        direction: str = "student||teacher",
        *,
        shrinkage: float | str | None = "ledoit-wolf",
        diagonal: bool = False,
        debias: bool = False,
    ) -> None:
        super().__init__(debias=debias)
        if direction not in ("student||teacher", "teacher||student", "symmetric"):
            raise InputError(
                f'direction is "{direction}"; it must be "student||teacher", "teacher||student" or "symmetric".'
            )
        require_shrinkage(shrinkage)
        self.direction = direction
        self.shrinkage = shrinkage
        self.diagonal = diagonal
        self.symmetric = direction == "symmetric"

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"{self.direction!r}, shrinkage={self.shrinkage!r}, diagonal={self.diagonal}, debias={self.debias}"

    def between_laws(
        self, x: Tensor, y: Tensor, *, weights_x: Tensor | None = None, weights_y: Tensor | None = None
    ) -> Tensor:
        """Return the divergence of the fitted Gaussians in this direction."""
        pairs = {"student||teacher": [(x, y)], "teacher||student": [(y, x)], "symmetric": [(x, y), (y, x)]}
        values = [gaussian_kl(a, b, shrinkage=self.shrinkage, diagonal=self.diagonal) for a, b in pairs[self.direction]]
        return values[0] if len(values) == 1 else (values[0] + values[1]) / 2

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float | None:
        """Return the jackknife standard error of twenty estimates, each without a twentieth of the samples.

        None if too few samples would be left for covariances without shrinkage.
        """
        self.require_samples(x, y)
        fewest = self.minimum_rows(x.shape[1], y.shape[1])
        return jackknife_standard_error(self.estimate, x, y, groups=groups, fewest=fewest)

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return 4, or two more than the columns for covariances without shrinkage; twice as many if debiased."""
        if self.shrinkage is not None and self.shrinkage != 0:
            return 4
        needed = 2 if self.diagonal else max(d_x, d_y) + 2
        return max(4, 2 * needed if self.debias else needed)
