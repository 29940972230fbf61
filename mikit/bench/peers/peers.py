"""Other libraries as candidates: how they are called, and how to install them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

__all__ = [
    "MissingError",
    "Scalar",
    "formula",
    "geomloss_gaussian",
    "geomloss_sinkhorn",
    "pot_bures",
    "pot_sinkhorn",
    "pot_sliced",
    "sklearn_ksg",
]

Scalar = Callable[..., Tensor]
"""A candidate: a function of the problem's tensors that returns a 0-dim tensor."""

_INSTALL = {
    "ot": ("POT", "pip install 'mikit[bench]'"),
    "geomloss": ("geomloss", "pip install 'mikit[bench]'"),
    "sklearn": ("scikit-learn", "pip install scikit-learn"),
}


@final
class MissingError(Exception):
    """A candidate is missing: the reason, and how to install it."""

    def __init__(self, reason: str, install: str) -> None:
        super().__init__(reason)
        self.reason, self.install = reason, install


def formula(name: str) -> Scalar:
    """Return the formula of mikit with that name; MissingError if this version has none."""
    found: Scalar | None = getattr(importlib.import_module("mikit.functional"), name, None)
    if found is None:
        raise MissingError(f"this version of mikit has no formula {name}", "pip install --upgrade mikit")
    return found


def geomloss_gaussian(bandwidth: float) -> Scalar:
    """Return the squared MMD with self-pairs by geomloss, which computes half of it."""
    loss = _imported("geomloss").SamplesLoss("gaussian", blur=bandwidth, backend="tensorized")
    return lambda x, y: 2 * loss(x, y)


def geomloss_sinkhorn(epsilon: float, scaling: float) -> Scalar:
    """Return the Sinkhorn divergence of |x - y|²/2 by geomloss."""
    samples_loss = _imported("geomloss").SamplesLoss
    loss: Scalar = samples_loss("sinkhorn", p=2, blur=epsilon**0.5, scaling=scaling, backend="tensorized")
    return loss


def pot_sinkhorn(epsilon: float) -> Scalar:
    """Return the Sinkhorn divergence of |x - y|²/2 by three calls of ``ot.solve``, gradient at the optimal plan."""
    ot = _imported("ot")

    def cost(a: Tensor, b: Tensor) -> Any:
        return ot.solve(ot.dist(a, b) / 2, reg=epsilon, grad="envelope", tol=1e-3, max_iter=10_000).value

    def divergence(x: Tensor, y: Tensor) -> Tensor:
        value: Tensor = cost(x, y) - (cost(x, x) + cost(y, y)) / 2
        return value

    return divergence


def pot_sliced() -> Scalar:
    """Return the squared sliced Wasserstein distance by POT, along the given directions."""
    ot = _imported("ot")

    def distance(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
        value: Tensor = ot.sliced_wasserstein_distance(x, y, projections=directions.T) ** 2
        return value

    return distance


def pot_bures() -> Scalar:
    """Return the squared Bures distance by POT, from covariances."""
    ot = _imported("ot")

    def distance(x: Tensor, y: Tensor) -> Tensor:
        covariances = [torch.cov(rows.T, correction=0) for rows in (x, y)]
        value: Tensor = ot.gaussian.bures_distance(*covariances) ** 2
        return value

    return distance


def sklearn_ksg(k: int) -> Scalar:
    """Return KSG by scikit-learn for one feature per side; it adds small noise and clips negative estimates to 0."""
    estimate = _imported("sklearn.feature_selection").mutual_info_regression

    def information(x: Tensor, y: Tensor) -> Tensor:
        found = estimate(x.cpu().numpy(), y[:, 0].cpu().numpy(), n_neighbors=k, random_state=0)
        return torch.tensor(float(found[0]), dtype=torch.float64)

    return information


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        name, install = _INSTALL[module.partition(".")[0]]
        raise MissingError(f"{name} is not installed here ({cause})", install) from cause
