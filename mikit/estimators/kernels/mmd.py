"""The maximum mean discrepancy between the laws of two representations, as a loss and as an instrument."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, final

from torch import Tensor

from mikit.core.errors import InputError
from mikit.estimators.base import clustered_standard_error, require_pair
from mikit.estimators.discrepancy import Discrepancy
from mikit.functional.kernels.bandwidth import median_bandwidth
from mikit.functional.kernels.mmd import mmd2, polynomial_mmd2
from mikit.functional.kernels.mmd_blocks import block_mmd2_pointwise, linear_time_mmd2_pointwise
from mikit.functional.kernels.mmd_error import (
    mmd2_pointwise,
    mmd2_standard_error,
    polynomial_mmd2_pointwise,
    polynomial_mmd2_standard_error,
)

__all__ = ["MMD"]

_KERNELS = ("gaussian", "polynomial", "linear")
_FORMS = ("unbiased", "biased", "block", "linear-time")


@final
class MMD(Discrepancy):
    """Squared maximum mean discrepancy between the laws of rows ``(n, d)`` and ``(m, d)``.

    Formula: ``E k(X, X') + E k(Y, Y') - 2 E k(X, Y)``, with ``k(a, b) = exp(-|a - b|² / 2σ²)``, ``(s a · b + c)^p`` or
    ``a · b``; see :func:`mikit.functional.mmd2`, :func:`mikit.functional.polynomial_mmd2`,
    :func:`mikit.functional.block_mmd2` and :func:`mikit.functional.linear_time_mmd2`. As a loss it draws the cloud of
    student features onto the teacher's.

    Args:
        bandwidth: The Gaussian kernel's ``σ`` in the unit of the features; several for the sum of their kernels. None:
            the median distance among the rows of both samples, set anew on every call, without gradient.
        paired: Whether row i of ``x`` and of ``y`` come from one input, as activations of two networks do. Their
            kernel is then left out, without which dependent rows bias the statistic downwards, by ``2 / n`` at most.
            False: two samples, of any sizes.
        kernel: ``"gaussian"``; ``"polynomial"``, which compares moments up to its degree; or ``"linear"``, the squared
            distance of the means.
        factors: What the median distance is multiplied by, for the sum of as many Gaussian kernels.
        degree: Power ``p`` of the polynomial kernel.
        scale: Factor ``s`` of the polynomial kernel; None: ``1 / d``.
        offset: Constant ``c`` of the polynomial kernel.
        form: ``"unbiased"``, over all pairs; ``"biased"``, with the pairs of a row and itself, never negative;
            ``"block"``, the mean of the unbiased form over blocks of rows; ``"linear-time"``, over neighbouring rows.
        block: Rows of a block of the block form; None: about the root of the rows.
        debias: Whether to subtract what halves of one sample give against each other; for the biased form.

    Shapes:
        ``x`` is ``(n, d)`` and ``y`` is ``(m, d)``, of one width; ``m`` equals ``n`` if ``paired`` or in linear time.

    Unit: dimensionless: at most 2 for each Gaussian kernel; the polynomial's scale is to undo the features' unit.
    ``feature²`` for the linear kernel.

    Kind: discrepancy. 0 for equal laws, whether the rows depend on each other or not. Unbiased at a fixed kernel in all
    forms but ``"biased"``, and never clipped, so equal laws give negative values about half of the time, as a loss too.

    Raises:
        InputError: If the widths differ, or the numbers of rows under ``paired``, there are fewer than two rows, or an
            argument belongs to another kernel or form.

    Cost:
        ``O((n + m)² d)`` time, about three times that with the gradient; memory ``O((n + m) d)`` and strips of fixed
        size. Blocks take ``O(n block d)`` time and ``O(n block)`` memory, linear time ``O(n d)`` of both.

    Pitfalls:
        Blind to pairing: shuffling the rows of one side changes the value by nothing but noise, so a small value does
        not mean that one network knows what the other knows. Depends on the bandwidth: with None, values of different
        layers or epochs do not share a scale. The linear kernel sees means only. Blocks and linear time depend on the
        order of the rows, which should be random.

    Source:
        Gretton, Borgwardt, Rasch, Schölkopf and Smola (2012), "A Kernel Two-Sample Test", JMLR 13. Blocks: Zaremba,
        Gretton and Blaschko (2013).

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(2, 256, 4, generator=generator)
        >>> mmd = MMD()
        >>> abs(mmd.estimate(x, y).item()) < 0.01 < mmd.estimate(x, y + 1).item()
        True
        >>> round(MMD(kernel="linear").estimate(x, y + 1).item(), 1)  # four means, each 1 apart: about 4
        3.7
    """

    name = "mmd"
    unit = "dimensionless"

    def __init__(
        self,
        bandwidth: float | Sequence[float] | None = None,
        *,
        paired: bool = False,
        kernel: str = "gaussian",
        factors: Sequence[float] = (1.0,),
        degree: int = 3,
        scale: float | None = None,
        offset: float = 1.0,
        form: str = "unbiased",
        block: int | None = None,
        debias: bool = False,
    ) -> None:
        super().__init__(debias=debias)
        if kernel not in _KERNELS:
            raise InputError(f'kernel is "{kernel}"; it must be one of {", ".join(_KERNELS)}.')
        if form not in _FORMS:
            raise InputError(f'form is "{form}"; it must be one of {", ".join(_FORMS)}.')
        widths = bandwidth if isinstance(bandwidth, Sequence) else (1.0,) if bandwidth is None else (bandwidth,)
        if not widths or not all(0 < one < float("inf") for one in widths):
            raise InputError(f"bandwidth is {bandwidth}; it must be positive and finite, in the unit of the features.")
        if bandwidth is not None and tuple(factors) != (1.0,):
            raise InputError("factors multiply the median distance, so they do not go with a bandwidth; give one.")
        if kernel != "gaussian" and (bandwidth is not None or tuple(factors) != (1.0,)):
            raise InputError(f"The {kernel} kernel has no bandwidth; leave bandwidth and factors out.")
        if kernel != "polynomial" and (degree, scale, offset) != (3, None, 1.0):
            raise InputError(f"degree, scale and offset belong to the polynomial kernel, not to the {kernel} one.")
        if block is not None and form != "block":
            raise InputError(f'block belongs to form="block"; form is "{form}".')
        if debias and form != "biased":
            raise InputError(f'The {form} form has no bias to subtract; debias goes with form="biased".')
        self.bandwidth = bandwidth
        self.paired = paired
        self.kernel = kernel
        self.factors = tuple(factors)
        self.degree, self.scale, self.offset = degree, scale, offset
        self.form = form
        self.block = block
        self.needs_pairs = paired or form == "linear-time"
        self.unbiased = form != "biased"
        self.orderless = form in ("unbiased", "biased") and not debias
        self.unit = "feature²" if kernel == "linear" else "dimensionless"

    def extra_repr(self) -> str:
        """Return the hyper-parameters, those of a plain Gaussian MMD first."""
        said = []
        if self.kernel == "gaussian":
            said.append(f"bandwidth={self.bandwidth}")
        said.append(f"paired={self.paired}")
        if self.kernel != "gaussian":
            said.append(f"kernel={self.kernel!r}")
        if self.kernel == "polynomial":
            said.append(f"degree={self.degree}, scale={self.scale}, offset={self.offset}")
        if self.factors != (1.0,):
            said.append(f"factors={self.factors}")
        if self.form != "unbiased":
            said.append(f"form={self.form!r}")
        if self.form == "block":
            said.append(f"block={self.block}")
        if self.debias:
            said.append("debias=True")
        return ", ".join(said)

    def between_laws(
        self, x: Tensor, y: Tensor, *, weights_x: Tensor | None = None, weights_y: Tensor | None = None
    ) -> Tensor:
        """Return the squared discrepancy in this form, never clipped."""
        if self.form in ("block", "linear-time"):
            return self._blocks(x, y).mean()
        given: dict[str, Any] = {**self._of_kernel(), "unbiased": self.unbiased, "paired": self.paired}
        return mmd2(x, y, **given) if self.kernel == "gaussian" else polynomial_mmd2(x, y, **given)

    def pointwise(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Return the contribution of every row, ``(n,)``, whose mean is the estimate.

        None where the sizes differ and in the other forms: a block's rows share one contribution.
        """
        self.require_samples(x, y)
        if x.shape[0] != y.shape[0] or self.form != "unbiased":
            return None
        pointwise = mmd2_pointwise if self.kernel == "gaussian" else polynomial_mmd2_pointwise
        return pointwise(x, y, paired=self.paired, **self._of_kernel())

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float | None:
        """Return the standard error, finite and positive for equal laws too.

        Over all pairs it is that of the U-statistic, whose spread the biased form shares; with blocks and in linear
        time it comes from the spread of the independent contributions. With ``groups``, which take samples of one size
        and the unbiased form, it is twice the clustered standard error of the contributions: up to a factor of root two
        too large when the laws are equal. None for a debiased value.
        """
        self.require_samples(x, y)
        x, y = x.detach(), y.detach()
        if groups is not None and x.shape[0] != y.shape[0]:
            raise InputError(
                f"groups belong to rows of both samples, but x has {x.shape[0]} rows and y has {y.shape[0]}. Average "
                "the rows of each group first, or leave groups out."
            )
        if self.debias:
            return None
        if groups is not None:
            contributions = self.pointwise(x, y)
            if contributions is None:
                raise InputError(f'Groups are known to the unbiased form only; form is "{self.form}".')
            return 2 * clustered_standard_error(contributions, groups)
        if self.form in ("block", "linear-time"):
            values = self._blocks(x, y).double()
            return float(values.std()) / math.sqrt(values.shape[0]) if values.shape[0] > 1 else math.inf
        error = mmd2_standard_error if self.kernel == "gaussian" else polynomial_mmd2_standard_error
        return error(x, y, **self._of_kernel())

    def settled(self, x: Tensor, y: Tensor) -> MMD:
        """Return a copy whose bandwidths are those of these samples."""
        if self.kernel != "gaussian" or self.bandwidth is not None:
            return self
        settled = copy.deepcopy(self)
        median = median_bandwidth(x, y)
        settled.bandwidth, settled.factors = tuple(median * factor for factor in self.factors), (1.0,)
        return settled

    def require_samples(self, x: Tensor, y: Tensor) -> None:
        """Raise :class:`~mikit.InputError` unless ``x`` and ``y`` are samples that this form compares."""
        if self.needs_pairs:
            require_pair(x, y, same_width=True)
        else:
            fewest = min(x.shape[0], y.shape[0])  # the samples may differ in size, not in width or device
            require_pair(x[:fewest], y[:fewest], same_width=True)

    def _of_kernel(self) -> dict[str, Any]:
        if self.kernel == "gaussian":
            return {"bandwidth": self.bandwidth, "factors": self.factors}
        if self.kernel == "linear":
            return {"degree": 1, "scale": 1.0, "offset": 0.0}
        return {"degree": self.degree, "scale": self.scale, "offset": self.offset}

    def _blocks(self, x: Tensor, y: Tensor) -> Tensor:
        if self.form == "linear-time":
            return linear_time_mmd2_pointwise(x, y, **self._of_kernel())
        return block_mmd2_pointwise(x, y, block=self.block, paired=self.paired, **self._of_kernel())
