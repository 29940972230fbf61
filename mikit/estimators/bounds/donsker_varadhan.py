"""DV: the bound of Donsker and Varadhan, trained with a remembered mean of exponentials."""

from __future__ import annotations

from typing import Self, final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.critics import EmbeddingCritic
from mikit.estimators.base import require_pair, seeded
from mikit.estimators.bounds.base import require_examples
from mikit.estimators.bounds.ratios import CappedEstimator
from mikit.estimators.fitting import Training
from mikit.functional.bounds.ratio_scores import dv_from_scores, dv_influence
from mikit.functional.bounds.ratios import dv

__all__ = ["DV"]


@final
class DV(CappedEstimator):
    r"""The Donsker-Varadhan expression with a learned critic, as in MINE, with the mini-batch gradient corrected.

    Formula: ``(1/n) Σ_i s_ii - log Z`` with ``Z = 1/(n(n-1)) Σ_{i≠j} exp s_ij``. The gradient of ``log Z`` is that of
    ``Z`` over ``Z``, and a batch's own ``Z`` below the line makes it biased. In training mode a moving average over
    batches stands there: ``M <- (1 - a) M + a Z``, the batch at hand included, ``a`` falling from 1 to ``rate``. The
    value of the loss is the batch's own, its gradient is that of ``Z / M``.

    Args:
        d_x: Width of the student's rows.
        d_y: Width of the teacher's rows.
        critic: ``"separable"`` (streamed), ``"bilinear"`` (streamed) or ``"joint"``; see :class:`InfoNCE`.
        width: Hidden units per layer of the critic.
        depth: Hidden layers of the critic.
        embedding: Width of the separable critic's embeddings.
        rate: Weight of the newest batch in the moving average, in ``(0, 1]``; with 1 the gradient is the plain, biased
            one.

    Unit: nats.

    Kind: estimate. A lower bound in the limit of many rows that did not fit the critic; at finite n the logarithm of a
    mean errs upwards, and past ``log n`` it does so by nats.

    Raises:
        InputError: If sizes do not fit, rows do not match, there is no such critic, or ``rate`` is not in ``(0, 1]``.

    Cost:
        ``O(n² embedding + n width²)`` time and ``O(n (d_x + d_y + width))`` memory for the streamed critics; the joint
        one costs ``O(n² width² depth)`` time and keeps ``n²`` scores in training.

    Pitfalls:
        The variance grows like the exponential of the information. In training mode a call changes the moving average,
        as batch normalisation does, so the loss has a memory; ``eval()`` and ``torch.no_grad()`` leave it alone. The
        average belongs to the critic of some batches ago: keep the learning rate low. At one value for all pairs the
        scores are not determined: only their differences mean anything.

    Source:
        Donsker and Varadhan (1983); Belghazi and others (2018), "Mutual Information Neural Estimation", for the critic
        and for the moving average, which starts here as a plain mean.

    Example:
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
    recipe = Training(steps=500, batch=512, learning_rate=3e-3, weight_decay=1.0, every=25, patience=8)
    log_average: Tensor
    batches: Tensor

    def __init__(
        self,
        d_x: int,
        d_y: int,
        *,
        critic: str = "separable",
        width: int = 128,
        depth: int = 2,
        embedding: int = 32,
        rate: float = 0.01,
    ) -> None:
        super().__init__(d_x, d_y, critic=critic, width=width, depth=depth, embedding=embedding)
        if not 0 < rate <= 1:
            raise InputError(f"rate is {rate}; the weight of the newest batch must lie above 0 and not above 1.")
        self.rate = rate
        self.register_buffer("log_average", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

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
        rate: float = 0.01,
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
            rate: As in the class.
            generator: Where the critic's start comes from; torch's global generator if None.
        """
        require_examples(x, y)
        with seeded(generator):
            estimator = cls(
                x.shape[1], y.shape[1], critic=critic, width=width, depth=depth, embedding=embedding, rate=rate
            )
        return estimator.standardised_by(x, y)

    @torch.no_grad()
    def forget(self) -> None:
        """Reset the moving average and take the cap off."""
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
        normaliser = positives - value
        # (Z / M) times the gradient of log Z is that of Z / M; the value stays that of log Z.
        slope = (self._excess_over_average(normaliser.detach()) - 1) * normaliser
        return slope - slope.detach() - value

    def streamed_objective(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the expression, in nats."""
        return dv(u, v)

    def objective(self, scores: Tensor) -> Tensor:
        """Return the expression, in nats."""
        return dv_from_scores(scores)

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return each sample's influence, by the delta method over both of its roles; the mean is the estimate."""
        require_pair(x, y)
        return dv_influence(self.score_rows(x, y), x.shape[0])

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"{super().extra_repr()}, rate={self.rate:g}"

    @torch.no_grad()
    def _excess_over_average(self, log_normaliser: Tensor) -> Tensor:
        """Take a batch's ``log Z`` into the average and return ``Z / M``, which is at most ``1 / rate``."""
        self.batches.add_(1)
        share = (self.rate / (1 - (1 - self.rate) ** self.batches)).clamp(max=1)
        kept = torch.log1p(-share) + self.log_average
        self.log_average.copy_(torch.logaddexp(kept, share.log() + log_normaliser))
        return (log_normaliser - self.log_average).exp()
