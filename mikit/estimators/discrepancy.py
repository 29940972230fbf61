"""The base class of discrepancies: estimators that compare the distributions of two samples."""

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
    """Base of the estimators that compare the distribution of ``x``, ``(n, d_x)``, with that of ``y``, ``(m, d_y)``.

    A subclass implements :meth:`between_laws`; loss, estimate and debiasing are the same for all.

    Attributes:
        weighted: Whether the samples may be weighted.
        same_width: Whether both samples must have the same number of features.
        unbiased: Whether two samples of one distribution give 0 on average. If not, ``debias=True`` subtracts the
            discrepancy between halves of one sample.
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
        """Return the discrepancy of two samples by its formula, 0-dim, differentiable."""

    def forward(
        self, x: Tensor, y: Tensor, *, weights_x: Tensor | None = None, weights_y: Tensor | None = None
    ) -> Tensor:
        """Return the discrepancy of the batch, to minimize; ``y`` is detached."""
        return self.estimate(x, y.detach(), weights_x=weights_x, weights_y=weights_y)

    def estimate(
        self, x: Tensor, y: Tensor, *, weights_x: Tensor | None = None, weights_y: Tensor | None = None
    ) -> Tensor:
        r"""Return the discrepancy, never clipped; with ``debias``, minus its value between samples of one distribution.

        .. math:: \tfrac12 [D(x_1, y_2) + D(x_2, y_1)] - \tfrac12 [D(x_1, x_2) + D(y_1, y_2)]

        The halves are the even and the odd rows, so the rows should come in random order. For equal distributions the
        debiased value is negative about half of the time.

        Raises:
            InputError: If the samples do not fit each other, are too few to debias, or must not be weighted.
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
        """Return the estimate with the function ``between`` in place of :meth:`between_laws`."""
        self.require_samples(x, y)
        if (weights_x is not None or weights_y is not None) and not self.weighted:
            raise InputError(f"{type(self).__name__} takes no weights: all samples count equally.")
        if not self.debias:
            return between(x, y, weights_x=weights_x, weights_y=weights_y)
        if weights_x is not None or weights_y is not None:
            raise InputError(
                "debias=True compares halves of the samples, and halves of weighted samples differ. Leave out the "
                "weights."
            )
        if min(x.shape[0], y.shape[0]) < _FEWEST_TO_SPLIT:
            raise InputError(
                f"x has {x.shape[0]} samples and y has {y.shape[0]}; debiasing halves both and needs "
                f"{_FEWEST_TO_SPLIT}."
            )
        # All four terms compare samples of half the size, so the bias that finite samples of one distribution have is
        # the same in each and cancels. The terms across never compare row 2i of x with row 2i of y, which may come from
        # the same input: paired rows resemble each other, and would make the distributions look closer than they are.
        (x1, x2), (y1, y2) = (x[::2], x[1::2]), (y[::2], y[1::2])
        return (between(x1, y2) + between(x2, y1) - between(x1, x2) - between(y1, y2)) / 2

    def mean_between(self, laws: Sequence[tuple[Tensor, Tensor]], shares: Sequence[float]) -> Tensor | None:
        """Return the sum of the estimates of several pairs of samples, weighted by ``shares``, in one computation.

        None if this estimator has no faster way than one pair after the other.
        """
        return None

    def settled(self, x: Tensor, y: Tensor) -> Discrepancy:
        """Return this estimator with settings that depend on the data, such as a bandwidth, fixed by these samples.

        Values on parts of the samples then share one scale.
        """
        return self

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return 4, the smallest number of samples that can be halved."""
        return _FEWEST_TO_SPLIT

    def require_samples(self, x: Tensor, y: Tensor) -> None:
        """Raise :class:`~mikit.InputError` unless ``x`` and ``y`` are samples that this estimator can compare."""
        fewest = min(x.shape[0], y.shape[0])  # the samples may differ in size, not in width or device
        require_pair(x[:fewest], y[:fewest], minimum=1, same_width=self.same_width)
