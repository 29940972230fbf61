"""The maximum mean discrepancy between the distributions of two representations, as a loss and as a metric."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import final

from torch import Tensor

from mikit.core import require
from mikit.core.errors import InputError
from mikit.core.rows import require_common_groups
from mikit.estimators.base import clustered_standard_error, require_pair
from mikit.estimators.discrepancy import Discrepancy
from mikit.functional.kernels.bandwidth import median_bandwidth
from mikit.functional.kernels.mmd import kernel_mmd2
from mikit.functional.kernels.mmd_blocks import block_mmd2_pointwise, linear_time_mmd2_pointwise
from mikit.functional.kernels.mmd_error import mmd2_pointwise, mmd2_standard_error
from mikit.functional.kernels.pair_kernels import Gaussian, Kernel, Polynomial

__all__ = ["MMD"]

_KERNELS = ("gaussian", "polynomial", "linear")
_FORMS = ("unbiased", "biased", "block", "linear-time")


@final
class MMD(Discrepancy):
    """Squared maximum mean discrepancy between the distributions of rows ``(n, d)`` and ``(m, d)``.

    Formula: ``E k(X, X') + E k(Y, Y') - 2 E k(X, Y)``, with ``k(a, b) = exp(-|a - b|² / 2σ²)``, ``(s a · b + c)^p`` or
    ``a · b``; see :func:`mikit.functional.mmd2`, :func:`mikit.functional.polynomial_mmd2`,
    :func:`mikit.functional.block_mmd2` and :func:`mikit.functional.linear_time_mmd2`. As a loss it moves the
    distribution of the student's features towards the teacher's.

    Args:
        bandwidth: The Gaussian kernel's ``σ`` in the unit of the features; several for the sum of their kernels. None:
            the median distance among the rows of both samples, recomputed in every call, without gradient.
        paired: Whether row i of ``x`` and of ``y`` come from one input, as activations of two networks do. Their
            kernel is then left out; otherwise dependent rows bias the statistic downwards, by ``2 / n`` at most.
            False: two samples of any sizes.
        kernel: ``"gaussian"``; ``"polynomial"``, which compares moments up to its degree; or ``"linear"``, the squared
            distance of the means.
        factors: Multiples of the median distance, for the sum of as many Gaussian kernels.
        degree: Power ``p`` of the polynomial kernel.
        scale: Factor ``s`` of the polynomial kernel; None: ``1 / d``.
        offset: Constant ``c`` of the polynomial kernel.
        form: ``"unbiased"``, over all pairs; ``"biased"``, with the pairs of a row and itself, never negative;
            ``"block"``, the mean of the unbiased form over blocks of rows; ``"linear-time"``, over consecutive rows.
        block: Rows of a block of the block form; None: about the square root of the number of rows.
        debias: Whether to subtract the discrepancy between the halves of one sample; for the biased form.

    Shapes:
        ``x`` is ``(n, d)`` and ``y`` is ``(m, d)``, of one width; ``m`` equals ``n`` if ``paired`` or in linear time.

    Unit: dimensionless: at most 2 for each Gaussian kernel; the scale of the polynomial kernel should cancel the
    unit of the features. ``feature²`` for the linear kernel.

    Kind: discrepancy. 0 for equal distributions, whether the rows depend on each other or not. Unbiased at a fixed
    kernel in all forms except ``"biased"``, and never clipped: for equal distributions the estimate and the loss are
    negative about half of the time.

    Raises:
        InputError: If the widths differ, the numbers of rows differ under ``paired``, there are fewer than two rows, or
            an argument belongs to another kernel or form.

    Cost:
        ``O((n + m)² d)`` time, about three times that with the gradient; memory ``O((n + m) d)`` and blocks of fixed
        size. The block form takes ``O(n block d)`` time and ``O(n block)`` memory, linear time ``O(n d)`` of both.

    Pitfalls:
        Blind to pairing: shuffling the rows of one side changes the value by noise only, so a small value does not mean
        that one network contains the information of the other. Depends on the bandwidth: with None, values of different
        layers or epochs are not on one scale. The linear kernel compares means only. The block and linear-time forms
        depend on the order of the rows, which should be random.

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
        require.one_of(kernel, "kernel", _KERNELS)
        require.one_of(form, "form", _FORMS)
        if kernel != "gaussian" and (bandwidth is not None or tuple(factors) != (1.0,)):
            raise InputError(f"The {kernel} kernel has no bandwidth; leave bandwidth and factors out.")
        if kernel != "polynomial" and (degree, scale, offset) != (3, None, 1.0):
            raise InputError(f"degree, scale and offset belong to the polynomial kernel, not to the {kernel} one.")
        if block is not None and form != "block":
            raise InputError(f'block belongs to form="block"; form is "{form}".')
        if debias and form != "biased":
            raise InputError(f'The {form} form has no bias to subtract; debias needs form="biased".')
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
        self._kernel()  # its constructor checks the parameters

    def extra_repr(self) -> str:
        """Return the hyper-parameters, those of a plain Gaussian MMD first."""
        shown = []
        if self.kernel == "gaussian":
            shown.append(f"bandwidth={self.bandwidth}")
        shown.append(f"paired={self.paired}")
        if self.kernel != "gaussian":
            shown.append(f"kernel={self.kernel!r}")
        if self.kernel == "polynomial":
            shown.append(f"degree={self.degree}, scale={self.scale}, offset={self.offset}")
        if self.factors != (1.0,):
            shown.append(f"factors={self.factors}")
        if self.form != "unbiased":
            shown.append(f"form={self.form!r}")
        if self.form == "block":
            shown.append(f"block={self.block}")
        if self.debias:
            shown.append("debias=True")
        return ", ".join(shown)

    def between_laws(
        self, x: Tensor, y: Tensor, *, weights_x: Tensor | None = None, weights_y: Tensor | None = None
    ) -> Tensor:
        """Return the squared discrepancy in this form, never clipped."""
        if self.form in ("block", "linear-time"):
            return self._blocks(x, y).mean()
        return kernel_mmd2(x, y, self._kernel(), unbiased=self.unbiased, paired=self.paired)

    def pointwise(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Return the contribution of every row, ``(n,)``, whose mean is the estimate.

        None where the sizes differ and in the other forms: a block's rows share one contribution.
        """
        self.require_samples(x, y)
        if x.shape[0] != y.shape[0] or self.form != "unbiased":
            return None
        return mmd2_pointwise(x, y, self._kernel(), paired=self.paired)

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float | None:
        """Return the standard error, finite and positive even for equal distributions; None for a debiased value.

        Over all pairs it is that of the U-statistic, which has the same spread as the biased form; with blocks and in
        linear time it comes from the spread of the independent contributions. With ``groups``, which need samples of
        one size and the unbiased form, it is twice the clustered standard error of the contributions: up to a factor of
        root two too large when the distributions are equal.
        """
        self.require_samples(x, y)
        x, y = x.detach(), y.detach()
        require_common_groups(x, y, groups)
        if self.debias:
            return None
        if groups is not None:
            contributions = self.pointwise(x, y)
            if contributions is None:
                raise InputError(f'groups are supported by the unbiased form only; form is "{self.form}".')
            return 2 * clustered_standard_error(contributions, groups)
        if self.form in ("block", "linear-time"):
            values = self._blocks(x, y).double()
            return float(values.std()) / math.sqrt(values.shape[0]) if values.shape[0] > 1 else math.inf
        return mmd2_standard_error(x, y, self._kernel())

    def settled(self, x: Tensor, y: Tensor) -> MMD:
        """Return a copy with its bandwidths fixed to those of these samples."""
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

    def _kernel(self) -> Kernel:
        if self.kernel == "gaussian":
            return Gaussian(self.bandwidth, self.factors)
        if self.kernel == "linear":
            return Polynomial(degree=1, scale=1.0, offset=0.0)
        return Polynomial(self.degree, self.scale, self.offset)

    def _blocks(self, x: Tensor, y: Tensor) -> Tensor:
        if self.form == "linear-time":
            return linear_time_mmd2_pointwise(x, y, self._kernel())
        return block_mmd2_pointwise(x, y, self._kernel(), block=self.block, paired=self.paired)
