"""The eventfds by which a driver rings doorbells: one thread per attachment that has any."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from umdev._native import ffi, lib

from ..errors import StateError, TransportError

if TYPE_CHECKING:
    from ..device.dispatch import NativeDevice
    from ..services import Doorbell


class DoorbellWatch:
    """Rings doorbells of one device when their eventfds are signalled, as posted writes by the driver. Any thread.

    The thread is made with the first eventfd: it waits in C, and other devices' doorbells never wait for it.
    """

    def __init__(self, native: NativeDevice) -> None:
        self._native = native
        self._guard = threading.Lock()
        self._descriptors: dict[Doorbell, int] = {}
        self._pointer: Any = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def connect(self, doorbell: Doorbell) -> int:
        """The eventfd that rings `doorbell`, the same one each time. It stays this object's.

        Raises: StateError after `close`; TransportError when no descriptor is left.
        """
        with self._guard:
            if self._closed:
                raise StateError(f"{self._native.name}: its doorbells are closed")
            if doorbell not in self._descriptors:
                descriptor = lib.umdev_doorbells_add(
                    self._started(), doorbell.region, doorbell.offset, doorbell.width, doorbell.value or 0
                )
                self._descriptors[doorbell] = self._checked(descriptor)
            return self._descriptors[doorbell]

    def close(self) -> None:
        """Ring no more: on return no write of these doorbells is under way or will begin. May be called twice.

        From a handler of the device it does not wait: the write that is under way ends with or after that handler.
        """
        with self._guard:
            self._closed = True
            pointer, self._pointer = self._pointer, None
            thread, self._thread = self._thread, None
            self._descriptors.clear()
        if thread is None:
            return
        lib.umdev_doorbells_stop(pointer)
        if not self._native.held and thread is not threading.current_thread():
            thread.join()

    def _started(self) -> Any:
        if self._thread is None:
            code = ffi.new("int *")
            pointer = lib.umdev_doorbells_new(self._native.pointer, code)
            self._checked(code[0])
            pointer = ffi.gc(pointer, lib.umdev_doorbells_free)
            # The thread's own references let it outlive a `close` that could not wait.
            name = f"umdev-doorbells-{self._native.name}"
            thread = threading.Thread(target=_run, args=(pointer, self._native), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise TransportError(f"{self._native.name}: no thread is left for doorbells: {error}") from error
            self._pointer, self._thread = pointer, thread
        return self._pointer

    def _checked(self, result: int) -> int:
        if result < 0:
            error = TransportError(f"{self._native.name}: no doorbell: {os.strerror(-result)}")
            error.errno = -result
            raise error
        return result


def _run(pointer: Any, native: NativeDevice) -> None:  # noqa: ARG001  # kept until the last write has ended
    lib.umdev_doorbells_run(pointer)
