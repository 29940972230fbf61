"""Candidates with their samples: in this process, or in another interpreter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, final

import torch
from torch import Tensor

from mikit.bench.peers.interpreters import Interpreters
from mikit.bench.peers.memory import peak_extra_bytes
from mikit.bench.peers.peers import Scalar
from mikit.bench.speed.problems import Problem
from mikit.bench.speed.timing import cpu_clock, cuda_clock

__all__ = ["Elsewhere", "Here", "Runner", "matrix_product"]

LARGEST_PRODUCT = 4096
"""Rows of the matrix product that measures how fast this machine multiplies."""


class Runner(Protocol):
    """A candidate with its samples."""

    def evaluate(self) -> tuple[float, Tensor | None]:
        """Return the value and the concatenated gradients."""

    def seconds(self) -> float:
        """Return the seconds of one call."""

    def peak(self) -> int | None:
        """Return the extra memory of one call in bytes."""


@final
class Here:
    """A candidate in this process."""

    def __init__(self, function: Scalar, problem: Problem, device: str) -> None:
        self._function, self._problem, self._device = function, problem, device
        self.seconds: Callable[[], float] = (cuda_clock if device == "cuda" else cpu_clock)(self._call)

    def _call(self) -> Tensor:
        for rows in self._problem.inputs:
            rows.grad = None
        value = self._function(*self._problem.inputs)
        if self._problem.gradients:
            value.backward()  # type: ignore[no-untyped-call]
        return value

    def evaluate(self) -> tuple[float, Tensor | None]:
        """Return the value and the concatenated gradients."""
        value = float(self._call().detach())
        gradients = [rows.grad for rows in self._problem.inputs[: self._problem.gradients]]
        flat = [rows.double().cpu().flatten() for rows in gradients if rows is not None]
        self._forget()
        return value, torch.cat(flat) if flat else None

    def peak(self) -> int | None:
        """Return the extra memory of one call in bytes."""
        self._forget()
        if self._device == "cpu":
            return peak_extra_bytes(self._call)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        self._call()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - start)

    def _forget(self) -> None:
        for rows in self._problem.inputs:
            rows.grad = None


@final
class Elsewhere:
    """A candidate in another interpreter, without gradients; ``neighbors`` is the ``k`` of its estimator."""

    def __init__(self, name: str, problem: Problem, peers: Interpreters, neighbors: int) -> None:
        self._name, self._peers = name, peers
        peers.worker(name)
        x, y = peers.files(*problem.inputs)
        self._request = {"x": x, "y": y, "k": neighbors}

    def _ask(self, measure: str, key: str) -> float | None:
        answer = self._peers.ask(self._name, {**self._request, "measure": measure})
        found = answer.get(key, "nothing")
        if found is not None and (isinstance(found, bool) or not isinstance(found, int | float)):
            raise RuntimeError(f"the process of {self._name} answered {found!r:.40} instead of a number")
        return found

    def evaluate(self) -> tuple[float, Tensor | None]:
        """Return the value and the concatenated gradients."""
        value = self._ask("time", "value")
        return math.nan if value is None else float(value), None

    def seconds(self) -> float:
        """Return the seconds of one call."""
        taken = self._ask("time", "seconds")
        if taken is None or not math.isfinite(taken) or taken < 0:
            raise RuntimeError(f"the process of {self._name} answered {taken} instead of seconds")
        return taken

    def peak(self) -> int | None:
        """Return the extra memory of one call in bytes."""
        found = self._ask("memory", "bytes")
        return None if found is None else int(found)


def matrix_product(problem: Problem, device: str) -> tuple[Callable[[], float], int]:
    """Return a timer of the product of the problem's two samples, at most 4096 rows each, and its operations."""
    x, y = (rows.detach()[:LARGEST_PRODUCT] for rows in problem.inputs[:2])
    out = x.new_empty(x.shape[0], y.shape[0])
    clock = cuda_clock if device == "cuda" else cpu_clock
    return clock(lambda: torch.mm(x, y.T, out=out)), 2 * x.shape[0] * y.shape[0] * x.shape[1]
