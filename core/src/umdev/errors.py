"""Everything that umdev raises.

Each class also derives from the standard exception that fits, and carries `errno`: what a bus sends its client.

    UmdevError
    +-- DeclarationError          (TypeError)     a device model's class body is wrong; names class, attribute, offset
    +-- InvalidArgument           (ValueError)    a caller's value is out of range or malformed
    +-- StateError                (RuntimeError)  the call does not fit the state, which is in the text
    +-- NotFound                  (LookupError)   no such plugin, type, device or definition
    +-- Conflict                                  the name, UUID or resource is taken
    |   +-- PluginConflict                        two distributions claim one plugin name
    |   +-- NoInstanceLeft                        every instance of the type is in use
    +-- PluginError                               a plugin failed; carries `plugin`, `hook` and `__cause__`
    +-- ServiceUnavailable                        nobody offers the service here; carries `service` and `reasons`
    +-- NotSupported                              this host, peer or version cannot do it; says what would
    +-- DmaError                  (OSError)       guest memory cannot be reached; carries `iova` and `length`
    |   +-- NotMapped                             no map covers the range
    |   +-- NotPermitted                          the map forbids the direction
    |   +-- BusMasterDisabled                     the driver has not enabled bus mastering
    |   +-- MappingPoisoned                       the client's file shrank under the map
    |   +-- DmaWouldDeadlock                      a handler would wait for the client; use deferred work
    |   +-- DmaAborted                            a reset ended the work that waited for the client
    +-- MapLimit                                  a client has as many DMA maps as it may
    +-- PinLimit                  (OSError)       RLIMIT_MEMLOCK is too small
    +-- ProtectError              (OSError)       pages cannot be protected
    |   +-- ProtectorBusy                         another userfaultfd owns the memory
    +-- HypervisorError           (OSError)       a hypervisor's interface failed; carries `call`, the interface's name
    +-- TransportError            (OSError)       a socket or descriptor of a bus failed
    |   +-- ProtocolError                         the peer broke the protocol
    |   +-- Disconnected                          the peer is gone
    |   +-- SocketPathError                       the path exists, is too long or is not ours
    +-- TimedOut                  (TimeoutError)  what was waited for did not come; the text has what is there instead
    +-- SaveError                                 state cannot be saved or restored; names the attribute
"""

from __future__ import annotations

import errno as _errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "BusMasterDisabled",
    "Conflict",
    "DeclarationError",
    "Disconnected",
    "DmaAborted",
    "DmaError",
    "DmaWouldDeadlock",
    "HypervisorError",
    "InvalidArgument",
    "MapLimit",
    "MappingPoisoned",
    "NoInstanceLeft",
    "NotFound",
    "NotMapped",
    "NotPermitted",
    "NotSupported",
    "PinLimit",
    "PluginConflict",
    "PluginError",
    "ProtectError",
    "ProtectorBusy",
    "ProtocolError",
    "SaveError",
    "ServiceUnavailable",
    "SocketPathError",
    "StateError",
    "TimedOut",
    "TransportError",
    "UmdevError",
]


class UmdevError(Exception):
    """Base of all; catch it to catch everything that umdev raises on purpose."""

    errno: int | None = _errno.EIO


class DeclarationError(UmdevError, TypeError):
    """A device model's class body is wrong."""

    errno = _errno.EINVAL


class InvalidArgument(UmdevError, ValueError):
    """A value is out of range or malformed."""

    errno = _errno.EINVAL


class StateError(UmdevError, RuntimeError):
    """The call does not fit the object's state; the text names the state."""

    errno = _errno.EBUSY


class NotFound(UmdevError, LookupError):
    """No such plugin, type, device or definition."""

    errno = _errno.ENOENT


class Conflict(UmdevError):
    """The name, UUID or resource is taken."""

    errno = _errno.EEXIST


class PluginConflict(Conflict):
    """Two distributions claim one plugin name; both are named."""


class NoInstanceLeft(Conflict):
    """Every instance of the type is in use."""

    errno = _errno.ENOSPC


class PluginError(UmdevError):
    """A plugin failed while it was imported, registered or called."""

    def __init__(self, plugin: str, hook: str, cause: BaseException) -> None:
        super().__init__(f"plugin {plugin} failed in {hook}: {type(cause).__name__}: {cause}")
        self.plugin = plugin
        self.hook = hook


class ServiceUnavailable(UmdevError):
    """Nobody offers the service for this attachment."""

    errno = _errno.EOPNOTSUPP

    def __init__(self, service: str, reasons: Sequence[tuple[str, str]]) -> None:
        said = "".join(f"\n  {plugin}: {reason}" for plugin, reason in reasons)
        super().__init__(f"{service} is not available here:{said or ' no installed plugin knows this attachment'}")
        self.service = service
        self.reasons = tuple(reasons)


class NotSupported(UmdevError):
    """This host, peer or version cannot do it; the text says what would."""

    errno = _errno.EOPNOTSUPP


class DmaError(UmdevError, OSError):
    """Guest memory cannot be reached. Nothing at or after `iova` was transferred; what lies before it may have been."""

    errno = _errno.EFAULT

    def __init__(self, text: str, iova: int = 0, length: int = 0) -> None:
        super().__init__(text)
        self.iova = iova
        self.length = length


class NotMapped(DmaError):
    """No DMA map covers the range."""


class NotPermitted(DmaError):
    """The DMA map forbids the direction."""

    errno = _errno.EACCES


class BusMasterDisabled(DmaError):
    """Command register bit 2 is clear, so the function must not start a transaction (PCI Local Bus 3.0, 6.2.2)."""

    errno = _errno.EPERM


class MappingPoisoned(DmaError):
    """The file behind the map shrank; the map reads as zeros from then on and takes no write."""


class DmaWouldDeadlock(DmaError):
    """Memory is reachable by message only, and the client may wait for who asked (a handler): use `after(0, ...)`."""

    errno = _errno.EDEADLK


class DmaAborted(DmaError):
    """Memory is reachable by message only, and a reset (or `end_work`) came while deferred work waited for it.

    All DMA by message of that work fails so from now on; the reset waits until the work has returned.
    """

    errno = _errno.ECANCELED


class MapLimit(UmdevError):
    """A client has as many DMA maps as it may, or all clients of the process together; the text has the number."""

    errno = _errno.ENOSPC


class PinLimit(UmdevError, OSError):
    """Pinning would exceed RLIMIT_MEMLOCK; the text says how to raise it."""

    errno = _errno.ENOMEM


class ProtectError(UmdevError, OSError):
    """Pages cannot be write-protected."""


class ProtectorBusy(ProtectError):
    """Another userfaultfd owns the memory (QEMU's post-copy or background snapshot, or a second protector)."""

    errno = _errno.EBUSY


class HypervisorError(UmdevError, OSError):
    """A hypervisor's interface failed; the text names its call and the likely cause."""

    call: str = ""


class TransportError(UmdevError, OSError):
    """A bus's socket or descriptor failed."""


class ProtocolError(TransportError):
    """The peer broke the protocol; the connection is not usable any more."""

    errno = _errno.EPROTO


class Disconnected(TransportError):
    """The peer is gone."""

    errno = _errno.ENOTCONN


class SocketPathError(TransportError):
    """The socket path exists, is too long for a unix socket, or lies in a folder that others can write."""

    errno = _errno.EADDRINUSE


class TimedOut(UmdevError, TimeoutError):
    """What was waited for did not come in time; the text has what is there instead."""

    errno = _errno.ETIMEDOUT


class SaveError(UmdevError):
    """State cannot be saved or restored; the text names the attribute or the version."""

    errno = _errno.EINVAL
