"""Writing results to disk: completely or not at all, and never over anything but an earlier result."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, final

from mikit.core.errors import InputError

__all__ = [
    "DEMO",
    "REPORT",
    "TEMPORARY_PREFIX",
    "TRACE",
    "Kind",
    "file_sha256",
    "locked",
    "new_folder",
    "require_free",
    "sync_folder",
    "write_atomically",
    "write_json",
    "write_text",
]


if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

TEMPORARY_PREFIX = ".tmp-"
"""Prefix of unfinished files: nothing reads them, and the next writer removes them."""

_SECONDS_TO_WAIT = 20.0


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that ``path`` always contains its old content or all of the new one.

    The caller syncs the folder after its last file.
    """
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically, and sync its folder."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` survive a power cut."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path, store: Path, *, seconds: float | None = None) -> Iterator[None]:
    """Lock the file ``path``; the operating system releases the lock when the process ends in any way.

    Raises:
        InputError: If another process keeps the lock for longer than ``seconds`` (20 by default).
    """
    patience = _SECONDS_TO_WAIT if seconds is None else seconds
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + patience
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise InputError(
                    f"Another process is writing to the store {str(store)!r} and did not finish within {patience:g} "
                    "seconds. Wait for it, or use a separate store for each run."
                )
            time.sleep(0.01)
        try:
            yield
        finally:
            # Closing is not enough: a child process may have inherited the descriptor.
            _unlock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _unlock(descriptor: int) -> None:
    if sys.platform == "win32":
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


_ATTEMPTS = 20


@final
@dataclass(frozen=True)
class Kind:
    """How to recognize a folder that a command made.

    Attributes:
        command: The command.
        marker: The file at the top of every such folder.
        signature: Bytes near the beginning of that file.
        names: All entries that the folder can have at its top.
    """

    command: str
    marker: str
    signature: bytes
    names: frozenset[str]


TRACE = Kind(
    "mikit trace",
    "flow.json",
    b'"mikit flow"',
    frozenset({"flow.json", "flow.csv", "flow.parquet", "records", "report", "trace.json"}),
)
REPORT = Kind("mikit report", "index.html", b'name="generator" content="mikit"', frozenset({"index.html"}))
DEMO = Kind(
    "mikit demo",
    "demo.json",
    b'"schema_version"',
    frozenset({"demo.json", "findings.txt", "figures", "flow", "networks", "report", "stores"}),
)


def require_free(path: Path, *, overwrite: bool, kind: Kind | None = None, inputs: Iterable[Path] = ()) -> None:
    """Raise :class:`InputError` unless ``path`` can be made, or is an earlier result that may be replaced.

    Args:
        path: The file or folder to make.
        overwrite: Whether an earlier result may be replaced.
        kind: The kind of folder; None for a file.
        inputs: What the result is made from; none of it is ever replaced.
    """
    if kind is None and path.is_dir():
        raise InputError(f"{path} is a folder; name a file.")
    if _exists(path):
        if not overwrite:
            raise InputError(f"{path} already exists. Choose another name, or pass --overwrite to replace it.")
        _require_unneeded(path, inputs)
        if kind is not None and path.exists():
            _require_earlier(path, kind)
    folder = _absolute(path).parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"{path} cannot be made: {folder} is not a folder.")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path} cannot be made: there is no permission to write to {folder}.")
    try:  # os.access is not reliable for root, for read-only mounts and for /proc.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as cause:
        raise InputError(
            f"{path} cannot be made: {folder} accepts no new files ({cause.strerror or cause})."
        ) from cause


def write_text(path: Path, text: str, *, overwrite: bool) -> None:
    """Write ``text`` atomically.

    Raises:
        InputError: If the file exists and may not be replaced, is a folder, or cannot be made.
        OSError: If writing fails; it names ``path``.
    """
    require_free(path, overwrite=overwrite)
    content = text.encode()
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(content))
        sync_folder(path.parent)


@contextmanager
def new_folder(path: Path, *, overwrite: bool, kind: Kind, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield a folder to fill; it is renamed to ``path`` when the block ends without an error.

    A run that fails leaves nothing. A killed run leaves ``.NAME.HOST.PID.partial`` beside ``path``, which the next run
    on that machine removes. A run that is killed while it replaces an earlier result leaves that result as
    ``.NAME.HOST.PID.replaced.partial``; the next run renames it back.

    Raises:
        InputError: As :func:`require_free`, whose arguments these are.
    """
    given, path, inputs = path, _absolute(path), tuple(inputs)
    _restore(path)
    require_free(given, overwrite=overwrite, kind=kind, inputs=inputs)
    partial = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.partial")
    with _named(given):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        partial.mkdir()
    try:
        yield partial
        assert kind.names.issuperset(entry.name for entry in partial.iterdir()), "an entry is missing in kind.names"
        _sync(partial)
        require_free(given, overwrite=overwrite, kind=kind, inputs=inputs)
        with _named(given):
            _exchange(partial, path)
    finally:
        _remove(partial)


def _absolute(path: Path) -> Path:
    """Return the absolute path with its folder resolved; a link at its end stays a link."""
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name ``path`` in errors of the operating system that name a temporary file."""
    try:
        yield
    except OSError as cause:
        if cause.errno is None:
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from cause


def _require_unneeded(path: Path, inputs: Iterable[Path]) -> None:
    """Refuse to replace an input, the current folder, the home folder, or a folder that contains one of them."""
    needed = [(one, f"{one}, which is an input") for one in inputs]
    with suppress(OSError):
        needed.append((Path.cwd(), "the current folder"))
    with suppress(RuntimeError):
        needed.append((Path.home(), "the home folder"))
    for one, what in needed:
        for place in {one.resolve(), _absolute(one)}:
            for above in (place, *place.parents):
                if above.exists() and path.exists() and above.samefile(path):
                    relation = "is" if above == place else "contains"
                    raise InputError(f"{path} is not replaced: it {relation} {what}. Choose another name.")


def _require_earlier(path: Path, kind: Kind) -> None:
    """Refuse to replace anything but an empty folder or one that ``kind.command`` made."""
    if not path.is_dir():
        raise InputError(f"{path} is not replaced: it is a file, not a result of {kind.command}. Choose another name.")
    found = {entry.name for entry in path.iterdir()}
    known = "|".join(re.escape(name) for name in sorted(kind.names))
    unfinished = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}.*|\.(?:{known})\..*\.partial")
    strange = sorted(name for name in found - kind.names if not unfinished.fullmatch(name))
    if strange:
        raise InputError(
            f"{path} is not replaced: it contains {strange[0]}, which is not part of a result of {kind.command}. "
            "Choose another name, or move that entry elsewhere."
        )
    if found and not _contains(path / kind.marker, kind.signature):
        raise InputError(
            f"{path} is not replaced: it contains no {kind.marker} of {kind.command}, so it is not an earlier result. "
            "Choose another name."
        )


def _contains(path: Path, signature: bytes) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return signature in file.read(4096)


def _exchange(partial: Path, path: Path) -> None:
    """Rename ``partial`` to ``path``; if that fails, the earlier folder keeps the name."""
    old = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.replaced.partial")
    try:
        if _exists(path):
            path.replace(old)
        partial.replace(path)
    except BaseException:
        if _exists(old) and not _exists(path):
            old.replace(path)
        raise
    sync_folder(path.parent)
    _remove(old)


def _restore(path: Path) -> None:
    """Rename back the result that a run was replacing when it was killed."""
    for entry in _leftovers(path, r"\.replaced"):
        if not _exists(path):
            entry.replace(path)


def _remove_leftovers(path: Path) -> None:
    """Remove what earlier runs into ``path`` left behind, unless their process is still running."""
    for entry in _leftovers(path, r"(?:\.replaced)?"):
        _remove(entry)


def _leftovers(path: Path, middle: str) -> list[Path]:
    """Return what ended processes left beside ``path``; only for this machine, whose processes are known."""
    if not path.parent.is_dir():
        return []
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(_host())}\.(\d+){middle}\.partial")
    found = ((entry, pattern.fullmatch(entry.name)) for entry in sorted(path.parent.iterdir()))
    return [entry for entry, match in found if match and not _alive(int(match.group(1)))]


def _exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname())[:63] or "host"


def _alive(pid: int) -> bool:
    if os.name == "nt":  # there, os.kill ends the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _remove(path: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    for _ in range(_ATTEMPTS):
        # A worker that is being stopped may still be writing into it.
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.1)
    shutil.rmtree(path)


def _sync(folder: Path) -> None:
    """Flush every file of ``folder`` to the disk before the folder is renamed."""
    for entry in sorted(folder.rglob("*")):
        if entry.is_file():
            descriptor = os.open(entry, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
