"""The trace of accesses and events: switch it on, read the rings, name the registers.

A ring is a sealed memfd of one thread. Its header says where the records lie and what is in them, so a ring can be read
by any process that has the descriptor (or `/proc/PID/fd/N`), also while it is being written.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from umdev._native import ffi, lib
from umdev.errors import InvalidArgument, StateError
from umdev.pci.indexes import RegionIndex

from .events import REGION as EVENT
from .native import give_way

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from umdev.pci.config import ConfigSpace

    from .events import Events
    from .region import Region

MAGIC = b"UMDEVTRC"
HEADER = struct.Struct("<IHH8sIIQQQII256s")
RINGS_LIMIT = 256
RESULTS = ("ok", "pending", "unhandled", "abort", "fault", "gone")


@dataclass(frozen=True, slots=True)
class Record:
    """One access, or an event. Times are in ns, of CLOCK_MONOTONIC; `value` is the first 8 bytes; `thread` is Linux's.

    Of an event `initiator` is the number of its name (`Events.name`), `offset` its address.
    """

    sequence: int
    time: int
    offset: int
    value: int
    duration: int
    device: int
    length: int
    initiator: int
    space: int
    region: int
    flags: int
    result: int
    thread: int

    @property
    def event(self) -> bool:
        """Nothing that the driver did: the device did it by itself."""
        return self.region == EVENT

    @property
    def write(self) -> bool:
        """Else a read."""
        return bool(self.flags & lib.UMDEV_WRITE)

    @property
    def outcome(self) -> str:
        """`ok`, `pending`, `unhandled`, `abort`, `fault`, `gone` or `errno 35`."""
        return RESULTS[self.result] if 0 <= self.result < len(RESULTS) else f"errno {-self.result}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a ring held: the records still there, oldest first, and how many were overwritten."""

    records: tuple[Record, ...]
    lost: int
    process: int
    thread: int


class Ring:
    """Reads one ring. The descriptor stays the caller's.

    Raises: InvalidArgument if it is not a ring of this major version.
    """

    def __init__(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        if size < HEADER.size:
            raise InvalidArgument(f"descriptor {descriptor} is no trace ring: {size} bytes")
        self._map = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
        header = HEADER.unpack_from(self._map)
        _, major, _, magic, self._first, self._record_size, self._capacity, _, _, process, thread, fields = header
        self.process, self.thread = process, thread
        if magic != MAGIC or major != 1:
            raise InvalidArgument(f"descriptor {descriptor} is no trace ring of major version 1")
        members = [field.split(":") for field in fields.rstrip(b"\0").decode("ascii").split()]
        self._names = [name for name, _ in members]
        self._format = struct.Struct("<" + "".join(code for _, code in members))
        if self._format.size > self._record_size or self._first + self._capacity * self._record_size > size:
            raise InvalidArgument(f"descriptor {descriptor} is a damaged trace ring")

    def read(self, after: int = 0) -> Snapshot:
        """The records that are whole and whose sequence is above `after`; those overwritten count as lost."""
        head = HEADER.unpack_from(self._map)[7]
        oldest = max(after, head - self._capacity)
        records = []
        for number in range(oldest, head):
            give_way()  # in the device's own process handlers go first
            at = self._first + number % self._capacity * self._record_size
            raw = self._map[at : at + self._record_size]
            # The sequence is cleared before a record changes: the same one after the copy means that it is whole.
            if struct.unpack_from("<Q", raw)[0] == struct.unpack_from("<Q", self._map, at)[0] == number + 1:
                values = dict(zip(self._names, self._format.unpack_from(raw), strict=True))
                known = {name: values[name] for name in Record.__slots__ if name in values}
                records.append(Record(**known, thread=self.thread))
        return Snapshot(tuple(records), head - after - len(records), self.process, self.thread)

    @property
    def head(self) -> int:
        """Records ever written."""
        return int(HEADER.unpack_from(self._map)[7])

    def close(self) -> None:
        """Unmap it."""
        self._map.close()


class Trace:
    """Traces every device of this process while it is entered; the records stay readable until the next trace.

    records: per thread, rounded up to a power of two. Raises on entry: StateError if a trace is running,
    InvalidArgument for a number of records that is not from 1 to 2**24.
    """

    def __init__(self, records: int = 4096) -> None:
        if not 0 < records <= 1 << 24:
            raise InvalidArgument(f"{records} records per thread; 1 to {1 << 24} are possible")
        self._records = records

    def __enter__(self) -> Self:
        if lib.umdev_trace_start(self._records):
            raise StateError("a trace is running already")
        return self

    def __exit__(self, *exc: object) -> None:
        lib.umdev_trace_stop()

    @property
    def descriptors(self) -> list[int]:
        """One ring per thread that made an access. They stay the core's: dup to keep one beyond the next trace."""
        found = ffi.new("int[]", RINGS_LIMIT)
        return list(found[0 : lib.umdev_trace_rings(found, RINGS_LIMIT)])

    def read(self) -> list[Record]:
        """The records of every thread, by time."""
        return sorted((record for ring in self.snapshots() for record in ring.records), key=lambda record: record.time)

    def close(self) -> None:
        """Free the rings, unless a trace is running; a thread that lives on keeps its own until the next trace."""
        lib.umdev_trace_drop()

    def snapshots(self) -> Iterator[Snapshot]:
        """Each ring as it is now."""
        for descriptor in self.descriptors:
            ring = Ring(descriptor)
            try:
                yield ring.read()
            finally:
                ring.close()


class Follower:
    """Reads a trace as it grows: what came since the last look. For one thread, while the trace runs.

    It makes nobody wait: what is overwritten before it is read is lost, and counted.
    """

    def __init__(self, trace: Trace) -> None:
        """Begins with what comes from now on. Raises: OSError when there is no room to map the rings."""
        self._trace = trace
        self._rings: dict[int, Ring] = {}
        self._seen: dict[int, int] = {}
        self._dropped = int(lib.umdev_trace_dropped())
        for descriptor in trace.descriptors:
            self._seen[descriptor] = self._ring(descriptor).head

    def read(self) -> tuple[list[Record], int]:
        """The records of all devices, by time, and how many are lost, whoever's. Raises: as the constructor."""
        found: list[Record] = []
        dropped = int(lib.umdev_trace_dropped())
        lost, self._dropped = dropped - self._dropped, dropped
        for descriptor in self._trace.descriptors:
            seen = self._seen.get(descriptor, 0)
            snapshot = self._ring(descriptor).read(seen)
            found += snapshot.records
            lost += snapshot.lost
            self._seen[descriptor] = seen + len(snapshot.records) + snapshot.lost
        return sorted(found, key=lambda record: record.time), lost

    def close(self) -> None:
        """Unmap the rings."""
        for ring in self._rings.values():
            ring.close()
        self._rings.clear()

    def _ring(self, descriptor: int) -> Ring:
        if descriptor not in self._rings:
            self._rings[descriptor] = Ring(descriptor)
        return self._rings[descriptor]


def name(
    record: Record,
    regions: Mapping[int, Region],
    events: Events | None = None,
    config: ConfigSpace | None = None,
) -> str:
    """What it is about: `bar0.status`, `bar0+0x80` where there is no register, `render.MI_NOOP` of an event.

    In configuration space, the register that an access begins in: `config.command`; `config+0x10` where there is none.
    """
    if record.event:
        return events.name(record.initiator) if events else f"event {record.initiator}"
    region = regions.get(record.region)
    return (region and region.name_at(record.offset)) or _config_name(record, config) or _place(record, region)


def _config_name(record: Record, config: ConfigSpace | None) -> str | None:
    if record.region != RegionIndex.CONFIG or config is None:
        return None
    for register, (offset, width) in config.registers.items():
        if offset <= record.offset < offset + width:
            return f"config.{register}"
    return None


def _place(record: Record, region: Region | None) -> str:
    other = "config" if record.region == RegionIndex.CONFIG else f"region {record.region}"
    return f"{region.name if region else other}+{record.offset:#x}"


def line(
    record: Record,
    regions: Mapping[int, Region],
    events: Events | None = None,
    config: ConfigSpace | None = None,
) -> str:
    """One record for people: `write bar0.status=0x80 raise_irq (4 bytes, 1.2 us)`, `event render.NOOP=0x0 at 0x8`."""
    if record.event:
        length = f" ({record.length} bytes)" if record.length else ""
        return f"event {name(record, regions, events)}={record.value:#x} at {record.offset:#x}{length}"
    region = regions.get(record.region)
    named = region.text(record.offset, record.value) if region else None
    if named is None:
        named = f"{name(record, regions, events, config)}={record.value:#x}"
    verb = "write" if record.write else "read"
    outcome = "" if record.outcome == "ok" else f", {record.outcome}"
    return f"{verb:5} {named} ({record.length} bytes, {record.duration / 1000:.1f} us{outcome})"


def lines(records: Iterable[Record], devices: Mapping[int, tuple[str, Mapping[int, Region]]]) -> Iterator[str]:
    """Every record for people, with the time since the first; `devices` maps `NativeDevice.id` to name and regions."""
    first: int | None = None
    for record in records:
        first = record.time if first is None else first
        name, regions = devices.get(record.device, (f"device {record.device}", {}))
        yield f"{(record.time - first) / 1e9:12.6f} {name} {line(record, regions)}"
