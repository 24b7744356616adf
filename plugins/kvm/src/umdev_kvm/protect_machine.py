"""Protection of a machine's own memory: TRAP and TRACK by the core's userfaultfd protector, EMULATE by slots."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from umdev.hypervisor import GuestProtector, ProtectMode, Userfault, UserfaultProtector, open_userfault

from .emulate import EmulateProtector, Emulator

if TYPE_CHECKING:
    from umdev.hypervisor import Attachment, GuestMemory, LockOwner, NativeClient, Notified, PageProtector

    from .machine import Machine
    from .vm import Vm

__all__ = ["MachineProtection"]


class MachineGuest:
    """The machine's memory for the core's protector: each of its files is one mapping, added when it is met."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._protector = GuestProtector(_open)
        self._known: list[GuestMemory] = []
        self._lock = threading.Lock()

    @property
    def mechanism(self) -> str:
        """One line for people."""
        return self._protector.mechanism

    @property
    def faults(self) -> int:
        """Stores that were stopped so far."""
        return self._protector.faults

    def client(self, mode: ProtectMode, device: LockOwner | None, listener: Notified) -> NativeClient:
        """See `GuestProtector.client`."""
        return self._protector.client(mode, device, listener)

    def locate(self, file: tuple[int, int], offset: int) -> int | None:
        """Where the guest mapping has the page. Raises: ProtectorBusy, ProtectError."""
        found = self._protector.locate(file, offset)
        if found is None:
            self._learn_memory()
            found = self._protector.locate(file, offset)
        return found

    def close(self) -> None:
        """Release every page."""
        self._protector.close()

    def _learn_memory(self) -> None:
        with self._lock:
            for part in self._machine.ram.parts:
                if part.file not in self._known:
                    status = os.fstat(part.file.descriptor)
                    self._protector.add_memory((status.st_dev, status.st_ino), 0, part.file.address, part.file.size)
                    self._known.append(part.file)


class MachineProtection:
    """What a machine has of service 6; nothing of it exists before somebody asks. Any thread."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._lock = threading.Lock()
        self._guest: MachineGuest | None = None
        self._emulator: Emulator | None = None

    @property
    def guest(self) -> MachineGuest:
        """For TRAP and TRACK."""
        with self._lock:
            if self._guest is None:
                self._guest = MachineGuest(self._machine)
            return self._guest

    @property
    def emulator(self) -> Emulator:
        """For EMULATE. Raises: NotSupported."""
        with self._lock:
            if self._emulator is None:
                self._emulator = Emulator(self._machine)
            return self._emulator

    def protector(self, attachment: Attachment, mode: ProtectMode) -> PageProtector:
        """A device's. Raises: NotSupported, ProtectorBusy, ProtectError."""
        if mode is ProtectMode.EMULATE:
            return EmulateProtector(self.emulator, attachment)
        return UserfaultProtector(self.guest, attachment.memory, mode, attachment.native)

    def connect(self, vm: Vm) -> None:
        """The machine has new kernel objects, and every slot in them."""
        if self._emulator is not None:
            self._emulator.connect(vm)

    def close(self) -> None:
        """The devices are detached and the processors gone."""
        if self._guest is not None:
            self._guest.close()
        if self._emulator is not None:
            self._emulator.close()


def _open(asynchronous: bool) -> Userfault:
    # One for user code alone would turn processors' stores into exits that nobody expects.
    return open_userfault(asynchronous=asynchronous)
