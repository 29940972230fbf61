"""Peers whose requirements exclude ours, each in a process of its own that stays alive between calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, final

import numpy as np
from torch import Tensor

from mikit.bench.peers import MissingError
from mikit.bench.worker import PEERS
from mikit.errors import InputError

__all__ = ["Interpreters", "read_interpreters"]

_SECONDS_TO_START = 180.0
_SECONDS_TO_ANSWER = 1800.0
_ONE_THREAD = {
    **dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
        "1",
    ),
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}


def read_interpreters(given: Sequence[str]) -> dict[str, Path]:
    """Read ``NAME=PYTHON`` pairs.

    Raises:
        InputError: If one is no such pair, names an unknown peer, or no file that can be run.

    Example:
        >>> list(read_interpreters([f"NPEET={sys.executable}"]))
        ['NPEET']
    """
    found = {}
    for pair in given:
        name, equals, python = pair.partition("=")
        if not equals or name not in PEERS:
            raise InputError(f'--peer "{pair}" must be NAME=PYTHON with NAME one of {", ".join(PEERS)}.')
        if not (Path(python).is_file() and os.access(python, os.X_OK)):
            raise InputError(f"--peer {name}: {python} is no Python interpreter that can be run.")
        found[name] = Path(python)
    return found


@final
class Interpreters:
    """The workers of one run, started when first asked for. Used as a context manager.

    Args:
        pythons: The interpreter of a peer by its name; this one where there is none.
    """

    def __init__(self, pythons: Mapping[str, Path]) -> None:
        self._pythons = pythons
        self._workers: dict[str, _Worker | MissingError] = {}
        self._problems = 0
        self._folder = tempfile.TemporaryDirectory(prefix="mikit-bench-")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            if isinstance(worker, _Worker):
                worker.close()
        self._folder.cleanup()

    @property
    def versions(self) -> dict[str, str]:
        """The version of every peer that runs."""
        return {name: found.version for name, found in self._workers.items() if isinstance(found, _Worker)}

    def files(self, x: Tensor, y: Tensor) -> tuple[str, str]:
        """Write two samples where the workers read them, and return the paths."""
        self._problems += 1
        paths = [Path(self._folder.name) / f"{self._problems}-{name}.npy" for name in ("x", "y")]
        for path, rows in zip(paths, (x, y), strict=True):
            np.save(path, rows.detach().cpu().numpy(), allow_pickle=False)
        return str(paths[0]), str(paths[1])

    def ask(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request to a peer and return its answer.

        Raises:
            MissingError: If the interpreter has no such peer.
            RuntimeError: If the peer raised, ended, or did not answer in time.
        """
        worker = self.worker(name)
        answer = worker.ask(request)
        if "failed" in answer:
            raise RuntimeError(str(answer["failed"]))
        return answer

    def worker(self, name: str) -> _Worker:
        """Return the worker of a peer, started if it is not running yet.

        Raises:
            MissingError: If the interpreter has no such peer.
        """
        if name not in self._workers:
            python = self._pythons.get(name)
            try:
                self._workers[name] = _Worker(name, python or Path(sys.executable))
            except MissingError as cause:
                self._workers[name] = cause
        found = self._workers[name]
        if isinstance(found, MissingError):
            raise found
        return found


class _Worker:
    def __init__(self, name: str, python: Path) -> None:
        self._name = name
        script = Path(__file__).with_name("worker.py")
        self._process = subprocess.Popen(  # noqa: S603
            [str(python), "-I", str(script), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_ONE_THREAD},
            text=True,
        )
        where = "this interpreter" if str(python) == sys.executable else f"the interpreter given by --peer {name}"
        install = f"install {PEERS[name][0]} in an environment of its own and pass --peer {name}=ENV/bin/python"
        try:
            said = self._read(_SECONDS_TO_START)
        except RuntimeError as cause:
            self.close()
            raise MissingError(f"{where} does not run the peer ({cause})", install) from cause
        if "missing" in said:
            self.close()
            raise MissingError(f"{where} has no {name} ({said['missing']})", install)
        self.version = str(said["version"])

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError as cause:
            raise RuntimeError(f"the process of {self._name} has ended") from cause
        return self._read(_SECONDS_TO_ANSWER)

    def _read(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        timer = threading.Timer(seconds, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise RuntimeError(f"the process of {self._name} ended with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
