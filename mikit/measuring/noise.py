"""Information between deterministic layers, which is finite only with declared noise, at several noise levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

from mikit.core.errors import InputError
from mikit.core.measurement import Check, Measurement, verdict_of
from mikit.estimators.base import Estimator
from mikit.estimators.fitting import Training
from mikit.measuring.checks.values import data_processing
from mikit.measuring.pipeline import measure

__all__ = ["NoiseSweep", "noise_sweep"]

_FEWEST = 3


@final
@dataclass(frozen=True, kw_only=True)
class NoiseSweep:
    """One quantity at several levels of declared noise.

    Attributes:
        noises: Noise levels in ascending order, as fractions of each feature's standard deviation.
        measurements: The measurement at each level.
        checks: Whether the finding is the same at all levels, and whether the value falls as noise grows.
    """

    noises: tuple[float, ...]
    measurements: tuple[Measurement, ...]
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> str:
        """The worst verdict of the measurements and of the checks of the sweep."""
        return verdict_of((*(check for one in self.measurements for check in one.checks), *self.checks))

    @property
    def holds(self) -> bool:
        """Whether every noise level leads to the same finding."""
        return all(check.outcome in ("pass", "not applicable") for check in self.checks)

    @property
    def finding(self) -> str:
        """The finding of the sweep, in one sentence."""
        figures = ", ".join(
            f"{m.value:.3f} at {noise:g}" for noise, m in zip(self.noises, self.measurements, strict=True)
        )
        if not self.holds:
            return f"Noise-dependent ({figures} {self.measurements[0].unit}): report only what every level supports."
        return f"At every noise level: {self.measurements[0].finding} The value depends on the resolution: {figures}."

    def order_against(self, other: NoiseSweep) -> Check:
        """Check whether this or the ``other`` sweep is higher at every level: warns where the order changes.

        Args:
            other: A sweep with the same noise levels, unit and kind.

        Raises:
            InputError: If the sweeps cannot be compared.
        """
        name = "order holds at every noise"
        mine, theirs = self.measurements, other.measurements
        if self.noises != other.noises or (mine[0].unit, mine[0].kind) != (theirs[0].unit, theirs[0].kind):
            raise InputError("Two sweeps can be compared only with the same noise levels, unit and kind.")
        gaps = [a.value - b.value for a, b in zip(mine, theirs, strict=True)]
        errors = [
            ((a.standard_error or 0.0) ** 2 + (b.standard_error or 0.0) ** 2) ** 0.5
            for a, b in zip(mine, theirs, strict=True)
        ]
        signs = {
            0 if abs(gap) <= 2 * error else (1 if gap > 0 else -1) for gap, error in zip(gaps, errors, strict=True)
        }
        figures = ", ".join(f"{gap:+.3f} at {noise:g}" for noise, gap in zip(self.noises, gaps, strict=True))
        smallest = min(gaps, key=abs)
        if len(signs) > 1:
            return Check.warned(name, f"The difference is {figures}: the order depends on the noise.", smallest, 0.0)
        return Check.passed(
            name, f"The difference is {figures}: the order does not depend on the noise.", smallest, 0.0
        )

    def __str__(self) -> str:
        lines = [f"{self.finding}  ·  verdict: {self.verdict}"]
        return "\n".join([*lines, *(f"  - {check.sentence}" for check in self.checks), *map(str, self.measurements)])


def noise_sweep(
    x: Any,
    y: Any,
    estimator: Estimator | type[Estimator] | str = "auto",
    *,
    noises: Sequence[float] = (0.1, 0.3, 1.0),
    groups: Any = None,
    x_ids: Any = None,
    y_ids: Any = None,
    permutations: int | None = None,
    training: Training | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> NoiseSweep:
    """Measure ``x`` against ``y`` plus declared noise at three or more levels, and report whether they agree.

    Between a layer and a function of it the information is infinite. With independent noise on ``y`` it is finite and
    depends on the noise level: it states how much of ``y`` is known at that resolution. Report a conclusion only if
    every level supports it.

    Formula: ``I(X; Y + σ s Z)`` with the features' standard deviations ``s`` and standard normal ``Z``, for each ``σ``.

    Args:
        x: As for :func:`mikit.measure`; no noise is added to it.
        y: As for :func:`mikit.measure`, vectors only.
        estimator: As for :func:`mikit.measure`.
        noises: Levels ``σ``; at least three, above 0.
        groups: As for :func:`mikit.measure`.
        x_ids: As for :func:`mikit.measure`.
        y_ids: As for :func:`mikit.measure`.
        permutations: As for :func:`mikit.measure`.
        training: As for :func:`mikit.measure`.
        seed: As for :func:`mikit.measure`. All levels scale the same draw.
        progress: As for :func:`mikit.measure`.

    Returns:
        The measurements and their joint finding.

    Raises:
        InputError: If there are fewer than three levels, or as for :func:`mikit.measure`.

    Cost:
        One measurement for each level.

    Pitfalls:
        The values depend on the noise by design, and on the scale of ``y`` where the weights of a network grow: compare
        layers and epochs at the same ``σ`` only. They describe geometry at a resolution, not information lost by the
        network.

    Source:
        Goldfeld et al., ICML 2019, for the noisy model; the sweep as a test is mikit's own.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).standard_normal((1000, 2))
        >>> sweep = noise_sweep(x, np.tanh(x), "ksg")
        >>> sweep.holds, [m.noise for m in sweep.measurements]
        (True, [0.1, 0.3, 1.0])
    """
    sizes = tuple(sorted(float(noise) for noise in noises))
    if len(set(sizes)) < _FEWEST:
        raise InputError(
            f"noises contains {len(set(sizes))} different levels; a conclusion needs at least three, from small to "
            "large."
        )
    announce = progress or (lambda sentence: None)
    measured = []
    for noise in sizes:
        announce(f"With noise of {noise:g}")
        measured.append(
            measure(
                x,
                y,
                estimator,
                groups=groups,
                x_ids=x_ids,
                y_ids=y_ids,
                permutations=permutations,
                training=training,
                noise=noise,
                seed=seed,
                progress=progress,
            )
        )
    order = data_processing([m.value for m in measured], [m.standard_error for m in measured], kind=measured[0].kind)
    findings = {m.finding for m in measured}
    same = Check.judged(
        "same finding at every noise",
        float(len(findings)),
        warn=1.0,
        passed="Every noise level leads to the same finding.",
        otherwise="The finding depends on the noise level: " + " ".join(sorted(findings)),
    )
    return NoiseSweep(noises=sizes, measurements=tuple(measured), checks=(same, order))
