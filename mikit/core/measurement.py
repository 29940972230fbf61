"""The result of a measurement: a value with its unit, interval, checks, verdict and provenance."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Self, final

from mikit.core.errors import InputError

__all__ = ["ABOVE_OWN", "Check", "Measurement", "Null", "plain", "verdict_of"]

ABOVE_OWN = "above the teacher's own"
"""Name of the check on which the finding of a discrepancy rests."""

_OUTCOMES = ("pass", "warn", "fail", "not applicable")
_VERDICTS = {"pass": "trustworthy", "not applicable": "trustworthy", "warn": "caution", "fail": "unreliable"}
_SCHEMA_VERSION = 1


@final
@dataclass(frozen=True)
class Check:
    """One check of a measurement, with the figure that decided it.

    Attributes:
        name: What was checked; an identifier that stays the same between versions.
        outcome: ``"pass"``, ``"warn"``, ``"fail"`` or ``"not applicable"``.
        figure: The figure that decided it, if there is one.
        threshold: The figure at which the outcome becomes a warning or a failure, if there is one.
        sentence: What it means.
    """

    name: str
    outcome: str
    figure: float | None
    threshold: float | None
    sentence: str

    def __post_init__(self) -> None:
        if self.outcome not in _OUTCOMES:
            raise InputError(f'Check "{self.name}" has outcome "{self.outcome}"; it must be one of {_OUTCOMES}.')

    @classmethod
    def passed(cls, name: str, sentence: str, figure: float | None = None, threshold: float | None = None) -> Self:
        """Return a check that found nothing wrong."""
        return cls(name, "pass", figure, threshold, sentence)

    @classmethod
    def warned(cls, name: str, sentence: str, figure: float | None = None, threshold: float | None = None) -> Self:
        """Return a check that found a reason for caution."""
        return cls(name, "warn", figure, threshold, sentence)

    @classmethod
    def failed(cls, name: str, sentence: str, figure: float | None = None, threshold: float | None = None) -> Self:
        """Return a check that found the value unreliable."""
        return cls(name, "fail", figure, threshold, sentence)

    @classmethod
    def not_applicable(
        cls, name: str, sentence: str, figure: float | None = None, threshold: float | None = None
    ) -> Self:
        """Return a check whose question cannot be asked of these data."""
        return cls(name, "not applicable", figure, threshold, sentence)

    @classmethod
    def judged(
        cls,
        name: str,
        figure: float,
        *,
        passed: str,
        otherwise: str,
        warn: float | None = None,
        fail: float | None = None,
    ) -> Self:
        """Return the outcome that a figure has: it fails above ``fail`` and warns above ``warn``, if these are given.

        Args:
            name: What was checked.
            figure: The figure.
            passed: Sentence of a figure that passes.
            otherwise: Sentence of one that warns or fails.
            warn: Threshold of a warning.
            fail: Threshold of a failure.
        """
        # Written so that a figure that is NaN does not pass.
        if fail is not None and not figure <= fail:
            return cls.failed(name, otherwise, figure, fail)
        if warn is not None and not figure <= warn:
            return cls.warned(name, otherwise, figure, warn)
        return cls.passed(name, passed, figure, fail if warn is None else warn)


@final
@dataclass(frozen=True)
class Null:
    """The same estimate on permuted data.

    Attributes:
        values: One estimate for each permutation.
        permuted: What was permuted: ``"rows"`` or ``"groups"``.
    """

    values: tuple[float, ...]
    permuted: str

    @property
    def mean(self) -> float:
        """Mean over the permutations."""
        return sum(self.values) / len(self.values)

    def p_value(self, value: float) -> float:
        """Return the p-value ``(1 + #{null >= value}) / (B + 1)`` over ``B`` permutations; NaN where ``value`` is NaN.

        The observed pairing counts as one of the permutations, so that the p-value is never 0 and a test at level ``α``
        rejects independence in at most ``α`` of all cases (Phipson and Smyth, "Permutation p-values should never be
        zero", 2010). A permuted estimate that is NaN counts as one that is at least as large.

        Example:
            >>> Null((0.01, 0.30, -0.02), "rows").p_value(0.20)
            0.5
        """
        if math.isnan(value):
            return math.nan
        return (1 + sum(not null < value for null in self.values)) / (len(self.values) + 1)


@final
@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A measured quantity, its uncertainty, and a verdict on its reliability.

    Attributes:
        value: The estimate on the report part, in ``unit``; never clipped.
        unit: ``"nats"``, ``"feature²"`` or ``"dimensionless"``.
        kind: ``"lower bound"``, ``"upper bound"``, ``"estimate"``, ``"V-information"``, ``"index"``, ``"discrepancy"``.
        interval: 95 % sampling interval of ``value``. It covers the estimator's target, and does not account for bias.
        standard_error: Sampling standard error; samples of one group count as one observation.
        ceiling: Upper limit of the estimate for this many samples, if there is one.
        checks: Every check that was run.
        null: The estimate on permuted data; None if not asked for.
        estimator: The estimator and its hyperparameters.
        chosen: The reason for this estimator if ``auto`` chose it; else empty.
        seed: Seed of every random draw.
        sizes: Number of samples of the fit, select and report parts, and of features, ``d_x`` and ``d_y``.
        parts: Other estimates by name, for comparison only: for a learned estimator those on its fit and select parts.
        versions: Versions of mikit, Python, torch, NumPy and SciPy.
        data_hash: Hash of the data that were measured, in paired order.
        wall_time: Seconds.
        noise: Standard deviation of the noise that was added to ``y``, as a fraction of each feature's; None without.
    """

    value: float
    unit: str
    kind: str
    interval: tuple[float, float]
    standard_error: float | None
    ceiling: float | None
    checks: tuple[Check, ...]
    null: Null | None
    estimator: str
    chosen: str
    seed: int
    sizes: Mapping[str, int]
    parts: Mapping[str, float]
    versions: Mapping[str, str]
    data_hash: str
    wall_time: float
    noise: float | None = None

    @property
    def verdict(self) -> str:
        """``"trustworthy"``, ``"caution"`` or ``"unreliable"``: the worst outcome of the checks."""
        return verdict_of(self.checks)

    @property
    def reasons(self) -> tuple[str, ...]:
        """The sentences of the checks that warned or failed, the failures first."""
        order = {"fail": 0, "warn": 1}
        reasons = sorted((c for c in self.checks if c.outcome in order), key=lambda c: order[c.outcome])
        return tuple(c.sentence for c in reasons)

    @property
    def p_value(self) -> float | None:
        """The p-value against permuted data, by :meth:`Null.p_value`; None where no permuted data were measured.

        It can be no smaller than ``1 / (B + 1)``: 19 permutations are needed to reach 0.05, 99 to reach 0.01.
        """
        return None if self.null is None else self.null.p_value(self.value)

    @property
    def finding(self) -> str:
        """The conclusion that the interval supports, in one sentence."""
        low, _ = self.interval
        if self.kind == "discrepancy":
            own = next((check.outcome for check in self.checks if check.name == ABOVE_OWN), "")
            if math.isnan(low) and own not in ("pass", "warn"):
                return "The sampling error is unknown, so there is no conclusion."
            differ = own != "warn" and (low > 0 or math.isnan(low))
            return (
                "The two distributions differ."
                if differ
                else "No difference between the two distributions was detected."
            )
        if math.isnan(low):
            return "The sampling error is unknown, so there is no conclusion."
        floor = max(0.0, *self.null.values) if self.null else 0.0
        if low <= 0:
            return "No information was detected by this estimator: the interval includes 0."
        if low <= floor:
            return (
                "No information was detected by this estimator: the interval includes the estimates on permuted data."
            )
        return "Information was detected: the interval lies above 0 and above the estimates on permuted data."

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, strings and numbers; numbers that are not finite become strings."""
        content = {"schema_version": _SCHEMA_VERSION, **asdict(self)}
        content.update(verdict=self.verdict, reasons=list(self.reasons), finding=self.finding, p_value=self.p_value)
        described: dict[str, Any] = plain(content)
        return described

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Return the measurement that :meth:`to_dict` described.

        Raises:
            InputError: If a field is missing or the schema is of another version of mikit.
        """
        if not isinstance(content, Mapping):
            raise InputError("This is not a measurement: it must be an object with named fields.")
        version = content.get("schema_version")
        if version != _SCHEMA_VERSION:
            raise InputError(
                f"This measurement has schema version {version!r}; this mikit reads version {_SCHEMA_VERSION}. "
                "Measure again, or use the version of mikit that wrote it."
            )
        missing = [field.name for field in fields(cls) if field.name not in content and field.default is MISSING]
        if missing:
            raise InputError(f"The measurement lacks the fields {', '.join(missing)}; it is not one that mikit wrote.")
        try:
            values = {field.name: _number(content[field.name]) for field in fields(cls) if field.name in content}
            null = values["null"]
            values.update(
                checks=tuple(Check(**check) for check in values["checks"]),
                null=None if null is None else Null(tuple(null["values"]), null["permuted"]),
                interval=(float(values["interval"][0]), float(values["interval"][1])),
            )
        except (KeyError, IndexError, TypeError, ValueError) as cause:
            raise InputError(f"The measurement is malformed ({cause}); it is not one that mikit wrote.") from cause
        return cls(**values)

    def to_json(self) -> str:
        """Return :meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the measurement that :meth:`to_json` wrote."""
        try:
            content = json.loads(text)
        except json.JSONDecodeError as cause:
            raise InputError(f"This text is not JSON: {cause}.") from cause
        return cls.from_dict(content)

    def __str__(self) -> str:
        lines = [f"{self._headline()}  ·  verdict: {self.verdict}", f"  {self.finding}", *self._beside()]
        lines += [f"  - {reason}" for reason in self.reasons]
        lines.append(f"  {self.estimator}" + (f"; {self.chosen}" if self.chosen else ""))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        color = {"trustworthy": "#1b7f4d", "caution": "#9a6700", "unreliable": "#b42318"}[self.verdict]
        rows = "".join(
            f"<tr><td>{html.escape(c.name)}</td><td>{c.outcome}</td>"
            f"<td style='text-align:left'>{html.escape(c.sentence)}</td></tr>"
            for c in self.checks
        )
        return (
            f"<div><b>{html.escape(self._headline())}</b> "
            f"<span style='color:{color};font-weight:600'>{self.verdict}</span>"
            f"<p>{html.escape(self.finding)}<br><small>{html.escape(self.estimator)}"
            f"{'; ' + html.escape(self.chosen) if self.chosen else ''}</small></p>"
            f"<table><thead><tr><th>check</th><th>outcome</th><th>meaning</th></tr></thead>{rows}</table></div>"
        )

    def _beside(self) -> list[str]:
        """Return the lines of a discrepancy: the teacher against itself, and the information beside it."""
        lines, of = [], self.parts
        if "teacher against itself" in of:
            line = (
                f"  With {of['rows of a half']:.0f} samples a side: {of['student against teacher, at that size']:.4g}; "
            )
            line += f"the teacher against itself: {of['teacher against itself']:.4g}"
            if "debiased" in of:
                line += (
                    f"; debiased: {of['debiased']:.4g} ± {of['debiased, standard error over splits']:.2g} over splits"
                )
            lines.append(line)
        if "information beside it" in of:
            error = of["information beside it, standard error"]
            lines.append(f"  Information beside it: {of['information beside it']:.3f} nats, standard error {error:.2g}")
        return lines

    def _headline(self) -> str:
        digits = _digits(self.standard_error)
        parts = [f"{self.value:.{digits}f} {self.unit}"]
        if not math.isnan(self.interval[0]):
            parts.append(f"[{self.interval[0]:.{digits}f}, {self.interval[1]:.{digits}f}]")
        size = f"N = {self.sizes['report']}"
        if self.sizes["fit"]:
            size += f" ({self.sizes['fit']} to fit)"
        limits = [self.kind, size]
        if self.noise is not None:
            limits.append(f"noise {self.noise:g}")
        if self.ceiling is not None:
            limits.append(f"upper limit {self.ceiling:.1f}")
        return "  ".join([*parts, ", ".join(limits)])


def verdict_of(checks: tuple[Check, ...]) -> str:
    """Return the verdict of the worst outcome among ``checks``."""
    worst = max((_OUTCOMES[:3].index(c.outcome) for c in checks if c.outcome in _OUTCOMES[:3]), default=0)
    return _VERDICTS[_OUTCOMES[worst]]


def _digits(standard_error: float | None) -> int:
    """Return the number of decimals to print: two significant figures of the standard error, from 2 to 6."""
    if standard_error is None or not math.isfinite(standard_error) or standard_error <= 0:
        return 3
    return min(max(1 - math.floor(math.log10(standard_error)), 2), 6)


def plain(value: Any) -> Any:
    """Return ``value`` in types that JSON supports: plain containers, and text for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _number(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _number(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_number(item) for item in value]
    return float(value) if value in ("nan", "inf", "-inf") else value
