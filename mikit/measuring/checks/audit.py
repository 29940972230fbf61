"""The checks that repeat the estimate: :func:`mikit.measure` runs them with ``audit=True`` and reports the cost first.

Each checks a property that mutual information has, or that the value does not change where it should not. An estimate
that passes is consistent, which does not prove it unbiased. Thresholds without a source are mikit's own.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.measurement import Check
from mikit.core.rows import split_folds
from mikit.estimators.base import Estimator
from mikit.estimators.gaussian.mutual_information import GaussianMI
from mikit.estimators.neighbors.weighted_kl import WeightedKL
from mikit.estimators.normalizing_flows.flow_mi import FlowMI
from mikit.functional.gaussian.canonical import rank_gaussianise
from mikit.measuring.checks.controls import control_samples
from mikit.measuring.run import Run, run_once
from mikit.measuring.subject import Subject

__all__ = [
    "Audit",
    "additivity",
    "audit_checks",
    "known_answer",
    "noise_says_nothing",
    "redundancy",
    "reparametrisation",
    "seed_spread",
    "subsample_slope",
    "symmetry",
]

_SEEDS = 3
_CHUNKS = (2, 3, 5)
_FEWEST_ROWS = 100


@final
@dataclass(frozen=True)
class Audit:
    """A measurement that is audited, and how to repeat it.

    Attributes:
        prototype: The estimator.
        subject: What was measured.
        run: The first estimate.
        seconds: Duration of the first estimate.
        again: Estimates other samples in the same way, and returns the value alone.
        progress: Called with a sentence before each check.
    """

    prototype: Estimator
    subject: Subject
    run: Run
    seconds: float
    again: Callable[[Subject], float]
    progress: Callable[[str], None]

    @classmethod
    def of(
        cls, prototype: Estimator, subject: Subject, run: Run, seconds: float, progress: Callable[[str], None]
    ) -> Self:
        """Return the audit of a measurement."""

        def again(other: Subject) -> float:
            return run_once(prototype, other, value_only=True).value

        return cls(prototype, subject, run, seconds, again, progress)

    def on(self, x: Tensor, y: Tensor, codes: Tensor | None = None, seed: int | None = None) -> float:
        """Return the estimate on other samples."""
        return self.again(self.subject.of(x, y, codes, seed))

    @property
    def unsuited(self) -> str:
        """Why the properties of mutual information between vectors do not apply; empty if they do."""
        p = self.prototype
        if p.unit != "nats" or p.kind not in ("estimate", "lower bound", "upper bound"):
            return f"This property is not required of a {p.kind} in {p.unit}."
        if p.explains != "vectors" or p.reads != "numbers" or not self.subject.vectors:
            return "This check applies only where both sides are vectors."
        return ""

    def cost(self, estimates: int, share: float = 1.0) -> float:
        """Return the seconds of so many estimates on this fraction of the samples; training takes as long on fewer."""
        return estimates * (1.0 if self.prototype.learned else share) * self.seconds

    def announce(self, what: str, estimates: int, share: float = 1.0) -> None:
        """Report the cost of a check."""
        part = "" if share == 1 else f" on {share:.0%} of the samples"
        more = f"{estimates} more estimate{'s' if estimates > 1 else ''}{part}"
        self.progress(f"Audit, {what}: {more}, {_duration(self.cost(estimates, share))}")


def audit_checks(audit: Audit) -> tuple[Check, ...]:
    """Run every check of the audit, after reporting what all of them cost at most."""
    chunks = _chunks(audit)
    parts = [(sum(chunks), len(chunks) / sum(chunks)), (1, 1.0)]
    parts += [(_SEEDS + 1, 1.0)] if audit.prototype.learned else []
    parts += [] if audit.unsuited else [(1, 1.0), (3, 1.0), (3, 0.5), (1, 1.0)]
    estimates, seconds = sum(count for count, _ in parts), sum(audit.cost(*part) for part in parts)
    audit.progress(
        f"The audit repeats the estimate up to {estimates} times, partly on fewer samples: {_duration(seconds)}"
    )
    return (
        seed_spread(audit),
        subsample_slope(audit),
        noise_says_nothing(audit),
        known_answer(audit),
        symmetry(audit),
        reparametrisation(audit),
        additivity(audit),
        redundancy(audit),
    )


def seed_spread(audit: Audit) -> Check:
    """Repeat with three more seeds of the split and of the training. Warns above 0.1, and above 10 % and 0.02."""
    name, subject = "seeds agree", audit.subject
    if not audit.prototype.learned:
        return Check.not_applicable(name, "Nothing is trained or split, so the seed does not matter.")
    audit.announce("seeds", _SEEDS)
    more = [audit.on(subject.x, subject.y, subject.codes, subject.seed + 15485863 * k) for k in range(1, _SEEDS + 1)]
    values = [audit.run.value, *more]
    spread, threshold = statistics.stdev(values), min(0.1, max(0.02, 0.1 * abs(statistics.mean(values))))
    figures = ", ".join(f"{value:.3f}" for value in values)
    found = f"Four seeds give {figures}, with a standard deviation of {spread:.3f}"
    return Check.judged(
        name, spread, warn=threshold, passed=f"{found}.", otherwise=f"{found}; report their mean and spread."
    )


def subsample_slope(audit: Audit) -> Check:
    """Estimate on all samples and on 2, 3 and 5 disjoint chunks (2 and 3 if trained), and extrapolate to no chunks.

    Warns where the extrapolated value differs from the value by more than a tenth, 0.02 and two standard errors. A
    value that passes is consistent over sample sizes; an estimator with the same bias at all of them passes, too.

    Source:
        Holmes and Nemenman, Physical Review E 100, 2019.
    """
    name, subject, value = "steady over sample sizes", audit.subject, audit.run.value
    n = subject.x.shape[0]
    width = 1 if audit.prototype.explains == "labels" else subject.y[0].numel()
    least = max(_FEWEST_ROWS, 2 * audit.prototype.minimum_rows(subject.x[0].numel(), width))
    counts = [count for count in _chunks(audit) if min(subject.units, n) // count >= least]
    if len(counts) < 2 or not audit.prototype.needs_pairs:
        return Check.not_applicable(name, "There are too few samples to estimate on parts of them.")
    audit.announce("sample sizes", sum(counts), len(counts) / sum(counts))
    generator = torch.Generator().manual_seed(subject.seed + 1)
    means = [value]
    try:
        for count in counts:
            chunks = split_folds(n, count, groups=subject.codes, generator=generator)
            means.append(statistics.mean(audit.again(subject.rows(chunk)) for chunk in chunks))
    except InputError as cause:
        return Check.not_applicable(name, f"A part of the samples was refused: {cause}")
    gammas = torch.tensor([1, *counts], dtype=torch.float64)
    estimates = torch.tensor(means, dtype=torch.float64)
    centered = gammas - gammas.mean()
    slope = float((centered * (estimates - estimates.mean())).sum() / centered.square().sum())
    extrapolated = float(estimates.mean()) - slope * float(gammas.mean())
    figures = ", ".join(f"{mean:.3f}" for mean in means)
    found = (
        f"All samples and {', '.join(map(str, counts))} parts of them give {figures}, which extrapolates to "
        f"{extrapolated:.3f}"
    )
    return Check.judged(
        name,
        abs(extrapolated - value),
        warn=max(0.1 * abs(value), 0.02, 2 * audit.run.error),
        passed=f"{found}. The value is consistent, which does not prove it unbiased.",
        otherwise=f"{found}: the value still depends on the number of samples.",
    )


def noise_says_nothing(audit: Audit) -> Check:
    """Replace ``x`` by pure noise: fails where the estimate is more than 0.05 and three standard errors from 0."""
    name, subject = "noise says nothing", audit.subject
    if not audit.prototype.zero_when_independent or audit.prototype.reads != "numbers":
        return Check.not_applicable(name, "This quantity is not 0 for independent sides.")
    audit.announce("noise in place of x", 1)
    generator = torch.Generator().manual_seed(subject.seed + 2)
    noise = torch.randn(subject.x.shape, generator=generator, dtype=torch.float64).to(subject.x)
    estimate = audit.on(noise, subject.y, subject.codes)
    threshold = max(0.05, 3 * audit.run.error)
    found = f"With noise of the same shape in place of x the estimate is {estimate:.3f}"
    if abs(estimate) > threshold:
        return Check.failed(name, f"{found}; it should be 0.", estimate, threshold)
    return Check.passed(name, f"{found}.", estimate, threshold)


def known_answer(audit: Audit) -> Check:
    """Estimate on Gaussian data of this size with as much information. Fails from 20 % off, warns from 10 % and 0.05.

    For estimators that are trained or costly. The error on these data indicates what to expect on one's own.
    """
    name, subject = "known answer", audit.subject
    if not (audit.prototype.learned or audit.prototype.costly):
        return Check.not_applicable(name, "The positive control already covers this.")
    drawn = control_samples(audit.prototype, subject, audit.run.value, draws=1)
    if drawn is None or audit.unsuited:
        return Check.not_applicable(
            name, "The information is too small to be detected, or no Gaussian distribution compares with the data."
        )
    audit.announce("Gaussian data with a known answer", 1)
    ((x, y),), truth = drawn
    estimate = audit.on(x.to(subject.x), y.to(subject.y))
    miss = abs(estimate - truth) - 2 * audit.run.error
    found = f"On Gaussian data of the same size with {truth:.3f} nats the estimate is {estimate:.3f}"
    if miss > max(0.05, 0.2 * truth):
        sentence = f"{found}: so much information cannot be estimated from so few samples."
        return Check.failed(name, sentence, estimate, 0.2 * truth)
    if miss > max(0.05, 0.1 * truth):
        return Check.warned(name, f"{found}: expect an error of the same size.", estimate, 0.1 * truth)
    return Check.passed(name, f"{found}.", estimate, 0.1 * truth)


def symmetry(audit: Audit) -> Check:
    """Exchange the sides: warns where the value changes by more than 1e-6, or by 2 combined errors if trained."""
    name, subject, value = "symmetric", audit.subject, audit.run.value
    if audit.unsuited or audit.prototype.name == "vid":
        return Check.not_applicable(name, audit.unsuited or "VID is directional.")
    audit.announce("sides exchanged", 1)
    estimate = audit.on(subject.y, subject.x, subject.codes)
    exact = audit.prototype.symmetric and not audit.prototype.learned
    threshold = 1e-6 * max(1.0, abs(value)) if exact else max(0.02, 2 * math.sqrt(2) * audit.run.error)
    found = f"With the sides exchanged the value is {estimate:.3f}"
    return Check.judged(
        name,
        abs(estimate - value),
        warn=threshold,
        passed=f"{found}.",
        otherwise=f"{found}, not {value:.3f}; mutual information is symmetric.",
    )


def reparametrisation(audit: Audit) -> Check:
    """Change coordinates in ways that preserve the information. Warns where the range exceeds a tenth and two errors.

    Columns of ``x`` are rescaled by factors from 0.001 to 1000; where the estimator should preserve the value, they
    are also replaced by normal scores (not for correlations) and rotated (not for copulas, which depend on columns).
    """
    name, subject, value = "coordinates do not matter", audit.subject, audit.run.value
    if audit.unsuited:
        return Check.not_applicable(name, audit.unsuited)
    changed = _other_coordinates(audit)
    audit.announce("other coordinates", len(changed))
    try:
        found = {what: audit.on(x.to(subject.x), subject.y, subject.codes) for what, x in changed.items()}
    except InputError as cause:
        return Check.not_applicable(name, f"Other coordinates were refused: {cause}")
    every = [value, *found.values()]
    span = max(every) - min(every)
    figures = ", ".join(f"{what} {estimate:.3f}" for what, estimate in found.items())
    return Check.judged(
        name,
        span,
        warn=max(0.1 * abs(value), 0.02, 2 * audit.run.error),
        passed=f"The value stays within {span:.3f} in other coordinates.",
        otherwise=f"With x {figures}, not {value:.3f}: the value depends on coordinates, the information does not.",
    )


def _other_coordinates(audit: Audit) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(audit.subject.seed + 3)
    x, width = audit.subject.x.double(), audit.subject.x.shape[1]
    factors = 10 ** (6 * torch.rand(width, generator=generator, dtype=torch.float64) - 3)
    spread = x.std(dim=0)
    standard = (x - x.mean(dim=0)) / torch.where(spread > 0, spread, 1.0)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    changed = {"rescaled": standard * factors.to(x.device)}
    copula = isinstance(audit.prototype, GaussianMI) and audit.prototype.copula
    if copula or not isinstance(audit.prototype, GaussianMI):
        changed["as normal scores"] = rank_gaussianise(audit.subject.x)
    if width > 1 and not copula:
        changed["rotated"] = standard @ rotation.to(x.device)
    return changed


def additivity(audit: Audit) -> Check:
    """Concatenate two halves of the samples: two independent pairs have twice the information.

    Warns outside 1.7 to 2.3 times, beyond two standard errors of the ratio. Not applied where twice the value exceeds
    the upper limit of the estimate.

    Source:
        Song and Ermon, ICLR 2020.
    """
    name, subject, run = "adds up", audit.subject, audit.run
    if audit.unsuited or subject.codes is not None:
        return Check.not_applicable(name, audit.unsuited or "Samples in groups cannot be concatenated.")
    half = subject.x.shape[0] // 2
    limit = audit.prototype.ceiling(half // 5 if audit.prototype.learned else half)
    most = math.inf if limit is None else 0.6 * limit
    if run.value <= max(0.1, 3 * run.error) or 2 * run.value > most:
        return Check.not_applicable(name, "Twice the value is too close to 0 or to the upper limit of the estimate.")
    if half < 2 * audit.prototype.minimum_rows(2 * subject.x.shape[1], 2 * subject.y.shape[1]):
        return Check.not_applicable(name, "There are too few samples to concatenate halves of them.")
    audit.announce("two halves concatenated", 3, 0.5)
    order = torch.randperm(subject.x.shape[0], generator=torch.Generator().manual_seed(subject.seed + 4))
    halves = [order[:half].to(subject.x.device), order[half : 2 * half].to(subject.x.device)]
    try:
        alone = statistics.mean(audit.again(subject.rows(rows)) for rows in halves)
        x, y = (torch.cat([side[rows] for rows in halves], dim=1) for side in (subject.x, subject.y))
        both = audit.on(x, y)
    except InputError as cause:
        return Check.not_applicable(name, f"Half of the samples was refused: {cause}")
    ratio, slack = both / alone, 2 * 2 * math.sqrt(2) * run.error / abs(alone)
    found = f"Two independent pairs concatenated give {both:.3f}, {ratio:.2f} times one ({alone:.3f})"
    if abs(ratio - 2) > max(0.3, slack):
        return Check.warned(name, f"{found}; their information is twice as much.", ratio, 0.3)
    return Check.passed(name, f"{found}.", ratio, 0.3)


def redundancy(audit: Audit) -> Check:
    """Add functions of the columns, their absolute deviations: warns outside 0.9 to 1.1 times the value.

    Beyond two standard errors. For density models and correlations ``y`` stays as it is: a column and a function of it
    have no joint density, and are not Gaussian.

    Source:
        Song and Ermon, ICLR 2020.
    """
    name, subject, run = "nothing new adds nothing", audit.subject, audit.run
    if audit.unsuited:
        return Check.not_applicable(name, audit.unsuited)
    if run.value <= max(0.1, 3 * run.error):
        return Check.not_applicable(name, "The value is too close to 0.")
    audit.announce("redundant columns", 1)
    wide_x, wide_y = torch.cat([subject.x, _folded(subject.x)], dim=1), subject.y
    if not isinstance(audit.prototype, (GaussianMI, FlowMI, WeightedKL)):
        wide_y = torch.cat([wide_y, _folded(wide_y)], dim=1)
    try:
        estimate = audit.on(wide_x, wide_y, subject.codes)
    except InputError as cause:
        return Check.not_applicable(name, f"Redundant features were refused: {cause}")
    ratio, slack = estimate / run.value, 2 * math.sqrt(2) * run.error / run.value
    found = f"With features that are functions of the others the value is {estimate:.3f}, {ratio:.2f} times the first"
    if abs(ratio - 1) > max(0.1, slack):
        return Check.warned(name, f"{found}; they add no information.", ratio, 0.1)
    return Check.passed(name, f"{found}.", ratio, 0.1)


def _chunks(audit: Audit) -> tuple[int, ...]:
    return _CHUNKS[:2] if audit.prototype.learned else _CHUNKS


def _duration(seconds: float) -> str:
    return f"about {seconds:.0f} seconds" if seconds >= 1.5 else "about a second or less"


def _folded(values: Tensor) -> Tensor:
    """Return the absolute deviation of each entry from its column's mean."""
    folded: Tensor = (values - values.mean(dim=0)).abs()
    return folded
