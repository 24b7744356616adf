"""`Machine`: memory, processors, a host bridge with functions in its slots, and the time that a run may take."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import threading
import time
import warnings
from typing import TYPE_CHECKING

from umdev.bus import Attachment, AttachmentState, ResetKind
from umdev.errors import InvalidArgument, NotSupported, StateError

from . import payload as payloads
from ._fast import ffi, lib
from .bridge import Bridge, covers_table
from .firmware import Firmware
from .processors import Processors
from .protect_machine import MachineProtection
from .ram import Ram
from .slots import STOP_SECONDS, MemorySlots
from .vm import CAP_PRE_FAULT_MEMORY, Vm, check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from umdev.device import Device

    from .bridge import Plugged
    from .outcome import Outcome
    from .payload import Mode
    from .posted import Posted

log = logging.getLogger("umdev.kvm")

MEMORY = 16 << 20
"""Bytes of memory unless said otherwise. Pages that nobody touches cost nothing."""

CONSOLE_LIMIT = 16 << 20
"""Bytes that `Machine.console_output` keeps; what the guest sends after them is dropped."""


class Machine:
    """A virtual machine of this process. Closing it detaches its devices and leaves them open.

    One thread makes, loads, runs and resets it; `stop`, `pause`, `resume`, `send`, `close` and the properties are for
    any thread. A run ends with an `Outcome`; what KVM itself can't go on from is a HypervisorError, and so is every
    failed call of the kernel. Devices see time pass while the machine runs and is not paused.

    Processors are interrupted by a real-time signal, SIGRTMAX-3 or the next lower one that the program has no use for;
    leave its handler alone while a machine runs.

    In a child that the process forks it can be closed; what needs its processors is a StateError there.
    """

    _closed = True  # until it is made

    def __init__(self, *, memory: int = MEMORY, vcpus: int = 1, console: int | None = None) -> None:
        """`memory` in bytes; `console`: a descriptor that the serial port writes to, else `console_output` has it.

        Raises: NotSupported without a usable /dev/kvm; InvalidArgument; HypervisorError.
        """
        if not 1 <= vcpus <= 64:
            raise InvalidArgument(f"a machine has 1 to 64 processors, not {vcpus}")
        self.vcpus = vcpus
        self._process = os.getpid()
        self._pauses = 0
        self._whole = True  # no reset has failed half-way
        self._loader: Callable[[], None] | None = None
        self._guard = threading.RLock()
        self._using = threading.Lock()  # who uses kernel objects that a reset replaces and `close` frees; a leaf
        with contextlib.ExitStack() as failed:
            self.ram = Ram(memory)
            """The machine's memory."""
            failed.callback(self.ram.close)
            self._own_console = os.memfd_create("umdev-console", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            failed.callback(os.close, self._own_console)
            self._bounded_console = console is None
            self._console = _duplicate(self._own_console if console is None else console)
            failed.callback(os.close, self._console)
            self._vm = Vm(self._console, vcpus, self._console_room)
            failed.callback(self._vm.close)
            self.slots = MemorySlots(self._vm)
            """The memory slots: `slots.batch()` changes them with every processor out of the guest."""
            self.bridge = Bridge(self.slots, [(part.guest, part.end) for part in self.ram.parts])
            """The PCI host bridge: what is plugged and where it answers."""
            self.firmware = Firmware(self)
            self.protection = MachineProtection(self)
            """Write-protection of the machine's memory, for the hook that models' wishes come through."""
            self._processors = Processors(self)
            for part in self.ram.parts:
                self.slots.add(part.guest, part.length, part.host)
            self.bridge.rebuild(self._vm)
            failed.pop_all()
        self._closed = False

    # Building.

    @property
    def vm(self) -> Vm:
        """The kernel's objects; others after a reset. Raises: StateError (closed, a forked child)."""
        self._expect_open()
        return self._vm

    def plug(
        self,
        device: Device,
        *,
        slot: int | None = None,
        posted: Sequence[Posted] = (),
        place: bool = True,
    ) -> int:
        """Attach a device and put it into a PCI slot, the lowest free one unless `slot` says; returns the slot.

        `place`: give its BARs addresses, as firmware does, decoding off. `posted`: registers whose stores may wait for
        other accesses. Doorbells that the device declares become eventfds. Not while the machine runs.

        Raises: StateError (running, closed, attached elsewhere), Conflict, InvalidArgument, NotSupported (no addresses
        left for its BARs), HypervisorError. The device is free then.
        """
        plugged = self.attach(device, slot, posted, interrupts=True, endpoint=self)
        if place:
            try:
                self.firmware.place(plugged.attachment)
                self.bridge.synchronise(plugged.slot)
            except BaseException:
                self.unplug(plugged.slot)
                raise
        return plugged.slot

    def attach(
        self,
        device: Device,
        slot: int | None,
        posted: Sequence[Posted],
        *,
        interrupts: bool,
        endpoint: object,
    ) -> Plugged:
        """For `plug` and the bus's driver view: the attachment, quiesced, in its slot."""
        self._expect_idle("plug")
        number = self.bridge.free_slot(slot)
        for zone in posted:
            bar = device.config.bars.get(zone.region)
            if bar is None or bar.kind == "io" or not 0 <= zone.offset < zone.offset + zone.length <= bar.size:
                raise InvalidArgument(f"{zone} is no part of a memory BAR of {device}")
            if covers_table(device, zone):
                raise InvalidArgument(f"{zone} covers the MSI-X table of {device}, whose stores can't wait")
        attachment = Attachment(device, "kvm", "kvm", endpoint=endpoint)
        attachment.attach()
        try:
            for part in self.ram.parts:
                attachment.memory.map(part.guest, part.length, descriptor=part.file.descriptor, offset=part.offset)
            attachment.run()
            attachment.quiesce()
            return self.bridge.plug(attachment, number, posted, interrupts=interrupts)
        except BaseException:
            attachment.detach()
            raise

    def unplug(self, slot: int) -> None:
        """Take a function out; its device is reset, and free again as its addresses are. Not while the machine runs.

        Raises: NotFound, StateError.
        """
        self._expect_idle("unplug")
        plugged = self.bridge.unplug(slot)
        plugged.attachment.detach()

    def add_memory(self, size: int) -> int:
        """More memory, above 4 GiB, for processors and devices at once; returns its guest address. Any time.

        Raises: InvalidArgument, HypervisorError.
        """
        vm = self.vm
        part = self.ram.add(size)
        try:
            self.bridge.add_memory(part.guest, part.end)
            with self.slots.batch() as batch:
                batch.add(part.guest, part.length, part.host)
        except BaseException:
            self.ram.drop(part)
            self.bridge.remove_memory(part.guest, part.end)
            raise
        for plugged in self.bridge.functions:
            plugged.attachment.memory.map(part.guest, size, descriptor=part.file.descriptor)
        log.debug("memory added at %#x: %#x bytes, machine %d", part.guest, size, vm.descriptor)
        return part.guest

    # Loading.

    def load(self, payload: bytes, mode: Mode = "protected", *, address: int | None = None, second: int = 0) -> None:
        """Put code at `address` and point every processor at its first byte.

        "real" has data segments of 4 GiB; "protected" is flat 32-bit; "long" maps 4 GiB one to one. AX and DI hold the
        processor's number, SI `second`; each has a stack of 4 KiB. `reset` loads it again.

        The accesses that the last run ended in are finished before, and ends that no run has told are forgotten. Then
        processors have the control, segment and table registers of a reset, but for what the mode says, and nothing on
        its way in. Local APICs are at the place and in the mode of a reset; otherwise interrupt controllers, devices
        and memory stay as they are until `reset`. Not while the machine runs or is paused.

        Raises: InvalidArgument, NotMapped, StateError, HypervisorError.
        """
        self._expect_idle("load")
        payloads.mode_number(mode)
        start = payloads.DEFAULT_ADDRESS[mode] if address is None else address

        def place() -> None:
            self.ram.write(start, payload)
            payloads.write_tables(self.ram, mode)
            for index in range(self.vcpus):
                payloads.set_entry(self.vm, index, mode, start, index, second)

        self.set_loader(place)

    def set_loader(self, place: Callable[[], None]) -> None:
        """For loaders: what puts code into memory and points processors at it, now and after each reset."""
        self._expect_idle("load")
        self._expect_going("load")
        self._processors.finish()
        place()
        self._processors.forget()
        self._loader = place

    # Running.

    def run(self, limit: float) -> Outcome:
        """Run until the guest ends it, or for `limit` seconds. Call it again to run on.

        What processors brought as the last run ended (another end, a failure) comes first, and the machine stays as it
        is. Without a limit: `math.inf`; one of 0 or less is over at once.

        Raises: StateError (running, closed, half reset), InvalidArgument, HypervisorError where KVM can't go on or no
        real-time signal is free, and what a plugin's handler raises from configuration space. StateError as well, 10
        seconds after the end, when a handler that a processor is in does not return: `running` until it does, with time
        going on. A doorbell's or a job's is waited for without a limit.
        """
        self._expect_idle("run")
        if math.isnan(limit):
            raise InvalidArgument("a run's limit is a number of seconds")
        deadline = time.monotonic() + limit
        self._processors.enter()
        try:
            with self._guard:
                self._let_time_pass()
            return self._processors.run(deadline)
        finally:
            with self._guard:
                try:
                    if not self._processors.stuck:  # else it would wait for the lock of a handler that does not return
                        self._hold_time()
                finally:
                    self._processors.leave()

    def stop(self) -> None:
        """Make the run under way, or else the next, return with STOPPED at once, reset or not. Raises: StateError."""
        self._expect_own()
        self._processors.stop()

    def pause(self) -> None:
        """Hold every processor and the devices' clocks; calls nest.

        When it returns no processor is in the guest, and the devices have had every store and ring of before. In a
        device's own handler the rings and the posted stores are what may still come: they may wait for its lock.

        Raises: StateError (closed); from a device's handler also while another thread pauses, resumes or begins a run,
        and when a processor does not leave the guest for 3 seconds, since it waits for a notification of a page write
        (TRAP) that waits for the handler. Nothing has changed then.
        """
        with self._changing("pause") as inside:
            vm = self.vm
            if not self._pauses:
                vm.stop_processors(STOP_SECONDS if inside else None)
            self._pauses += 1
            if self._pauses == 1:
                if not inside:
                    lib.umdev_kvm_drain(vm.pointer)
                    lib.umdev_kvm_ring(vm.pointer, ffi.NULL)
                self._hold_time()

    def resume(self) -> None:
        """Undo one `pause`. Raises: StateError without one, and as `pause`."""
        with self._changing("resume"):
            if not self._pauses:
                raise StateError("the machine is not paused")
            self._pauses -= 1
            if not self._pauses:
                if self.running:
                    self._let_time_pass()
                self.vm.resume_processors()

    def reset(self) -> None:
        """As the reset button: new processors and interrupt controllers, devices reset, the payload loaded again.

        Memory keeps its content elsewhere. Not while the machine runs or is paused. Where it fails for want of new
        kernel objects the machine is as it was; a later failure leaves one that can only be reset again, or closed.

        Raises: StateError, HypervisorError, and what a device's reset raises.
        """
        self._expect_own()
        with self._guard:  # who pauses or closes has done so, or finds it done
            self._expect_idle("reset", whole=False)
            self._expect_going("reset")
            old, fresh = self._vm, Vm(self._console, self.vcpus, self._console_room)
            self._whole = False
            self.bridge.release()
            self._vm = fresh
            self._processors.forget()
            try:
                self.slots.rebuild(fresh)
            finally:
                with self._using:  # and batches of slots are on the new ones by now
                    old.close()
            self.protection.connect(fresh)
            for plugged in self.bridge.functions:
                plugged.attachment.reset(ResetKind.BUS)
            self.bridge.rebuild(fresh)
            self.firmware.place_all()
            if self._loader is not None:
                self._loader()
            self._whole = True

    @property
    def running(self) -> bool:
        """Is a run under way? When it is False the run has left the machine alone, though it may be about to return."""
        return self._processors.running

    # The console.

    @property
    def console_output(self) -> bytes:
        """What the serial port has sent, unless a descriptor was given for it. Raises: StateError (closed)."""
        if self._closed:
            raise StateError("the machine is closed")
        return os.pread(self._own_console, os.fstat(self._own_console).st_size, 0)

    def send(self, data: bytes) -> int:
        """Bytes to the serial port; returns how many fitted into its queue of 4 KiB. Raises: StateError (closed)."""
        self._expect_open()
        with self._using:
            return int(lib.umdev_kvm_serial_receive(self.vm.pointer, data, len(data)))

    # What happened.

    @property
    def counters(self) -> dict[str, int]:
        """Exits of all processors by kind; `unclaimed` accesses, `coalesced` stores, `doorbells`; the bridge's.

        Raises: StateError (closed).
        """
        self._expect_open()
        with self._using:
            found = {**self.vm.exits(), **self.vm.counters()}
        return {
            **found,
            "bad_placements": self.bridge.bad_placements,
            "refusals": self.bridge.refusals,
        }

    def prefault(self, guest: int, length: int) -> None:
        """Fill second-level page-table entries ahead of use; no pin: the kernel may take them back. Not while running.

        Raises: NotSupported where the kernel has no KVM_PRE_FAULT_MEMORY (6.11) for this machine; HypervisorError.
        """
        self._expect_idle("prefault")
        if not self.vm.extension(CAP_PRE_FAULT_MEMORY):
            raise NotSupported(
                "KVM_PRE_FAULT_MEMORY came with Linux 6.11 and needs nested paging: this host has it not"
            )
        check(lib.umdev_kvm_vcpu_prefault(self.vm.vcpu(0), guest, length), "KVM_PRE_FAULT_MEMORY")

    # The end.

    def close(self) -> None:
        """Stop, wait for the run of another thread, detach every device, give everything back. May be called twice.

        In a forked child only its copies of the kernel's objects and of the memory go: machine and devices are its
        parent's, and go on.

        Raises: StateError when the run does not end: a device's handler does not return.
        """
        if self._closed:
            return
        if os.getpid() != self._process:  # with neither the threads nor what they had locked
            self._closed = True
            for plugged in self.bridge.plugged.values():
                plugged.attachment.device.release_attachment(plugged.attachment)
            self._vm.abandon()
            self._close_files()
            return
        self._processors.close()
        with self._guard:  # who pauses, resets or closes has done so, or sees it
            if self._closed:
                return
            for plugged in self.bridge.functions:
                self.bridge.unplug(plugged.slot)
                if plugged.attachment.state is not AttachmentState.DETACHED:
                    plugged.attachment.detach()
            self._closed = True
            with self._using:
                self._vm.close()
            self.protection.close()
            self.bridge.close()
            self._close_files()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if self._closed:
            return
        try:
            if os.getpid() == self._process:
                text = "unclosed machine: call close(), or use it in a with statement"
                warnings.warn(text, ResourceWarning, stacklevel=1, source=self)
        finally:  # a warning may be an error
            self.close()

    # Inside.

    @contextlib.contextmanager
    def _changing(self, call: str) -> Iterator[bool]:
        """Whoever stops the machine waits for devices' handlers, so a handler can't wait for its turn.

        Whether the caller is one: it holds a device's lock.
        """
        self._expect_open()
        inside = any(plugged.attachment.native.held for plugged in self.bridge.functions)
        if not self._guard.acquire(blocking=not inside):
            raise StateError(f"{call}(): another thread stops or starts the machine, and may wait for this handler")
        try:
            yield inside
        finally:
            self._guard.release()

    @property
    def _console_room(self) -> int:
        """Bytes that the guest may still write to the console."""
        if not self._bounded_console:
            return (1 << 64) - 1
        return max(0, CONSOLE_LIMIT - os.fstat(self._own_console).st_size)

    def _close_files(self) -> None:
        self.ram.close()
        for descriptor in (self._console, self._own_console):
            os.close(descriptor)
        self._console = self._own_console = -1

    def _let_time_pass(self) -> None:
        for plugged in self.bridge.functions:
            if not self._pauses and plugged.attachment.state is AttachmentState.QUIESCED:
                plugged.attachment.resume()

    def _hold_time(self) -> None:
        for plugged in self.bridge.functions:
            if plugged.attachment.state is AttachmentState.RUNNING and plugged.interrupts is not None:
                plugged.attachment.quiesce()

    def _expect_going(self, call: str) -> None:
        if self._pauses:
            raise StateError(f"{call}() needs a machine that is not paused: resume it first")

    def _expect_open(self) -> None:
        if self._closed:
            raise StateError("the machine is closed")
        self._expect_own()

    def _expect_own(self) -> None:
        """A forked child has no processors to wait for, and locks that nobody lets go of."""
        if os.getpid() != self._process:
            raise StateError("the machine belongs to the process that forked this one: make another one here")

    def _expect_idle(self, call: str, *, whole: bool = True) -> None:
        if self._closed:
            raise StateError(f"{call}() needs an open machine; this one is closed")
        self._expect_own()
        if self.running:
            raise StateError(f"{call}() needs a machine that is not running")
        if whole and not self._whole:
            raise StateError(f"{call}() needs a whole machine, and the last reset failed half-way: reset it again")


def _duplicate(console: int) -> int:
    try:
        return os.dup(console)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        raise InvalidArgument(f"the console's descriptor {console} is not open") from None
