"""A PCI function as its driver sees it, the same on every bus."""

from __future__ import annotations

import abc
from functools import cached_property
from typing import TYPE_CHECKING, get_args

from ..errors import InvalidArgument, NotSupported, StateError
from ..pci.indexes import IrqIndex, RegionIndex
from ..pci.layout import COMMAND_BUS_MASTER, COMMAND_IO, COMMAND_MEMORY
from .bar_view import BarView, BarViews, ProbedBar, assign_bars, probe_bars
from .config_view import ConfigView
from .interrupt_set import InterruptKind, InterruptSet, open_interrupts
from .region import MappedArea, RegionInfo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from .dma_buffer import DmaBuffer
    from .doorbell import DriverDoorbell


class Function(abc.ABC):
    """The driver's side of one function: userspace drivers and tests are written against this and run on every bus.

        with bus.open_function(device) as function:
            function.assign_bars()
            function.enable()
            with function.enable_interrupts("msi") as interrupts, function.allocate(4096) as buffer:
                function.bars[0].write64(0x80, buffer.address)
                assert interrupts.wait(timeout=5)

    A bus derives from it and gives the abstract methods, which are few and say all; the rest is built on them. Any
    thread may call any method; accesses of several threads reach the device in some order. After `close`, and after the
    peer is gone, accesses raise what the bus's transport raises (StateError, Disconnected).
    """

    # Primitives: what a bus implements.

    @property
    @abc.abstractmethod
    def regions(self) -> Mapping[int, RegionInfo]:
        """Every region of the function with size above 0, by VFIO index (`umdev.pci.RegionIndex`); never changes."""

    @abc.abstractmethod
    def region_read(self, index: int, offset: int, length: int) -> bytes:
        """One read of `length` bytes. All ones where nothing decodes. The bus checks no more than it must: the device
        defines what bad accesses do. Raises: InvalidArgument for a region or range that the bus refuses.
        """

    @abc.abstractmethod
    def region_write(self, index: int, offset: int, data: bytes) -> None:
        """One write. For configuration space and I/O BARs it returns when the device has acted; a write to a memory BAR
        may be posted, and is done before a later read of the function returns. Raises: as `region_read`.
        """

    @abc.abstractmethod
    def allocate(self, size: int) -> DmaBuffer:
        """Memory that the device can reach, at least `size` bytes rounded up to pages, zeros. Free it before `close`.

        Raises: InvalidArgument for a size below 1, DmaError or TransportError when there is no more.
        """

    @abc.abstractmethod
    def irq_count(self, index: int) -> int:
        """How many vectors interrupt `index` (`umdev.pci.IrqIndex`) has, maybe 0."""

    @abc.abstractmethod
    def connect_irq(self, index: int, descriptors: Sequence[int]) -> None:
        """Enable interrupt `index`: vector n signals the eventfd `descriptors[n]` from now on. With -1, or beyond the
        last of them, it signals nothing. The bus keeps no number of the caller's after it returns (it dup's or sends
        them).

        Raises: InvalidArgument for more descriptors than vectors or what is no eventfd.
        """

    @abc.abstractmethod
    def disable_irq(self, index: int) -> None:
        """Undo `connect_irq`: no eventfd of this index is signalled after it returns. Harmless when not enabled."""

    @abc.abstractmethod
    def mask_irq(self, index: int, vector: int = 0) -> None:
        """Hold a vector back at the bus; for INTx each signal does so by itself."""

    @abc.abstractmethod
    def unmask_irq(self, index: int, vector: int = 0) -> None:
        """Undo it; INTx signals again at once if its level is still high."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Reset the function as the bus does. When it returns, nothing of the old life writes memory or interrupts any
        more; registers and configuration space are at reset values, `connect_irq` still holds.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Let the function go: interrupts, DMA memory, descriptors. May be called twice; never raises."""

    # Built on them.

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __str__(self) -> str:
        return f"the function behind {type(self).__name__}"

    @cached_property
    def config(self) -> ConfigView:
        """Configuration space."""
        return ConfigView(self)

    @cached_property
    def bars(self) -> Mapping[int, BarView]:
        """The BARs by index; a 64-bit BAR stands under its first. Another index: NotFound, naming those that are."""
        return BarViews(self)

    @cached_property
    def rom(self) -> BarView | None:
        """The expansion ROM, where there is one."""
        info = self.regions.get(RegionIndex.ROM)
        return BarView(self, info) if info is not None and info.size else None

    def map_area(self, index: int, number: int = 0) -> MappedArea:
        """Map area `number` of a region into this process: its bytes are then reached with no trap and no message.

        Raises: NotSupported where the region has no areas, InvalidArgument for a region or number that does not exist.
        """
        info = self.regions.get(index)
        if info is None:
            raise InvalidArgument(f"{self} has no region {index}")
        if not info.areas or info.descriptor is None:
            raise NotSupported(f"region {index} of {self} cannot be mapped: every access is trapped")
        if not 0 <= number < len(info.areas):
            raise InvalidArgument(f"region {index} of {self} has {len(info.areas)} areas; there is no {number}")
        return MappedArea(info, info.areas[number])

    def doorbells(self, index: int) -> Mapping[int, DriverDoorbell]:
        """What of region `index` can be rung without a trap, by offset: `function.doorbells(0)[0x1000].ring()`.

        A bus that can't, or not for all, offers none, or fewer: a store does the same everywhere. Of several at one
        offset, which ring for different values, the first is there. They end with the function.

        Raises: InvalidArgument for a region that does not exist, StateError after `close`.
        """
        if index not in self.regions:
            raise InvalidArgument(f"{self} has no region {index}")
        return {}

    def enable(self, *, memory: bool = True, io: bool = True, bus_master: bool = True) -> None:
        """Set or clear the three enables of the Command register; other bits stay.

        What isn't said is set: `enable()` sets all three, and `enable(bus_master=False)` all but that one. Bits that
        the function has not stay clear: a function without I/O BARs has no I/O enable. After power-on and reset all
        are clear, so a driver begins with this; the test kit's fixtures have done it.
        """
        chosen = memory * COMMAND_MEMORY | io * COMMAND_IO | bus_master * COMMAND_BUS_MASTER
        others = self.config.command & ~(COMMAND_MEMORY | COMMAND_IO | COMMAND_BUS_MASTER)
        self.config.command = others | chosen

    def probe_bars(self) -> dict[int, ProbedBar]:
        """Find BARs and ROM by sizing, as firmware does. Decoding is off meanwhile and as before after it."""
        return probe_bars(self.config)

    def assign_bars(self, *, low: bool = False) -> dict[int, int]:
        """Give each BAR an address, as firmware does, and return them by index. On a bus without a VM addresses decide
        nothing: `bars` reach the regions wherever they are. `low`: 64-bit BARs below 4 GiB, too.

        Raises: NotSupported where there is no room.
        """
        return assign_bars(self.config, self.probe_bars(), low=low)

    def function_level_reset(self) -> None:
        """Reset by the driver's own means, FLR. Raises: NotSupported without it."""
        self.config.function_level_reset()

    def enable_interrupts(self, kind: InterruptKind | None = None, count: int = 1) -> InterruptSet:
        """Enable `count` vectors of one kind; None takes the best that the function has: MSI-X, MSI, INTx.

        "msix" turns on memory decoding, for its table is in a BAR. Messages need bus mastering (`enable`). "err" and
        "req" are VFIO's notifications and go beside the others.

        Raises: NotSupported where the function lacks the kind or the vectors, StateError while another kind is enabled,
        InvalidArgument for a word that is no kind.
        """
        kind = kind or self._best_kind()
        if kind not in get_args(InterruptKind):
            raise InvalidArgument(f"{kind!r} is no kind of interrupt: {', '.join(get_args(InterruptKind))} are")
        index = IrqIndex[kind.upper()]
        have = self.irq_count(index)
        if not 1 <= count <= have:
            raise NotSupported(f"{self} has {have} {kind} vectors; {count} were asked for")
        rivals = (IrqIndex.INTX, IrqIndex.MSI, IrqIndex.MSIX)
        for other in self._enabled:
            if other.index == index or (index in rivals and other.index in rivals):
                raise StateError(f"{other.kind} interrupts of {self} are enabled: close them first")
        opened = open_interrupts(self, kind, count)
        self._enabled.append(opened)
        return opened

    @cached_property
    def _enabled(self) -> list[InterruptSet]:
        return []

    def forget_interrupts(self, closed: InterruptSet) -> None:
        """For `InterruptSet.close`: another kind may be enabled now."""
        if closed in self._enabled:
            self._enabled.remove(closed)

    def _best_kind(self) -> InterruptKind:
        kinds: tuple[InterruptKind, ...] = ("msix", "msi", "intx")
        for kind in kinds:
            if self.irq_count(IrqIndex[kind.upper()]):
                return kind
        raise NotSupported(f"{self} has no interrupts")
