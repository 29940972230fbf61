"""Nearest neighbours set right by Gaussian samples of the same size and correlations.

Nearest neighbours read too little where dimensions or nats are many. How much too little is known for one law: the
Gaussian one, whose information is a closed form. What they read beyond a Gaussian sample with the data's correlations
is then what the data hold beyond those correlations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.gaussian.canonical import CanonicalForm, canonical_form, rank_gaussianise, wishart_bias
from mikit.functional.neighbors.ksg import ksg_pointwise

__all__ = ["anchored_ksg", "anchored_ksg_pointwise"]

_LOOKS = 60


def anchored_ksg(a: Tensor, b: Tensor, k: int = 3, *, draws: int = 8, generator: torch.Generator) -> Tensor:
    r"""Mutual information of few columns by nearest neighbours, anchored at the Gaussian information.

    .. math:: \hat I = G(z) + K(z) - \tfrac1B \sum_b \left[K(z^b) - β\,(G(z^b) - G(z))\right]

    :math:`z` are the normal scores of the columns, :math:`G` is the Gaussian information less its exact bias
    (:func:`~mikit.functional.gaussian_mi`), :math:`K` is :func:`~mikit.functional.ksg`, and the :math:`z^b` are normal
    scores of Gaussian samples with as many rows and with the correlations of :math:`z`, those between the sides drawn
    together so that the law holds :math:`\max(G(z), 0)` nats. The slope :math:`β` of K's contributions on G's removes
    what the samples hold by chance.

    Args:
        a: First variable, ``(n, d_a)``.
        b: Second variable, ``(n, d_b)``; row i belongs to row i of ``a``.
        k: Number of neighbours.
        draws: Gaussian samples ``B``.
        generator: Where they come from.

    Returns:
        0-dim float64 tensor without gradient. Unit: nats. Kind: an estimate, no bound, never clipped. Unbiased for
        Gaussian copulas in any dimension.

    Raises:
        InputError: If there are no more rows than ``d_a + d_b + 1`` or ``k``, no draw, or if a combination of ``a``
            equals one of ``b``.

    Cost:
        ``1 + draws`` times that of :func:`~mikit.functional.ksg`.

    Pitfalls:
        What is not Gaussian is seen through nearest neighbours and hence the less the more columns there are: nearly in
        full up to four, in part at twenty. Columns that are uncorrelated and yet functions of each other
        (a code and its square) make the Gaussian part count twice what the neighbours then take back in part only.

    Source:
        The closed form as a control variate of Kraskov, Stögbauer and Grassberger (2004); ours.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> a = torch.randn(800, 8, generator=g)
        >>> b = 0.6 * a + 0.8 * torch.randn(800, 8, generator=g)  # the truth is 1.79 nats
        >>> round(float(anchored_ksg(a, b, generator=g)), 1)
        1.8
    """
    return anchored_ksg_pointwise(a, b, k, draws=draws, generator=generator).mean()


def anchored_ksg_pointwise(a: Tensor, b: Tensor, k: int = 3, *, draws: int = 8, generator: torch.Generator) -> Tensor:
    """Contribution of every row to :func:`anchored_ksg`, whose mean is the estimate.

    Formula: with the contributions ``g_i`` of the Gaussian information and ``k_i`` of KSG, ``g_i + k_i - β (g_i - ḡ)``
    less the surrogates' mean.

    Args:
        a: As in :func:`anchored_ksg`.
        b: As in :func:`anchored_ksg`.
        k: As in :func:`anchored_ksg`.
        draws: As in :func:`anchored_ksg`.
        generator: As in :func:`anchored_ksg`.

    Returns:
        Float64 tensor ``(n,)``, in nats.

    Raises:
        InputError: As :func:`anchored_ksg`.

    Cost:
        As :func:`anchored_ksg`.

    Pitfalls:
        Rows share neighbours, so the contributions are not quite independent.

    Source:
        As :func:`anchored_ksg`.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> anchored_ksg_pointwise(torch.randn(50, 1, generator=g), torch.ones(50, 1), generator=g).abs().max().item()
        0.0
    """
    if draws < 1:
        raise InputError(f"draws is {draws}; the anchor needs at least 1 Gaussian sample.")
    z_a, z_b = _varying(rank_gaussianise(a)), _varying(rank_gaussianise(b))
    n, d_a, d_b = a.shape[0], z_a.shape[1], z_b.shape[1]
    if d_a == 0 or d_b == 0:
        return torch.zeros(n, dtype=torch.float64, device=a.device)
    if n <= d_a + d_b + 1:
        raise InputError(f"There are {n} rows for {d_a} + {d_b} codes; the information of codes needs more rows.")
    gaussian = _gaussian(z_a, z_b)
    neighbours = ksg_pointwise(z_a, z_b, k)
    root = _root(z_a, z_b, max(float(gaussian.mean()), 0.0)).to(a.device)
    drawn_gaussian, drawn_neighbours = [], []
    for _ in range(draws):
        noise = torch.randn(n, d_a + d_b, generator=generator, dtype=torch.float64).to(a.device)
        z = rank_gaussianise(noise @ root.T)
        drawn_gaussian.append(_gaussian(z[:, :d_a], z[:, d_a:]))
        drawn_neighbours.append(ksg_pointwise(z[:, :d_a], z[:, d_a:], k))
    g, m = torch.cat(drawn_gaussian), torch.cat(drawn_neighbours)
    spread = (g - g.mean()).square().mean()
    slope = ((g - g.mean()) * m).mean() / spread if float(spread) > 0 else g.new_zeros(())
    reference = (m - slope * (g - gaussian.mean())).mean()
    return gaussian + neighbours - slope * (gaussian - gaussian.mean()) - reference


def _varying(z: Tensor) -> Tensor:
    return z[:, z.abs().amax(dim=0) > 0] if z.shape[1] else z


def _gaussian(z_a: Tensor, z_b: Tensor) -> Tensor:
    form = canonical_form(z_a, z_b)
    bias = wishart_bias(z_a.shape[0], form.directions_x.shape[1], form.directions_y.shape[1])
    return form.log_ratio(z_a, z_b) - bias


def _root(z_a: Tensor, z_b: Tensor, information: float) -> Tensor:
    """Return a root of the joint correlations whose cross-block is drawn to 0 until the law holds ``information``."""
    form: CanonicalForm = canonical_form(z_a, z_b)
    squares = form.correlations.square()
    low, high = 0.0, 1.0
    for _ in range(_LOOKS):
        middle = 0.5 * (low + high)
        held = float(-0.5 * torch.log1p(-middle * squares).sum())
        low, high = (middle, high) if held < information else (low, middle)
    n, d_a = z_a.shape
    joint = torch.cat([z_a, z_b], dim=1)
    joint = joint.T @ joint / n
    joint[:d_a, d_a:] *= low**0.5
    joint[d_a:, :d_a] *= low**0.5
    values, vectors = torch.linalg.eigh(joint)
    root: Tensor = vectors * values.clamp(min=0).sqrt()
    return root
