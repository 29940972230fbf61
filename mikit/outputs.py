"""Results on disk: whole or not at all, and never in place of something that was there before."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mikit.atomic import sync_folder, write_atomically
from mikit.errors import InputError

__all__ = ["new_folder", "require_free", "write_text"]

_ATTEMPTS = 20


def require_free(path: Path, *, overwrite: bool) -> None:
    """Raise :class:`~mikit.errors.InputError` if ``path`` exists and must not be replaced, or cannot be made."""
    if (path.is_symlink() or path.exists()) and not overwrite:
        raise InputError(f"{path} exists already. Choose another name, or pass --overwrite to replace it.")
    folder = Path(os.path.abspath(path)).parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"{path} cannot be made: {folder} is not a folder.")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path} cannot be made: there is no permission to write to {folder}.")


def write_text(path: Path, text: str, *, overwrite: bool) -> None:
    """Write ``text`` so that a reader, or a run that is killed, finds the old content or the new, never a part.

    Raises:
        InputError: If the file exists and is not to be replaced, is a folder, or cannot be made.
    """
    require_free(path, overwrite=overwrite)
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode()
    write_atomically(path, lambda file: file.write(content))
    sync_folder(path.parent)


@contextmanager
def new_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a folder to fill that takes the name ``path`` only once the block ends well.

    A run that fails leaves nothing; a run that is killed leaves a hidden folder ``.NAME.PID.partial`` beside
    ``path``, which the next run removes.

    Args:
        path: The folder to make.
        overwrite: Replace what stands there; it is removed only after the new folder is complete.

    Raises:
        InputError: If ``path`` exists and is not to be replaced, or cannot be made.
    """
    path = path.absolute()
    require_free(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        yield partial
        _sync(partial)
        require_free(path, overwrite=overwrite)
        old = path.with_name(f".{path.name}.{os.getpid()}.replaced.partial")
        if path.exists() or path.is_symlink():
            path.replace(old)
        partial.replace(path)
        _remove(old)
    finally:
        _remove(partial)


def _remove_leftovers(path: Path) -> None:
    """Remove what earlier runs of this name left behind, unless their process still lives."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d+)(?:\.replaced)?\.partial")
    for entry in path.parent.iterdir():
        match = pattern.fullmatch(entry.name)
        if match and not _alive(int(match.group(1))):
            _remove(entry)


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
