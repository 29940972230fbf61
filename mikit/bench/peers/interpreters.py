"""Peers in other Python interpreters, each in its own process that stays alive between calls.

Some peers cannot be installed together with mikit. The script that runs in their interpreter, ``worker.py``, is in the
folder ``benchmarks/peers`` of the source distribution and not in the installed package.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, final

import numpy as np
from torch import Tensor

from mikit.bench.peers.peers import MissingError
from mikit.core.errors import InputError

__all__ = ["PEERS", "Interpreters", "read_interpreters", "require_worker"]

PEERS = {
    "benchmark-mi": "benchmark-mi",
    "NPEET": "npeet",
    "scikit-learn": "scikit-learn",
    "infomeasure": "infomeasure",
    "frites": "frites",
    "torch-mist": "torch-mist",
    "latentmi": "latentmi",
}
"""Distribution packages of the peers, by name."""

_WORKER = Path(__file__).parents[3] / "benchmarks" / "peers" / "worker.py"
_NO_WORKER = (
    "The script that runs peers in other interpreters is in the folder benchmarks/peers of mikit's source distribution "
    "and not in the installed package; run this command from an unpacked source distribution or a checkout."
)

_SECONDS_TO_START = 180.0
_SECONDS_TO_ANSWER = 1800.0
_SECONDS_TO_END = 2.0
_ONE_THREAD = {
    **dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
        "1",
    ),
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}


def read_interpreters(given: Sequence[str], names: Sequence[str] = tuple(PEERS)) -> dict[str, Path]:
    """Parse ``NAME=PYTHON`` pairs; refuse unknown peers, repeated ones and files that cannot be run.

    Example:
        >>> list(read_interpreters([f"NPEET={sys.executable}"]))
        ['NPEET']
    """
    found: dict[str, Path] = {}
    for pair in given:
        name, equals, python = pair.partition("=")
        if not equals or name not in names:
            raise InputError(f'--peer "{pair}" must be NAME=PYTHON with NAME one of {", ".join(names)}.')
        if name in found:
            raise InputError(f"--peer {name} is given twice; choose one interpreter.")
        # Links are not resolved: the interpreter of a virtual environment is a link and finds its packages by its path.
        path = Path(python).absolute()
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise InputError(f"--peer {name}: {python} is not a Python interpreter that can be run.")
        found[name] = path
    return found


def require_worker() -> None:
    """Raise :class:`~mikit.InputError` if the script that runs in other interpreters is not here."""
    if not _WORKER.is_file():
        raise InputError(_NO_WORKER)


@final
class Interpreters:
    """The workers of one run, started on first use. Use it as a context manager.

    ``pythons`` are the interpreters of peers by name; other peers use the current interpreter.
    """

    def __init__(self, pythons: Mapping[str, Path]) -> None:
        self._pythons = pythons
        self._workers: dict[str, _Worker | MissingError] = {}
        self._problems = 0
        self._folder = tempfile.TemporaryDirectory(prefix="mikit-bench-")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers and remove the files; a worker that another thread starts meanwhile needs a second call."""
        for worker in list(self._workers.values()):
            if isinstance(worker, _Worker):
                worker.close()
        self._folder.cleanup()

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the running peers."""
        return {name: found.version for name, found in self._workers.items() if isinstance(found, _Worker)}

    def files(self, x: Tensor, y: Tensor) -> tuple[str, str]:
        """Write two samples to files for the workers, and return the paths."""
        self._problems += 1
        paths = [Path(self._folder.name) / f"{self._problems}-{name}.npy" for name in ("x", "y")]
        for path, rows in zip(paths, (x, y), strict=True):
            np.save(path, rows.detach().cpu().numpy(), allow_pickle=False)
        return str(paths[0]), str(paths[1])

    def ask(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request to a peer and return its answer.

        Raises MissingError if the peer is not installed, RuntimeError if it raised, ended, or did not answer in time.
        """
        worker = self.worker(name)
        answer = worker.ask(request)
        if "failed" in answer:
            raise RuntimeError(str(answer["failed"]))
        return answer

    def forget_ended(self, name: str) -> None:
        """Remove a peer whose process ended, so that the next request starts it again."""
        found = self._workers.get(name)
        if isinstance(found, _Worker) and found.is_over:
            found.close()
            del self._workers[name]

    def worker(self, name: str) -> _Worker:
        """Return the worker of a peer, started if necessary; raises MissingError if the peer is not installed."""
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


@final
class _Worker:
    """A process that answers lines of JSON. After an error it is stopped, with all processes that it started.

    Raises MissingError if the interpreter cannot be run, lacks the peer, or does not answer as expected.
    """

    def __init__(self, name: str, python: Path) -> None:
        self._name, self._over, self._ended = name, "", False
        if not _WORKER.is_file():
            install = "run mikit from a checkout or an unpacked source distribution, where it is in benchmarks/peers"
            raise MissingError("the script that runs it is not part of the installed package", install)
        where = "this interpreter" if str(python) == sys.executable else f"the interpreter given by --peer {name}"
        install = f"install {PEERS[name]} in its own environment and pass --peer {name}=ENV/bin/python"
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [str(python), "-I", str(_WORKER), name, str(Path(__file__).with_name("memory.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **_ONE_THREAD},
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # a process group, so that its own child processes can be stopped with it
            )
        except OSError as cause:
            raise MissingError(f"{where} does not run ({cause})", install) from cause
        # A read from a pipe has no time limit. A thread reads, and the queue between can be waited for with one.
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            answer = self._read(_SECONDS_TO_START)
            if "missing" in answer:
                raise MissingError(f"{where} has no {name} ({answer['missing']})", install)
            if "version" not in answer:
                raise RuntimeError(f"the process of {name} did not report its version")
        except BaseException as cause:
            self.close()
            if isinstance(cause, RuntimeError):
                raise MissingError(f"{where} does not run the peer ({cause})", install) from cause
            raise
        self.version = str(answer["version"])

    @property
    def is_over(self) -> bool:
        """Whether the process has ended or is no longer usable."""
        return bool(self._over)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return the answer; RuntimeError if it ended, is too slow, or answers otherwise."""
        if self._over:
            raise RuntimeError(self._over)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:  # it has ended, and reading gives its exit code
            pass
        return self._read(_SECONDS_TO_ANSWER)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with suppress(OSError, ValueError):  # the pipe may be closed while it is read
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put("")

    def _read(self, seconds: float) -> dict[str, Any]:
        try:
            return _answer(self._name, self._line(seconds))
        except RuntimeError as cause:
            self._over = str(cause)
            self._end()
            raise
        except BaseException:
            # After an interrupt, the pending answer would be taken for that of the next request.
            self._over = f"the process of {self._name} was interrupted"
            self._end()
            raise

    def _line(self, seconds: float) -> str:
        end = time.monotonic() + seconds
        while True:
            # Its child processes can keep the pipe open after its end, so the pipe alone does not show that it ended.
            ended = self._process.poll() is not None
            left = 0.2 if ended else min(0.2, end - time.monotonic())
            try:
                line = self._lines.get(timeout=max(left, 0))
            except queue.Empty:
                if ended:
                    break
                if time.monotonic() >= end:
                    raise RuntimeError(f"the process of {self._name} took longer than {seconds:,g} s") from None
                continue
            if line:
                return line
            break
        try:
            code = self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"the process of {self._name} closed its output") from None
        raise RuntimeError(f"the process of {self._name} ended with code {code}")

    def _end(self) -> None:
        """Kill the process and its child processes."""
        if self._ended:  # another process may have its id by now
            return
        with suppress(OSError):  # no process is left
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()
        self._ended = True

    def close(self) -> None:
        """Close the input of the process, at which it ends by itself, or kill it."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            if not self._over:
                self._process.wait(_SECONDS_TO_END)
        self._end()
        self._over = self._over or f"the process of {self._name} was closed"
        self._listener.join(_SECONDS_TO_END)
        if not self._listener.is_alive():  # closing would wait for a thread that reads
            assert self._process.stdout is not None
            self._process.stdout.close()


def _answer(name: str, line: str) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise RuntimeError(f"the process of {name} wrote {line.strip()[:40]!r}, which is not an answer")
    return answer
