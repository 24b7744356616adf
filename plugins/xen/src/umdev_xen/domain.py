"""`Domain`: the devices that this process gives to one domain of Xen, from its ioreq server to its end."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING

from umdev.addresses import PAGE_SIZE
from umdev.bus import Attachment, AttachmentState, IrqIndex, RegionIndex
from umdev.errors import HypervisorError, InvalidArgument, NotSupported, StateError

from . import native as loops
from .bridge import Bridge
from .emulate import Emulator
from .handles import Handles
from .helper import Helper
from .libraries import DEVICE_MODEL, EVENT_CHANNEL
from .memory import CACHE
from .native import Native, NativeVcpu
from .passthrough import PassedWindow, PassedWindows, Shelf
from .server import IoreqServer
from .toolstack import DomainType, domain_type, has_device_model
from .track import DirtyTracker

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from umdev.bus import Area
    from umdev.device import Device

    from .memory import ForeignMapper

__all__ = ["Domain"]

log = logging.getLogger("umdev.xen")

_INTERRUPT_LINE = 0x3C
_NUMBERS = range(0x7FF0)
"""Of domains: DOMID_FIRST_RESERVED (xen/xen.h)."""
PATIENCE = 500
"""Milliseconds without a request after which the first processor's thread asks whether the domain is still there: Xen
tells nobody but xenstored, and not of domains that xenstored does not know."""
JOIN_TIMEOUT = 10.0
"""Seconds for a processor's thread to come back once it is told: the handler that runs then must return."""


class Domain:
    """Devices in the PCI slots of a domain. Closing it detaches them and leaves them open; so does the domain's end.

    One thread for each of the domain's processors serves its accesses, in C. Any thread may call anything here.
    A paused domain's devices see time pass: Xen does not tell of pauses.
    """

    def __init__(
        self,
        domid: int,
        *,
        restrict: bool = True,
        host_bridge: bool | None = None,
        intx: bool | None = None,
        cache: int = CACHE,
        helper: Helper | None = None,
    ) -> None:
        """Attach to domain `domid`, best while it is paused.

        `restrict`: give up this process's access to any other domain first (see `Handles`). `host_bridge`: be the PCI
        host bridge 00:00.0; None: where the domain has none, which is PVH. `intx`: whether the domain has interrupt
        controllers for INTx; None asks the toolstack, and takes a domain that it knows nothing of for HVM. `cache`:
        bytes of guest memory that each device keeps mapped. `helper`: gives the domain memory for windows that are
        passed through; closed with the domain. None starts one when a device has a window, which takes the user's
        rights to do so.

        Raises: InvalidArgument (no domain can have that number), NotSupported (no Xen's libraries, or too old),
        HypervisorError (no Xen here, no such domain), Conflict.
        """
        if domid not in _NUMBERS:
            raise InvalidArgument(f"domain {domid}: they have numbers 0 to {_NUMBERS[-1]}, which xl list shows")
        self.domid = domid
        self.type = DomainType.of(intx) if intx is not None else domain_type(domid)
        """What the domain can deliver; read before the process is restricted."""
        self.host_bridge = self.type is DomainType.PVH if host_bridge is None else host_bridge
        """Whether this process is the domain's PCI host bridge."""
        self.cache = cache
        self.reason: str | None = None
        """Why it has ended, or is ending, once it does."""
        self._ended = threading.Event()
        self._guard = threading.RLock()  # of plugging and closing; taken before any other
        self._threads: list[threading.Thread] = []
        self._mappers: dict[Attachment, ForeignMapper] = {}
        self._windows: dict[Attachment, list[PassedWindow]] = {}
        self._shelf = Shelf()
        self._helper = helper or Helper(domid)
        others = has_device_model(domid)  # asked before the process is restricted, too
        self._handles = Handles(domid, restrict=restrict)
        try:
            self.server = IoreqServer(self._handles)
            """Xen's side."""
            try:
                self._native = Native(self._handles, self.server.page)
            except BaseException:
                self.server.close()
                raise
            try:
                self._vcpus = [
                    NativeVcpu(self._native, index, channel, EVENT_CHANNEL.call("xenevtchn_fd", channel), port)
                    for index, (channel, port) in enumerate(zip(self._handles.channels, self.server.ports, strict=True))
                ]
                self.bridge = Bridge(self._native, self.server, host_bridge=self.host_bridge, others=others)
                """What is plugged, and where it answers."""
                self.emulator = Emulator(domid, self._native, self.server)
                """Pages whose stores come here."""
                self.tracker = DirtyTracker(self._handles, self._native)
                """Pages whose stores Xen notes down."""
            except BaseException:
                self.server.close()
                self._native.free()
                raise
        except BaseException:
            self._handles.close()
            raise
        try:
            for index, vcpu in enumerate(self._vcpus):
                name = f"xen domain {domid} processor {index}"
                thread = threading.Thread(target=self._serve, args=(index, vcpu), name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
        except BaseException:
            self._end("a processor's thread could not be started")
            raise

    def __str__(self) -> str:
        return f"domain {self.domid}"

    @property
    def handles(self) -> Handles:
        """The library handles."""
        return self._handles

    @property
    def native(self) -> Native:
        """The C loop."""
        return self._native

    @property
    def vcpus(self) -> int:
        """Virtual processors that the domain may have."""
        return self._handles.vcpus

    @property
    def restricted(self) -> bool:
        """Whether this process can touch no other domain."""
        return self._handles.restricted

    @property
    def ended(self) -> bool:
        """Whether it has been closed, or the domain has gone; `reason` says which."""
        return self._ended.is_set()

    @property
    def counters(self) -> dict[str, int]:
        """Requests and what became of them (`umdev_xen_counters`), and the bridge's. Raises: StateError (ended)."""
        with self._guard:
            self._expect_open("counters")
            return {
                **self._native.counters(),
                "bad_placements": self.bridge.bad_placements,
                "refusals": self.bridge.refusals,
            }

    def plug(self, device: Device, *, slot: int | None = None, polled: bool = False) -> int:
        """Attach a device and put it into a PCI slot; returns the slot. None: the lowest free one, or the highest in an
        HVM domain of the toolstack's, where QEMU has the low ones.

        `polled`: its driver needs no interrupt, so one that the domain can't deliver is no reason to refuse.

        Raises: NotSupported (its only interrupt is INTx, and the domain has no controller for it), StateError,
        Conflict, InvalidArgument, HypervisorError, ServiceUnavailable.
        """
        with self._guard:
            self._expect_open("plug")
            number = self.bridge.free_slot(slot)
            intx = self.type.delivers_intx
            if not intx and not polled:
                _expect_messages(device, self)
            attachment = Attachment(device, "xen", "xen", endpoint=self)
            try:
                attachment.attach()
            except BaseException:
                self._windows.pop(attachment, None)
                raise
            try:
                attachment.run()
                if not intx and device.interrupts.pin:
                    # What firmware writes where the pin leads nowhere (PCI Local Bus 3.0, 6.2.4): drivers then know.
                    attachment.native.write(RegionIndex.CONFIG, _INTERRUPT_LINE, b"\xff")
                windows = self._windows.pop(attachment, [])
                self.bridge.plug(attachment, number, PassedWindows(windows) if windows else None, intx=intx)
            except BaseException:
                self._windows.pop(attachment, None)
                attachment.detach()
                raise
            log.info("%s: %s in slot %d", self, device, number)
            return number

    def unplug(self, slot: int) -> None:
        """Take a function out; its device is reset and free again. Raises: NotFound, StateError."""
        with self._guard:
            self._expect_open("unplug")
            self._release(slot)

    def inject(self, address: int, data: int) -> None:
        """Send a message to the domain's interrupt controllers, as a function would. Raises: HypervisorError."""
        DEVICE_MODEL.call("xendevicemodel_inject_msi", self._handles.device_model, self.domid, address, data)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end, seconds at most; whether it has come."""
        return self._ended.wait(timeout)

    def close(self) -> None:
        """Detach every device, drop every mapping, give the ioreq server back. May be called twice.

        What a model raises that ends a process or a test passes through when that is done.

        Raises: StateError (a handler does not return, or it is a handler that calls).
        """
        if threading.current_thread() in self._threads:
            raise StateError(f"{self}: close() waits for handlers, and this is one: let another thread do it")
        self._end("closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # For the hooks.

    def adopt_mapper(self, attachment: Attachment, mapper: ForeignMapper) -> None:
        """The device's mappings go when the guest takes memory back."""
        self._mappers[attachment] = mapper

    def mapper(self, attachment: Attachment) -> ForeignMapper | None:
        """What maps guest memory for a device of this domain."""
        return self._mappers.get(attachment)

    def pass_window(self, attachment: Attachment, area: Area) -> PassedWindow:
        """Pages of the domain's own in place of a window. Raises: HypervisorError, NotSupported."""
        window = PassedWindow(self._handles, self._helper, attachment, area, self._shelf.take(area.length // PAGE_SIZE))
        window.open()
        self._windows.setdefault(attachment, []).append(window)
        return window

    # Inside.

    def _serve(self, index: int, vcpu: NativeVcpu) -> None:
        """A processor's thread."""
        if self.reason is not None:  # Ctrl-C came while it was being started, and nobody waits for it
            return
        patience = PATIENCE if index == 0 else -1
        while (kind := vcpu.run(patience)) != loops.STOPPED:
            try:
                if kind == loops.CONFIG:
                    self.bridge.synchronise(int(vcpu.event.slot))
                elif kind == loops.INVALIDATE:
                    self._flush()
                elif kind == loops.IDLE:
                    if self.server.gone:
                        self._end_soon(f"{self} has gone")
                        return
                elif kind == loops.STORE:
                    event = vcpu.event
                    self.emulator.stored(int(event.address), int(event.value), int(event.length))
                else:
                    code = int(vcpu.event.detail)
                    self._end_soon(f"the event channel of processor {index} failed with errno {code}")
                    return
            except BaseException:  # a model or plugin may raise anything; the guest's processor goes on
                log.exception("%s: a request of processor %d", self, index)

    def _flush(self) -> None:
        """The guest has given memory back."""
        with contextlib.ExitStack() as always:  # last first, whatever a model raises of it
            always.callback(self.tracker.renew)
            always.callback(self.emulator.renew)
            for mapper in list(self._mappers.values()):
                always.callback(mapper.flush)

    def _end_soon(self, reason: str) -> None:
        """From a processor's thread, which the end waits for."""
        log.info("%s", reason)
        threading.Thread(target=self._end_at_last, args=(reason,), name=f"end of xen {self}", daemon=True).start()

    def _end_at_last(self, reason: str) -> None:
        while True:
            try:
                self._end(reason)
            except StateError as error:
                log.error("%s; it is waited for", error)  # noqa: TRY400 - no fault of this thread's
            except BaseException:  # each step has been taken all the same
                log.exception("%s: a model or plugin at the end", self)
                return
            else:
                return

    def _end(self, reason: str) -> None:
        with self._guard:
            if self._ended.is_set():
                return
            self.reason = self.reason or reason
            self._native.stop()
            deadline = time.monotonic() + JOIN_TIMEOUT
            begun = [thread for thread in self._threads if thread.is_alive()]  # another sees the reason as it begins
            for thread in begun:
                thread.join(max(0.0, deadline - time.monotonic()))
            if any(thread.is_alive() for thread in begun):
                raise StateError(f"{self}: a device's handler has not returned for {JOIN_TIMEOUT} s")
            with contextlib.ExitStack() as always:  # last first, whatever a model raises of it
                always.callback(self._ended.set)
                always.callback(self._helper.close)
                always.callback(self._handles.close)
                always.callback(self._native.free)
                always.callback(self.server.close)
                always.callback(self.emulator.close)
                for plugged in self.bridge.functions:
                    always.callback(self._let_go, plugged.slot)

    def _let_go(self, slot: int) -> None:
        with contextlib.suppress(HypervisorError):
            self._release(slot)

    def _release(self, slot: int) -> None:
        plugged = self.bridge.unplug(slot)
        try:
            if plugged.attachment.state is not AttachmentState.DETACHED:
                plugged.attachment.detach()
        except Exception:  # detaching finishes whatever models and add-ons raise
            log.exception("%s: a plugin failed while slot %d was emptied", self, slot)
        finally:
            self._mappers.pop(plugged.attachment, None)

    def _expect_open(self, call: str) -> None:
        if self._ended.is_set():
            raise StateError(f"{call}() needs an open domain; {self} has ended: {self.reason}")


def _expect_messages(device: Device, domain: Domain) -> None:
    port = device.interrupts
    if port.pin and not port.vectors(IrqIndex.MSI) and not port.vectors(IrqIndex.MSIX):
        raise NotSupported(
            f"{device} interrupts by INTx alone, which {domain} ({domain.type.value}) has no controller for: give the "
            "model MSI or MSI-X, use an HVM domain, or plug it polled (--polled) for a driver that needs no interrupt"
        )
