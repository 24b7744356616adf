"""The machine's address map, the same for every machine. native/internal.h has the numbers that C needs."""

from __future__ import annotations

import operator

from umdev.addresses import PAGE_MASK
from umdev.errors import InvalidArgument

LOW_END = 0xA_0000
"""Conventional memory ends here."""
HOLE_END = 0xE_0000
"""0xA0000 to here is no memory, as on every PC; above lie the firmware's tables, then memory again."""
ECAM_BASE = 0xB000_0000
ECAM_SIZE = 1 << 20
"""One bus of 32 devices (PCI Express Base 5.0, 7.2.2)."""
RAM_LIMIT = ECAM_BASE
"""Memory below 4 GiB ends here at the latest; the rest begins at 4 GiB."""
HIGH_BASE = 1 << 32
MEMORY32 = (0xC000_0000, 0xFEB0_0000)
"""First address, and one past the last, for 32-bit memory BARs."""
MEMORY64 = (0x40_0000_0000, 0x80_0000_0000)
RAM_MAX = RAM_LIMIT + MEMORY64[0] - HIGH_BASE
"""Bytes of memory at most: 64-bit BARs begin where it ends."""
PORTS = (0x1000, 0x1_0000)
IO_APIC = 0xFEC0_0000
LOCAL_APIC = 0xFEE0_0000
RESERVED = (
    (ECAM_BASE, ECAM_BASE + ECAM_SIZE),
    (IO_APIC, IO_APIC + 0x1000),
    (LOCAL_APIC, LOCAL_APIC + 0x10_0000),  # with the addresses of messages
    (0xFFFB_C000, 0xFFFC_0000),  # pages that KVM takes for itself
)
RESERVED_PORTS = ((0x00, 0x100), (0x3F8, 0x400), (0x600, 0x610), (0xCF8, 0xD00))
INTX_GSI = 16
"""INTx of the slots goes to pins 16 to 23 of the I/O interrupt controller, in turn."""
MESSAGE_GSI = 24
"""Messages have numbers from here on."""
POWER_PORT = 0x600
RESET_PORT = POWER_PORT + 8
EXIT_PORT = 0xF4


def intx_gsi(slot: int, pin: int) -> int:
    """The interrupt of `pin` (1 to 4) of the function in `slot`."""
    return INTX_GSI + (slot + pin - 1) % 8


def ram_parts(size: int) -> list[tuple[int, int, int]]:
    """Guest address, length and offset in the memory file of each part of `size` bytes of memory.

    The offset equals the address below 4 GiB; bytes of the file in the hole are not used.

    Raises: InvalidArgument for less than 64 KiB, a broken page, or more than lies below the 64-bit BARs.
    """
    size = operator.index(size)
    if size < 0x1_0000 or size & PAGE_MASK:
        raise InvalidArgument(f"a machine has 64 KiB of memory or more, in whole pages; not {size:#x} bytes")
    if size > RAM_MAX:
        raise InvalidArgument(f"a machine has at most {RAM_MAX:#x} bytes of memory, not {size:#x}")
    low = min(size, RAM_LIMIT)
    parts = [(0, min(low, LOW_END), 0)]
    if low > HOLE_END:
        parts.append((HOLE_END, low - HOLE_END, HOLE_END))
    if size > low:
        parts.append((HIGH_BASE, size - low, low))
    return parts
