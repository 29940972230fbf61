"""Information between a network's input and a layer with declared noise, as the entropy of a mixture of Gaussians."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.engine.epilogues import exp_
from mikit.functional.engine.operators import full_precision
from mikit.functional.engine.pairwise import squared_distances
from mikit.functional.engine.samples import centered, require_rows

__all__ = ["NoisyInformation", "noisy_input_information"]

# Largest rounding error of a squared distance from the matrix product that is accepted, in nats.
_ROUNDING = 1e-3


@final
@dataclass(frozen=True)
class NoisyInformation:
    """The information between a network's input and a layer to which noise was added.

    Attributes:
        noise: The noise ``σ``, in RMS SDs of the layer.
        value: The information, in nats.
        standard_error: Its standard error over samples and draws of noise.
        ceiling: ``log n``: the upper limit of the estimate for ``n`` inputs.
    """

    noise: float
    value: float
    standard_error: float
    ceiling: float


def noisy_input_information(
    layer: Tensor, noise: Sequence[float], *, generator: torch.Generator, strip: int | None = None
) -> tuple[NoisyInformation, ...]:
    r"""Mutual information between a network's input and a layer plus Gaussian noise, for the given inputs.

    .. math:: \hat I = \log n - \frac1n \sum_i \log \sum_j
              \exp\frac{\|\varepsilon_i\|^2 - \|t_i + \varepsilon_i - t_j\|^2}{2 \sigma^2 s^2}, \qquad
              \varepsilon_i \sim N(0, \sigma^2 s^2 I), \qquad s^2 = \operatorname{tr} \operatorname{Cov}(t) / d

    This is the entropy of the mixture of ``n`` Gaussians minus the entropy of the noise, with one draw of noise per
    sample.

    Args:
        layer: Activations ``(n, d)``, one sample per input.
        noise: Noise levels ``σ``, positive, in RMS SDs of the layer: one number for all columns.
        generator: Generator of the noise, on the CPU; all levels share the draws.
        strip: Number of rows in a block of the distance matrix; None chooses one. Values do not depend on it, up to
            rounding.

    Returns:
        One :class:`NoisyInformation` per level. Unit: nats. Kind: an estimate of ``I(X; T + σ s Z)``, low on average,
        since information through a fixed channel is concave in the distribution of the input. No sample adds more than
        ``log n``.

    Raises:
        InputError: If the layer is not ``(n, d)`` with at least two rows, contains values that are not finite, or a
        level
            is not positive.

    Cost:
        ``O(n² d)`` time per level, about 0.3 s for 5,000 samples of 64 columns on one core; ``O(n d)`` memory plus one
        block. No gradient.

    Pitfalls:
        - With little noise every value is ``log n`` for any layer: it then counts samples. Look at the ceiling first.
        - It measures resolution, not the information of a network without noise, which is infinite or undefined. It
          changes when the geometry of a layer changes, without any gain or loss of information.
        - Relative to the layer's own RMS SD it does not depend on the layer's scale, and it grows with its width.
        - A level is computed in float64, in twice the time, if rounding in float32 would reach 0.001 nats.
        - The error covers the choice of samples and noise, not the difference from the distribution of all inputs,
          which is a bias.

    Source:
        Goldfeld et al., "Estimating Information Flow in Deep Neural Networks", ICML 2019, for the noisy layer and the
        entropy of its mixture; the form here is written from the definition.

    Example:
        >>> layer = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
        >>> found, = noisy_input_information(layer, [0.05], generator=torch.Generator().manual_seed(0))
        >>> round(found.value, 4) == round(math.log(2), 4), round(found.ceiling, 4) == round(math.log(4), 4)
        (True, True)
    """
    require_rows(layer, "layer", fewest=2)
    levels = [float(level) for level in noise]
    if not levels or not all(0 < level < math.inf for level in levels):
        raise InputError(f"noise is {levels}; pass positive numbers, in units of the layer's RMS SD.")
    with full_precision(layer.device):
        (rows,) = centered(layer)
        if not bool(rows.isfinite().all()):
            raise InputError("layer contains NaN or infinity. Record it again; no value is replaced or left out.")
        n, d = rows.shape
        scale = float(rows.double().square().mean().sqrt())
        rows = rows / scale if scale > 0 else rows
        drawn = torch.randn(n, d, generator=generator, dtype=rows.dtype).to(rows.device)
        longest = float(rows.square().sum(dim=1).max())
        found = []
        for level in levels:
            exact = torch.finfo(rows.dtype).eps * longest / level**2 <= _ROUNDING
            means, noises = (part if exact else part.double() for part in (rows / level, drawn))
            terms = _contributions(means, noises, strip)
            error = float(terms.std() / math.sqrt(n))
            found.append(NoisyInformation(level, float(terms.mean()), error, math.log(n)))
    return tuple(found)


def _contributions(means: Tensor, drawn: Tensor, strip: int | None) -> Tensor:
    """Return each sample's contribution in nats, with noise of unit size."""
    n = means.shape[0]
    energy = drawn.square().sum(dim=1) / 2
    found = []
    for part in squared_distances(means + drawn, means, scale=-0.5, strip=strip):
        # A row's distance to itself is the noise alone; the matrix product would lose it to rounding for long rows.
        part.diagonal_of(part.values).copy_(-energy[part.rows])
        largest = part.values.amax(dim=1, keepdim=True)
        sums = exp_(part.values.sub_(largest)).sum(dim=1).double()
        found.append(-energy[part.rows].double() - largest[:, 0].double() - sums.log())
    return math.log(n) + torch.cat(found)
