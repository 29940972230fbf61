"""Cost of exact transport compared with the solver alone: processor time, medians of interleaved runs, one thread.

The solver is SciPy's for samples of one size and POT's for two sizes. It is timed alone, with given costs, and with the
usual computation of costs from float32 tensors, which any call needs; then mikit's plan, value, and value with
gradient. Normal samples, one seed for each repetition.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import ot
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

from mikit.functional import optimal_plan, wasserstein2


def loss_and_backward(x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of the squared distance in ``x``."""
    rows = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(wasserstein2(rows, y), rows)
    return gradient


def tasks(x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name; the costs of the bare solver are formed beforehand."""
    a, b = x.double().numpy(), y.double().numpy()
    costs = cdist(a, b, "sqeuclidean")
    if len(a) == len(b):
        solvers: dict[str, Callable[[], object]] = {
            "SciPy, costs given": lambda: linear_sum_assignment(costs),
            "costs by POT, plan by SciPy": lambda: linear_sum_assignment(
                ot.dist(x.double().numpy(), y.double().numpy())
            ),
        }
    else:
        ones = np.full(len(a), 1 / len(a)), np.full(len(b), 1 / len(b))
        solvers = {
            "POT, costs given": lambda: ot.emd(*ones, costs),
            "costs and plan by POT": lambda: ot.emd(*ones, ot.dist(x.double().numpy(), y.double().numpy())),
        }
    return {
        **solvers,
        "optimal_plan": lambda: optimal_plan(x, y),
        "wasserstein2": lambda: wasserstein2(x, y),
        "wasserstein2 and gradient": lambda: loss_and_backward(x, y),
    }


def main() -> None:
    """Time, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--other-rows", type=int, help="Rows of the second sample; as many if left out.")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {}
    for seed in range(given.repetitions + 3):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(given.rows, given.width, generator=generator)
        y = torch.randn(given.other_rows or given.rows, given.width, generator=generator)
        for name, task in tasks(x, y).items():
            start = time.process_time()
            task()
            spent = time.process_time() - start
            if seed >= 3:  # the first runs load libraries
                seconds.setdefault(name, []).append(spent)
    bare, formed = (statistics.median(times) for times in list(seconds.values())[:2])
    print(f"{given.rows} and {given.other_rows or given.rows} rows, {given.width} columns, float32")
    print("| | median, ms | quartiles, ms | over the bare solver | over costs and solver |")
    print("|---|---|---|---|---|")
    for name, times in seconds.items():
        low, middle, high = statistics.quantiles(times, n=4)
        print(
            f"| {name} | {1e3 * middle:.3f} | {1e3 * low:.3f} to {1e3 * high:.3f} | {middle / bare - 1:+.0%} "
            f"| {middle / formed - 1:+.0%} |"
        )


if __name__ == "__main__":
    main()
