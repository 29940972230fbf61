"""Whether to believe a row of a flow, and why not. The thresholds are mikit's own."""

from __future__ import annotations

import math

from mikit.estimators.labels.label_information import RotatedInformation
from mikit.flow.tracing.snapshots import Pair
from mikit.functional.flow.information_plane import NoisyInformation
from mikit.functional.flow.moments import Similarity
from mikit.functional.flow.recovery import Recovery

__all__ = ["Verdict", "of_gap", "of_information", "of_input_information", "of_share", "of_similarity"]

Verdict = tuple[str, str]

_FEWEST_ROWS, _RECOMMENDED_ROWS = 500, 2000
_WORDS = ("trustworthy", "caution", "unreliable")


def of_information(
    found: RotatedInformation, null: RotatedInformation, *, n: int, width: int, folds: int, entropy: float, first: float
) -> Verdict:
    """Return the verdict on a layer's label information.

    Args:
        found: The information.
        null: The same on moved labels.
        n: Rows.
        width: Columns of the layer.
        folds: Folds of the rotation.
        entropy: ``H(Y)``.
        first: The information of the network's first layer at the same phase.
    """
    told = _rows(n)
    gap = found.fit_value - found.value
    if gap > max(0.3, 0.3 * found.value):
        told.append((2, "the probe fits its own rows far better than held-out rows"))
    elif gap > max(0.1, 0.1 * found.value):
        told.append((1, "the probe fits its own rows clearly better than held-out rows, so the value is low"))
    if found.value > entropy + 2 * found.standard_error:
        told.append((2, "above the labels' entropy, which is impossible"))
    if found.value <= 0:
        told.append((1, "no information found: the probe does no better than the class frequencies"))
    if null.value > max(3 * null.standard_error, 0.01):
        told.append((2, "permuted labels give information too, so rows are not independent"))
    if first > 0.9 * entropy:
        told.append((1, "saturated: the first layer already tells 90 % of the labels' entropy"))
    if found.converged < found.fits:
        told.append((1, "a probe did not converge"))
    if width > (n - 2 * n // folds) / 2:
        told.append((1, "wide layer: fewer than two rows per column to fit the probe to"))
    return _worst(told)


def of_input_information(found: NoisyInformation, *, n: int) -> Verdict:
    """Return the verdict on what a noisy layer tells of the input.

    Args:
        found: The information.
        n: Rows.
    """
    told = _rows(n)
    share = found.value / found.ceiling
    if share >= 0.92:
        told.append(
            (2, f"{share:.0%} of log N, the most these rows can show: at this noise the value counts rows, not layers")
        )
    elif share >= 0.6:
        told.append((1, f"{share:.0%} of log N, the most these rows can show: probably low by a tenth or more"))
    return _worst(told)


def of_gap(own: Verdict, teacher: Verdict) -> Verdict:
    """Return the verdict on a difference of two label informations: the worse of both."""
    told = [
        (_WORDS.index(word), f"{whose}: {reason}")
        for whose, (word, reasons) in (("student", own), ("teacher", teacher))
        for reason in reasons.split("; ")
        if reason
    ]
    return _worst(told)


def of_share(found: Recovery, pair: Pair, position: int, *, n: int, same_data: bool) -> Verdict:
    """Return the verdict on a recovered share at the noise level in ``position``."""
    told = _rows(n, fewest=0)
    if math.isnan(found.share):
        return _worst([(2, "the teacher's layer never varies, so there is nothing to recover")])
    bracket = abs(found.in_sample - found.held_out) / found.ceiling
    if bracket > 0.2:
        told.append((2, "the held-out and in-sample values lie more than 0.2 apart: too few rows for these widths"))
    elif bracket > 0.05:
        told.append((1, "the held-out and in-sample values lie more than 0.05 apart"))
    slack = 2 * found.standard_error + bracket / 2
    if found.share > 1 + slack or found.share < -slack:
        told.append((2, "outside 0 to 1, which is impossible"))
    if pair.null_recoveries is not None:
        null = pair.null_recoveries[position]
        if abs(null.share) > max(0.1, 0.5 * abs(found.share)):
            told.append((2, "permuted rows give a share of the same size"))
        elif abs(null.share) > 0.02:
            told.append((1, "permuted rows give a share that is not near 0"))
    if not same_data:
        told.append((1, "the stores were recorded on data with different hashes"))
    return _worst(told)


def of_similarity(found: Similarity, *, n: int, width: int, same_data: bool) -> Verdict:
    """Return the verdict on a linear CKA; ``width`` is that of the wider layer."""
    told = _rows(n, fewest=0)
    if math.isnan(found.value):
        return _worst([(2, "one of the layers never varies")])
    if n < 5 * width:
        told.append((1, "wide layer: linear CKA is high for unrelated layers too"))
    if not same_data:
        told.append((1, "the stores were recorded on data with different hashes"))
    return _worst(told)


def _rows(n: int, fewest: int = _FEWEST_ROWS) -> list[tuple[int, str]]:
    if n < fewest:
        return [(2, f"fewer than {fewest} rows")]
    if fewest and n < _RECOMMENDED_ROWS:
        return [(1, f"fewer than {_RECOMMENDED_ROWS:,} rows")]
    return []


def _worst(told: list[tuple[int, str]]) -> Verdict:
    worst = max((severity for severity, _ in told), default=0)
    ordered = sorted(told, key=lambda one: -one[0])
    return _WORDS[worst], "; ".join(reason for _, reason in ordered)
