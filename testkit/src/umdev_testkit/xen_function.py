"""The driver's view of a device in a bare Xen domain: a small program there makes every access.

So accesses are requests of Xen, of 1, 2, 4 and 8 bytes, configuration goes by ports 0xCF8 and 0xCFC, and interrupts are
taken by the domain's own local APIC; the process with the device is restricted to the domain. The domain sleeps between
accesses. Runs inside the Xen test bed only.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from umdev.addresses import PAGE_MASK, PAGE_SIZE, Iova
from umdev.bus import AttachedFunction, IrqIndex, RegionIndex, ResetKind
from umdev.driver import DmaBuffer, MappedArea
from umdev.errors import InvalidArgument, NotSupported, TransportError

from umdev_testkit.errors import GuestTimedOut
from umdev_testkit.xen_payloads import COUNTS, IO_APIC, payload
from umdev_testkit.xen_remote import shared_domains

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from umdev.bus import Area
    from umdev.device import Device
    from umdev_xen import Domain

__all__ = ["XenFunction"]

_SLOT = 1
_COMMAND, _ADDRESS, _VALUE = 0x9000, 0x9008, 0x9010
_PIN_VECTOR, _KICK_VECTOR = 30, 31  # beyond 0x20, where messages are counted
_PIN = 0x10 + 2 * (16 + 4 * _SLOT)  # the register of the I/O APIC's entry, where Xen has slot 1's INTA
_MEMORY, _BUFFERS = 8 << 20, 4 << 20
_SECONDS = 120.0  # that one access may take on a busy machine
_GLANCE = 0.001
_SIZES = (8, 4, 2, 1)
_AGENT = f"""
    interrupts_on
    handler {_PIN_VECTOR}, pin
next:
    cli
    mov eax, [{_COMMAND:#x}]
    test eax, eax
    jnz go
    sti
    hlt
    jmp next
go: sti
    mov ebx, [{_ADDRESS:#x}]
    mov edx, ebx
    mov edi, {_VALUE:#x}
    jmp [table + eax * 4]
table:
    .long next, read1, read2, read4, read8, write1, write2, write4, write8
    .long in1, in2, in4, next, out1, out2, out4, next, unmask, mask
read1: mov al, [ebx]
    mov [edi], al
    jmp done
read2: mov ax, [ebx]
    mov [edi], ax
    jmp done
read4: mov eax, [ebx]
    mov [edi], eax
    jmp done
read8: movq mm0, [ebx]
    movq [edi], mm0
    jmp done
write1: mov al, [edi]
    mov [ebx], al
    jmp done
write2: mov ax, [edi]
    mov [ebx], ax
    jmp done
write4: mov eax, [edi]
    mov [ebx], eax
    jmp done
write8: movq mm0, [edi]
    movq [ebx], mm0
    jmp done
in1: in al, dx
    mov [edi], al
    jmp done
in2: in ax, dx
    mov [edi], ax
    jmp done
in4: in eax, dx
    mov [edi], eax
    jmp done
out1: mov al, [edi]
    out dx, al
    jmp done
out2: mov ax, [edi]
    out dx, ax
    jmp done
out4: mov eax, [edi]
    out dx, eax
    jmp done
unmask:
    cli
    mov dword ptr [{IO_APIC:#x}], {_PIN + 1}
    mov dword ptr [{IO_APIC + 0x10:#x}], 0
    mov dword ptr [{IO_APIC:#x}], {_PIN}
    mov dword ptr [{IO_APIC + 0x10:#x}], 0xa000 + 0x20 + {_PIN_VECTOR}
    jmp done
mask:
    cli
    mov dword ptr [{IO_APIC:#x}], {_PIN}
    mov dword ptr [{IO_APIC + 0x10:#x}], 0x1a000 + 0x20 + {_PIN_VECTOR}
done:
    mov dword ptr [{_COMMAND:#x}], 0
    jmp next
pin:
    push eax
    mov dword ptr [{IO_APIC:#x}], {_PIN}
    mov dword ptr [{IO_APIC + 0x10:#x}], 0x1a000 + 0x20 + {_PIN_VECTOR}
    inc dword ptr [{COUNTS + 4 * _PIN_VECTOR:#x}]
    pop eax
    jmp handled
"""
_READ, _WRITE, _IN, _OUT = 1, 5, 9, 13
_UNMASK, _MASK = 17, 18
_STEP = {1: 0, 2: 1, 4: 2, 8: 3}


class _Buffer(DmaBuffer):
    """A part of the domain's memory."""

    def __init__(self, function: XenFunction, address: int, size: int) -> None:
        super().__init__(Iova(address), size)
        self._function = function

    def _load_bytes(self, offset: int, length: int) -> bytes:
        return self._function.load(self.address + offset, length)

    def _store_bytes(self, offset: int, data: bytes) -> None:
        self._function.store(self.address + offset, data)

    def _release(self) -> None:
        self._function.free(self.address)


class _GuestArea(MappedArea):
    """The domain's pages where the BAR is, as its processors reach them."""

    def __init__(self, area: Area, domain: Domain, address: int) -> None:
        from umdev_xen.memory import foreign_map, foreign_unmap

        self.area = area
        first, pages = address // PAGE_SIZE, area.length // PAGE_SIZE
        mapped = foreign_map(domain.handles, range(first, first + pages))
        if mapped is None:
            raise NotSupported(f"{area} is not passed through: the domain has no memory there")
        host, errors = mapped
        self._unmap: Callable[[], None] = functools.partial(foreign_unmap, domain.handles, host, pages)
        if any(errors):
            self._unmap()
            raise NotSupported(f"{area} is not passed through: the domain has no memory there")
        self.view = memoryview((ctypes.c_ubyte * area.length).from_address(host)).cast("B")

    def close(self) -> None:
        """Unmap. May be called twice."""
        self.view.release()
        unmap, self._unmap = self._unmap, _nothing
        unmap()


def _nothing() -> None:
    """It has been unmapped."""


class XenFunction(AttachedFunction):
    """`device` in slot 1 of a bare domain of its own. Closing leaves the device open."""

    def __init__(self, device: Device) -> None:
        """Raises: NotSupported outside the test bed, HypervisorError, StateError."""
        from umdev_xen import Domain

        with ExitStack() as stack:
            guest = shared_domains().make(memory=_MEMORY)
            stack.callback(guest.close)
            self.domain: Domain = stack.enter_context(Domain(guest.domid))
            """The bus's side."""
            self._turn = threading.RLock()  # one access at a time
            self._taken: dict[int, int] = {}
            self._heard: dict[int, list[tuple[int, int]]] = {}  # interrupt index -> (vector, eventfd)
            self._counts = [0] * 32
            self._over = threading.Event()
            guest.load(payload(_AGENT))
            guest.unpause()
            self.domain.plug(device, slot=_SLOT)
            attachment = device.attachment
            assert attachment is not None, "it has been plugged"
            super().__init__(attachment)
            self._watch = threading.Thread(target=self._hear, name="interrupts of a bare domain", daemon=True)
            self._watch.start()
            stack.callback(self._end_watch)
            self.assign_bars()
            self.keep_bars()
            self._stack = stack.pop_all()

    def __str__(self) -> str:
        return f"{self.device} in a Xen domain"

    def assign_bars(self, *, low: bool = True) -> dict[int, int]:  # noqa: ARG002 there is no other way here
        """All of them below 4 GiB: the domain's program is a 32-bit one. Raises: NotSupported."""
        return super().assign_bars(low=True)

    def region_read(self, index: int, offset: int, length: int) -> bytes:
        """Reads by the domain's processor, of 8 bytes at most each. Raises: StateError, GuestTimedOut."""
        data = bytearray()
        while len(data) < length:
            size = self._size(index, offset + len(data), length - len(data))
            data += self._access(index, offset + len(data), size, None)
        return bytes(data)

    def region_write(self, index: int, offset: int, data: bytes) -> None:
        """Writes by the domain's processor, done when it returns. Raises: StateError, GuestTimedOut."""
        done = 0
        while done < len(data):
            size = self._size(index, offset + done, len(data) - done)
            self._access(index, offset + done, size, data[done : done + size])
            done += size
        if index == RegionIndex.CONFIG:
            self.after_config_write(offset)
            self.domain.bridge.synchronise(_SLOT)
            self._tell()  # what came before a reset came before it returns

    def map_area(self, index: int, number: int = 0) -> MappedArea:
        """What the domain's processors reach with no request. Raises: NotSupported, InvalidArgument."""
        info = self.regions.get(index)
        if info is None or not 0 <= number < len(info.areas):
            return super().map_area(index, number)
        address = self.device.config.bar_address(index) + info.areas[number].offset
        return _GuestArea(info.areas[number], self.domain, address)

    def allocate(self, size: int) -> DmaBuffer:
        """A buffer in the domain's memory. Raises: InvalidArgument, TransportError when it is used up."""
        self.expect_open()
        if size < 1:
            raise InvalidArgument(f"a DMA buffer of {size} bytes")
        size = (size + PAGE_MASK) & ~PAGE_MASK
        with self._turn:
            start = _BUFFERS
            for address in sorted(self._taken):
                if address - start >= size:
                    break
                start = address + self._taken[address]
            if start + size > _MEMORY:
                raise TransportError(f"no {size:#x} bytes are left of the domain's memory")
            self._taken[start] = size
        self.store(start, bytes(size))
        return _Buffer(self, start, size)

    def free(self, address: int) -> None:
        """For buffers."""
        with self._turn:
            self._taken.pop(address, None)

    def load(self, address: int, length: int) -> bytes:
        """The domain's memory."""
        parts = []
        while length:
            size = min(length, 4096 - address % 4096)
            found = self.domain.native.read_guest(address, size)
            if found is None:
                raise TransportError(f"the domain has no memory at {address:#x}")
            parts.append(found)
            address, length = address + size, length - size
        return b"".join(parts)

    def store(self, address: int, data: bytes) -> None:
        """The domain's memory."""
        while data:
            size = min(len(data), 4096 - address % 4096)
            if not self.domain.native.write_guest(address, data[:size]):
                raise TransportError(f"the domain has no memory at {address:#x}")
            address, data = address + size, data[size:]

    def connect_irq(self, index: int, descriptors: Sequence[int]) -> None:
        """Signal eventfds when the domain's processor has taken the interrupt. Raises: InvalidArgument, StateError."""
        self.expect_open()
        count = self.irq_count(index)
        if len(descriptors) > count:
            raise InvalidArgument(f"{self} has {count} vectors of index {index}, not {len(descriptors)}")
        if index > IrqIndex.MSIX:
            super().connect_irq(index, descriptors)
            return
        self.disable_irq(index)
        numbers = [_PIN_VECTOR] if index == IrqIndex.INTX else range(len(descriptors))
        heard = [(n, os.dup(fd)) for n, fd in zip(numbers, descriptors, strict=False) if fd >= 0]
        with self._turn:
            self._look()  # what came before is nobody's
            self._heard[index] = heard
        if index == IrqIndex.INTX:
            self._do(_UNMASK)

    def disable_irq(self, index: int) -> None:
        """Signal nothing any more."""
        if index > IrqIndex.MSIX:
            super().disable_irq(index)
            return
        with self._turn:
            for _, descriptor in self._heard.pop(index, []):
                os.close(descriptor)
        if index == IrqIndex.INTX:
            self._do(_MASK)

    def mask_irq(self, index: int, vector: int = 0) -> None:
        """At the I/O APIC for INTx; messages at the device's port."""
        if index == IrqIndex.INTX:
            self._do(_MASK)
        else:
            super().mask_irq(index, vector)

    def unmask_irq(self, index: int, vector: int = 0) -> None:
        """Undo it."""
        if index == IrqIndex.INTX:
            self._do(_UNMASK)
        else:
            super().unmask_irq(index, vector)

    def reset(self) -> None:
        """A bus reset. Raises: StateError after `close`."""
        self.expect_open()
        self.attachment.reset(ResetKind.BUS)
        self.put_back_bars()
        self.domain.bridge.synchronise(_SLOT)
        self._tell()

    def close(self) -> None:
        """Detach the device, with a reset as for a lost client, and destroy the domain. May be called twice."""
        with self._closing:
            self.close_doorbells()
            self._stack.close()

    # Inside.

    def _size(self, index: int, offset: int, left: int) -> int:
        config = index == RegionIndex.CONFIG
        bar = self.device.config.bars.get(index)
        most = 4 if config or (bar is not None and bar.kind == "io") else 8
        if config:
            left = min(left, 4 - offset % 4)
        return next(size for size in _SIZES if size <= min(left, most))

    def _access(self, index: int, offset: int, size: int, data: bytes | None) -> bytes:
        self.expect_open()
        with self._turn:
            if index == RegionIndex.CONFIG:
                if offset >= 256:  # beyond what these ports reach
                    return b"\xff" * size
                self._do(_OUT + 2, 0xCF8, (1 << 31 | _SLOT << 11 | offset & ~3).to_bytes(4, "little"))
                return self._do((_IN if data is None else _OUT) + _STEP[size], 0xCFC + offset % 4, data or b"")[:size]
            bar = self.device.config.bars.get(index)
            if bar is None:
                raise InvalidArgument(f"{self} has no region {index}")
            io = bar.kind == "io"
            address = self.device.config.bar_address(index) + offset
            first = (_IN if io else _READ) if data is None else (_OUT if io else _WRITE)
            return self._do(first + _STEP[size], address, data or b"")[:size]

    def _do(self, command: int, address: int = 0, value: bytes = b"") -> bytes:
        """Have the program do one thing, and wake it."""
        with self._turn:
            if self.domain.ended:
                return b"\xff" * 8
            self.store(_VALUE, value.ljust(8, b"\0"))
            self.store(_ADDRESS, address.to_bytes(8, "little"))
            self.store(_COMMAND, command.to_bytes(4, "little"))
            self.domain.inject(0xFEE0_0000, 0x20 + _KICK_VECTOR)
            deadline = time.monotonic() + _SECONDS
            while self.load(_COMMAND, 4) != bytes(4):
                if time.monotonic() > deadline:
                    raise GuestTimedOut(f"{self}: an access has not ended within {_SECONDS:g} s")
                time.sleep(0)
            return self.load(_VALUE, 8)

    def _hear(self) -> None:
        while not self._over.wait(_GLANCE):
            self._tell()

    def _tell(self) -> None:
        with self._turn:
            if self._heard and not self.domain.ended:
                self._look()

    def _look(self) -> None:
        data = self.load(COUNTS, 4 * len(self._counts))
        for number, before in enumerate(self._counts):
            now = int.from_bytes(data[4 * number : 4 * number + 4], "little")
            self._counts[number] = now
            for vector, descriptor in [pair for pairs in self._heard.values() for pair in pairs]:
                if vector == number and now != before:
                    os.eventfd_write(descriptor, (now - before) & 0xFFFF_FFFF)

    def _end_watch(self) -> None:
        self._over.set()
        self._watch.join()
        for index in list(self._heard):
            for _, descriptor in self._heard.pop(index):
                os.close(descriptor)
