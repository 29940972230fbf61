"""The energy distance between the distributions of two representations, as a loss and as a metric."""

from __future__ import annotations

from typing import final

from torch import Tensor

from mikit.core import require
from mikit.core.errors import InputError
from mikit.estimators.base import clustered_standard_error, require_pair
from mikit.estimators.discrepancy import Discrepancy
from mikit.functional.kernels.energy import (
    energy_distance2,
    energy_distance2_pointwise,
    energy_distance2_standard_error,
)

__all__ = ["EnergyDistance"]


@final
class EnergyDistance(Discrepancy):
    """Squared energy distance between the distributions of rows ``(n, d)`` and ``(m, d)``: no bandwidth to choose.

    Formula: ``2 E|X - Y| - E|X - X'| - E|Y - Y'|``; see :func:`mikit.functional.energy_distance2`.

    Args:
        form: ``"unbiased"``, over pairs of different rows; or ``"biased"``, with the pairs of a row and itself, never
            negative.
        paired: Whether row i of ``x`` and of ``y`` come from one input, as activations of two networks do. Their
            distance is then left out; otherwise dependent rows bias the statistic downwards.
        debias: Whether to subtract the distance between the halves of one sample; for the biased form.

    Shapes:
        ``x`` is ``(n, d)`` and ``y`` is ``(m, d)``, of one width; ``m`` equals ``n`` if ``paired``.

    Unit: that of the features, although the name says "squared".

    Kind: discrepancy. 0 if and only if the distributions are equal. Unbiased unless ``form="biased"``, and never
    clipped: for equal distributions the estimate and the loss are negative about half of the time.

    Raises:
        InputError: If the widths differ, the numbers of rows differ under ``paired``, there are fewer than two rows, or
            weights have the wrong shape.

    Cost:
        ``O((n + m)² d)`` time, about three times that with the gradient; memory ``O((n + m) d)`` and blocks of fixed
        size.

    Pitfalls:
        Blind to pairing: shuffling the rows of one side changes the value by noise only, so a small value does not mean
        that one network contains the information of the other. Grows with the scale of the features: bring both to one
        scale first. In many dimensions all distances are alike, and a difference in a few of them has little effect.

    Source:
        Székely and Rizzo (2013), "Energy statistics: A class of statistics based on distances".

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(2, 256, 4, generator=generator)
        >>> energy = EnergyDistance()
        >>> abs(energy.estimate(x, y).item()) < 0.05 < energy.estimate(x, y + 1).item()
        True
    """

    name = "energy"
    unit = "feature"
    weighted = True

    def __init__(self, *, form: str = "unbiased", paired: bool = False, debias: bool = False) -> None:
        super().__init__(debias=debias)
        require.one_of(form, "form", ("unbiased", "biased"))
        if debias and form == "unbiased":
            raise InputError('The unbiased form has no bias to subtract; debias needs form="biased".')
        self.form = form
        self.paired = paired
        self.needs_pairs = paired
        self.unbiased = form == "unbiased"

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"form={self.form!r}, paired={self.paired}" + (", debias=True" if self.debias else "")

    def between_laws(
        self, x: Tensor, y: Tensor, *, weights_x: Tensor | None = None, weights_y: Tensor | None = None
    ) -> Tensor:
        """Return the squared energy distance in this form, never clipped."""
        return energy_distance2(
            x, y, unbiased=self.unbiased, paired=self.paired, weights_x=weights_x, weights_y=weights_y
        )

    def pointwise(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Return the contribution of every row, ``(n,)``; None if the sizes differ or the form is biased."""
        self.require_samples(x, y)
        if x.shape[0] != y.shape[0] or not self.unbiased:
            return None
        return energy_distance2_pointwise(x, y, paired=self.paired)

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float | None:
        """Return the standard error of the U-statistic, also used for the biased form; None if debiased.

        With ``groups``, which need samples of one size and the unbiased form, it is twice the clustered standard error
        of the contributions.
        """
        self.require_samples(x, y)
        if self.debias:
            return None
        if groups is None:
            return energy_distance2_standard_error(x, y)
        contributions = self.pointwise(x, y)
        if contributions is None:
            raise InputError(
                "groups are supported by the unbiased form with samples of one size only; leave groups out."
            )
        return 2 * clustered_standard_error(contributions, groups)

    def require_samples(self, x: Tensor, y: Tensor) -> None:
        """Raise :class:`~mikit.InputError` unless ``x`` and ``y`` are samples that this form compares."""
        if self.needs_pairs:
            require_pair(x, y, same_width=True)
        else:
            fewest = min(x.shape[0], y.shape[0])  # the samples may differ in size, not in width or device
            require_pair(x[:fewest], y[:fewest], same_width=True)
