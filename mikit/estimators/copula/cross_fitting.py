"""Cross-fitting: a critic is fitted on all folds but one and evaluated on that one, in turn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from mikit.core.rows import recoded, split_folds
from mikit.estimators.copula.critic import RECIPES, AnchoredCritic, train_anchored
from mikit.functional.copula.balancing import balanced_log_ratios, drawn_pairing
from mikit.functional.copula.coordinates import AnchoredCoordinates, anchored_coordinates

__all__ = ["OutOfFold", "cross_fit"]

_LARGEST_BLOCK = 4096  # rows of one score matrix
# Up to this many columns of both sides the broad critic is not tried: nearest neighbors find what it would add.
_FEW_COLUMNS = 8
# Gains of the small critic over the Gaussian copula, in nats, above which the broad and the deep one are tried.
_SMALLEST_GAIN, _GAIN_WORTH_MORE = 0.002, 0.02
_ROWS_FOR_LARGE_CRITICS = 2000
_FEWEST_SELECT_ROWS = 50
# Pairings drawn from the critic's distribution; more of them reduce the noise of the drawn sample.
_DRAWS = 3
_FEWEST_SWEEPS, _MOST_SWEEPS = 300, 3000


@final
@dataclass(frozen=True)
class OutOfFold:
    """The values of every row when its fold was held out, in nats, one fold after the other.

    Pairs are scored by balanced log ratios. No ratio exceeds the logarithm of ``block``.
    """

    held: Tensor  # (n,), ratios of the observed pairs.
    anchor: Tensor  # (n,), those of the Gaussian part alone.
    drawn: Tensor  # (n,), those of pairs drawn from the critic's distribution, averaged over the draws.
    fitted: Tensor  # Those of fitted pairs, as many as are held out in a fold.
    rows: Tensor  # (n,), row numbers.
    partners: Tensor  # (n, k), the row of y drawn for each, in each of k draws.
    recipe: str
    block: int  # Smallest number of rows whose scores were balanced together.


def cross_fit(
    x: Tensor,
    y: Tensor,
    *,
    groups: Tensor | None,
    generator: torch.Generator,
    beside: tuple[Tensor, Tensor] | None = None,
) -> OutOfFold:
    """Fit anchored critics on all folds but one and evaluate them on that one: 3 folds from 8,000 rows, up to 5 below.

    ``x (n, d_x)`` and ``y (n, d_y)`` contain normal scores. Rows of one group stay in one part. ``generator`` seeds
    splits, critics and draws; ``beside`` is that of :func:`~mikit.functional.copula.coordinates.anchored_coordinates`.
    """
    n = x.shape[0]
    folds = 3 if n >= 8000 else 4 if n >= 2000 else 5
    parts = split_folds(n, folds, groups=groups, generator=generator)
    found: list[tuple[Tensor, ...]] = []
    recipe = ""
    for turn, report in enumerate(parts):
        others = torch.cat([part for other, part in enumerate(parts) if other != turn])
        select, fit = _select_and_fit(others, groups, generator)
        report, select, fit = (rows.to(x.device) for rows in (report, select, fit))
        coordinates = anchored_coordinates(x, y, fit, beside=beside)
        # The first fold is the pilot: its select rows, which neither train a critic nor report, choose among the
        # recipes. With one choice for all folds, the other recipes are trained only once.
        if turn == 0:
            recipe, critic = _pilot(coordinates, fit, select, generator)
        else:
            critic = train_anchored(coordinates, fit, select, RECIPES[recipe], generator=generator).critic
        found.append(_evaluated(critic, coordinates, report, fit, generator))
    held, anchor, drawn, fitted, rows, partners = (torch.cat(pieces) for pieces in zip(*found, strict=True))
    block = min(part.shape[0] // _blocks_of(part) for part in parts)
    return OutOfFold(held, anchor, drawn, fitted, rows, partners, recipe, block)


def _select_and_fit(rows: Tensor, groups: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if groups is not None:
        inner = split_folds(rows.shape[0], 8, groups=recoded(groups.cpu()[rows]), generator=generator)
        return rows[inner[0]], rows[torch.cat(inner[1:])]
    rows = rows[torch.randperm(rows.shape[0], generator=generator)]
    count = min(max(_FEWEST_SELECT_ROWS, rows.shape[0] // 8), rows.shape[0] // 4)
    return rows[:count], rows[count:]


def _pilot(
    coordinates: AnchoredCoordinates, fit: Tensor, select: Tensor, generator: torch.Generator
) -> tuple[str, AnchoredCritic]:
    small = train_anchored(coordinates, fit, select, RECIPES["small"], generator=generator)
    tried = {"small": small}
    if fit.shape[0] >= _ROWS_FOR_LARGE_CRITICS and small.gain > _SMALLEST_GAIN:
        for name in _worth_trying(small.gain, coordinates.x.shape[1] + coordinates.y.shape[1]):
            tried[name] = train_anchored(coordinates, fit, select, RECIPES[name], generator=generator)
    best = max(tried, key=lambda name: tried[name].gain)
    return best, tried[best].critic


def _worth_trying(gain: float, columns: int) -> tuple[str, ...]:
    if gain <= _GAIN_WORTH_MORE:
        return ("broad",)
    return ("deep",) if columns <= _FEW_COLUMNS else ("broad", "deep")


@torch.no_grad()
def _evaluated(
    critic: AnchoredCritic, coordinates: AnchoredCoordinates, report: Tensor, fit: Tensor, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Return the fields of :class:`OutOfFold` for one fold, whose rows are ``report``."""
    held, anchor, drawn, partners = [], [], [], []
    # In blocks, so that the score matrix of all pairs fits in memory. Each block is balanced on its own, which limits a
    # ratio to the logarithm of the block's rows.
    for block in report.tensor_split(_blocks_of(report)):
        ratios = balanced_log_ratios(_scores(critic, coordinates, block))
        observed = ratios.diagonal().double()
        sweeps = _sweeps_for(float(observed.mean()))
        pairings = torch.stack(
            [drawn_pairing(ratios, generator=generator, sweeps=sweeps) for _ in range(_DRAWS)], dim=1
        )
        held.append(observed)
        drawn.append(ratios.gather(1, pairings).double().mean(1))
        partners.append(block[pairings])
        if critic.residual:
            ratios = balanced_log_ratios(_anchor_scores(coordinates, block))
        anchor.append(ratios.diagonal().double())
    # A critic overfits, so held-out ratios are too low and those of fitted pairs too high, by about the same amount:
    # the caller takes their mean. As many fitted rows as are held out, since the limit of the ratios depends on the
    # number.
    seen = fit[: min(report.shape[0], _LARGEST_BLOCK)]
    fitted = balanced_log_ratios(_scores(critic, coordinates, seen)).diagonal().double()
    return torch.cat(held), torch.cat(anchor), torch.cat(drawn), fitted, report, torch.cat(partners)


def _blocks_of(rows: Tensor) -> int:
    return math.ceil(rows.shape[0] / _LARGEST_BLOCK)


def _sweeps_for(information: float) -> int:
    """Return a number of sweeps that moves every row about fifty times: strong dependence makes swaps rare."""
    return round(min(_FEWEST_SWEEPS * math.exp(max(information, 0.0)), _MOST_SWEEPS))


def _scores(critic: AnchoredCritic, coordinates: AnchoredCoordinates, rows: Tensor) -> Tensor:
    u, v = critic.embed(coordinates, rows)
    return u @ v.T


def _anchor_scores(coordinates: AnchoredCoordinates, rows: Tensor) -> Tensor:
    """Return the log density ratios of all pairs under the Gaussian distribution, up to a constant."""
    rho = coordinates.correlations.to(coordinates.x.dtype)
    a, b = (side[rows, : rho.shape[0]] for side in (coordinates.x, coordinates.y))
    weight = rho / (1 - rho.square())
    quadratic = rho * weight / 2
    return (a * weight) @ b.T - (a.square() @ quadratic)[:, None] - (b.square() @ quadratic)[None, :]
