"""Contrastive measures: tell a student row's own teacher row from those of all other samples."""

from __future__ import annotations

import math
from typing import Self, final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.critics import EmbeddingCritic
from mikit.estimators.base import require_pair, seeded
from mikit.estimators.bounds.base import CriticEstimator, require_examples
from mikit.estimators.fitting import Training
from mikit.functional.bounds.infonce import anchored_infonce, infonce
from mikit.functional.bounds.infonce_scores import anchored_infonce_from_scores, infonce_from_scores, infonce_influence

__all__ = ["AnchoredInfoNCE", "InfoNCE"]


@final
class InfoNCE(CriticEstimator):
    """InfoNCE bound on the mutual information of rows ``(n, d_x)`` and ``(n, d_y)``, with a learned critic.

    Formula: ``mean_i [ s(x_i, y_i) - log (1/n) Σ_j exp s(x_i, y_j) ] <= log n``, by default averaged with the same
    expression for choosing ``x`` given ``y``. ``forward`` is its negative over the batch, ``estimate`` the bound over
    all rows given.

    Args:
        d_x: Width of the student's rows.
        d_y: Width of the teacher's rows.
        critic: ``"separable"`` (two encoders and a dot product, streamed), ``"bilinear"`` (``x^T W y``, streamed) or
            ``"joint"`` (one perceptron over both rows; about ``width`` times the cost).
        width: Hidden units per layer of the critic.
        depth: Hidden layers of the critic.
        embedding: Width of the separable critic's embeddings.
        both_directions: Whether to average both directions.

    Unit: nats.

    Kind: lower bound, in expectation, on rows that did not fit the critic. On the rows that did it bounds nothing:
    a critic can learn 640 independent pairs by heart and report nearly ``log n``.

    Raises:
        InputError: If sizes do not fit, rows do not match, or there is no such critic.

    Cost:
        ``O(n² embedding + n width²)`` time and ``O(n (d_x + d_y + width))`` memory for the streamed critics; the joint
        one costs ``O(n² width² depth)`` time and keeps ``n²`` scores in training.

    Pitfalls:
        Saturates: the value cannot pass ``log n`` and is biased low from about 0.6 of it. Values from different ``n``
        do not compare. Copies of one item (augmentations, patches) are false negatives. In a training loop the critic
        fits the batches it is shown, so minus the loss is not a measurement: measure with a fresh critic. Columns are
        standardised by the example features, which a student in training leaves behind.

    Source:
        van den Oord, Li, Vinyals, 2018.

    Example:
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
    recipe = Training(steps=500, batch=512, learning_rate=3e-3, weight_decay=0.3, every=25, patience=8)

    def __init__(
        self,
        d_x: int,
        d_y: int,
        *,
        critic: str = "separable",
        width: int = 128,
        depth: int = 2,
        embedding: int = 32,
        both_directions: bool = True,
    ) -> None:
        super().__init__(d_x, d_y, critic=critic, width=width, depth=depth, embedding=embedding)
        self.both_directions = both_directions

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
        both_directions: bool = True,
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
            both_directions: As in the class.
            generator: Where the critic's start comes from; torch's global generator if None.
        """
        require_examples(x, y)
        with seeded(generator):
            estimator = cls(
                x.shape[1],
                y.shape[1],
                critic=critic,
                width=width,
                depth=depth,
                embedding=embedding,
                both_directions=both_directions,
            )
        return estimator.standardised_by(x, y)

    def streamed_objective(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the bound, in nats."""
        return infonce(u, v, both_directions=self.both_directions)

    def objective(self, scores: Tensor) -> Tensor:
        """Return the bound, in nats."""
        return infonce_from_scores(scores, both_directions=self.both_directions)

    @torch.no_grad()
    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the bound over all rows, in nats; below 0 where the critic misleads."""
        require_pair(x, y)
        if isinstance(self.critic, EmbeddingCritic):
            return self.streamed_objective(*self.critic.embed(x, y))
        return self.pointwise(x, y).mean()

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return each sample's influence, as positive and as negative; the mean is the estimate."""
        require_pair(x, y)
        return infonce_influence(self.score_rows(x, y), x.shape[0], both_directions=self.both_directions)

    def ceiling(self, n: int) -> float:
        """Return ``log n``."""
        return math.log(n)

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"{super().extra_repr()}, both_directions={self.both_directions}"


@final
class AnchoredInfoNCE(CriticEstimator):
    r"""Anchored InfoNCE: a critic that learns the log density ratio itself, and its mean score over held-out pairs.

    Formula: trained by maximising :func:`~mikit.functional.anchored_infonce`; reported is ``(1/n) Σ_i s(x_i, y_i)``.

    Args:
        d_x: Width of the student's rows.
        d_y: Width of the teacher's rows.
        critic: ``"separable"`` (streamed), ``"bilinear"`` (streamed) or ``"joint"``; see :class:`InfoNCE`.
        width: Hidden units per layer of the critic.
        depth: Hidden layers of the critic.
        embedding: Width of the separable critic's embeddings.
        relative_anchor: The constant ``ν`` of the objective over its ``K = n - 1`` candidates, above 0. It fixes the
            level of the scores; as a ratio it means the same in batches of any size.

    Unit: nats.

    Kind: estimate, neither a lower nor an upper bound: the mean score is the information only as far as the critic is
    the log density ratio.

    Raises:
        InputError: If sizes do not fit, rows do not match, there is no such critic, or the relative anchor is not
        positive.

    Cost:
        Training as :class:`InfoNCE` in one direction; the estimate scores the ``n`` pairs alone, in ``O(n width²)``
        time and ``O(n)`` memory.

    Pitfalls:
        On rows that fitted the critic the mean score is inflated without limit. It has no ceiling at ``log n``, and
        nothing keeps it below the truth: set it beside :class:`NWJ`. The interval holds the spread of the rows, not the
        error of the critic, which is usually the larger one.

    Source:
        InfoNCE with an anchor class; the objective in the form of :func:`~mikit.functional.anchored_infonce`.

    Example:
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
        relative_anchor: float = 4.0,
    ) -> None:
        super().__init__(d_x, d_y, critic=critic, width=width, depth=depth, embedding=embedding)
        if not 0 < relative_anchor < math.inf:
            raise InputError(f"relative_anchor is {relative_anchor}; it must be positive and finite.")
        self.relative_anchor = relative_anchor

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
        relative_anchor: float = 4.0,
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
            relative_anchor: As in the class.
            generator: Where the critic's start comes from; torch's global generator if None.
        """
        require_examples(x, y)
        with seeded(generator):
            estimator = cls(
                x.shape[1],
                y.shape[1],
                critic=critic,
                width=width,
                depth=depth,
                embedding=embedding,
                relative_anchor=relative_anchor,
            )
        return estimator.standardised_by(x, y)

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
        """Return 3: a pair needs two others."""
        return 3

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"{super().extra_repr()}, relative_anchor={self.relative_anchor:g}"
