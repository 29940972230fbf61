"""The Gaussian law that VID gives to what its head leaves of the teacher: variances per channel, or a covariance.

``prediction`` and ``target`` are in the head's units, rows ``(n, c)`` or maps ``(n, c, h, w)``; ``live`` says which of
the channels vary at all.
"""

from __future__ import annotations

import abc
import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from mikit.core.measurement import Check
from mikit.functional.vid.full_covariance import joint_difference_of_entropies, joint_gaussian_nll
from mikit.functional.vid.residuals import difference_of_entropies, gaussian_nll, moment_nll, residual_variance

__all__ = [
    "VARIANCES",
    "ChannelLaw",
    "ClosedVariances",
    "FullCovariance",
    "LearnedVariances",
    "ResidualLaw",
    "counted_once",
    "residual_law",
]


VARIANCES = ("learned", "closed", "full")
# Weight of the newest batch in the closed variances.
NEWEST = 0.1
# Directions of the teacher that vary less than this share of the most variable one are left out of a full covariance.
SMALLEST_SHARE = 1e-6
_LOG_2PI = math.log(2 * math.pi)


class ResidualLaw(nn.Module, abc.ABC):
    """A centred Gaussian for residuals of ``channels`` channels.

    Args:
        channels: The teacher's channels.
        floor: Smallest variance, in units of the teacher's.
    """

    def __init__(self, channels: int, floor: float) -> None:
        super().__init__()
        self.channels = channels
        self.floor = floor

    @abc.abstractmethod
    def relative_variance(self) -> Tensor:
        """Return the variance per channel, ``(c,)``."""

    @abc.abstractmethod
    def nll(self, prediction: Tensor, target: Tensor, live: Tensor) -> Tensor:
        """Return the negative log-likelihood in nats per position, 0-dim; channels that are not live do not count."""

    @abc.abstractmethod
    def gain(self, prediction: Tensor, target: Tensor, live: Tensor, *, mean: Tensor, variance: Tensor) -> Tensor:
        """Return the log-score of each sample over that of a Gaussian with ``mean`` and ``variance``, ``(n,)``."""

    @abc.abstractmethod
    def set_to(self, residual: Tensor, variance: Tensor | None = None) -> None:
        """Take the law of ``residual``, ``(n, c)``; with ``variance``, its variances on new rows are known better."""

    def take_statistics(self, target: Tensor, live: Tensor, variance: Tensor) -> int:
        """Take the teacher's law from ``target``, ``(n, c)``; return how many live directions are left out."""
        return 0

    def elements(self, live: Tensor) -> Tensor:
        """Return how many numbers per position count."""
        return live.sum()

    def log_volume(self, live: Tensor, variance: Tensor) -> Tensor:
        """Return the logarithm of the volume that one unit of the head's has in the teacher's own, per position."""
        return 0.5 * torch.where(live, variance, 1.0).log().sum()


class ChannelLaw(ResidualLaw, abc.ABC):
    """Channels that are independent, each with a variance of its own."""

    def nll(self, prediction: Tensor, target: Tensor, live: Tensor) -> Tensor:
        """Return the sum over live channels of :func:`~mikit.functional.gaussian_nll`."""
        per_channel = gaussian_nll(prediction, target, self.relative_variance())
        return torch.where(live, per_channel, 0.0).sum()

    def gain(self, prediction: Tensor, target: Tensor, live: Tensor, *, mean: Tensor, variance: Tensor) -> Tensor:
        """Return :func:`~mikit.functional.difference_of_entropies` over the live channels."""
        return difference_of_entropies(
            prediction,
            target,
            self.relative_variance(),
            reference_mean=mean,
            reference_variance=variance,
            channels=live,
        )


@final
class LearnedVariances(ChannelLaw):
    """One learned variance per channel, ``σ_c² = softplus(α_c) + floor``.

    Args:
        channels: The teacher's channels.
        floor: As in the formula.
        start: The variance at the start.
    """

    def __init__(self, channels: int, floor: float, start: float = 1.0) -> None:
        super().__init__(channels, floor)
        self.alpha = nn.Parameter(self._alpha_for(torch.full((channels,), start, dtype=torch.float64)))

    def relative_variance(self) -> Tensor:
        """Return ``softplus(α) + floor``."""
        return softplus(self.alpha) + self.floor

    @torch.no_grad()
    def set_to(self, residual: Tensor, variance: Tensor | None = None) -> None:
        """Set ``α`` to the mean squared residuals, or to ``variance``."""
        self.alpha.copy_(self._alpha_for(residual.square().mean(0) if variance is None else variance))

    def _alpha_for(self, variance: Tensor) -> Tensor:
        """Return the ``α`` that makes the variance this value, or just above the floor where it is below."""
        excess = (variance.double() - self.floor).clamp(min=max(1e-3 * self.floor, 1e-12))
        return (excess + torch.log(-torch.expm1(-excess))).to(torch.get_default_dtype())


@final
class ClosedVariances(ChannelLaw):
    """Residual variances, averaged over the batches seen in training mode: nothing to optimise.

    ``v ← 0.9 v + 0.1 e`` with ``e_c`` the batch's mean squared residual, and ``σ_c² = max(v_c, floor)``, detached.

    Args:
        channels: The teacher's channels.
        floor: As in the formula.
    """

    running: Tensor

    def __init__(self, channels: int, floor: float) -> None:
        super().__init__(channels, floor)
        self.register_buffer("running", torch.ones(channels))

    def relative_variance(self) -> Tensor:
        """Return the running mean, at least ``floor``."""
        return self.running.clamp(min=self.floor)  # also a copy: the next batch must not change what backward needs

    def nll(self, prediction: Tensor, target: Tensor, live: Tensor) -> Tensor:
        """Take the batch into the running mean, in training mode, and return the sum over live channels."""
        moment = residual_variance(prediction, target)
        if self.training:
            with torch.no_grad():
                self.running.lerp_(moment.detach().to(self.running.dtype), NEWEST)
        return torch.where(live, moment_nll(moment, self.relative_variance()), 0.0).sum()

    @torch.no_grad()
    def set_to(self, residual: Tensor, variance: Tensor | None = None) -> None:
        """Set the running mean to the mean squared residuals, or to ``variance``."""
        self.running.copy_(residual.square().mean(0) if variance is None else variance)


@final
class FullCovariance(ResidualLaw):
    """A learned covariance of all channels, in coordinates ``U t`` that whiten the teacher.

    ``Σ = A Aᵀ + floor · I`` with ``A`` lower triangular, which starts at ``Σ = I``: the residual has the teacher's own
    covariance, and no direction can gain more than ``½ log(1 / floor)`` nats.

    Args:
        channels: The teacher's channels.
        floor: As in the formula.
    """

    coordinates: Tensor
    directions: Tensor
    volume: Tensor

    def __init__(self, channels: int, floor: float) -> None:
        super().__init__(channels, floor)
        self.factor = nn.Parameter(math.sqrt(1 - floor) * torch.eye(channels))
        self.register_buffer("coordinates", torch.eye(channels))
        self.register_buffer("directions", torch.ones(channels, dtype=torch.bool))
        self.register_buffer("volume", torch.zeros(()))

    def covariance(self) -> Tensor:
        """Return ``Σ``, ``(c, c)``; that of a direction that is left out is 1, by itself."""
        factor = torch.where(self.directions[:, None] & self.directions, self.factor.tril(), 0.0)
        return factor @ factor.T + torch.where(self.directions, self.floor, 1.0).to(factor.dtype).diag()

    def relative_variance(self) -> Tensor:
        """Return the diagonal of ``U⁺ Σ U⁺ᵀ``: variances of channels."""
        back: Tensor = torch.linalg.pinv(self.coordinates)
        return ((back @ self.covariance()) * back).sum(dim=1)

    def nll(self, prediction: Tensor, target: Tensor, live: Tensor) -> Tensor:
        """Return :func:`~mikit.functional.vid.full_covariance.joint_gaussian_nll` of the directions that count."""
        left_out = self.channels - self.directions.sum()
        joint = joint_gaussian_nll(target - prediction, self.covariance(), coordinates=self.coordinates)
        return joint - 0.5 * _LOG_2PI * left_out

    def gain(self, prediction: Tensor, target: Tensor, live: Tensor, *, mean: Tensor, variance: Tensor) -> Tensor:
        """Return the joint difference of entropies; the reference has the teacher's covariance."""
        return joint_difference_of_entropies(
            target - prediction, target, self.covariance(), coordinates=self.coordinates
        )

    @torch.no_grad()
    def take_statistics(self, target: Tensor, live: Tensor, variance: Tensor) -> int:
        """Whiten by ``target``, ``(n, c)``, standardised; return how many live directions are left out."""
        samples = torch.where(live, target.double(), 0.0)
        values, vectors = torch.linalg.eigh(samples.T @ samples / samples.shape[0])
        keep = values > SMALLEST_SHARE * values[-1]
        kept = torch.where(keep, values, 1.0)
        self.coordinates = torch.where(keep, vectors / kept.sqrt(), 0.0).T.to(variance.dtype).contiguous()
        self.directions = keep
        # What the directions kept span in the teacher's own units: the product of all spreads if none is left out.
        span = vectors[:, keep].T @ (variance.double()[:, None] * vectors[:, keep])
        self.volume = 0.5 * (kept.log().sum() + torch.logdet(span)).to(variance.dtype)
        return int(live.sum() - keep.sum())

    @torch.no_grad()
    def set_to(self, residual: Tensor, variance: Tensor | None = None) -> None:
        """Set ``Σ`` to the residuals' covariance, rescaled so that the channels have ``variance`` where it is given."""
        rows = residual.double()
        if variance is not None:
            moment = rows.square().mean(0)
            rows = rows * (variance.double() / torch.where(moment > 0, moment, 1.0)).sqrt()
        rows = rows @ self.coordinates.double().T
        values, vectors = torch.linalg.eigh(rows.T @ rows / rows.shape[0])
        excess = (values - self.floor).clamp(min=1e-3 * self.floor)
        self.factor.copy_(torch.linalg.cholesky((vectors * excess) @ vectors.T))

    def elements(self, live: Tensor) -> Tensor:
        """Return the number of directions kept."""
        return self.directions.sum()

    def log_volume(self, live: Tensor, variance: Tensor) -> Tensor:
        """Return the logarithm of the volume spanned by the directions kept."""
        return self.volume


def residual_law(variance: str, channels: int, floor: float) -> ResidualLaw:
    """Return the law that ``variance`` names, one of :data:`VARIANCES`."""
    laws: dict[str, type[ResidualLaw]] = {
        "learned": LearnedVariances,
        "closed": ClosedVariances,
        "full": FullCovariance,
    }
    return laws[variance](channels, floor)


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
