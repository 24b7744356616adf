"""A client that maps memory without a descriptor and then answers no DMA message: what a hostile VMM may do."""

from __future__ import annotations

import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from umdev.device import Device
    from umdev.driver import Function

JOIN_SECONDS = 60.0


class MuteClient:
    """A function over vfio-user whose memory is reached by message, as long as the client likes to answer."""

    def __init__(self, function: Function) -> None:
        """For `mute_client`."""
        self.function = function
        self.asked = threading.Event()
        """A message has come while the client was mute."""
        self.messages = 0
        """How many have."""
        client: Any = function._client  # type: ignore[attr-defined]  # noqa: SLF001 - no client offers to be mute
        self._answer, client._answer = client._answer, self._hear  # noqa: SLF001
        self._mute = False

    def hush(self) -> None:
        """Answer no DMA message from now on; accesses to the device work as before."""
        self._mute = True

    def speak(self) -> None:
        """Answer those that come from now on."""
        self._mute = False

    def _hear(self, event: object) -> None:
        if self._mute:
            self.messages += 1
            self.asked.set()
        else:
            self._answer(event)


@contextmanager
def mute_client(device: Device, reply_timeout: float) -> Iterator[MuteClient]:
    """Serve the device to such a client, enabled, that answers still. `reply_timeout`: seconds to wait for it."""
    from umdev.plugins import plugins

    bus = plugins().load_bus("vfio-user")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "socket")
        server = bus.serve(device, path=path, reply_timeout=reply_timeout)
        thread = threading.Thread(target=server.run, name=f"vfio-user server of {device}", daemon=True)
        thread.start()
        try:
            with bus.connect(path, share_memory=False) as function:
                function.enable(memory=True, io=True, bus_master=True)
                yield MuteClient(function)
        finally:
            server.stop()
            thread.join(JOIN_SECONDS)
            server.close()
