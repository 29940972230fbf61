"""Estimators whose critic compares pairs with all other combinations: JSD, NWJ, SMILE and DV."""

from __future__ import annotations

from typing import Unpack, final

import torch
from torch import Tensor

from mikit.core import require
from mikit.core.errors import InputError
from mikit.core.measurement import Check
from mikit.critics import EmbeddingCritic
from mikit.estimators.base import require_pair
from mikit.estimators.bounds.base import CappedEstimator, CriticOptions, RatioEstimator
from mikit.functional.bounds.ratio_scores import (
    dv_from_scores,
    dv_influence,
    jsd_from_scores,
    nwj_from_scores,
    nwj_influence,
    smile_influence,
)
from mikit.functional.bounds.ratios import dv, jsd, nwj

__all__ = ["DV", "JSD", "NWJ", "SMILE"]


@final
class JSD(CappedEstimator):
    r"""Jensen-Shannon training, reported as the NWJ lower bound.

    Formula: trained by maximizing :func:`~mikit.functional.jsd`, whose best critic is the log density ratio; reported
    is ``1 + (1/n) Σ_i s_ii - 1/(n(n-1)) Σ_{i≠j} exp s_ij``, which is :func:`~mikit.functional.nwj` of the same critic
    plus 1, with ``s`` the critic's scores limited by a cap. The cap is the candidate with the largest bound on the
    select part; no cap is one of the candidates. The objective itself is at most 1.386 and is never reported.

    Args:
        d_x: Width of the student's features.
        d_y: Width of the teacher's features.
        critic: ``"separable"`` (streamed), ``"bilinear"`` (streamed) or ``"joint"``; see :class:`InfoNCE`.
        width: Hidden units per layer of the critic.
        depth: Hidden layers of the critic.
        embedding: Width of the separable critic's embeddings.

    Unit: nats.

    Kind: lower bound, in expectation, on samples that the critic was not fitted to. :meth:`mean_score` returns a second
    estimate, the mean score of the pairs: closer to the truth when the information is high, but not a bound.

    Raises:
        InputError: If the sizes do not fit, the samples do not match, or the critic is unknown.

    Cost:
        ``O(n² embedding + n width²)`` time and ``O(n (d_x + d_y + width))`` memory for the streamed critics; the joint
        one costs ``O(n² width² depth)`` time and keeps ``n²`` scores in training.

    Pitfalls:
        Training is stable, because it has no exponentials, and therefore hardly penalizes scores that are far too high.
        The reported bound does, because its second mean is one of exponentials. The cap limits the largest scores in
        both means, so the number remains a bound. The critic is fitted to the Jensen-Shannon divergence, not to the
        tightest bound.

    Source:
        Nowozin, Cseke and Tomioka (2016), "f-GAN", and Hjelm and others (2019) for the objective; Poole and others
        (2019) for evaluating another bound with its critic.

    Example:
        >>> from mikit import Training
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
        """Return each sample's influence, as part of pairs and of negatives; the mean is the estimate."""
        require_pair(x, y)
        score_rows = self.score_rows(x, y)
        return nwj_influence(lambda start, stop: score_rows(start, stop) + 1, x.shape[0])

    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Return the check on the negatives, and the second estimate."""
        score = float(self.mean_score(x, y))
        sentence = f"The mean score of the pairs, an estimate that is not a bound, is {score:.3f} nats."
        second = Check.not_applicable("second read-out", sentence, score)
        return (*super().checks(x, y), second)


@final
class NWJ(CappedEstimator):
    r"""The bound of Nguyen, Wainwright and Jordan with a learned critic.

    Formula: ``1 + (1/n) Σ_i s_ii - 1/(n(n-1)) Σ_{i≠j} exp s_ij``, maximized in training and reported on other samples.
    It is :func:`~mikit.functional.nwj` of the critic plus 1, so that a critic that scores 0 everywhere reports 0. The
    reported scores are limited by the cap that gives the largest bound on the select part, if a cap raises it.

    Args:
        d_x: Width of the student's features.
        d_y: Width of the teacher's features.
        critic: ``"separable"`` (streamed), ``"bilinear"`` (streamed) or ``"joint"``; see :class:`InfoNCE`.
        width: Hidden units per layer of the critic.
        depth: Hidden layers of the critic.
        embedding: Width of the separable critic's embeddings.

    Unit: nats.

    Kind: lower bound, in expectation, on samples that the critic was not fitted to.

    Raises:
        InputError: If the sizes do not fit, the samples do not match, or the critic is unknown.

    Cost:
        ``O(n² embedding + n width²)`` time and ``O(n (d_x + d_y + width))`` memory for the streamed critics; the joint
        one costs ``O(n² width² depth)`` time and keeps ``n²`` scores in training.

    Pitfalls:
        Exponentials of scores dominate training and value: the variance grows like the exponential of the information.
        Above about 3 nats, train with :class:`JSD`, which reports the same bound.

    Source:
        Nguyen, Wainwright and Jordan (2010); the form of Poole and others (2019).

    Example:
        >>> from mikit import Training
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

    def streamed_objective(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the bound, in nats."""
        # One more column of ones adds 1 to every product, so that the bound is that of the critic plus 1.
        return nwj(torch.cat([u, torch.ones_like(u[:, :1])], dim=1), torch.cat([v, torch.ones_like(v[:, :1])], dim=1))

    def objective(self, scores: Tensor) -> Tensor:
        """Return the bound, in nats."""
        return nwj_from_scores(scores + 1)

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return each sample's influence, as part of pairs and of negatives; the mean is the estimate."""
        require_pair(x, y)
        score_rows = self.score_rows(x, y)
        return nwj_influence(lambda start, stop: score_rows(start, stop) + 1, x.shape[0])


@final
class SMILE(RatioEstimator):
    r"""Jensen-Shannon training, reported as the Donsker-Varadhan expression with clipped exponents of the negatives.

    Formula: trained by maximizing :func:`~mikit.functional.jsd`; reported is
    ``(1/n) Σ_i s_ii - log 1/(n(n-1)) Σ_{i≠j} exp min(max(s_ij, -clip), clip)``.

    Args:
        d_x: Width of the student's features.
        d_y: Width of the teacher's features.
        critic: ``"separable"`` (streamed), ``"bilinear"`` (streamed) or ``"joint"``; see :class:`InfoNCE`.
        width: Hidden units per layer of the critic.
        depth: Hidden layers of the critic.
        embedding: Width of the separable critic's embeddings.
        clip: The limit of the negatives' exponents, above 0.

    Unit: nats.

    Kind: estimate, neither a lower nor an upper bound.

    Raises:
        InputError: If the sizes do not fit, the samples do not match, the critic is unknown, or ``clip`` is not
            positive.

    Cost:
        ``O(n² embedding + n width²)`` time and ``O(n (d_x + d_y + width))`` memory for the streamed critics; the joint
        one costs ``O(n² width² depth)`` time and keeps ``n²`` scores in training.

    Pitfalls:
        The clipped mean no longer normalizes the ratio, so the value can exceed the truth: the smaller the limit, the
        smaller the variance and the larger the error. Values with different limits are not comparable. Clipping is part
        of the definition; the value itself is never clipped.

    Source:
        Song and Ermon (2020), "Understanding the Limitations of Variational Mutual Information Estimators".

    Example:
        >>> from mikit import Training
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

    def __init__(self, d_x: int, d_y: int, *, clip: float = 5.0, **options: Unpack[CriticOptions]) -> None:
        super().__init__(d_x, d_y, **options)
        require.positive(clip, "clip")
        self.clip: float = clip

    def streamed_objective(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the Jensen-Shannon objective, at most 1.386."""
        return jsd(u, v)

    def objective(self, scores: Tensor) -> Tensor:
        """Return the Jensen-Shannon objective, at most 1.386."""
        return jsd_from_scores(scores)

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return each sample's influence by the delta method, over both of its roles; the mean is the estimate."""
        require_pair(x, y)
        return smile_influence(self.score_rows(x, y), x.shape[0], clip=self.clip)

    def extra_repr(self) -> str:
        """Return the hyperparameters."""
        return f"{super().extra_repr()}, clip={self.clip:g}"


@final
class DV(CappedEstimator):
    r"""The Donsker-Varadhan expression with a learned critic, as in MINE, with a corrected minibatch gradient.

    Formula: ``(1/n) Σ_i s_ii - log Z`` with ``Z = 1/(n(n-1)) Σ_{i≠j} exp s_ij``. The gradient of ``log Z`` is that of
    ``Z`` divided by ``Z``, and the ``Z`` of one batch in the denominator makes it biased. In training mode the
    denominator is a moving average over batches, ``M <- (1 - a) M + a Z``, which includes the current batch; ``a``
    falls from 1 to ``rate``. The value of the loss is that of the batch, its gradient that of ``Z / M``.

    Args:
        d_x: Width of the student's features.
        d_y: Width of the teacher's features.
        critic: ``"separable"`` (streamed), ``"bilinear"`` (streamed) or ``"joint"``; see :class:`InfoNCE`.
        width: Hidden units per layer of the critic.
        depth: Hidden layers of the critic.
        embedding: Width of the separable critic's embeddings.
        rate: Weight of the newest batch in the moving average, in ``(0, 1]``; with 1 the gradient is the uncorrected,
            biased one.

    Unit: nats.

    Kind: estimate. A lower bound in the limit of many samples that the critic was not fitted to; for finite n the
    logarithm of a mean is biased upward, by nats if the information exceeds ``log n``.

    Raises:
        InputError: If the sizes do not fit, the samples do not match, the critic is unknown, or ``rate`` is not in
            ``(0, 1]``.

    Cost:
        ``O(n² embedding + n width²)`` time and ``O(n (d_x + d_y + width))`` memory for the streamed critics; the joint
        one costs ``O(n² width² depth)`` time and keeps ``n²`` scores in training.

    Pitfalls:
        The variance grows like the exponential of the information. In training mode a call updates the moving average,
        as batch normalization does, so the loss depends on earlier batches; ``eval()`` and ``torch.no_grad()`` do not
        change it. The average lags behind the critic by some batches: keep the learning rate low. A constant added to
        all scores does not change the expression, so only differences of scores are meaningful.

    Source:
        Donsker and Varadhan (1983); Belghazi and others (2018), "Mutual Information Neural Estimation", for the critic
        and for the moving average, which starts as a plain mean here.

    Example:
        >>> from mikit import Training
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(600, 1, generator=g)
        >>> y = 0.9 * x + 0.19**0.5 * torch.randn(600, 1, generator=g)  # the truth is 0.83 nats
        >>> critic = DV.between(x[:400], y[:400], width=32, generator=g)
        >>> _ = critic.fit(x[:400], y[:400], generator=g, training=Training(steps=150, batch=200))
        >>> 0.5 < float(critic.estimate(x[400:], y[400:])) < 1.1
        True
    """

    name = "dv"
    kind = "estimate"
    log_average: Tensor
    batches: Tensor

    def __init__(self, d_x: int, d_y: int, *, rate: float = 0.01, **options: Unpack[CriticOptions]) -> None:
        super().__init__(d_x, d_y, **options)
        if not 0 < rate <= 1:
            raise InputError(f"rate is {rate}; the weight of the newest batch must be above 0 and at most 1.")
        self.rate = rate
        self.register_buffer("log_average", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def forget(self) -> None:
        """Reset the moving average and remove the cap."""
        super().forget()
        self.log_average.zero_()
        self.batches.zero_()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return minus the expression over the batch, in nats; in training mode with the corrected gradient."""
        require_pair(x, y)
        y = y.detach()
        if isinstance(self.critic, EmbeddingCritic):
            u, v = self.critic.embed(x, y)
            positives, value = (u * v).sum(dim=1).mean(), self.streamed_objective(u, v)
        else:
            scores = self.critic.scores(x, y)
            positives, value = scores.diagonal().mean(), self.objective(scores)
        if not (self.training and torch.is_grad_enabled()):
            return -value
        log_normalizer = positives - value
        # (Z / M) times the gradient of log Z is the gradient of Z / M, so the gradient lacks (Z / M - 1) times that of
        # log Z. The difference of a term and its detached copy adds this to the gradient and 0 to the value.
        correction = (self._excess_over_average(log_normalizer.detach()) - 1) * log_normalizer
        return correction - correction.detach() - value

    def streamed_objective(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the expression, in nats."""
        return dv(u, v)

    def objective(self, scores: Tensor) -> Tensor:
        """Return the expression, in nats."""
        return dv_from_scores(scores)

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return each sample's influence by the delta method, over both of its roles; the mean is the estimate."""
        require_pair(x, y)
        return dv_influence(self.score_rows(x, y), x.shape[0])

    def extra_repr(self) -> str:
        """Return the hyperparameters."""
        return f"{super().extra_repr()}, rate={self.rate:g}"

    @torch.no_grad()
    def _excess_over_average(self, log_normaliser: Tensor) -> Tensor:
        """Add a batch's ``log Z`` to the average and return ``Z / M``, which is at most ``1 / rate``."""
        self.batches.add_(1)
        # The exact weight of the newest batch in a bias-corrected moving average, as in Adam: 1 for the first batch, so
        # the initial value of the buffer is never used. All in logarithms, because Z itself may overflow.
        share = (self.rate / (1 - (1 - self.rate) ** self.batches)).clamp(max=1)
        kept = torch.log1p(-share) + self.log_average
        self.log_average.copy_(torch.logaddexp(kept, share.log() + log_normaliser))
        return (log_normaliser - self.log_average).exp()
