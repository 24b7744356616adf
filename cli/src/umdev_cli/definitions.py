"""Definitions of devices: mdevctl's layout and format, a JSON file `CONFIG/PARENT/UUID` for each.

They outlive processes, reboots and the runtime directory.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from umdev.errors import Conflict, InvalidArgument, NotFound, StateError
from umdev.runtime import config_directory

from .identity import is_uuid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Definition", "Definitions", "Named"]


class Definition(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=False):
    """What a definition file says. Raises: InvalidArgument where an attribute is not one name with one value."""

    mdev_type: str
    start: Literal["auto", "manual"] = "manual"
    attrs: list[dict[str, str]] = []

    def __post_init__(self) -> None:
        for index, attribute in enumerate(self.attrs):
            if len(attribute) != 1:
                raise ValueError(f"attribute {index} must have one name, not {len(attribute)}")

    def attributes(self) -> dict[str, str]:
        """Name -> value. Raises: InvalidArgument when a name stands twice."""
        found: dict[str, str] = {}
        for attribute in self.attrs:
            for name, value in attribute.items():
                if name in found:
                    raise InvalidArgument(f"attribute {name!r} is given twice; remove one with --delattr --index")
                found[name] = value
        return found

    def changed(self, attributes: Mapping[str, str]) -> Definition:
        """This with other or further attributes. Raises: as `attributes`."""
        both = {**self.attributes(), **attributes}
        return msgspec.structs.replace(self, attrs=[{name: value} for name, value in both.items()])

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


class Named(msgspec.Struct, frozen=True):
    """A definition with what identifies it."""

    uuid: str
    parent: str
    definition: Definition


def read(path: Path) -> Definition:
    """Read a definition file. Raises: NotFound, InvalidArgument with the place in the file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Definition)
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path} is no definition: {error}") from error


class Definitions:
    """The definitions in a configuration directory."""

    def __init__(self, directory: Path | None = None) -> None:
        """`directory` stands in for the user's configuration directory."""
        self._directory = directory or config_directory()

    def files(self, uuid: str | None = None, parent: str | None = None) -> list[Path]:
        """The files of those that match, by parent and UUID, whatever is in them: `PARENT/UUID`.

        Raises: StateError for a directory that can't be read.
        """
        try:
            return [
                path
                for folder in _entries(self._directory)
                if folder.is_dir() and parent in (None, folder.name)
                for path in _entries(folder)
                if is_uuid(path.name) and uuid in (None, path.name)
            ]
        except OSError as error:
            raise _unusable(self._directory, error) from error

    def all(
        self,
        uuid: str | None = None,
        parent: str | None = None,
        *,
        damaged: Callable[[InvalidArgument], None] | None = None,
    ) -> list[Named]:
        """Those that match, by parent and UUID. `damaged`, if given, is told of files that can't be read.

        Raises: InvalidArgument for such a file otherwise.
        """
        found = []
        for path in self.files(uuid, parent):
            try:
                found.append(Named(path.name, path.parent.name, read(path)))
            except NotFound:  # undefined just now
                continue
            except InvalidArgument as error:
                if damaged is None:
                    raise
                damaged(error)
        return found

    def one(self, uuid: str, parent: str | None = None) -> Named:
        """The only one that matches. Raises: NotFound, Conflict when parents share the UUID, InvalidArgument."""
        found = self.all(uuid, parent)
        if not found:
            raise NotFound(f"{uuid} is not defined{f' for {parent}' if parent else ''}")
        if len(found) > 1:
            parents = ", ".join(each.parent for each in found)
            raise Conflict(f"{uuid} is defined for several parents ({parents}); say which with --parent")
        return found[0]

    def add(self, named: Named) -> None:
        """Raises: Conflict when it is defined already, InvalidArgument for an impossible parent name."""
        self._path(named.parent, named.uuid)  # raises, before a parent that can't be is looked for
        if self.files(named.uuid, named.parent):
            raise Conflict(f"{named.uuid} is defined for {named.parent} already")
        self.replace(named)

    def replace(self, named: Named) -> None:
        """Write a definition, whole or not at all. Raises: StateError when it can't be written."""
        path = self._path(named.parent, named.uuid)
        encoded = msgspec.json.format(msgspec.json.encode(named.definition), indent=2)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(encoded + b"\n")
                Path(temporary).replace(path)
            except BaseException:
                Path(temporary).unlink()
                raise
        except OSError as error:
            raise _unusable(path.parent, error) from error

    def remove(self, path: Path) -> None:
        """Remove one of `files`. Raises: NotFound when it is gone already; InvalidArgument when it can't be removed."""
        try:
            path.unlink()
        except FileNotFoundError:
            raise NotFound(f"{path.name} is not defined for {path.parent.name}") from None
        except OSError as error:
            raise InvalidArgument(f"{path}: {error.strerror}") from error
        with contextlib.suppress(OSError):  # other definitions of the parent remain
            path.parent.rmdir()

    def _path(self, parent: str, uuid: str) -> Path:
        if parent in ("", ".", "..") or "/" in parent or "\0" in parent:
            raise InvalidArgument(f"{parent!r} can't be the name of a parent")
        return self._directory / parent / uuid


def _entries(directory: Path) -> list[Path]:
    """What is in a directory; nothing if that is not there, or just removed. Raises: OSError."""
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []


def _unusable(directory: Path, error: OSError) -> StateError:
    return StateError(f"{error.filename or directory}: {error.strerror}; choose another folder with UMDEV_CONFIG_DIR")
