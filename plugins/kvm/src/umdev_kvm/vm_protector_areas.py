"""Where a process has mapped a file: guest RAM of a VMM, by device, inode and offset."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

# proc_pid_maps(5): address range, permissions, offset, device, inode. At the start of a line, since names of files may
# say anything; there is no line break in them.
_LINE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (....) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) ([0-9]+)", re.MULTILINE)


class Area(NamedTuple):
    """A mapping, in bytes."""

    offset: int
    """In the file."""
    address: int
    length: int


def areas(pid: int, file: tuple[int, int]) -> list[Area]:
    """Writable shared mappings of the file (device, inode) in the process; neighbours that continue each other are one.

    Raises: OSError (the process is gone, or not ours to look at).
    """
    return parse(Path(f"/proc/{pid}/maps").read_text(errors="replace"), file)


def parse(text: str, file: tuple[int, int]) -> list[Area]:
    """The areas in the text of a maps file."""
    found: list[Area] = []
    for match in _LINE.finditer(text):
        start, end, permissions, offset, major, minor, inode = match.groups()
        if int(inode) != file[1] or os.makedev(int(major, 16), int(minor, 16)) != file[0]:
            continue
        if permissions[1] != "w" or permissions[3] != "s":  # a ROM, or a private copy that no device sees
            continue
        area = Area(int(offset, 16), int(start, 16), int(end, 16) - int(start, 16))
        last = found[-1] if found else None
        if last and last.address + last.length == area.address and last.offset + last.length == area.offset:
            found[-1] = Area(last.offset, last.address, last.length + area.length)
        else:
            found.append(area)
    return found
