"""ACPI tables that describe the machine to a kernel (ACPI 6.5, chapter 5; MCFG: PCI Firmware 3.3, 4.1.2)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from . import aml, layout

if TYPE_CHECKING:
    from collections.abc import Iterable

BASE = 0xE_0000
"""Where the tables lie, the root pointer first; up to 0x100000 is the firmware's."""
_SCI = 9
_IO_PORT, _MEMORY = 1, 0


def tables(vcpus: int) -> bytes:
    """All tables, to be put at BASE."""
    image = _Image()
    facs = image.add(struct.pack("<4sIIIIIB31x", b"FACS", 64, 0, 0, 0, 0, 2), align=64)
    dsdt = image.add(_table(b"DSDT", 2, _dsdt()))
    fadt = image.add(_fadt(facs, dsdt))
    madt = image.add(_table(b"APIC", 4, _madt(vcpus)))
    mcfg = image.add(_table(b"MCFG", 1, struct.pack("<8xQHBB4x", layout.ECAM_BASE, 0, 0, 0)))
    xsdt = image.add(_table(b"XSDT", 1, struct.pack("<3Q", fadt, madt, mcfg)))
    image.set_root(xsdt)
    return bytes(image.content)


class _Image:
    """Tables one after the other; the first 64 bytes are for the root pointer."""

    def __init__(self) -> None:
        self.content = bytearray(64)

    def add(self, table: bytes, align: int = 16) -> int:
        """Append a table; its address."""
        self.content += bytes(-len(self.content) % align)
        address = BASE + len(self.content)
        self.content += table
        return address

    def set_root(self, xsdt: int) -> None:
        """The root pointer (5.2.5.3), with its two checksums."""
        root = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, b"UMDEV ", 2, 0, 36, xsdt, 0))
        root[8] = -sum(root[:20]) & 0xFF
        root[32] = -sum(root) & 0xFF
        self.content[: len(root)] = root


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A body after the common header (5.2.6)."""
    head = struct.pack("<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, b"UMDEV ", b"MACHINE ", 1, b"UMDV", 1)
    table = bytearray(head + body)
    table[9] = -sum(table) & 0xFF
    return bytes(table)


def _register(space: int, bits: int, access: int, address: int) -> bytes:
    """A generic address (5.2.3.2)."""
    return struct.pack("<BBBBQ", space, bits, 0, access, address)


def _fadt(facs: int, dsdt: int) -> bytes:
    """Fixed hardware (5.2.9): events and control at the power port, a reset register; no timer, buttons or clock."""
    event, control = layout.POWER_PORT, layout.POWER_PORT + 4
    # Write-back caches are coherent; there are C1 and a reset register; buttons and clock are no fixed hardware.
    flags = 1 << 0 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10
    legacy_devices, no_vga, no_clock = 1 << 0, 1 << 2, 1 << 5
    body = struct.pack("<IIBBHI4B", facs, dsdt, 0, 0, _SCI, 0, 0, 0, 0, 0)
    body += struct.pack("<8I", event, 0, control, 0, 0, 0, 0, 0)
    body += struct.pack("<8B4H5B", 4, 2, 0, 0, 0, 0, 0, 0, 0xFFFF, 0xFFFF, 0, 0, 0, 0, 0, 0, 0)
    body += struct.pack("<HBI", legacy_devices | no_vga | no_clock, 0, flags)
    body += _register(_IO_PORT, 8, 1, layout.RESET_PORT) + struct.pack("<BHB", 1, 0, 0)
    body += struct.pack("<QQ", facs, dsdt)
    none = _register(0, 0, 0, 0)
    body += _register(_IO_PORT, 32, 2, event) + none + _register(_IO_PORT, 16, 2, control) + none * 5 + none * 2
    return _table(b"FACP", 5, body)


def _madt(vcpus: int) -> bytes:
    """Interrupt controllers (5.2.12): processors, one I/O controller, where timer and SCI come in, NMI on LINT1."""
    parts: Iterable[bytes] = (
        struct.pack("<II", layout.LOCAL_APIC, 1),
        *(struct.pack("<BBBBI", 0, 8, number, number, 1) for number in range(vcpus)),
        struct.pack("<BBBBII", 1, 12, 0, 0, layout.IO_APIC, 0),
        struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0),
        struct.pack("<BBBBIH", 2, 10, 0, _SCI, _SCI, 0xD),  # active high, level
        struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1),
    )
    return b"".join(parts)


def _dsdt() -> bytes:
    """The root bridge with its windows and interrupt routes, and how to power off."""
    routes = [
        aml.package(aml.integer(slot << 16 | 0xFFFF), aml.integer(pin), aml.integer(0), aml.integer(gsi))
        for slot in range(1, 32)
        for pin, gsi in ((pin, layout.intx_gsi(slot, pin + 1)) for pin in range(4))
    ]
    windows = aml.resources(
        aml.bus_range(0, 0),
        aml.ports(0xCF8, 8),
        aml.port_window(0, 0xCF7),
        aml.port_window(0xD00, 0xFFFF),
        aml.memory_window(*layout.MEMORY32),
        aml.memory_window(*layout.MEMORY64),
    )
    bridge = aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A08")),
        aml.name("_CID", aml.eisa_id("PNP0A03")),
        aml.name("_SEG", aml.integer(0)),
        aml.name("_BBN", aml.integer(0)),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", windows),
        aml.name("_PRT", aml.package(*routes)),
    )
    return aml.scope("_SB_", bridge) + aml.name("_S5_", aml.package(*[aml.integer(0)] * 4))
