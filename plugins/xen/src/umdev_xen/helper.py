"""Requests to the privileged helper (`granter`), a process that populates memory for one domain."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
import threading
from pathlib import Path

from umdev.addresses import PAGE_SIZE
from umdev.errors import HypervisorError

from .granter import POPULATE, RELEASE, REPLY, REQUEST
from .libraries import failure

__all__ = ["SHELF", "SHELF_SIZE", "Helper"]

SHELF = 0xFC_0000_0000
"""Where populated pages wait: guest-physical, far above the memory of domains, within 40 bits."""
SHELF_SIZE = 1 << 34
PATIENCE = 300.0
"""Seconds that a request may take: populating is a hypercall for each megabyte."""
_CALLS = {POPULATE: "XENMEM_populate_physmap", RELEASE: "XENMEM_decrease_reservation"}


class Helper:
    """The helper process of a domain, started at the first request. Any thread. Closing it ends the process."""

    def __init__(self, domain: int) -> None:
        self._domain = domain
        self._lock = threading.Lock()
        self._link: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def populate(self, first: int, pages: int) -> None:
        """Give the domain pages. Raises: HypervisorError (its maximum is reached, mostly); then it got none."""
        self._ask(POPULATE, first, pages)

    def release(self, first: int, pages: int) -> None:
        """Take them away. Raises: HypervisorError."""
        self._ask(RELEASE, first, pages)

    def close(self) -> None:
        """May be called twice."""
        with self._lock:
            self._stop()

    def _ask(self, operation: int, first: int, pages: int) -> None:
        with self._lock:
            try:
                link = self._link or self._start()
                link.sendall(REQUEST.pack(operation, first, pages))
                reply = link.recv(REPLY.size, socket.MSG_WAITALL)
            except OSError as error:
                self._stop()  # a late answer would be taken for the next one
                raise failure(_CALLS[operation], error.errno or errno.ETIMEDOUT) from error
            if len(reply) != REPLY.size:
                self._stop()
                raise HypervisorError(
                    f"{_CALLS[operation]}: the privileged helper of domain {self._domain} has ended; it needs "
                    "libxencall.so.1 (apt install libxencall1) and the rights that this process began with"
                )
        (code,) = REPLY.unpack(reply)
        if code:
            raise failure(_CALLS[operation], code)

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE)
        program = Path(__file__).with_name("granter.py")
        numbers = (self._domain, SHELF // PAGE_SIZE, SHELF_SIZE // PAGE_SIZE)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(program), *map(str, numbers)],
                stdin=theirs.fileno(),
                start_new_session=True,  # Ctrl-C ends who asks it, which has to give pages back first
            )
        self._link = ours
        return ours

    def _stop(self) -> None:
        link, process = self._link, self._process
        self._link = self._process = None
        if link is not None:
            link.close()
        if process is not None:
            process.wait()
