"""The checks that compare a value with a second estimate on the same samples that costs little."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.measurement import Check
from mikit.estimators.base import Estimator
from mikit.measuring.checks.rows import largest_atom
from mikit.measuring.subject import Nearest, Subject

__all__ = ["candidates", "entropy_bound", "gaussian_floor", "negative_control", "neighbours_floor", "tails"]

_FEW = 0.2
_NO_COPULA = "There are too few samples for the features, or the Gaussian copula's information is infinite."


def candidates(estimator: Estimator, x: Tensor, y: Tensor, value: float, standard_error: float | None) -> Check | None:
    """Check whether the value still grows with the number of candidates ``K``, from ``K / 2`` to ``K`` samples.

    The gain is ``I(K) / I(K/2) - 1``, where ``I(K/2)`` is the mean over both halves. Warns above 2 %, fails above 5 %,
    both beyond two standard errors: with the best possible critic, a gain of 2 % occurs where the value is 4 to 6 % too
    low, and one of 5 % where it is 13 to 17 % too low. None if the upper limit does not rise with the samples.
    """
    n = x.shape[0]
    low, high = estimator.ceiling(n // 2), estimator.ceiling(n)
    if low is None or high is None or not low < high or n < 16:
        return None
    name = "candidates enough"
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n)).to(x.device)
    with torch.no_grad():
        half = sum(float(estimator.estimate(x[part], y[part])) for part in order.tensor_split(2)) / 2
    if half < 0.1 or value < 0.1:
        return Check.not_applicable(name, "The value is too small to see whether more samples raise it.")
    gain, noise = value / half - 1, 2 * (standard_error or 0.0) / half
    found = f"With half the samples as candidates the value is {half:.3f}, with all of them {value:.3f} ({gain:+.1%})"
    if gain > max(0.05, noise):
        return Check.failed(name, f"{found}: it still rises with them, and the truth is far higher.", gain, 0.05)
    if gain > max(0.02, noise):
        return Check.warned(name, f"{found}: it still rises with them, so it is too low.", gain, 0.02)
    return Check.passed(name, f"{found}.", gain, 0.02)


def entropy_bound(value: float, standard_error: float | None, x: Tensor, y: Tensor) -> Check:
    """Compare the value with the entropy of a discrete side: one with at most a fifth as many distinct samples.

    The entropy is that of the sample with Miller and Madow's correction. Fails where the value is higher by more than
    two standard errors of both and 0.02 nats.
    """
    name = "at most the entropy of a discrete side"
    n, found = x.shape[0], []
    for side, rows in (("x", x), ("y", y)):
        flat = rows.detach().reshape(n, -1)
        if torch.unique(flat[:1000], dim=0).shape[0] > 0.7 * min(n, 1000):
            continue
        counts = torch.unique(flat, dim=0, return_counts=True)[1].double()
        if counts.shape[0] <= _FEW * n:
            surprise = -(counts / n).log()
            entropy = float((counts / n * surprise).sum())
            spread = float((counts / n * (surprise - entropy).square()).sum() / n) ** 0.5
            found.append((entropy + (counts.shape[0] - 1) / (2 * n), spread, side, counts.shape[0]))
    if not found:
        return Check.not_applicable(name, "Neither side is discrete.")
    entropy, spread, side, distinct = min(found)
    sentence = (
        f"{side} has {distinct} distinct samples and an entropy of {entropy:.3f} nats, which the truth cannot exceed."
    )
    threshold = entropy + 2 * math.hypot(spread, standard_error or 0.0) + 0.02
    return Check.judged(name, value, fail=threshold, passed=sentence, otherwise=sentence)


def tails(value: float, copula: tuple[float, float] | None, nearest: Nearest | None) -> Check:
    """Compare a Gaussian value with that of normal scores, which differs for heavy tails, nonlinearity and clusters.

    Warns where they differ by more than a tenth of the value, 0.02 nats and three standard errors; where the value is
    the higher one, only if it also exceeds the nearest-neighbor estimate by more than 15 %.
    """
    name = "tails and bends"
    if copula is None:
        return Check.not_applicable(name, _NO_COPULA)
    other, error = copula
    gap, threshold = value - other, max(0.1 * abs(value), 0.02, 3 * error)
    found = f"For normal scores of the features the same formula gives {other:.3f}"
    second = None if nearest is None else nearest.readings[2]
    if abs(gap) <= threshold or (gap > 0 and (second is None or second > 0.85 * value)):
        return Check.passed(name, f"{found}.", abs(gap), threshold)
    neighbors = f", and nearest neighbors give {second:.3f}" if gap > 0 else ""
    sentence = (
        f"{found}, not {value:.3f}{neighbors}: heavy tails, nonlinear dependence or clusters distort the correlations. "
        "Use GaussianMI(copula=True) or KSG."
    )
    return Check.warned(name, sentence, abs(gap), threshold)


def neighbours_floor(value: float, standard_error: float | None, nearest: Nearest | None) -> Check:
    """Compare the value with the nearest-neighbor estimate on normal scores, which is usually below the truth.

    Warns where the value is lower by more than a tenth of that, 0.05 nats and three standard errors; fails from a
    third. This detects dependence that the estimator cannot, such as a circle for a correlation.
    """
    name = "not below nearest neighbours"
    if nearest is None:
        return Check.not_applicable(name, "There are too few samples for nearest neighbors.")
    floor = nearest.readings[2]
    error = math.hypot(standard_error or 0.0, nearest.standard_error)
    short = floor - value
    found = f"Nearest neighbors give {floor:.3f} nats, usually less than the truth"
    if short > max(0.05, floor / 3, 3 * error):
        sentence = f"{found}: the estimator misses dependence, {value:.3f} is too low."
        return Check.failed(name, sentence, floor, floor / 3)
    if short > max(0.05, 0.1 * floor, 3 * error):
        return Check.warned(name, f"{found}: the value {value:.3f} seems too low.", floor, 0.1 * floor)
    return Check.passed(name, f"{found}.", floor, 0.1 * floor)


def gaussian_floor(value: float, standard_error: float | None, subject: Subject) -> Check:
    """Compare the value with the Gaussian copula's, which is usually not above the truth but for sampling error.

    Of all distributions with two Gaussian sides and given correlations, the Gaussian one has the least information.
    Normal scores make features Gaussian, not the sides as a whole, so this is no theorem. Warns when the value is lower
    by more than a tenth, 0.05 nats and three standard errors; fails from a fifth.
    """
    name = "not below the Gaussian copula"
    if subject.copula is None:
        return Check.not_applicable(name, _NO_COPULA)
    if max(largest_atom(subject.x)[0], largest_atom(subject.y)[0]) > 0.1:
        return Check.not_applicable(name, "The Gaussian copula is no lower bound for features with many ties.")
    floor, copula_error = subject.copula
    error = math.hypot(standard_error or 0.0, copula_error)
    short = floor - value - 3 * error
    found = f"The Gaussian copula gives {floor:.3f} nats, usually not above the truth"
    if short > 0 and floor - value > max(0.05, 0.2 * floor):
        return Check.failed(name, f"{found}: the value {value:.3f} is too low.", floor, floor)
    if short > 0 and floor - value > max(0.05, 0.1 * floor):
        return Check.warned(name, f"{found}: the value {value:.3f} is low.", floor, floor)
    return Check.passed(name, f"{found}.", floor, floor)


def negative_control(prototype: Estimator, x: Tensor, y: Tensor) -> Check:
    """Check that the estimate is 0 where one side is constant, on up to 256 samples; fails above 0.05.

    Not for estimators that are trained or costly; permuted data are measured for all.
    """
    name = "a constant says nothing"
    if prototype.learned or prototype.costly:
        return Check.not_applicable(name, "This would have to be fitted; permuted data are measured instead.")
    rows = min(x.shape[0], 256)
    try:
        with torch.no_grad():
            estimate = float(prototype.estimate(torch.ones_like(x[:rows]), y[:rows]))
    except InputError:
        return Check.not_applicable(name, "The estimator refuses a constant side.")
    found = f"With one side constant the estimate is {estimate:.3f}"
    if abs(estimate) > 0.05:
        return Check.failed(name, f"{found}; it should be 0, so the estimator is wrong.", estimate, 0.05)
    return Check.passed(name, f"{found}.", estimate, 0.05)
