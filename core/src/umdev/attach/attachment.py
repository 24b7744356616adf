"""An attachment: one device on one bus, with the services that make it usable there."""

from __future__ import annotations

import contextlib
import enum
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import InvalidArgument, StateError
from ..pci.indexes import IrqIndex
from ..pci.interrupts import VectorState
from ..pci.reset import ResetKind
from ..plugins import plugins
from .doorbells import DoorbellWatch
from .services import BoundServices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..device import Device
    from ..device.dispatch import NativeDevice
    from ..driver import RegionInfo
    from ..memory.address_space import AddressSpace
    from ..pci.interrupts import InterruptPort
    from ..services import Area, Doorbell


class AttachmentState(enum.Enum):
    """detached -> attached -> running <-> quiesced -> detached, removed."""

    DETACHED = "detached"
    ATTACHED = "attached"
    RUNNING = "running"
    QUIESCED = "quiesced"
    REMOVED = "removed"


class Attachment:
    """Made by a bus driver, for a device that no other attachment holds.

    `hypervisor` names the plugin that offers category (b) services for this VM, if there is one. The state changes
    only by the methods below, from any thread, one at a time; a call that does not fit raises StateError and changes
    nothing, and so does one from a handler while another thread is in one of them.
    """

    def __init__(
        self, device: Device, bus: str, hypervisor: str | None = None, *, endpoint: object | None = None
    ) -> None:
        self.device = device
        self.bus = bus
        self.hypervisor = hypervisor
        self.endpoint = endpoint
        """The bus driver's own object for this attachment: its hooks find their state by it."""
        self.services = BoundServices(self)
        self.on_bar_moved: Callable[[int, int], None] | None = None
        """Called with (region index, address) under the device lock, for buses that place BARs themselves."""
        self._passed: frozenset[Area] | None = None
        self._bells = DoorbellWatch(self.native)
        self._unwatch: Callable[[], None] = lambda: None
        self._state = AttachmentState.DETACHED
        self._guard = threading.RLock()

    @property
    def state(self) -> AttachmentState:
        """Where the attachment is in its life."""
        return self._state

    @property
    def native(self) -> NativeDevice:
        """The C side of the device, for message loops."""
        return self.device.native

    @property
    def memory(self) -> AddressSpace:
        """The address space that the bus fills and the device's DMA sees."""
        return self.device.address_space

    @property
    def interrupts(self) -> InterruptPort:
        """The device's vectors, to connect eventfds to."""
        return self.device.interrupts

    @property
    def regions(self) -> dict[int, RegionInfo]:
        """Region of each VFIO index that the function has, with the areas that the bus passes through."""
        infos = self.device.region_infos
        if self._passed is not None:
            for index, info in infos.items():
                infos[index] = replace(info, areas=tuple(area for area in info.areas if area in self._passed))
        return infos

    @property
    def irq_counts(self) -> tuple[int, ...]:
        """Vectors of each VFIO index: INTx, MSI, MSI-X, ERR, REQ."""
        return tuple(self.interrupts.vectors(index) for index in IrqIndex)

    @property
    def doorbells(self) -> tuple[Doorbell, ...]:
        """What the driver may ring by an event instead of a trapped store, by region and offset."""
        regions = sorted(self.device.regions.items())
        return tuple(doorbell for _, region in regions for doorbell in region.doorbells())

    def connect_doorbell(self, doorbell: Doorbell) -> int:
        """An eventfd whose signal is a posted write of the doorbell's value (0 if it has none) by the driver.

        All that holds for a write holds for it: closed gates, lock, trace, counters. Signals that come together are one
        write; after the last one a write always begins. The descriptor is the attachment's until `detach`, and the same
        one each time; hand it to whoever catches the driver's stores.

        Raises: StateError; InvalidArgument if it is none of `doorbells`; TransportError when no descriptor is left.
        """
        with self._changing("connect_doorbell"):
            self._expect(
                "connect_doorbell", AttachmentState.ATTACHED, AttachmentState.RUNNING, AttachmentState.QUIESCED
            )
            if doorbell not in self.doorbells:
                raise InvalidArgument(f"{self.device} has no such doorbell: {doorbell}")
            return self._bells.connect(doorbell)

    def attach(self) -> None:
        """Bind the services that every driver needs and announce the attachment.

        Maps and eventfds that somebody left in the device since it was detached are released first: no driver gets
        what was another's. After a failure the device is detached again and nothing is bound.

        Raises: StateError; ServiceUnavailable if the bus can't trap a region or deliver interrupts; PluginError.
        """
        with self._changing("attach"):
            self._expect("attach", AttachmentState.DETACHED)
            self.device.claim_attachment(self)
            try:
                self.memory.unmap_all()
                self.interrupts.disconnect_all()
                for index in self.regions:
                    self.services.trap(index)
                self._passed = self.services.passthroughs()
                self.services.interrupts()
                self.services.announce_mapper()
                self._unwatch = self.memory.on_change(self._memory_changed)
                self._state = AttachmentState.ATTACHED
                plugins().tell("umdev_attached", attachment=self)
            except BaseException:
                self._release()
                raise

    def run(self) -> None:
        """Let the driver in and time pass."""
        with self._changing("run"):
            self._expect("run", AttachmentState.ATTACHED)
            self.native.set_gone(False)
            self.device.clock.resume()
            self._state = AttachmentState.RUNNING

    def quiesce(self) -> None:
        """Stop time and deferred work: the device does nothing by itself any more.

        When it returns no work and no earlier access is being done (but the caller's). Accesses and rings are answered
        as ever, since firmware, debuggers and userspace drivers have them while no processor runs: whoever pauses a VM
        holds its processors first, as `umdev_kvm.Machine.pause` does, and state is still for as long as nobody comes.
        """
        with self._changing("quiesce"):
            self._expect("quiesce", AttachmentState.RUNNING)
            self.device.clock.pause()
            if not self.native.held:
                with self.native.locked():  # waits for the handler or work item that is running
                    self.native.settle(cancel=False)
            self._state = AttachmentState.QUIESCED

    def resume(self) -> None:
        """Undo `quiesce`."""
        with self._changing("resume"):
            self._expect("resume", AttachmentState.QUIESCED)
            self.device.clock.resume()
            self._state = AttachmentState.RUNNING

    def reset(self, kind: ResetKind) -> None:
        """Reset the device; see `Device.reset`."""
        with self._changing("reset"):
            self._expect("reset", AttachmentState.ATTACHED, AttachmentState.RUNNING, AttachmentState.QUIESCED)
        self.device.reset(kind)

    def detach(self, kind: ResetKind | None = ResetKind.CLIENT_LOST) -> None:
        """Take the driver's side away: every map, pin, view, eventfd and service of it is released.

        `kind` is the reset that the device gets; None keeps its state for the next driver. What a model or an add-on
        raises passes through when that is done.
        """
        with self._changing("detach"):
            self._expect("detach", AttachmentState.ATTACHED, AttachmentState.RUNNING, AttachmentState.QUIESCED)
            self.native.set_gone(True)
            with contextlib.ExitStack() as always:
                always.callback(plugins().tell, "umdev_detached", attachment=self)
                always.callback(self._release)
                if kind is not None:
                    self.device.reset(kind)

    def remove(self) -> None:
        """Detach if need be, and close the device. May be called twice.

        What a model or an add-on raises passes through when that is done.

        Raises: StateError from the device's own handlers and work: it is detached then.
        """
        with self._changing("remove"):
            if self._state is AttachmentState.REMOVED:
                return
            try:
                with contextlib.ExitStack() as always:
                    always.callback(self.device.close)
                    if self._state is not AttachmentState.DETACHED:
                        self.detach()
            finally:
                if self.device.closed:
                    self._state = AttachmentState.REMOVED

    @contextlib.contextmanager
    def _changing(self, call: str) -> Iterator[None]:
        """Who changes the state may wait for the device lock, so who holds that lock can't wait for its turn."""
        if not self._guard.acquire(blocking=not self.native.held):
            raise StateError(f"{call}(): another thread is changing the attachment, and this one holds the device lock")
        try:
            yield
        finally:
            self._guard.release()

    def _memory_changed(self) -> None:
        plugins().tell("umdev_memory_changed", attachment=self)

    def _release(self) -> None:
        self._bells.close()
        self.memory.set_filler(None)
        try:
            self.memory.unmap_all()
        finally:  # a model's exception that ends the process passes, and all else goes all the same
            self._forget()

    def _forget(self) -> None:
        self._unwatch()
        self.interrupts.disconnect_all()
        self.interrupts.set_policy(VectorState.CORE)
        self.services.close()
        self.device.release_attachment(self)
        # A bus may attach the same device again later; what was bound or refused then says nothing about now.
        self.services = BoundServices(self)
        self._bells = DoorbellWatch(self.native)
        self._passed = None
        self._state = AttachmentState.DETACHED

    def _expect(self, call: str, *states: AttachmentState) -> None:
        if self._state not in states:
            wanted = " or ".join(state.value for state in states)
            raise StateError(
                f"{call}() needs an attachment that is {wanted}; {self.device} on {self.bus} is {self._state.value}"
            )
