"""Interrupts of a function: what a model declares, and the live port that it and the buses use."""

from __future__ import annotations

import enum
import errno
import os
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias, overload

from .._native import ffi, lib
from ..errors import DeclarationError, InvalidArgument, SaveError, StateError, TransportError
from .capabilities import Capability, Msi, Msix
from .indexes import IrqIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from ..device.dispatch import NativeDevice

InterruptMode: TypeAlias = Literal["msix", "msi", "intx"]
_EINVAL = errno.EINVAL
_MODES: Final[dict[int, InterruptMode]] = {IrqIndex.INTX: "intx", IrqIndex.MSI: "msi", IrqIndex.MSIX: "msix"}


class VectorState(enum.Enum):
    """Who owns enables, masks and pending bits of the vectors."""

    CORE = lib.UMDEV_IRQ_POLICY_CORE
    """Configuration space and MSI-X table here, as the driver wrote them."""
    CLIENT = lib.UMDEV_IRQ_POLICY_CLIENT
    """The peer virtualizes them; an index is enabled from its first `connect` to `disable`, masked by `mask` alone."""


class _HasSize(Protocol):
    @property
    def size(self) -> int: ...


class _HasPort(Protocol):
    _interrupt_port: InterruptPort


@dataclass(frozen=True)
class Interrupts:
    """On a device's class: what interrupts it offers. On an instance: its `InterruptPort`.

        interrupts = Interrupts(msi=1, intx=True)

    `msi`: messages, 0 to 32, rounded up to a power of two. `msix`: vectors, 0 to 2048; the table and pending bits lie
    over BAR `msix_bar`, where `umdev.pci.Msix` puts them or at the offsets given. `intx`: a pin, `pin` 1 (INTA) to 4.

    Raises: DeclarationError for numbers that no function can have, or MSI-X without a BAR.
    """

    msi: int = 0
    msix: int = 0
    intx: bool = False
    _: KW_ONLY
    msi_masking: bool = False
    msi_address64: bool = True
    msix_bar: int | None = None
    msix_table_offset: int | None = None
    msix_pba_offset: int | None = None
    pin: int = 1

    def __post_init__(self) -> None:
        if self.msix and self.msix_bar is None:
            raise DeclarationError("Interrupts: msix needs msix_bar, the BAR that holds table and pending bits")
        if not 1 <= self.pin <= 4:
            raise DeclarationError(f"Interrupts: pin={self.pin}; 1 to 4 are INTA to INTD")
        self.capabilities()

    def capabilities(self) -> tuple[Capability, ...]:
        """The MSI and MSI-X capabilities that this makes."""
        found: list[Capability] = []
        if self.msi:
            found.append(Msi(self.msi, self.msi_masking, self.msi_address64))
        if self.msix:
            assert self.msix_bar is not None, "checked at construction"
            found.append(Msix(self.msix, self.msix_bar, self.msix_table_offset, self.msix_pba_offset))
        return tuple(found)

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: _HasPort, owner: type) -> InterruptPort: ...
    def __get__(self, instance: _HasPort | None, owner: type) -> Interrupts | InterruptPort:
        if instance is None:
            return self
        port = getattr(instance, "_interrupt_port", None)
        if port is None:
            raise StateError(f"{owner.__name__} has interrupts from Device.__init__ on: call super().__init__() first")
        assert isinstance(port, InterruptPort)
        return port


class InterruptPort:
    """The interrupts of one device, live. Any thread may call anything, with or without the device lock; nothing here
    waits, and no call raises because of what a guest or client did.

    Memory that the device wrote before an interrupt is visible to the driver when it arrives. After `reset` returns,
    nothing raised before it arrives any more. After `close` the port keeps its state, and nobody hears of it.
    """

    def __init__(self, declaration: Interrupts) -> None:
        self.declaration = declaration
        self.capabilities = declaration.capabilities()
        msi = next((c.allocatable for c in self.capabilities if isinstance(c, Msi)), 0)
        pointer = lib.umdev_irq_new(declaration.intx, msi, declaration.msix)
        if pointer == ffi.NULL:
            raise MemoryError("no memory for interrupt vectors")
        # The collector frees it, so that a late call from a thread of the model never meets freed memory.
        self._irq = ffi.gc(pointer, lib.umdev_irq_free)
        sources = int(lib.umdev_irq_sources(pointer)) if declaration.intx else 0
        self._vector_count = max(msi, declaration.msix, sources)

    def __repr__(self) -> str:
        return f"<InterruptPort of {self.declaration}>"

    # For device models.

    def raise_(self, vector: int = 0) -> None:
        """Send message `vector` where the driver enabled MSI-X or MSI, else put source `vector` of INTx high.

        A message that is masked pends; without bus mastering it is lost, as PCI Express Base 5.0, 7.5.1.1.3 has it.
        Where the driver allocated fewer MSI messages than declared, vectors share messages.

        Raises: InvalidArgument for a vector that is not declared.
        """
        self._check(lib.umdev_irq_raise(self._irq, self._vector(vector)), vector)

    def lower(self, vector: int = 0) -> None:
        """Put source `vector` of INTx low. Messages have no level: nothing happens to them.

        Raises: InvalidArgument for a vector that is not declared.
        """
        lib.umdev_irq_set_level(self._irq, self._vector(vector), 0)

    def signal(self, vector: int = 0) -> bool:
        """Send message `vector` as `raise_`, but leave INTx alone. True if it was sent or pends.

        Raises: InvalidArgument for a vector that is not declared.
        """
        result: int = lib.umdev_irq_signal(self._irq, self._vector(vector))
        self._check(result, vector)
        return result == 0

    def report_error(self) -> bool:
        """Tell the user of the device of an unrecoverable error (VFIO's ERR). True if somebody listens."""
        return bool(lib.umdev_irq_notify(self._irq, IrqIndex.ERR) == 0)

    def request_release(self) -> bool:
        """Ask the user of the device to let it go (VFIO's REQ). True if somebody listens."""
        return bool(lib.umdev_irq_notify(self._irq, IrqIndex.REQ) == 0)

    @property
    def mode(self) -> InterruptMode | None:
        """What an interrupt would go out as now: "intx" while the driver enabled no messages and there is a pin."""
        return _MODES.get(lib.umdev_irq_mode(self._irq))

    @property
    def level(self) -> bool:
        """Is a source of INTx high, whatever gates the pin?"""
        return bool(lib.umdev_irq_level(self._irq))

    @property
    def pending(self) -> tuple[int, ...]:
        """Vectors of the enabled message kind that wait for their masks; for INTx the sources that are high."""
        mode = lib.umdev_irq_mode(self._irq)
        if mode in (IrqIndex.MSI, IrqIndex.MSIX):
            return self._pending(mode)
        return self._high_sources()

    @property
    def counters(self) -> dict[str, int]:
        """Since the device was made: interrupts `sent`, messages `pended` and `dropped` (no bus mastering)."""
        found = ffi.new("umdev_irq_counters *")
        lib.umdev_irq_read_counters(self._irq, found)
        return {"sent": found.sent, "pended": found.pended, "dropped": found.dropped}

    # For buses. Index and vector are VFIO's.

    @property
    def pointer(self) -> Any:
        """The `umdev_irq *`, for C; valid as long as this object."""
        return self._irq

    @property
    def pin(self) -> int:
        """Interrupt Pin: 0 for none, 1 to 4 for INTA to INTD."""
        return self.declaration.pin if self.declaration.intx else 0

    def vectors(self, index: int) -> int:
        """How many vectors `index` has; 0 for an index that does not exist."""
        return int(lib.umdev_irq_vectors(self._irq, index)) if 0 <= index < len(IrqIndex) else 0

    def connect(self, index: int, vector: int, descriptor: int) -> None:
        """Let an eventfd hear of the vector from now on; it is dup'ed. -1 disconnects, and the index stays enabled.

        Delivers what pends for it, and an INTx level that is high. What was connected before is closed.

        Raises: InvalidArgument for a bad vector or what is no eventfd, TransportError without descriptors left.
        """
        self._check_connection(
            lib.umdev_irq_connect(self._irq, *self._place(index, vector), descriptor), index, vector, descriptor
        )

    def connect_unmask(self, index: int, vector: int, descriptor: int) -> None:
        """Let writes to an eventfd unmask INTx, as `unmask` does; it is dup'ed and never waited on. -1 ends it.

        Raises: as `connect`; INTx alone can be unmasked so.
        """
        self._check_connection(
            lib.umdev_irq_connect_unmask(self._irq, *self._place(index, vector), descriptor), index, vector, descriptor
        )

    def on_level(self, listener: Any, context: Any = ffi.NULL) -> None:
        """For buses that drive INTx as a level: a C `umdev_level_listener` (irq_decls.h) and its context, or NULL.

        It is called with each change of the pin, gates included, and at once when that is high; `disconnect_all` ends
        it. It must neither wait nor call this port.
        """
        lib.umdev_irq_on_level(self._irq, listener, context)

    def on_message(self, listener: Any, context: Any = ffi.NULL) -> None:
        """For buses that send messages themselves: a C `umdev_message_listener` (irq_decls.h) and its context, or NULL.

        It is called in place of the eventfds of MSI and MSI-X; masks, pending bits and bus mastering stay the core's.
        `disconnect_all` ends it. It must neither wait nor call this port.
        """
        lib.umdev_irq_on_message(self._irq, listener, context)

    def mask(self, index: int, vector: int) -> None:
        """Hold the vector back: a message pends, a level waits. Raises: InvalidArgument."""
        lib.umdev_irq_mask(self._irq, *self._place(index, vector))

    def unmask(self, index: int, vector: int) -> None:
        """Undo `mask`, and the mask that each INTx signal sets; signals INTx again if the level is still high.

        Raises: InvalidArgument.
        """
        lib.umdev_irq_unmask(self._irq, *self._place(index, vector))

    def disable(self, index: int) -> None:
        """Disconnect every vector of the index, forget its masks and what pends. Raises: InvalidArgument."""
        if not 0 <= index < len(IrqIndex):
            raise InvalidArgument(f"there is no interrupt index {index}")
        lib.umdev_irq_disable(self._irq, index)

    def disconnect_all(self) -> None:
        """The bus has gone: disconnect every vector and listener, forget the masks that it set.

        What pends stays until a reset and goes to whom is connected next, unless the client owned the vectors' state.
        """
        lib.umdev_irq_disconnect_all(self._irq)

    def trigger(self, index: int, vector: int) -> bool:
        """The client's test of its own eventfd: signal it whatever masks say. False if nothing is connected.

        Raises: InvalidArgument.
        """
        return bool(lib.umdev_irq_trigger(self._irq, *self._place(index, vector)) == 0)

    def set_policy(self, policy: VectorState) -> None:
        """Say who owns vector state; a bus does so before the driver's first access."""
        lib.umdev_irq_set_policy(self._irq, policy.value)

    # For configuration space and the device.

    def set_state(self, flags: int) -> None:
        """Enables, masks and bus mastering as configuration space has them (`InterruptState`)."""
        lib.umdev_irq_set_state(self._irq, flags)

    def set_msi(self, allocated: int, mask: int) -> None:
        """How many MSI messages the driver allocated (1, 2, 4 ... 32), and its mask bits."""
        lib.umdev_irq_set_msi(self._irq, allocated, mask)

    @property
    def msi_pending(self) -> int:
        """The pending bits of MSI."""
        return int(lib.umdev_irq_msi_pending(self._irq))

    def install(self, native: NativeDevice, regions: Mapping[int, _HasSize]) -> None:
        """Lay MSI-X table and pending bits over their BAR; `regions` has the BARs by index.

        Raises: DeclarationError where they do not fit, or something else is there.
        """
        for capability in self.capabilities:
            if isinstance(capability, Msix):
                place = capability.place(regions[capability.bar].size)
                assert place.table_offset is not None, "place() sets it"
                assert place.pba_offset is not None, "place() sets it"
                for offset, length, handler in (
                    (place.table_offset, place.table_length, "umdev_irq_msix_table"),
                    (place.pba_offset, place.pba_length, "umdev_irq_msix_pba"),
                ):
                    try:
                        native.overlay(place.bar, offset, length, ffi.addressof(lib, handler), self._irq, lockless=True)
                    except InvalidArgument as error:
                        raise DeclarationError(f"the MSI-X structures need room of their own: {error}") from error

    def reset(self) -> None:
        """Sources low, nothing pending, the MSI-X table as after power-on. Connections and client masks stay."""
        lib.umdev_irq_reset(self._irq)

    def save(self) -> dict[str, Any]:
        """Levels, pending bits and the MSI-X table, as plain data. Connections belong to the bus."""
        return {
            "sources": list(self._high_sources()),
            "msi_pending": list(self._pending(IrqIndex.MSI)),
            "msix_pending": list(self._pending(IrqIndex.MSIX)),
            "msix_table": self._read_table(),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what was saved; configuration space comes first. What is not masked goes out at once.

        Raises: SaveError, and nothing has changed, if it was saved by a port with other vectors.
        """
        table = saved["msix_table"]
        limits = (
            ("sources", int(lib.umdev_irq_sources(self._irq))),
            ("msi_pending", self.vectors(IrqIndex.MSI)),
            ("msix_pending", self.vectors(IrqIndex.MSIX)),
        )
        for name, limit in limits:
            if any(not 0 <= vector < limit for vector in saved[name]):
                raise SaveError(f"interrupts.{name} has vectors that this device has not: {saved[name]}")
        if len(table) != 16 * self.vectors(IrqIndex.MSIX):
            raise SaveError(f"interrupts.msix_table has {len(table)} bytes for {self.vectors(IrqIndex.MSIX)} vectors")
        self.reset()
        lib.umdev_irq_msix_table(self._irq, 0, ffi.from_buffer(bytearray(table)), len(table), lib.UMDEV_WRITE)
        for vector in saved["msi_pending"]:
            lib.umdev_irq_set_pending(self._irq, IrqIndex.MSI, vector, 1)
        for vector in saved["msix_pending"]:
            lib.umdev_irq_set_pending(self._irq, IrqIndex.MSIX, vector, 1)
        for source in saved["sources"]:
            lib.umdev_irq_set_level(self._irq, source, 1)

    def close(self) -> None:
        """Disconnect everything. May be called twice."""
        self.disconnect_all()

    # Inside.

    def _vector(self, vector: int) -> int:
        if not self._vector_count:
            raise InvalidArgument("this device declares no interrupts: write `interrupts = Interrupts(...)`")
        if not 0 <= vector < self._vector_count:
            raise InvalidArgument(f"interrupt vector {vector}: this device declares 0 to {self._vector_count - 1}")
        return vector

    def _check(self, result: int, vector: int) -> None:
        if result == -_EINVAL:
            raise InvalidArgument(f"interrupt vector {vector}: MSI-X has {self.vectors(IrqIndex.MSIX)} vectors here")

    def _place(self, index: int, vector: int) -> tuple[int, int]:
        if not 0 <= vector < self.vectors(index):
            raise InvalidArgument(f"interrupt index {index} has {self.vectors(index)} vectors; there is no {vector}")
        return index, vector

    def _check_connection(self, result: int, index: int, vector: int, descriptor: int) -> None:
        if result == -_EINVAL:
            what = "is no eventfd" if index == IrqIndex.INTX or descriptor >= 0 else "cannot be connected"
            raise InvalidArgument(f"descriptor {descriptor} {what} (interrupt index {index}, vector {vector})")
        if result:
            error = TransportError(f"interrupt index {index}, vector {vector}: {os.strerror(-result)}")
            error.errno = -result  # what the client is told
            raise error

    def _bits(self, count: int, test: Callable[[int], int]) -> tuple[int, ...]:
        return tuple(n for n in range(count) if test(n))

    def _pending(self, index: int) -> tuple[int, ...]:
        return self._bits(self.vectors(index), lambda n: int(lib.umdev_irq_pending(self._irq, index, n)))

    def _high_sources(self) -> tuple[int, ...]:
        count = int(lib.umdev_irq_sources(self._irq))
        return self._bits(count, lambda n: int(lib.umdev_irq_source(self._irq, n)))

    def _read_table(self) -> bytes:
        table = bytearray(16 * self.vectors(IrqIndex.MSIX))
        lib.umdev_irq_msix_table(self._irq, 0, ffi.from_buffer(table), len(table), 0)
        return bytes(table)
