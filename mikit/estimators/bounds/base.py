"""What all measures with a learned critic share: how the critic is built, sized, started anew, and streamed."""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.inputs import refuse_non_finite
from mikit.critics import Bilinear, Critic, EmbeddingCritic, Joint, Separable
from mikit.estimators.base import Estimator, require_pair, seeded

__all__ = ["CriticEstimator", "require_examples"]


class CriticEstimator(Estimator, abc.ABC):
    """A measure whose critic scores pairs of rows. Subclasses say what is maximised and what is reported.

    Args:
        d_x: Width of the student's rows.
        d_y: Width of the teacher's rows.
        critic: ``"separable"``, ``"bilinear"`` or ``"joint"``.
        width: Hidden units per layer of the critic.
        depth: Hidden layers of the critic.
        embedding: Width of the separable critic's embeddings.
    """

    unit = "nats"
    learned = True

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
        super().__init__()
        self.width = width
        self.depth = depth
        self.embedding = embedding
        self.critic_name = critic
        self.critic = self._critic_for(d_x, d_y)

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
            generator: Where the critic's start comes from; torch's global generator if None.
        """
        require_examples(x, y)
        with seeded(generator):
            estimator = cls(x.shape[1], y.shape[1], critic=critic, width=width, depth=depth, embedding=embedding)
        return estimator.standardised_by(x, y)

    def standardised_by(self, x: Tensor, y: Tensor) -> Self:
        """Move to the examples' device, standardise by their columns, and return self."""
        self.to(x.device)
        self.critic.standardise_by(x, y)
        return self

    def fresh(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Self:
        """Return an unfitted copy with the same hyper-parameters, built for ``x`` and ``y``."""
        require_examples(x, y)
        other = copy.deepcopy(self).train()
        with seeded(generator):
            other.critic = self._critic_for(x.shape[1], y.shape[1])
        other.forget()
        return other.standardised_by(x, y)

    def forget(self) -> None:
        """Reset whatever training keeps outside the critic; nothing here."""
        return

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return minus the objective over the batch; the teacher ``y`` gets no gradient."""
        require_pair(x, y)
        y = y.detach()
        if isinstance(self.critic, EmbeddingCritic):
            return -self.streamed_objective(*self.critic.embed(x, y))
        return -self.objective(self.critic.scores(x, y))

    @abc.abstractmethod
    def streamed_objective(self, u: Tensor, v: Tensor) -> Tensor:
        """Return what training maximises, 0-dim, for embeddings whose products are the scores."""

    @abc.abstractmethod
    def objective(self, scores: Tensor) -> Tensor:
        """Return what training maximises, 0-dim, for the scores ``(n, n)`` of all pairs."""

    def score_rows(self, x: Tensor, y: Tensor) -> Callable[[int, int], Tensor]:
        """Return a function from ``start, stop`` to the scores of these rows of ``x`` against all of ``y``."""
        critic = self.critic
        if isinstance(critic, EmbeddingCritic):
            u, v = critic.embed(x, y)

            def of_embeddings(start: int, stop: int) -> Tensor:
                with torch.autocast(x.device.type, enabled=False):
                    return u[start:stop] @ v.T

            return of_embeddings

        def of_pairs(start: int, stop: int) -> Tensor:
            return critic.scores(x[start:stop], y)

        return of_pairs

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the critic's matrices in one group and its biases, undecayed, in another."""
        return self.critic.param_groups()

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        sizes = f"{self.critic.d_x}, {self.critic.d_y}, critic={self.critic_name!r}"
        return f"{sizes}, width={self.width}, depth={self.depth}, embedding={self.embedding}"

    def _critic_for(self, d_x: int, d_y: int) -> Critic:
        if self.critic_name == "separable":
            return Separable(d_x, d_y, width=self.width, depth=self.depth, embedding=self.embedding)
        if self.critic_name == "bilinear":
            return Bilinear(d_x, d_y)
        if self.critic_name == "joint":
            return Joint(d_x, d_y, width=self.width, depth=self.depth)
        raise InputError(f'There is no critic "{self.critic_name}". Use "separable", "bilinear" or "joint".')


def require_examples(x: Tensor, y: Tensor) -> None:
    """Refuse example features that no critic can be sized and standardised by."""
    require_pair(x, y)
    refuse_non_finite(x, "x")
    refuse_non_finite(y, "y")
