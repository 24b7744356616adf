"""Addresses as an engine sees them: windows onto memory, and spaces behind page tables."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from umdev.device import InvalidArgument

from ._native import ffi, lib
from .faults import Fault, Reason, fault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

LAST_ADDRESS = (1 << 64) - 1
READ_LIMIT = 64 << 20
"""The most bytes that one `read` answers: a guest's number must not become this process's memory."""
_BYTES = ffi.typeof("uint8_t[]")


class Target(enum.IntEnum):
    """What stands behind an address."""

    SYSTEM = lib.SOFTGPU_SYSTEM
    """Bus addresses: the guest's memory, by DMA."""
    LOCAL = lib.SOFTGPU_LOCAL
    """The device's own memory: this virtual GPU's share of it."""
    TABLES = lib.SOFTGPU_TABLES
    """A private buffer of the model, for page tables that are no guest memory."""
    SPARE = lib.SOFTGPU_SPARE


@dataclass(frozen=True, slots=True)
class Level:
    """One level of page tables: an entry covers `1 << shift` bytes, and `bits` bits of the address choose it."""

    shift: int
    bits: int
    entry_bytes: int = 8
    """4 or 8, little-endian."""
    stride: int = 0
    """Bytes from entry to entry; 0: they follow each other."""


@dataclass(frozen=True, slots=True)
class Format:
    """The shape of page tables, from the root's level on. Addresses have `address_bits` bits; others are refused."""

    levels: Sequence[Level]
    address_bits: int


@dataclass(frozen=True, slots=True)
class Masks:
    """What the bits of an entry mean at one level. An entry with no `present` bit leads nowhere.

    It is a page when it has a bit of `leaf`, and always at the last level; else it is a table of the next level.
    """

    present: int = 1
    writable: int = 0
    """All of these bits set: stores are allowed. 0: always."""
    leaf: int = 0
    address: int = 0x000F_FFFF_FFFF_F000
    """Where table or page lie."""
    page_shift: int = 0
    """log2 of a page's bytes; 0: what an entry of the level covers."""
    target: Target = Target.SYSTEM


class Run(NamedTuple):
    """Where an address leads, up to the end of its page."""

    target: Target
    address: int
    length: int
    writable: bool


class Space:
    """Made by `MemoryPort.linear` and `MemoryPort.paged`. Any thread may call any method, the device lock held or not.

    What can't be done is answered by a `Fault`. An aligned access of 1, 2, 4 or 8 bytes is one access.
    """

    def __init__(self, native: Any, keep: Sequence[object]) -> None:
        """`keep`: what must live as long."""
        self._native = native
        self._keep = keep

    @property
    def pointer(self) -> int:
        """The `softgpu_space *` (softgpu.h), valid as long as this object."""
        return int(ffi.cast("uintptr_t", self._native))

    def read(self, address: int, length: int) -> bytes | Fault:
        """Bytes, at most 64 MiB (else INVALID)."""
        if not 0 <= address <= LAST_ADDRESS:
            return Fault(Reason.OUT_OF_RANGE, address)
        if not 0 <= length <= READ_LIMIT:
            return Fault(Reason.INVALID, address)
        data = bytearray(length)
        failed = ffi.new("softgpu_fault *")
        with ffi.from_buffer(_BYTES, data) as native:
            if lib.softgpu_space_read(self._native, address, native, length, failed):
                return fault(failed)
        return bytes(data)

    def write(self, address: int, data: Buffer) -> Fault | None:
        """Store bytes. After a fault, what lies before its address has been stored."""
        if not 0 <= address <= LAST_ADDRESS:
            return Fault(Reason.OUT_OF_RANGE, address, write=True)
        failed = ffi.new("softgpu_fault *")
        with ffi.from_buffer(_BYTES, data) as native:
            if lib.softgpu_space_write(self._native, address, native, len(native), failed):
                return fault(failed)
        return None

    def read_u32(self, address: int) -> int | Fault:
        """A little-endian 32-bit value."""
        data = self.read(address, 4)
        return data if isinstance(data, Fault) else int.from_bytes(data, "little")

    def read_u64(self, address: int) -> int | Fault:
        """A little-endian 64-bit value."""
        data = self.read(address, 8)
        return data if isinstance(data, Fault) else int.from_bytes(data, "little")

    def write_u32(self, address: int, value: int) -> Fault | None:
        """A little-endian 32-bit value; higher bits are dropped."""
        return self.write(address, (value & 0xFFFF_FFFF).to_bytes(4, "little"))

    def write_u64(self, address: int, value: int) -> Fault | None:
        """A little-endian 64-bit value; higher bits are dropped."""
        return self.write(address, (value & LAST_ADDRESS).to_bytes(8, "little"))

    def translate(self, address: int, *, write: bool = False) -> Run | Fault:
        """Where an address leads. Nothing is said of the memory there."""
        if not 0 <= address <= LAST_ADDRESS:
            return Fault(Reason.OUT_OF_RANGE, address, write=write)
        failed = ffi.new("softgpu_fault *")
        run = ffi.new("softgpu_run *")
        if lib.softgpu_space_translate(self._native, address, write, run, failed):
            return fault(failed)
        return Run(Target(run.target), run.address, run.length, bool(run.writable))

    def set_root(self, address: int, target: Target = Target.SYSTEM) -> None:
        """Walk from this table on; accesses that begin later do. The address may be anything that a guest writes."""
        lib.softgpu_space_set_root(self._native, target, address & LAST_ADDRESS)

    def invalidate(self) -> None:
        """Forget what was translated: accesses that begin later see the tables as they are then."""
        lib.softgpu_space_invalidate(self._native)


def native_format(format_: Format) -> Any:
    """As C has it. Raises: InvalidArgument."""
    levels = [
        (level.shift, level.bits, level.entry_bytes, level.stride or level.entry_bytes) for level in format_.levels
    ]
    if not 1 <= len(levels) <= lib.SOFTGPU_LEVELS_MAX:
        raise InvalidArgument(f"page tables of {len(levels)} levels; from 1 to {lib.SOFTGPU_LEVELS_MAX} can be walked")
    return ffi.new("softgpu_format *", {"address_bits": format_.address_bits, "levels": len(levels), "level": levels})


def native_masks(format_: Format, masks: Sequence[Masks]) -> Any:
    """As C has it. Raises: InvalidArgument."""
    if len(masks) != len(format_.levels):
        raise InvalidArgument(f"{len(masks)} masks for {len(format_.levels)} levels of page tables")
    native = ffi.new("softgpu_masks[]", len(masks))
    for number, (mask, level) in enumerate(zip(masks, format_.levels, strict=True)):
        last = number == len(masks) - 1
        native[number] = {
            "present": mask.present,
            "writable": mask.writable,
            "leaf": LAST_ADDRESS if last else mask.leaf,
            "table": mask.address,
            "page": mask.address,
            "page_shift": mask.page_shift or level.shift,
            "next": number + 1,
            "target": mask.target,
        }
    return native
