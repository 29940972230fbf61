"""Results on disk: whole or not at all, and never in place of something that is not an earlier result."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, final

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
    "write_text",
]


if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

TEMPORARY_PREFIX = ".tmp-"
"""How the names of unfinished files begin; nothing reads them, and the next writer removes them."""

_SECONDS_TO_WAIT = 20.0


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that ``path`` names its old content or all of the new one, whatever happens meanwhile.

    The caller syncs the folder once all its files are in place.
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


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` last through a power cut."""
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
    """Hold the lock file ``path``; the system releases it when the process ends, however it ends.

    Raises:
        InputError: If another process holds it for longer than ``seconds`` (20 by default).
    """
    patience = _SECONDS_TO_WAIT if seconds is None else seconds
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + patience
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise InputError(
                    f"The store {str(store)!r} is being written by another process, which has not finished within "
                    f"{patience:g} seconds. Wait for it, or give each run a store of its own."
                )
            time.sleep(0.01)
        try:
            yield
        finally:
            # Closing would do, were it not for a child process that may have inherited the descriptor.
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
    """What tells a folder that a command made from any other.

    Attributes:
        command: Who makes it.
        holds: The file at the top of every such folder.
        sign: What that file says near its beginning.
        names: All that can stand at its top.
    """

    command: str
    holds: str
    sign: bytes
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
    """Raise unless ``path`` can be made, and what stands there may be replaced.

    Args:
        path: The file or folder to make.
        overwrite: Whether an earlier result may be replaced.
        kind: The folder to make; None for a file.
        inputs: What the result is made from; none of it is ever replaced.

    Raises:
        InputError: If ``path`` exists and must not be replaced, or cannot be made.
    """
    if kind is None and path.is_dir():
        raise InputError(f"{path} is a folder; name a file.")
    if _stands(path):
        if not overwrite:
            raise InputError(f"{path} exists already. Choose another name, or pass --overwrite to replace it.")
        _require_unneeded(path, inputs)
        if kind is not None and path.exists():
            _require_earlier(path, kind)
    folder = _whole(path).parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"{path} cannot be made: {folder} is not a folder.")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path} cannot be made: there is no permission to write to {folder}.")
    try:  # The permission says too much for root, for read-only mounts and for /proc.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as cause:
        raise InputError(f"{path} cannot be made: {folder} takes no new files ({cause.strerror or cause}).") from cause


def write_text(path: Path, text: str, *, overwrite: bool) -> None:
    """Write ``text`` so that a reader, or a run that is killed, finds the old content or the new, never a part.

    Raises:
        InputError: If the file exists and is not to be replaced, is a folder, or cannot be made.
        OSError: If the writing fails; it names ``path``.
    """
    require_free(path, overwrite=overwrite)
    content = text.encode()
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(content))
        sync_folder(path.parent)


@contextmanager
def new_folder(path: Path, *, overwrite: bool, kind: Kind, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Give a folder to fill that takes the name ``path`` only once the block ends well.

    A run that fails leaves nothing; a run that is killed leaves a hidden folder ``.NAME.HOST.PID.partial`` beside
    ``path``, which the next run on that machine removes. One that is killed while it replaces an earlier result
    leaves that as ``.NAME.HOST.PID.replaced.partial``, to which the next run gives its name back.

    Args:
        path: The folder to make.
        overwrite: Replace an earlier result of this kind; it is removed only after the new folder is complete.
        kind: What is made.
        inputs: What it is made from; none of it is ever replaced.

    Raises:
        InputError: If ``path`` exists and is not to be replaced, or cannot be made.
    """
    asked, path, inputs = path, _whole(path), tuple(inputs)
    _restore(path)
    require_free(asked, overwrite=overwrite, kind=kind, inputs=inputs)
    partial = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.partial")
    with _named(asked):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        partial.mkdir()
    try:
        yield partial
        assert kind.names.issuperset(entry.name for entry in partial.iterdir()), "mikit must know its own results"
        _sync(partial)
        require_free(asked, overwrite=overwrite, kind=kind, inputs=inputs)
        with _named(asked):
            _exchange(partial, path)
    finally:
        _remove(partial)


def _whole(path: Path) -> Path:
    """The absolute path, its folder resolved; a link at its end stays a link."""
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name ``path`` where the system's complaint names a temporary file."""
    try:
        yield
    except OSError as cause:
        if cause.errno is None:
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from cause


def _require_unneeded(path: Path, inputs: Iterable[Path]) -> None:
    """Refuse to replace what is, or holds, an input, the current folder or the home folder."""
    needed = [(given, f"{given}, which is read") for given in inputs]
    with suppress(OSError):
        needed.append((Path.cwd(), "the current folder"))
    with suppress(RuntimeError):
        needed.append((Path.home(), "the home folder"))
    for one, said in needed:
        for place in {one.resolve(), _whole(one)}:
            for above in (place, *place.parents):
                if above.exists() and path.exists() and above.samefile(path):
                    relation = "is" if above == place else "holds"
                    raise InputError(f"{path} is not replaced: it {relation} {said}. Choose another name.")


def _require_earlier(path: Path, kind: Kind) -> None:
    """Refuse to replace anything but an empty folder or one that ``kind.command`` made."""
    if not path.is_dir():
        raise InputError(f"{path} is not replaced: it is a file and no result of {kind.command}. Choose another name.")
    found = {entry.name for entry in path.iterdir()}
    own = "|".join(re.escape(name) for name in sorted(kind.names))
    unfinished = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}.*|\.(?:{own})\..*\.partial")
    strange = sorted(name for name in found - kind.names if not unfinished.fullmatch(name))
    if strange:
        raise InputError(
            f"{path} is not replaced: it holds {strange[0]}, which is no part of a result of {kind.command}. Choose "
            "another name, or move that elsewhere."
        )
    if found and not _signed(path / kind.holds, kind.sign):
        raise InputError(
            f"{path} is not replaced: it holds no {kind.holds} of {kind.command}, so it is no earlier result. Choose "
            "another name."
        )


def _signed(path: Path, sign: bytes) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return sign in file.read(4096)


def _exchange(partial: Path, path: Path) -> None:
    """Give ``partial`` the name ``path``; if that fails, what stood there keeps it."""
    old = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.replaced.partial")
    try:
        if _stands(path):
            path.replace(old)
        partial.replace(path)
    except BaseException:
        if _stands(old) and not _stands(path):
            old.replace(path)
        raise
    sync_folder(path.parent)
    _remove(old)


def _restore(path: Path) -> None:
    """Give its name back to what a run was replacing when it was killed."""
    for entry in _leftovers(path, r"\.replaced"):
        if not _stands(path):
            entry.replace(path)


def _remove_leftovers(path: Path) -> None:
    """Remove what earlier runs of this name left behind, unless their process still lives."""
    for entry in _leftovers(path, r"(?:\.replaced)?"):
        _remove(entry)


def _leftovers(path: Path, middle: str) -> list[Path]:
    """What dead processes of this machine left beside ``path``; those of other machines cannot be asked."""
    if not path.parent.is_dir():
        return []
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(_host())}\.(\d+){middle}\.partial")
    found = ((entry, pattern.fullmatch(entry.name)) for entry in sorted(path.parent.iterdir()))
    return [entry for entry, match in found if match and not _alive(int(match.group(1)))]


def _stands(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname())[:63] or "host"


def _alive(pid: int) -> bool:
    if os.name == "nt":  # there, os.kill ends the process it asks about
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
        # A worker that is just being stopped may still be writing into it.
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.1)
    shutil.rmtree(path)


def _sync(folder: Path) -> None:
    """Bring every file of ``folder`` to the disk before the folder gets its name."""
    for entry in sorted(folder.rglob("*")):
        if entry.is_file():
            descriptor = os.open(entry, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
