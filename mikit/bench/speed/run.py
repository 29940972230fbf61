"""The speed benchmark: every case, size and candidate; interleaved times, memory and errors from untimed calls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict, final

import torch
from torch import Tensor

from mikit.bench.machine import describe_machine, free_bytes, peer_versions
from mikit.bench.peers.interpreters import Interpreters, require_worker
from mikit.bench.peers.peers import MissingError
from mikit.bench.speed.candidates import Elsewhere, Here, Runner, matrix_product
from mikit.bench.speed.cases import CASES, NEIGHBORS, Candidate, Case
from mikit.bench.speed.problems import Problem
from mikit.bench.speed.results import Result, SpeedReport, State
from mikit.bench.speed.timing import interleave
from mikit.core import require
from mikit.core.errors import InputError
from mikit.core.progress import Stages
from mikit.core.provenance import one_thread
from mikit.plot.drawing.names import clip_text

__all__ = ["Settings", "choose_cases", "measure_speed", "read_sizes"]

_PRODUCT = "matrix product"
_SHARE_OF_MEMORY = 0.8
_LARGEST = 1_000_000


@final
@dataclass(frozen=True)
class Settings:
    """How to run.

    Args:
        sizes: Sizes for all cases; None for the sizes of each case.
        repeats: Number of rounds.
        budget: Seconds of wall time per case and size after which no new round starts, once three are done.
        quick: Small sizes, without candidates that are compiled first.
        pythons: Interpreters of peers by name.
    """

    sizes: tuple[int, ...] | None = None
    repeats: int = 5
    budget: float = 60.0
    quick: bool = False
    device: str = "cpu"
    seed: int = 0
    pythons: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require.at_least(self.repeats, "repeats")
        for size in self.sizes or ():
            if not 16 <= size <= _LARGEST:
                raise InputError(f"{size} is not a valid size; sizes are from 16 to {_LARGEST:,}.")
        require.one_of(self.device, "device", ("cpu", "cuda"))
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("torch finds no CUDA device here. Leave out --device, or use --device cpu.")

    def sizes_of(self, case: Case) -> tuple[int, ...]:
        """Return the sizes of a case in increasing order."""
        return tuple(sorted(set(self.sizes or (case.quick if self.quick else case.sizes))))


def choose_cases(names: Sequence[str], cases: Sequence[Case] = CASES) -> list[Case]:
    """Return the cases of these names, in the order of the list; without names, all but those run on request.

    Example:
        >>> [case.variant for case in choose_cases(["ksg"])]
        ['d=1, 1', 'd=25, 25', 'd=512, 256']
    """
    known = dict.fromkeys(case.name for case in cases)
    for name in names:
        if name not in known:
            raise InputError(f'There is no case "{name}"; the cases are {", ".join(known)}.')
    return [case for case in cases if (case.name in names if names else not case.on_request)]


def read_sizes(text: str) -> tuple[int, ...]:
    """Parse sizes separated by commas.

    Example:
        >>> read_sizes("1024,2048")
        (1024, 2048)
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InputError(f'--sizes "{text}" must be whole numbers separated by commas, such as 1024,2048,4096.')
    return tuple(int(part) for part in parts)


def measure_speed(cases: Sequence[Case], settings: Settings, progress: Stages | None = None) -> SpeedReport:
    """Measure time, memory and errors of every candidate of every case.

    Each candidate and size needs three untimed calls (one of them in float64, for the reference) and ``repeats`` timed
    ones, unless the budget ends earlier. Times at small sizes are mostly the overhead of a call: use the exponents of
    the larger ones.
    """
    if settings.pythons:
        require_worker()
    results: list[Result] = []
    notes: list[str] = []
    with one_thread() if settings.device == "cpu" else nullcontext(), Interpreters(settings.pythons) as peers:
        for case in cases:
            sweep = _Sweep(case, settings, peers, progress)
            for size in settings.sizes_of(case):
                results += sweep.measure(size)
            notes += sweep.notes
        versions = peer_versions() | peers.versions
    return SpeedReport(
        results=tuple(results),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine(settings.device),
        versions=versions,
        device=settings.device,
        quick=settings.quick,
        repeats=settings.repeats,
        seed=settings.seed,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Status:
    state: State = "measured"
    reason: str = ""
    install: str = ""


@dataclass(frozen=True)
class _Errors:
    """Relative errors of one candidate, at the size at which they were measured."""

    size: int
    value: float
    reference: float
    gradient: float | None


class _LeftOutError(Exception):
    """A candidate is left out on purpose."""


class _NoNumberError(Exception):
    """A candidate returned NaN or infinity."""


class _Sweep:
    """One case over its sizes."""

    def __init__(self, case: Case, settings: Settings, peers: Interpreters, progress: Stages | None) -> None:
        self._case, self._settings, self._peers, self._progress = case, settings, peers, progress
        self._errors: dict[tuple[str, int], _Errors] = {}
        self._references: dict[tuple[str, int], tuple[float, Tensor | None] | None] = {}
        self.notes: list[str] = []

    def measure(self, size: int) -> list[Result]:
        """Measure every candidate at one size."""
        case, settings = self._case, self._settings
        stage = f"{case.name}, {case.variant}, {case.sweeps} = {size:,}"
        self._begin(stage, len(case.candidates) * (1 + settings.repeats))
        problem = case.draw(size, settings.seed).to(device=settings.device)
        runners, peaks, statuses = self._prepared(problem, size)
        if size > case.largest_reference:
            self._judge_smaller([candidate for candidate in case.candidates if candidate.name in runners])
        timers = {name: runner.seconds for name, runner in runners.items()}
        if case.width is not None:
            # The matrix product takes its turns among the candidates, so that a slow phase of the machine affects both
            # sides of the roofline.
            timers[_PRODUCT], operations = matrix_product(problem, settings.device)
        timings, failures = interleave(timers, settings.repeats, budget=settings.budget, tick=self._advance)
        statuses.update({name: _status(cause) for name, cause in failures.items()})
        roofline = None
        if case.width is not None:
            roofline = 6 * size**2 * case.width * timings[_PRODUCT].median / operations
        return [
            Result(
                case=case.name,
                variant=case.variant,
                sweeps=case.sweeps,
                size=size,
                candidate=candidate.name,
                compared_on=candidate.quantity,
                covers=case.measured,
                **vars(statuses[candidate.name]),
                input_bytes=problem.input_bytes,
                samples=timings[candidate.name].samples if candidate.name in timings else (),
                peak_bytes=peaks.get(candidate.name) if candidate.name in timings else None,
                roofline_seconds=roofline if candidate is case.candidates[0] else None,
                **self._errors_of(candidate, size, statuses[candidate.name]),
            )
            for candidate in case.candidates
        ]

    def _prepared(
        self, problem: Problem, size: int
    ) -> tuple[dict[str, Runner], dict[str, int | None], dict[str, _Status]]:
        """Return runner, peak memory and status of every candidate, after its untimed calls."""
        runners: dict[str, Runner] = {}
        peaks: dict[str, int | None] = {}
        statuses = {candidate.name: _Status() for candidate in self._case.candidates}
        for candidate in self._case.candidates:
            try:
                self._require_possible(candidate, size)
                runner = self._runner(candidate, problem)
                found = _numbers(runner.evaluate())  # untimed: the first call compiles and fills caches
                if size <= self._case.largest_reference:
                    self._judge(candidate, size, found)
                peaks[candidate.name] = runner.peak()
                runners[candidate.name] = runner
            except Exception as cause:
                statuses[candidate.name] = _status(cause)
                self._advance(self._settings.repeats)
            self._advance()
        return runners, peaks, statuses

    def _errors_of(self, candidate: Candidate, size: int, status: _Status) -> _ErrorFields:
        found = self._errors.get((candidate.name, min(size, self._case.largest_reference)))
        if found is None or status.state != "measured":
            return {"value": None, "reference": None, "value_error": None, "gradient_error": None, "error_size": None}
        return {
            "value": found.value,
            "reference": found.reference,
            "value_error": _ratio(abs(found.value - found.reference), abs(found.reference)),
            "gradient_error": found.gradient,
            "error_size": found.size,
        }

    def _require_possible(self, candidate: Candidate, size: int) -> None:
        if self._settings.quick and not candidate.quick:
            raise _LeftOutError("not part of a quick run")
        if candidate.sizes is not None and size not in candidate.sizes:
            raise _LeftOutError(f"run at {', '.join(map(str, candidate.sizes))} only")
        if self._settings.device == "cuda" and candidate.cpu_only:
            raise _LeftOutError("runs on the CPU only; measure it with --device cpu")
        needed, free = candidate.matrices * size**2 * 4, free_bytes(self._settings.device)
        if free is not None and needed > _SHARE_OF_MEMORY * free:
            raise _LeftOutError(f"needs about {needed / 2**30:.1f} GiB; {free / 2**30:.1f} GiB are free")

    def _runner(self, candidate: Candidate, problem: Problem) -> Runner:
        if candidate.build is None:
            return Elsewhere(candidate.name, problem, self._peers, NEIGHBORS)
        return Here(candidate.build(problem), problem, self._settings.device)

    def _judge_smaller(self, candidates: Sequence[Candidate]) -> None:
        """Measure the errors at the largest size of the reference, unless they are already known."""
        size = self._case.largest_reference
        wanted = [candidate for candidate in candidates if (candidate.name, size) not in self._errors]
        problem = self._case.draw(size, self._settings.seed).to(device=self._settings.device)
        for candidate in wanted:
            try:
                self._judge(candidate, size, _numbers(self._runner(candidate, problem).evaluate()))
            except Exception as cause:  # its time is measured all the same; the row has no errors
                self.notes.append(
                    f"{self._case.name}, {self._case.variant}: no errors of {candidate.name}, which failed at "
                    f"{self._case.sweeps} = {size:,} ({_sentence(cause)})."
                )

    def _judge(self, candidate: Candidate, size: int, found: tuple[float, Tensor | None]) -> None:
        truth = self._reference(candidate.quantity, size)
        if truth is None:
            return
        (value, gradient), (true_value, true_gradient) = found, truth
        gradient_error = None
        if gradient is not None and true_gradient is not None:
            gradient_error = _ratio(float((gradient - true_gradient).norm()), float(true_gradient.norm()))
        self._errors[candidate.name, size] = _Errors(size, value, true_value, gradient_error)

    def _reference(self, quantity: str, size: int) -> tuple[float, Tensor | None] | None:
        key = (quantity, size)
        if key not in self._references:
            problem = self._case.draw(size, self._settings.seed).to(dtype=torch.float64)
            try:
                self._references[key] = _numbers(
                    Here(self._case.references[quantity](problem), problem, "cpu").evaluate()
                )
            except Exception as cause:
                self._references[key] = None
                self.notes.append(
                    f"{self._case.name}, {self._case.variant}: no reference at {self._case.sweeps} = {size:,} "
                    f"({_sentence(cause)}), so no errors."
                )
        return self._references[key]

    def _begin(self, stage: str, total: float) -> None:
        if self._progress is not None:
            self._progress.begin(stage, total)

    def _advance(self, by: float = 1.0) -> None:
        if self._progress is not None:
            self._progress.advance(by)


class _ErrorFields(TypedDict):
    value: float | None
    reference: float | None
    value_error: float | None
    gradient_error: float | None
    error_size: int | None


def _numbers(found: tuple[float, Tensor | None]) -> tuple[float, Tensor | None]:
    """Return the value and gradient if they are finite; raise otherwise."""
    value, gradient = found
    if not math.isfinite(value):
        raise _NoNumberError(f"returned {value}")
    if gradient is not None and not bool(gradient.isfinite().all()):
        raise _NoNumberError(f"returned {'nan' if bool(gradient.isnan().any()) else 'inf'} in the gradient")
    return found


def _ratio(error: float, size: float) -> float | None:
    """Return the relative error; None if the size is 0."""
    relative = error / size if size else math.inf
    return relative if math.isfinite(relative) else None


def _status(cause: Exception) -> _Status:
    if isinstance(cause, MissingError):
        return _Status("missing", cause.reason, cause.install)
    if isinstance(cause, _LeftOutError):
        return _Status("left out", str(cause))
    return _Status("failed", _sentence(cause))


def _sentence(cause: Exception) -> str:
    if isinstance(cause, _NoNumberError):
        return str(cause)
    first = (str(cause).strip().splitlines() or [""])[0]
    return clip_text(f"{type(cause).__name__}: {first}", 160)
