"""The Gaussian copula, a cross-fitted critic for what it leaves out, and neighbours for what the critic leaves out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NoReturn, final

import torch
from torch import Tensor

from mikit.core.measurement import Check
from mikit.core.rows import recoded
from mikit.estimators.base import Estimator, Reading, clustered_standard_error, require_pair
from mikit.estimators.copula.components import independent_coordinates
from mikit.estimators.copula.cross_fitting import OutOfFold, cross_fit
from mikit.estimators.gaussian.mutual_information import GaussianMI
from mikit.functional.copula.coordinates import log_radius
from mikit.functional.copula.residual import (
    WIDEST_FOR_KSG,
    WIDEST_FOR_WEIGHTED,
    Residual,
    leading_pairs,
    neighbour_residual,
)
from mikit.functional.gaussian.canonical import gaussian_mi, rank_gaussianise

__all__ = ["CopulaCritic"]

_CONTRASTS = (("skew", "skewed components"), ("tails", "components by their tails"))
# With fewer rows, canonical pairs fit them too well to be compared with pairs drawn from a model.
_ROWS_A_COLUMN_FOR_PAIRS = 100
_MOST_REPEATED = 0.01
_WIDEST_FOR_BOTH, _WIDEST_FOR_COMPONENTS = 32, 128
_SMALLEST_GAIN = 0.002
# Errors of the comparison by neighbours that are taken off its difference from a trained critic, and from the copula.
_CLEAR, _CLEARER = 1.0, 3.0
# A critic errs by about this share of what it adds to the copula: with it nine in ten intervals held the truth on the
# laws for development, and without it three in four where a critic had learned.
_CRITICS_OWN_ERROR = 0.04
_DISAGREEMENT, _DISAGREEMENT_SHARE = 0.1, 0.2
_ROOM_BELOW_CEILING = 3.0
# How far above the largest moment that chance brings about in Gaussian sides theirs must be to speak against them.
_MOMENTS_BEYOND_CHANCE, _FEW_MOMENTS = 1.5, 6
_FEWEST_ROWS = 40


@final
class CopulaCritic(Estimator):
    r"""Mutual information of rows ``(n, d_x)``, ``(n, d_y)``: Gaussian copula, then a critic, then neighbours.

    Formula: three readings of one sample, each for what the one before leaves out.

    1. The Gaussian copula's information :math:`G`, unbiased, in the coordinates (normal scores, or those of independent
       components) in which it is largest: where both sides are jointly Gaussian in them, it cannot exceed the truth.
    2. A critic that starts as the copula's log density ratio, and also sees how far out each row lies in the columns as
       they came (:func:`~mikit.functional.copula.coordinates.log_radius`), is cross-fitted over 3 to 5 folds by
       symmetric InfoNCE, with a pilot on the first fold choosing among three recipes by rows neither trained nor
       reported on. Its scores of all pairs of a fold are balanced to a law with uniform marginals
       (:func:`~mikit.functional.copula.balancing.balanced_log_ratios`). If the balanced ratio of held-out pairs exceeds
       the copula's by more than two standard errors, or :math:`G` exceeds what its own ratio gives on both held-out and
       fit rows, the reading is the mean of its values on held-out and on fit rows, of which one is low and one high by
       about the same amount; otherwise it is :math:`G`.
    3. Three pairings are drawn from the critic's law (:func:`~mikit.functional.copula.balancing.drawn_pairing`).
       Nearest neighbours compare them with the data, and their biases cancel as far as the two are alike:
       :math:`\mathbb E_q[r] + \hat I_{NN}(\text{data}) - \hat I_{NN}(\text{drawn})`. With up to 8 columns in all by
       weighted Kozachenko-Leonenko entropies, with up to 20 by KSG; where columns are more and no more than four
       canonical pairs are correlated, on those pairs, if there are 100 rows a column (above 8 columns already where no
       critic has learned). The value moves from the second reading to this one as far as they differ by more than the
       error of the comparison. Within 3 nats of the ceiling of the scores, the logarithm of a block's rows, the drawn
       pairing is too loose and neighbours are not asked.

    Args:
        seed: Of folds, starts and draws.

    Shapes:
        ``x`` is ``(n, d_x)``, ``y`` is ``(n, d_y)``, with paired rows.

    Unit: nats.

    Kind: estimate, neither an upper nor a lower bound; never clipped. The part ``held`` is of a lower bound's
    kind.

    Raises:
        TypeError: If called as a loss.
        InputError: If the rows do not pair up, are fewer than 40 or than twice the columns, or if an exact linear
            relation makes the information infinite.

    Checks:
        Whether the critic's value on fit rows and on held-out rows agree, whether neighbours agree with the critic, and
        whether the value hangs on the choice of coordinates: each warns from a fifth of the value and 0.1 nats. Whether
        the sides are Gaussian, where the value rests on that: warns from 1.5 times the moments that chance makes.

    Cost:
        Three to seven trained critics and ``O(n²)`` scores in blocks of up to 4,096 rows: 5 to 10 seconds for 10,000
        rows of Gaussian-copula data on one thread, up to a minute where the critic finds more.

    Pitfalls:
        Reads low where dependence is neither near-Gaussian in some coordinates nor smooth in few columns, such as
        behind networks of several layers with more than eight columns: nothing in so few rows shows it. Rows that
        repeat one item must be named in ``groups``; neighbours are not asked then, nor where one row in a hundred is a
        copy of another. The error counts sampling, the
        disagreement of the readings, and 4 % of what the critic adds to the copula; it is no guarantee against bias.

    Source:
        mikit's own. InfoNCE: van den Oord, Li and Vinyals, 2018; KSG: Kraskov, Stögbauer and Grassberger, 2004;
        weighted entropies: Berrett, Samworth and Yuan, 2019.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(400, 2, generator=g)
        >>> y = 0.8 * x + 0.6 * torch.randn(400, 2, generator=g)
        >>> abs(float(CopulaCritic().estimate(x, y)) - 1.02) < 0.2
        True
    """

    name = "copula_critic"
    unit = "nats"
    kind = "estimate"
    differentiable = False
    costly = True

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"seed={self.seed}"

    def forward(self, x: Tensor, y: Tensor) -> NoReturn:
        """Raise ``TypeError``: there is nothing to minimise."""
        raise TypeError(
            "CopulaCritic has no gradient: it fits itself to the sample. Train with InfoNCE, JSD or VID instead, and "
            "report CopulaCritic with mikit.measure."
        )

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the information in nats, never clipped."""
        return torch.tensor(self.read(x, y).value, dtype=torch.float64, device=x.device)

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float | None:
        """Return the error that :meth:`read` gives, at the cost of another pass."""
        return self.read(x, y, groups=groups).standard_error

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return 40, or four more than twice the columns."""
        return max(_FEWEST_ROWS, 2 * (d_x + d_y) + 4)

    @torch.no_grad()
    def read(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> Reading:
        """Fit, report and check by cross-fitting, in one pass over the folds."""
        require_pair(x, y, minimum=self.minimum_rows(x.shape[1], y.shape[1]))
        x, y = _varying(x), _varying(y)
        if x.shape[1] == 0 or y.shape[1] == 0:
            return Reading(value=0.0, standard_error=0.0, note="a side is constant")
        generator = torch.Generator().manual_seed(self.seed)
        sides = _chosen_sides(x, y)
        beside = log_radius(x), log_radius(y)
        pieces = cross_fit(sides.x, sides.y, groups=groups, generator=generator, beside=beside)
        first = _critic_reading(sides, pieces, None if groups is None else recoded(groups[pieces.rows]))
        # Above what the scores of a block can show, a pairing drawn from them is too loose to compare the data with.
        hidden = first.value >= _most_shown(pieces)
        residual = None
        if groups is None and not hidden and not _repeats(x, y):
            residual = neighbour_residual(*_for_neighbours(sides, first.learned), pieces.rows, pieces.partners)
        drawn = float(pieces.drawn.mean())
        value, error = first.value, first.error
        parts = {
            "gaussian copula": sides.normal_scores_value,
            "coordinates": sides.value,
            **first.parts,
            "drawn": drawn,
        }
        if residual is not None:
            second = drawn + residual.value
            difference = second - first.value
            limit = (_CLEAR if first.learned else _CLEARER) * residual.error
            share = max(0.0, 1 - (limit / difference) ** 2) if difference else 0.0
            value += share * difference
            error = math.hypot(error, share * residual.error, (1 - share) * difference / 4)
            parts["with neighbours"] = second
        return Reading(
            value=value,
            standard_error=error,
            checks=(*_own_checks(value, parts, residual), _gaussian_sides(sides, first, residual)),
            parts=parts,
            note=_note(sides, first, pieces.recipe, parts),
        )


@dataclass(frozen=True)
class _Sides:
    """Both sides in the coordinates chosen, and in normal scores."""

    name: str
    x: Tensor
    y: Tensor
    value: float
    scores_x: Tensor
    scores_y: Tensor
    normal_scores_value: float
    error: float


@dataclass(frozen=True)
class _First:
    """What copula and critic read."""

    value: float
    error: float
    learned: bool
    gain: float
    gain_error: float
    parts: dict[str, float]


def _varying(rows: Tensor) -> Tensor:
    return rows[:, (rows != rows[:1]).any(0)]


def _chosen_sides(x: Tensor, y: Tensor) -> _Sides:
    """Choose the coordinates in which the Gaussian copula reads most."""
    scores_x, scores_y = rank_gaussianise(x), rank_gaussianise(y)
    candidates = [("normal scores", scores_x, scores_y)]
    width = x.shape[1] + y.shape[1]
    if width > 2 and max(x.shape[1], y.shape[1]) <= _WIDEST_FOR_COMPONENTS and x.shape[0] >= 20 * width:
        for contrast, name in _CONTRASTS if max(x.shape[1], y.shape[1]) <= _WIDEST_FOR_BOTH else _CONTRASTS[:1]:
            own = [independent_coordinates(side, contrast=contrast) for side in (x, y)]
            candidates.append((name, own[0], own[1]))
    values = [float(gaussian_mi(own_x, own_y)) for _, own_x, own_y in candidates]
    error = GaussianMI(copula=True).standard_error(x, y)
    best = max(range(len(values)), key=values.__getitem__)
    best = best if values[best] - values[0] > 2 * error else 0
    return _Sides(*candidates[best], values[best], scores_x, scores_y, values[0], error)


def _repeats(x: Tensor, y: Tensor) -> bool:
    """Return whether rows are each other's copies, which neighbours take for dependence."""
    distinct: Tensor = torch.unique(torch.cat([x, y], dim=1), dim=0)
    return distinct.shape[0] < (1 - _MOST_REPEATED) * x.shape[0]


def _for_neighbours(sides: _Sides, learned: bool) -> tuple[Tensor, Tensor]:
    """Return all columns, or the correlated canonical pairs where columns are many and these are few."""
    width = sides.x.shape[1] + sides.y.shape[1]
    # Where a critic has learned, dependence stands outside the correlated pairs as well.
    many = width > (WIDEST_FOR_KSG if learned else WIDEST_FOR_WEIGHTED)
    if many and sides.x.shape[0] >= _ROWS_A_COLUMN_FOR_PAIRS * width:
        found = leading_pairs(sides.x, sides.y)
        if found is not None:
            return found
    return sides.scores_x, sides.scores_y


def _critic_reading(sides: _Sides, pieces: OutOfFold, codes: Tensor | None) -> _First:
    difference = pieces.held - pieces.anchor
    gain, gain_error = float(difference.mean()), clustered_standard_error(difference, codes)
    learned = gain > max(_SMALLEST_GAIN, 2 * gain_error)
    held, fitted = float(pieces.held.mean()), float(pieces.fitted.mean())
    parts = {"held": held, "fit": fitted}
    # Where the sides are not jointly Gaussian, the closed form can exceed what its ratio shows; near the ceiling of a
    # block the ratio is too low instead.
    allowed = max(_DISAGREEMENT, _DISAGREEMENT_SHARE * sides.value)
    shown = sides.value < _most_shown(pieces)
    overstated = sides.value - max(held, fitted) > allowed and shown
    learned = learned and (shown or max(held, fitted) > sides.value)
    if not learned and not overstated:
        gaussian = GaussianMI(copula=True).standard_error(sides.x, sides.y, groups=None)
        error = gaussian if codes is None else max(gaussian, clustered_standard_error(pieces.anchor, codes))
        return _First(sides.value, error, False, gain, gain_error, parts)
    value = (held + fitted) / 2
    unseen = _CRITICS_OWN_ERROR * (value - sides.value)
    error = math.hypot(clustered_standard_error(pieces.held, codes), (fitted - held) / 4, unseen)
    return _First(value, error, True, gain, gain_error, parts)


def _most_shown(pieces: OutOfFold) -> float:
    """Return the information above which the ratios of a block of rows read too low."""
    return math.log(pieces.block) - _ROOM_BELOW_CEILING


def _note(sides: _Sides, first: _First, recipe: str, parts: dict[str, float]) -> str:
    said = f"Gaussian copula of {sides.name} {sides.value:.3f}"
    if first.learned:
        said += f", the {recipe} critic adds {first.gain:.3f} ± {first.gain_error:.3f} on held-out rows"
    else:
        said += ", a critic adds nothing on held-out rows"
    if "with neighbours" in parts:
        said += f", neighbours make it {parts['with neighbours']:.3f}"
    return said


def _own_checks(value: float, parts: dict[str, float], residual: Residual | None) -> tuple[Check, ...]:
    allowed = max(_DISAGREEMENT, _DISAGREEMENT_SHARE * abs(value))
    gap = parts["fit"] - parts["held"]
    found = [
        _agreement(
            "fit and held-out rows agree",
            gap,
            allowed,
            f"The critic gives {parts['fit']:.3f} on the rows it was fitted to and {parts['held']:.3f} on others",
            "it needs more rows, and the truth may lie well above",
        )
    ]
    turned = parts["coordinates"] - parts["gaussian copula"]
    found.append(
        _agreement(
            "coordinates",
            turned,
            allowed,
            f"The Gaussian copula reads {parts['gaussian copula']:.3f} in the columns as they are and "
            f"{parts['coordinates']:.3f} in the coordinates chosen",
            "the dependence is folded, and more of it may be hidden",
        )
    )
    if residual is None:
        return tuple(found)
    first = (parts["held"] + parts["fit"]) / 2
    apart = abs(parts["with neighbours"] - first)
    found.append(
        _agreement(
            "neighbours and critic agree",
            apart,
            allowed + 2 * residual.error,
            f"Neighbours make it {parts['with neighbours']:.3f}, the critic alone {first:.3f}",
            "one of them is far off",
        )
    )
    return tuple(found)


def _gaussian_sides(sides: _Sides, first: _First, residual: Residual | None) -> Check:
    """Ask whether the sides are Gaussian, where the value rests on that or only the critic looks beyond it."""
    name = "sides are Gaussian"
    if first.learned and residual is not None:
        return Check(name, "not applicable", None, None, "The value does not rest on the Gaussian copula alone.")
    figures = [(_largest_cross_moment(side), _chance_moment(*side.shape)) for side in (sides.x, sides.y)]
    figure, chance = max(figures, key=lambda found: found[0] / found[1])
    threshold = _MOMENTS_BEYOND_CHANCE * chance
    said = (
        f"The largest third or fourth moment between columns of one side is {figure:.3f}, and chance makes {chance:.3f}"
    )
    if figure > threshold:
        told = f"{said}: the side is bent, so the Gaussian copula may miss dependence that so few rows do not show."
        return Check(name, "warn", figure, threshold, told)
    return Check(name, "pass", figure, threshold, f"{said}.")


def _largest_cross_moment(z: Tensor) -> float:
    """Return the largest correlation of a square with another column, or with its square beyond the Gaussian law's."""
    if z.shape[1] < 2:
        return 0.0
    z = (z - z.mean(0)) / z.std(0)
    squares = (z.square() - 1) / z.square().std(0)
    third = squares.T @ z / z.shape[0]
    fourth = squares.T @ squares / z.shape[0] - (z.T @ z / z.shape[0]).square()
    others = ~torch.eye(z.shape[1], dtype=torch.bool, device=z.device)
    return float(torch.maximum(third[others].abs().max(), fourth[others].abs().max()))


def _chance_moment(n: int, d: int) -> float:
    """Return about the largest of ``2 d²`` correlations of independent rows; the tails of a few are longer."""
    return math.sqrt(2 * math.log(2 * max(d, _FEW_MOMENTS) ** 2) / n)


def _agreement(name: str, figure: float, allowed: float, said: str, meaning: str) -> Check:
    if figure > allowed:
        return Check(name, "warn", figure, allowed, f"{said}: {meaning}.")
    return Check(name, "pass", figure, allowed, f"{said}.")
