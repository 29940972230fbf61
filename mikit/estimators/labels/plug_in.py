"""Mutual information of categories and labels from their table of counts, as an instrument."""

from __future__ import annotations

import math
from typing import ClassVar, NoReturn, final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.measurement import Check
from mikit.core.rows import require_paired
from mikit.estimators.base import Estimator, clustered_standard_error
from mikit.functional.labels.plug_in import Correction, occurrences, plug_in_pointwise

__all__ = ["PlugIn"]

# ψ(1) + (ψ(1/2) - ψ(1)) / 2 is minus this: what one occurrence adds to the log in Grassberger's entropy.
_ONE_OCCURRENCE = 0.5772156649015329 + math.log(2)


@final
class PlugIn(Estimator):
    """Mutual information of discrete rows ``(n, d)`` and class labels ``(n,)`` from their counts.

    Formula: ``I = H(X) + H(Y) - H(X, Y)``, each entropy from the counts with the correction of
    :func:`mikit.functional.plug_in_entropy`. Rows of x are one category where all their entries are equal.

    Args:
        correction: ``"grassberger"``, ``"miller-madow"``, or None for the frequencies as they are, which reads too
            high.

    Shapes:
        ``x`` is ``(n, d)``, codes or rows of categories; the labels are ``(n,)``.

    Unit: nats.

    Kind: estimate, neither an upper nor a lower bound; never clipped, so that with a correction independent rows give
    negative values about half of the time.

    Raises:
        TypeError: If called as a loss. Counts have no gradient.
        InputError: If the rows do not pair up, or the correction is unknown.

    Checks:
        The share of rows whose cell of the table holds no other row, which estimates how much of the law the sample has
        not seen: warns above 10 %, fails above 50 %. Numbers with a density fail it, as all their rows differ.

    Cost:
        ``O(n d log n)`` time, ``O(n)`` memory, on the CPU.

    Pitfalls:
        Numbers cut into bins lose information with each cut; ``Ross`` and ``LabelInformation`` read numbers as they
        are. Quantised activations of many columns are nearly all different and fail the check. Rows that repeat one
        item are not independent; name them in ``groups``.

    Source:
        Miller (1955), "Note on the bias of information estimates"; Grassberger (2003), "Entropy Estimates from
        Insufficient Samplings", arXiv:physics/0307138.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> labels = torch.randint(2, (2000,), generator=generator)
        >>> read = labels ^ (torch.rand(2000, generator=generator) < 0.1)  # one in ten is flipped
        >>> abs(PlugIn().estimate(read[:, None], labels).item() - 0.368) < 0.05
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
        if correction not in (None, "miller-madow", "grassberger"):
            raise InputError(f"correction is {correction!r}. Choose 'grassberger', 'miller-madow' or None.")
        self.correction: Correction | None = correction

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"correction={self.correction!r}"

    def forward(self, x: Tensor, y: Tensor) -> NoReturn:
        """Raise TypeError: there is nothing to minimise."""
        raise TypeError(
            "PlugIn has no gradient: counts are piecewise constant, so as a loss it would train nothing. Train with "
            "LabelInformation and report PlugIn with estimate or mikit.measure."
        )

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the information in nats, never clipped."""
        return self.pointwise(x, y).mean()

    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the contribution of every row, ``(n,)``, in nats; their mean is the estimate."""
        if x.ndim != 2 or y.ndim != 1:
            raise InputError(
                f"x has shape {tuple(x.shape)} and the labels have shape {tuple(y.shape)}. Pass rows of categories "
                "(n, d) and one label per row (n,)."
            )
        require_paired(x, y, minimum=2)
        return plug_in_pointwise(x, y, self.correction)

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float:
        """Return the standard error of the contributions, clustered by ``groups``, and of the counts.

        To its square is added ``(K_x - 1) (K_y - 1) / 2n²``, the variance that is left for independent variables, where
        the contributions all are near 0; n is the number of groups where there are some.
        """
        first = clustered_standard_error(self.pointwise(x, y), groups)
        n = y.shape[0] if groups is None else int(groups.max()) + 1
        free = (_values(x) - 1) * (_values(y) - 1)
        return math.sqrt(first**2 + free / (2 * n**2))

    def ceiling(self, n: int) -> float:
        """Return what n rows that all differ would show: ``log n``, and more by what the correction adds there."""
        return math.log(n) + {"grassberger": _ONE_OCCURRENCE, "miller-madow": 0.5, None: 0.0}[self.correction]

    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Return whether the table is filled: warns above 10 % of rows alone in their cell, fails above 50 %."""
        cells = occurrences(torch.cat([x.double(), y[:, None].double()], dim=1))
        share, name = float((cells == 1).mean()), "table filled"
        said = f"{100 * share:.0f} % of the rows are the only ones of their category and label"
        if share > 0.5:
            return (Check(name, "fail", share, 0.5, f"{said}; counts say nothing here. For numbers use Ross."),)
        if share > 0.1:
            return (Check(name, "warn", share, 0.1, f"{said}; so about that much of the law was never seen."),)
        return (Check(name, "pass", share, 0.1, f"{said}."),)


def _values(rows: Tensor) -> int:
    return round(float((1.0 / occurrences(rows)).sum()))
