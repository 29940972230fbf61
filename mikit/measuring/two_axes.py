"""The two axes of distillation: the distance of two distributions, and the information between paired samples."""

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
    """A discrepancy of two distributions and the information between their samples; neither determines the other.

    Attributes:
        gap: The discrepancy.
        information: The mutual information.
        name: What was compared, for printed results and figures; may be empty.
    """

    gap: Measurement
    information: Measurement
    name: str = ""

    @property
    def apart(self) -> bool | None:
        """Whether the gap clearly exceeds that of two samples of one distribution; None if that is not known."""
        outcome = next((check.outcome for check in self.gap.checks if check.name == ABOVE_OWN), "not applicable")
        return None if outcome == "not applicable" else outcome == "pass"

    @property
    def informed(self) -> bool:
        """Whether information was detected: its interval lies above 0 and above that of permuted samples."""
        return self.information.finding.startswith("Information was detected")

    @property
    def gap_beyond_chance(self) -> tuple[float, float, float]:
        """The gap minus that of finite samples of one distribution, with a lower and an upper end.

        For an unbiased metric this is the value and its 95 % interval; for a biased one the debiased value, plus and
        minus two standard deviations over the splits.
        """
        parts = self.gap.parts
        if "debiased" in parts:
            reach = 2 * parts["debiased, standard error over splits"] * _SPLITS**0.5
            return parts["debiased"], parts["debiased"] - reach, parts["debiased"] + reach
        return self.gap.value, *self.gap.interval

    @property
    def finding(self) -> str:
        """The joint meaning of the two numbers, in one sentence."""
        partners = (
            "samples are informative about their partners"
            if self.informed
            else "no information between partners was detected"
        )
        if self.apart is None:
            return f"Whether the distributions differ is not known; {partners}."
        if self.apart:
            return f"The two distributions differ; {partners}."
        if self.informed:
            return f"The two distributions are similar, and {partners}."
        return f"The two distributions are similar, but {partners}, as if the samples were shuffled."

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
    """Measure a discrepancy between two distributions and the information between their paired samples.

    Formula: those of the two estimators, by :func:`mikit.measure`.

    Args:
        x: The student's activations, ``(n, d)``.
        y: The teacher's, ``(n, d)``, samples paired with ``x``; of one width, unless the discrepancy takes several.
        discrepancy: A metric between distributions, its class, or its name.
        information: An estimator of information in nats, its class, or its name.
        name: What is compared, such as ``"student, layer 3"``.
        groups: As in :func:`mikit.measure`.
        x_ids: As there.
        y_ids: As there.
        permutations: As there, for both.
        seed: As there.
        progress: As there.

    Returns:
        A frozen :class:`BothAxes` with both measurements and their joint meaning.

    Unit: that of the discrepancy, and nats.

    Kind: a discrepancy and an information; neither bounds the other.

    Raises:
        InputError: As :func:`mikit.measure`; if samples cannot be paired, ``discrepancy`` is no discrepancy, or
            ``information`` is not in nats.

    Cost:
        Two calls of :func:`mikit.measure`.

    Pitfalls:
        A gap of 0 does not mean that the student knows anything: if the teacher's samples are shuffled, the gap is 0
        and the information about 0. Much information does not mean a small gap: a student may represent everything in
        other coordinates. Report both.

    Source:
        mikit's own.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> teacher = rng.standard_normal((400, 2))
        >>> student = 0.5 * teacher + 0.1 * rng.standard_normal((400, 2))
        >>> for rows in (student, rng.permutation(teacher)):
        ...     print(both_axes(rows, teacher, "energy", "gaussian", permutations=1).finding)
        The two distributions differ; samples are informative about their partners.
        The two distributions are similar, but no information ... was detected, as if the samples were shuffled.
    """
    compares, reads = _class_of(discrepancy, "discrepancy"), _class_of(information, "information")
    if compares.kind != "discrepancy":
        raise InputError(f'discrepancy is "{compares.name}", which is no discrepancy. Use "mmd", "energy" or another.')
    if reads.unit != "nats" or reads.explains != "vectors" or not reads.zero_when_independent:
        raise InputError(
            f'information is "{reads.name}", which does not estimate nats between vectors. Use "auto" or another.'
        )
    common = {"groups": groups, "x_ids": x_ids, "y_ids": y_ids, "permutations": permutations, "seed": seed}
    known = measure(x, y, information, progress=progress, **common)  # Refuses samples that cannot be paired.
    apart = measure(x, y, discrepancy, progress=progress, **common)
    return BothAxes(apart, known, name)


def _class_of(estimator: Estimator | type[Estimator] | str, argument: str) -> type[Estimator]:
    if isinstance(estimator, str):
        return estimator_named(estimator)
    cls = estimator if isinstance(estimator, type) else type(estimator)
    if not issubclass(cls, Estimator):
        raise InputError(f"{argument} is {estimator!r}; pass an estimator, its class, or its name.")
    return cls
