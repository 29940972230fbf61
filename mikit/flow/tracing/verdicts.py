"""The verdict on every row of a flow, with its reasons. The thresholds are specific to mikit."""

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

    ``null`` is the information of permuted labels, ``entropy`` is ``H(Y)``, and ``first`` is the information of the
    network's first layer at the same phase.
    """
    reasons = _rows(n)
    gap = found.fit_value - found.value
    if gap > max(0.3, 0.3 * found.value):
        reasons.append((2, "the probe fits training samples far better than held-out samples"))
    elif gap > max(0.1, 0.1 * found.value):
        reasons.append((1, "the probe fits training samples clearly better than held-out samples: the value is low"))
    if found.value > entropy + 2 * found.standard_error:
        reasons.append((2, "above the labels' entropy, which is impossible"))
    if found.value <= 0:
        reasons.append((1, "no information detected: the probe does no better than the class frequencies"))
    if null.value > max(3 * null.standard_error, 0.01):
        reasons.append((2, "permuted labels give information too, so the samples are not independent"))
    if first > 0.9 * entropy:
        reasons.append((1, "saturated: the first layer already contains 90 % of the labels' entropy"))
    if found.converged < found.fits:
        reasons.append((1, "a probe did not converge"))
    if width > (n - 2 * n // folds) / 2:
        reasons.append((1, "wide layer: fewer than two samples per feature to fit the probe"))
    return _worst(reasons)


def of_input_information(found: NoisyInformation, *, n: int) -> Verdict:
    """Return the verdict on the information between a noisy layer and the input."""
    reasons = _rows(n)
    share = found.value / found.ceiling
    if share >= 0.92:
        reasons.append(
            (
                2,
                f"{share:.0%} of log N, the upper limit of the estimate: at this noise the value depends on the number "
                "of samples, not on the layer",
            )
        )
    elif share >= 0.6:
        reasons.append((1, f"{share:.0%} of log N, the upper limit: probably too low by a tenth or more"))
    return _worst(reasons)


def of_gap(student: Verdict, teacher: Verdict) -> Verdict:
    """Return the verdict on the difference of two label informations: the worse of both."""
    reasons = [
        (_WORDS.index(word), f"{whose}: {reason}")
        for whose, (word, reasons) in (("student", student), ("teacher", teacher))
        for reason in reasons.split("; ")
        if reason
    ]
    return _worst(reasons)


def of_share(found: Recovery, pair: Pair, position: int, *, n: int, same_data: bool) -> Verdict:
    """Return the verdict on a recovered share at the noise level in ``position``."""
    reasons = _rows(n, fewest=0)
    if math.isnan(found.share):
        return _worst([(2, "the teacher's layer is constant, so there is nothing to recover")])
    bracket = abs(found.in_sample - found.held_out) / found.ceiling
    if bracket > 0.2:
        reasons.append((2, "the held-out and in-sample values differ by more than 0.2: too few samples for this width"))
    elif bracket > 0.05:
        reasons.append((1, "the held-out and in-sample values differ by more than 0.05"))
    slack = 2 * found.standard_error + bracket / 2
    if found.share > 1 + slack or found.share < -slack:
        reasons.append((2, "outside 0 to 1, which is impossible"))
    if pair.null_recoveries is not None:
        null = pair.null_recoveries[position]
        if abs(null.share) > max(0.1, 0.5 * abs(found.share)):
            reasons.append((2, "permuted samples give a share of the same size"))
        elif abs(null.share) > 0.02:
            reasons.append((1, "permuted samples give a share that is not near 0"))
    if not same_data:
        reasons.append((1, "the stores were recorded on data with different hashes"))
    return _worst(reasons)


def of_similarity(found: Similarity, *, n: int, width: int, same_data: bool) -> Verdict:
    """Return the verdict on a linear CKA; ``width`` is that of the wider layer."""
    reasons = _rows(n, fewest=0)
    if math.isnan(found.value):
        return _worst([(2, "one of the layers is constant")])
    if n < 5 * width:
        reasons.append((1, "wide layer: linear CKA is high for unrelated layers too"))
    if not same_data:
        reasons.append((1, "the stores were recorded on data with different hashes"))
    return _worst(reasons)


def _rows(n: int, fewest: int = _FEWEST_ROWS) -> list[tuple[int, str]]:
    if n < fewest:
        return [(2, f"fewer than {fewest} samples")]
    if fewest and n < _RECOMMENDED_ROWS:
        return [(1, f"fewer than {_RECOMMENDED_ROWS:,} samples")]
    return []


def _worst(reasons: list[tuple[int, str]]) -> Verdict:
    worst = max((severity for severity, _ in reasons), default=0)
    ordered = sorted(reasons, key=lambda one: -one[0])
    return _WORDS[worst], "; ".join(reason for _, reason in ordered)
