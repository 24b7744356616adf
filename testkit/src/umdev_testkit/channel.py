"""The host's side of the guest's command port; the protocol is in `initramfs`."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Channel"]

_CHUNK = 65536  # bytes of one put: the guest's dd holds that much at once
_HELLO = b"umdev-guest "


class Channel:
    """Runs one thing at a time in the guest. Not for use by several threads at once.

    Every wait ends: with `TimeoutError` at its deadline, or when nothing came for as long as it may be silent, with
    `EOFError` when QEMU has gone. After either the guest may be in the middle of something, and the channel is of no
    further use.
    """

    def __init__(self, connection: socket.socket, log: Path) -> None:
        """`log`: a file that gets all that comes, as it comes, for people who wait."""
        self._connection = connection
        self._received = bytearray()
        self._log = log.open("ab", buffering=0)

    def close(self) -> None:
        """Close the port; the guest powers off when it sees it."""
        self._connection.close()
        self._log.close()

    def wait_hello(self, timeout: float) -> str:
        """Wait until a guest has booted; return its verdict: "ready", or what went wrong."""
        deadline = time.monotonic() + timeout
        self._until(lambda: _HELLO in self._received, deadline)
        del self._received[: self._received.index(_HELLO) + len(_HELLO)]
        self._until(lambda: b"\n" in self._received, deadline)
        verdict, _, rest = bytes(self._received).partition(b"\n")
        self._received[:] = rest
        return verdict.decode()

    def run(self, script: bytes, timeout: float, silence: float | None = None) -> tuple[int, bytes]:
        """Run a shell script; return its exit status and all that it printed, byte for byte."""
        nonce = secrets.token_hex(16)
        deadline = time.monotonic() + timeout
        self._send(f"run {nonce} {len(script)}\n".encode() + script, deadline)
        return self._answer(nonce, deadline, silence)

    def append(self, path: str, content: bytes, timeout: float) -> int:
        """Append bytes to a file of the guest; return 0, or the status of what failed."""
        deadline = time.monotonic() + timeout
        for start in range(0, len(content), _CHUNK):
            chunk = content[start : start + _CHUNK]
            nonce = secrets.token_hex(16)
            self._send(f"put {nonce} {len(chunk)} {path}\n".encode() + chunk, deadline)
            if status := self._answer(nonce, deadline)[0]:
                return status
        return 0

    def order(self, verb: str) -> None:
        """Send a verb that has no answer: reboot or poweroff."""
        self._send(f"{verb}\n".encode(), time.monotonic() + 5)

    def partial_output(self) -> bytes:
        """Return what the unfinished script has printed so far."""
        return bytes(self._received)

    def _answer(self, nonce: str, deadline: float, silence: float | None = None) -> tuple[int, bytes]:
        marker = f"\n{nonce} ".encode()
        seen = 0

        def complete() -> bool:
            nonlocal seen
            at = self._received.find(marker, max(0, seen - len(marker)))
            seen = len(self._received)
            return at >= 0 and b"\n" in self._received[at + len(marker) :]

        self._until(complete, deadline, silence)
        output, _, rest = bytes(self._received).partition(marker)
        status, _, rest = rest.partition(b"\n")
        self._received[:] = rest
        return int(status), output

    def _until(self, complete: Callable[[], bool], deadline: float, silence: float | None = None) -> None:
        while not complete():
            self._limit(deadline, silence)
            data = self._connection.recv(1 << 16)
            if not data:
                raise EOFError("QEMU has closed the command port")
            self._received += data
            self._log.write(data)

    def _send(self, data: bytes, deadline: float) -> None:
        self._limit(deadline)
        try:
            self._connection.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise EOFError("QEMU has closed the command port") from error

    def _limit(self, deadline: float, silence: float | None = None) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the guest has not answered in time")
        self._connection.settimeout(left if silence is None else min(left, silence))
