"""Nearest-neighbor information, corrected by Gaussian samples of the same size and correlations.

Nearest neighbors underestimate the information where dimensions or nats are many. The size of that error is known for
Gaussian samples, whose information has a closed form. The estimate is therefore the Gaussian information plus what
nearest neighbors find beyond a Gaussian sample with the correlations of the data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mikit.core import require
from mikit.core.errors import InputError
from mikit.functional.gaussian.canonical import CanonicalForm, canonical_form, rank_gaussianise, wishart_bias
from mikit.functional.neighbors.ksg import ksg_pointwise

__all__ = ["anchored_ksg", "anchored_ksg_pointwise"]

_BISECTIONS = 60


def anchored_ksg(a: Tensor, b: Tensor, k: int = 3, *, draws: int = 8, generator: torch.Generator) -> Tensor:
    """Return the mean of :func:`anchored_ksg_pointwise`: information in nats, 0-dim float64, never clipped.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> a = torch.randn(800, 8, generator=g)
        >>> b = 0.6 * a + 0.8 * torch.randn(800, 8, generator=g)  # the truth is 1.79 nats
        >>> round(float(anchored_ksg(a, b, generator=g)), 1)
        1.8
    """
    return anchored_ksg_pointwise(a, b, k, draws=draws, generator=generator).mean()


def anchored_ksg_pointwise(a: Tensor, b: Tensor, k: int = 3, *, draws: int = 8, generator: torch.Generator) -> Tensor:
    """Return the contribution of every sample in nats, ``(n,)`` float64; their mean is the estimate.

    It is ``G(z) + K(z) - mean_b [K(z_b) - β (G(z_b) - G(z))]``. ``z`` are the normal scores of the columns, ``G`` the
    Gaussian information less its exact bias, ``K`` is KSG, and ``z_b`` are the scores of ``draws`` Gaussian samples.
    Unbiased for Gaussian copulas in any dimension.

    Pitfalls: nearest neighbors find non-Gaussian dependence nearly in full up to four columns, and only in part at
    twenty. If columns are uncorrelated but functions of each other (a code and its square), the Gaussian part counts
    information twice, and the neighbors correct that only in part.
    """
    require.at_least(draws, "draws")
    z_a, z_b = _varying(rank_gaussianise(a)), _varying(rank_gaussianise(b))
    n, d_a, d_b = a.shape[0], z_a.shape[1], z_b.shape[1]
    if d_a == 0 or d_b == 0:
        return torch.zeros(n, dtype=torch.float64, device=a.device)
    if n <= d_a + d_b + 1:
        raise InputError(f"There are {n} samples for {d_a} + {d_b} codes; pass more than {d_a + d_b + 1} samples.")
    gaussian = _gaussian(z_a, z_b)
    neighbors = ksg_pointwise(z_a, z_b, k)
    root = _root(z_a, z_b, max(float(gaussian.mean()), 0.0)).to(a.device)
    drawn_gaussian, drawn_neighbors = [], []
    for _ in range(draws):
        noise = torch.randn(n, d_a + d_b, generator=generator, dtype=torch.float64).to(a.device)
        z = rank_gaussianise(noise @ root.T)
        drawn_gaussian.append(_gaussian(z[:, :d_a], z[:, d_a:]))
        drawn_neighbors.append(ksg_pointwise(z[:, :d_a], z[:, d_a:], k))
    # G is a control variate: β is the regression slope of the contributions of K on those of G in the Gaussian samples,
    # so subtracting β (G - mean G) removes what a sample contains by chance from both.
    g, m = torch.cat(drawn_gaussian), torch.cat(drawn_neighbors)
    spread = (g - g.mean()).square().mean()
    slope = ((g - g.mean()) * m).mean() / spread if float(spread) > 0 else g.new_zeros(())
    reference = (m - slope * (g - gaussian.mean())).mean()
    return gaussian + neighbors - slope * (gaussian - gaussian.mean()) - reference


def _varying(z: Tensor) -> Tensor:
    return z[:, z.abs().amax(dim=0) > 0] if z.shape[1] else z


def _gaussian(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Return the contributions to the Gaussian information, less its bias."""
    form = canonical_form(z_a, z_b)
    bias = wishart_bias(z_a.shape[0], form.directions_x.shape[1], form.directions_y.shape[1])
    return form.log_ratio(z_a, z_b) - bias


def _root(z_a: Tensor, z_b: Tensor, information: float) -> Tensor:
    """Return a root of the joint correlations, with those between the sides shrunk to contain ``information`` nats."""
    # Sample correlations are too large by chance, so a Gaussian distribution with these correlations contains more
    # information than the bias-corrected estimate. The error of nearest neighbors grows with the information, so the
    # samples that measure this error must contain as much information as was estimated, and no more.
    form: CanonicalForm = canonical_form(z_a, z_b)
    squares = form.correlations.square()
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        contained = float(-0.5 * torch.log1p(-middle * squares).sum())
        low, high = (middle, high) if contained < information else (low, middle)
    n, d_a = z_a.shape
    joint = torch.cat([z_a, z_b], dim=1)
    joint = joint.T @ joint / n
    joint[:d_a, d_a:] *= low**0.5
    joint[d_a:, :d_a] *= low**0.5
    values, vectors = torch.linalg.eigh(joint)
    root: Tensor = vectors * values.clamp(min=0).sqrt()
    return root
