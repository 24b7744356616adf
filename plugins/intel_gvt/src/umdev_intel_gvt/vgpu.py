"""`Vgpu`: one virtual GPU, as i915 expects it in vGPU mode."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from umdev.device import Block, Device, IoBar, MemoryBar, ResetKind, SaveError, State, query

from .aperture import Aperture, ApertureBlock
from .config_space import CAPABILITIES, IDENTITY, INTERRUPTS
from .engines import ENGINES
from .execlists import EngineState
from .ggtt import GlobalTable
from .graphics_memory import GraphicsMemory
from .hot_state import HotState
from .page_tables import PageTables
from .partition import APERTURE
from .pinned import PinnedPages
from .registers import MMIO_SIZE, Registers
from .ring import ticks
from .shadow import SHADOW_MODES, ShadowTables

if TYPE_CHECKING:
    from collections.abc import Callable

    from umdev.device import DeviceContext, Mapping
    from umdev_softgpu import Client

    from .partition import Slice

log = logging.getLogger("umdev.intel_gvt")


class IoBlock(Block["Vgpu"]):
    """Index and data of the legacy register access; i915 does not use it."""


class Vgpu(Device):
    """One slice of the GPU: graphics memory, fences and a share of the engines."""

    pci = IDENTITY
    interrupts = INTERRUPTS
    capabilities = CAPABILITIES
    registers = MemoryBar(0, Registers, size=MMIO_SIZE, width=64)
    graphics_aperture = MemoryBar(2, ApertureBlock, size=APERTURE, width=64, prefetchable=True)
    io = IoBar(4, IoBlock, size=64)
    lines_logged = State(lambda: 0, save=False)
    errors = State(lambda: 0, keep=True)
    """How often an engine stopped by an error."""
    refusals: State[Counter[str]] = State(Counter, save=False)
    refused_commands: State[Counter[str]] = State(Counter, save=False)
    page_tables: State[PageTables] = State(PageTables, save=False)
    shadows: State[ShadowTables | None] = State(lambda: None, save=False)
    """Shadow page tables, where the attribute `shadow` asks for them."""

    def __init__(
        self, context: DeviceContext, number: int, slice_: Slice, client: Client, release: Callable[[], None]
    ) -> None:
        """`number`: of the vGPU, from 1. `client`: its account with the engines' scheduler, closed with the device.

        `release` gives the slice back when the device is closed.
        """
        self.number, self.slice, self.client, self._release_slice = number, slice_, client, release
        self.table = GlobalTable(slice_)
        self.aperture = Aperture()
        self.engines: list[EngineState] = []
        super().__init__(context)

    def on_open(self) -> None:
        modes = SHADOW_MODES[self.context.attributes.get("shadow", "off")]
        self.shadows = ShadowTables(self.memory, modes) if modes else None
        self.pinned = PinnedPages(self.memory)
        self._opened_ns = self.clock.now_ns
        self._forget_clock = self.clock.watch(self._time_changed)
        self.table.install(self)
        self.aperture.install(self)
        self.memory_of_driver = GraphicsMemory(self, self.table)
        self.hot = HotState(self)
        rings = (self.registers.render, self.registers.blitter, self.registers.video, self.registers.enhance)
        for spec, ring in zip(ENGINES, rings, strict=True):
            self.engines.append(EngineState(self, spec, ring))

    def on_reset(self, kind: ResetKind) -> None:
        self.handshake = False
        self.hot.reset_interrupts()
        for engine in self.engines:
            engine.reset()
        self.pinned.clear()
        if self.shadows is not None:
            self.shadows.clear()
        self.table.clear()
        self.memory_of_driver.close()
        self.memory_of_driver = GraphicsMemory(self, self.table)
        self.aperture.reset(self.memory_of_driver.ggtt)
        self.page_tables = PageTables()
        pvinfo = self.registers.pvinfo
        pvinfo.vgt_id.value = self.number
        pvinfo.mappable_base.value, pvinfo.mappable_size.value = self.slice.aperture.base, self.slice.aperture.size
        pvinfo.hidden_base.value, pvinfo.hidden_size.value = self.slice.hidden.base, self.slice.hidden.size
        pvinfo.fence_count.value = len(self.registers.fences.fence)

    def on_close(self) -> None:
        self._forget_clock()
        self.client.close()
        for engine in self.engines:
            engine.close()
        self.memory_of_driver.close()
        self._release_slice()

    def on_unmap(self, mapping: Mapping) -> None:
        self.pinned.unmapped(mapping.iova, mapping.end)
        if self.shadows is not None:
            self.shadows.unmapped(mapping.iova, mapping.end)

    def save(self) -> dict[str, Any]:
        """Raises: SaveError, always."""
        raise SaveError(
            f"{self} can't be saved: what its engines are in the middle of has no form outside this process"
        )

    def _time_changed(self) -> None:
        """While the guest's time stands still, none of its work begins another step."""
        if self.clock.paused:
            self.client.pause()
        else:
            self.client.resume()

    def engine_at(self, base: int) -> EngineState:
        """The engine whose registers begin at an offset."""
        return next(engine for engine in self.engines if engine.spec.base == base)

    def timestamp(self) -> int:
        """What the command streamers count."""
        return ticks(self.clock.now_ns)

    @property
    def handshake(self) -> bool:
        """The driver has read the magic of PVINFO."""
        return bool(self.hot.native.handshake)

    @handshake.setter
    def handshake(self, done: bool) -> None:
        self.hot.native.handshake = done

    @property
    def messages_sent(self) -> int:
        """How often the interrupt tree's output has risen."""
        return int(self.hot.native.tree.messages)

    @property
    def refused(self) -> Counter[str]:
        """What a well-behaved driver does not do, by what it was."""
        return self.refusals + Counter(self.hot.refused)

    def forget_translations(self) -> None:
        """The driver changed page tables, or may have. The device lock is held."""
        if self.shadows is not None:
            self.shadows.synchronise()
        self.memory_of_driver.forget()
        for engine in self.engines:
            engine.memory.forget()

    def say(self, what: str) -> None:
        """Log something that the guest caused: so many lines, and no more, since it may cause them for ever."""
        if self.lines_logged < LINES_LOGGED:
            self.lines_logged += 1
            log.info(
                "%s: %s%s", self, what, "" if self.lines_logged < LINES_LOGGED else " (the last line of this vGPU)"
            )

    def refuse(self, what: str) -> None:
        """Something that a well-behaved driver does not do has come to nothing: count it."""
        if len(self.refusals) < REFUSALS_KEPT or what in self.refusals:
            self.refusals[what] += 1

    @query
    def engine_state(self) -> dict[str, object]:
        """Of each engine: utilisation since the vGPU was made, submissions, errors; memory; what was refused.

        busy_ns: the engines' time that this vGPU has had; gpu_busy_ns: all vGPUs, those included that are gone.
        """
        elapsed = max(1, self.clock.now_ns - self._opened_ns)
        return {
            "engines": {
                engine.spec.name: {
                    "busy_ns": engine.queue.busy_ns,
                    "utilisation": round(engine.queue.busy_ns / elapsed, 4),
                    "submissions": engine.submissions,
                    "contexts": engine.contexts,
                    "resets": engine.resets,
                    "error": engine.error,
                    "commands": dict(engine.executed),
                }
                for engine in self.engines
            },
            "busy_ns": self.client.busy_ns,
            "gpu_busy_ns": self.client.scheduler.busy_ns,
            "weight": self.client.weight,
            "aperture": [self.slice.aperture.base, self.slice.aperture.size],
            "hidden": [self.slice.hidden.base, self.slice.hidden.size],
            "page_tables": len(self.page_tables.roots),
            "shadows": self.shadows.state if self.shadows is not None else None,
            "pinned_pages": self.pinned.count,
            "ggtt": {**self.table.counters, "aperture_refused": self.aperture.refused},
            "messages": self.messages_sent,
            "errors": self.errors,
            "refused": dict(self.refused),
            "refused_commands": dict(self.refused_commands),
            "display_ready": bool(self.registers.pvinfo.display_ready.value),
        }


LINES_LOGGED = 200
REFUSALS_KEPT = 64
"""Kinds of refusals that are told apart."""
