"""Runs a peer in its own Python interpreter: the script answers every line of JSON with a line of JSON.

``mikit bench peers`` and ``mikit bench speed`` start it as ``python worker.py PEER MEMORY``, where MEMORY is the file
``mikit/bench/peers/memory.py``. It needs only NumPy and the peer; mikit need not be installed. The output of the peer
goes to standard error.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["PEERS"]

Estimate = Callable[[Any, Any, int], float]
Estimates = dict[str, Estimate]


def _benchmark_mi() -> Estimates:
    from bmi import estimators

    return {
        "neighbors": lambda x, y, k: estimators.KSGEnsembleFirstEstimator(neighborhoods=(k,)).estimate(x, y),
        "CCA": lambda x, y, _: estimators.CCAMutualInformationEstimator().estimate(x, y),
        "KSG": lambda x, y, _: estimators.KSGEnsembleFirstEstimator().estimate(x, y),
        "InfoNCE": lambda x, y, seed: estimators.InfoNCEEstimator(verbose=False, seed=seed).estimate(x, y),
    }


def _npeet() -> Estimates:
    from npeet import entropy_estimators

    def neighbors(x: Any, y: Any, k: int) -> float:
        found: float = entropy_estimators.mi(x, y, k=k, base=np.e)
        return found

    return {"neighbors": neighbors, "KSG": lambda x, y, _: neighbors(x, y, 3)}


def _scikit_learn() -> Estimates:
    from sklearn.feature_selection import mutual_info_regression

    return {"KSG": lambda x, y, seed: mutual_info_regression(x, y[:, 0], random_state=seed)[0]}


def _infomeasure() -> Estimates:
    import infomeasure

    return {"KSG": lambda x, y, _: infomeasure.mutual_information(x, y, approach="ksg")}


def _frites() -> Estimates:
    from frites.core import gcmi_nd_cc

    def copula(x: Any, y: Any, _: int) -> float:
        bits = gcmi_nd_cc(x.T, y.T, mvaxis=-2, traxis=-1, shape_checking=False)
        return float(np.squeeze(bits)) * math.log(2)

    return {"GCMI": copula}


def _torch_mist() -> Estimates:
    import torch
    from torch_mist import estimate_mi

    def held_out(x: Any, y: Any, seed: int, name: str) -> float:
        """Train on four fifths, of which a tenth decides when to stop, and evaluate on the last fifth."""
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        order = np.random.default_rng(seed).permutation(len(x))
        parts = [tuple(side[rows].astype(np.float32) for side in (x, y)) for rows in np.split(order, [len(x) * 4 // 5])]
        found = estimate_mi(data=parts[0], test_data=parts[1], estimator=name, verbose=False)
        return float(found[0] if isinstance(found, tuple) else found)

    return {
        "SMILE": lambda x, y, seed: held_out(x, y, seed, "smile"),
        "MINE": lambda x, y, seed: held_out(x, y, seed, "mine"),
    }


def _latentmi() -> Estimates:
    import torch
    from latentmi import lmi

    def information(x: Any, y: Any, seed: int) -> float:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        bits, _, _ = lmi.estimate(x, y)
        return float(np.nanmean(bits)) * math.log(2)

    return {"LMI": information}


PEERS: dict[str, tuple[str, Callable[[], Estimates]]] = {
    "benchmark-mi": ("benchmark-mi", _benchmark_mi),
    "NPEET": ("npeet", _npeet),
    "scikit-learn": ("scikit-learn", _scikit_learn),
    "infomeasure": ("infomeasure", _infomeasure),
    "frites": ("frites", _frites),
    "torch-mist": ("torch-mist", _torch_mist),
    "latentmi": ("latentmi", _latentmi),
}
"""By name: the distribution package, and the function that imports it.

The estimates are functions of both samples and a seed, with the documented defaults of the peer. ``neighbors`` takes
the number of neighbors instead of the seed.
"""


def _answer(request: dict[str, Any], estimates: Estimates) -> dict[str, Any]:
    x, y = (np.load(request[name], allow_pickle=False).astype(np.float64) for name in ("x", "y"))
    found: dict[str, Any] = {}
    if request["measure"] == "information":
        start = time.perf_counter()
        value = float(estimates[request["estimator"]](x, y, int(request["seed"])))
        return {"value": value if math.isfinite(value) else str(value), "seconds": time.perf_counter() - start}

    def call() -> None:
        found["value"] = float(estimates["neighbors"](x, y, int(request["k"])))

    if request["measure"] == "memory":
        found["bytes"] = _memory().peak_extra_bytes(call)
    else:
        start = time.process_time()
        call()
        found["seconds"] = time.process_time() - start
    return found


def _memory() -> Any:
    """Return the module that measures memory, loaded by its path, since mikit need not be importable here."""
    spec = importlib.util.spec_from_file_location("peak_memory", sys.argv[2])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Import the peer named on the command line, then answer until standard input ends."""
    # Peers print to standard output, and so do the libraries in C that they use. The answers get a copy of the
    # descriptor, and everything else that writes to it is redirected to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    distribution, load = PEERS[sys.argv[1]]
    try:
        estimates = load()
        answer: dict[str, Any] = {"version": importlib.metadata.version(distribution)}
    except Exception as cause:
        answer = {"missing": f"{type(cause).__name__}: {cause}"}
    while True:
        print(json.dumps(answer), file=answers, flush=True)
        line = sys.stdin.readline()
        if not line or "missing" in answer:
            return
        try:
            answer = _answer(json.loads(line), estimates)
        except Exception as cause:
            answer = {"failed": f"{type(cause).__name__}: {cause}"}


if __name__ == "__main__":
    main()
