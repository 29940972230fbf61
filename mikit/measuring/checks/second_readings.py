"""Questions put to one number beside a second reading of the same rows that costs little."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.measurement import Check
from mikit.estimators.base import Estimator, clustered_standard_error
from mikit.estimators.gaussian.mutual_information import GaussianMI
from mikit.measuring.checks.rows import Nearest, largest_atom

__all__ = [
    "candidates",
    "copula_reading",
    "entropy_bound",
    "gaussian_floor",
    "negative_control",
    "neighbours_floor",
    "tails",
]

_FEW = 0.2
_MANY_COLUMNS = 128
_NO_COPULA = "There are too few rows for the columns, or the Gaussian copula's information is infinite."


def candidates(instrument: Estimator, x: Tensor, y: Tensor, value: float, standard_error: float | None) -> Check | None:
    """Ask whether the value still grows with the number of candidates ``K``, on ``K / 2`` and on ``K`` rows.

    The gain is ``I(K) / I(K/2) - 1``, where ``I(K/2)`` is the mean over both halves. Warns above 2 %, fails above 5 %,
    in both cases beyond two standard errors: with the best possible critic a gain of 2 % goes with a value that is 4 to
    6 % low, one of 5 % with 13 to 17 %. None for an instrument without a ceiling that rises with its rows.
    """
    n = x.shape[0]
    low, high = instrument.ceiling(n // 2), instrument.ceiling(n)
    if low is None or high is None or not low < high or n < 16:
        return None
    name = "candidates enough"
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n)).to(x.device)
    with torch.no_grad():
        half = sum(float(instrument.estimate(x[part], y[part])) for part in order.tensor_split(2)) / 2
    if half < 0.1 or value < 0.1:
        return Check(name, "not applicable", None, None, "The value is too small to see whether more rows raise it.")
    gain, noise = value / half - 1, 2 * (standard_error or 0.0) / half
    said = f"With half the rows as candidates the value is {half:.3f}, with all of them {value:.3f} ({gain:+.1%})"
    if gain > max(0.05, noise):
        return Check(name, "fail", gain, 0.05, f"{said}: it still rises with them, and the truth lies far higher.")
    if gain > max(0.02, noise):
        return Check(name, "warn", gain, 0.02, f"{said}: it still rises with them, so it is low.")
    return Check(name, "pass", gain, 0.02, f"{said}.")


def entropy_bound(value: float, standard_error: float | None, x: Tensor, y: Tensor) -> Check:
    """Compare the value with the entropy of a side that is discrete: it has few distinct rows, at most a fifth of all.

    The entropy is the sample's with Miller and Madow's correction. Fails where the value is higher by more than two
    standard errors of both and 0.02 nats.
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
        return Check(name, "not applicable", None, None, "Neither side is discrete.")
    entropy, spread, side, distinct = min(found)
    threshold = entropy + 2 * math.hypot(spread, standard_error or 0.0) + 0.02
    said = f"{side} has {distinct} distinct rows and an entropy of {entropy:.3f} nats, which the truth cannot exceed"
    outcome = "pass" if value <= threshold else "fail"
    return Check(name, outcome, value, threshold, f"{said}.")


def copula_reading(x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> tuple[float, float] | None:
    """Return the Gaussian copula's information and its standard error; None where infinite, or rows are too few."""
    width = x.shape[1] + y.shape[1]
    if x.shape[0] < (5 if width <= _MANY_COLUMNS else 20) * width:
        return None
    try:
        contributions = GaussianMI(copula=True).pointwise(x, y)
    except InputError:
        return None
    return float(contributions.mean()), clustered_standard_error(contributions, groups)


def tails(value: float, copula: tuple[float, float] | None, nearest: Nearest | None) -> Check:
    """Ask whether the Gaussian formula gives the same on normal scores: heavy tails, bends and clusters set them apart.

    Warns where they differ by more than a tenth of the value, 0.02 nats and three standard errors; where the value is
    the higher one, only if it also exceeds what nearest neighbours read by more than 15 %.

    Args:
        value: The Gaussian value of the columns as they are.
        copula: As :func:`copula_reading` returns it.
        nearest: What nearest neighbours read.
    """
    name = "tails and bends"
    if copula is None:
        return Check(name, "not applicable", None, None, _NO_COPULA)
    other, error = copula
    gap, threshold = value - other, max(0.1 * abs(value), 0.02, 3 * error)
    said = f"From the columns' normal scores the same formula gives {other:.3f}"
    read = None if nearest is None else nearest.readings[2]
    if abs(gap) <= threshold or (gap > 0 and (read is None or read > 0.85 * value)):
        return Check(name, "pass", abs(gap), threshold, f"{said}.")
    told = f"{said}, not {value:.3f}"
    if gap > 0:
        told += f", and nearest neighbours read {read:.3f}"
    return Check(
        name,
        "warn",
        abs(gap),
        threshold,
        f"{told}: heavy tails, bends or clusters distort the correlations. Use GaussianMI(copula=True) or KSG.",
    )


def neighbours_floor(value: float, standard_error: float | None, nearest: Nearest | None) -> Check:
    """Compare the value with what nearest neighbours read on normal scores, which as a rule is less than the truth.

    Warns where the value is lower by more than a tenth of that, 0.05 nats and three standard errors; fails from a
    third. Dependence that an instrument cannot see, such as a circle to a correlation, shows here.
    """
    name = "not below nearest neighbours"
    if nearest is None:
        return Check(name, "not applicable", None, None, "There are too few rows for nearest neighbours.")
    floor = nearest.readings[2]
    error = math.hypot(standard_error or 0.0, nearest.standard_error)
    short = floor - value
    said = f"Nearest neighbours read {floor:.3f} nats, as a rule less than the truth"
    if short > max(0.05, floor / 3, 3 * error):
        return Check(
            name, "fail", floor, floor / 3, f"{said}: the instrument misses dependence, {value:.3f} is too low."
        )
    if short > max(0.05, 0.1 * floor, 3 * error):
        return Check(name, "warn", floor, 0.1 * floor, f"{said}: the value {value:.3f} seems low.")
    return Check(name, "pass", floor, 0.1 * floor, f"{said}.")


def gaussian_floor(
    value: float, standard_error: float | None, x: Tensor, y: Tensor, copula: tuple[float, float] | None
) -> Check:
    """Compare the value with the Gaussian copula's, below which the information cannot lie but for sampling error.

    Among all laws whose two sides are Gaussian, each by itself, with given correlations, the Gaussian law holds the
    least information; normal scores make columns Gaussian, not the sides as a whole, so the floor is a rule and no
    theorem. Warns when the value is lower by more than a tenth, 0.05 nats and three standard errors; fails from a
    fifth. Columns with many ties have no such floor, and many columns for few rows have none either.
    """
    name = "not below the Gaussian copula"
    if copula is None:
        return Check(name, "not applicable", None, None, _NO_COPULA)
    if max(largest_atom(x)[0], largest_atom(y)[0]) > 0.1:
        return Check(
            name, "not applicable", None, None, "Columns with many ties have no Gaussian copula below the truth."
        )
    floor, copula_error = copula
    error = math.hypot(standard_error or 0.0, copula_error)
    short = floor - value - 3 * error
    said = f"The Gaussian copula gives {floor:.3f} nats, as a rule no more than the truth"
    if short > 0 and floor - value > max(0.05, 0.2 * floor):
        return Check(name, "fail", floor, floor, f"{said}: the value {value:.3f} is too low.")
    if short > 0 and floor - value > max(0.05, 0.1 * floor):
        return Check(name, "warn", floor, floor, f"{said}: the value {value:.3f} is low.")
    return Check(name, "pass", floor, floor, f"{said}.")


def negative_control(prototype: Estimator, x: Tensor, y: Tensor) -> Check:
    """Ask what the instrument reads where one side never varies: nothing. Looks at up to 256 rows; fails above 0.05.

    Not for instruments that are trained or costly; what permuted data give is asked of all.
    """
    name = "a constant says nothing"
    if prototype.learned or prototype.costly:
        return Check(name, "not applicable", None, None, "Asking would cost a fit; permuted data are asked instead.")
    rows = min(x.shape[0], 256)
    try:
        with torch.no_grad():
            reading = float(prototype.estimate(torch.ones_like(x[:rows]), y[:rows]))
    except InputError:
        return Check(name, "not applicable", None, None, "The instrument refuses a side that never varies.")
    said = f"Of a side that never varies the instrument reads {reading:.3f}"
    if abs(reading) > 0.05:
        return Check(name, "fail", reading, 0.05, f"{said}; it should read 0, so the instrument is at fault.")
    return Check(name, "pass", reading, 0.05, f"{said}.")
