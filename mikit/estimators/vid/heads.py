"""The networks that predict the teacher's mean from the student: VID's heads."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from mikit.core.errors import InputError

__all__ = ["HEADS", "TRANSPOSED", "mean_head", "transposed_head"]

HEADS = ("linear", "linear2", "relu3", "bn_relu3x2")
TRANSPOSED = "transposed"
# Height and width up to which the first layer of a transposed head goes in one step.
_FIRST_SIZE = 4


def mean_head(arch: str, d_in: int, d_out: int, *, spatial: bool) -> nn.Sequential:
    """Return the network that predicts the teacher's mean from the student: ``(n, d_in) -> (n, d_out)``.

    Args:
        arch: ``"linear"``: one affine layer. ``"linear2"``: two linear layers without bias, nothing between them.
            ``"relu3"``: three linear layers without bias, ReLU between them. ``"bn_relu3x2"``: three linear layers, the
            first two of twice the teacher's width and followed by batch normalisation and ReLU.
        d_in: The student's width or channels.
        d_out: The teacher's width or channels; hidden layers are that wide (twice for ``"bn_relu3x2"``).
        spatial: Whether to read maps ``(n, c, h, w)`` by 1x1 convolutions instead of rows.

    Raises:
        InputError: If there is no such head or a width is below 1.

    Cost:
        ``O(n h w d_out (d_in + d_out))`` time, times up to 4 for ``"bn_relu3x2"``.

    Pitfalls:
        Batch normalisation makes a prediction depend on the rest of its batch while training.

    Source:
        ``"linear2"`` and ``"relu3"`` are the layouts of two released VID codes (amzn/xfer, HobbitLong/RepDistiller);
        ``"bn_relu3x2"`` follows a third (sseung0703/Variational_Information_Distillation), with a linear end.

    Example:
        >>> import torch
        >>> mean_head("relu3", 8, 4, spatial=True)(torch.zeros(2, 8, 5, 3)).shape
        torch.Size([2, 4, 5, 3])
    """
    if d_in < 1 or d_out < 1:
        raise InputError(f"A head was asked for {d_in} inputs and {d_out} outputs; both must be at least 1.")

    def layer(a: int, b: int, *, bias: bool) -> nn.Module:
        return nn.Conv2d(a, b, 1, bias=bias) if spatial else nn.Linear(a, b, bias=bias)

    def normalised(a: int, b: int) -> list[nn.Module]:
        return [layer(a, b, bias=False), nn.BatchNorm2d(b) if spatial else nn.BatchNorm1d(b), nn.ReLU()]

    if arch == "linear":
        return nn.Sequential(layer(d_in, d_out, bias=True))
    if arch == "linear2":
        return nn.Sequential(layer(d_in, d_out, bias=False), layer(d_out, d_out, bias=False))
    if arch == "relu3":
        inner = layer(d_out, d_out, bias=False)
        return nn.Sequential(
            layer(d_in, d_out, bias=False), nn.ReLU(), inner, nn.ReLU(), layer(d_out, d_out, bias=False)
        )
    if arch == "bn_relu3x2":
        hidden = 2 * d_out
        return nn.Sequential(*normalised(d_in, hidden), *normalised(hidden, hidden), layer(hidden, d_out, bias=True))
    raise InputError(f'There is no head "{arch}". Use one of {", ".join(HEADS)}.')


def transposed_head(d_in: int, d_out: int, size: tuple[int, int]) -> nn.Sequential:
    """Return the network that predicts a teacher's map from a student's row: ``(n, d_in) -> (n, d_out, h, w)``.

    The row is read as a map of 1 x 1. A first transposed convolution leads to the last size of at most 4 x 4 on the way
    of halving ``size``; each further one, with ReLU before it, doubles the size, less 1 where the size is odd.

    Args:
        d_in: The student's width.
        d_out: The teacher's channels; hidden layers are that wide.
        size: The teacher's height and width.

    Raises:
        InputError: If a width, the height or the width of the map is below 1.

    Cost:
        ``O(n h w d_out²)`` time and ``O(d_in d_out + log2(max(h, w)) d_out²)`` parameters, times up to 16.

    Pitfalls:
        One row describes the whole map, so the head has many parameters beside a small student's.

    Source:
        The layout is ours; no released VID code has such a head.

    Example:
        >>> import torch
        >>> transposed_head(6, 4, (7, 8))(torch.zeros(2, 6)).shape
        torch.Size([2, 4, 7, 8])
    """
    if min(d_in, d_out, *size) < 1:
        raise InputError(
            f"A head was asked for {d_in} inputs and {d_out} outputs of {size[0]} x {size[1]}; all must be at least 1."
        )
    sizes = [size]
    while max(sizes[0]) > _FIRST_SIZE:
        height, width = (side if side <= _FIRST_SIZE else (side + 1) // 2 for side in sizes[0])
        sizes.insert(0, (height, width))
    layers: list[nn.Module] = [nn.Unflatten(1, (d_in, 1, 1)), nn.ConvTranspose2d(d_in, d_out, sizes[0])]
    for before, after in pairwise(sizes):
        kernel, stride, padding = zip(*(_step(*sides) for sides in zip(before, after, strict=True)), strict=True)
        layers += [nn.ReLU(), nn.ConvTranspose2d(d_out, d_out, kernel, stride=stride, padding=padding)]
    return nn.Sequential(*layers)


def _step(before: int, after: int) -> tuple[int, int, int]:
    """Return kernel, stride and padding that lead from ``before`` positions to ``after``."""
    if before == after:
        return 1, 1, 0
    return (4, 2, 1) if after == 2 * before else (3, 2, 1)
