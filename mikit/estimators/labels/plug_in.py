"""Estimator of the mutual information of categories and labels from their table of counts."""

from __future__ import annotations

import math
from typing import ClassVar, NoReturn, final

import torch
from torch import Tensor

from mikit.core import require
from mikit.core.errors import InputError
from mikit.core.measurement import Check
from mikit.core.rows import require_paired
from mikit.estimators.base import Estimator, clustered_standard_error
from mikit.functional.labels.plug_in import CORRECTIONS, Correction, occurrences, plug_in_pointwise

__all__ = ["PlugIn"]

# Minus ψ(1) + (ψ(1/2) - ψ(1)) / 2, the term of a value that occurs once in Grassberger's entropy.
_ONE_OCCURRENCE = 0.5772156649015329 + math.log(2)


@final
class PlugIn(Estimator):
    """Mutual information of discrete rows ``(n, d)`` and class labels ``(n,)`` from their counts.

    Formula: ``I = H(X) + H(Y) - H(X, Y)``, each entropy from the counts with the correction of
    :func:`mikit.functional.plug_in_entropy`. Rows of x are one category where all their entries are equal.

    Args:
        correction: ``"grassberger"``, ``"miller-madow"``, or None for uncorrected frequencies, which give too high a
            value.

    Shapes:
        ``x`` is ``(n, d)``, codes or rows of categories; the labels are ``(n,)``.

    Unit: nats.

    Kind: estimate, neither an upper nor a lower bound; never clipped, so that with a correction independent samples
    give negative values about half of the time.

    Raises:
        TypeError: If called as a loss. Counts have no gradient.
        InputError: If the samples do not pair up, or the correction is unknown.

    Checks:
        The fraction of samples whose cell of the table contains no other sample, which estimates the probability of
        cells that were not observed: warns above 10 %, fails above 50 %. Continuous features fail it, because all their
        rows differ.

    Cost:
        ``O(n d log n)`` time, ``O(n)`` memory, on the CPU.

    Pitfalls:
        Binning continuous features loses information; ``Ross`` and ``LabelInformation`` use them without bins.
        Quantized activations with many columns are nearly all different and fail the check. Samples that repeat one
        item are not independent; pass ``groups``.

    Source:
        Miller (1955), "Note on the bias of information estimates"; Grassberger (2003), "Entropy Estimates from
        Insufficient Samplings", arXiv:physics/0307138.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> labels = torch.randint(2, (2000,), generator=generator)
        >>> noisy = labels ^ (torch.rand(2000, generator=generator) < 0.1)  # one in ten is flipped
        >>> abs(PlugIn().estimate(noisy[:, None], labels).item() - 0.368) < 0.05
        True
    """

    name = "plug_in"
    unit = "nats"
    kind = "estimate"
    explains = "labels"
    reads: ClassVar[str] = "categories"
    differentiable = False

    def __init__(self, correction: Correction | None = "grassberger") -> None:
        super().__init__()
        if correction is not None:
            require.one_of(correction, "correction", CORRECTIONS)
        self.correction: Correction | None = correction

    def extra_repr(self) -> str:
        """Return the hyperparameters."""
        return f"correction={self.correction!r}"

    def forward(self, x: Tensor, y: Tensor) -> NoReturn:
        """Raise TypeError, because there is no gradient."""
        raise TypeError(
            "PlugIn has no gradient, because counts are piecewise constant. Train with LabelInformation and report "
            "PlugIn with estimate or mikit.measure."
        )

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the information in nats, never clipped."""
        return self.pointwise(x, y).mean()

    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the contribution of every sample, ``(n,)``, in nats; their mean is the estimate."""
        if x.ndim != 2 or y.ndim != 1:
            raise InputError(
                f"x has shape {tuple(x.shape)} and the labels have shape {tuple(y.shape)}. Pass rows of categories (n, "
                "d) and one label per sample (n,)."
            )
        require_paired(x, y, minimum=2)
        return plug_in_pointwise(x, y, self.correction)

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float:
        """Return the standard error of the contributions, clustered by ``groups``, and of the counts.

        The squared error of the contributions is increased by ``(K_x - 1) (K_y - 1) / 2n²``, the variance that remains
        for independent variables, whose contributions are all near 0. With groups, n is their number.
        """
        first = clustered_standard_error(self.pointwise(x, y), groups)
        n = y.shape[0] if groups is None else int(groups.max()) + 1
        free = (_values(x) - 1) * (_values(y) - 1)
        return math.sqrt(first**2 + free / (2 * n**2))

    def ceiling(self, n: int) -> float:
        """Return the value for n samples that all differ: ``log n``, plus the correction there."""
        return math.log(n) + {"grassberger": _ONE_OCCURRENCE, "miller-madow": 0.5, None: 0.0}[self.correction]

    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Check whether the table is filled: warn above 10 % of samples alone in their cell, fail above 50 %."""
        cells = occurrences(torch.cat([x.double(), y[:, None].double()], dim=1))
        share = float((cells == 1).mean())
        sentence = f"{100 * share:.0f} % of the samples are the only ones with their category and label"
        if share > 0.5:
            otherwise = f"{sentence}; counts are not informative here. For continuous features use Ross."
        else:
            otherwise = f"{sentence}; about that fraction of the distribution was not observed."
        return (Check.judged("table filled", share, passed=f"{sentence}.", otherwise=otherwise, warn=0.1, fail=0.5),)


def _values(rows: Tensor) -> int:
    return round(float((1.0 / occurrences(rows)).sum()))
