"""Contrastive estimators: InfoNCE and anchored InfoNCE."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Unpack, final

import torch
from torch import Tensor

from mikit.core import require
from mikit.critics import EmbeddingCritic
from mikit.estimators.base import require_pair
from mikit.estimators.bounds.base import CriticEstimator, CriticOptions
from mikit.functional.bounds.infonce import anchored_infonce, infonce
from mikit.functional.bounds.infonce_scores import anchored_infonce_from_scores, infonce_from_scores, infonce_influence

__all__ = ["AnchoredInfoNCE", "InfoNCE"]


@final
class InfoNCE(CriticEstimator):
    """InfoNCE bound on the mutual information of samples ``(n, d_x)`` and ``(n, d_y)``, with a learned critic.

    Formula: ``mean_i [ s(x_i, y_i) - log (1/n) Σ_j exp s(x_i, y_j) ] <= log n``, by default averaged with the same
    expression for identifying ``x`` given ``y``. ``forward`` is its negative over the batch, ``estimate`` the bound
    over all given samples.

    Args:
        d_x: Width of the student's features.
        d_y: Width of the teacher's features.
        critic: ``"separable"`` (two encoders and a dot product, streamed), ``"bilinear"`` (``x^T W y``, streamed) or
            ``"joint"`` (one perceptron over both samples; about ``width`` times the cost).
        width: Hidden units per layer of the critic.
        depth: Hidden layers of the critic.
        embedding: Width of the separable critic's embeddings.
        both_directions: Whether to average both directions.

    Unit: nats.

    Kind: lower bound, in expectation, on samples that the critic was not fitted to. On the fitted samples it is not a
    bound: a critic can memorize 640 independent pairs and report nearly ``log n``.

    Raises:
        InputError: If the sizes do not fit, the samples do not match, or the critic is unknown.

    Cost:
        ``O(n² embedding + n width²)`` time and ``O(n (d_x + d_y + width))`` memory for the streamed critics; the joint
        one costs ``O(n² width² depth)`` time and keeps ``n²`` scores in training.

    Pitfalls:
        Saturates: the value cannot exceed ``log n`` and is biased low from about 0.6 of it. Values for different ``n``
        are not comparable. Copies of one item (augmentations, patches) are false negatives. In a training loop the
        critic fits the batches it sees, so minus the loss is not an estimate: measure with a fresh critic. Features are
        standardized by the example features, and the features of a student in training drift away from these.

    Source:
        van den Oord, Li, Vinyals, 2018.

    Example:
        >>> from mikit import Training
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(600, 1, generator=g)
        >>> y = 0.9 * x + 0.19**0.5 * torch.randn(600, 1, generator=g)  # the truth is 0.83 nats
        >>> nce = InfoNCE.between(x[:400], y[:400], width=32, generator=g)
        >>> _ = nce.fit(x[:400], y[:400], generator=g, training=Training(steps=150, batch=200))
        >>> 0.5 < float(nce.estimate(x[400:], y[400:])) < 1.0
        True
    """

    name = "infonce"
    kind = "lower bound"
    recipe = replace(CriticEstimator.recipe, weight_decay=0.3)

    def __init__(self, d_x: int, d_y: int, *, both_directions: bool = True, **options: Unpack[CriticOptions]) -> None:
        super().__init__(d_x, d_y, **options)
        self.both_directions = both_directions

    def streamed_objective(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the bound, in nats."""
        return infonce(u, v, both_directions=self.both_directions)

    def objective(self, scores: Tensor) -> Tensor:
        """Return the bound, in nats."""
        return infonce_from_scores(scores, both_directions=self.both_directions)

    @torch.no_grad()
    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the bound over all samples, in nats; below 0 if the critic is worse than a constant."""
        require_pair(x, y)
        if isinstance(self.critic, EmbeddingCritic):
            return self.streamed_objective(*self.critic.embed(x, y))
        return self.pointwise(x, y).mean()

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return each sample's influence, as part of pairs and of negatives; the mean is the estimate."""
        require_pair(x, y)
        return infonce_influence(self.score_rows(x, y), x.shape[0], both_directions=self.both_directions)

    def ceiling(self, n: int) -> float:
        """Return ``log n``."""
        return math.log(n)

    def extra_repr(self) -> str:
        """Return the hyperparameters."""
        return f"{super().extra_repr()}, both_directions={self.both_directions}"


@final
class AnchoredInfoNCE(CriticEstimator):
    r"""Anchored InfoNCE: a critic that learns the log density ratio, and its mean score over held-out pairs.

    Formula: trained by maximizing :func:`~mikit.functional.anchored_infonce`; reported is ``(1/n) Σ_i s(x_i, y_i)``.

    Args:
        d_x: Width of the student's features.
        d_y: Width of the teacher's features.
        critic: ``"separable"`` (streamed), ``"bilinear"`` (streamed) or ``"joint"``; see :class:`InfoNCE`.
        width: Hidden units per layer of the critic.
        depth: Hidden layers of the critic.
        embedding: Width of the separable critic's embeddings.
        relative_anchor: The constant ``ν`` of the objective divided by its ``K = n - 1`` candidates, above 0. It sets
            the level of the scores; as a ratio it has the same meaning in batches of any size.

    Unit: nats.

    Kind: estimate, neither a lower nor an upper bound: the mean score is the information only as far as the critic is
    the log density ratio.

    Raises:
        InputError: If the sizes do not fit, the samples do not match, the critic is unknown, or the relative anchor is
            not positive.

    Cost:
        Training as :class:`InfoNCE` in one direction; the estimate scores only the ``n`` pairs, in ``O(n width²)``
        time and ``O(n)`` memory.

    Pitfalls:
        On the samples that the critic was fitted to, the mean score is inflated without limit. It has no upper limit
        at ``log n`` and can exceed the truth: compare it with :class:`NWJ`. The interval contains the variation between
        samples, not the error of the critic, which is usually larger.

    Source:
        InfoNCE with an anchor class; the objective in the form of :func:`~mikit.functional.anchored_infonce`.

    Example:
        >>> from mikit import Training
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(600, 1, generator=g)
        >>> y = 0.9 * x + 0.19**0.5 * torch.randn(600, 1, generator=g)  # the truth is 0.83 nats
        >>> anchored = AnchoredInfoNCE.between(x[:400], y[:400], width=32, generator=g)
        >>> _ = anchored.fit(x[:400], y[:400], generator=g, training=Training(steps=150, batch=200))
        >>> 0.5 < float(anchored.estimate(x[400:], y[400:])) < 1.1
        True
    """

    name = "anchored_infonce"
    kind = "estimate"

    def __init__(self, d_x: int, d_y: int, *, relative_anchor: float = 4.0, **options: Unpack[CriticOptions]) -> None:
        super().__init__(d_x, d_y, **options)
        require.positive(relative_anchor, "relative_anchor")
        self.relative_anchor = relative_anchor

    def streamed_objective(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the anchored objective, below 0."""
        return anchored_infonce(u, v, anchor=self.relative_anchor * (u.shape[0] - 1))

    def objective(self, scores: Tensor) -> Tensor:
        """Return the anchored objective, below 0."""
        return anchored_infonce_from_scores(scores, anchor=self.relative_anchor * (scores.shape[0] - 1))

    @torch.no_grad()
    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean score of the pairs, in nats."""
        return self.pointwise(x, y).mean()

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the score of each pair, in nats."""
        require_pair(x, y)
        return self.critic.pair_scores(x, y).double()

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return 3: each pair needs two other samples."""
        return 3

    def extra_repr(self) -> str:
        """Return the hyperparameters."""
        return f"{super().extra_repr()}, relative_anchor={self.relative_anchor:g}"
