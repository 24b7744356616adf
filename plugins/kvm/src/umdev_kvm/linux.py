"""Boots a Linux bzImage by the 32-bit boot protocol (the kernel's Documentation/arch/x86/boot.rst)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from umdev.errors import InvalidArgument

from . import acpi, layout, mptable, payload

if TYPE_CHECKING:
    from .machine import Machine

ZERO_PAGE = 0x8000
COMMAND_LINE = 0x2_0000
KERNEL = 0x10_0000
_HEADER = 0x1F1
_LOW_USABLE = 0x9_FC00
_USABLE, _RESERVED = 1, 2
_OLDEST = 0x020C  # protocol 2.12, Linux 3.8
DEFAULT_COMMAND_LINE = "console=ttyS0"


@dataclass(frozen=True, slots=True)
class _Image:
    """What the setup header says."""

    header: bytes
    kernel: bytes
    end: int
    """One past the last address that it needs before it looks at the memory map."""
    initrd_limit: int
    command_line_limit: int

    @classmethod
    def parse(cls, image: bytes) -> _Image:
        """Raises: InvalidArgument."""
        if len(image) < 0x268 or image[0x202:0x206] != b"HdrS":
            raise InvalidArgument("the kernel is no bzImage: the header HdrS is missing")
        version = struct.unpack_from("<H", image, 0x206)[0]
        if version < _OLDEST or not image[0x211] & 1:
            raise InvalidArgument(f"boot protocol {version >> 8}.{version & 0xFF:02} is too old: 2.12, loaded high")
        start = ((image[0x1F1] or 4) + 1) * 512
        if start >= len(image):
            raise InvalidArgument("the bzImage is cut short")
        alignment, preferred, memory = (
            struct.unpack_from(code, image, offset)[0] for code, offset in (("<I", 0x230), ("<Q", 0x258), ("<I", 0x260))
        )
        # A relocatable kernel moves up to its preferred address, too, before it unpacks itself (Linux be4ca6c53e66).
        runs_at = -(-max(KERNEL, preferred) // (alignment or 1)) * (alignment or 1)
        return cls(
            header=image[_HEADER : 0x202 + image[0x201]],
            kernel=image[start:],
            end=max(KERNEL + len(image) - start, runs_at + memory),
            initrd_limit=struct.unpack_from("<I", image, 0x22C)[0],
            command_line_limit=struct.unpack_from("<I", image, 0x238)[0],
        )


def boot_linux(machine: Machine, kernel: bytes, initrd: bytes = b"", command_line: str = DEFAULT_COMMAND_LINE) -> None:
    """Put a kernel, its initramfs and its command line into the machine's memory; `run` boots it, and `reset` anew.

    The serial port is ttyS0. Functions lie on bus 0; their interrupts are described by ACPI, and by MultiProcessor
    tables for a kernel that knows these (CONFIG_X86_MPPARSE) and is told `acpi=off`. A reboot ends the run with RESET,
    a power-off, which needs ACPI, with POWER_OFF.

    Raises: InvalidArgument for what is no bzImage, too long a command line or too little memory; StateError.
    """
    image = _Image.parse(kernel)
    line = command_line.encode() + b"\0"
    if len(line) > image.command_line_limit:
        raise InvalidArgument(f"the command line has {len(line)} bytes; this kernel takes {image.command_line_limit}")
    low_end = min(machine.ram.main.size, layout.RAM_LIMIT)
    initrd_at = (min(low_end, image.initrd_limit + 1) - len(initrd)) & ~0xFFF
    if initrd_at < image.end:
        needed = (image.end + len(initrd) >> 20) + 64
        raise InvalidArgument(f"{low_end >> 20} MiB of memory are too little for this kernel: take {needed} or more")

    def place() -> None:
        ram = machine.ram
        ram.write(acpi.BASE, acpi.tables(machine.vcpus))
        ram.write(mptable.BASE, mptable.tables(machine.vcpus))
        ram.write(KERNEL, image.kernel)
        ram.write(initrd_at, initrd)
        ram.write(COMMAND_LINE, line)
        ram.write(ZERO_PAGE, _zero_page(machine, image, initrd_at if initrd else 0, len(initrd)))
        payload.write_tables(ram, "protected")
        payload.set_entry(machine.vm, 0, "protected", KERNEL, 0, second=ZERO_PAGE)
        for index in range(1, machine.vcpus):  # they may have run another payload
            payload.set_waiting(machine.vm, index)

    machine.set_loader(place)


def _zero_page(machine: Machine, image: _Image, initrd_at: int, initrd_length: int) -> bytes:
    page = bytearray(4096)
    page[_HEADER : _HEADER + len(image.header)] = image.header
    page[0x210] = 0xFF  # a loader without a number
    struct.pack_into("<II", page, 0x218, initrd_at, initrd_length)
    struct.pack_into("<I", page, 0x228, COMMAND_LINE)
    struct.pack_into("<Q", page, 0x070, acpi.BASE)
    entries = _memory_map(machine)
    page[0x1E8] = len(entries)
    for number, (start, end, kind) in enumerate(entries):
        struct.pack_into("<QQI", page, 0x2D0 + 20 * number, start, end - start, kind)
    return bytes(page)


def _memory_map(machine: Machine) -> list[tuple[int, int, int]]:
    """Start, end and type of each range."""
    found = [
        (0, _LOW_USABLE, _USABLE),
        (_LOW_USABLE, layout.LOW_END, _RESERVED),
        (acpi.BASE, KERNEL, _RESERVED),
        (layout.ECAM_BASE, layout.ECAM_BASE + layout.ECAM_SIZE, _RESERVED),
    ]
    parts = [part for part in machine.ram.parts if part.end > KERNEL]
    return sorted([*found, *((max(part.guest, KERNEL), part.end, _USABLE) for part in parts)])
