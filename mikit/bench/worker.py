"""A peer in an interpreter of its own: run as a script there, it answers one line of JSON for each line of JSON.

It needs nothing but NumPy and the peer. What the peer prints goes to standard error.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["PEERS"]

Estimate = Callable[[Any, Any, int], float]


def _benchmark_mi() -> Estimate:
    from bmi.estimators import KSGEnsembleFirstEstimator

    return lambda x, y, k: float(KSGEnsembleFirstEstimator(neighborhoods=(k,)).estimate(x, y))


def _npeet() -> Estimate:
    from npeet import entropy_estimators

    return lambda x, y, k: float(entropy_estimators.mi(x, y, k=k, base=np.e))


PEERS: dict[str, tuple[str, Callable[[], Estimate]]] = {
    "benchmark-mi": ("benchmark-mi", _benchmark_mi),
    "NPEET": ("npeet", _npeet),
}
"""By name: the distribution, and what imports it."""


def _answer(request: dict[str, Any], estimate: Estimate) -> dict[str, Any]:
    x, y = (np.load(request[name], allow_pickle=False).astype(np.float64) for name in ("x", "y"))
    found: dict[str, Any] = {}

    def call() -> None:
        found["value"] = estimate(x, y, int(request["k"]))

    if request["measure"] == "memory":
        found["bytes"] = _memory().peak_extra_bytes(call)
    else:
        start = time.process_time()
        call()
        found["seconds"] = time.process_time() - start
    return found


def _memory() -> Any:
    """The module beside this one, by its path: mikit itself need not be importable here."""
    spec = importlib.util.spec_from_file_location("peak_memory", Path(__file__).with_name("memory.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Import the peer named on the command line, then answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    distribution, load = PEERS[sys.argv[1]]
    try:
        estimate = load()
        said: dict[str, Any] = {"version": importlib.metadata.version(distribution)}
    except Exception as cause:
        said = {"missing": f"{type(cause).__name__}: {cause}"}
    while True:
        print(json.dumps(said), file=answers, flush=True)
        line = sys.stdin.readline()
        if not line or "missing" in said:
            return
        try:
            said = _answer(json.loads(line), estimate)
        except Exception as cause:
            said = {"failed": f"{type(cause).__name__}: {cause}"}


if __name__ == "__main__":
    main()
