"""Comparison of two samples as Gaussians: Kullback-Leibler divergence, and transport distance without correlations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self, final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.engine.operators import closed_form, unwanted
from mikit.functional.engine.samples import require_comparable, working_dtype
from mikit.functional.gaussian.shrinkage import centered_rows, ledoit_wolf_weight, require_shrinkage

__all__ = ["FewRowGaussian", "diagonal_gaussian_wasserstein2", "divergence_of_few_rows", "gaussian_kl"]


# Smallest weight of the identity for which the few-row form is used: below, differences from the identity lose digits.
_LEAST_AMOUNT = 1e-3
# Fraction of its variance that a column must keep, given those before it, for a covariance to be inverted in float64.
_LEAST_SHARE = 1e-12


@final
class FewRowGaussian(NamedTuple):
    r"""A Gaussian of covariance :math:`\alpha I + \beta X^\top X` for fewer rows than columns.

    Attributes:
        rows: :math:`X`, centered, ``(n, d)``, float64.
        amount: Shrinkage; it determines :math:`\alpha`, the ``floor``, and :math:`\beta`, the ``factor``.
        gram: :math:`X X^\top`.
        inner: :math:`K = \beta (\alpha I + \beta X X^\top)^{-1}`.
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
        """Return the Gaussian of centered rows, or None where the full covariance is needed."""
        # Woodbury's identity: the inverse covariance is (I - Xᵀ K X) / α, so everything is computed from n x n matrices
        # and no d x d matrix is formed.
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

        ``moved`` is the rows times the gradient in the covariance, ``trace`` the trace of the latter, and ``of_mean``
        the gradient in the mean.
        """
        n, d = self.rows.shape
        # The second term: the multiple of the identity grows with the trace of the sample covariance.
        inner = (1 - self.amount) * moved + (self.amount * trace / d) * self.rows
        return (2 * inner + of_mean) / n


def divergence_of_few_rows(
    wants: Sequence[bool], x: Tensor, y: Tensor, a: FewRowGaussian, b: FewRowGaussian
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Kullback-Leibler divergence of ``a`` from ``b``, and its gradients in the samples ``x`` and ``y``."""
    d = x.shape[1]
    shift = (a.mean - b.mean)[None]
    solved_shift = b.solved(shift)
    solved_a = b.solved(a.rows)
    trace = a.floor * b.inverse_trace() + a.factor * (solved_a * a.rows).sum()
    value = (trace + (shift * solved_shift).sum() - d + b.log_det - a.log_det) / 2
    gradient_x, gradient_y = unwanted(x), unwanted(y)
    if wants[0]:
        moved = (solved_a - a.solved(a.rows)) / 2
        gradient_x = a.gradient(moved, (b.inverse_trace() - a.inverse_trace()) / 2, solved_shift[0])
    if wants[1]:
        solved_b = b.solved(b.rows)
        moved = (solved_b - b.solved(a.spread(solved_b)) - (b.rows @ solved_shift[0])[:, None] * solved_shift) / 2
        # The traces of B⁻² and of B⁻¹ A B⁻¹, by Woodbury's identity.
        inner_gram = b.inner @ b.gram
        squared = (d - 2 * inner_gram.trace() + (inner_gram * inner_gram.T).sum()) / b.floor**2
        twice_solved = a.floor * squared + a.factor * solved_a.square().sum()
        of_trace = (b.inverse_trace() - twice_solved - solved_shift.square().sum()) / 2
        gradient_y = b.gradient(moved, of_trace, -solved_shift[0])
    return value, gradient_x, gradient_y


def gaussian_kl(
    x: Tensor, y: Tensor, *, shrinkage: float | str | None = "ledoit-wolf", diagonal: bool = False
) -> Tensor:
    r"""Kullback-Leibler divergence of the Gaussian fitted to one sample from that fitted to another.

    .. math:: \mathrm{KL}(N_x \,\|\, N_y) = \tfrac12 \Bigl[ \mathrm{tr}(\Sigma_y^{-1} \Sigma_x)
              + (\bar x - \bar y)^\top \Sigma_y^{-1} (\bar x - \bar y) - d
              + \log \frac{\det \Sigma_y}{\det \Sigma_x} \Bigr]

    with the covariances :math:`\Sigma = (1 - \lambda) S + \lambda \tfrac{\mathrm{tr} S}{d} I` of each sample, whose
    :math:`S` divides by the number of rows.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``.
        shrinkage: :math:`\lambda` in [0, 1]; ``"ledoit-wolf"`` estimates it for each sample, as
            :func:`~mikit.functional.gaussian.shrinkage.ledoit_wolf_weight` does. None: the covariances as they are. A
            constant for the gradient.
        diagonal: Whether to leave out the correlations, in both covariances.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both. Unit: nats.
        Kind: a divergence of the fitted Gaussians, 0 if and only if means and covariances agree; not symmetric; never
        clipped, so rounding may give ``-1e-15``.

    Raises:
        InputError: If a sample is not ``(n, d)`` with at least two rows, widths or devices differ, the shrinkage is not
            in [0, 1], or a covariance is singular, for which the divergence is infinite or undefined: without shrinkage
            that of a sample with a constant column, with a column that is a combination of others, or with ``n <= d``
            rows; with any shrinkage that of rows that are all equal.

    Cost:
        O((n + m) d² + d³) time, O(d² + (n + m) d) memory, in float64; with shrinkage and fewer rows than columns
        O((n + m)² d); ``diagonal``: O((n + m) d).

    Pitfalls:
        - Where dead units or few rows make the sample covariance singular, the shrinkage determines the value: compare
          only values with the same shrinkage, sample size and width.
        - Too large on small samples, by about ``d (d + 3) / 4 (1 / n + 1 / m)`` nats without shrinkage.
        - Compares means and covariances only, and with ``diagonal`` no correlations.
        - Blind to pairing: shuffling the rows of one sample changes nothing.

    Source:
        Kullback (1959), "Information Theory and Statistics", for the formula; Ledoit and Wolf (2004) for the weight.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> round(gaussian_kl(x, 2 * x, shrinkage=None).item(), 4)  # log 4 - ¾
        0.6363
        >>> round(gaussian_kl(x, x + 1, shrinkage=None).item(), 4)  # a shift by two standard deviations in all
        2.0
    """
    weight = require_shrinkage(shrinkage)
    a, b = _prepared(x, y, fewest=2)
    return _divergence(a, b, weight, diagonal).to(a.dtype)


def diagonal_gaussian_wasserstein2(x: Tensor, y: Tensor, *, shrinkage: float | str | None = None) -> Tensor:
    r"""Squared 2-Wasserstein distance of Gaussians with the means and the variances of two samples.

    .. math:: W^2 = \sum_j (\bar x_j - \bar y_j)^2 + \sum_j (\sigma_{x, j} - \sigma_{y, j})^2

    with standard deviations that divide by the number of rows. Correlations are ignored;
    :func:`~mikit.functional.gaussian_wasserstein2` includes them.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``.
        shrinkage: Weight in [0, 1] with which the variances of a sample are shrunk to their mean, or
            ``"ledoit-wolf"``; None: no shrinkage. A constant for the gradient.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable in both. Unit: that of the
        features, squared. Kind: a squared distance, at most that of the Gaussians with their correlations.

    Raises:
        InputError: If a sample is not ``(n, d)``, widths or devices differ, the shrinkage is not in [0, 1], or there
            are fewer than two rows to estimate one from.

    Cost:
        O((n + m) d) time and memory.

    Pitfalls:
        - Blind to correlations: two distributions with opposite correlations are at distance 0.
        - A standard deviation has no derivative at 0. The gradient there is set to 0, so a dead unit receives a
          gradient through its mean only.
        - Too large on small samples, though less so than with correlations.

    Source:
        As :func:`~mikit.functional.bures2`, for covariances that commute. It is the "Gaussian Wasserstein" of the
        released code of KD²M (Fernandes Montesuma, 2025).

    Example:
        >>> x = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
        >>> diagonal_gaussian_wasserstein2(x, 3 * x + 1).item()  # in each column 1 for the mean, 2² for the spread
        10.0
        >>> diagonal_gaussian_wasserstein2(x, x * torch.tensor([1.0, -1.0])).item()
        0.0
    """
    weight = require_shrinkage(shrinkage)
    a, b = _prepared(x, y, fewest=2 if weight < 0 else 1)
    with torch.autocast(x.device.type, enabled=False):
        (mean_x, spread_x), (mean_y, spread_y) = (_spreads(sample, weight) for sample in (a, b))
        value: Tensor = (mean_x - mean_y).square().sum() + (spread_x - spread_y).square().sum()
    return value.to(a.dtype)


@closed_form
def _divergence(
    wants: Sequence[bool], x: Tensor, y: Tensor, weight: float, diagonal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if not bool((x.sum(dtype=torch.float64) + y.sum(dtype=torch.float64)).isfinite()):
        # The solvers raise on NaN. Every other formula propagates it.
        nan = x.new_full((), torch.nan, dtype=torch.float64)
        return nan, torch.full_like(x, torch.nan), torch.full_like(y, torch.nan)
    if not diagonal and max(x.shape[0], y.shape[0]) < x.shape[1] and weight != 0:
        few = [FewRowGaussian.fitted(*centered_rows(rows), _amount(rows, weight, diagonal=False)) for rows in (x, y)]
        if few[0] is not None and few[1] is not None:
            return divergence_of_few_rows(wants, x, y, few[0], few[1])
    fitted = _columns if diagonal else _fitted
    a, b = fitted(x, weight, "x"), fitted(y, weight, "y")
    shift = a.mean - b.mean
    if diagonal:
        solved_shift = b.inverse * shift
        value = (b.inverse * a.covariance).sum() + shift @ solved_shift - x.shape[1] + b.log_det - a.log_det
        of_a = (b.inverse - a.inverse) / 2
        of_b = (b.inverse - b.inverse.square() * a.covariance - solved_shift.square()) / 2
    else:
        solved_shift = b.inverse @ shift
        value = (b.inverse * a.covariance).sum() + shift @ solved_shift - x.shape[1] + b.log_det - a.log_det
        of_a = (b.inverse - a.inverse) / 2
        of_b = (b.inverse - b.inverse @ a.covariance @ b.inverse - torch.outer(solved_shift, solved_shift)) / 2
    gradient_x = a.gradient(of_a, solved_shift) if wants[0] else unwanted(x)
    gradient_y = b.gradient(of_b, -solved_shift) if wants[1] else unwanted(y)
    return value / 2, gradient_x, gradient_y


@final
class _Fitted(NamedTuple):
    """A Gaussian fitted to a sample; a diagonal covariance and its inverse are stored as vectors."""

    rows: Tensor
    mean: Tensor
    amount: Tensor
    covariance: Tensor
    inverse: Tensor
    log_det: Tensor

    def gradient(self, of_covariance: Tensor, of_mean: Tensor) -> Tensor:
        """Return the gradient in the sample from those in the covariance and in the mean."""
        n, d = self.rows.shape
        if of_covariance.ndim == 1:
            moved = self.rows * ((1 - self.amount) * of_covariance + self.amount * of_covariance.mean())
        else:
            moved = (1 - self.amount) * (self.rows @ of_covariance)
            moved += self.amount * of_covariance.trace() / d * self.rows
        return (2 * moved + of_mean) / n


def _fitted(sample: Tensor, weight: float, name: str) -> _Fitted:
    rows, mean = centered_rows(sample)
    n, d = rows.shape
    amount = _amount(sample, weight, diagonal=False)
    covariance = (1 - amount) * (rows.T @ rows / n)
    covariance.diagonal().add_(amount * rows.square().sum() / (n * d))
    spread = covariance.diagonal().sqrt()
    dead = int((spread == 0).sum())
    if dead:
        raise _singular(name, f"{dead} of its {d} features never vary", weight)
    # Scaled to correlations, so that singular means that columns repeat each other, and not that some are small.
    factor, failed = torch.linalg.cholesky_ex(covariance / spread[:, None] / spread)
    if failed or not bool(factor.diagonal().square().amin() > _LEAST_SHARE):
        raise _singular(name, f"its {n} samples leave combinations of the {d} features without variance", weight)
    inverse = torch.cholesky_inverse(factor) / spread[:, None] / spread
    return _Fitted(rows, mean, amount, covariance, inverse, 2 * (factor.diagonal().log() + spread.log()).sum())


def _columns(sample: Tensor, weight: float, name: str) -> _Fitted:
    rows, mean = centered_rows(sample)
    amount = _amount(sample, weight, diagonal=True)
    variances = _shrunk(rows.square().mean(dim=0), amount)
    dead = int((variances == 0).sum())
    if dead:
        raise _singular(name, f"{dead} of its {len(variances)} features never vary", weight)
    return _Fitted(rows, mean, amount, variances, 1 / variances, variances.log().sum())


def _spreads(sample: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    rows, mean = centered_rows(sample)
    variances = _shrunk(rows.square().mean(dim=0), _amount(sample, weight, diagonal=True))
    positive = variances > 0
    return mean, torch.where(positive, torch.where(positive, variances, 1.0).sqrt(), 0.0)


def _shrunk(variances: Tensor, amount: Tensor) -> Tensor:
    return (1 - amount) * variances + amount * variances.mean()


def _amount(sample: Tensor, weight: float, *, diagonal: bool) -> Tensor:
    if weight < 0:
        return ledoit_wolf_weight(sample, diagonal=diagonal)
    return torch.full((), weight, dtype=torch.float64, device=sample.device)


def _singular(name: str, what: str, weight: float) -> InputError:
    way = (
        'Pass shrinkage="ledoit-wolf" or a number above 0, or leave those columns out.'
        if weight == 0
        else "Leave out rows or columns that do not vary, or pass a larger shrinkage."
    )
    return InputError(
        f"The covariance of {name} is singular: {what}. The divergence is infinite or undefined then. {way}"
    )


def _prepared(x: Tensor, y: Tensor, *, fewest: int) -> tuple[Tensor, Tensor]:
    require_comparable(x, y, fewest=fewest)
    dtype = working_dtype(x, y)
    return x.to(dtype), y.to(dtype)
