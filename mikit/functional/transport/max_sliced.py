"""Max-sliced Wasserstein distance: exact transport on the line on which two samples differ most."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.engine.operators import full_precision
from mikit.functional.engine.samples import centered, require_one_device, require_rows, require_same_width
from mikit.functional.transport.sliced import QuantilePieces, sliced_wasserstein2

__all__ = ["FurthestLine", "furthest_line", "max_sliced_wasserstein2"]

# Length of the first step on the sphere, and of the step from which on each start adapts its own steps.
_FIRST, _FINE = 1.0, 0.02
# Factors on such a step where the value increased and where it did not.
_LONGER, _SHORTER = 1.5, 0.5


@final
class FurthestLine(NamedTuple):
    """The best line: its ``direction``, a unit vector ``(d,)``, and the squared distances reached from each start.

    ``starts`` is ``(k,)`` float64; the largest entry belongs to ``direction``.
    """

    direction: Tensor
    starts: Tensor


def max_sliced_wasserstein2(
    x: Tensor,
    y: Tensor,
    *,
    starts: int = 8,
    steps: int = 45,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Squared max-sliced 2-Wasserstein distance of two samples.

    .. math:: \max_{|\theta| = 1} W_2^2(\langle\theta, x\rangle, \langle\theta, y\rangle)

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``.
        starts: Number of directions to ascend from: the difference of the means, the leading direction of the
            difference of the covariances, and random ones.
        steps: Steps of the ascent from each, on the sphere.
        generator: Generator of the random directions; None: torch's default generator of the CPU.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both with the line
        held constant. Unit: that of the features, squared. Kind: a squared distance, from below: the largest of some
        local maxima. At most the squared Wasserstein distance, and at least the largest squared difference of means.

    Raises:
        InputError: If a sample is not ``(n, d)``, widths or devices differ, or there is no start or no step.

    Cost:
        O(starts · steps (n + m) (d + log(n + m))) time: fifty times that of a sliced distance with as many projections.
        O(starts (n + m)) memory.

    Pitfalls:
        - The line is a local maximum; in high dimension a better one may be missed. The default comes within a percent
          of what ten times the steps find. If two rows swap places at the best line, as happens in small samples, the
          gradient is that of one of the orders.
        - Too large on small samples, by far more than the mean over lines: with many features there is always a line on
          which two samples of one distribution differ. In 512 dimensions a line separates two samples of size 128.
        - Blind to pairing: shuffling the rows of one sample does not change the value.

    Source:
        Deshpande et al. (2019), "Max-Sliced Wasserstein Distance and its use for GANs". The gradient follows from
        Danskin's theorem: it is that of the distance on the line.

    Example:
        >>> x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
        >>> shift = torch.tensor([3.0, 0.0, 4.0, 0.0, 0.0])
        >>> round(max_sliced_wasserstein2(x, x + shift, generator=torch.Generator().manual_seed(0)).item(), 4)
        25.0
    """
    line = furthest_line(x, y, starts=starts, steps=steps, generator=generator)
    return sliced_wasserstein2(x, y, directions=line.direction[None])


def furthest_line(
    x: Tensor,
    y: Tensor,
    *,
    starts: int = 8,
    steps: int = 45,
    generator: torch.Generator | None = None,
) -> FurthestLine:
    """Return the direction of :func:`max_sliced_wasserstein2` and the values from each start, without gradient.

    If the starts end in different values, there are several maxima; if they agree, there may still be several.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> line = furthest_line(x, x + torch.tensor([0.0, 2.0]), generator=torch.Generator().manual_seed(0))
        >>> line.direction.abs().round(decimals=2).tolist()
        [0.0, 1.0]
    """
    require_rows(x, "x")
    require_rows(y, "y")
    require_same_width(x, y)
    require_one_device(x, y)
    if starts < 1 or steps < 1:
        raise InputError(f"There are {starts} starts of {steps} steps; the ascent needs at least one of each.")
    with full_precision(x.device):
        a, b = (sample.double() for sample in centered(x.detach(), y.detach()))
        transport = _LineTransport(a, b)
        lines = _first_lines(a, b, starts, generator)
        # The value has a kink wherever two rows swap places on the line, of which there are as many as pairs of rows.
        # Two thirds of the steps have fixed, decreasing lengths, as in subgradient methods, and so cross kinks instead
        # of stopping at the first. The rest accept only increases and converge inside one smooth piece.
        lines = _refined(transport, _explored(transport, lines, steps - steps // 3), steps // 3)
        values, _ = transport.along(lines)
    return FurthestLine(lines[int(values.argmax())], values)


def _explored(transport: _LineTransport, lines: Tensor, steps: int) -> Tensor:
    """Return the best line on the path of each start, with step lengths that fall from the first to the fine one."""
    values, slopes = transport.along(lines)
    best = lines
    for step in range(steps):
        lines = _stepped(lines, slopes, _FIRST * (_FINE / _FIRST) ** (step / max(steps - 1, 1)))
        reached, slopes = transport.along(lines)
        rose = reached > values
        values, best = torch.where(rose, reached, values), torch.where(rose[:, None], lines, best)
    return best


def _refined(transport: _LineTransport, lines: Tensor, steps: int) -> Tensor:
    """Return lines of larger value, by steps that are accepted where the value increases and shortened elsewhere."""
    values, slopes = transport.along(lines)
    lengths = torch.full_like(values, _FINE)[:, None]
    for _ in range(steps):
        moved = _stepped(lines, slopes, lengths)
        reached, turned = transport.along(moved)
        rose = reached > values
        values = torch.where(rose, reached, values)
        lines, slopes = torch.where(rose[:, None], moved, lines), torch.where(rose[:, None], turned, slopes)
        lengths = lengths * torch.where(rose, _LONGER, _SHORTER)[:, None]
    return lines


def _stepped(lines: Tensor, slopes: Tensor, lengths: Tensor | float) -> Tensor:
    """Return unit vectors after a step along the gradient on the sphere; its length does not scale the step."""
    tangents = slopes - (slopes * lines).sum(dim=1, keepdim=True) * lines
    return torch.nn.functional.normalize(lines + lengths * torch.nn.functional.normalize(tangents, dim=1), dim=1)


@final
class _LineTransport:
    """Exact transport between two samples on many lines."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self._x, self._y = x, y
        self._pieces = QuantilePieces(x.shape[0], y.shape[0], x)

    def along(self, lines: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squared distance on each line, ``(k,)``, and its gradient in the line, ``(k, d)``."""
        pieces = self._pieces
        on_x, order_x = (lines @ self._x.T).sort(dim=1)
        on_y, order_y = (lines @ self._y.T).sort(dim=1)
        gaps = on_x[:, pieces.of_x] - on_y[:, pieces.of_y]
        pull = 2 * gaps * pieces.lengths
        slopes = torch.zeros_like(lines)
        for rows, order, name, sign in ((self._x, order_x, "x", 1), (self._y, order_y, "y", -1)):
            by_rank = pieces.gathered(pull, name)
            slopes += sign * (torch.empty_like(by_rank).scatter_(1, order, by_rank) @ rows)
        return gaps.square() @ pieces.lengths, slopes


def _first_lines(x: Tensor, y: Tensor, starts: int, generator: torch.Generator | None) -> Tensor:
    d = x.shape[1]
    device = "cpu" if generator is None else generator.device
    drawn = torch.randn(starts, d, generator=generator, device=device, dtype=torch.float32)
    lines = torch.nn.functional.normalize(drawn.to(x), dim=1)
    if not bool((x.sum() + y.sum()).isfinite()):
        return lines
    shift = x.mean(dim=0) - y.mean(dim=0)
    if bool(shift.abs().sum() > 0):
        lines[0] = shift / torch.linalg.vector_norm(shift)
    if starts > 1:
        lines[1] = _most_changed(x - x.mean(dim=0), y - y.mean(dim=0), lines[1])
    return lines


def _most_changed(x: Tensor, y: Tensor, line: Tensor) -> Tensor:
    """Return approximately the direction in which the variances differ most, by power iteration on their difference."""
    for _ in range(20):
        moved = x.T @ (x @ line) / len(x) - y.T @ (y @ line) / len(y)
        length = torch.linalg.vector_norm(moved)
        if not bool(length > 0):
            return line
        line = moved / length
    return line
