"""Base classes of estimators with a learned critic: building, streaming of scores, mean ratios, and a cap on scores."""

from __future__ import annotations

import abc
import copy
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, Self, TypedDict, Unpack

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.measurement import Check
from mikit.critics import Bilinear, Critic, EmbeddingCritic, Joint, Separable
from mikit.estimators.base import Estimator, require_examples, require_pair, seeded
from mikit.estimators.fitting import FitData, FitRecord, Training
from mikit.functional.bounds.ratio_scores import log_mean_ratios

__all__ = ["CappedEstimator", "CriticEstimator", "CriticOptions", "RatioEstimator"]

_FEWEST_CARRIERS = 30
_CAPPED_SHARES = (0.003, 0.01, 0.03, 0.1)


class CriticOptions(TypedDict, total=False):
    """Options that the constructors of all estimators with a critic share."""

    critic: str
    width: int
    depth: int
    embedding: int


class _BuildOptions(CriticOptions, total=False):
    """Options of ``between``: the shared ones, and those that one of the classes has."""

    both_directions: bool
    relative_anchor: float
    rate: float
    clip: float


class CriticEstimator(Estimator, abc.ABC):
    """An estimator whose critic scores pairs of samples. Subclasses define what is maximized and what is reported.

    Args:
        d_x: Width of the student's features.
        d_y: Width of the teacher's features.
        critic: ``"separable"``, ``"bilinear"`` or ``"joint"``.
        width: Hidden units per layer of the critic.
        depth: Hidden layers of the critic.
        embedding: Width of the separable critic's embeddings.
    """

    unit = "nats"
    learned = True
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
    ) -> None:
        super().__init__()
        self.width = width
        self.depth = depth
        self.embedding = embedding
        self.critic_name = critic
        self.critic = self._critic_for(d_x, d_y)

    def __init_subclass__(cls) -> None:
        """Show every option by name in the signatures of the constructor and of :meth:`between`.

        The options are written once, here and in :class:`CriticOptions`. Without this, ``help``, the documentation and
        notebooks would show ``**options`` in their place.
        """
        super().__init_subclass__()
        shared = _by_name(CriticEstimator.__init__)
        constructor: Any = vars(cls).get("__init__")
        if constructor is not None:
            constructor.__signature__ = _with_options(constructor, shared)
        build: Any = vars(CriticEstimator)["between"].__func__

        # A function of each class, because each has options of its own to show.
        @functools.wraps(build)
        def between(*args: Any, **options: Any) -> Any:
            return build(*args, **options)

        between.__signature__ = _with_options(build, _by_name(cls))  # type: ignore[attr-defined]
        cls.between = classmethod(between)  # type: ignore[method-assign, assignment]

    @classmethod
    def between(
        cls, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None, **options: Unpack[_BuildOptions]
    ) -> Self:
        """Build from example features, which set the sizes and the standardization.

        Args:
            x: Student features ``(n, d_x)``.
            y: Teacher features ``(n, d_y)``.
            generator: Source of the critic's initial weights; torch's global generator if None.
            **options: Options of the constructor.
        """
        require_examples(x, y)
        constructor: Callable[..., Self] = cls
        with seeded(generator):
            estimator = constructor(x.shape[1], y.shape[1], **options)
        return estimator.standardised_by(x, y)

    def standardised_by(self, x: Tensor, y: Tensor) -> Self:
        """Move to the device of the examples, standardize each feature by them, and return self."""
        self.to(x.device)
        self.critic.standardise_by(x, y)
        return self

    def fresh(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Self:
        """Return an unfitted copy with the same hyperparameters, built for ``x`` and ``y``."""
        require_examples(x, y)
        other = copy.deepcopy(self).train()
        with seeded(generator):
            other.critic = self._critic_for(x.shape[1], y.shape[1])
        other.forget()
        return other.standardised_by(x, y)

    def forget(self) -> None:
        """Reset the state that training keeps outside the critic; nothing here."""
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
        """Return the training objective to maximize, 0-dim, for embeddings whose products are the scores."""

    @abc.abstractmethod
    def objective(self, scores: Tensor) -> Tensor:
        """Return the training objective to maximize, 0-dim, for the scores ``(n, n)`` of all pairs."""

    def score_rows(self, x: Tensor, y: Tensor) -> Callable[[int, int], Tensor]:
        """Return a function from ``start, stop`` to the scores of these rows of ``x`` with all rows of ``y``."""
        critic = self.critic
        if isinstance(critic, EmbeddingCritic):
            # Embedded once: only the products are computed block by block.
            u, v = critic.embed(x, y)

            def of_embeddings(start: int, stop: int) -> Tensor:
                with torch.autocast(x.device.type, enabled=False):
                    return u[start:stop] @ v.T

            return of_embeddings

        def of_pairs(start: int, stop: int) -> Tensor:
            return critic.scores(x[start:stop], y)

        return of_pairs

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the critic's matrices in one group and its biases, without weight decay, in another."""
        return self.critic.param_groups()

    def extra_repr(self) -> str:
        """Return the hyperparameters."""
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


def _by_name(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters that are passed by keyword only."""
    return [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]


def _with_options(function: Callable[..., Any], options: list[inspect.Parameter]) -> inspect.Signature:
    """Return the signature of ``function`` with ``options`` in place of its ``**options``."""
    found = inspect.signature(function)
    by_place = [p for p in found.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    return found.replace(parameters=[*by_place, *options, *_by_name(function)])


class RatioEstimator(CriticEstimator, abc.ABC):
    """An estimator that compares the mean over pairs with a mean of exponentials over all other combinations."""

    clip: float | None = None

    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Return whether enough samples carry the mean of exponentials, which value and interval depend on."""
        n = x.shape[0]
        _, of_rows, of_columns = log_mean_ratios(self.score_rows(x, y), n, clip=self.clip)
        # A sample's weight is its share of the sum, in either role; the inverse of the sum of squared weights is the
        # effective sample size of importance sampling. A mean of exponentials is heavy-tailed: where a few samples
        # carry it, larger terms were probably missed, and neither the mean nor its standard error can be trusted.
        weights = torch.logaddexp(of_rows, of_columns).softmax(dim=0)
        carriers = float(1 / weights.square().sum())
        sentence = f"The mean of exponentials depends on {carriers:.0f} of {n} samples, counted by weight"
        if carriers >= _FEWEST_CARRIERS:
            return (Check.passed("negatives", f"{sentence}.", carriers, _FEWEST_CARRIERS),)
        sentence += (
            ". Rarer combinations with larger weights were not met, so the value is biased upward and the interval is "
            "too short. Use more samples, or an estimator without exponentials of scores."
        )
        return (Check.warned("negatives", sentence, carriers, _FEWEST_CARRIERS),)

    @torch.no_grad()
    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the estimate over all samples, in nats."""
        return self.pointwise(x, y).mean()

    @abc.abstractmethod
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return each sample's influence, as part of pairs and of negatives; the mean is the estimate."""


class CappedEstimator(RatioEstimator, abc.ABC):
    """An estimator that limits the critic's scores by a cap, chosen after training on samples that were not trained on.

    A few scores that are far too high dominate a mean of exponentials. The cap limits the scores of pairs and of
    negatives alike: a critic with a cap is still a critic, so a bound that holds for any critic remains a bound.
    """

    cap: Tensor

    def __init__(self, d_x: int, d_y: int, **options: Unpack[CriticOptions]) -> None:
        super().__init__(d_x, d_y, **options)
        self.register_buffer("cap", torch.full((), math.inf))

    @torch.no_grad()
    def forget(self) -> None:
        """Remove the cap."""
        self.cap.fill_(math.inf)

    def _fit(self, data: FitData) -> FitRecord:
        """Fit the critic, then choose the cap with the largest estimate on the select part; no cap is a candidate."""
        self.forget()
        record = super()._fit(data)
        with torch.no_grad():
            self._choose_cap(*data.watched)
        return record

    def score_rows(self, x: Tensor, y: Tensor) -> Callable[[int, int], Tensor]:
        """Return a function from ``start, stop`` to the capped scores of these rows of ``x`` with all rows of ``y``."""
        uncapped, cap = super().score_rows(x, y), float(self.cap)
        return uncapped if cap == math.inf else lambda start, stop: uncapped(start, stop).clamp_(max=cap)

    def _choose_cap(self, x: Tensor, y: Tensor) -> None:
        # Quantiles of the scores of pairs: the range of scores depends on the data, the number of capped pairs not.
        scores = self.critic.pair_scores(x, y).double()
        caps = [math.inf, *(float(scores.quantile(1 - share)) for share in _CAPPED_SHARES)]
        values = []
        for cap in caps:
            self.cap.fill_(cap)
            values.append(float(self.estimate(x, y)))
        self.cap.fill_(caps[values.index(max(values))])
