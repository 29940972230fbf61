"""Nearest-neighbor mutual information of wide features, reduced to a few pairs of learned codes."""

from __future__ import annotations

from typing import Any, NoReturn, final

import torch
from torch import Tensor

from mikit.core import require
from mikit.core.errors import InputError
from mikit.core.measurement import Check
from mikit.core.rows import split_folds
from mikit.estimators.base import Estimator, require_pair
from mikit.estimators.fitting import FitData, FitRecord
from mikit.functional.neighbors.anchored import anchored_ksg_pointwise
from mikit.functional.reduction.code_maps import CodeMap
from mikit.functional.reduction.directions import Reduction, contrast_evidence, informative_directions

__all__ = ["ReducedKSG"]

_PARTS = ("mean", "axes", "weight", "bias", "second", "directions", "centre")
_STATE = (*(f"{part}_{side}" for side in ("x", "y") for part in _PARTS), "correlations", "evidence", "seed")


@final
class ReducedKSG(Estimator):
    """Mutual information of wide features ``(n, d_x)`` and ``(n, d_y)`` through a few pairs of learned codes.

    Formula: ``I(x; y) >= I(a(x); b(y))``, with codes ``a``, ``b`` from
    :func:`~mikit.functional.reduction.directions.informative_directions` on the fit and select samples. The information
    of the codes of the report samples is estimated by :func:`~mikit.functional.neighbors.anchored.anchored_ksg`: the
    Gaussian information of their normal scores, plus what nearest neighbors find beyond a Gaussian sample with the same
    correlations.

    Args:
        k: Number of neighbors.
        most: Largest number of pairs of codes; how many are used is decided on the select samples.
        nonlinear: Whether codes may be nonlinear.
        draws: Number of Gaussian samples that correct the nearest-neighbor estimate.

    Shapes:
        ``x`` is ``(n, d_x)``, ``y`` is ``(n, d_y)``, with paired samples; there may be more features than samples.

    Unit: nats.

    Kind: estimate. By data processing, the information of the codes is at most that of the features. It is estimated
    without a bound, so the value may be too low or too high. Never clipped.

    Raises:
        TypeError: If called as a loss. Counts of neighbors have no gradient.
        InputError: If it is not fitted, if the samples do not pair up or are fewer than the codes, or if a code of
            ``x`` equals one of ``y``.

    Checks:
        Whether the codes distinguish a sample's partner from the others as well as the value implies: warns if the
        contrast on the report samples, which is below ``log n``, is less than three quarters of the value. The codes
        are described, too.

    Cost:
        Fit: ``O(n d min(n, d))`` time up to 1,200 samples or features and ``O(512 n d)`` above, and one to three
        seconds for the choice; report: ``O((1 + draws) m² k)`` on ``m`` samples. One float32 copy of a side in memory
        at a time.

    Pitfalls:
        Information that the codes miss is not in the value: it is too low if latent variables are many, weak, or
        observed through a strongly curved map, and the interval does not show that. ``fit`` without a select part sets
        a quarter of the samples aside to choose the codes; it takes no gradient steps, so a training recipe has no
        effect. With ``rotations=5`` every sample reports once, which narrows the interval by half. Only nearest
        neighbors find dependence that is not linear in the codes, and with more than a few pairs they find it only in
        part.

    Source:
        Gowri, Lun, Klein and Yin (2024), "Approximating mutual information of high-dimensional variables using learned
        representations", for nearest neighbors on codes. The codes and their estimator are from mikit.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> z = torch.randn(1500, 2, generator=g)
        >>> w = 0.8 * z + 0.6 * torch.randn(1500, 2, generator=g)  # the truth is 1.02 nats
        >>> x, y = torch.randn(1500, 200, generator=g), torch.randn(1500, 300, generator=g)
        >>> x[:, :100] += z @ torch.randn(2, 100, generator=g)
        >>> y[:, :100] += w @ torch.randn(2, 100, generator=g)
        >>> reduced = ReducedKSG()
        >>> _ = reduced.fit(x[:900], y[:900], select=(x[900:1200], y[900:1200]), generator=g)
        >>> 0.7 < float(reduced.estimate(x[1200:], y[1200:])) < 1.2
        True
    """

    correlations: Tensor
    evidence: Tensor
    seed: Tensor

    name = "reduced_ksg"
    unit = "nats"
    kind = "estimate"
    differentiable = False
    learned = True

    def __init__(self, k: int = 3, *, most: int = 16, nonlinear: bool = True, draws: int = 8) -> None:
        super().__init__()
        for name, value in (("k", k), ("most", most), ("draws", draws)):
            require.at_least(value, name)
        self.k = k
        self.most = most
        self.nonlinear = nonlinear
        self.draws = draws
        self.chosen = ""

    def extra_repr(self) -> str:
        """Return the hyperparameters."""
        return f"k={self.k}, most={self.most}, nonlinear={self.nonlinear}, draws={self.draws}"

    def forward(self, x: Tensor, y: Tensor) -> NoReturn:
        """Raise TypeError, because there is no gradient."""
        raise TypeError(
            "ReducedKSG has no gradient, because counts of neighbors are piecewise constant and codes are not trained. "
            "Train with a differentiable estimator (InfoNCE, JSD or VID) and report ReducedKSG with mikit.measure."
        )

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the information of the codes, in nats, never clipped."""
        return self.pointwise(x, y).mean()

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the contribution of every sample, ``(n,)``, in nats; their mean is the estimate."""
        a, b = self._codes(x, y)
        generator = torch.Generator().manual_seed(int(self.seed))
        return anchored_ksg_pointwise(a, b, self.k, draws=self.draws, generator=generator)

    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Describe the codes, and check whether their contrast supports the value."""
        a, b = self._codes(x, y)
        pairs, value = a.shape[1], float(self.estimate(x, y))
        described = f"{pairs} {'pair' if pairs == 1 else 'pairs'} of codes ({self.chosen or 'from a state dict'})."
        codes = Check.not_applicable("codes", described, float(pairs))
        contrast = max(contrast_evidence(a, b, (pairs,)), default=0.0)
        name, threshold = "codes tell partners apart", 0.75 * value
        if value - contrast <= max(0.25 * value, 0.1):
            return codes, Check.passed(name, f"The contrast supports {contrast:.2f} nats.", contrast, threshold)
        sentence = (
            f"The contrast supports {contrast:.2f} of {value:.2f} nats. It is always lower near log n; below that, the "
            "codes may repeat each other and be counted twice."
        )
        return codes, Check.warned(name, sentence, contrast, threshold)

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return ``k + 2``, or the number of samples that the codes need once their number is known."""
        pairs = 1 if not self._is_fitted() else int(self.correlations.shape[0])
        return max(self.k + 2, 2 * pairs + 2)

    def fresh(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> ReducedKSG:
        """Return an unfitted copy with the same hyperparameters."""
        return ReducedKSG(self.k, most=self.most, nonlinear=self.nonlinear, draws=self.draws)

    def _fit(self, data: FitData) -> FitRecord:
        """Find the codes; without a select part a quarter of the samples are set aside to choose them."""
        x, y, select, generator = data.x, data.y, data.select, data.generator
        require_pair(x, y, minimum=8 if select is None else 4)
        if select is None:
            first, *others = split_folds(x.shape[0], 4, generator=generator)
            rest, first = torch.cat(others).to(x.device), first.to(x.device)
            x, y, select = x[rest], y[rest], (x[first], y[first])
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            found = informative_directions(x, y, *select, most=self.most, nonlinear=self.nonlinear, generator=generator)
        self._keep(found, int(torch.randint(2**31, (1,), generator=generator)))
        return FitRecord()

    def reduction(self) -> Reduction:
        """Return the fitted reduction, for inspection of the codes."""
        if not self._is_fitted():
            raise InputError("This ReducedKSG is not fitted. Call fit, or use mikit.measure.")
        map_x, map_y = (CodeMap(*(getattr(self, f"{part}_{side}") for part in _PARTS)) for side in ("x", "y"))
        return Reduction(map_x, map_y, self.correlations, float(self.evidence), self.chosen)

    def _codes(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        found = self.reduction()
        require_pair(x, y, minimum=self.minimum_rows(x.shape[-1], y.shape[-1]))
        return found.codes(x), found.codes_y(y)

    def _is_fitted(self) -> bool:
        return hasattr(self, "seed")

    def _keep(self, found: Reduction, seed: int) -> None:
        for side, code_map in (("x", found.map_x), ("y", found.map_y)):
            for part in _PARTS:
                self.register_buffer(f"{part}_{side}", getattr(code_map, part))
        self.register_buffer("correlations", found.correlations)
        self.register_buffer("evidence", torch.tensor(found.evidence, dtype=torch.float64))
        self.register_buffer("seed", torch.tensor(seed))
        self.chosen = found.description

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # The shapes of the codes are known only after a fit, so an unfitted estimator registers buffers for them here.
        for name in _STATE:
            if prefix + name in state_dict:
                self.register_buffer(name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *arguments)
