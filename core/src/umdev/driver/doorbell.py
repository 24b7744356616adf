"""The driver's end of doorbells: eventfds that stand for stores."""

from __future__ import annotations

import os
import select
import threading

from ..errors import StateError


class DriverDoorbell:
    """A register that is rung without a trap or a message. From `Function.doorbells`; any thread."""

    def __init__(self, descriptor: int, offset: int, width: int, value: int | None) -> None:
        self._descriptor: int | None = descriptor
        self._guard = threading.Lock()
        self.offset = offset
        """In the region."""
        self.width = width
        """Bytes of the store that it stands for; 0: whatever width."""
        self.value = value
        """What that store writes; None: whatever."""

    @property
    def descriptor(self) -> int:
        """The eventfd, for KVM_IOEVENTFD and the like. It is the function's. Raises: StateError when that is closed."""
        if self._descriptor is None:
            raise StateError(f"the doorbell at {self.offset:#x} is closed")
        return self._descriptor

    def ring(self) -> None:
        """Ring, and do not wait: the device's handler runs later, once for several rings that come together.

        Other accesses overtake a ring: let the device tell when it has acted. Raises: StateError.
        """
        with self._guard:
            descriptor = self.descriptor
            waiting = select.poll()
            waiting.register(descriptor, select.POLLOUT)
            # A counter that is full rings already, and waiting for it would be waiting for the device.
            if waiting.poll(0):
                os.eventfd_write(descriptor, 1)

    def close(self) -> None:
        """For the function: forget the descriptor."""
        with self._guard:
            self._descriptor = None
