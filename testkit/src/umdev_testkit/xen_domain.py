"""Bare domains for payloads, built without firmware, `xl` or xenstore. Runs inside the Xen test bed only.

A payload of `umdev_testkit.payloads` runs here as it does in a `umdev_kvm.Machine`: 32-bit flat mode, AX and DI hold
the processor's number, a descriptor table with code 0x10 and data 0x18, `exit VALUE` ends the run.
"""

from __future__ import annotations

import errno
import struct
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from umdev.errors import InvalidArgument, NotMapped, StateError

from umdev_testkit.errors import GuestDied, GuestTimedOut
from umdev_testkit.xen_helper import check, load

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self

__all__ = ["EXIT_PORT", "PAGE", "DomainState", "ShutdownReason", "XenDomain", "domain_state", "domains"]

PAGE = 4096
EXIT_PORT = 0xF4
"""Four ports that the domain's own small device model takes; all others are free for the device under test."""
ENTRY = 0x1_0000
_GDT = 0x500
_STACKS = 0x9_0000
# Null, unused, code and data over 4 GiB (AMD64 APM volume 2, 4.8).
_DESCRIPTORS = struct.pack("<QQQQ", 0, 0, 0x00CF9B00_0000FFFF, 0x00CF9300_0000FFFF)
_ROOM = 64 << 20  # bytes that may be populated beyond what the domain begins with
_STEP = 0.2  # seconds between two looks whether the domain still lives
_GLANCE = 0.01  # seconds between two looks whether it has shut down
_MOST_DOMAINS = 1024


class ShutdownReason(IntEnum):
    """Why a domain has stopped (xen/sched.h, SHUTDOWN_*)."""

    POWEROFF = 0
    REBOOT = 1
    SUSPEND = 2
    CRASH = 3
    WATCHDOG = 4


@dataclass(frozen=True)
class DomainState:
    """How a domain is: whether there is one of that number; destroyed, with pages that somebody has mapped still; why
    it has shut down, if it has; how many pages it has.
    """

    exists: bool
    dying: bool
    shutdown: ShutdownReason | None
    pages: int


class XenDomain:
    """A paused HVM or PVH domain with memory and no code. A context manager; closing destroys it.

    `domid` is its number; `recreate` gives another. Not for use by several threads at once, but `run` lets other
    threads run. Its handles stop working when this process restricts itself to a domain (xentoolcore_restrict_all): a
    device that does belongs in a process of its own.
    """

    def __init__(
        self,
        *,
        memory: int | Sequence[tuple[int, int]] = 4 << 20,
        vcpus: int = 1,
        pvh: bool = False,
        counter: tuple[int, int] = (0, 0),
    ) -> None:
        """Build the domain.

        `memory`: bytes from address 0 on, or pairs of address and bytes; whole pages. `pvh`: as Linux is run today,
        with no interrupt controller but local APICs; else HVM with all that Xen emulates. `counter`: address and size
        of a memory-mapped range whose reads answer how many came before, for measurements.

        Raises: NotSupported outside the test bed; InvalidArgument for parts of pages; HypervisorError where Xen
        refuses, memory among the reasons.
        """
        self.vcpus = vcpus
        self.pvh = pvh
        self.counter = counter
        self.ranges = [(0, memory)] if isinstance(memory, int) else list(memory)
        if any(part % PAGE for pair in self.ranges for part in pair):
            raise InvalidArgument(f"memory comes in pages of {PAGE} bytes, not {self.ranges}")
        self._ffi, self._lib = load()
        self._payload: tuple[bytes, int, int] | None = None
        self._model: Any = None
        self._domid: int | None = None
        self._handle = ExitStack()
        self._xen = self._handle.enter_context(_opened())
        try:
            self._create()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def domid(self) -> int:
        """The domain's number. Raises: StateError once it is destroyed."""
        if self._domid is None:
            raise StateError("the domain is destroyed: recreate() builds it anew")
        return self._domid

    def load(self, code: bytes, address: int = ENTRY, *, second: int = 0) -> None:
        """Put code into memory and point every processor at its first byte; SI holds `second`.

        Processors other than the first begin as soon as the domain is unpaused. `recreate` loads it again.

        Raises: NotMapped where the domain has no memory there; HypervisorError.
        """
        self.write(address, code)
        self.write(_GDT, _DESCRIPTORS)
        done = self._lib.umdev_xen_domain_enter(self._xen, self.domid, self.vcpus, address, second, _STACKS, _GDT)
        check(done, "xc_domain_hvm_setcontext")
        self._payload = code, address, second

    def run(self, timeout: float) -> int:
        """Let the domain run until it says `exit VALUE`, and return the value; call it again to run on.

        The processor that said so waits in its `out`; others run on. The domain's small device model is there from the
        first call on.

        Raises:
            GuestTimedOut: it has not ended after `timeout` seconds; it runs on.
            GuestDied: it has shut down or was destroyed.
        """
        self.arm()
        value = self._ffi.new("uint32_t *")
        deadline = time.monotonic() + timeout
        self.unpause()
        while True:
            done = self._lib.umdev_xen_model_run(self._model, int(_STEP * 1000), value)
            if done == 0:
                return int(value[0])
            if done not in (-errno.ETIMEDOUT, -errno.EINTR):
                check(done, "the event channels")
            if (reason := self.shutdown_reason) is not None:
                raise GuestDied(f"domain {self.domid} has shut down: {reason.name.lower()}")
            if time.monotonic() >= deadline:
                raise GuestTimedOut(f"domain {self.domid} has not said `exit` within {timeout:g} s")

    def arm(self) -> None:
        """Start the domain's small device model, unless it is there: `run` does it. Raises: HypervisorError."""
        if self._model is None:
            error = self._ffi.new("int *")
            model = self._lib.umdev_xen_model_new(self.domid, self.vcpus, EXIT_PORT, *self.counter, error)
            if model == self._ffi.NULL:
                check(error[0], "the device model of a bare domain")
            self._model = model

    def unpause(self) -> None:
        """Let the processors run. Calls nest with `pause`; one too many is harmless. Raises: HypervisorError."""
        if self._paused:
            check(self._lib.umdev_xen_domain_unpause(self._xen, self.domid), "xc_domain_unpause")
            self._paused -= 1

    def pause(self) -> None:
        """Stop the processors; when it returns none runs. Raises: HypervisorError."""
        check(self._lib.umdev_xen_domain_pause(self._xen, self.domid), "xc_domain_pause")
        self._paused += 1

    def read(self, address: int, length: int) -> bytes:
        """Return guest-physical memory. Raises: NotMapped where there is none."""
        buffer = self._ffi.new("char[]", length)
        self._copied(self._lib.umdev_xen_domain_read(self._xen, self.domid, address, buffer, length), address, length)
        return bytes(self._ffi.buffer(buffer, length))

    def write(self, address: int, data: bytes) -> None:
        """Store into guest-physical memory. Raises: NotMapped where there is none."""
        done = self._lib.umdev_xen_domain_write(self._xen, self.domid, address, self._ffi.from_buffer(data), len(data))
        self._copied(done, address, len(data))

    def populate(self, address: int, length: int) -> None:
        """Give the domain memory at `address`, zeros; whole pages, at most 64 MiB in all. `recreate` forgets it.

        Raises: InvalidArgument for parts of pages; HypervisorError.
        """
        if address % PAGE or length % PAGE:
            raise InvalidArgument(f"memory comes in pages of {PAGE} bytes, not {length:#x} at {address:#x}")
        done = self._lib.umdev_xen_domain_populate(self._xen, self.domid, address // PAGE, length // PAGE)
        check(done, f"xc_domain_populate_physmap_exact at {address:#x}")

    @property
    def shutdown_reason(self) -> ShutdownReason | None:
        """Why it has shut down; None while it lives.

        Raises: GuestDied when there is no such domain any more.
        """
        state = _state(self._xen, self.domid)
        if not state.exists or state.dying:
            raise GuestDied(f"domain {self.domid} was destroyed")
        return state.shutdown

    def shutdown(self, reason: ShutdownReason = ShutdownReason.POWEROFF) -> None:
        """Order it to stop, as if it had done so itself: it stays, with its memory, until it is destroyed.

        It stops once no processor waits for a device's answer: see `wait_shutdown`. Raises: HypervisorError.
        """
        check(self._lib.umdev_xen_domain_shutdown(self._xen, self.domid, int(reason)), "xc_domain_shutdown")
        if self._model is not None:
            self._lib.umdev_xen_model_release(self._model)

    def wait_shutdown(self, timeout: float) -> ShutdownReason:
        """Wait until it has shut down, and return why.

        Raises: GuestTimedOut when it has not after `timeout` seconds; GuestDied when it was destroyed.
        """
        deadline = time.monotonic() + timeout
        while (reason := self.shutdown_reason) is None:
            if time.monotonic() >= deadline:
                raise GuestTimedOut(f"domain {self.domid} has not shut down within {timeout:g} s")
            time.sleep(_GLANCE)
        return reason

    def destroy(self) -> None:
        """Destroy the domain, if it isn't yet. What others have mapped of it keeps a zombie: see `domains`."""
        if self._model is not None:
            self._lib.umdev_xen_model_free(self._model)
            self._model = None
        if self._domid is not None:
            domid, self._domid = self._domid, None
            if _state(self._xen, domid).exists:
                check(self._lib.umdev_xen_domain_destroy(self._xen, domid), "xc_domain_destroy")

    def recreate(self) -> int:
        """Destroy it and build it anew, as a reboot does: same memory (zeros) and payload; return the new number."""
        self.destroy()
        self._create()
        if self._payload:
            code, address, second = self._payload
            self.load(code, address, second=second)
        return self.domid

    def close(self) -> None:
        """Destroy the domain and release everything; may be called twice."""
        with self._handle:
            self.destroy()

    def _create(self) -> None:
        number = self._ffi.new("uint32_t *")
        most = (sum(size for _, size in self.ranges) + _ROOM) // 1024
        check(self._lib.umdev_xen_domain_create(self._xen, self.vcpus, self.pvh, most, number), "xc_domain_create")
        self._domid = int(number[0])
        self._paused = 1
        for address, size in self.ranges:
            self.populate(address, size)

    def _copied(self, done: int, address: int, length: int) -> None:
        if done:
            raise NotMapped(f"domain {self.domid} has no memory for {length:#x} bytes at {address:#x}")


def domains() -> list[int]:
    """Return the numbers of all domains, dom0's among them, and zombies, which somebody has pages mapped of.

    Raises: NotSupported outside the test bed; HypervisorError.
    """
    ffi, lib = load()
    count, numbers = ffi.new("uint32_t *"), ffi.new("uint32_t[]", _MOST_DOMAINS)
    with _opened() as xen:
        check(lib.umdev_xen_domain_list(xen, _MOST_DOMAINS, numbers, count), "xc_domain_getinfo")
    return [int(number) for number in numbers[0 : count[0]]]


def domain_state(domid: int) -> DomainState:
    """Tell how any domain is. Raises: NotSupported outside the test bed; HypervisorError."""
    with _opened() as xen:
        return _state(xen, domid)


def _state(xen: Any, domid: int) -> DomainState:
    ffi, lib = load()
    state = ffi.new("umdev_xen_state *")
    check(lib.umdev_xen_domain_state(xen, domid, state), "xc_domain_getinfo")
    reason = ShutdownReason(state.reason) if state.shutdown else None
    return DomainState(bool(state.exists), bool(state.dying), reason, int(state.pages))


@contextmanager
def _opened() -> Iterator[Any]:
    """A handle of the helper library."""
    ffi, lib = load()
    error = ffi.new("int *")
    xen = lib.umdev_xen_open(error)
    if xen == ffi.NULL:
        check(error[0], "xc_interface_open")
    try:
        yield xen
    finally:
        lib.umdev_xen_close(xen)
