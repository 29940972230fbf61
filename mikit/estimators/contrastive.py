"""InfoNCE: tell a student row's own teacher row from those of all other samples."""

from __future__ import annotations

import math
from typing import Any, Self, final

import torch
from torch import Tensor

from mikit.critics import Bilinear, Critic, EmbeddingCritic, Joint, Separable
from mikit.errors import InputError
from mikit.estimators.base import Estimator, require_pair, seeded
from mikit.estimators.fitting import Training
from mikit.functional.bounds import infonce
from mikit.functional.scored import infonce_from_scores, infonce_influence
from mikit.inputs import refuse_non_finite

__all__ = ["InfoNCE"]


@final
class InfoNCE(Estimator):
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
    unit = "nats"
    kind = "lower bound"
    learned = True
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
        super().__init__()
        self.width = width
        self.depth = depth
        self.embedding = embedding
        self.both_directions = both_directions
        self.critic_name = critic
        self.critic: Critic
        if critic == "separable":
            self.critic = Separable(d_x, d_y, width=width, depth=depth, embedding=embedding)
        elif critic == "bilinear":
            self.critic = Bilinear(d_x, d_y)
        elif critic == "joint":
            self.critic = Joint(d_x, d_y, width=width, depth=depth)
        else:
            raise InputError(f'There is no critic "{critic}". Use "separable", "bilinear" or "joint".')

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
        require_pair(x, y)
        refuse_non_finite(x, "x")
        refuse_non_finite(y, "y")
        with seeded(generator):
            estimator = cls(
                x.shape[1],
                y.shape[1],
                critic=critic,
                width=width,
                depth=depth,
                embedding=embedding,
                both_directions=both_directions,
            ).to(x.device)
        estimator.critic.standardise_by(x, y)
        return estimator

    def fresh(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Self:
        """Return an unfitted copy with the same hyper-parameters, built for ``x`` and ``y``."""
        return type(self).between(
            x,
            y,
            critic=self.critic_name,
            width=self.width,
            depth=self.depth,
            embedding=self.embedding,
            both_directions=self.both_directions,
            generator=generator,
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return minus the bound over the batch, in nats; the teacher ``y`` gets no gradient."""
        require_pair(x, y)
        y = y.detach()
        if isinstance(self.critic, EmbeddingCritic):
            return -infonce(*self.critic.embed(x, y), both_directions=self.both_directions)
        return -infonce_from_scores(self.critic.scores(x, y), both_directions=self.both_directions)

    @torch.no_grad()
    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the bound over all rows, in nats; below 0 where the critic misleads."""
        require_pair(x, y)
        if isinstance(self.critic, EmbeddingCritic):
            return infonce(*self.critic.embed(x, y), both_directions=self.both_directions)
        return self.pointwise(x, y).mean()

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return each sample's influence, as positive and as negative; the mean is the estimate."""
        require_pair(x, y)
        if isinstance(self.critic, EmbeddingCritic):
            u, v = self.critic.embed(x, y)

            def rows(start: int, stop: int) -> Tensor:
                return u[start:stop] @ v.T
        else:

            def rows(start: int, stop: int) -> Tensor:
                return self.critic.scores(x[start:stop], y)

        with torch.autocast(x.device.type, enabled=False):
            return infonce_influence(rows, x.shape[0], both_directions=self.both_directions)

    def ceiling(self, n: int) -> float:
        """Return ``log n``."""
        return math.log(n)

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the critic's matrices in one group and its biases, undecayed, in another."""
        return self.critic.param_groups()

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        sizes = f"{self.critic.d_x}, {self.critic.d_y}, critic={self.critic_name!r}"
        return (
            f"{sizes}, width={self.width}, depth={self.depth}, embedding={self.embedding}, "
            f"both_directions={self.both_directions}"
        )
