"""A folder that one run owns: created once, resumed by the same run, refused to any other."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from mikit.core.errors import InputError
from mikit.core.files import TEMPORARY_PREFIX, Kind, sync_folder, write_atomically, write_json

__all__ = ["RecordFiles", "RunFolder"]

_SCHEMA_VERSION = 1


@final
@dataclass(frozen=True)
class RunFolder:
    """A folder with a file that describes the run it belongs to.

    Attributes:
        path: The folder; it need not exist.
        kind: The command that makes such folders, and the name of the describing file.
    """

    path: Path
    kind: Kind

    @property
    def description(self) -> Path:
        """The file that describes the run."""
        return self.path / self.kind.marker

    def entries(self) -> list[str]:
        """Return the names of all entries but the temporary files of killed processes; empty without a folder."""
        if not self.path.is_dir():
            return []
        return sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith(TEMPORARY_PREFIX))

    def describe(self, settings: Mapping[str, Any]) -> None:
        """Write the description of the run."""
        write_json(self.description, self._content(settings))

    def stored(self) -> dict[str, Any]:
        """Return the description.

        Raises:
            InputError: If it cannot be read, or another program wrote it.
        """
        try:
            content = json.loads(self.description.read_bytes())
        except (OSError, ValueError) as cause:
            raise InputError(
                f"{self.description} cannot be read ({type(cause).__name__}). Choose another folder."
            ) from cause
        if not isinstance(content, dict) or content.get("made_by") != self.kind.command:
            raise InputError(f"{self.description} was not written by {self.kind.command}. Choose another folder.")
        return content

    def difference(
        self,
        settings: Mapping[str, Any],
        *,
        ignored: Collection[str] = (),
        updated: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> str:
        """Return in a sentence why the folder does not belong to a run with these settings; empty if it does.

        ``updated`` turns the description that an earlier version wrote into that of this version.
        """
        try:
            stored = updated(self.stored())
        except InputError as cause:
            return str(cause)
        # Through JSON and back, because a stored tuple is a list.
        asked = json.loads(json.dumps(self._content(settings)))
        found = {name: value for name, value in stored.items() if name not in ignored}
        names = [name for name in {**found, **asked} if found.get(name) != asked.get(name)]
        if not names:
            return ""
        others = f" ({', '.join(names[1:])} differ too)" if names[1:] else ""
        return (
            f"{self.path} already contains another run of {self.kind.command}: its {names[0]} is "
            f"{found.get(names[0])}, not {asked.get(names[0])}{others}. Choose another folder, or pass --overwrite to "
            "replace it."
        )

    def _content(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"made_by": self.kind.command, "schema_version": _SCHEMA_VERSION, **settings}


@final
@dataclass(frozen=True)
class RecordFiles:
    """Results in one file per key, each written completely or not at all; several processes may share the folder.

    Attributes:
        folder: The folder.
        suffix: Ending of the file names.
    """

    folder: Path
    suffix: str

    def path(self, key: str) -> Path:
        """Return the file of a key."""
        return self.folder / f"{key}{self.suffix}"

    def read(self, key: str) -> bytes | None:
        """Return the content that is stored for a key, or None."""
        try:
            return self.path(key).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, key: str, content: bytes) -> None:
        """Store the content of a key; :meth:`sync` makes its name survive a power cut."""
        write_atomically(self.path(key), lambda file: file.write(content))

    def foreign(self) -> list[str]:
        """Return the names of entries that are neither records nor temporary files."""
        return sorted(
            entry.name
            for entry in self.folder.iterdir()
            if entry.suffix != self.suffix and not entry.name.startswith(TEMPORARY_PREFIX)
        )

    def remove_unfinished(self) -> None:
        """Remove what killed processes were writing; only while no other process writes here."""
        for entry in self.folder.iterdir():
            if entry.name.startswith(TEMPORARY_PREFIX):
                entry.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all records."""
        for entry in self.folder.glob(f"*{self.suffix}"):
            entry.unlink(missing_ok=True)

    def sync(self) -> None:
        """Make the names of all records survive a power cut."""
        sync_folder(self.folder)
