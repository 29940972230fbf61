"""The probes of label information by name, and what they find on rows that are each held out once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from mikit.core.errors import InputError
from mikit.functional.labels.linear_probes import Array, LinearProbe, fit_gaussian_probe, fit_logistic_probe
from mikit.functional.labels.nonlinear_probes import HiddenLayerProbe, NeighborProbe, fit_mlp_probe, fit_neighbor_probe

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
    """Label information of rows that were each held out once.

    Attributes:
        pointwise: Held-out ``log q(y | x) - log π(y)`` per reported row, in the order of the rows, in nats.
        fit_value: Mean over the folds of the value on the rows a probe was fitted to.
        fits: Number of probes fitted.
        converged: How many of them met their tolerance.
    """

    pointwise: Array
    fit_value: float
    fits: int
    converged: int

    @property
    def value(self) -> float:
        """The held-out value, pooled over the reported rows."""
        return float(self.pointwise.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the pooled value, rows counted as independent."""
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

    Formula: the mean over the rows of ``log q(y | x) - log π(y)``, each row under the probe that did not see it.

    Args:
        features: ``(n, d)``.
        labels: Class indices ``0 .. classes-1``, ``(n,)``.
        parts: Row indices of at least 3 parts that cover every row once; rows of one group belong in one part.
        classes: Number of classes.
        probe: ``"logistic"``, ``"lda"``, ``"mlp"`` or ``"knn"``, as in :class:`LabelInformation`.
        turns: Let only the first ``turns`` parts report; all by default.

    Returns:
        The contribution of every reported row, in nats (V-information), and the value on the fit parts.

    Raises:
        InputError: If the parts do not cover the rows once, or a class is missing in a fit part.

    Cost:
        One probe per part.

    Pitfalls:
        The standard error holds the sampling of rows, not that of the fits; compare layers on the same rows and parts.

    Source:
        Cross-fitting; no single paper.

    Example:
        >>> from mikit.functional.labels.linear_probes import label_entropy
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 2, 1000)
        >>> x = rng.standard_normal((1000, 2)) + 2.0 * y[:, None]
        >>> found = rotated_information(x, y, np.array_split(rng.permutation(1000), 5), classes=2)
        >>> 0.4 < found.value < label_entropy(y), found.converged
        (True, 5)
    """
    probe = probe_named(probe)
    n = features.shape[0]
    if len(parts) < 3:
        raise InputError(f"{len(parts)} parts are too few: at least 3 are needed, to fit, to select and to report.")
    if not np.array_equal(np.sort(np.concatenate(parts)), np.arange(n)):
        raise InputError(f"The parts must hold each of the {n} rows exactly once.")
    turns = len(parts) if turns is None else turns
    if not 1 <= turns <= len(parts):
        raise InputError(f"turns is {turns}; it must lie between 1 and the number of parts, {len(parts)}.")
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
    """Return the probe's own name; refuse what is none."""
    if probe not in PROBES and probe not in _SAME:
        raise InputError(f'probe is "{probe}"; use one of {", ".join(PROBES)}.')
    return _SAME.get(probe, probe)
