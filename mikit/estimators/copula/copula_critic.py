"""The Gaussian copula, a cross-fitted critic for what it misses, and nearest neighbors for what the critic misses."""

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
    neighbor_residual,
)
from mikit.functional.gaussian.canonical import gaussian_mi, rank_gaussianise

__all__ = ["CopulaCritic"]

_CONTRASTS = (("skew", "skewed components"), ("tails", "components by their tails"))
# With fewer rows, the canonical pairs overfit them and cannot be compared with pairs drawn from a model.
_ROWS_A_COLUMN_FOR_PAIRS = 100
_MOST_REPEATED = 0.01
_WIDEST_FOR_BOTH, _WIDEST_FOR_COMPONENTS = 32, 128
_SMALLEST_GAIN = 0.002
# Standard errors of the nearest-neighbor comparison that its difference must exceed, from a trained critic and from the
# copula.
_CLEAR, _CLEARER = 1.0, 3.0
# Relative error of what a critic adds to the copula. With it, nine in ten intervals contained the true value on the
# development distributions; without it, three in four where a critic had learned.
_CRITIC_ERROR = 0.04
_DISAGREEMENT, _DISAGREEMENT_SHARE = 0.1, 0.2
_ROOM_BELOW_CEILING = 3.0
# Factor by which the largest moment must exceed what chance produces in Gaussian sides to count as evidence against
# them.
_MOMENTS_BEYOND_CHANCE, _FEW_MOMENTS = 1.5, 6
_FEWEST_ROWS = 40


@final
class CopulaCritic(Estimator):
    r"""Mutual information of samples ``(n, d_x)``, ``(n, d_y)``: Gaussian copula, critic, nearest neighbors.

    Formula: three estimates on one sample, each for what the one before misses.

    1. The information :math:`G` of the Gaussian copula, unbiased, in the coordinates (normal scores, or those of
       independent components) in which it is largest. If both sides are jointly Gaussian in them, it cannot exceed the
       true value.
    2. A critic that starts as the copula's log density ratio. It also sees how far each sample lies from the center of
       the original columns (:func:`~mikit.functional.copula.coordinates.log_radius`). It is cross-fitted over 3 to 5
       folds by symmetric InfoNCE; a pilot on the first fold chooses among three recipes by samples that are neither
       trained nor reported on. Its scores of all pairs of a fold are balanced to a distribution with uniform marginals
       (:func:`~mikit.functional.copula.balancing.balanced_log_ratios`). If the balanced ratio of held-out pairs exceeds
       that of the copula by more than two standard errors, or :math:`G` exceeds what its own ratio gives on both
       held-out and fitted samples, the estimate is the mean of the values on held-out and on fitted samples, of which
       one is too low and one too high by about the same amount. Otherwise it is :math:`G`.
    3. Three pairings are drawn from the critic's distribution
       (:func:`~mikit.functional.copula.balancing.drawn_pairing`). Nearest neighbors compare them with the data, and
       their biases cancel as far as the two are alike: :math:`\mathbb E_q[r] + \hat I_{NN}(\text{data}) - \hat
       I_{NN}(\text{drawn})`. Up to 8 columns in total weighted Kozachenko-Leonenko entropies are used, up to 20 KSG.
       With more columns, at most four correlated canonical pairs and 100 samples per column, those pairs are used
       (already above 8 columns if no critic has learned). The value moves from the second estimate to this one as far
       as their difference exceeds the error of the comparison. Within 3 nats of the ceiling of the scores, the
       logarithm of the rows of a block, the drawn pairing is too loose and nearest neighbors are not used.

    Args:
        seed: Seed of folds, critics and draws.

    Shapes:
        ``x`` is ``(n, d_x)``, ``y`` is ``(n, d_y)``, with paired samples.

    Unit: nats.

    Kind: estimate, neither an upper nor a lower bound; never clipped. The part ``held`` is of the kind of a lower
    bound.

    Raises:
        TypeError: If called as a loss.
        InputError: If the samples do not match, are fewer than 40 or than twice the columns, or if an exact linear
            relation makes the information infinite.

    Checks:
        Whether the critic's values on fitted and held-out samples agree, whether nearest neighbors agree with the
        critic, and whether the value depends on the choice of coordinates: each warns from a fifth of the value and 0.1
        nats. Whether the sides are Gaussian, if the value depends on that: warns from 1.5 times the moments due to
        chance.

    Cost:
        Three to seven trained critics and ``O(n²)`` scores in blocks of up to 4,096 rows: 5 to 10 seconds for 10,000
        samples of Gaussian-copula data on one thread, up to a minute where the critic finds more.

    Pitfalls:
        Underestimates dependence that is neither near-Gaussian in some coordinates nor smooth in few columns, such as
        that produced by networks of several layers in more than eight columns: this many samples do not show it.
        Samples that repeat one item must be named in ``groups``; nearest neighbors are not used then, nor if one sample
        in a hundred is a copy of another. The error includes sampling, the disagreement of the estimates, and 4 % of
        what the critic adds to the copula; it is no guarantee against bias.

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
        """Raise ``TypeError``: there is no loss to minimize."""
        raise TypeError(
            "CopulaCritic has no gradient: it is fitted to the sample. Train with InfoNCE, JSD or VID instead, and "
            "report CopulaCritic with mikit.measure."
        )

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the information in nats, never clipped."""
        return torch.tensor(self.read(x, y).value, dtype=torch.float64, device=x.device)

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float | None:
        """Return the standard error of :meth:`read`, at the cost of another pass."""
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
        first = _critic_estimate(sides, pieces, None if groups is None else recoded(groups[pieces.rows]))
        drawn = float(pieces.drawn.mean())
        value, error = first.value, first.error
        parts = {
            "gaussian copula": sides.normal_scores_value,
            "coordinates": sides.value,
            **first.parts,
            "drawn": drawn,
        }
        residual = None
        # Above what the scores of a block can show, a pairing drawn from them is too loose to compare the data with.
        if groups is None and first.value < _most_shown(pieces) and not _repeats(x, y):
            residual = neighbor_residual(*_for_neighbors(sides, first.learned), pieces.rows, pieces.partners)
        if residual is not None:
            second = drawn + residual.value
            difference = second - first.value
            # Shrink the correction by its own error (as the positive-part James-Stein estimator does): within the error
            # nothing changes, and far beyond it the nearest-neighbor value is taken. A trained critic leaves less to
            # find, so a smaller difference is believed.
            limit = (_CLEAR if first.learned else _CLEARER) * residual.error
            share = max(0.0, 1 - (limit / difference) ** 2) if difference else 0.0
            value += share * difference
            error = math.hypot(error, share * residual.error, (1 - share) * difference / 4)
            parts["with neighbours"] = second
        return Reading(
            value=value,
            standard_error=error,
            checks=(*_agreement_checks(value, parts, residual), _gaussian_sides(sides, first, residual)),
            parts=parts,
            note=_note(sides, first, pieces.recipe, parts),
        )


@dataclass(frozen=True)
class _Sides:
    """Both sides in the chosen coordinates, and in normal scores."""

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
    """The estimate of copula and critic."""

    value: float
    error: float
    learned: bool
    gain: float
    gain_error: float
    parts: dict[str, float]


def _varying(rows: Tensor) -> Tensor:
    return rows[:, (rows != rows[:1]).any(0)]


def _chosen_sides(x: Tensor, y: Tensor) -> _Sides:
    """Choose the coordinates in which the Gaussian copula's estimate is largest."""
    scores_x, scores_y = rank_gaussianise(x), rank_gaussianise(y)
    candidates = [("normal scores", scores_x, scores_y)]
    width = x.shape[1] + y.shape[1]
    if width > 2 and max(x.shape[1], y.shape[1]) <= _WIDEST_FOR_COMPONENTS and x.shape[0] >= 20 * width:
        for contrast, name in _CONTRASTS if max(x.shape[1], y.shape[1]) <= _WIDEST_FOR_BOTH else _CONTRASTS[:1]:
            turned_x, turned_y = (independent_coordinates(side, contrast=contrast) for side in (x, y))
            candidates.append((name, turned_x, turned_y))
    # Maps of one side alone keep the information, and where the sides are jointly Gaussian the copula's estimate cannot
    # exceed it. So the largest of several estimates is the best one, if it is larger by more than sampling error.
    values = [float(gaussian_mi(side_x, side_y)) for _, side_x, side_y in candidates]
    error = GaussianMI(copula=True).standard_error(x, y)
    best = max(range(len(values)), key=values.__getitem__)
    best = best if values[best] - values[0] > 2 * error else 0
    return _Sides(*candidates[best], values[best], scores_x, scores_y, values[0], error)


def _repeats(x: Tensor, y: Tensor) -> bool:
    """Return whether samples are copies of each other, which nearest neighbors take for dependence."""
    distinct: Tensor = torch.unique(torch.cat([x, y], dim=1), dim=0)
    return distinct.shape[0] < (1 - _MOST_REPEATED) * x.shape[0]


def _for_neighbors(sides: _Sides, learned: bool) -> tuple[Tensor, Tensor]:
    """Return all columns, or the correlated canonical pairs if there are many columns and few such pairs."""
    width = sides.x.shape[1] + sides.y.shape[1]
    # Where a critic has learned, there is dependence outside the correlated pairs as well.
    many = width > (WIDEST_FOR_KSG if learned else WIDEST_FOR_WEIGHTED)
    if many and sides.x.shape[0] >= _ROWS_A_COLUMN_FOR_PAIRS * width:
        found = leading_pairs(sides.x, sides.y)
        if found is not None:
            return found
    return sides.scores_x, sides.scores_y


def _critic_estimate(sides: _Sides, pieces: OutOfFold, codes: Tensor | None) -> _First:
    difference = pieces.held - pieces.anchor
    gain, gain_error = float(difference.mean()), clustered_standard_error(difference, codes)
    learned = gain > max(_SMALLEST_GAIN, 2 * gain_error)
    held, fitted = float(pieces.held.mean()), float(pieces.fitted.mean())
    parts = {"held": held, "fit": fitted}
    # If the sides are not jointly Gaussian, the closed form can exceed the mean of its own ratio. Near the ceiling of a
    # block the ratio is too low instead, and says nothing against the closed form.
    allowed = max(_DISAGREEMENT, _DISAGREEMENT_SHARE * sides.value)
    shown = sides.value < _most_shown(pieces)
    overstated = sides.value - max(held, fitted) > allowed and shown
    learned = learned and (shown or max(held, fitted) > sides.value)
    if not learned and not overstated:
        gaussian = GaussianMI(copula=True).standard_error(sides.x, sides.y, groups=None)
        error = gaussian if codes is None else max(gaussian, clustered_standard_error(pieces.anchor, codes))
        return _First(sides.value, error, False, gain, gain_error, parts)
    value = (held + fitted) / 2
    unseen = _CRITIC_ERROR * (value - sides.value)
    error = math.hypot(clustered_standard_error(pieces.held, codes), (fitted - held) / 4, unseen)
    return _First(value, error, True, gain, gain_error, parts)


def _most_shown(pieces: OutOfFold) -> float:
    """Return the information above which the ratios of a block of samples are too low."""
    return math.log(pieces.block) - _ROOM_BELOW_CEILING


def _note(sides: _Sides, first: _First, recipe: str, parts: dict[str, float]) -> str:
    note = f"Gaussian copula of {sides.name} {sides.value:.3f}"
    if first.learned:
        note += f", the {recipe} critic adds {first.gain:.3f} ± {first.gain_error:.3f} on held-out samples"
    else:
        note += ", a critic adds nothing on held-out samples"
    if "with neighbours" in parts:
        note += f", with nearest neighbors {parts['with neighbours']:.3f}"
    return note


def _agreement_checks(value: float, parts: dict[str, float], residual: Residual | None) -> tuple[Check, ...]:
    allowed = max(_DISAGREEMENT, _DISAGREEMENT_SHARE * abs(value))
    found = [
        _agreement(
            "fit and held-out rows agree",
            parts["fit"] - parts["held"],
            allowed,
            f"The critic gives {parts['fit']:.3f} on the samples it was fitted to and {parts['held']:.3f} on others",
            "it needs more samples, and the true value may be well above",
        ),
        _agreement(
            "coordinates",
            parts["coordinates"] - parts["gaussian copula"],
            allowed,
            f"The Gaussian copula gives {parts['gaussian copula']:.3f} in the original features and "
            f"{parts['coordinates']:.3f} in the chosen coordinates",
            "the dependence is nonlinear in the original features, and more of it may remain undetected",
        ),
    ]
    if residual is not None:
        first = (parts["held"] + parts["fit"]) / 2
        found.append(
            _agreement(
                "neighbours and critic agree",
                abs(parts["with neighbours"] - first),
                allowed + 2 * residual.error,
                f"With nearest neighbors the value is {parts['with neighbours']:.3f}, from the critic alone "
                f"{first:.3f}",
                "one of them is far off",
            )
        )
    return tuple(found)


def _agreement(name: str, figure: float, allowed: float, values: str, meaning: str) -> Check:
    return Check.judged(name, figure, passed=f"{values}.", otherwise=f"{values}: {meaning}.", warn=allowed)


def _gaussian_sides(sides: _Sides, first: _First, residual: Residual | None) -> Check:
    """Check whether the sides are Gaussian, if the value depends on that or only the critic looks beyond it."""
    name = "sides are Gaussian"
    if first.learned and residual is not None:
        return Check.not_applicable(name, "The value does not depend on the Gaussian copula alone.")
    figures = [(_largest_cross_moment(side), _chance_moment(*side.shape)) for side in (sides.x, sides.y)]
    figure, chance = max(figures, key=lambda found: found[0] / found[1])
    moments = (
        f"The largest third or fourth moment between features of one side is {figure:.3f}; chance alone gives "
        f"{chance:.3f}"
    )
    return Check.judged(
        name,
        figure,
        passed=f"{moments}.",
        otherwise=f"{moments}: the side is not Gaussian, so the Gaussian copula may miss dependence that this many "
        "samples do not show.",
        warn=_MOMENTS_BEYOND_CHANCE * chance,
    )


def _largest_cross_moment(z: Tensor) -> float:
    """Return the largest correlation of a square with another column, or of two squares beyond the Gaussian value."""
    if z.shape[1] < 2:
        return 0.0
    z = (z - z.mean(0)) / z.std(0)
    squares = (z.square() - 1) / z.square().std(0)
    third = squares.T @ z / z.shape[0]
    fourth = squares.T @ squares / z.shape[0] - (z.T @ z / z.shape[0]).square()
    others = ~torch.eye(z.shape[1], dtype=torch.bool, device=z.device)
    return float(torch.maximum(third[others].abs().max(), fourth[others].abs().max()))


def _chance_moment(n: int, d: int) -> float:
    """Return about the largest of ``2 d²`` correlations of independent samples; few have longer tails."""
    return math.sqrt(2 * math.log(2 * max(d, _FEW_MOMENTS) ** 2) / n)
