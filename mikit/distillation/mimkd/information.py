"""Mutual information estimated by a fresh critic: fitted on some images, stopped by others, evaluated on the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.rows import split_folds
from mikit.distillation.mimkd.contrast import Contrast, ContrastSettings
from mikit.estimators.base import clustered_standard_error, seeded
from mikit.estimators.fitting import Training

__all__ = ["CriticReading", "MIMKDInformation", "read_information"]

FEWEST_IMAGES = 20


@final
@dataclass(frozen=True, kw_only=True)
class CriticReading:
    """The estimated information of one term, in nats, from images that did not fit the critic.

    Attributes:
        nwj: The bound of Nguyen, Wainwright and Jordan: a lower bound in expectation.
        standard_error: Its sampling error; the cells of an image are averaged, so each image counts once.
        mean_score: The mean score of the pairs: an estimate of the information if the critic is the log density ratio.
        largest_score: The largest possible score of the critic, an upper limit of both estimates.
        images: Number of images that the estimates are from.
        positions: Number of positions of the map that they are averaged over.
        steps: Training steps of the critic.
    """

    nwj: float
    standard_error: float
    mean_score: float
    largest_score: float
    images: int
    positions: int
    steps: int


@final
@dataclass(frozen=True)
class MIMKDInformation:
    """The estimated information of every term, in nats; ``str`` gives a table.

    Attributes:
        terms: One estimate by the name of its term.
        unit: ``"nats"``.
    """

    terms: Mapping[str, CriticReading]
    unit: str = "nats"

    def __getitem__(self, term: str) -> CriticReading:
        return self.terms[term]

    def __str__(self) -> str:
        width = max(len(name) for name in self.terms)
        rows = [f"{'term':<{width}}  lower bound (NWJ)  mean score  at most  images  positions"]
        rows += [
            f"{name:<{width}}  {one.nwj:8.3f} ± {one.standard_error:<6.3f}  {one.mean_score:10.3f}  "
            f"{one.largest_score:7.1f}  {one.images:6d}  {one.positions:9d}"
            for name, one in self.terms.items()
        ]
        return "\n".join([*rows, "nats, on images that did not fit the critics"])


def read_information(
    settings: ContrastSettings, x: Tensor, y: Tensor, *, generator: torch.Generator, training: Training | None = None
) -> CriticReading:
    """Fit a critic on three fifths of the images, stop it by a fifth, and evaluate it on the last fifth.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(500, 1, 1, generator=g)
        >>> y = 0.9 * x + 0.19**0.5 * torch.randn(500, 1, 1, generator=g)  # the truth is 0.83 nats
        >>> reading = read_information(ContrastSettings(), x, y, generator=g, training=Training(steps=100, batch=128))
        >>> reading.images, 0.3 < reading.nwj < 1.3
        (100, True)
    """
    n = x.shape[0]
    if n < FEWEST_IMAGES:
        raise InputError(
            f"There are {n} images; the information is estimated on a fifth of them, so at least {FEWEST_IMAGES} are "
            "needed. Collect features of several batches first."
        )
    x, y = x.detach(), y.detach()
    folds = split_folds(n, 5, generator=generator)
    fit, select, report = (rows.to(x.device) for rows in (torch.cat(folds[:3]), folds[3], folds[4]))
    with seeded(generator), torch.enable_grad():
        contrast = Contrast(x.shape[-1], y.shape[-1], settings).standardized_by(x[fit], y[fit])
        record = contrast.fit(x[fit], y[fit], select=(x[select], y[select]), generator=generator, training=training)
    contributions = contrast.pointwise(x[report], y[report])
    return CriticReading(
        nwj=float(contributions.mean()),
        standard_error=clustered_standard_error(contributions),
        mean_score=float(contrast.mean_score(x[report], y[report])),
        largest_score=contrast.largest_score,
        images=report.shape[0],
        positions=x.shape[1],
        steps=record.steps,
    )
