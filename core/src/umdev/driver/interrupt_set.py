"""Interrupts as a driver uses them: enabled in the function, each vector an eventfd to wait for."""

from __future__ import annotations

import math
import os
import select
import time
from typing import TYPE_CHECKING, Literal, TypeAlias

from ..errors import InvalidArgument, NotSupported, StateError
from ..pci.capabilities import Msi, Msix
from ..pci.indexes import IrqIndex
from ..pci.layout import COMMAND_INTX_DISABLE, COMMAND_MEMORY, STATUS_INTERRUPT

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from .bar_view import BarView
    from .function import Function

InterruptKind: TypeAlias = Literal["msix", "msi", "intx", "err", "req"]

MESSAGE_ADDRESS = 0xFEE0_0000
"""Where messages are said to go: x86's local APIC. The bus carries them by eventfd, whatever the address."""
_LONGEST_POLL = 1e6
"""Seconds: poll(2) counts milliseconds in 31 bits."""
FIRST_DATA = 0x20
"""The data of vector 0; x86 keeps the vectors below for exceptions."""


class InterruptSet:
    """Enabled vectors 0 to `count` - 1 of one kind; VFIO's ERR and REQ need nothing but this.

    One thread may wait for each vector. Close the set before the function.
    A reset of the function disables its interrupts: close the set and enable anew.
    """

    kind: InterruptKind

    def __init__(self, function: Function, kind: InterruptKind, count: int) -> None:
        self.kind = kind
        self.index = IrqIndex[kind.upper()]
        self.count = count
        self._function = function
        self._closed = False
        self.descriptors: tuple[int, ...] = ()
        """One eventfd for each vector, for event loops of one's own; they belong to the set."""

    def wait(self, vector: int = 0, timeout: float | None = None) -> int:
        """Wait for vector: how often it was signalled since the last wait, 0 when `timeout` seconds pass without.

        INTx comes once and then holds back until `acknowledge`.

        Raises: InvalidArgument for another vector, StateError after `close`.
        """
        descriptor = self._descriptor(vector)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        ready = select.poll()
        ready.register(descriptor, select.POLLIN)
        while True:
            left = max(0.0, deadline - time.monotonic())
            if not ready.poll(None if left == math.inf else min(left, _LONGEST_POLL) * 1000):
                if left > _LONGEST_POLL:
                    continue
                return 0
            try:
                return os.eventfd_read(descriptor)
            except BlockingIOError:  # another thread took it
                continue

    def acknowledge(self) -> None:
        """INTx: the device has been served; it signals again now if its level is still high. Others need none."""

    def mask(self, vector: int = 0) -> None:
        """Have the function hold the vector back. Raises: NotSupported for MSI without masking, InvalidArgument."""
        self._descriptor(vector)
        self._set_mask(vector, masked=True)

    def unmask(self, vector: int = 0) -> None:
        """Undo `mask`; what pended comes now. Raises: as `mask`."""
        self._descriptor(vector)
        self._set_mask(vector, masked=False)

    def pending(self, vector: int = 0) -> bool:
        """Does the function say that the vector waits for its mask? Raises: NotSupported, InvalidArgument."""
        self._descriptor(vector)
        return self._is_pending(vector)

    def close(self) -> None:
        """Disable the interrupts in the function and at the bus, and close the eventfds. May be called twice.

        Raises what the bus's transport raises; the eventfds are closed then as well.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._disable()
            self._function.disable_irq(self.index)
        finally:
            self._function.forget_interrupts(self)
            for descriptor in self.descriptors:
                os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def open(self) -> None:
        """Connect, then enable. Called once, by `open_interrupts`; nothing stays open after a failure."""
        flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
        self.descriptors = tuple(os.eventfd(0, flags) for _ in range(self.count))
        try:
            self._function.connect_irq(self.index, self.descriptors)
            self._enable()
        except BaseException:
            self.close()
            raise

    def _enable(self) -> None:
        """Program the function; the eventfds are connected."""

    def _disable(self) -> None:
        """Undo `_enable`, whatever of it was done."""

    def _set_mask(self, vector: int, *, masked: bool) -> None:
        verb = "masked" if masked else "unmasked"
        raise NotSupported(f"{self.kind} vector {vector} cannot be {verb} in the function")

    def _is_pending(self, vector: int) -> bool:
        raise NotSupported(f"{self.kind} vector {vector} has no pending bit")

    def _descriptor(self, vector: int) -> int:
        if self._closed:
            raise StateError(f"these {self.kind} interrupts were closed")
        if not 0 <= vector < self.count:
            raise InvalidArgument(f"{self.count} {self.kind} vectors are enabled; there is no {vector}")
        return self.descriptors[vector]


class IntxSet(InterruptSet):
    """The pin, as an eventfd at the bus."""

    def acknowledge(self) -> None:
        """Let INTx signal again."""
        self._descriptor(0)
        self._function.unmask_irq(IrqIndex.INTX)

    def _enable(self) -> None:
        self._function.config.command &= ~COMMAND_INTX_DISABLE

    def _disable(self) -> None:
        self._function.config.command |= COMMAND_INTX_DISABLE

    def _set_mask(self, vector: int, *, masked: bool) -> None:  # noqa: ARG002  # the pin is the only vector
        if masked:
            self._function.config.command |= COMMAND_INTX_DISABLE
        else:
            self._function.config.command &= ~COMMAND_INTX_DISABLE

    def _is_pending(self, vector: int) -> bool:  # noqa: ARG002  # the pin is the only vector
        return bool(self._function.config.status & STATUS_INTERRUPT)


class MsiSet(InterruptSet):
    """Messages programmed in configuration space (PCI Local Bus 3.0, 6.8.1)."""

    def __init__(self, function: Function, kind: InterruptKind, count: int) -> None:
        super().__init__(function, kind, count)
        self._at = function.config.require_capability(Msi.id, "MSI")
        control = function.config.read16(self._at + 2)
        self._wide = bool(control & 1 << 7)
        self._masking = bool(control & 1 << 8)

    def _enable(self) -> None:
        config, at = self._function.config, self._at
        allocated = (self.count - 1).bit_length()
        config.write32(at + 4, MESSAGE_ADDRESS)
        if self._wide:
            config.write32(at + 8, 0)
        # The function puts the vector into the low bits of the data (6.8.1.6).
        config.write16(at + (12 if self._wide else 8), FIRST_DATA)
        if self._masking:
            config.write32(self._mask_offset, 0)
        control = config.read16(at + 2) & ~0x70
        config.write16(at + 2, control | allocated << 4 | 1)

    def _disable(self) -> None:
        config = self._function.config
        config.write16(self._at + 2, config.read16(self._at + 2) & ~1)

    @property
    def _mask_offset(self) -> int:
        if not self._masking:
            raise NotSupported(f"MSI of {self._function} has no per-vector masking")
        return self._at + (16 if self._wide else 12)

    def _set_mask(self, vector: int, *, masked: bool) -> None:
        config, at = self._function.config, self._mask_offset
        others = config.read32(at) & ~(1 << vector)
        config.write32(at, others | masked << vector)

    def _is_pending(self, vector: int) -> bool:
        return bool(self._function.config.read32(self._mask_offset + 4) >> vector & 1)


class MsixSet(InterruptSet):
    """Messages programmed in a table in a BAR (PCI Local Bus 3.0, 6.8.2)."""

    def __init__(self, function: Function, kind: InterruptKind, count: int) -> None:
        super().__init__(function, kind, count)
        config = function.config
        self._at = config.require_capability(Msix.id, "MSI-X")
        self._table, self._table_offset = self._locate(config.read32(self._at + 4))
        self._pba, self._pba_offset = self._locate(config.read32(self._at + 8))

    def _locate(self, register: int) -> tuple[BarView, int]:
        """BAR from the low three bits, offset from the others (6.8.2.4)."""
        bar = self._function.bars.get(register & 7)
        if bar is None:
            raise NotSupported(f"the MSI-X structure of {self._function} is said to be in BAR {register & 7}")
        return bar, register & ~7

    def _enable(self) -> None:
        config = self._function.config
        config.command |= COMMAND_MEMORY
        control = config.read16(self._at + 2) & ~0xC000
        # Enabled but masked while the table is written, so that no half-written entry is used.
        config.write16(self._at + 2, control | 0xC000)
        for vector in range(self.count):
            entry = self._table_offset + 16 * vector
            self._table.write32(entry, MESSAGE_ADDRESS)
            self._table.write32(entry + 4, 0)
            self._table.write32(entry + 8, FIRST_DATA + vector)
            self._table.write32(entry + 12, 0)
        config.write16(self._at + 2, control | 0x8000)

    def _disable(self) -> None:
        config = self._function.config
        config.write16(self._at + 2, config.read16(self._at + 2) & ~0xC000)

    def _set_mask(self, vector: int, *, masked: bool) -> None:
        control = self._table_offset + 16 * vector + 12
        self._table.write32(control, int(masked))
        self._table.read32(control)  # pushes the posted write, as a driver does before it relies on the mask

    def _is_pending(self, vector: int) -> bool:
        word = self._pba.read64(self._pba_offset + vector // 64 * 8)
        return bool(word >> vector % 64 & 1)


_SETS: dict[InterruptKind, type[InterruptSet]] = {
    "intx": IntxSet,
    "msi": MsiSet,
    "msix": MsixSet,
    "err": InterruptSet,
    "req": InterruptSet,
}


def open_interrupts(function: Function, kind: InterruptKind, count: int) -> InterruptSet:
    """Enable `count` vectors of `kind`; `Function.enable_interrupts` has checked that they exist.

    Raises: NotSupported where configuration space lacks the capability.
    """
    opened = _SETS[kind](function, kind, count)
    opened.open()
    return opened
