"""The two axes of distillation side by side: how far apart two laws are, and how much one row says of its partner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from mikit.core.errors import InputError
from mikit.core.measurement import ABOVE_OWN, Measurement
from mikit.estimators import estimator_named
from mikit.estimators.base import Estimator
from mikit.measuring.pipeline import measure

__all__ = ["BothAxes", "both_axes"]

_SPLITS = 8


@final
@dataclass(frozen=True)
class BothAxes:
    """A discrepancy of two laws and the information between their rows, which say nothing of each other.

    Attributes:
        gap: The discrepancy.
        information: The mutual information.
        name: What was compared, for printouts and pictures; may be empty.
    """

    gap: Measurement
    information: Measurement
    name: str = ""

    @property
    def apart(self) -> bool | None:
        """Whether the gap stands clear of what samples of one law give; None where that could not be asked."""
        outcome = next((check.outcome for check in self.gap.checks if check.name == ABOVE_OWN), "not applicable")
        return None if outcome == "not applicable" else outcome == "pass"

    @property
    def informed(self) -> bool:
        """Whether information was detected: its interval lies above 0 and above permuted rows."""
        return self.information.finding.startswith("Information was detected")

    @property
    def gap_beyond_chance(self) -> tuple[float, float, float]:
        """The gap less what finite samples of one law give, with a lower and an upper end.

        Of an instrument that is unbiased it is the value and its 95 % interval. Of a biased one it is the debiased
        value, give or take two standard deviations over the splits.
        """
        parts = self.gap.parts
        if "debiased" in parts:
            reach = 2 * parts["debiased, standard error over splits"] * _SPLITS**0.5
            return parts["debiased"], parts["debiased"] - reach, parts["debiased"] + reach
        return self.gap.value, *self.gap.interval

    @property
    def finding(self) -> str:
        """What the two numbers show together, in one sentence."""
        rows = "rows know of their partners" if self.informed else "no row was found to know of its partner"
        if self.apart is None:
            return f"Whether the laws differ was not asked; {rows}."
        if self.apart:
            return f"The two laws differ; {rows}."
        if self.informed:
            return f"The two laws look alike, and {rows}."
        return f"The two laws look alike, but {rows}, as if the rows were shuffled."

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, strings and numbers."""
        return {
            "name": self.name,
            "finding": self.finding,
            "gap": self.gap.to_dict(),
            "information": self.information.to_dict(),
        }

    def __str__(self) -> str:
        title = [self.name] if self.name else []
        return "\n".join([*title, self.finding, f"gap:          {self.gap}", f"information:  {self.information}"])


def both_axes(
    x: Any,
    y: Any,
    discrepancy: Estimator | type[Estimator] | str = "wasserstein",
    information: Estimator | type[Estimator] | str = "auto",
    *,
    name: str = "",
    groups: Any = None,
    x_ids: Any = None,
    y_ids: Any = None,
    permutations: int | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> BothAxes:
    """Measure a discrepancy between two laws and the information between their paired rows.

    Formula: those of the two instruments, by :func:`mikit.measure`.

    Args:
        x: The student's activations, ``(n, d)``.
        y: The teacher's, ``(n, d)``, rows paired with ``x``; of one width, unless the discrepancy takes several.
        discrepancy: An instrument that compares laws, its class, or its name.
        information: An instrument that reads nats, its class, or its name.
        name: What is compared, such as ``"student, layer 3"``.
        groups: As in :func:`mikit.measure`.
        x_ids: As there.
        y_ids: As there.
        permutations: As there, for both.
        seed: As there.
        progress: As there.

    Returns:
        A frozen :class:`BothAxes` with both measurements and what they show together.

    Unit: that of the discrepancy, and nats.

    Kind: a discrepancy and an information; neither bounds the other.

    Raises:
        InputError: As :func:`mikit.measure`; if rows cannot be paired, the first instrument is no discrepancy, or the
            second does not read nats.

    Cost:
        Two calls of :func:`mikit.measure`.

    Pitfalls:
        A gap of 0 does not mean that the student knows anything: shuffle a teacher's rows, and its gap from itself is 0
        and the information about 0. Much information does not mean a small gap: a student may know all in coordinates
        of its own. Read both.

    Source:
        mikit's own.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> teacher = rng.standard_normal((400, 2))
        >>> student = 0.5 * teacher + 0.1 * rng.standard_normal((400, 2))
        >>> for rows in (student, rng.permutation(teacher)):
        ...     print(both_axes(rows, teacher, "energy", "gaussian", permutations=1).finding)
        The two laws differ; rows know of their partners.
        The two laws look alike, but no row was found to know of its partner, as if the rows were shuffled.
    """
    compares, reads = _class_of(discrepancy, "discrepancy"), _class_of(information, "information")
    if compares.kind != "discrepancy":
        raise InputError(f'discrepancy is "{compares.name}", which compares no laws. Use "mmd", "energy" or another.')
    if reads.unit != "nats" or reads.explains != "vectors" or not reads.zero_when_independent:
        raise InputError(f'information is "{reads.name}", which reads no nats between vectors. Use "auto" or another.')
    common = {"groups": groups, "x_ids": x_ids, "y_ids": y_ids, "permutations": permutations, "seed": seed}
    known = measure(x, y, information, progress=progress, **common)  # refuses rows that cannot be paired
    apart = measure(x, y, discrepancy, progress=progress, **common)
    return BothAxes(apart, known, name)


def _class_of(instrument: Estimator | type[Estimator] | str, argument: str) -> type[Estimator]:
    if isinstance(instrument, str):
        return estimator_named(instrument)
    cls = instrument if isinstance(instrument, type) else type(instrument)
    if not issubclass(cls, Estimator):
        raise InputError(f"{argument} is {instrument!r}; pass an instrument, its class, or its name.")
    return cls
