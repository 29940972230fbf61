"""The checks of the samples themselves: whether pairs are aligned, independent, noisy, and on one scale.

They use normal scores or standardized features. More than 32 features of a side are first projected at random onto 32.
False alarms were counted on distributions with known information; each function states its rate where it has one.
"""

from __future__ import annotations

import math

import torch
from scipy.stats import chi2
from torch import Tensor

from mikit.core.errors import THREE_WAYS
from mikit.core.measurement import Check
from mikit.measuring.subject import Subject

__all__ = ["functional_relation", "hidden_directions", "largest_atom", "misalignment", "near_copies", "ties"]

_REACH = 3  # largest shift that is tried, in samples
_NEIGHBORS = 64
_DISTANCES = 8_000_000  # limit of the distances from the samples that are looked at to all others


def misalignment(scores_x: Tensor, scores_y: Tensor) -> Check:
    """Look for blocks of samples whose partners are a few positions away: fails where one is found.

    In each of eight blocks of successive samples (four below 2,000 samples), the squared cross-correlations of whitened
    scores (and of their squares, up to 12 features) are summed with ``y`` shifted by -3 to 3 samples. A block is
    misaligned if the best shift gives a sum that chance exceeds with probability 1e-8, and the unshifted pairs give
    less than half of it. A lag between two time series looks the same.
    """
    name = "rows in step"
    first, second = (_whitened(_with_squares(scores)) for scores in (scores_x, scores_y))
    n, width = first.shape[0], first.shape[1] * second.shape[1]
    blocks = 8 if n >= 2000 else 4
    size = n // blocks
    if size < max(100, 2 * (first.shape[1] + second.shape[1])):
        return Check.not_applicable(name, "There are too few samples to compare them with shifted ones.")
    least = float(chi2.isf(1e-8, width)) - width if width else 0.0
    found: dict[int, int] = {}
    for block in range(blocks):
        low, high = block * size + _REACH, (block + 1) * size - _REACH
        own = _centered(first[low:high])
        dependence = {}
        for shift in range(-_REACH, _REACH + 1):
            other = _centered(second[low + shift : high + shift])
            dependence[shift] = float((own.T @ other).square().sum()) / (high - low) - width
        best = max(dependence, key=dependence.__getitem__)
        if dependence[best] > least and dependence[0] < 0.5 * dependence[best]:
            found[block] = best
    if not found:
        return Check.passed(name, "No block of samples fits better when one side is shifted.", 0.0, 0.0)
    start, shift = min(found), found[min(found)]
    sentence = (
        f"In {len(found)} of {blocks} blocks of samples, from about sample {start * size} on, x fits y far better when "
        f"y is shifted by {shift:+d}: samples are missing or doubled on one side. Join both sides by sample ids."
    )
    return Check.failed(name, sentence, len(found) / blocks, 0.0)


def near_copies(scores_x: Tensor, scores_y: Tensor) -> Check:
    """Check whether samples form tight groups, as noisy views of one item do: such samples are not independent.

    A gap is a jump from one neighbor's distance to the next that is improbable for independent samples. Fails if 30 %
    of the samples have a gap of probability 0.01 after the same number of neighbors (below 64), or if 60 % have a gap
    of probability 1e-4 after any number. Among independent samples at most 18 and 46 % have such gaps. Two views of an
    item are detected only if their noise is small.
    """
    name, threshold = "rows apart", 0.3
    joint = torch.cat([scores_x, scores_y], dim=1)
    n = joint.shape[0]
    if n < 4 * _NEIGHBORS:
        return Check.not_applicable(name, "There are too few samples to look for groups of near copies.")
    asked = torch.linspace(0, n - 1, min(max(_DISTANCES // n, 64), n)).long()
    distances = torch.cdist(joint[asked], joint)
    distances[torch.arange(asked.shape[0]), asked] = math.inf
    radii = distances.topk(_NEIGHBORS + 1, largest=False).values.sort(dim=1).values
    repeated = float((radii[:, 0] < 1e-9).double().mean())
    if repeated > 0.02:
        sentence = "Samples repeat exactly, so gaps between samples are not informative."
        return Check.not_applicable(name, sentence, repeated, 0.02)
    # With r_k the distance to the k-th neighbor in D dimensions, (r_k / r_{k+1})^{kD} is uniform on [0, 1] for any
    # smooth density. Views of one item leave a gap after the last of them. D is estimated from farther neighbors.
    logs = radii.clamp(min=1e-12).log()
    reach = slice(10, _NEIGHBORS)
    spread = (logs[:, _NEIGHBORS - 1 : _NEIGHBORS] - logs[:, reach]).sum(dim=1).clamp(min=1e-9)
    dimension = float(((_NEIGHBORS - 10) / spread).median())
    log_chance = -dimension * torch.arange(1, _NEIGHBORS + 1) * logs.diff(dim=1)
    same = (log_chance < math.log(0.01)).double().mean(dim=0)
    anywhere = float((log_chance.min(dim=1).values < math.log(1e-4)).double().mean())
    share, size = float(same.max()), int(same.argmax()) + 2
    if share < threshold and anywhere < 0.6:
        return Check.passed(name, "Samples do not form tight groups.", share, threshold)
    what = f"groups of about {size}" if share >= threshold else "tight groups"
    sentence = (
        f"Samples form {what}, far closer to each other than to all others, as views of one item do. They are not "
        "independent evidence: name the items in groups, or keep one sample of each."
    )
    return Check.failed(name, sentence, max(share, anywhere), threshold)


def functional_relation(subject: Subject) -> Check:
    """Check whether one side is a function of the other: the information is then infinite, or out of reach.

    Without noise, nearest-neighbor estimates grow with the logarithm of the sample size; for Gaussian pairs of up to 6
    nats by at most 0.61 of it. Warns where they grow by more than 0.65 of it, and fails if local linear regression also
    predicts some direction of a side to a twentieth of its spread, or without any residual. Detects little in more than
    about ten features.
    """
    name, threshold, nearest = "noise between the sides", 0.65, subject.nearest
    if nearest is None or nearest.rows[2] < 500:
        return Check.not_applicable(name, "There are too few samples to see whether the estimate grows with them.")
    x, y = subject.one_of_each_group()
    if min(_distinct_share(x), _distinct_share(y)) < 0.95:
        return Check.not_applicable(name, "Samples of one side repeat, so its entropy bounds the value.")
    estimates, sizes = nearest.readings, nearest.rows
    slope = (estimates[2] - estimates[0]) / math.log(4)  # the largest sample is four times the smallest
    x, y = x[: sizes[2]], y[: sizes[2]]
    left = min(_unexplained(x, y), _unexplained(y, x))
    found = (
        f"Nearest neighbors give {estimates[0]:.2f}, {estimates[1]:.2f} and {estimates[2]:.2f} nats for {sizes[0]}, "
        f"{sizes[1]} and {sizes[2]} samples"
    )
    if left < 1e-4 or (slope > threshold and left < 0.05):
        sentence = (
            f"{found}, and {left:.1%} of the spread of some direction is left unexplained: one side seems to be a "
            f"function of the other, and the information is then infinite. {THREE_WAYS}"
        )
        return Check.failed(name, sentence, slope, threshold)
    if slope > threshold:
        sentence = (
            f"{found}: the estimate grows with the logarithm of the sample size, so the truth is infinite or far above "
            f"what so many samples can show. {THREE_WAYS}"
        )
        return Check.warned(name, sentence, slope, threshold)
    return Check.passed(name, f"{found}, which does not grow as it would without noise.", slope, threshold)


def hidden_directions(value: float, x: Tensor, y: Tensor) -> Check:
    """Check whether directions with less than 1e-4 of the variance carry linear information that the value misses.

    Compares canonical correlations with and without such directions on up to 4,096 samples. Fails where they add more
    than 0.05 nats, a tenth, and six standard deviations of chance, and the value misses half of that or more.
    """
    name = "one scale"
    rows = min(x.shape[0], 4096)
    if x.shape[1] + y.shape[1] > min(rows // 5, 256):
        return Check.not_applicable(name, "There are too many features to look for hidden directions.")
    (all_x, large_x), (all_y, large_y) = (_directions(side[:rows]) for side in (x, y))
    if all_x.shape[1] == large_x.shape[1] and all_y.shape[1] == large_y.shape[1]:
        return Check.passed(name, "No direction has less than 1e-4 of the variance of the first.", 0.0)
    more = all_x.shape[1] * all_y.shape[1] - large_x.shape[1] * large_y.shape[1]
    whole = _linear_information(all_x, all_y)
    gain = whole - _linear_information(large_x, large_y) - more / (2 * rows)
    threshold = max(0.05, 0.1 * whole, 6 * (more / 2) ** 0.5 / rows)
    if gain <= threshold:
        sentence = f"Directions below 1e-4 of the variance add {max(gain, 0.0):.3f} nats of linear information."
        return Check.passed(name, sentence, gain, threshold)
    found = f"Directions with less than 1e-4 of the variance carry {gain:.2f} nats of linear information"
    if value > whole - 0.5 * gain:
        return Check.passed(name, f"{found}, and the value includes them.", gain, threshold)
    sentence = (
        f"{found}, which the value {value:.3f} misses: some feature or direction has a far larger scale. Whiten the "
        "features, or leave out those that are large but not informative."
    )
    return Check.failed(name, sentence, gain, threshold)


def ties(x: Tensor, y: Tensor, *, needs_density: bool) -> Check:
    """Find the feature with the largest atom: one value that many samples share, such as 0 after a ReLU.

    Warns above 10 % of the samples for estimators that assume continuous features, such as the Gaussian formula and
    density models: half the entries at 0 raise the former by a sixth. Neighbors and critics handle atoms.
    """
    name, threshold = "ties", 0.1
    share, value = max((largest_atom(side) for side in (x, y)), key=lambda atom: atom[0])
    if share <= threshold:
        sentence = f"No feature has one value in more than {share:.1%} of the samples."
        return Check.passed(name, sentence, share, threshold)
    found = f"A feature has the value {value:.4g} in {share:.1%} of the samples"
    if not needs_density:
        return Check.passed(name, f"{found}, which this estimator handles.", share, threshold)
    sentence = f"{found}, but this estimator assumes continuous features. Use KSG or InfoNCE."
    return Check.warned(name, sentence, share, threshold)


def largest_atom(values: Tensor) -> tuple[float, float]:
    """Return the largest fraction of up to 4,096 samples that share one value of a varying feature, and that value."""
    rows = values.detach().reshape(values.shape[0], -1)
    rows = rows[:4096, :512].sort(dim=0).values
    rows = rows[:, rows[0] != rows[-1]]
    n = rows.shape[0]
    if rows.shape[1] == 0:
        return 0.0, 0.0
    starts = torch.ones_like(rows, dtype=torch.bool)
    starts[1:] = rows[1:] != rows[:-1]
    counts = torch.zeros_like(rows).scatter_add_(0, starts.cumsum(dim=0) - 1, torch.ones_like(rows))
    column = int(counts.amax(dim=0).argmax())
    run = int(counts[:, column].argmax())
    at = int(counts[:run, column].sum())
    return float(counts[run, column]) / n, float(rows[at, column])


def _with_squares(scores: Tensor) -> Tensor:
    scores = scores.clamp(-2.5, 2.5)  # A few outliers must not decide.
    return torch.cat([scores, scores.square()], dim=1) if scores.shape[1] <= 12 else scores


def _centered(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=0)


def _whitened(rows: Tensor) -> Tensor:
    centered = _centered(rows)
    values, vectors = torch.linalg.eigh(centered.T @ centered / rows.shape[0])
    kept = values > 1e-8 * values[-1:].clamp(min=1e-300)
    whitened: Tensor = centered @ (vectors[:, kept] / values[kept].sqrt())
    return whitened


def _distinct_share(rows: Tensor) -> float:
    return float(torch.unique(rows[:1000], dim=0).shape[0] / min(rows.shape[0], 1000))


def _unexplained(x: Tensor, y: Tensor) -> float:
    """Return the residual spread of local linear regression on ``x``, in the direction of ``y`` it predicts best."""
    columns = x.shape[1] + 1
    if columns > 17:
        return 1.0
    asked = torch.arange(min(256, x.shape[0]))
    distances = torch.cdist(x[asked], x)
    distances[asked, asked] = math.inf
    near = distances.topk(max(2 * columns + 4, 12), largest=False).indices
    design = torch.cat([torch.ones(*near.shape, 1, dtype=x.dtype), x[near] - x[asked][:, None]], dim=2)
    gram = design.transpose(1, 2) @ design
    gram = gram + 1e-9 * gram.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] * torch.eye(columns, dtype=x.dtype)
    white = _whitened(y)
    if white.shape[1] == 0:
        return 1.0
    fitted = torch.linalg.solve(gram, design.transpose(1, 2) @ white[near])[:, 0]
    residual = white[asked] - fitted
    smallest = torch.linalg.eigvalsh(residual.T @ residual / asked.shape[0])[0]
    return float(smallest.clamp(min=0).sqrt())


def _directions(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return orthonormal scores of all directions of the standardized columns, and of those that are not small."""
    precision = 1e-10 if values.dtype == torch.float64 else 3e-5
    rows = _centered(values.detach().cpu().double())
    spread = rows.abs().amax(dim=0)
    rows = rows[:, spread > 0] / spread[spread > 0]
    if rows.shape[1] == 0:
        return rows, rows
    rows = rows / rows.square().mean(dim=0).sqrt()
    left, singular, _ = torch.linalg.svd(rows, full_matrices=False)
    return left[:, singular > precision * singular[0]], left[:, singular > 1e-2 * singular[0]]


def _linear_information(first: Tensor, second: Tensor) -> float:
    if min(first.shape[1], second.shape[1]) == 0:
        return 0.0
    correlations = torch.linalg.svdvals(first.T @ second).clamp(max=1 - 1e-10)
    return float(-0.5 * torch.log1p(-correlations.square()).sum())
