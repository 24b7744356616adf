"""`Device`: what a vendor subclasses. One instance is one virtual PCI function."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ..errors import DeclarationError, SaveError, StateError
from ..memory.address_space import AddressSpace
from ..pci import BarInfo, Capability, ConfigSpace, InterruptPort, Interrupts, PciExpress, PciId, PowerManagement
from ..pci.reset import ResetKind
from . import queries, saved, state
from .arrays import RegisterArray
from .bars import Bar
from .blocks import Block, Window
from .control import Control
from .current import CurrentServices
from .dispatch import NativeDevice
from .events import Events
from .memory import DeviceMemory
from .parent import DeviceContext
from .region import Region
from .registers import Register
from .work import Job, Work, WorkQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..attach import Attachment
    from ..driver import RegionInfo
    from ..memory.mapping import Mapping as DmaMapping
    from .clock import Clock
    from .dispatch import Unmodelled

log = logging.getLogger("umdev.device")
CONFIG_REGION = 7
ROM_REGION = 6


class Device:
    """Subclass it, declare identity, interrupts and BARs, and write handlers; the core owns everything else.

    One lock per device is held for every handler, timer, work item, reset and `on_unmap`, so methods of a model never
    race with each other. Code that comes from elsewhere (a host socket's thread) takes it with `with device.locked():`.
    """

    pci: ClassVar[PciId]
    """Vendor, device, class code, subsystem, revision."""
    interrupts: Interrupts = Interrupts()
    """On the class: what the function offers. On an instance: the live `InterruptPort`."""
    capabilities: ClassVar[tuple[Capability, ...]] = (PowerManagement(), PciExpress(flr=True))
    """Beside MSI and MSI-X, which `interrupts` brings. Unless said: a PCI Express endpoint with FLR."""
    version: ClassVar[int] = 1
    """Raise it when saved state changes shape, and write `upgrade`."""
    bars: ClassVar[dict[str, Bar[Any]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.bars = {**cls.bars, **{name: bar for name, bar in vars(cls).items() if isinstance(bar, Bar)}}
        taken: dict[int, str] = {}
        for name, bar in cls.bars.items():
            for index in (bar.index, bar.index + 1) if bar.width == 64 else (bar.index,):
                if (other := taken.setdefault(index, name)) != name:
                    raise DeclarationError(f"{cls.__name__}: {other} and {name} both claim BAR {index}")

    def __init__(self, context: DeviceContext | None = None) -> None:
        """Raises: DeclarationError where the class's declarations do not fit together."""
        if not hasattr(type(self), "pci"):
            raise DeclarationError(f"{type(self).__name__} declares no identity: write `pci = PciId(...)`")
        self.context = context or DeviceContext()
        self.native = NativeDevice(str(self))
        self.native.on_fault(self._faulted)
        self.trace = Events(self.native)
        self.address_space = AddressSpace(self.native)
        self.address_space.on_unmap(self._unmapped)
        self._interrupt_port = InterruptPort(type(self).interrupts)
        self._attachment: Attachment | None = None
        self._closed = False
        self.memory = DeviceMemory(self.address_space, CurrentServices(self), self.native.count_fault)
        self.work = WorkQueue(str(self), self.clock, self.native.locked, self._work_failed)
        self.regions: dict[int, Region] = {}
        try:
            self._build()
            with self.native.locked():
                self.on_open()
                self._clear(ResetKind.POWER_ON)
                self.on_reset(ResetKind.POWER_ON)
        except BaseException:
            self._release()
            raise

    def _build(self) -> None:
        for name, bar in self.bars.items():
            region = self.regions[bar.index] = Region(self.native, bar.index, bar, self)
            self.__dict__[name] = region.block
        self.native.set_parts(self.address_space.pointer, self._interrupt_port.pointer)
        self.config = ConfigSpace(
            self.pci,
            [BarInfo(r.index, r.size, r.kind, r.prefetchable) for r in self.regions.values()],
            (*self._interrupt_port.capabilities, *self.capabilities),
            self._interrupt_port.pin,
            Control(self),
        )
        self.native.add_callback_region(CONFIG_REGION, self.config.size, self.config.read, self.config.write)
        self._interrupt_port.install(self.native, self.regions)
        self._framework: dict[int, frozenset[str]] = {}
        self._framework |= {id(owner): frozenset(vars(owner)) for owner in self.state_owners().values()}

    def __str__(self) -> str:
        kind = self.context.type.id if self.context.type else type(self).__name__
        return f"{kind} {self.context.uuid}"

    # What a model overrides.

    def on_open(self) -> None:
        """Take host resources. Called once, before the power-on reset, with the device lock held."""

    def on_reset(self, kind: ResetKind) -> None:
        """Registers and states are at their reset values, nothing is pending. Device lock held.

        An exception ends the construction of a device; later it is logged and counted like a handler's.
        """

    def on_unmap(self, mapping: DmaMapping) -> None:
        """Guest memory is about to go: unpin and end views of it. Device lock held; DMA to it fails already."""

    def on_close(self) -> None:
        """Give host resources back. Called once, without the device lock: it may join threads that take it."""

    def upgrade(self, saved_state: dict[str, Any], version: int) -> Mapping[str, Any]:  # noqa: ARG002  # for overriders
        """Turn what `version` saved into this version's shape. Raises: SaveError unless overridden."""
        raise SaveError(f"{self} has version {self.version} and can't read the state of version {version}")

    # What a model uses.

    @property
    def clock(self) -> Clock:
        """Time as the guest sees it."""
        return self.context.clock

    def after(self, delay: float, job: Job, *, period: float = 0.0) -> Work:
        """Run `job` in `delay` seconds with the device lock held; see `WorkQueue.after`."""
        return self.work.after(delay, job, period=period)

    def end_work(self) -> None:
        """For resets of the model's own (NVMe's CC.EN): cancel timers and work, end what waits in DMA by message.

        Device lock held; it is free while suspended work gets its DmaAborted and returns, if there is such work. When
        this returns none is left, but the caller.
        """
        self.work.clear()
        self.native.settle(cancel=True)
        self.work.clear()  # what handlers have started while the lock was free

    def locked(self) -> Any:
        """A context manager that holds the device lock, for threads of the model's own.

        Raises: StateError if the calling thread holds it already.
        """
        return self.native.locked()

    # What buses, tests and tools use.

    def reset(self, kind: ResetKind) -> None:
        """Reset the function. When it returns nothing of the old life writes memory or interrupts any more.

        Any thread; from a handler too. RAM windows keep their bytes unless power or the client was lost.
        """
        with contextlib.nullcontext() if self.native.held else self.native.locked():
            self._clear(kind)
            try:
                self.on_reset(kind)
            except Exception as error:
                if self.native.raise_faults:
                    raise
                self.native.count_fault(error)
                self._faulted(error, "on_reset")
        from ..plugins import plugins

        plugins().tell("umdev_device_reset", device=self, kind=kind)

    def save(self) -> dict[str, Any]:
        """The device's whole state as plain data. Raises: SaveError, StateError (closed)."""
        self._expect_open()
        with self.native.locked():
            self.native.settle(cancel=False)  # half done work has no name to be saved by
            return saved.save(self)

    def restore(self, saved_state: Mapping[str, Any]) -> None:
        """Become what was saved; after a SaveError the device is in its power-on state.

        Raises: SaveError, StateError (closed).
        """
        self._expect_open()
        with self.native.locked():
            self._clear(ResetKind.POWER_ON)
            self.on_reset(ResetKind.POWER_ON)
            self.work.clear()  # what a power-on starts is among what was saved, if it still waited then
            try:
                saved.restore(self, saved_state)
            except BaseException:
                self._clear(ResetKind.POWER_ON)
                self.on_reset(ResetKind.POWER_ON)
                raise

    @property
    def queries(self) -> dict[str, str]:
        """What `query` can call: name -> what it tells."""
        return queries.queries(self)

    def query(self, name: str, **arguments: Any) -> object:
        """Call a method that the model marked with `@query`. Raises: NotFound, StateError (closed)."""
        self._expect_open()
        return queries.call(self, name, arguments)

    @property
    def counters(self) -> dict[str, int]:
        """Accesses by outcome, since the device was made: reads, writes, unhandled, aborted, faulted, illegal."""
        return self.native.counters

    @property
    def last_fault(self) -> BaseException | None:
        """What a handler, deferred work or a reset raised last; the driver has read all ones instead."""
        return self.native.last_fault

    def burn_down(self) -> list[Unmodelled]:
        """What the driver uses and the model does not declare, by region and offset; at most 4,096 offsets."""
        return self.native.burn_down()

    def close(self) -> None:
        """End the device and free its instance. May be called twice.

        What `on_close` or an add-on raises passes through when everything is given back.

        Raises: StateError while it is attached, and from its own handlers and work.
        """
        if self._closed:
            return
        if self._attachment is not None:
            raise StateError(f"{self} is attached to {self._attachment.bus}: detach it first")
        if self.native.held:
            raise StateError(f"{self} can't be closed with its lock held: its work may be waiting for that")
        from ..plugins import plugins

        self._closed = True
        with contextlib.ExitStack() as always:
            always.callback(plugins().tell, "umdev_device_closed", device=self)
            always.callback(self._release)
            self.work.close()
            self.native.set_gone(True)
            self.on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether `close` has been called: the device is good for nothing any more."""
        return self._closed

    @property
    def attachment(self) -> Attachment | None:
        """Who drives the device now."""
        return self._attachment

    @property
    def region_infos(self) -> dict[int, RegionInfo]:
        """Every region of the function by VFIO index, configuration space included."""
        from ..driver import RegionInfo

        infos = {
            region.index: RegionInfo(
                index=region.index,
                size=region.size,
                readable=True,
                writable=region.index != ROM_REGION,
                areas=tuple(region.areas),
                descriptor=region.descriptor,
            )
            for region in self.regions.values()
        }
        infos[CONFIG_REGION] = RegionInfo(CONFIG_REGION, self.config.size, readable=True, writable=True)
        return infos

    def claim_attachment(self, attachment: Attachment) -> None:
        """Raises: StateError if the device is closed or another attachment holds it."""
        self._expect_open()
        if self._attachment is not None:
            raise StateError(f"{self} is already attached to {self._attachment.bus}")
        self._attachment = attachment

    def release_attachment(self, attachment: Attachment) -> None:
        """Undo `claim_attachment`."""
        if self._attachment is attachment:
            self._attachment = None

    def bar_moved(self, index: int, address: int) -> None:
        """The driver placed a BAR."""
        attachment = self._attachment
        if attachment is not None and attachment.on_bar_moved is not None:
            attachment.on_bar_moved(index, address)

    def state_owners(self) -> dict[str, object]:
        """The device ("" as path) and its blocks by dotted path: everything that may declare `State`."""
        owners: dict[str, object] = {"": self}
        for region in self.regions.values():
            owners.update(region.blocks())
        return owners

    def undeclared(self, owner: object) -> list[str]:
        """Attributes that the model added without declaring them."""
        known = self._framework.get(id(owner), frozenset())
        live = (Register, RegisterArray, Window, Block)
        return sorted(
            name
            for name, value in vars(owner).items()
            if name not in known and not name.startswith("_state_") and not isinstance(value, live)
        )

    # Inside.

    def _clear(self, kind: ResetKind) -> None:
        """All of a reset but what the model adds. The device lock is held."""
        self.end_work()
        self.native.abort_pending()
        self.address_space.drain()
        self._interrupt_port.reset()
        for region in self.regions.values():
            region.reset(windows=kind in (ResetKind.POWER_ON, ResetKind.CLIENT_LOST))
        self.config.reset(kind)
        state.reset(self.state_owners(), everything=kind is ResetKind.POWER_ON)

    def _release(self) -> None:
        """Give back what the core has taken, however far construction came."""
        self._closed = True
        self.work.close()
        self.native.close()
        self.memory.close()
        self.address_space.close()
        self._interrupt_port.close()
        for region in self.regions.values():
            region.close()
        if self.context.parent is not None:
            self.context.parent.devices.pop(self.context.uuid, None)
        if self.context.claim is not None:
            self.context.claim.close()

    def _unmapped(self, mapping: DmaMapping) -> None:
        self.on_unmap(mapping)

    def _faulted(self, error: BaseException, where: str) -> None:
        log.error("%s: the handler of %s failed", self, where, exc_info=error)

    def _work_failed(self, error: BaseException, job: Callable[[], object]) -> None:
        self.native.count_fault(error)
        log.error("%s: deferred work %r failed", self, job, exc_info=error)

    def _expect_open(self) -> None:
        if self._closed:
            raise StateError(f"{self} is closed")
