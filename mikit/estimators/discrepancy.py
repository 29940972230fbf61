"""What compares the laws of two samples: the base of all discrepancies."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor

from mikit.core.errors import InputError
from mikit.estimators.base import Estimator, require_pair

__all__ = ["Discrepancy"]

_FEWEST_TO_SPLIT = 4


class Discrepancy(Estimator):
    """Base of the measures that compare the law of rows ``(n, d_x)`` with that of rows ``(m, d_y)``.

    A subclass implements :meth:`between_laws`; loss, estimate and debiasing are the same for all.

    Attributes:
        kind: ``"discrepancy"``: 0 for equal laws, and blind to which row belongs to which.
        weighted: Whether the rows may carry weights.
        same_width: Whether both samples must have one width.
        unbiased: Whether two samples of one law give 0 on average. Where they do not, ``debias=True`` subtracts what
            halves of one sample give against each other.
        debias: Whether :meth:`estimate` does so.
    """

    kind = "discrepancy"
    symmetric = True
    needs_pairs = False
    zero_when_independent = False
    weighted: ClassVar[bool] = False
    same_width: ClassVar[bool] = True
    unbiased: bool = False

    def __init__(self, *, debias: bool = False) -> None:
        super().__init__()
        self.debias = debias
        self.orderless = not debias

    @abc.abstractmethod
    def between_laws(
        self, x: Tensor, y: Tensor, *, weights_x: Tensor | None = None, weights_y: Tensor | None = None
    ) -> Tensor:
        """Return the discrepancy of two samples as the formula has it, 0-dim, with its gradient."""

    def forward(
        self, x: Tensor, y: Tensor, *, weights_x: Tensor | None = None, weights_y: Tensor | None = None
    ) -> Tensor:
        """Return the discrepancy of the batch, to minimise; ``y`` is detached."""
        return self.estimate(x, y.detach(), weights_x=weights_x, weights_y=weights_y)

    def estimate(
        self, x: Tensor, y: Tensor, *, weights_x: Tensor | None = None, weights_y: Tensor | None = None
    ) -> Tensor:
        r"""Return the discrepancy; with ``debias`` less what finite samples of one law give.

        The debiased value is, with the rows dealt alternately into halves,

        .. math:: \tfrac12 [D(x_1, y_2) + D(x_2, y_1)] - \tfrac12 [D(x_1, x_2) + D(y_1, y_2)]

        so the rows should come in random order, and row ``i`` of both samples may belong to one input. It is never
        clipped, and negative about half of the time for equal laws.

        Raises:
            InputError: If the samples do not fit this measure, carry weights that it does not take, or are fewer than
                four rows to debias with.
        """
        return self.compared(self.between_laws, x, y, weights_x=weights_x, weights_y=weights_y)

    def compared(
        self,
        between: Callable[..., Tensor],
        x: Tensor,
        y: Tensor,
        *,
        weights_x: Tensor | None = None,
        weights_y: Tensor | None = None,
    ) -> Tensor:
        """Return what :meth:`estimate` does, with ``between`` in the place of :meth:`between_laws`."""
        self.require_samples(x, y)
        if (weights_x is not None or weights_y is not None) and not self.weighted:
            raise InputError(f"{type(self).__name__} takes no weights; every row counts the same.")
        if not self.debias:
            return between(x, y, weights_x=weights_x, weights_y=weights_y)
        if weights_x is not None or weights_y is not None:
            raise InputError("Debiasing halves the samples, and halves of weighted rows differ; leave out the weights.")
        if min(x.shape[0], y.shape[0]) < _FEWEST_TO_SPLIT:
            raise InputError(
                f"There are {x.shape[0]} and {y.shape[0]} rows; debiasing halves both, so it needs {_FEWEST_TO_SPLIT}."
            )
        (x1, x2), (y1, y2) = (x[::2], x[1::2]), (y[::2], y[1::2])
        return (between(x1, y2) + between(x2, y1) - between(x1, x2) - between(y1, y2)) / 2

    def mean_between(self, laws: Sequence[tuple[Tensor, Tensor]], shares: Sequence[float]) -> Tensor | None:
        """Return the sum of the estimates of several pairs of samples times ``shares``, formed in one go.

        None where a measure has no faster way than one pair after the other.
        """
        return None

    def settled(self, x: Tensor, y: Tensor) -> Discrepancy:
        """Return this measure with what it would take from the data, such as a bandwidth, taken from these for good.

        Values on parts of the samples then share one scale.
        """
        return self

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return 4, the fewest rows that can be halved."""
        return _FEWEST_TO_SPLIT

    def require_samples(self, x: Tensor, y: Tensor) -> None:
        """Raise :class:`~mikit.InputError` unless ``x`` and ``y`` are samples that this measure compares."""
        fewest = min(x.shape[0], y.shape[0])  # the samples may differ in size, not in width or device
        require_pair(x[:fewest], y[:fewest], minimum=1, same_width=self.same_width)
