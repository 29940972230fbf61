"""The checks that repeat the estimate: :func:`mikit.measure` runs them with ``audit=True``, and says the cost first.

Each asks whether the number keeps a law that mutual information obeys, or stands still where it should. What passes is
consistent; that does not prove it unbiased. Thresholds without a source are mikit's own.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.measurement import Check
from mikit.core.rows import recoded, split_folds
from mikit.estimators.base import Estimator
from mikit.estimators.gaussian.mutual_information import GaussianMI
from mikit.estimators.neighbors.ksg import WeightedKL
from mikit.estimators.normalizing_flows.flow_mi import FlowMI
from mikit.functional.gaussian.canonical import rank_gaussianise
from mikit.measuring.checks.controls import control_samples

__all__ = [
    "Subject",
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

Again = Callable[[Tensor, Tensor, Tensor | None, int], float]
"""Measures rows ``x`` and ``y`` with groups and a seed as the first time, and returns the value alone."""


@final
@dataclass(frozen=True)
class Subject:
    """A measurement that is audited, and how to repeat it.

    Attributes:
        prototype: The instrument.
        x: Rows of the student.
        y: Rows of the teacher, or labels.
        groups: Group codes, or None.
        value: What was read.
        standard_error: Its standard error; None if unknown.
        seed: The seed of the first estimate.
        seconds: How long the first estimate took.
        again: Repeats the estimate on other rows.
        tell: Called with a sentence before each check.
    """

    prototype: Estimator
    x: Tensor
    y: Tensor
    groups: Tensor | None
    value: float
    standard_error: float | None
    seed: int
    seconds: float
    again: Again
    tell: Callable[[str], None]

    @property
    def error(self) -> float:
        """The standard error, 0 where it is unknown."""
        return self.standard_error or 0.0

    @property
    def unsuited(self) -> str:
        """Why laws of mutual information between vectors do not apply; empty where they do."""
        p = self.prototype
        if p.unit != "nats" or p.kind not in ("estimate", "lower bound", "upper bound"):
            return f"A {p.kind} in {p.unit} need not obey this law."
        if p.explains != "vectors" or p.reads != "numbers" or self.x.ndim != 2 or self.y.ndim != 2:
            return "This is asked of two sides of vectors only."
        return ""

    def cost(self, estimates: int, share: float = 1.0) -> float:
        """Return the seconds that so many estimates on this share of the rows take; training takes as long on fewer."""
        return estimates * (1.0 if self.prototype.learned else share) * self.seconds

    def announce(self, what: str, estimates: int, share: float = 1.0) -> None:
        """Say what a check will cost."""
        part = "" if share == 1 else f" on {share:.0%} of the rows"
        more = f"{estimates} more estimate{'s' if estimates > 1 else ''}{part}"
        self.tell(f"Audit, {what}: {more}, {_told(self.cost(estimates, share))}")


def audit_checks(subject: Subject) -> tuple[Check, ...]:
    """Run every check of the audit, after saying what all of them will cost at most."""
    chunks = _chunks(subject)
    parts = [(sum(chunks), len(chunks) / sum(chunks)), (1, 1.0)]
    parts += [(_SEEDS + 1, 1.0)] if subject.prototype.learned else []
    parts += [] if subject.unsuited else [(1, 1.0), (3, 1.0), (3, 0.5), (1, 1.0)]
    estimates, seconds = sum(count for count, _ in parts), sum(subject.cost(*part) for part in parts)
    subject.tell(f"The audit repeats the estimate up to {estimates} times, on parts of the rows too: {_told(seconds)}")
    return (
        seed_spread(subject),
        subsample_slope(subject),
        noise_says_nothing(subject),
        known_answer(subject),
        symmetry(subject),
        reparametrisation(subject),
        additivity(subject),
        redundancy(subject),
    )


def seed_spread(subject: Subject) -> Check:
    """Measure with three more seeds, of the split and of the training. Warns above 0.1, and above 10 % and 0.02."""
    name = "seeds agree"
    if not subject.prototype.learned:
        return Check(name, "not applicable", None, None, "Nothing is trained or split, so no seed matters.")
    subject.announce("seeds", _SEEDS)
    values = [subject.value]
    values += [
        subject.again(subject.x, subject.y, subject.groups, subject.seed + 15485863 * k) for k in range(1, _SEEDS + 1)
    ]
    spread, threshold = statistics.stdev(values), min(0.1, max(0.02, 0.1 * abs(statistics.mean(values))))
    said = f"Four seeds give {', '.join(f'{v:.3f}' for v in values)}, a standard deviation of {spread:.3f}"
    outcome = "warn" if spread > threshold else "pass"
    return Check(name, outcome, spread, threshold, f"{said}{'; report their mean and spread' * (outcome == 'warn')}.")


def subsample_slope(subject: Subject) -> Check:
    """Measure all rows and 2, 3 and 5 disjoint chunks of them, and extend the line over the number of chunks to none.

    For instruments that are trained 2 and 3 chunks have to do.

    Warns where the extension differs from the value by more than a tenth, 0.02 and two standard errors. A value that
    passes is consistent over sizes; an instrument that is biased alike at all of them passes too.

    Source:
        Holmes and Nemenman, Physical Review E 100, 2019.
    """
    name = "steady over sample sizes"
    units = subject.x.shape[0] if subject.groups is None else int(subject.groups.max()) + 1
    narrow = 1 if subject.prototype.explains == "labels" else subject.y[0].numel()
    least = max(_FEWEST_ROWS, 2 * subject.prototype.minimum_rows(subject.x[0].numel(), narrow))
    counts = [count for count in _chunks(subject) if min(units, subject.x.shape[0]) // count >= least]
    if len(counts) < 2 or not subject.prototype.needs_pairs:
        return Check(name, "not applicable", None, None, "There are too few rows to measure parts of them.")
    subject.announce("sample sizes", sum(counts), len(counts) / sum(counts))
    generator = torch.Generator().manual_seed(subject.seed + 1)
    means = [subject.value]
    try:
        for count in counts:
            chunks = split_folds(subject.x.shape[0], count, groups=subject.groups, generator=generator)
            means.append(statistics.mean(_on_rows(subject, chunk) for chunk in chunks))
    except InputError as cause:
        return Check(name, "not applicable", None, None, f"A part of the rows was refused: {cause}")
    gammas = torch.tensor([1, *counts], dtype=torch.float64)
    read = torch.tensor(means, dtype=torch.float64)
    slope = float(((gammas - gammas.mean()) * (read - read.mean())).sum() / (gammas - gammas.mean()).square().sum())
    extended = float(read.mean()) - slope * float(gammas.mean())
    shift, threshold = abs(extended - subject.value), max(0.1 * abs(subject.value), 0.02, 2 * subject.error)
    figures = ", ".join(f"{v:.3f}" for v in means)
    said = (
        f"All rows and {', '.join(map(str, counts))} parts of them give {figures}; the line through them leads to "
        f"{extended:.3f}"
    )
    if shift > threshold:
        return Check(name, "warn", shift, threshold, f"{said}: the value still moves with the number of rows.")
    return Check(name, "pass", shift, threshold, f"{said}. This is consistency, not freedom from bias.")


def noise_says_nothing(subject: Subject) -> Check:
    """Measure pure noise in place of ``x``: fails where it reads more than 0.05 and three standard errors from 0."""
    name = "noise says nothing"
    prototype = subject.prototype
    if not prototype.zero_when_independent or prototype.reads != "numbers":
        return Check(name, "not applicable", None, None, "This number is not 0 for independent sides.")
    subject.announce("noise in place of x", 1)
    generator = torch.Generator().manual_seed(subject.seed + 2)
    noise = torch.randn(subject.x.shape, generator=generator, dtype=torch.float64).to(subject.x)
    reading = subject.again(noise, subject.y, subject.groups, subject.seed)
    threshold = max(0.05, 3 * subject.error)
    said = f"With noise of the same shape in place of x the instrument reads {reading:.3f}"
    outcome = "fail" if abs(reading) > threshold else "pass"
    return Check(name, outcome, reading, threshold, said + ("; it should read 0." if outcome == "fail" else "."))


def known_answer(subject: Subject) -> Check:
    """Measure Gaussian data of this size that hold as much; for instruments that are trained. Fails from 20 % off.

    Warns from a tenth and 0.05 nats. The size of the error on those data says what to expect on one's own.
    """
    name = "known answer"
    if not (subject.prototype.learned or subject.prototype.costly):
        return Check(name, "not applicable", None, None, "The positive control asks this already.")
    drawn = control_samples(subject.prototype, subject.x, subject.y, subject.value, subject.seed, draws=1)
    if drawn is None or subject.unsuited:
        return Check(
            name, "not applicable", None, None, "There is too little to see, or no Gaussian law to compare with."
        )
    subject.announce("Gaussian data with a known answer", 1)
    ((first, second),), truth = drawn
    reading = subject.again(first.to(subject.x), second.to(subject.y), None, subject.seed)
    miss = abs(reading - truth) - 2 * subject.error
    said = f"On Gaussian data of the same size that hold {truth:.3f} nats the instrument reads {reading:.3f}"
    if miss > max(0.05, 0.2 * truth):
        return Check(name, "fail", reading, 0.2 * truth, f"{said}: it cannot see this much with so few rows.")
    if miss > max(0.05, 0.1 * truth):
        return Check(name, "warn", reading, 0.1 * truth, f"{said}: expect the value to be off by as much.")
    return Check(name, "pass", reading, 0.1 * truth, f"{said}.")


def symmetry(subject: Subject) -> Check:
    """Exchange the sides: warns where the value moves by more than 1e-6; of trained instruments, 2 combined errors."""
    name = "symmetric"
    if subject.unsuited or subject.prototype.name == "vid":
        return Check(name, "not applicable", None, None, subject.unsuited or "VID is directional.")
    subject.announce("sides exchanged", 1)
    reading = subject.again(subject.y, subject.x, subject.groups, subject.seed)
    gap = abs(reading - subject.value)
    exact = subject.prototype.symmetric and not subject.prototype.learned
    threshold = 1e-6 * max(1.0, abs(subject.value)) if exact else max(0.02, 2 * math.sqrt(2) * subject.error)
    outcome = "warn" if gap > threshold else "pass"
    said = f"With the sides exchanged the value is {reading:.3f}, not {subject.value:.3f}"
    if outcome == "pass":
        said = f"With the sides exchanged the value is {reading:.3f}"
    return Check(name, outcome, gap, threshold, said + ("; information is symmetric." if outcome == "warn" else "."))


def reparametrisation(subject: Subject) -> Check:
    """Change coordinates in ways that keep the information. Warns where the range exceeds a tenth and two errors.

    Columns of ``x`` are rescaled by factors from 0.001 to 1000; then, where the instrument's formula is to keep the
    value, replaced by their normal scores (not for correlations), and turned (not for copulas, which are of columns).
    """
    name = "coordinates do not matter"
    if subject.unsuited:
        return Check(name, "not applicable", None, None, subject.unsuited)
    generator = torch.Generator().manual_seed(subject.seed + 3)
    x, width = subject.x.double(), subject.x.shape[1]
    factors = 10 ** (6 * torch.rand(width, generator=generator, dtype=torch.float64) - 3)
    spread = x.std(dim=0)
    standard = (x - x.mean(dim=0)) / torch.where(spread > 0, spread, 1.0)
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    changed = {"rescaled": standard * factors.to(x.device)}
    linear = isinstance(subject.prototype, GaussianMI)
    if not (linear and not subject.prototype.copula):
        changed["as normal scores"] = rank_gaussianise(subject.x)
    if width > 1 and not (linear and subject.prototype.copula):
        changed["turned"] = standard @ turn.to(x.device)
    subject.announce("other coordinates", len(changed))
    try:
        read = {
            what: subject.again(rows.to(subject.x), subject.y, subject.groups, subject.seed)
            for what, rows in changed.items()
        }
    except InputError as cause:
        return Check(name, "not applicable", None, None, f"Other coordinates were refused: {cause}")
    every = [subject.value, *read.values()]
    span, threshold = max(every) - min(every), max(0.1 * abs(subject.value), 0.02, 2 * subject.error)
    said = "With x " + ", ".join(f"{what} {value:.3f}" for what, value in read.items()) + f", not {subject.value:.3f}"
    if span > threshold:
        return Check(
            name, "warn", span, threshold, f"{said}: the value hangs on coordinates, the information does not."
        )
    return Check(name, "pass", span, threshold, f"The value stays within {span:.3f} in other coordinates.")


def additivity(subject: Subject) -> Check:
    """Set one half of the rows beside the other: two independent pairs hold twice as much. Warns outside 1.7 to 2.3.

    Beyond two standard errors of the ratio. Not where twice the value exceeds the ceiling.

    Source:
        Song and Ermon, ICLR 2020.
    """
    name = "adds up"
    if subject.unsuited or subject.groups is not None:
        return Check(
            name, "not applicable", None, None, subject.unsuited or "Rows in groups cannot be set side by side."
        )
    half = subject.x.shape[0] // 2
    limit = subject.prototype.ceiling(half // 5 if subject.prototype.learned else half)
    most = math.inf if limit is None else 0.6 * limit
    if subject.value <= max(0.1, 3 * subject.error) or 2 * subject.value > most:
        return Check(name, "not applicable", None, None, "Twice the value is too near 0 or to the ceiling to tell.")
    if half < 2 * subject.prototype.minimum_rows(2 * subject.x.shape[1], 2 * subject.y.shape[1]):
        return Check(name, "not applicable", None, None, "There are too few rows to set halves side by side.")
    subject.announce("two halves side by side", 3, 0.5)
    order = torch.randperm(subject.x.shape[0], generator=torch.Generator().manual_seed(subject.seed + 4))
    halves = [order[:half].to(subject.x.device), order[half : 2 * half].to(subject.x.device)]
    try:
        alone = statistics.mean(_on_rows(subject, rows) for rows in halves)
        x, y = (torch.cat([side[rows] for rows in halves], dim=1) for side in (subject.x, subject.y))
        both = subject.again(x, y, None, subject.seed)
    except InputError as cause:
        return Check(name, "not applicable", None, None, f"Half of the rows was refused: {cause}")
    ratio, slack = both / alone, 2 * 2 * math.sqrt(2) * subject.error / abs(alone)
    said = f"Two independent pairs side by side hold {both:.3f}, {ratio:.2f} times one ({alone:.3f})"
    if abs(ratio - 2) > max(0.3, slack):
        return Check(name, "warn", ratio, 0.3, f"{said}; they hold twice as much.")
    return Check(name, "pass", ratio, 0.3, f"{said}.")


def redundancy(subject: Subject) -> Check:
    """Add columns that say nothing new, absolute values of standardised ones: warns outside 0.9 to 1.1 of the value.

    Beyond two standard errors. For density models and correlations ``y`` stays as it is: bent columns have no density,
    and are not Gaussian.

    Source:
        Song and Ermon, ICLR 2020.
    """
    name = "nothing new adds nothing"
    if subject.unsuited:
        return Check(name, "not applicable", None, None, subject.unsuited)
    if subject.value <= max(0.1, 3 * subject.error):
        return Check(name, "not applicable", None, None, "The value is too near 0 to tell.")
    subject.announce("redundant columns", 1)
    wide_x, wide_y = torch.cat([subject.x, _folded(subject.x)], dim=1), subject.y
    if not isinstance(subject.prototype, (GaussianMI, FlowMI, WeightedKL)):
        wide_y = torch.cat([wide_y, _folded(wide_y)], dim=1)
    try:
        reading = subject.again(wide_x, wide_y, subject.groups, subject.seed)
    except InputError as cause:
        return Check(name, "not applicable", None, None, f"Redundant columns were refused: {cause}")
    ratio, slack = reading / subject.value, 2 * math.sqrt(2) * subject.error / subject.value
    said = f"With columns that are functions of the others the value is {reading:.3f}, {ratio:.2f} times the first"
    if abs(ratio - 1) > max(0.1, slack):
        return Check(name, "warn", ratio, 0.1, f"{said}; they hold nothing new.")
    return Check(name, "pass", ratio, 0.1, f"{said}.")


def _chunks(subject: Subject) -> tuple[int, ...]:
    return _CHUNKS[:2] if subject.prototype.learned else _CHUNKS


def _told(seconds: float) -> str:
    return f"about {seconds:.0f} seconds" if seconds >= 1.5 else "about a second or less"


def _on_rows(subject: Subject, rows: Tensor) -> float:
    rows = rows.to(subject.x.device)
    groups = None if subject.groups is None else recoded(subject.groups[rows])
    return subject.again(subject.x[rows], subject.y[rows], groups, subject.seed)


def _folded(values: Tensor) -> Tensor:
    """Return the distance of each entry from its column's mean."""
    folded: Tensor = (values - values.mean(dim=0)).abs()
    return folded
