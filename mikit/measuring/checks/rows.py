"""Questions put to the rows themselves, before any number is believed: are they paired, apart, noisy, of one scale?

Each reads normal scores, column by column, or standardised columns. More than 32 columns of a side are first projected
at random onto 32. False alarms were counted on laws of known information: see each function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from scipy.stats import chi2
from torch import Tensor

from mikit.core.errors import THREE_WAYS
from mikit.core.measurement import Check
from mikit.functional.gaussian.canonical import rank_gaussianise
from mikit.functional.neighbors.ksg import ksg_pointwise

__all__ = [
    "Nearest",
    "functional_relation",
    "hidden_directions",
    "largest_atom",
    "misalignment",
    "near_copies",
    "nearest_readings",
    "normal_scores",
    "ties",
]

_MOST_COLUMNS = 32
_REACH = 3
_NEIGHBOURS = 64
_DISTANCES = 8_000_000


def normal_scores(values: Tensor) -> Tensor:
    """Return the rows as float64 normal scores of at most 32 columns, on the processor.

    Args:
        values: ``(n, d)``. More than 32 columns are standardised and projected at random onto 32 first.
    """
    rows = values.detach().cpu()
    if rows.shape[1] > _MOST_COLUMNS:
        spread = rows.std(dim=0).double()
        generator = torch.Generator().manual_seed(rows.shape[1])
        directions = torch.randn(rows.shape[1], _MOST_COLUMNS, generator=generator, dtype=torch.float64)
        directions = directions / torch.where(spread > 0, spread, 1.0)[:, None]
        rows = rows.double() @ directions
    return rank_gaussianise(rows)


def misalignment(scores_x: Tensor, scores_y: Tensor) -> Check:
    """Look for blocks of rows whose partners stand a few rows away: fails where one is found.

    In eight blocks of successive rows, or four below 2,000 rows, the squared cross-correlations of whitened scores
    (with their squares, up to 12 columns) are summed at shifts of -3 to 3 rows. A block is out of step if a shift shows
    what chance would at most once in 1e8 samples, and no shift less than half of it. A lag between two time series
    looks the same.
    """
    name = "rows in step"
    first, second = (_whitened(_with_squares(scores)) for scores in (scores_x, scores_y))
    n, width = first.shape[0], first.shape[1] * second.shape[1]
    blocks = 8 if n >= 2000 else 4
    size = n // blocks
    if size < max(100, 2 * (first.shape[1] + second.shape[1])):
        return Check(name, "not applicable", None, None, "There are too few rows to compare them with shifted ones.")
    least = float(chi2.isf(1e-8, width)) - width if width else 0.0
    found: dict[int, int] = {}
    for block in range(blocks):
        low, high = block * size + _REACH, (block + 1) * size - _REACH
        own = _centred(first[low:high])
        shown = {}
        for shift in range(-_REACH, _REACH + 1):
            other = _centred(second[low + shift : high + shift])
            shown[shift] = float((own.T @ other).square().sum()) / (high - low) - width
        best = max(shown, key=shown.__getitem__)
        if shown[best] > least and shown[0] < 0.5 * shown[best]:
            found[block] = best
    share = len(found) / blocks
    if not found:
        return Check(name, "pass", 0.0, 0.0, "No block of rows fits better when one side is shifted by a few rows.")
    start, shift = min(found), found[min(found)]
    return Check(
        name,
        "fail",
        share,
        0.0,
        f"In {len(found)} of {blocks} blocks of rows, from about row {start * size} on, x fits y far better when y is "
        f"shifted by {shift:+d}: rows are missing or doubled on one side. Join both sides by sample ids.",
    )


def near_copies(scores_x: Tensor, scores_y: Tensor) -> Check:
    """Ask whether rows come in tight little groups, as noisy views of one item do: such rows are not independent.

    With ``r_k`` the distance of a row to its k-th neighbour in ``D`` dimensions, ``(r_k / r_{k+1})^{kD}`` is uniform on
    ``[0, 1]`` in any smooth law. Views of an item leave a gap after the last of them. Fails where 30 % of the
    rows asked have a gap of probability 0.01 after one and the same ``k`` below 64, or 60 % one of 1e-4 after any;
    honest laws show at most 18 and 46 %. Sees two views an item only if their noise is small.
    """
    name, threshold = "rows apart", 0.3
    joint = torch.cat([scores_x, scores_y], dim=1)
    n = joint.shape[0]
    if n < 4 * _NEIGHBOURS:
        return Check(name, "not applicable", None, None, "There are too few rows to look for groups of near copies.")
    asked = torch.linspace(0, n - 1, min(max(_DISTANCES // n, 64), n)).long()
    distances = torch.cdist(joint[asked], joint)
    distances[torch.arange(asked.shape[0]), asked] = math.inf
    radii = distances.topk(_NEIGHBOURS + 1, largest=False).values.sort(dim=1).values
    repeated = float((radii[:, 0] < 1e-9).double().mean())
    if repeated > 0.02:
        return Check(name, "not applicable", repeated, 0.02, "Rows repeat exactly, so gaps between rows tell nothing.")
    logs = radii.clamp(min=1e-12).log()
    reach = slice(10, _NEIGHBOURS)
    dimension = (_NEIGHBOURS - 10) / (logs[:, _NEIGHBOURS - 1 : _NEIGHBOURS] - logs[:, reach]).sum(dim=1).clamp(
        min=1e-9
    )
    order = torch.arange(1, _NEIGHBOURS + 1)
    log_chance = -float(dimension.median()) * order * logs.diff(dim=1)
    same = (log_chance < math.log(0.01)).double().mean(dim=0)
    anywhere = float((log_chance.min(dim=1).values < math.log(1e-4)).double().mean())
    share, size = float(same.max()), int(same.argmax()) + 2
    if share < threshold and anywhere < 0.6:
        return Check(name, "pass", share, threshold, "Rows do not come in tight little groups.")
    what = f"groups of about {size}" if share >= threshold else "tight little groups"
    return Check(
        name,
        "fail",
        max(share, anywhere),
        threshold,
        f"Rows come in {what}, far closer to each other than to all others, as views of one item do. They are not "
        "independent evidence: name the items in groups, or keep one row of each.",
    )


@final
@dataclass(frozen=True)
class Nearest:
    """What nearest neighbours read on normal scores: a second opinion that costs little.

    Attributes:
        rows: Rows of the readings: a quarter, half and all of those looked at.
        readings: The readings in nats, by :func:`mikit.functional.ksg`.
        standard_error: Of the last one.
        columns: Columns looked at.
    """

    rows: tuple[int, ...]
    readings: tuple[float, ...]
    standard_error: float
    columns: int


def nearest_readings(scores_x: Tensor, scores_y: Tensor) -> Nearest | None:
    """Return what nearest neighbours read on up to 4,096 rows of normal scores, and on parts of them.

    None below 100 rows. Above 20 columns 2,048 rows have to do.
    """
    n, columns = scores_x.shape[0], scores_x.shape[1] + scores_y.shape[1]
    if n < 100:
        return None
    most = min(n, 4096 if columns <= 20 else 2048)
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:most]
    x, y = scores_x[chosen], scores_y[chosen]
    sizes = (most // 4, most // 2, most)
    contributions = [ksg_pointwise(x[:m], y[:m], 3) for m in sizes]
    # Samples share neighbours, which makes the mean vary 1.4 times as much as independent contributions would.
    error = 1.4 * float(contributions[2].std()) / most**0.5
    return Nearest(sizes, tuple(float(each.mean()) for each in contributions), error, columns)


def functional_relation(scores_x: Tensor, scores_y: Tensor, nearest: Nearest | None) -> Check:
    """Ask whether one side follows the other without noise: the information is infinite then, or out of reach.

    Nearest neighbours read up to 4,096 rows, half and a quarter of them. Without noise the reading grows with the
    logarithm of the number of rows; Gaussian pairs of up to 6 nats grow by at most 0.61 of it. Where it grows by more
    than 0.65 the check warns, and fails if local linear regression also predicts some direction of a side to a
    twentieth of its spread. It fails as well where the regression leaves nothing at all. In more than some ten columns
    it sees little.
    """
    name, threshold = "noise between the sides", 0.65
    if nearest is None or nearest.rows[2] < 500:
        return Check(name, "not applicable", None, None, "There are too few rows to see whether the reading grows.")
    if min(_distinct_share(scores_x), _distinct_share(scores_y)) < 0.95:
        return Check(name, "not applicable", None, None, "Rows of one side repeat, so its entropy bounds the value.")
    slope = (nearest.readings[2] - nearest.readings[0]) / math.log(4)
    x, y = scores_x[: nearest.rows[2]], scores_y[: nearest.rows[2]]
    left = min(_unexplained(x, y), _unexplained(y, x))
    read, sizes = (list(values) for values in (nearest.readings, nearest.rows))
    said = (
        f"Nearest neighbours read {read[0]:.2f}, {read[1]:.2f} and {read[2]:.2f} nats on {sizes[0]}, {sizes[1]} and "
        f"{sizes[2]} rows"
    )
    if left < 1e-4 or (slope > threshold and left < 0.05):
        return Check(
            name,
            "fail",
            slope,
            threshold,
            f"{said}, and {left:.1%} of the spread of some direction is left unexplained: one side seems to be a "
            f"function of the other, and the information is infinite then. {THREE_WAYS}",
        )
    if slope > threshold:
        return Check(
            name,
            "warn",
            slope,
            threshold,
            f"{said}: the reading grows with the logarithm of the rows, so the truth is infinite or far above what "
            f"they can show. {THREE_WAYS}",
        )
    return Check(name, "pass", slope, threshold, f"{said}; it does not grow as it would without noise.")


def hidden_directions(value: float, x: Tensor, y: Tensor) -> Check:
    """Ask whether directions that hold less than 1e-4 of the variance carry linear information that the value lacks.

    Compares canonical correlations with and without such directions on up to 4,096 rows. Fails where they add more than
    0.05 nats, a tenth, and six standard deviations of chance, and the value lacks half of that or more.
    """
    name = "one scale"
    rows = min(x.shape[0], 4096)
    if x.shape[1] + y.shape[1] > min(rows // 5, 256):
        return Check(name, "not applicable", None, None, "There are too many columns to look for hidden directions.")
    (all_x, large_x), (all_y, large_y) = (_directions(side[:rows]) for side in (x, y))
    if all_x.shape[1] == large_x.shape[1] and all_y.shape[1] == large_y.shape[1]:
        return Check(name, "pass", 0.0, None, "No direction holds less than 1e-4 of the variance of the first.")
    more = all_x.shape[1] * all_y.shape[1] - large_x.shape[1] * large_y.shape[1]
    whole = _linear_information(all_x, all_y)
    gain = whole - _linear_information(large_x, large_y) - more / (2 * rows)
    threshold = max(0.05, 0.1 * whole, 6 * (more / 2) ** 0.5 / rows)
    if gain <= threshold:
        sentence = f"Directions below 1e-4 of the variance add {max(gain, 0.0):.3f} nats of linear information."
        return Check(name, "pass", gain, threshold, sentence)
    said = f"Directions that hold less than 1e-4 of the variance carry {gain:.2f} nats of linear information"
    if value > whole - 0.5 * gain:
        return Check(name, "pass", gain, threshold, f"{said}, and the value holds them.")
    return Check(
        name,
        "fail",
        gain,
        threshold,
        f"{said}, which the value {value:.3f} does not hold: some column or direction dwarfs them. Whiten the columns, "
        "or leave out what is only loud.",
    )


def ties(x: Tensor, y: Tensor, *, needs_density: bool) -> Check:
    """Find the column with the largest atom, one value that many rows share, as 0 does behind a ReLU.

    Warns above 10 % of the rows for instruments that take the columns for continuous, as the Gaussian formula and
    density models do: half the entries at 0 raise the former by a sixth. Neighbours and critics handle atoms.
    """
    name, threshold = "ties", 0.1
    share, value = max((largest_atom(side) for side in (x, y)), key=lambda atom: atom[0])
    if share <= threshold:
        sentence = f"No column holds one value in more than {share:.1%} of the rows."
        return Check(name, "pass", share, threshold, sentence)
    said = f"A column holds the value {value:.4g} in {share:.1%} of the rows"
    if not needs_density:
        return Check(name, "pass", share, threshold, f"{said}, which this instrument handles.")
    return Check(
        name, "warn", share, threshold, f"{said}, but this instrument takes columns for continuous. Use KSG or InfoNCE."
    )


def largest_atom(values: Tensor) -> tuple[float, float]:
    """Return the largest share of up to 4,096 rows that one value of a varying column holds, and that value."""
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
    scores = scores.clamp(-2.5, 2.5)  # a few far rows must not decide
    return torch.cat([scores, scores.square()], dim=1) if scores.shape[1] <= 12 else scores


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=0)


def _whitened(rows: Tensor) -> Tensor:
    centred = _centred(rows)
    values, vectors = torch.linalg.eigh(centred.T @ centred / rows.shape[0])
    kept = values > 1e-8 * values[-1:].clamp(min=1e-300)
    whitened: Tensor = centred @ (vectors[:, kept] / values[kept].sqrt())
    return whitened


def _distinct_share(rows: Tensor) -> float:
    return float(torch.unique(rows[:1000], dim=0).shape[0] / min(rows.shape[0], 1000))


def _unexplained(x: Tensor, y: Tensor) -> float:
    """Return the spread that local linear regression on ``x`` leaves of the direction of ``y`` that it knows best."""
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
    """Return orthonormal scores of all directions of the standardised columns, and of those that are not small."""
    precision = 1e-10 if values.dtype == torch.float64 else 3e-5
    rows = _centred(values.detach().cpu().double())
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
