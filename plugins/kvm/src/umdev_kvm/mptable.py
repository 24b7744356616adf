"""The MultiProcessor tables (Intel MultiProcessor Specification 1.4, chapter 4), for kernels that do without ACPI.

They say of processors and interrupts what the ACPI tables say: which pin of the I/O interrupt controller each INTx goes
to, above all. A kernel that is told `acpi=off` finds them by their signature.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from . import layout

if TYPE_CHECKING:
    from collections.abc import Iterable

BASE = 0xF_0000
"""Where they lie: kernels search from here to 0xFFFFF."""
_PCI_BUS, _ISA_BUS = 0, 1
_IO_APIC = 0
_ALL = 0xFF
_INTERRUPT, _NMI, _LEGACY = 0, 1, 3
_ENABLED, _BOOTS = 1, 2
_APIC_VERSION, _IO_APIC_VERSION = 0x14, 0x11
_TIMER = 0


def tables(vcpus: int) -> bytes:
    """The floating pointer and the configuration table behind it, to be put at BASE."""
    pointer = bytearray(struct.pack("<4sIBBBB4x", b"_MP_", BASE + 16, 1, 4, 0, 0))
    pointer[10] = -sum(pointer) & 0xFF
    return bytes(pointer) + _configuration(vcpus)


def _configuration(vcpus: int) -> bytes:
    entries = [*_processors(vcpus), *_buses(), *_interrupts()]
    body = b"".join(entries)
    head = struct.pack("<4sHBB8s12s", b"PCMP", 44 + len(body), 4, 0, b"UMDEV   ", b"MACHINE     ")
    head += struct.pack("<IHHIHBx", 0, 0, len(entries), layout.LOCAL_APIC, 0, 0)
    table = bytearray(head + body)
    table[7] = -sum(table) & 0xFF
    return bytes(table)


def _processors(vcpus: int) -> Iterable[bytes]:
    """Entry type 0 (4.3.1). Kernels ask CPUID for the rest."""
    for number in range(vcpus):
        yield struct.pack("<BBBBII8x", 0, number, _APIC_VERSION, _ENABLED | (_BOOTS if number == 0 else 0), 0, 0)


def _buses() -> Iterable[bytes]:
    """Entry types 1 and 2 (4.3.2, 4.3.3): buses, and the I/O interrupt controller."""
    yield struct.pack("<BB6s", 1, _PCI_BUS, b"PCI   ")
    yield struct.pack("<BB6s", 1, _ISA_BUS, b"ISA   ")
    yield struct.pack("<BBBBI", 2, _IO_APIC, _IO_APIC_VERSION, _ENABLED, layout.IO_APIC)


def _interrupts() -> Iterable[bytes]:
    """Entry types 3 and 4 (4.3.4, 4.3.5); trigger and polarity are their bus's."""
    for line in range(16):
        if line != 2:  # the cascade of the old controllers; its pin has the timer
            yield _source(_ISA_BUS, line, 2 if line == _TIMER else line)
    for slot in range(1, 32):
        for pin in range(4):
            yield _source(_PCI_BUS, slot << 2 | pin, layout.intx_gsi(slot, pin + 1))
    for kind, input_ in ((_LEGACY, 0), (_NMI, 1)):
        yield struct.pack("<BBHBBBB", 4, kind, 0, _ISA_BUS, 0, _ALL, input_)


def _source(bus: int, line: int, pin: int) -> bytes:
    return struct.pack("<BBHBBBB", 3, _INTERRUPT, 0, bus, line, _IO_APIC, pin)
