"""Peers whose requirements exclude ours, each in a process of its own that stays alive between calls."""

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
from mikit.bench.peers.worker import PEERS
from mikit.core.errors import InputError

__all__ = ["Interpreters", "read_interpreters"]

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
    """Read ``NAME=PYTHON`` pairs.

    Args:
        given: The pairs.
        names: The peers there are.

    Raises:
        InputError: If one is no such pair, names an unknown peer or one twice, or no file that can be run.

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
            raise InputError(f"--peer {name} is given twice; one interpreter must be chosen.")
        path = Path(python).absolute()  # A link stays a link: an environment's interpreter is one, and knows by it.
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise InputError(f"--peer {name}: {python} is no Python interpreter that can be run.")
        found[name] = path
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
        self.close()

    def close(self) -> None:
        """End the workers, and remove the files; what a thread starts meanwhile ends when this is called again."""
        for worker in list(self._workers.values()):
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

    def forget_ended(self, name: str) -> None:
        """Let a peer whose process broke off be started anew when it is next asked for."""
        found = self._workers.get(name)
        if isinstance(found, _Worker) and found.is_over:
            found.close()
            del self._workers[name]

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


@final
class _Worker:
    """A process that answers lines of JSON. One that breaks off the conversation is ended, with all it started.

    Args:
        name: The peer.
        python: Its interpreter.

    Raises:
        MissingError: If the interpreter cannot be run, has no such peer, or says something else.
    """

    def __init__(self, name: str, python: Path) -> None:
        self._name, self._over, self._ended = name, "", False
        where = "this interpreter" if str(python) == sys.executable else f"the interpreter given by --peer {name}"
        install = f"install {PEERS[name][0]} in an environment of its own and pass --peer {name}=ENV/bin/python"
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [str(python), "-I", str(Path(__file__).with_name("worker.py")), name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **_ONE_THREAD},
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # What it starts in turn can then be ended with it.
            )
        except OSError as cause:
            raise MissingError(f"{where} does not run ({cause})", install) from cause
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            said = self._read(_SECONDS_TO_START)
            if "missing" in said:
                raise MissingError(f"{where} has no {name} ({said['missing']})", install)
            if "version" not in said:
                raise RuntimeError(f"the process of {name} did not say its version")
        except BaseException as cause:
            self.close()
            if isinstance(cause, RuntimeError):
                raise MissingError(f"{where} does not run the peer ({cause})", install) from cause
            raise
        self.version = str(said["version"])

    @property
    def is_over(self) -> bool:
        """Whether it answers no more."""
        return bool(self._over)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            RuntimeError: If the process has ended, says something that is no answer, or takes too long.
        """
        if self._over:
            raise RuntimeError(self._over)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:  # It has ended; reading tells how.
            pass
        return self._read(_SECONDS_TO_ANSWER)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with suppress(OSError, ValueError):  # The pipe may be closed while it is read.
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
        except BaseException:  # Such as an interrupt: the answer to come would be taken for that of the next request.
            self._over = f"the process of {self._name} was interrupted"
            self._end()
            raise

    def _line(self, seconds: float) -> str:
        end = time.monotonic() + seconds
        while True:
            ended = self._process.poll() is not None  # What it started may hold the pipe open after its end.
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
        """End the process and those it started, at once."""
        if self._ended:  # Its number may be that of another process by now.
            return
        with suppress(OSError):  # None is left.
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()
        self._ended = True

    def close(self) -> None:
        """Let the process end by itself, as it does when its input ends, or else end it."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            if not self._over:
                self._process.wait(_SECONDS_TO_END)
        self._end()
        self._over = self._over or f"the process of {self._name} was closed"
        self._listener.join(_SECONDS_TO_END)
        if not self._listener.is_alive():  # Closing would wait for it.
            assert self._process.stdout is not None
            self._process.stdout.close()


def _answer(name: str, line: str) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise RuntimeError(f"the process of {name} said {line.strip()[:40]!r}, which is no answer")
    return answer
