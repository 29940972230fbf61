"""The formulas with the whole matrix of pairs in memory: the usual implementation, and the reference in float64.

Each function takes tensors and returns a 0-dim tensor; autograd computes the gradient. They follow the formulas
literally. If that reads the matrix more often than necessary, there is a lean version as well: the first shows the cost
of usual code, the second the cost of the matrix itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, softplus

__all__ = [
    "bures2",
    "bures2_by_gram",
    "hsic",
    "infonce",
    "jsd",
    "jsd_lean",
    "ksg",
    "mmd2",
    "mmd2_by_cdist",
    "mmd2_lean",
    "pkt",
    "pkt_lean",
    "sinkhorn_divergence",
    "sliced_wasserstein2",
]

_MOST_ITERATIONS = 20_000
_MARGINAL_ERROR = 1e-8


def infonce(x: Tensor, y: Tensor, temperature: float, both_directions: bool = False) -> Tensor:
    """Return InfoNCE with the dot-product critic: log n minus the cross entropy of classifying the partner."""
    scores = (x / temperature) @ y.T
    partners = torch.arange(x.shape[0], device=x.device)
    loss = cross_entropy(scores, partners)
    if both_directions:
        loss = (loss + cross_entropy(scores.T, partners)) / 2
    return math.log(x.shape[0]) - loss


def jsd(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Return the Jensen-Shannon bound: pairs on the diagonal against all others."""
    scores = (x / temperature) @ y.T
    n = x.shape[0]
    positives = scores.diagonal()
    negatives = (softplus(scores).sum() - softplus(positives).sum()) / (n * (n - 1))
    return 2 * math.log(2) - softplus(-positives).mean() - negatives


def jsd_lean(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Return :func:`jsd` with the positives computed from the samples, so that the matrix is read once."""
    scaled = x / temperature
    n = x.shape[0]
    positives = (scaled * y).sum(1)
    negatives = (softplus(scaled @ y.T).sum() - softplus(positives).sum()) / (n * (n - 1))
    return 2 * math.log(2) - softplus(-positives).mean() - negatives


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * (a @ b.T)).clamp_min(0)


def _gaussian_gram(a: Tensor, b: Tensor, bandwidth: float) -> Tensor:
    return torch.exp(_squared_distances(a, b) / (-2 * bandwidth**2))


def _lean_gram(a: Tensor, b: Tensor, bandwidth: float) -> Tensor:
    """Return the Gram matrix by one product with the scale in its thin operand; the rest is in place."""
    scale = 1 / (2 * bandwidth**2)
    exponent = torch.addmm(b.square().sum(1) * -scale, a * (2 * scale), b.T)
    return exponent.sub_(a.square().sum(1, keepdim=True) * scale).exp_()


def _discrepancy(kxx: Tensor, kyy: Tensor, kxy: Tensor, unbiased: bool) -> Tensor:
    n, m = kxy.shape
    if not unbiased:
        return kxx.mean() + kyy.mean() - 2 * kxy.mean()
    within_x = (kxx.sum() - kxx.diagonal().sum()) / (n * (n - 1))
    within_y = (kyy.sum() - kyy.diagonal().sum()) / (m * (m - 1))
    return within_x + within_y - 2 * kxy.mean()


def mmd2(x: Tensor, y: Tensor, bandwidth: float, unbiased: bool = True) -> Tensor:
    """Return the squared maximum mean discrepancy from three whole Gram matrices."""
    kxx, kyy, kxy = (_gaussian_gram(a, b, bandwidth) for a, b in ((x, x), (y, y), (x, y)))
    return _discrepancy(kxx, kyy, kxy, unbiased)


def mmd2_lean(x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
    """Return the biased form, which counts self-pairs, with the fewest passes over the Gram matrices."""
    kxx, kyy, kxy = (_lean_gram(a, b, bandwidth) for a, b in ((x, x), (y, y), (x, y)))
    return _discrepancy(kxx, kyy, kxy, False)


def mmd2_by_cdist(x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
    """Return :func:`mmd2` with distances from ``torch.cdist``."""
    scale = -1 / (2 * bandwidth**2)
    kxx, kyy, kxy = (torch.exp(torch.cdist(a, b).square() * scale) for a, b in ((x, x), (y, y), (x, y)))
    return _discrepancy(kxx, kyy, kxy, True)


def hsic(x: Tensor, y: Tensor, bandwidth_x: float, bandwidth_y: float) -> Tensor:
    """Return the biased statistic tr(K H L H) / n²."""
    k, other = _gaussian_gram(x, x, bandwidth_x), _gaussian_gram(y, y, bandwidth_y)
    centered = k - k.mean(0) - k.mean(1)[:, None] + k.mean()
    return (centered * other).sum() / x.shape[0] ** 2


def pkt(student: Tensor, teacher: Tensor, diagonal: bool = False) -> Tensor:
    """Return the KL divergence of the student's neighbor distribution from the teacher's, by cosine similarity.

    With ``diagonal``, a sample counts among its own neighbors.
    """
    if diagonal:
        own, given = (_shares(rows) for rows in (student, teacher))
        return (given * (given.log() - own.log())).sum(1).mean()
    own, given = (_neighbor_shares(rows) for rows in (student, teacher))
    alone = torch.eye(student.shape[0], dtype=torch.bool, device=student.device)
    terms = (given * (given.log() - own.log())).masked_fill(alone, 0)
    return terms.sum(1).mean()


def pkt_lean(student: Tensor, teacher: Tensor) -> Tensor:
    """Return :func:`pkt` with the diagonal, as the teacher's entropy and a cross entropy."""
    given = _shares(teacher)
    unit = normalize(student)
    similarity = unit @ unit.T + 1
    crossed = (given * similarity.log()).sum() - similarity.sum(1).log().sum()
    value: Tensor = (torch.special.xlogy(given, given).sum() - crossed) / student.shape[0]
    return value


def _shares(rows: Tensor) -> Tensor:
    unit = normalize(rows)
    similarity = (unit @ unit.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)


def _neighbor_shares(rows: Tensor) -> Tensor:
    unit = normalize(rows)
    similarity = (unit @ unit.T + 1) / 2
    diagonal = torch.eye(rows.shape[0], dtype=torch.bool, device=rows.device)
    total = similarity.masked_fill(diagonal, 0).sum(1, keepdim=True)
    return (similarity / total).masked_fill(diagonal, 1)


def sinkhorn_divergence(x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """Return the debiased entropic cost of |x - y|²/2, with marginals accurate to 1e-8. For float64."""
    across = _entropic_cost(x, y, epsilon, same=False)
    return across - (_entropic_cost(x, x, epsilon, same=True) + _entropic_cost(y, y, epsilon, same=True)) / 2


def _entropic_cost(a: Tensor, b: Tensor, epsilon: float, *, same: bool) -> Tensor:
    """Return the entropic cost by Sinkhorn iterations."""
    # One step in the log domain first: the largest entries of the remaining kernel are then of order 1, and plain
    # scalings, which are much faster, neither overflow nor underflow.
    cost = _squared_distances(a, b) / 2
    fixed = cost.detach()
    f = -epsilon * (torch.logsumexp(fixed / -epsilon, 1) - math.log(fixed.shape[1]))
    g = f if same else -epsilon * (torch.logsumexp((f[:, None] - fixed) / epsilon, 0) - math.log(fixed.shape[0]))
    kernel = (f[:, None] + g - fixed).div_(epsilon).exp_()
    u, v = torch.ones_like(f), torch.ones_like(g)
    for _ in range(_MOST_ITERATIONS):
        reached = kernel @ v / v.shape[0]
        error = float((u * reached - 1).abs().mean())
        if error < _MARGINAL_ERROR:
            break
        u = (u / reached).sqrt() if same else 1 / reached
        v = u if same else u.shape[0] / (kernel.T @ u)
    else:
        raise RuntimeError(f"The reference did not converge in {_MOST_ITERATIONS} iterations; the error is {error}.")
    value = (f + epsilon * u.log()).mean() + (g + epsilon * v.log()).mean()
    # At the optimum the derivative with respect to the potentials is 0: the gradient is that of the plan's cost.
    plan = kernel.mul_(u[:, None]).mul_(v).div_(kernel.numel())
    moved = (plan * cost).sum()
    return moved + (value - moved).detach()


def sliced_wasserstein2(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    """Return the mean over directions (rows) of the squared 2-Wasserstein distance of the projections."""
    return ((x @ directions.T).sort(0).values - (y @ directions.T).sort(0).values).square().mean()


def bures2(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared Bures distance of the samples' covariances, by ``eigh``."""
    first, second = (torch.cov(rows.T, correction=0) for rows in (x, y))
    values, vectors = torch.linalg.eigh(second)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ first @ root).clamp_min(1e-12).sqrt().sum()
    value: Tensor = first.trace() + second.trace() - 2 * cross
    return value


def bures2_by_gram(x: Tensor, y: Tensor) -> Tensor:
    """Return :func:`bures2` from the singular values of the cross Gram matrix, robust to small eigenvalues."""
    a, b = x - x.mean(0), y - y.mean(0)
    cross = torch.linalg.svdvals(a @ b.T).sum() / x.shape[0]
    spread = (a.square().sum() + b.square().sum()) / x.shape[0]
    value: Tensor = spread - 2 * cross
    return value


def ksg(x: Tensor, y: Tensor, k: int, *, chebyshev: bool, equal_spaces: bool) -> Tensor:
    """Return KSG by algorithm 1 with whole distance matrices, on features of unit variance.

    Distances within a variable are Chebyshev or Euclidean. With ``equal_spaces``, each variable is divided by the root
    mean square norm of its samples.
    """
    n = x.shape[0]
    spaces = []
    for rows in (x, y):
        rows = (rows - rows.mean(0)) / rows.std(0, correction=0)
        if equal_spaces:
            rows = rows / rows.square().sum(1).mean().sqrt()
        apart = torch.cdist(rows, rows, p=math.inf if chebyshev else 2.0, compute_mode="donot_use_mm_for_euclid_dist")
        spaces.append(apart.fill_diagonal_(math.inf))
    reach = torch.maximum(*spaces).kthvalue(k, dim=1, keepdim=True).values
    near = sum(((apart < reach).sum(1) + 1).double().digamma().mean() for apart in spaces)
    return torch.tensor([n, k], dtype=torch.float64).digamma().sum() - near
