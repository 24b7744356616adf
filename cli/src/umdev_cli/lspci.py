"""A device as lspci shows one, decoded from its configuration space (PCI Local Bus 3.0, chapter 6 and appendix H)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .failures import joined

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["lines"]

_COMMAND = {0: "I/O", 1: "Mem", 2: "BusMaster", 6: "ParErr", 8: "SERR", 10: "DisINTx"}
_STATUS = {3: "INTx", 4: "Cap", 11: ">TAbort", 12: "<TAbort", 13: "<MAbort", 14: ">SERR", 15: "<PERR"}
_CAPABILITIES = {
    0x01: "Power Management",
    0x05: "MSI",
    0x09: "Vendor Specific",
    0x10: "PCI Express Endpoint",
    0x11: "MSI-X",
}
_SIGN = "-+"
_ROM = 6
_POINTER_LIMIT = 48
"""More capabilities than this don't fit 256 bytes: a chain that goes on is a circle."""


class _Config:
    """The first 256 bytes of configuration space."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, offset: int, length: int) -> int:
        return int.from_bytes(self._data[offset : offset + length], "little")


def lines(device: dict[str, Any], verbose: int) -> Iterator[str]:
    """The text for what `describe` told."""
    config, pci = _Config(bytes.fromhex(device["config"])), device["pci"]
    yield (
        f"{device['uuid']} {device['parent']} {device['type']} [{pci['class'] >> 8:04x}]: "
        f"{pci['vendor']:04x}:{pci['device']:04x} (rev {pci['revision']:02x})"
    )
    if not verbose:
        return
    yield f"\tBus: {device['bus']}, {device['state']}, process {device['pid']}"
    if device["socket"]:
        yield f"\tSocket: {device['socket']}"
    if device["log"]:
        yield f"\tLog: {device['log']}"
    for name, value in device["attributes"].items():
        yield f"\tAttribute {name}: {value}"
    yield f"\tControl: {_flags(config.read(4, 2), _COMMAND)}"
    yield f"\tStatus: {_flags(config.read(6, 2), _STATUS)}"
    yield from _interrupts(device["interrupts"], config)
    for region in device["regions"]:
        yield _region(region, config)
    yield from _capabilities(config)
    for name, mechanism in device["services"].items():
        yield f"\tService {name}: {mechanism}"
    for name, why in device["refused"].items():
        yield f"\tService {name}: refused: {joined(why)}"
    counters = {**device["counters"], **device["interrupts"]["counters"]}
    shown = {name: count for name, count in counters.items() if count or verbose > 1}
    yield f"\tCounters: {' '.join(f'{name}={count}' for name, count in shown.items()) or 'all zero'}"
    yield from _burn_down(device)
    for name, text in device["queries"].items():
        yield f"\tQuery {name}: {text}"


def _flags(value: int, names: dict[int, str]) -> str:
    return " ".join(f"{name}{_SIGN[value >> bit & 1]}" for bit, name in names.items())


def _interrupts(interrupts: dict[str, Any], config: _Config) -> Iterator[str]:
    intx, msi, msix = interrupts["counts"][:3]
    pin = config.read(0x3D, 1)
    offered = [f"pin {chr(ord('A') + pin - 1)}"] if intx and pin else []
    offered += [f"MSI {msi}"] if msi else []
    offered += [f"MSI-X {msix}"] if msix else []
    if offered:
        yield f"\tInterrupt: {', '.join(offered)}; in use: {interrupts['mode']}"


def _region(region: dict[str, Any], config: _Config) -> str:
    index, kind, size = region["index"], region["kind"], _size(region["size"])
    if index == _ROM:
        return f"\tExpansion ROM at {config.read(0x30, 4) & ~0x7FF:08x} [size={size}]"
    bar = config.read(0x10 + 4 * index, 8 if kind == "memory64" else 4)
    if kind == "io":
        return f"\tRegion {index}: I/O ports at {bar & ~0x3:04x} [size={size}]"
    width, digits = ("64-bit", 16) if kind == "memory64" else ("32-bit", 8)
    prefetchable = "prefetchable" if region["prefetchable"] else "non-prefetchable"
    direct = sum(area["length"] for area in region["areas"])
    passed = f", {_size(direct)} passed through" if direct else ""
    return f"\tRegion {index}: Memory at {bar & ~0xF:0{digits}x} ({width}, {prefetchable}) [size={size}{passed}]"


def _size(size: int) -> str:
    for shift, unit in ((30, "G"), (20, "M"), (10, "K")):
        if size >= 1 << shift and size % (1 << shift) == 0:
            return f"{size >> shift}{unit}"
    return str(size)


def _capabilities(config: _Config) -> Iterator[str]:
    if not config.read(6, 2) >> 4 & 1:
        return
    pointer = config.read(0x34, 1) & ~3
    for _ in range(_POINTER_LIMIT):
        if not pointer:
            return
        identifier = config.read(pointer, 1)
        name = _CAPABILITIES.get(identifier, f"id {identifier:#04x}")
        yield f"\tCapabilities: [{pointer:02x}] {name}{_details(identifier, pointer, config)}"
        pointer = config.read(pointer + 1, 1) & ~3


def _details(identifier: int, offset: int, config: _Config) -> str:
    control = config.read(offset + 2, 2)
    if identifier == 0x01:
        return f": D{config.read(offset + 4, 2) & 3}"
    if identifier == 0x05:
        enabled, wide, masks = (control >> bit & 1 for bit in (0, 7, 8))
        counts = f"{1 << (control >> 4 & 7)}/{1 << (control >> 1 & 7)}"
        return f": Enable{_SIGN[enabled]} Count={counts} Maskable{_SIGN[masks]} 64bit{_SIGN[wide]}"
    if identifier == 0x11:
        return f": Enable{_SIGN[control >> 15]} Count={(control & 0x7FF) + 1} Masked{_SIGN[control >> 14 & 1]}"
    return ""


def _burn_down(device: dict[str, Any]) -> Iterator[str]:
    if device["burn_down"]:
        yield "\tNot modelled, but used by the driver:"
    for entry in device["burn_down"]:
        written = f", last {entry['value']:#x}" if entry["writes"] else ""
        yield (
            f"\t\tregion {entry['region']} offset {entry['offset']:#x} length {entry['length']}: "
            f"{entry['reads']} reads, {entry['writes']} writes{written}"
        )
    if device["burn_down_lost"]:
        yield f"\t\t{device['burn_down_lost']} accesses more than the list can hold"
