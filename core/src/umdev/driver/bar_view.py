"""A BAR as a driver uses it, and the probing and placing of BARs."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InvalidArgument, NotFound, NotSupported
from ..pci.indexes import RegionIndex
from ..pci.layout import COMMAND_IO, COMMAND_MEMORY
from .words import Words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..pci.bars import BarKind
    from .config_view import ConfigView
    from .function import Function
    from .region import MappedArea, RegionInfo

MEMORY_BASE = 0xC000_0000
MEMORY64_BASE = 0x40_0000_0000
IO_BASE = 0x1000
_ROM_OFFSET = 0x30


class BarViews(dict[int, "BarView"]):
    """A function's BARs by index. One that isn't there: NotFound, which names those that are."""

    def __init__(self, function: Function) -> None:
        self._function = function
        infos = function.regions.items()
        super().__init__({i: BarView(function, info) for i, info in infos if i < RegionIndex.ROM and info.size})

    def __missing__(self, index: int) -> BarView:
        have = f"it has {', '.join(f'BAR {number}' for number in sorted(self))}" if self else "it has none"
        raise NotFound(f"{self._function} has no BAR {index}: {have}")


class BarView(Words):
    """One BAR (or the ROM): offsets are in bytes from its start. The device answers while its decoding is enabled."""

    def __init__(self, function: Function, info: RegionInfo) -> None:
        self._function = function
        self.info = info

    def __repr__(self) -> str:
        return f"<{self._name} of {self.size:#x} bytes, of {self._function}>"

    @property
    def index(self) -> int:
        """VFIO's region index: BAR n has n, the ROM 6."""
        return self.info.index

    @property
    def size(self) -> int:
        """In bytes."""
        return self.info.size

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes in one access. Raises: InvalidArgument beyond the BAR."""
        self._check(offset, length)
        return self._function.region_read(self.index, offset, length)

    def write(self, offset: int, data: bytes) -> None:
        """Store `data` in one access; a memory BAR may answer before the device acts. Raises: InvalidArgument."""
        self._check(offset, len(data))
        self._function.region_write(self.index, offset, data)

    def map(self, number: int = 0) -> MappedArea:
        """Map the area with this number. Raises: NotSupported where the BAR has none, InvalidArgument for a number."""
        return self._function.map_area(self.index, number)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise InvalidArgument(f"{length} bytes at {offset:#x} are not within {self._name} of {self.size:#x} bytes")

    @property
    def _name(self) -> str:
        return "the ROM" if self.index == RegionIndex.ROM else f"BAR {self.index}"


@dataclass(frozen=True, slots=True)
class ProbedBar:
    """What a BAR's register says of it: `size` in bytes, `address` as it stands there."""

    index: int
    size: int
    kind: BarKind
    prefetchable: bool
    address: int


def probe_bars(config: ConfigView) -> dict[int, ProbedBar]:
    """Size BARs and ROM (PCI Local Bus 3.0, 6.2.5.1), decoding off meanwhile; registers are as before after it."""
    found: dict[int, ProbedBar] = {}
    with _decoding_off(config):
        index = 0
        while index < 6:
            bar = _probe(config, index)
            if bar is not None:
                found[index] = bar
            index += 2 if bar is not None and bar.kind == "memory64" else 1
        rom = _probe_rom(config)
        if rom is not None:
            found[6] = rom
    return found


def assign_bars(config: ConfigView, bars: Mapping[int, ProbedBar], *, low: bool = False) -> dict[int, int]:
    """Give every BAR an address of its own, aligned to its size, and return them by index; the ROM stays disabled.

    32-bit memory goes to MEMORY_BASE and up, 64-bit memory to MEMORY64_BASE, or with `low` beside it, I/O to IO_BASE.

    Raises: NotSupported where they do not fit below 4 GiB, or I/O not into 64 KiB.
    """
    following = {"memory32": MEMORY_BASE, "memory64": MEMORY64_BASE, "io": IO_BASE}
    limits = {"memory32": 1 << 32, "memory64": 1 << 64, "io": 1 << 16}
    placed: dict[int, int] = {}
    for bar in sorted(bars.values(), key=lambda b: b.size, reverse=True):
        space = "memory32" if bar.kind == "rom" or (low and bar.kind == "memory64") else bar.kind
        address = -(-following[space] // bar.size) * bar.size
        if address + bar.size > limits[space]:
            raise NotSupported(f"no room for BAR {bar.index} of {bar.size:#x} bytes in {space} space")
        following[space] = address + bar.size
        placed[bar.index] = address
    with _decoding_off(config):
        for index, address in placed.items():
            if index == 6:
                config.write32(_ROM_OFFSET, address)
                continue
            config.write32(0x10 + 4 * index, address)
            if bars[index].kind == "memory64":
                config.write32(0x14 + 4 * index, address >> 32)
    return placed


@contextmanager
def _decoding_off(config: ConfigView) -> Iterator[None]:
    command = config.command
    config.command = command & ~(COMMAND_MEMORY | COMMAND_IO)
    try:
        yield
    finally:
        config.command = command


def _size_mask(config: ConfigView, at: int, ones: int) -> tuple[int, int]:
    before = config.read32(at)
    config.write32(at, ones)
    mask = config.read32(at)
    config.write32(at, before)
    return before, mask


def _probe(config: ConfigView, index: int) -> ProbedBar | None:
    at = 0x10 + 4 * index
    before, mask = _size_mask(config, at, 0xFFFF_FFFF)
    if not mask:
        return None
    if mask & 1:
        # Upper bits may be fixed at 0: I/O space can have 16 bits (6.2.5.1).
        size = -(mask & ~3 | 0xFFFF_0000) & 0xFFFF_FFFF
        return ProbedBar(index, size, "io", prefetchable=False, address=before & ~3)
    wide = mask >> 1 & 3 == 2
    address, bits = before & ~0xF, mask & ~0xF
    if wide:
        high, high_mask = _size_mask(config, at + 4, 0xFFFF_FFFF)
        address, bits = address | high << 32, bits | high_mask << 32
    if not bits:
        return None  # all bits of its address read 0, whatever is written: there is nothing to place
    size = -bits & (1 << (64 if wide else 32)) - 1
    return ProbedBar(index, size, "memory64" if wide else "memory32", bool(mask & 8), address)


def _probe_rom(config: ConfigView) -> ProbedBar | None:
    before, mask = _size_mask(config, _ROM_OFFSET, 0xFFFF_F800)
    bits = mask & 0xFFFF_F800
    return ProbedBar(6, -bits & 0xFFFF_FFFF, "rom", prefetchable=False, address=before & 0xFFFF_F800) if bits else None
