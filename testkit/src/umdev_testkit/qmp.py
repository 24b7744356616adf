"""QEMU's monitor (QMP) for code that is not asynchronous."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from qemu.qmp import ConnectError, ExecInterruptedError, QMPClient, QMPError, StateError

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

__all__ = ["Monitor"]

_CONNECT_TIME = 30.0  # seconds


class Monitor:
    """A connection to one QEMU. Not for use by several threads at once, nor while this thread runs an event loop.

    Raises:
        EOFError: QEMU has gone.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._runner = asyncio.Runner()
        self._client = QMPClient("umdev-guest")
        try:
            self._runner.run(asyncio.wait_for(self._client.connect(connection), _CONNECT_TIME))
        except ConnectError as error:
            self._runner.close()
            raise EOFError("QEMU does not answer on its monitor") from error
        except BaseException:
            self._runner.close()
            raise

    def execute(self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float = 30.0) -> object:
        """Execute a QMP command and return what it returns.

        Raises:
            qemu.qmp.ExecuteError: QEMU refused the command.
            TimeoutError: it took longer than `timeout` seconds.
            EOFError: QEMU has gone.
        """
        sent = dict(arguments) if arguments else None
        try:
            return self._runner.run(asyncio.wait_for(self._client.execute(command, sent), timeout))
        except (ExecInterruptedError, StateError) as error:
            raise EOFError("QEMU has closed its monitor") from error

    def human(self, line: str) -> str:
        """Run a command of the human monitor, such as "info mtree", and return its text."""
        return str(self.execute("human-monitor-command", {"command-line": line})).replace("\r\n", "\n")

    def close(self) -> None:
        """Disconnect; whether QEMU still lives does not matter."""
        with suppress(QMPError, EOFError, OSError, asyncio.CancelledError):
            self._runner.run(self._client.disconnect())
        self._runner.close()
