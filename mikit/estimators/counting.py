"""The check that correlated channels of the teacher are counted once."""

from __future__ import annotations

import torch
from torch import Tensor

from mikit.measurement import Check

__all__ = ["counted_once"]

NAME = "channels counted once"


def counted_once(value: float, target: Tensor, residual: Tensor, *, positions: int, jointly: bool) -> Check:
    """Return what summing channels as if independent adds: warns above a tenth of the value, fails from 30 %.

    The sum exceeds the difference of joint Gaussian entropies by the total correlation of the teacher's channels less
    that of the residuals. Positions of a map are counted as samples of one law.

    Args:
        value: The difference of entropies.
        target: The teacher's live channels, ``(n, c)``.
        residual: What the prediction leaves of them, ``(n, c)``.
        positions: Positions of a map, 1 for rows.
        jointly: Whether channels are read together, under a full covariance.
    """
    if target.shape[0] < 5 * target.shape[1]:
        said = "trust a covariance of all channels" if jointly else "say how often correlated channels are counted"
        return Check(NAME, "warn", None, None, f"Too few rows to {said}.")
    if jointly:
        if positions > 1:
            return Check(NAME, "warn", None, None, "Channels are read jointly; positions are summed as if independent.")
        return Check(NAME, "pass", 0.0, None, "Channels are read jointly, so correlated ones are counted once.")
    surplus = (_total_correlation(target.double()) - _total_correlation(residual.double())) * positions
    said = f"Correlated teacher channels are counted as if independent, which adds {surplus:.3f} nats"
    threshold = max(0.05, 0.1 * abs(value))
    if abs(surplus) > max(0.05, 0.3 * abs(value)):
        advice = ' Read them jointly, with variance="full".'
        return Check(NAME, "fail", surplus, 0.3 * abs(value), f"{said} to the value {value:.3f}.{advice}")
    if abs(surplus) > threshold or positions > 1:
        extra = "; positions are summed as well" if positions > 1 else ""
        return Check(NAME, "warn", surplus, threshold, f"{said}{extra}.")
    return Check(NAME, "pass", surplus, threshold, f"{said}.")


def _total_correlation(rows: Tensor) -> float:
    """Return the Gaussian total correlation of the columns, ``-½ log|R|``, in nats."""
    centred = rows - rows.mean(0)
    scaled = centred / centred.square().mean(0).sqrt().clamp(min=torch.finfo(rows.dtype).tiny)
    correlation = scaled.T @ scaled / rows.shape[0]
    floor = 1e-6 * torch.eye(correlation.shape[0], dtype=rows.dtype, device=rows.device)
    return float(-0.5 * torch.logdet(correlation + floor))
