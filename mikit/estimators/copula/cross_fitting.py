"""A critic fitted on some folds and read on the one left out, in turn, so that every row reports once."""

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

_LARGEST_BLOCK = 4096
# Columns of both sides up to which a pilot of the broad critic is not worth its time: neighbours see the rest.
_FEW_COLUMNS = 8
_SMALLEST_GAIN, _GAIN_WORTH_MORE = 0.002, 0.02
_ROWS_FOR_LARGE_CRITICS = 2000
_FEWEST_SELECT_ROWS = 50
# Pairings drawn from the critic's law: the noise of the drawn sample counts once in the data's and once in this.
_DRAWS = 3
_FEWEST_SWEEPS, _MOST_SWEEPS = 300, 3000


@final
@dataclass(frozen=True)
class OutOfFold:
    """What every row got when its fold reported, fold after fold.

    Attributes:
        held: ``(n,)``, balanced log ratios of the pairs, in nats.
        anchor: ``(n,)``, those of the Gaussian part alone.
        drawn: ``(n,)``, those of pairs drawn from the critic's law, on average over the draws.
        fitted: Those of pairs that were fitted to, as many as report in a fold.
        rows: ``(n,)``, whose turn it was.
        partners: ``(n, k)``, the row of ``y`` that was drawn for each, in each of ``k`` draws.
        recipe: Of the critic.
        block: Fewest rows whose scores were balanced together; no ratio exceeds its logarithm.
    """

    held: Tensor
    anchor: Tensor
    drawn: Tensor
    fitted: Tensor
    rows: Tensor
    partners: Tensor
    recipe: str
    block: int


def cross_fit(
    x: Tensor,
    y: Tensor,
    *,
    groups: Tensor | None,
    generator: torch.Generator,
    beside: tuple[Tensor, Tensor] | None = None,
) -> OutOfFold:
    """Fit anchored critics on all folds but one and read them on that one: 3 folds from 8,000 rows, up to 5 below.

    The first fold is the pilot: it tries the recipes and keeps the one that does best on its select rows, which neither
    train nor report.

    Args:
        x: ``(n, d_x)``, columns with normal scores.
        y: ``(n, d_y)``.
        groups: ``(n,)``; rows of one group stay in one part.
        generator: Where splits, starts and draws come from.
        beside: As :func:`~mikit.functional.copula.coordinates.anchored_coordinates` takes it.

    Returns:
        What every row got.
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
        if turn == 0:
            recipe, critic = _pilot(coordinates, fit, select, generator)
        else:
            critic = train_anchored(coordinates, fit, select, RECIPES[recipe], generator=generator).critic
        found.append(_read(critic, coordinates, report, fit, generator))
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
def _read(
    critic: AnchoredCritic, coordinates: AnchoredCoordinates, report: Tensor, fit: Tensor, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Return what the rows of a fold get, in blocks, so that no score matrix is larger than a block's."""
    held, anchor, drawn, partners = [], [], [], []
    for block in report.tensor_split(_blocks_of(report)):
        ratios = balanced_log_ratios(_scores(critic, coordinates, block))
        own = ratios.diagonal().double()
        sweeps = _sweeps_for(float(own.mean()))
        pairings = torch.stack(
            [drawn_pairing(ratios, generator=generator, sweeps=sweeps) for _ in range(_DRAWS)], dim=1
        )
        held.append(own)
        drawn.append(ratios.gather(1, pairings).double().mean(1))
        partners.append(block[pairings])
        if critic.residual:
            ratios = balanced_log_ratios(_anchor_scores(coordinates, block))
        anchor.append(ratios.diagonal().double())
    seen = fit[: min(report.shape[0], _LARGEST_BLOCK)]
    fitted = balanced_log_ratios(_scores(critic, coordinates, seen)).diagonal().double()
    return torch.cat(held), torch.cat(anchor), torch.cat(drawn), fitted, report, torch.cat(partners)


def _blocks_of(rows: Tensor) -> int:
    return math.ceil(rows.shape[0] / _LARGEST_BLOCK)


def _sweeps_for(information: float) -> int:
    """Return how many sweeps move every row some fifty times: the stronger the dependence, the rarer is a swap."""
    return round(min(_FEWEST_SWEEPS * math.exp(max(information, 0.0)), _MOST_SWEEPS))


def _scores(critic: AnchoredCritic, coordinates: AnchoredCoordinates, rows: Tensor) -> Tensor:
    u, v = critic.embed(coordinates, rows)
    return u @ v.T


def _anchor_scores(coordinates: AnchoredCoordinates, rows: Tensor) -> Tensor:
    """Return the Gaussian law's log density ratio of all pairs, up to a constant."""
    rho = coordinates.correlations.to(coordinates.x.dtype)
    a, b = (side[rows, : rho.shape[0]] for side in (coordinates.x, coordinates.y))
    weight = rho / (1 - rho.square())
    own = rho * weight / 2
    return (a * weight) @ b.T - (a.square() @ own)[:, None] - (b.square() @ own)[None, :]
