"""What a processor finds at its first instruction: registers and tables for bare payloads."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Literal, TypeAlias

from umdev.errors import InvalidArgument

from ._fast import lib
from .vm import check

if TYPE_CHECKING:
    from .ram import Ram
    from .vm import Vm

Mode: TypeAlias = Literal["real", "protected", "long"]
_MODES: dict[str, int] = {"real": 0, "protected": 1, "long": 2}
GDT = 0x500
PAGE_TABLES = 0x1000
"""Six pages: 4 GiB mapped one to one in 2 MiB pages."""
STACKS = 0x9_0000
"""The stack of processor n begins n pages below."""
DEFAULT_ADDRESS: dict[str, int] = {"real": 0x7C00, "protected": 0x1_0000, "long": 0x1_0000}

# Null, unused, code and data over 4 GiB (AMD64 APM volume 2, 4.8): selectors 0x10 and 0x18 as Linux asks for.
_GDT32 = struct.pack("<QQQQ", 0, 0, 0x00CF9B00_0000FFFF, 0x00CF9300_0000FFFF)
_GDT64 = struct.pack("<QQQQ", 0, 0, 0x00AF9B00_0000FFFF, 0x00CF9300_0000FFFF)
_PRESENT_WRITABLE = 3
_LARGE = 0x80
_GIB = 1 << 30


def mode_number(mode: str) -> int:
    """Raises: InvalidArgument."""
    if mode not in _MODES:
        raise InvalidArgument(f"mode {mode!r} is none of {', '.join(_MODES)}")
    return _MODES[mode]


def write_tables(ram: Ram, mode: Mode) -> None:
    """Descriptor table, and page tables for long mode. Raises: NotMapped where memory is too small."""
    if mode == "real":
        return
    ram.write(GDT, _GDT64 if mode == "long" else _GDT32)
    if mode == "protected":
        return
    directory_pointers = PAGE_TABLES + 0x1000
    directories = PAGE_TABLES + 0x2000
    ram.write(PAGE_TABLES, struct.pack("<Q", directory_pointers | _PRESENT_WRITABLE).ljust(4096, b"\0"))
    pointers = struct.pack("<4Q", *(directories + n * 4096 | _PRESENT_WRITABLE for n in range(4)))
    ram.write(directory_pointers, pointers.ljust(4096, b"\0"))
    entries = [n << 21 | _PRESENT_WRITABLE | _LARGE for n in range(4 * _GIB >> 21)]
    ram.write(directories, struct.pack(f"<{len(entries)}Q", *entries))


def set_entry(vm: Vm, index: int, mode: Mode, entry: int, argument: int, second: int = 0) -> None:
    """Point a processor at `entry`: AX and DI hold `argument`, SI `second`. Raises: HypervisorError."""
    code = lib.umdev_kvm_vcpu_set_entry(
        vm.vcpu(index), mode_number(mode), entry, STACKS - 0x1000 * index, argument, second, GDT, PAGE_TABLES
    )
    check(code, "KVM_SET_SREGS")


def set_waiting(vm: Vm, index: int) -> None:
    """Let a processor wait until another one starts it, as all but the first do after a reset.

    Raises: HypervisorError.
    """
    check(lib.umdev_kvm_vcpu_set_waiting(vm.vcpu(index)), "KVM_SET_MP_STATE")
