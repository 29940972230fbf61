"""Gaussian distributions of VID's residuals: a variance per channel, or a covariance of all channels.

``prediction`` and ``target`` are standardized, vectors ``(n, c)`` or maps ``(n, c, h, w)``; ``live`` marks the channels
that vary.
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

__all__ = ["VARIANCES", "LearnedVariances", "ResidualDistribution", "counted_once", "residual_distribution"]

VARIANCES = ("learned", "closed", "full")
# Weight of the newest batch in the closed variances.
_NEWEST = 0.1
# Directions of the teacher with less than this fraction of the largest variance are left out of a full covariance.
_SMALLEST_SHARE = 1e-6
_LOG_2PI = math.log(2 * math.pi)


class ResidualDistribution(nn.Module, abc.ABC):
    """A centered Gaussian for residuals of ``channels`` channels.

    Args:
        channels: Number of the teacher's channels.
        floor: Smallest variance, relative to the teacher's.
    """

    def __init__(self, channels: int, floor: float) -> None:
        super().__init__()
        self.channels = channels
        self.floor = floor

    @abc.abstractmethod
    def relative_variance(self) -> Tensor:
        """Return the variance per channel relative to the teacher's, ``(c,)``."""

    @abc.abstractmethod
    def nll(self, prediction: Tensor, target: Tensor, live: Tensor) -> Tensor:
        """Return the negative log-likelihood of the live channels in nats per position, 0-dim."""

    @abc.abstractmethod
    def gain(self, prediction: Tensor, target: Tensor, live: Tensor, *, mean: Tensor, variance: Tensor) -> Tensor:
        """Return each sample's log-likelihood minus that of a Gaussian with ``mean`` and ``variance``, ``(n,)``."""

    @abc.abstractmethod
    def set_to(self, residual: Tensor, variance: Tensor | None = None) -> None:
        """Fit to ``residual``, ``(n, c)``; ``variance`` is a better estimate of the variances on new samples."""

    def take_statistics(self, target: Tensor, live: Tensor, variance: Tensor) -> int:
        """Compute statistics of the teacher, ``target (n, c)``; return how many live directions are left out."""
        return 0

    def elements(self, live: Tensor) -> Tensor:
        """Return how many numbers per position contribute to the loss."""
        return live.sum()

    def log_volume(self, live: Tensor, variance: Tensor) -> Tensor:
        """Return the log-determinant of the change from standardized to the teacher's units, per position."""
        return 0.5 * torch.where(live, variance, 1.0).log().sum()


class IndependentChannels(ResidualDistribution, abc.ABC):
    """Independent channels, each with its own variance."""

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
class LearnedVariances(IndependentChannels):
    """One learned variance per channel, ``σ_c² = softplus(α_c) + floor``, which starts at ``start``."""

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
        """Return the ``α`` that gives this variance, or one just above the floor where it is below."""
        # The inverse of softplus, log(exp(e) - 1), written so that it neither overflows for large e nor cancels for
        # small e.
        excess = (variance.double() - self.floor).clamp(min=max(1e-3 * self.floor, 1e-12))
        return (excess + torch.log(-torch.expm1(-excess))).to(torch.get_default_dtype())


@final
class ClosedVariances(IndependentChannels):
    """Residual variances averaged over the batches seen in training mode, with nothing to optimize.

    ``v ← 0.9 v + 0.1 e`` with ``e_c`` the batch's mean squared residual, and ``σ_c² = max(v_c, floor)``, detached.
    """

    running: Tensor

    def __init__(self, channels: int, floor: float) -> None:
        super().__init__(channels, floor)
        self.register_buffer("running", torch.ones(channels))

    def relative_variance(self) -> Tensor:
        """Return the running mean, at least ``floor``."""
        # The clamp also makes a copy: the next batch must not change a tensor that backward still needs.
        return self.running.clamp(min=self.floor)

    def nll(self, prediction: Tensor, target: Tensor, live: Tensor) -> Tensor:
        """Update the running mean in training mode, and return the sum over live channels."""
        moment = residual_variance(prediction, target)
        if self.training:
            with torch.no_grad():
                self.running.lerp_(moment.detach().to(self.running.dtype), _NEWEST)
        return torch.where(live, moment_nll(moment, self.relative_variance()), 0.0).sum()

    @torch.no_grad()
    def set_to(self, residual: Tensor, variance: Tensor | None = None) -> None:
        """Set the running mean to the mean squared residuals, or to ``variance``."""
        self.running.copy_(residual.square().mean(0) if variance is None else variance)


@final
class FullCovariance(ResidualDistribution):
    """A learned covariance of all channels, in coordinates ``U t`` that whiten the teacher.

    ``Σ = A Aᵀ + floor · I`` with ``A`` lower triangular. At the start ``Σ = I``: the residual has the teacher's
    covariance. No direction can gain more than ``½ log(1 / floor)`` nats.
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
        """Return ``Σ``, ``(c, c)``; directions that are left out have variance 1 and no correlation."""
        factor = torch.where(self.directions[:, None] & self.directions, self.factor.tril(), 0.0)
        return factor @ factor.T + torch.where(self.directions, self.floor, 1.0).to(factor.dtype).diag()

    def relative_variance(self) -> Tensor:
        """Return the diagonal of ``U⁺ Σ U⁺ᵀ``: the variances of the channels."""
        back: Tensor = torch.linalg.pinv(self.coordinates)
        return ((back @ self.covariance()) * back).sum(dim=1)

    def nll(self, prediction: Tensor, target: Tensor, live: Tensor) -> Tensor:
        """Return :func:`~mikit.functional.vid.full_covariance.joint_gaussian_nll` of the directions that are kept."""
        # A direction that is left out has residual 0 and variance 1: it adds only the constant ½ log 2π, removed here.
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
        """Compute the whitening of ``target``, ``(n, c)``; return how many live directions are left out."""
        samples = torch.where(live, target.double(), 0.0)
        values, vectors = torch.linalg.eigh(samples.T @ samples / samples.shape[0])
        # Directions without variance, from channels that depend on each other or samples fewer than channels, have no
        # density: their likelihood would grow without limit, so they do not enter the loss.
        keep = values > _SMALLEST_SHARE * values[-1]
        kept = torch.where(keep, values, 1.0)
        self.coordinates = torch.where(keep, vectors / kept.sqrt(), 0.0).T.to(variance.dtype).contiguous()
        self.directions = keep
        # The volume of the kept directions in the teacher's units: the product of all spreads if none is left out.
        span = vectors[:, keep].T @ (variance.double()[:, None] * vectors[:, keep])
        self.volume = 0.5 * (kept.log().sum() + torch.logdet(span)).to(variance.dtype)
        return int(live.sum() - keep.sum())

    @torch.no_grad()
    def set_to(self, residual: Tensor, variance: Tensor | None = None) -> None:
        """Set ``Σ`` to the residuals' covariance, rescaled to the variances ``variance`` of channels if given."""
        rows = residual.double()
        if variance is not None:
            moment = rows.square().mean(0)
            rows = rows * (variance.double() / torch.where(moment > 0, moment, 1.0)).sqrt()
        rows = rows @ self.coordinates.double().T
        values, vectors = torch.linalg.eigh(rows.T @ rows / rows.shape[0])
        # A Aᵀ is the covariance minus the floor; a difference that is not positive becomes a small positive one.
        excess = (values - self.floor).clamp(min=1e-3 * self.floor)
        self.factor.copy_(torch.linalg.cholesky((vectors * excess) @ vectors.T))

    def elements(self, live: Tensor) -> Tensor:
        """Return the number of kept directions."""
        return self.directions.sum()

    def log_volume(self, live: Tensor, variance: Tensor) -> Tensor:
        """Return the logarithm of the volume of the kept directions."""
        return self.volume


def residual_distribution(variance: str, channels: int, floor: float) -> ResidualDistribution:
    """Return the distribution that ``variance`` names, one of :data:`VARIANCES`."""
    classes: dict[str, type[ResidualDistribution]] = {
        "learned": LearnedVariances,
        "closed": ClosedVariances,
        "full": FullCovariance,
    }
    return classes[variance](channels, floor)


_NAME = "channels counted once"


def counted_once(value: float, target: Tensor, residual: Tensor, *, positions: int, jointly: bool) -> Check:
    """Check the surplus of summing channels as if independent: warns above 10 % of the value, fails above 30 %.

    ``target`` and ``residual``, ``(n, c)``, are the teacher's live channels and their residuals; positions of a map
    count as samples of one distribution. ``jointly``: whether a full covariance describes the channels.
    """
    if target.shape[0] < 5 * target.shape[1]:
        purpose = "trust a covariance of all channels" if jointly else "check how often correlated channels are counted"
        return Check.warned(_NAME, f"There are too few samples to {purpose}.")
    if jointly and positions > 1:
        return Check.warned(_NAME, "Channels are modeled jointly; positions are summed as if independent.")
    if jointly:
        return Check.passed(_NAME, "Channels are modeled jointly, so correlated channels are counted once.", 0.0)
    # The sum over channels exceeds the difference of joint Gaussian entropies by the total correlation of the teacher's
    # channels minus that of the residuals.
    surplus = (_total_correlation(target.double()) - _total_correlation(residual.double())) * positions
    sentence = f"Correlated teacher channels are counted as if independent, which adds {surplus:.3f} nats"
    threshold = max(0.05, 0.1 * abs(value))
    if abs(surplus) > max(0.05, 0.3 * abs(value)):
        sentence += f' to the value {value:.3f}. Model them jointly, with variance="full".'
        return Check.failed(_NAME, sentence, surplus, 0.3 * abs(value))
    if abs(surplus) > threshold or positions > 1:
        sentence += "; positions are summed as well" if positions > 1 else ""
        return Check.warned(_NAME, f"{sentence}.", surplus, threshold)
    return Check.passed(_NAME, f"{sentence}.", surplus, threshold)


def _total_correlation(rows: Tensor) -> float:
    """Return the Gaussian total correlation of the columns, ``-½ log|R|``, in nats."""
    centered = rows - rows.mean(0)
    scaled = centered / centered.square().mean(0).sqrt().clamp(min=torch.finfo(rows.dtype).tiny)
    correlation = scaled.T @ scaled / rows.shape[0]
    # Keeps the logarithm finite where channels determine each other.
    floor = 1e-6 * torch.eye(correlation.shape[0], dtype=rows.dtype, device=rows.device)
    return float(-0.5 * torch.logdet(correlation + floor))
