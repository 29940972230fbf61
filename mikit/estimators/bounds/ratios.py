"""Measures whose critic compares pairs with all other combinations: JSD, NWJ and SMILE."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Self, final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.measurement import Check
from mikit.estimators.base import require_pair, seeded
from mikit.estimators.bounds.base import CriticEstimator, require_examples
from mikit.estimators.fitting import FitRecord, Training
from mikit.functional.bounds.ratio_scores import (
    jsd_from_scores,
    log_mean_ratios,
    nwj_from_scores,
    nwj_influence,
    smile_influence,
)
from mikit.functional.bounds.ratios import jsd, nwj

__all__ = ["JSD", "NWJ", "SMILE", "CappedEstimator", "RatioEstimator"]

_FEWEST_CARRIERS = 30
_CAPPED_SHARES = (0.003, 0.01, 0.03, 0.1)


class RatioEstimator(CriticEstimator, abc.ABC):
    """A measure that sets the mean over pairs beside a mean of exponentials over all other combinations."""

    clip: float | None = None

    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Return whether enough rows carry the mean of exponentials, on which value and interval rest."""
        _, of_rows, of_columns = log_mean_ratios(self.score_rows(x, y), x.shape[0], clip=self.clip)
        weights = torch.logaddexp(of_rows, of_columns).softmax(dim=0)
        carriers = float(1 / weights.square().sum())
        said = f"The mean of exponentials is carried by the weight of {carriers:.0f} of {x.shape[0]} rows"
        if carriers >= _FEWEST_CARRIERS:
            return (Check("negatives", "pass", carriers, _FEWEST_CARRIERS, f"{said}."),)
        return (
            Check(
                "negatives",
                "warn",
                carriers,
                _FEWEST_CARRIERS,
                f"{said}: rarer and heavier combinations were not met, so the value errs upwards and the interval is "
                "too short. Use more rows, or an instrument without exponentials of scores.",
            ),
        )

    @torch.no_grad()
    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the read-out over all rows, in nats."""
        return self.pointwise(x, y).mean()

    @abc.abstractmethod
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return each sample's influence, in both of its roles; the mean is the estimate."""


class CappedEstimator(RatioEstimator, abc.ABC):
    """A measure whose critic's scores are read up to a cap, chosen after training on rows that were not trained on.

    A few scores that are far too high rule a mean of exponentials. A critic with a cap is a critic like any other, so
    whatever holds of the read-out holds of it still; the cap bounds the scores of pairs and of negatives alike.
    """

    cap: Tensor

    def __init__(
        self,
        d_x: int,
        d_y: int,
        *,
        critic: str = "separable",
        width: int = 128,
        depth: int = 2,
        embedding: int = 32,
    ) -> None:
        super().__init__(d_x, d_y, critic=critic, width=width, depth=depth, embedding=embedding)
        self.register_buffer("cap", torch.full((), math.inf))

    @torch.no_grad()
    def forget(self) -> None:
        """Take the cap off."""
        self.cap.fill_(math.inf)

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        *,
        select: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator,
        training: Training | None = None,
    ) -> FitRecord:
        """Fit the critic, then choose the cap that gives the largest read-out on ``select``; none is a choice too."""
        self.forget()
        record = super().fit(x, y, select=select, generator=generator, training=training)
        with torch.no_grad():
            self._choose_cap(*(select or (x, y)))
        return record

    def score_rows(self, x: Tensor, y: Tensor) -> Callable[[int, int], Tensor]:
        """Return a function from ``start, stop`` to the capped scores of these rows of ``x`` against all of ``y``."""
        uncapped, cap = super().score_rows(x, y), float(self.cap)
        return uncapped if cap == math.inf else lambda start, stop: uncapped(start, stop).clamp_(max=cap)

    def _choose_cap(self, x: Tensor, y: Tensor) -> None:
        scores = self.critic.pair_scores(x, y).double()
        caps = [math.inf, *(float(scores.quantile(1 - share)) for share in _CAPPED_SHARES)]
        values = []
        for cap in caps:
            self.cap.fill_(cap)
            values.append(float(self.estimate(x, y)))
        self.cap.fill_(caps[values.index(max(values))])


@final
class JSD(CappedEstimator):
    r"""Jensen-Shannon training, read out as the NWJ lower bound.

    Formula: trained by maximising :func:`~mikit.functional.jsd`, whose best critic is the log density ratio; reported
    is ``1 + (1/n) Σ_i s_ii - 1/(n(n-1)) Σ_{i≠j} exp s_ij``, which is :func:`~mikit.functional.nwj` of the same critic
    plus 1, with ``s`` the critic's scores up to a cap. The cap is the one that gives the largest bound on the select
    part; none is among the choices. The objective itself is bounded by 1.386 and is never reported.

    Args:
        d_x: Width of the student's rows.
        d_y: Width of the teacher's rows.
        critic: ``"separable"`` (streamed), ``"bilinear"`` (streamed) or ``"joint"``; see :class:`InfoNCE`.
        width: Hidden units per layer of the critic.
        depth: Hidden layers of the critic.
        embedding: Width of the separable critic's embeddings.

    Unit: nats.

    Kind: lower bound, in expectation, on rows that did not fit the critic. A second read-out, the mean score of the
    pairs, is in :meth:`mean_score`: closer to the truth when the information is high, and no bound.

    Raises:
        InputError: If sizes do not fit, rows do not match, or there is no such critic.

    Cost:
        ``O(n² embedding + n width²)`` time and ``O(n (d_x + d_y + width))`` memory for the streamed critics; the joint
        one costs ``O(n² width² depth)`` time and keeps ``n²`` scores in training.

    Pitfalls:
        Training is calm, because no exponential enters it, and hardly sees how far a score is too high; the read-out
        does, because its second mean is one of exponentials. The cap takes off the worst, in both means, so that the
        number stays a bound. The critic is fitted for the Jensen-Shannon divergence, not for the tightest bound.

    Source:
        Nowozin, Cseke and Tomioka (2016), "f-GAN", and Hjelm and others (2019) for the objective; Poole and others
        (2019) for reading another bound from its critic.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(600, 1, generator=g)
        >>> y = 0.9 * x + 0.19**0.5 * torch.randn(600, 1, generator=g)  # the truth is 0.83 nats
        >>> critic = JSD.between(x[:400], y[:400], width=32, generator=g)
        >>> _ = critic.fit(x[:400], y[:400], generator=g, training=Training(steps=150, batch=200))
        >>> 0.5 < float(critic.estimate(x[400:], y[400:])) < 1.1
        True
    """

    name = "jsd"
    kind = "lower bound"
    recipe = Training(steps=500, batch=512, learning_rate=3e-3, weight_decay=1.0, every=25, patience=8)

    def streamed_objective(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the Jensen-Shannon objective, at most 1.386."""
        return jsd(u, v)

    def objective(self, scores: Tensor) -> Tensor:
        """Return the Jensen-Shannon objective, at most 1.386."""
        return jsd_from_scores(scores)

    @torch.no_grad()
    def mean_score(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean score of the pairs, in nats: an estimate as far as the critic is the log density ratio."""
        require_pair(x, y)
        return self.critic.pair_scores(x, y).mean(dtype=torch.float64)

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return each sample's influence, as a pair and as a negative on both sides; the mean is the estimate."""
        require_pair(x, y)
        score_rows = self.score_rows(x, y)
        return nwj_influence(lambda start, stop: score_rows(start, stop) + 1, x.shape[0])

    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Return the check on the negatives, and the second read-out."""
        score = float(self.mean_score(x, y))
        sentence = f"The mean score of the pairs, an estimate without a bound, is {score:.3f} nats."
        return (*super().checks(x, y), Check("second read-out", "not applicable", score, None, sentence))


@final
class NWJ(CappedEstimator):
    r"""The bound of Nguyen, Wainwright and Jordan with a learned critic.

    Formula: ``1 + (1/n) Σ_i s_ii - 1/(n(n-1)) Σ_{i≠j} exp s_ij``, maximised in training and reported on other rows. It
    is :func:`~mikit.functional.nwj` of the critic plus 1, so that a critic without a clue scores 0 and reports 0.
    Reported with the scores up to a cap, the one that gives the largest bound on the select part, if any does.

    Args:
        d_x: Width of the student's rows.
        d_y: Width of the teacher's rows.
        critic: ``"separable"`` (streamed), ``"bilinear"`` (streamed) or ``"joint"``; see :class:`InfoNCE`.
        width: Hidden units per layer of the critic.
        depth: Hidden layers of the critic.
        embedding: Width of the separable critic's embeddings.

    Unit: nats.

    Kind: lower bound, in expectation, on rows that did not fit the critic.

    Raises:
        InputError: If sizes do not fit, rows do not match, or there is no such critic.

    Cost:
        ``O(n² embedding + n width²)`` time and ``O(n (d_x + d_y + width))`` memory for the streamed critics; the joint
        one costs ``O(n² width² depth)`` time and keeps ``n²`` scores in training.

    Pitfalls:
        Exponentials of scores rule both training and value: the variance grows like the exponential of the information.
        From about 3 nats on, train with :class:`JSD`, which reports the same bound.

    Source:
        Nguyen, Wainwright and Jordan (2010); the form of Poole and others (2019).

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(600, 1, generator=g)
        >>> y = 0.9 * x + 0.19**0.5 * torch.randn(600, 1, generator=g)  # the truth is 0.83 nats
        >>> critic = NWJ.between(x[:400], y[:400], width=32, generator=g)
        >>> _ = critic.fit(x[:400], y[:400], generator=g, training=Training(steps=150, batch=200))
        >>> 0.5 < float(critic.estimate(x[400:], y[400:])) < 1.1
        True
    """

    name = "nwj"
    kind = "lower bound"
    recipe = Training(steps=500, batch=512, learning_rate=3e-3, weight_decay=1.0, every=25, patience=8)

    def streamed_objective(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the bound, in nats."""
        return nwj(torch.cat([u, torch.ones_like(u[:, :1])], dim=1), torch.cat([v, torch.ones_like(v[:, :1])], dim=1))

    def objective(self, scores: Tensor) -> Tensor:
        """Return the bound, in nats."""
        return nwj_from_scores(scores + 1)

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return each sample's influence, as a pair and as a negative on both sides; the mean is the estimate."""
        require_pair(x, y)
        score_rows = self.score_rows(x, y)
        return nwj_influence(lambda start, stop: score_rows(start, stop) + 1, x.shape[0])


@final
class SMILE(RatioEstimator):
    r"""Jensen-Shannon training, read out as Donsker-Varadhan with the negatives' exponents clipped.

    Formula: trained by maximising :func:`~mikit.functional.jsd`; reported is
    ``(1/n) Σ_i s_ii - log 1/(n(n-1)) Σ_{i≠j} exp min(max(s_ij, -clip), clip)``.

    Args:
        d_x: Width of the student's rows.
        d_y: Width of the teacher's rows.
        critic: ``"separable"`` (streamed), ``"bilinear"`` (streamed) or ``"joint"``; see :class:`InfoNCE`.
        width: Hidden units per layer of the critic.
        depth: Hidden layers of the critic.
        embedding: Width of the separable critic's embeddings.
        clip: The limit of the negatives' exponents, above 0.

    Unit: nats.

    Kind: estimate, neither a lower nor an upper bound.

    Raises:
        InputError: If sizes do not fit, rows do not match, there is no such critic, or ``clip`` is not positive.

    Cost:
        ``O(n² embedding + n width²)`` time and ``O(n (d_x + d_y + width))`` memory for the streamed critics; the joint
        one costs ``O(n² width² depth)`` time and keeps ``n²`` scores in training.

    Pitfalls:
        The clipped mean does not normalise the ratio any more, so the value can pass the truth: the smaller the limit,
        the calmer and the further off. Values with different limits do not compare. Clipping is part of the definition,
        not a repair: the value itself is never clipped.

    Source:
        Song and Ermon (2020), "Understanding the Limitations of Variational Mutual Information Estimators".

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(600, 1, generator=g)
        >>> y = 0.9 * x + 0.19**0.5 * torch.randn(600, 1, generator=g)  # the truth is 0.83 nats
        >>> critic = SMILE.between(x[:400], y[:400], width=32, generator=g)
        >>> _ = critic.fit(x[:400], y[:400], generator=g, training=Training(steps=150, batch=200))
        >>> 0.5 < float(critic.estimate(x[400:], y[400:])) < 1.1
        True
    """

    name = "smile"
    kind = "estimate"
    recipe = Training(steps=500, batch=512, learning_rate=3e-3, weight_decay=1.0, every=25, patience=8)

    def __init__(
        self,
        d_x: int,
        d_y: int,
        *,
        critic: str = "separable",
        width: int = 128,
        depth: int = 2,
        embedding: int = 32,
        clip: float = 5.0,
    ) -> None:
        super().__init__(d_x, d_y, critic=critic, width=width, depth=depth, embedding=embedding)
        if not 0 < clip < math.inf:
            raise InputError(f"clip is {clip}; the limit of the exponents must be positive and finite.")
        self.clip: float = clip

    @classmethod
    def between(
        cls,
        x: Tensor,
        y: Tensor,
        *,
        critic: str = "separable",
        width: int = 128,
        depth: int = 2,
        embedding: int = 32,
        clip: float = 5.0,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Build from example features, which set the sizes and the standardisation.

        Args:
            x: Student rows ``(n, d_x)``.
            y: Teacher rows ``(n, d_y)``.
            critic: As in the class.
            width: As in the class.
            depth: As in the class.
            embedding: As in the class.
            clip: As in the class.
            generator: Where the critic's start comes from; torch's global generator if None.
        """
        require_examples(x, y)
        with seeded(generator):
            estimator = cls(
                x.shape[1], y.shape[1], critic=critic, width=width, depth=depth, embedding=embedding, clip=clip
            )
        return estimator.standardised_by(x, y)

    def streamed_objective(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the Jensen-Shannon objective, at most 1.386."""
        return jsd(u, v)

    def objective(self, scores: Tensor) -> Tensor:
        """Return the Jensen-Shannon objective, at most 1.386."""
        return jsd_from_scores(scores)

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return each sample's influence, by the delta method over both of its roles; the mean is the estimate."""
        require_pair(x, y)
        return smile_influence(self.score_rows(x, y), x.shape[0], clip=self.clip)

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"{super().extra_repr()}, clip={self.clip:g}"
