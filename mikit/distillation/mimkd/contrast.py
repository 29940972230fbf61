"""One term of MIMKD: a critic that tells a student's cells from those of other images, and what it knows in nats."""

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
# Scores kept for backward at most; where there are more, they are streamed, which is slower for small batches.
_KEPT_SCORES = 2**22


@final
@dataclass(frozen=True, kw_only=True)
class ContrastSettings:
    """What a contrast is made of.

    Attributes:
        objective: ``"jsd"``, ``"infonce"`` or ``"anchored"``.
        critic: ``"dot"`` or ``"concat"``.
        negatives: ``"all"``, ``"shift"``, or None: all for ``"dot"`` and for the objectives that need them, one by a
            cyclic shift otherwise.
        width: Width of the critic's layers and embeddings.
        bound: Limit of the scores.

    Raises:
        InputError: If a setting does not exist, or two do not fit.

    Example:
        >>> ContrastSettings(critic="concat").takes_all
        False
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
                raise InputError(f"There is no {name} {getattr(self, name)!r}. Use one of {listed}.")
        if self.negatives == "shift" and self.objective != "jsd":
            raise InputError(
                f'The objective "{self.objective}" seeks a pair among many candidates, so one negative is not enough. '
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

    Formula: the objective of the settings at each position ``k`` of the ``p``, between the student's cells ``k`` and
    the teacher's cells ``k`` of the same images, averaged over positions. Negatives are cells ``k`` of other images:
    those of the same image would be no independent draws. ``forward`` is minus that. Teacher cells ``(n, 1, d_y)``, one
    vector an image, stand at every position.

    Args:
        d_x: Width of the student's cells.
        d_y: Width of the teacher's cells.
        settings: Objective, critic, negatives.

    Unit: nats (``estimate``); nats of the objective's own (``forward``).

    Kind: lower bound (``estimate``), in expectation, on the information at a position averaged over positions, on
    images that did not fit the critic.

    Raises:
        InputError: If shapes do not fit or there are too few images.

    Cost:
        ``O(n p width (d_x + d_y + width))`` for the critic. All negatives: ``O(n² p width)``, with ``n² p`` scores
        kept; streamed beyond four million of them, unless labels exclude some. ``width`` times that for ``"concat"``.

    Pitfalls:
        No information beyond the bound of the scores can be seen.

    Source:
        Deep InfoMax (Hjelm and others, 2019) for contrasting a vector with the positions of a map.

    Example:
        >>> contrast = Contrast(3, 2)
        >>> contrast(torch.randn(8, 4, 3), torch.randn(8, 1, 2)).shape
        torch.Size([])
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
        """Return an unfitted copy with the same settings, standardised by ``x`` and ``y``."""
        with seeded(generator):
            other = type(self)(x.shape[-1], y.shape[-1], self.settings)
        return other.standardised_by(x, y)

    def standardised_by(self, x: Tensor, y: Tensor) -> Self:
        """Move to the cells' device, standardise by them, and return self."""
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

        Args:
            x: Student cells.
            y: Teacher cells.
            labels: Class indices ``(n,)``; images of one label are no negatives of each other.
            generator: Where the shift of a batch is drawn from; torch's global generator if None. In evaluation mode
                the shift is half the batch.
        """
        n = self._require(x, y)
        y = y.detach()
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
        """Return each image's influence on the bound, its cells averaged; the mean is the estimate."""
        n = self._require(x, y)
        found = torch.zeros(n, dtype=torch.float64, device=x.device)
        for k in range(x.shape[1]):
            found += nwj_influence(self._score_rows(x[:, k], _at(y, k)), n)
        return found / x.shape[1]

    @torch.no_grad()
    def mean_score(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean score of the pairs, in nats: the information, as far as the critic is the log-ratio."""
        self._require(x, y)
        return self._pair_scores(x, y).double().mean()

    @property
    def largest_score(self) -> float:
        """The largest score that the critic can give, in nats."""
        offset = float(self.critic.offset.detach()) if isinstance(self.critic, Cosine) else 0.0
        return self.settings.bound + offset

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the critic's matrices in one group and its vectors, undecayed, in another."""
        return self.critic.param_groups()

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"objective={self.settings.objective!r}, critic={self.settings.critic!r}"

    def _streamed(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the objective over all other images; no scores are kept."""
        u, v = self._embedded(x, y)
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
        with torch.autocast(scores.device.type, enabled=False):
            if self.settings.objective == "jsd":
                return jsd_with_kept(scores, kept)
            if self.settings.objective == "infonce":
                return infonce_with_kept(scores, kept)
            return anchored_infonce_with_kept(scores, kept, relative_anchor=RELATIVE_ANCHOR)

    def _with_one_negative(self, x: Tensor, y: Tensor, labels: Tensor | None, shift: Tensor | int) -> Tensor:
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
        """Return a function to the scores, plus 1, of a strip of rows against all of ``y``."""
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
        """Return the number of images, or say why they cannot be contrasted."""
        if x.ndim != 3 or y.ndim != 3 or x.shape[0] != y.shape[0] or y.shape[1] not in (1, x.shape[1]):
            raise InputError(
                f"The student's cells have shape {tuple(x.shape)} and the teacher's {tuple(y.shape)}; a contrast reads "
                "(n, p, d_x) and (n, p, d_y) or (n, 1, d_y) of the same n images."
            )
        fewest = 3 if self.settings.objective == "anchored" else 2
        if x.shape[0] < fewest:
            raise InputError(
                f"The batch has {x.shape[0]} image{'s' * (x.shape[0] != 1)}; the objective {self.settings.objective!r} "
                f"needs at least {fewest}, because the negatives of an image are the other images of its batch."
            )
        return int(x.shape[0])


def _at(cells: Tensor, k: int) -> Tensor:
    """Return the cells at position ``k``; one cell an image stands at every position."""
    return cells[:, min(k, cells.shape[1] - 1)]
