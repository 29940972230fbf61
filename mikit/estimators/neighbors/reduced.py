"""Wide rows reduced to a few pairs of codes, whose information nearest neighbours then read."""

from __future__ import annotations

from typing import Any, NoReturn, final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.measurement import Check
from mikit.core.rows import split_folds
from mikit.estimators.base import Estimator, require_pair
from mikit.estimators.fitting import FitRecord, Training
from mikit.functional.neighbors.anchored import anchored_ksg_pointwise
from mikit.functional.reduction.code_maps import CodeMap
from mikit.functional.reduction.directions import Reduction, contrast_evidence, informative_directions

__all__ = ["ReducedKSG"]

_PARTS = ("mean", "axes", "weight", "bias", "second", "directions", "centre")
_STATE = (*(f"{part}_{side}" for side in ("x", "y") for part in _PARTS), "correlations", "evidence", "seed")


@final
class ReducedKSG(Estimator):
    """Mutual information of wide rows ``(n, d_x)``, ``(n, d_y)`` through a few pairs of learned codes.

    Formula: ``I(x; y) >= I(a(x); b(y))``, with codes ``a``, ``b`` from
    :func:`~mikit.functional.reduction.directions.informative_directions` on the fit and select rows; the information of
    the codes of the report rows is read by :func:`~mikit.functional.neighbors.anchored.anchored_ksg`: the Gaussian
    information of their normal scores, plus what nearest neighbours find beyond a Gaussian sample with the same
    correlations.

    Args:
        k: Number of neighbours.
        most: Pairs of codes at most; how many are used is decided on the select rows.
        nonlinear: Whether codes that are not linear may be chosen.
        draws: Gaussian samples that set the neighbours right.

    Shapes:
        ``x`` is ``(n, d_x)``, ``y`` is ``(n, d_y)``, with paired rows; columns may outnumber rows.

    Unit: nats.

    Kind: estimate. The information of the codes is at most that of the rows, by data processing; it is read by an
    estimator that is itself no bound, so the value may lie on either side. Never clipped.

    Raises:
        TypeError: If called as a loss. Counts of neighbours have no gradient.
        InputError: If it is not fitted, if the rows do not pair up or are fewer than the codes, or if a code of ``x``
            equals one of ``y``.

    Checks:
        Whether the codes tell a row's own partner from the others as well as the value says: warns where the contrast
        on the report rows, itself below ``log n``, falls short of the value by more than a quarter of it. Whether much
        of the value is what neighbours found beyond the Gaussian part.

    Cost:
        Fit: ``O(n d min(n, d))`` time up to 1,200 rows or columns and ``O(512 n d)`` above, and one to three seconds
        for the choice; report: ``O((1 + draws) m² k)`` on ``m`` rows. One float32 copy of a side in memory at a
        time.

    Pitfalls:
        What the codes miss is not in the value: it is low where latents are many, weak, or seen through a strongly
        curved map, and the interval does not show that. With ``rotations=5`` every row reports once, which narrows the
        interval by half. Dependence that is not linear in the codes is seen by neighbours only, hence in part where
        there are more than a few pairs.

    Source:
        Gowri, Lun, Klein and Yin (2024), "Approximating mutual information of high-dimensional variables using learned
        representations", for codes read by neighbours; how codes are found and read is ours.

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
            if value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1.")
        self.k = k
        self.most = most
        self.nonlinear = nonlinear
        self.draws = draws
        self.chosen = ""

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"k={self.k}, most={self.most}, nonlinear={self.nonlinear}, draws={self.draws}"

    def forward(self, x: Tensor, y: Tensor) -> NoReturn:
        """Raise TypeError: there is nothing to minimise."""
        raise TypeError(
            "ReducedKSG has no gradient: counts of neighbours are piecewise constant, and codes are solved for, not "
            "trained. Train with a differentiable measure (InfoNCE, JSD or VID) and report ReducedKSG with "
            "mikit.measure."
        )

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the information of the codes, in nats, never clipped."""
        return self.pointwise(x, y).mean()

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the contribution of every row, ``(n,)``, in nats; their mean is the estimate."""
        a, b = self._codes(x, y)
        generator = torch.Generator().manual_seed(int(self.seed))
        return anchored_ksg_pointwise(a, b, self.k, draws=self.draws, generator=generator)

    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Return what the codes are, and whether their contrast bears the value out."""
        a, b = self._codes(x, y)
        pairs, value = a.shape[1], float(self.estimate(x, y))
        said = f"{pairs} {'pair' if pairs == 1 else 'pairs'} of codes ({self.chosen or 'read from a state dict'})"
        codes = Check("codes", "not applicable", float(pairs), None, f"{said}.")
        contrast = max(contrast_evidence(a, b, (pairs,)), default=0.0)
        short = value - contrast
        name = "codes tell partners apart"
        if short <= max(0.25 * value, 0.1):
            return codes, Check(name, "pass", contrast, 0.75 * value, f"The contrast bears out {contrast:.2f} nats.")
        reason = "near log n it always falls short; below, the codes may repeat each other and be counted twice"
        sentence = f"The contrast bears out {contrast:.2f} of {value:.2f} nats: {reason}."
        return codes, Check(name, "warn", contrast, 0.75 * value, sentence)

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return ``k + 2``, or as many rows as the codes need once their number is known."""
        pairs = 1 if not self._is_fitted() else int(self.correlations.shape[0])
        return max(self.k + 2, 2 * pairs + 2)

    def fresh(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> ReducedKSG:
        """Return an unfitted copy with the same hyper-parameters."""
        return ReducedKSG(self.k, most=self.most, nonlinear=self.nonlinear, draws=self.draws)

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        *,
        select: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator,
        training: Training | None = None,
    ) -> FitRecord:
        """Find the codes; without select rows a quarter of the rows are set aside to choose them.

        Nothing is trained by gradient steps, so ``training`` has no effect.
        """
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
        """Return the fitted reduction, to look at the codes."""
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
        # The sizes of the codes are known only once they are found, so an unfitted instrument makes room for them here.
        for name in _STATE:
            if prefix + name in state_dict:
                self.register_buffer(name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *arguments)
