"""VID's heads: networks that predict the teacher's mean from the student."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from mikit.core.errors import InputError

__all__ = ["HEADS", "TRANSPOSED", "mean_head", "transposed_head"]

HEADS = ("linear", "linear2", "relu3", "bn_relu3x2")
TRANSPOSED = "transposed"
# Largest height and width that the first layer of a transposed head produces from one position.
_FIRST_SIZE = 4


def mean_head(arch: str, d_in: int, d_out: int, *, spatial: bool) -> nn.Sequential:
    """Return the network that predicts the teacher's mean: ``(n, d_in) -> (n, d_out)``, or maps by 1x1 convolutions.

    ``"linear"``: one affine layer. ``"linear2"``: two linear layers without bias. ``"relu3"``: three linear layers
    without bias, with ReLU between them. ``"bn_relu3x2"``: three linear layers, the first two of twice the teacher's
    width with batch normalization and ReLU. Other hidden layers have the teacher's width.

    Source:
        ``"linear2"`` and ``"relu3"`` are the layouts of two released VID codes (amzn/xfer, HobbitLong/RepDistiller);
        ``"bn_relu3x2"`` follows a third (sseung0703/Variational_Information_Distillation), with a linear last layer.
    """
    if d_in < 1 or d_out < 1:
        raise InputError(f"The head has {d_in} inputs and {d_out} outputs; both must be at least 1.")

    def layer(a: int, b: int, *, bias: bool) -> nn.Module:
        return nn.Conv2d(a, b, 1, bias=bias) if spatial else nn.Linear(a, b, bias=bias)

    def normalized(a: int, b: int) -> list[nn.Module]:
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
        return nn.Sequential(*normalized(d_in, hidden), *normalized(hidden, hidden), layer(hidden, d_out, bias=True))
    raise InputError(f'There is no head "{arch}". Use one of {", ".join(HEADS)}.')


def transposed_head(d_in: int, d_out: int, size: tuple[int, int]) -> nn.Sequential:
    """Return the network that predicts a teacher's map from a student's vector: ``(n, d_in) -> (n, d_out, h, w)``.

    ReLU and transposed convolutions, whose hidden layers have the teacher's channels. No released VID code has such a
    head. It costs ``O(n h w d_out²)`` time and has ``O(d_in d_out + log2(max(h, w)) d_out²)`` parameters, times up to
    16: many for a small student, because one vector describes the whole map.
    """
    if min(d_in, d_out, *size) < 1:
        raise InputError(
            f"The head has {d_in} inputs and {d_out} outputs of {size[0]} x {size[1]}; all must be at least 1."
        )
    # The vector is a map of 1 x 1. Sizes are found backward from the teacher's: each layer doubles the size, less 1
    # where it is odd, so that the last one ends exactly at the teacher's size.
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
    """Return kernel, stride and padding of a transposed convolution from ``before`` positions to ``after``."""
    if before == after:
        return 1, 1, 0
    # Kernels of 4 overlap evenly at stride 2; kernels of 3 give the odd sizes.
    return (4, 2, 1) if after == 2 * before else (3, 2, 1)
