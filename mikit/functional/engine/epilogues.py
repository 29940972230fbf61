"""What becomes of every pair's entry: the terms of a sum over pairs, and their derivatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, final

import torch
from torch import Tensor

__all__ = [
    "Epilogue",
    "Scratch",
    "clipped_exponential",
    "exp_",
    "exponential",
    "gaussians",
    "power",
    "softplus",
]

_LOG2_E = 1 / math.log(2)


@final
class Scratch:
    """Memory that one strip after the other uses.

    Example:
        >>> scratch = Scratch()
        >>> first, second = scratch.shaped(torch.zeros(2, 3), 2)
        >>> scratch.shaped(torch.zeros(1, 3))[0].data_ptr() == first.data_ptr()
        True
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def shaped(self, like: Tensor, count: int = 1) -> tuple[Tensor, ...]:
        """Return ``count`` tensors of the shape of ``like``, holding whatever was there before."""
        needed = count * like.numel()
        if self._memory is None or self._memory.numel() < needed:
            self._memory = like.new_empty(needed)
        return tuple(part.view(like.shape) for part in self._memory[:needed].tensor_split(count))


class Epilogue(Protocol):
    """What a sum over pairs makes of every entry: a term, and the term's derivative."""

    def __call__(self, entries: Tensor, spare: Tensor, slopes: bool) -> tuple[Tensor, Tensor]:
        """Return the terms and, if ``slopes``, their derivatives; one tensor may be both.

        Args:
            entries: Scores or scaled squared distances; may be overwritten.
            spare: Memory of the same shape, to write to. New memory costs more than most functions of an entry.
            slopes: Whether the derivatives are needed.
        """


def exp_(entries: Tensor) -> Tensor:
    """Overwrite entries with their exponentials, by way of powers of two.

    On a CPU that takes half the time, and where results are too small for the dtype a fraction of it.

    Example:
        >>> exp_(torch.tensor([0.0, 1.0, -1000.0]))
        tensor([1.0000, 2.7183, 0.0000])
    """
    return entries.mul_(_LOG2_E).exp2_()


def exponential(entries: Tensor, spare: Tensor, slopes: bool) -> tuple[Tensor, Tensor]:
    """Make ``exp u`` of every entry: of ``-|a - b|² / 2σ²`` a Gaussian kernel."""
    terms = exp_(entries)
    return terms, terms


def clipped_exponential(limit: float) -> Epilogue:
    """Return the epilogue that makes ``exp min(max(u, -limit), limit)`` of every entry."""

    def clipped(entries: Tensor, spare: Tensor, slopes: bool) -> tuple[Tensor, Tensor]:
        torch.abs(entries, out=spare)
        terms = exp_(entries.clamp_(-limit, limit))
        return terms, spare.lt_(limit).mul_(terms) if slopes else terms

    return clipped


def gaussians(bandwidths: Sequence[float]) -> Epilogue:
    """Return the epilogue that makes ``Σ_k exp(u / σ_k²)`` of every entry ``u = -|a - b|² / 2``."""
    scratch = Scratch()

    def summed(entries: Tensor, spare: Tensor, slopes: bool) -> tuple[Tensor, Tensor]:
        terms, derivatives = scratch.shaped(entries, 2)
        terms.zero_()
        derivatives.zero_()
        for bandwidth in bandwidths:
            one = exp_(torch.mul(entries, bandwidth**-2, out=spare))
            terms += one
            derivatives.add_(one, alpha=bandwidth**-2)
        return terms, derivatives

    return summed


def softplus(entries: Tensor, spare: Tensor, slopes: bool) -> tuple[Tensor, Tensor]:
    """Make ``log(1 + exp u)`` of every entry, without overflow."""
    terms = torch.ops.aten.softplus.out(entries, threshold=80, out=spare)  # above 80 it is u, to the last digit
    return terms, entries.sigmoid_() if slopes else terms


def power(degree: int, *, scale: float, offset: float) -> Epilogue:
    """Return the epilogue that makes ``(scale u + offset)^degree`` of every entry: of scores a polynomial kernel."""

    def raised(entries: Tensor, spare: Tensor, slopes: bool) -> tuple[Tensor, Tensor]:
        entries.mul_(scale).add_(offset)
        lower = torch.pow(entries, degree - 1, out=spare)
        return entries.mul_(lower), lower.mul_(degree * scale) if slopes else lower

    return raised
