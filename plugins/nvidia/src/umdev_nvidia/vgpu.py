"""`Vgpu`: one virtual GPU, a GM107 with video memory of its own."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from umdev.device import Device, MemoryBar, ResetKind, SaveError, State, query
from umdev_softgpu import MemoryPort, Target

from .config_space import CAPABILITIES, INTERRUPTS
from .framebuffer import MIB
from .registers import MMIO_SIZE, Registers
from .vram import Vram
from .windows import BAR1_SIZE, BAR3_SIZE, MemoryWindow, MemoryWindowBlock, Pramin

if TYPE_CHECKING:
    from umdev.device import DeviceContext
    from umdev_softgpu import Client

log = logging.getLogger("umdev.nvidia")
LINES_LOGGED = 200
REFUSALS_KEPT = 64
"""Kinds of refusals that are told apart."""


class Vgpu(Device):
    """A subclass for each type has its identity."""

    interrupts = INTERRUPTS
    capabilities = CAPABILITIES
    registers = MemoryBar(0, Registers, size=MMIO_SIZE)
    bar1 = MemoryBar(1, MemoryWindowBlock, size=BAR1_SIZE, width=64, prefetchable=True)
    bar3 = MemoryBar(3, MemoryWindowBlock, size=BAR3_SIZE, width=64, prefetchable=True)
    lines_logged = State(lambda: 0, save=False)
    refused: State[Counter[str]] = State(Counter, save=False)

    def __init__(self, context: DeviceContext, megabytes: int, client: Client) -> None:
        """`client`: its account with the engine's scheduler, closed with the device."""
        self.megabytes, self.client = megabytes, client
        self.vram = Vram(megabytes * MIB, self._kicked)
        self.bar1_window, self.bar3_window = MemoryWindow(self.vram), MemoryWindow(self.vram)
        self.pramin = Pramin(self.vram)
        self.port: MemoryPort
        super().__init__(context)

    def on_open(self) -> None:
        self._opened_ns = self.clock.now_ns
        self._forget_clock = self.clock.watch(self._time_changed)
        self._open_port()
        self.pramin.install(self)
        self.bar1_window.install(self, 1, BAR1_SIZE)
        self.bar3_window.install(self, 3, BAR3_SIZE)

    def on_reset(self, kind: ResetKind) -> None:
        self.registers.fifo.channels.clear()
        self.registers.fifo.waiting.clear()
        self.port.close()
        self.vram.clear()
        self._open_port()
        self.bar1_window.reset(self.port, self.local)
        self.bar3_window.reset(self.port, self.local)
        self.pramin.show(0)
        self.registers.topology.fill()
        self.registers.framebuffer.fill(self.megabytes)

    def on_close(self) -> None:
        self._forget_clock()
        self.client.close()
        self.port.close()

    def save(self) -> dict[str, Any]:
        """Raises: SaveError, always."""
        raise SaveError(f"{self} can't be saved: what a channel is in the middle of has no form outside this process")

    def _open_port(self) -> None:
        """A life's way to memory: closing it ends all that was going on."""
        self.port = MemoryPort(self, local=self.vram.memory)
        self.local = self.port.linear(Target.LOCAL, 0, self.vram.size)

    def _kicked(self, channel: int) -> None:
        """A channel's put pointer was written."""
        found = self.registers.fifo.channels.known.get(channel)
        if found is not None:
            found.kick()

    def _time_changed(self) -> None:
        """While the guest's time stands still, none of its work begins another step."""
        if self.clock.paused:
            self.client.pause()
        else:
            self.client.resume()

    def forget_translations(self) -> None:
        """The driver changed page tables, or may have. The device lock is held."""
        self.bar1_window.forget()
        self.bar3_window.forget()
        for channel in self.registers.fifo.channels.known.values():
            channel.forget_translations()

    def say(self, what: str) -> None:
        """Log something that the guest caused: so many lines, and no more, since it may cause them for ever."""
        if self.lines_logged < LINES_LOGGED:
            self.lines_logged += 1
            last = " (the last line of this vGPU)" if self.lines_logged == LINES_LOGGED else ""
            log.info("%s: %s%s", self, what, last)

    def refuse(self, what: str) -> None:
        """Something that a well-behaved driver does not do has come to nothing: count it. The device lock is held."""
        if len(self.refused) < REFUSALS_KEPT or what in self.refused:
            self.refused[what] += 1

    @query
    def engine_state(self) -> dict[str, object]:
        """The engine's time that it used, its channels, its interrupts, and what was refused.

        `engine` is that of all vGPUs: `empty_ns` is what its scheduler kept for those that had nothing to do.
        """
        known = self.registers.fifo.channels.known
        scheduler = self.client.scheduler
        return {
            "busy_ns": self.client.busy_ns,
            "engine": {"busy_ns": scheduler.busy_ns, "empty_ns": scheduler.policy.empty_ns},
            "utilisation": round(self.client.busy_ns / max(1, self.clock.now_ns - self._opened_ns), 4),
            "frame_rate": self.client.frame_rate,
            "megabytes": self.megabytes,
            "channels": {
                str(number): channel.channel_state for number, channel in known.items() if channel.instance is not None
            },
            "interrupts": self.registers.pmc.interrupt_state,
            "windows_refused": [self.bar1_window.refused, self.bar3_window.refused, int(self.pramin.native.refused)],
            "refused": dict(self.refused),
        }
