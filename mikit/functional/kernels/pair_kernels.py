"""The kernels of squared maximum mean discrepancies: Gaussian and polynomial."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from mikit.core import require
from mikit.core.errors import InputError
from mikit.functional.engine.epilogues import Epilogue, exponential, gaussians, power
from mikit.functional.engine.pairwise import Block, scores, squared_distances
from mikit.functional.engine.samples import centered, working_dtype
from mikit.functional.kernels.bandwidth import median_distance

__all__ = ["KERNELS", "Gaussian", "Kernel", "PairKernel", "Polynomial"]


@final
class PairKernel(NamedTuple):
    """A kernel as the engine evaluates it: an epilogue of scores, or with ``scale`` of squared distances times it."""

    epilogue: Epilogue
    scale: float | None

    def blocks(self, a: Tensor, b: Tensor, strip: int | None) -> Iterator[Block]:
        """Yield the entries of all pairs, before the epilogue."""
        if self.scale is None:
            return scores(a, b, strip=strip)
        return squared_distances(a, b, scale=self.scale, strip=strip)


class Kernel(abc.ABC):
    """A kernel of two rows, whose parameters may depend on the samples.

    :meth:`prepared` determines the parameters as plain numbers, which is what an operator of torch can take. The other
    methods evaluate the kernel with them.

    Attributes:
        family: Key of the class in ``KERNELS``.
        error_in_float64: Whether the standard error needs samples in float64.
    """

    family: ClassVar[str]
    error_in_float64: ClassVar[bool] = False

    @abc.abstractmethod
    def prepared(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, list[float]]:
        """Return both samples as the kernel takes them, and its parameters in their unit."""

    @staticmethod
    @abc.abstractmethod
    def of_pairs(parameters: Sequence[float]) -> PairKernel:
        """Return the kernel for the engine."""

    @staticmethod
    @abc.abstractmethod
    def of_products(parameters: Sequence[float], products: Tensor, norms_a: Tensor, norms_b: Tensor) -> Tensor:
        """Return the kernel of pairs with these products ``a . b`` and squared norms, in operations of autograd."""


@final
@dataclass(frozen=True)
class Gaussian(Kernel):
    """The sum of ``exp(-|a - b|² / 2σ²)`` over bandwidths ``σ``; see :func:`~mikit.functional.mmd2`."""

    family = "gaussian"

    bandwidth: float | Sequence[float] | None = None
    factors: Sequence[float] = (1.0,)

    def __post_init__(self) -> None:
        if self.bandwidth is None:
            if not self.factors or not all(0 < one < math.inf for one in self.factors):
                raise InputError(
                    f"factors is {self.factors}; multiply the median distance by positive, finite numbers."
                )
            return
        if tuple(self.factors) != (1.0,):
            raise InputError(
                "factors multiply the median distance, so they do not go with a bandwidth; pass one of the two."
            )
        if not self._bandwidths() or not all(0 < one < math.inf for one in self._bandwidths()):
            raise InputError(
                f"bandwidth is {self.bandwidth}; it must be positive and finite, in the unit of the features."
            )

    def _bandwidths(self) -> list[float]:
        given = self.bandwidth if isinstance(self.bandwidth, Sequence) else (self.bandwidth,)
        return [float(one) for one in given if one is not None]

    def prepared(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, list[float]]:
        """Return both samples, centered and in units of the largest bandwidth, and the bandwidths in this unit."""
        a, b = centered(x, y)
        # Scaling the rows and not the kernel keeps the median a tensor, which a GPU or a compiled loss need not wait
        # for, and keeps the squared distances within the range of the dtype.
        if self.bandwidth is None:
            largest = max(self.factors)
            unit = median_distance(x, y).to(a.dtype) * largest
            return a / unit, b / unit, [one / largest for one in self.factors]
        bandwidths = self._bandwidths()
        widest = max(bandwidths)
        return a / widest, b / widest, [one / widest for one in bandwidths]

    @staticmethod
    def of_pairs(parameters: Sequence[float]) -> PairKernel:
        """Return the kernel for the engine; one bandwidth goes into the scale, which saves a pass over the entries."""
        if len(parameters) == 1:
            return PairKernel(exponential, -0.5 / parameters[0] ** 2)
        return PairKernel(gaussians(parameters), -0.5)

    @staticmethod
    def of_products(parameters: Sequence[float], products: Tensor, norms_a: Tensor, norms_b: Tensor) -> Tensor:
        """Return the sum of the Gaussian kernels."""
        distances = (norms_a + norms_b - 2 * products).clamp(min=0)
        return torch.stack([(distances * (-0.5 / one**2)).exp() for one in parameters]).sum(dim=0)


@final
@dataclass(frozen=True)
class Polynomial(Kernel):
    """``(scale a · b + offset)^degree``; see :func:`~mikit.functional.polynomial_mmd2`."""

    family = "polynomial"
    error_in_float64 = True  # the terms of the error are differences of large powers

    degree: int = 3
    scale: float | None = None
    offset: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.degree, int) or self.degree < 1:
            raise InputError(f"degree is {self.degree}; the power of the kernel must be a whole number of at least 1.")
        if self.scale is not None:
            require.positive(self.scale, "scale")

    def prepared(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, list[float]]:
        """Return both samples in the working dtype, and degree, scale and offset."""
        parameters = [float(self.degree), 1 / x.shape[1] if self.scale is None else self.scale, self.offset]
        if self.degree == 1:
            # The discrepancy of the linear kernel does not depend on a common shift, so centering only gains digits.
            # For higher powers it would change the value.
            a, b = centered(x, y)
            return a, b, parameters
        dtype = working_dtype(x, y)
        return x.to(dtype), y.to(dtype), parameters

    @staticmethod
    def of_pairs(parameters: Sequence[float]) -> PairKernel:
        """Return the kernel for the engine."""
        degree, scale, offset = parameters
        return PairKernel(power(int(degree), scale=scale, offset=offset), None)

    @staticmethod
    def of_products(parameters: Sequence[float], products: Tensor, norms_a: Tensor, norms_b: Tensor) -> Tensor:
        """Return the polynomial kernel, which needs no norms."""
        degree, scale, offset = parameters
        return (scale * products + offset) ** int(degree)


KERNELS: dict[str, type[Kernel]] = {"gaussian": Gaussian, "polynomial": Polynomial}
