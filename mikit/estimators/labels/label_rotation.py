"""The probes of label information by name, and label information on samples that are each held out once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from mikit.core import require
from mikit.core.errors import InputError
from mikit.functional.labels.linear_probes import LinearProbe, fit_gaussian_probe, fit_logistic_probe
from mikit.functional.labels.nonlinear_probes import HiddenLayerProbe, NeighborProbe, fit_mlp_probe, fit_neighbor_probe
from mikit.functional.labels.probe import Array

__all__ = ["PROBES", "FittedProbe", "RotatedInformation", "probe_named", "rotated_information"]

FittedProbe = LinearProbe | HiddenLayerProbe | NeighborProbe

PROBES: dict[str, Callable[..., FittedProbe]] = {
    "logistic": fit_logistic_probe,
    "lda": fit_gaussian_probe,
    "mlp": fit_mlp_probe,
    "knn": fit_neighbor_probe,
}
_SAME = {"linear": "logistic"}


@final
@dataclass(frozen=True)
class RotatedInformation:
    """Label information of samples that were each held out once.

    ``pointwise`` is the held-out ``log q(y | x) - log π(y)`` of each reported sample, in their order, in nats.
    ``fit_value`` is the mean over the folds of the value on the samples a probe was fitted to. ``fits`` is the number
    of probes, and ``converged`` how many of them met their tolerance.
    """

    pointwise: Array
    fit_value: float
    fits: int
    converged: int

    @property
    def value(self) -> float:
        """The held-out value, pooled over the reported samples."""
        return float(self.pointwise.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the pooled value for independent samples; it does not include the variation of the fits."""
        return float(self.pointwise.std(ddof=1) / np.sqrt(self.pointwise.shape[0]))


def rotated_information(
    features: Array,
    labels: Array,
    parts: Sequence[Array],
    *,
    classes: int,
    probe: str = "logistic",
    turns: int | None = None,
) -> RotatedInformation:
    """Return label information with each part held out in turn: one part reports, the next selects, the rest fit.

    ``parts`` are the row indices of at least 3 parts that contain every row once; rows of one group belong in one part.
    With ``turns``, only the first ``turns`` parts report. To compare layers, use the same rows and parts.

    Example:
        >>> y = np.arange(1000) % 2
        >>> x = np.random.default_rng(0).standard_normal((1000, 2)) + 2.0 * y[:, None]
        >>> rotated_information(x, y, np.array_split(np.arange(1000), 5), classes=2).value > 0.4
        True
    """
    probe = probe_named(probe)
    n = features.shape[0]
    if len(parts) < 3:
        raise InputError(f"There are {len(parts)} parts; at least 3 are needed, to fit, to select and to report.")
    if not np.array_equal(np.sort(np.concatenate(parts)), np.arange(n)):
        raise InputError(f"The parts must contain each of the {n} samples exactly once.")
    turns = len(parts) if turns is None else turns
    if not 1 <= turns <= len(parts):
        raise InputError(f"turns is {turns}; it must be between 1 and the number of parts, {len(parts)}.")
    contributions = np.empty(n)
    fit_values, converged = [], 0
    for turn, report in enumerate(parts[:turns]):
        after = (turn + 1) % len(parts)
        fit = np.concatenate([part for index, part in enumerate(parts) if index not in (turn, after)])
        fitted = PROBES[probe](
            features[fit], labels[fit], classes, select=(features[parts[after]], labels[parts[after]])
        )
        contributions[report] = fitted.information(features[report], labels[report])
        fit_values.append(float(fitted.information(features[fit], labels[fit]).mean()))
        converged += fitted.converged
    reported = np.sort(np.concatenate(parts[:turns]))
    return RotatedInformation(contributions[reported], sum(fit_values) / turns, turns, converged)


def probe_named(probe: str) -> str:
    """Return the name of a probe in ``PROBES``, or raise an error that lists them."""
    probe = _SAME.get(probe, probe)
    require.one_of(probe, "probe", PROBES)
    return probe
