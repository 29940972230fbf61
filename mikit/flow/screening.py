"""Coarse to fine in the layer grid: a share is read for every pair, and says where a costly instrument reads."""

from __future__ import annotations

from collections.abc import Mapping

from mikit.flow.snapshots import Place, Plan, Snapshot, depth_match

__all__ = ["screened_partners", "screening_level"]

_USUAL_NOISE = 0.3


def screening_level(noise: tuple[float, ...]) -> float:
    """Return the noise level whose share decides: the one nearest to 0.3.

    Example:
        >>> screening_level((0.1, 0.3, 1.0)), screening_level((2.0, 1.0))
        (0.3, 1.0)
    """
    return min(noise, key=lambda level: abs(level - _USUAL_NOISE))


def screened_partners(plan: Plan, measured: Mapping[Place, Snapshot]) -> dict[tuple[int, str], tuple[str, ...]]:
    """Return by run and student layer the teacher layers that a costly instrument reads, at every phase.

    They are the one at the same relative depth, and the one of which the student layer recovers the largest share at
    its last phase that was measured. One choice for all phases, so that a pair has a curve and a floor.
    """
    found: dict[tuple[int, str], tuple[str, ...]] = {}
    names = plan.runs[0].layers
    level = plan.instruments.noise.index(screening_level(plan.instruments.noise))
    for position, run in enumerate(plan.runs[1:], 1):
        for index, layer in enumerate(run.layers):
            chosen = [names[depth_match(index, len(run.layers), len(names))]]
            known = [phase for phase in run.measured if (position, phase, layer) in measured]
            if known:
                pairs = measured[position, known[-1], layer].pairs
                shares = {name: pair.recoveries[level].share for name, pair in pairs.items()}
                shares = {name: share for name, share in shares.items() if share == share}  # a dead layer has none
                if shares:
                    chosen.append(max(shares, key=lambda name: shares[name]))
            found[position, layer] = tuple(name for name in names if name in chosen)
    return found
