"""Unix sockets as files: whether somebody lives behind one."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["is_dead_socket"]


def is_dead_socket(path: Path) -> bool:
    """Whether the file is a socket that no process has any more. Who lives there learns nothing of the question."""
    if not path.is_socket():
        return False
    # Of the other type than servers', which is EPROTOTYPE where one lives: no client comes, whose end would reset a
    # device. ECONNREFUSED: no living socket has the file (unix(7)).
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            return probe.connect_ex(str(path)) == errno.ECONNREFUSED
        except OSError:  # the path is too long for a socket, so none was bound by it
            return False
