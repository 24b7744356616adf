"""What this package needs of a device: its C object and its lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


class LockOwner(Protocol):
    """The part of `umdev.device.dispatch.NativeDevice` that memory uses."""

    @property
    def pointer(self) -> Any:
        """The `umdev_device *`."""

    @property
    def held(self) -> bool:
        """Whether the calling thread holds the device lock."""

    def locked(self) -> AbstractContextManager[object]:
        """Take the device lock; waiting drops the GIL."""
