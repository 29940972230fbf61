"""One term of MIMKD: a critic that contrasts a student's cells with a teacher's, and its estimate in nats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.inputs import refuse_non_finite
from mikit.critics import EmbeddingCritic
from mikit.distillation.mimkd.critics import BoundedJoint, Cosine, take_statistics
from mikit.estimators.base import Estimator, seeded
from mikit.estimators.fitting import Training
from mikit.functional.bounds.infonce import anchored_infonce, infonce
from mikit.functional.bounds.kept_negatives import (
    anchored_infonce_with_kept,
    infonce_with_kept,
    jsd_of_partners,
    jsd_with_kept,
    kept_negatives,
    shifted_partners,
)
from mikit.functional.bounds.ratio_scores import nwj_influence
from mikit.functional.bounds.ratios import jsd

__all__ = ["CRITICS", "NEGATIVES", "OBJECTIVES", "Contrast", "ContrastSettings"]

OBJECTIVES = ("jsd", "infonce", "anchored")
CRITICS = ("dot", "concat")
NEGATIVES = ("all", "shift")
RELATIVE_ANCHOR = 4.0
# Scores stored for the backward pass at most; more are computed in blocks, which is slower for small batches.
_KEPT_SCORES = 2**22


@final
@dataclass(frozen=True, kw_only=True)
class ContrastSettings:
    """Objective and critic of a contrast.

    ``negatives`` None means all for the critic ``"dot"`` and for the objectives that need them, else one per image, by
    a cyclic shift. ``bound`` limits the scores.
    """

    objective: str = "jsd"
    critic: str = "dot"
    negatives: str | None = None
    width: int = 128
    bound: float = 10.0

    def __post_init__(self) -> None:
        for name, known in (("objective", OBJECTIVES), ("critic", CRITICS), ("negatives", (None, *NEGATIVES))):
            if getattr(self, name) not in known:
                listed = ", ".join(f'"{one}"' for one in known if one is not None)
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be one of {listed}.")
        if self.negatives == "shift" and self.objective != "jsd":
            raise InputError(
                f'The objective "{self.objective}" needs many candidates per image, so one negative is not enough. '
                'Use negatives="all", or the objective "jsd".'
            )

    @property
    def takes_all(self) -> bool:
        """Whether all other rows of the batch are negatives."""
        if self.negatives is None:
            return self.critic == "dot" or self.objective != "jsd"
        return self.negatives == "all"


@final
class Contrast(Estimator):
    """A bounded critic between cells ``(n, p, d_x)`` of a student and cells ``(n, p, d_y)`` of a teacher.

    The loss is minus the objective of the settings at each of the ``p`` positions, averaged over positions. Negatives
    are cells at the same position of other images. Teacher cells ``(n, 1, d_y)``, one vector per image, are used at
    every position. The estimate is a lower bound in nats on the information at a position, in expectation and on images
    that did not fit the critic.

    Source:
        Deep InfoMax (Hjelm and others, 2019) for contrasting a vector with the positions of a map.
    """

    name = "contrast"
    unit = "nats"
    kind = "lower bound"
    learned = True
    recipe = Training(steps=600, batch=256, learning_rate=3e-3, weight_decay=1e-2, every=25, patience=10)

    def __init__(self, d_x: int, d_y: int, settings: ContrastSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or ContrastSettings()
        width, bound = self.settings.width, self.settings.bound
        self.critic: Cosine | BoundedJoint
        if self.settings.critic == "dot":
            self.critic = Cosine(d_x, d_y, width=width, bound=bound)
        else:
            self.critic = BoundedJoint(d_x, d_y, width=width, bound=bound)

    def fresh(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Self:
        """Return an unfitted copy with the same settings, standardized by ``x`` and ``y``."""
        with seeded(generator):
            other = type(self)(x.shape[-1], y.shape[-1], self.settings)
        return other.standardized_by(x, y)

    def standardized_by(self, x: Tensor, y: Tensor) -> Self:
        """Move to the cells' device, take the standardization from them, and return self."""
        refuse_non_finite(x, "The student's features")
        refuse_non_finite(y, "The teacher's features")
        self.to(device=x.device)
        take_statistics(self.critic, x.flatten(0, 1), y.flatten(0, 1))
        return self

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return minus the objective; the teacher ``y`` gets no gradient.

        Images of one label are not negatives of each other. ``generator`` draws the shift, or torch's global generator
        if it is None; in evaluation mode the shift is half the batch.
        """
        n = self._require(x, y)
        y = y.detach()
        # One negative per image costs O(n) scores, for critics that read both sides together. With all of them an
        # embedding critic needs one product of matrices, whose n^2 p scores are stored for the backward pass only while
        # they are few; labels exclude single scores, for which the matrix must be there.
        if not self.settings.takes_all:
            return -self._with_one_negative(x, y, labels, self._shift(n, generator))
        if labels is None and isinstance(self.critic, EmbeddingCritic) and n * n * x.shape[1] > _KEPT_SCORES:
            return -self._streamed(x, y)
        kept = kept_negatives(n, labels, device=x.device)
        return -self._with_kept(self._scores(x, y), kept)

    @torch.no_grad()
    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the bound of Nguyen, Wainwright and Jordan over all images, in nats."""
        return self.pointwise(x, y).mean()

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return each image's influence on the bound, averaged over its cells; the mean is the estimate."""
        n = self._require(x, y)
        # Cells of one image are dependent, so they are averaged first: the image is the unit of the standard error.
        found = torch.zeros(n, dtype=torch.float64, device=x.device)
        for k in range(x.shape[1]):
            found += nwj_influence(self._score_rows(x[:, k], _at(y, k)), n)
        return found / x.shape[1]

    @torch.no_grad()
    def mean_score(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean score of the pairs, in nats: the information if the critic is the log density ratio."""
        self._require(x, y)
        return self._pair_scores(x, y).double().mean()

    @property
    def largest_score(self) -> float:
        """The largest possible score, in nats."""
        offset = float(self.critic.offset.detach()) if isinstance(self.critic, Cosine) else 0.0
        return self.settings.bound + offset

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the critic's matrices in one group and its vectors in another, without weight decay."""
        return self.critic.param_groups()

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"objective={self.settings.objective!r}, critic={self.settings.critic!r}"

    def _streamed(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the objective over all other images, computed in blocks without storing the scores."""
        u, v = self._embedded(x, y)
        # Position by position: negatives come from other images alone, as cells of one image are no independent draws.
        # The bounds compute scores in blocks of rows, forward and again backward, so memory is O(n) per position.
        per_position = []
        with torch.autocast(x.device.type, enabled=False):
            for k in range(u.shape[1]):
                left, right = u[:, k], _at(v, k)
                if self.settings.objective == "jsd":
                    per_position.append(jsd(left, right))
                elif self.settings.objective == "infonce":
                    per_position.append(infonce(left, right, both_directions=True))
                else:
                    per_position.append(anchored_infonce(left, right, anchor=RELATIVE_ANCHOR * (u.shape[0] - 1)))
        return torch.stack(per_position).mean()

    def _with_kept(self, scores: Tensor, kept: Tensor) -> Tensor:
        # Log-sum-exps over a batch lose too many digits in half precision, so autocast ends before the objective.
        with torch.autocast(scores.device.type, enabled=False):
            if self.settings.objective == "jsd":
                return jsd_with_kept(scores, kept)
            if self.settings.objective == "infonce":
                return infonce_with_kept(scores, kept)
            return anchored_infonce_with_kept(scores, kept, relative_anchor=RELATIVE_ANCHOR)

    def _with_one_negative(self, x: Tensor, y: Tensor, labels: Tensor | None, shift: Tensor | int) -> Tensor:
        # Where labels exclude the shifted partner, the next one that they allow takes its place; ``has`` says which
        # images have any. In a cyclic shift every image is the negative of exactly one other, so the marginals of the
        # negatives are those of the batch.
        partners, has = shifted_partners(kept_negatives(x.shape[0], labels, device=x.device), shift)
        if isinstance(self.critic, EmbeddingCritic):
            u, v = self._embedded(x, y)
            with torch.autocast(x.device.type, enabled=False):
                return jsd_of_partners((u * v).sum(dim=-1), (u * v[partners]).sum(dim=-1), has)
        positives, negatives = self._pair_scores(x, y), self._pair_scores(x, y[partners])
        with torch.autocast(x.device.type, enabled=False):
            return jsd_of_partners(positives, negatives, has)

    def _embedded(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(self.critic, EmbeddingCritic)
        u, v = self.critic.embed(x.flatten(0, 1), y.flatten(0, 1))
        return u.reshape(*x.shape[:2], -1), v.reshape(*y.shape[:2], -1)

    def _pair_scores(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the scores of the pairs, ``(n, p)``."""
        everywhere = y.expand(-1, x.shape[1], -1)
        return self.critic.pair_scores(x.flatten(0, 1), everywhere.flatten(0, 1)).reshape(x.shape[:2])

    def _scores(self, x: Tensor, y: Tensor) -> Tensor:
        """Return all scores at every position, ``(p, n, n)``."""
        if isinstance(self.critic, EmbeddingCritic):
            u, v = self._embedded(x, y)
            with torch.autocast(x.device.type, enabled=False):
                return u.transpose(0, 1) @ v.permute(1, 2, 0)
        return torch.stack([self.critic.scores(x[:, k], _at(y, k)) for k in range(x.shape[1])])

    def _score_rows(self, x: Tensor, y: Tensor) -> Callable[[int, int], Tensor]:
        """Return a function that computes the scores, plus 1, of a block of rows against all of ``y``."""
        # The bound is E[f] - E[exp(f - 1)], largest for f = log-ratio + 1. The Jensen-Shannon objective trains the
        # critic to the log-ratio, so adding 1 here makes the bound tight without further training.
        if isinstance(self.critic, EmbeddingCritic):
            u, v = self.critic.embed(x, y)
            return lambda start, stop: u[start:stop] @ v.T + 1
        return lambda start, stop: self.critic.scores(x[start:stop], y) + 1

    def _shift(self, n: int, generator: torch.Generator | None) -> Tensor | int:
        if not self.training:
            return n // 2
        device = None if generator is None else generator.device
        return torch.randint(1, n, (), generator=generator, device=device)

    def _require(self, x: Tensor, y: Tensor) -> int:
        """Return the number of images; refuse cells that cannot be contrasted."""
        if x.ndim != 3 or y.ndim != 3 or x.shape[0] != y.shape[0] or y.shape[1] not in (1, x.shape[1]):
            raise InputError(
                f"The student's cells have shape {tuple(x.shape)} and the teacher's {tuple(y.shape)}; they must "
                "be (n, p, d_x), and (n, p, d_y) or (n, 1, d_y), of the same n images."
            )
        fewest = 3 if self.settings.objective == "anchored" else 2
        if x.shape[0] < fewest:
            raise InputError(
                f"The batch has {x.shape[0]} image{'s' * (x.shape[0] != 1)}; the objective {self.settings.objective!r} "
                f"needs at least {fewest}, because the negatives of an image are the other images of its batch."
            )
        return int(x.shape[0])


def _at(cells: Tensor, k: int) -> Tensor:
    """Return the cells at position ``k``; a single cell per image is used at every position."""
    return cells[:, min(k, cells.shape[1] - 1)]
