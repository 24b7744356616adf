"""Where everything stands in configuration space: the type 0 header and the capability chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import DeclarationError
from .capabilities import Capability, Msix, PciExpress
from .registers import ConfigRegister, placed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .bars import BarInfo
    from .ids import PciId

FIRST_CAPABILITY = 0x40
"""What lies below is the header (PCI Local Bus 3.0, 6.1)."""
CONVENTIONAL_SIZE = 256
EXPRESS_SIZE = 4096
"""With an Extended Capability header of zeros at 0x100: there is none (PCI Express Base 5.0, 7.6.2)."""

COMMAND_IO = 1 << 0
COMMAND_MEMORY = 1 << 1
COMMAND_BUS_MASTER = 1 << 2
COMMAND_INTX_DISABLE = 1 << 10
_COMMAND_PARITY_RESPONSE = 1 << 6
_COMMAND_SERR = 1 << 8
STATUS_INTERRUPT = 1 << 3
STATUS_CAPABILITIES = 1 << 4
STATUS_ERRORS = 0xF900
"""Bits 8 and 15:11, each set by the function and cleared by writing 1 (PCI Local Bus 3.0, 6.2.3)."""


@dataclass(frozen=True, slots=True)
class PlacedCapability:
    """A capability at its place; `prefix` starts the names of its registers."""

    declaration: Capability
    offset: int
    prefix: str

    @property
    def end(self) -> int:
        """The offset of the byte after it."""
        return self.offset + self.declaration.length


def header(
    identity: PciId, bars: Sequence[BarInfo], pin: int, first_capability: int, *, express: bool
) -> list[ConfigRegister]:
    """The type 0 header (PCI Local Bus 3.0, 6.1 and 6.2). Register bits exist only for what the function has."""
    vendor, device = identity.subsystem
    command = COMMAND_BUS_MASTER | _COMMAND_PARITY_RESPONSE | _COMMAND_SERR
    if any(bar.kind == "io" for bar in bars):
        command |= COMMAND_IO
    if any(bar.kind != "io" for bar in bars):
        command |= COMMAND_MEMORY
    if pin:
        command |= COMMAND_INTX_DISABLE
    status = STATUS_CAPABILITIES if first_capability else 0
    return [
        ConfigRegister("vendor", 0x00, 2, reset=identity.vendor),
        ConfigRegister("device", 0x02, 2, reset=identity.device),
        ConfigRegister("command", 0x04, 2, writable=command),
        ConfigRegister("status", 0x06, 2, reset=status, clears=STATUS_ERRORS),
        ConfigRegister("revision", 0x08, 1, reset=identity.revision),
        ConfigRegister("class_code", 0x09, 3, reset=identity.class_code),
        ConfigRegister("cache_line_size", 0x0C, 1, writable=0xFF),
        # PCI Express hard-wires the latency timer to 0 (PCI Express Base 5.0, 7.5.1.1.8).
        ConfigRegister("latency_timer", 0x0D, 1, writable=0 if express else 0xFF),
        *(bar.register for bar in bars),
        ConfigRegister("subsystem_vendor", 0x2C, 2, reset=vendor),
        ConfigRegister("subsystem_device", 0x2E, 2, reset=device),
        ConfigRegister("capabilities_pointer", 0x34, 1, reset=first_capability),
        ConfigRegister("interrupt_line", 0x3C, 1, writable=0xFF if pin else 0),
        ConfigRegister("interrupt_pin", 0x3D, 1, reset=pin),
    ]


def place(capabilities: Sequence[Capability], bars: Sequence[BarInfo]) -> list[PlacedCapability]:
    """Give every capability its place, in the order declared; those with an offset of their own choose first.

    Raises: DeclarationError for overlaps, crooked offsets, duplicates, no room, an MSI-X table without its BAR.
    """
    declared = [_resolve(c, bars) for c in capabilities]
    _refuse_duplicates(declared)
    taken: list[PlacedCapability] = []
    for capability in declared:
        if capability.offset is not None:
            found = PlacedCapability(capability, capability.offset, _prefix(capability, capability.offset))
            _check_fixed(found, taken)
            taken.append(found)
    for capability in declared:
        if capability.offset is None:
            at = _first_gap(capability, taken)
            taken.append(PlacedCapability(capability, at, _prefix(capability, at)))
    order = {id(capability): n for n, capability in enumerate(declared)}
    return sorted(taken, key=lambda p: order[id(p.declaration)])


def chain(capabilities: Sequence[PlacedCapability]) -> list[ConfigRegister]:
    """The registers of all capabilities, with ID and next pointer (PCI Local Bus 3.0, 6.7)."""
    found: list[ConfigRegister] = []
    following = [*(p.offset for p in capabilities[1:]), 0][: len(capabilities)]
    for capability, next_offset in zip(capabilities, following, strict=True):
        link = (
            ConfigRegister("id", 0, 1, reset=capability.declaration.id),
            ConfigRegister("next", 1, 1, reset=next_offset),
        )
        registers = (*link, *capability.declaration.registers())
        found += placed(registers, capability.offset, capability.prefix)
    return found


def config_size(capabilities: Sequence[Capability], size: int | None) -> int:
    """4096 bytes for PCI Express, else 256, unless `size` says otherwise. Raises: DeclarationError."""
    express = any(isinstance(c, PciExpress) for c in capabilities)
    if size is None:
        return EXPRESS_SIZE if express else CONVENTIONAL_SIZE
    if size not in (CONVENTIONAL_SIZE, EXPRESS_SIZE):
        raise DeclarationError(f"configuration space has {CONVENTIONAL_SIZE} or {EXPRESS_SIZE} bytes, not {size}")
    return size


def _resolve(capability: Capability, bars: Sequence[BarInfo]) -> Capability:
    if not isinstance(capability, Msix):
        return capability
    bar = next((b for b in bars if b.index == capability.bar and b.kind.startswith("memory")), None)
    if bar is None:
        raise DeclarationError(f"Msix: the table is said to be in BAR {capability.bar}, which is no memory BAR here")
    return capability.place(bar.size)


def _refuse_duplicates(capabilities: Sequence[Capability]) -> None:
    seen: set[int] = set()
    for capability in capabilities:
        if capability.id in seen and not capability.repeatable:
            raise DeclarationError(f"two {type(capability).__name__} capabilities: a function has one at most")
        seen.add(capability.id)


def _check_fixed(found: PlacedCapability, taken: Sequence[PlacedCapability]) -> None:
    name = type(found.declaration).__name__
    if found.offset % 4 or found.offset < FIRST_CAPABILITY:
        raise DeclarationError(
            f"{name}: offset {found.offset:#x} must be a multiple of 4 from {FIRST_CAPABILITY:#x} on "
            f"(PCI Local Bus 3.0, 6.7)"
        )
    if found.end > CONVENTIONAL_SIZE:
        raise DeclarationError(f"{name} at {found.offset:#x} ends at {found.end:#x}, past {CONVENTIONAL_SIZE:#x}")
    for other in taken:
        if found.offset < other.end and other.offset < found.end:
            raise DeclarationError(
                f"{name} at {found.offset:#x} overlaps {type(other.declaration).__name__}, "
                f"{other.offset:#x} to {other.end - 1:#x}"
            )


def _first_gap(capability: Capability, taken: Sequence[PlacedCapability]) -> int:
    at = FIRST_CAPABILITY
    for other in sorted(taken, key=lambda p: p.offset):
        if at + capability.length <= other.offset:
            break
        at = max(at, -(-other.end // 4) * 4)
    if at + capability.length > CONVENTIONAL_SIZE:
        raise DeclarationError(
            f"{type(capability).__name__} ({capability.length} bytes) finds no room below {CONVENTIONAL_SIZE:#x}"
        )
    return at


def _prefix(capability: Capability, offset: int) -> str:
    return f"{capability.name}@{offset:#x}" if capability.repeatable else capability.name
