"""PFIFO: runlists, channels, and what the driver hears of them.

Facts: Linux, drivers/gpu/drm/nouveau (nvkm/engine/fifo/gk104.c): 0x2100 and 0x2140 are its interrupts, of which bits 28
(memory faults, by unit in 0x259c), 29 (PBDMAs, in 0x25a0) and 30 (runlists, in 0x2a00) are what those registers say,
and 31 is a channel's own. 0x2270 and 0x2274 hand over a runlist; 0x800000 has two words for each channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.device import RO, W1C, At, Block, Register, RegisterArray, State
from umdev_softgpu import Reason

from .channel_table import ChannelTable
from .topology import PBDMAS
from .trouble import Client

if TYPE_CHECKING:
    from .channel import Channel
    from .trouble import HostError, PageFault
    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]

FAULT, PBDMA, RUNLIST, NON_STALL = 1 << 28, 1 << 29, 1 << 30, 1 << 31
UNITS = 32
COPY2_UNIT, HOST_UNIT = 0x1B, 0x07
"""Units that the memory unit tells apart; the host has one for each PBDMA."""
_HUB, _WRITE = 1 << 6, 1 << 7
_PDE, _PTE, _LIMIT, _READ_ONLY, _REGION = 0x0, 0x2, 0x3, 0x6, 0xD
_REASONS = {
    Reason.NOT_PRESENT: _PTE,
    Reason.NOT_PERMITTED: _READ_ONLY,
    Reason.OUT_OF_RANGE: _LIMIT,
    Reason.BAD_TABLE: _PDE,
}
"""What the memory unit calls them."""
_BUSY = 1 << 20


class FaultUnit(Block["Vgpu"]):
    """The fault of one unit."""

    instance = Register(0x0, RO)
    address_low = Register(0x4, RO)
    address_high = Register(0x8, RO)
    kind = Register(0xC, RO)


class Pbdma(Block["Vgpu"]):
    """A unit that fetches commands: its interrupts, and what it stumbled over."""

    method = Register(0x0C0)
    data = Register(0x0C4)
    intr = Register(0x108, W1C)
    enable = Register(0x10C)
    channel = Register(0x120, RO)
    timeout = Register(0x12C)
    configuration = Register(0x13C)
    engine_intr = Register(0x148, W1C)
    engine_enable = Register(0x14C)
    engine_method = Register(0x150, RO)
    engine_data = Register(0x154, RO)

    @intr.on_write
    @enable.on_write
    def changed(self, value: int) -> None:
        """Acknowledged, masked or unmasked."""
        self.device.registers.pmc.evaluate()

    @property
    def wanted(self) -> bool:
        """It has something that the driver wants to know."""
        return bool(self.intr.value & self.enable.value)


class FifoRegisters(Block["Vgpu"]):
    """At 0 of BAR 0, between the others."""

    intr = Register(0x2100, W1C)
    enable = Register(0x2140)
    user_base = Register(0x2254)
    runlist_base = Register(0x2270)
    runlist_submit = Register(0x2274)
    runlist_pending = RegisterArray(0x2284, Register, RO, count=PBDMAS, stride=8)
    """Bit 20: it is being taken over. That is done at once."""
    bind_error = Register(0x252C, RO)
    schedule_error = Register(0x254C, RO)
    switch_error = Register(0x256C, W1C)
    fault_units = Register(0x259C, W1C)
    pbdma_units = Register(0x25A0, RO)
    runlist_release = Register(0x262C)
    runlist_block = Register(0x2630)
    preempt = Register(0x2634)
    engine_status = RegisterArray(0x2640, Register, RO, count=PBDMAS, stride=8)
    """Never busy: a turn ends before anything that the driver asks for."""
    faults = At(0x2800, FaultUnit, count=UNITS, stride=0x10)
    runlist_done = Register(0x2A00, W1C)
    runlist_done_enable = Register(0x2A04)
    fault_trigger = RegisterArray(0x2A30, Register, count=PBDMAS)
    pbdma = At(0x40000, Pbdma, count=PBDMAS, stride=0x2000)
    channels = At(0x800000, ChannelTable)
    unseen = State(lambda: False)
    """A channel's interrupt came after the driver last read what is pending."""
    waiting: State[dict[tuple[int, int], tuple[Channel, PageFault]]] = State(dict, save=False)
    """By unit and channel: faults of units that have one already, the last one of each channel."""

    # Interrupts.

    @property
    def pending(self) -> int:
        """All of 0x2100."""
        return (
            self.intr.value & ~(FAULT | PBDMA | RUNLIST)
            | (FAULT if self.fault_units.value else 0)
            | (PBDMA if self.read_pbdma_units() else 0)
            | (RUNLIST if self.runlist_done.value else 0)
        )

    @property
    def wanted(self) -> int:
        """What of it is enabled."""
        return self.pending & self.enable.value

    @intr.on_read
    def read_intr(self) -> int:
        """See `pending`."""
        self.unseen = False
        return self.pending

    @pbdma_units.on_read
    def read_pbdma_units(self) -> int:
        """A bit for each PBDMA."""
        return sum(1 << number for number, pbdma in enumerate(self.pbdma) if pbdma.wanted)

    @intr.on_write
    def acknowledge(self, value: int) -> None:
        """Only what was read is acknowledged.

        The write may be long on its way (it is posted), and a driver that looks at fences in its own memory meanwhile
        has not seen the one that comes before the write arrives.
        """
        if self.unseen:
            self.intr.value |= NON_STALL
        self.device.registers.pmc.evaluate()

    @enable.on_write
    @runlist_done.on_write
    def changed(self, value: int) -> None:
        """Masked or unmasked, or a runlist acknowledged."""
        self.device.registers.pmc.evaluate()

    @fault_units.on_write
    def faults_seen(self, value: int) -> None:
        """The next fault of a unit takes the place of the one that was seen."""
        waiting, self.waiting = self.waiting, {}
        for (unit, _), (channel, fault) in waiting.items():
            self._show_fault(unit, channel, fault)
        self.device.registers.pmc.evaluate()

    def non_stall(self) -> None:
        """A channel's own interrupt; those that come together are one."""
        self.intr.value |= NON_STALL
        self.unseen = True
        self.device.registers.pmc.evaluate()

    def report_host_error(self, channel: Channel, error: HostError) -> None:
        """The first one that the driver has not seen keeps its place in the registers."""
        pbdma = self.pbdma[channel.runlist]
        if not pbdma.intr.value:
            pbdma.method.value = 1 << 31 | error.subchannel << 16 | error.method
            pbdma.data.value, pbdma.channel.value = error.data, channel.number
        pbdma.intr.value |= error.error
        self.device.registers.pmc.evaluate()

    def report_fault(self, channel: Channel, fault: PageFault) -> None:
        """A channel was killed by it."""
        unit = COPY2_UNIT if fault.client is Client.COPY2 else HOST_UNIT + channel.runlist
        self._show_fault(unit, channel, fault)
        self.device.registers.pmc.evaluate()

    def _show_fault(self, unit: int, channel: Channel, fault: PageFault) -> None:
        if self.fault_units.value >> unit & 1:
            self.waiting[unit, channel.number] = channel, fault
            return
        if channel.instance is None:
            return
        found, shown = fault.fault, self.faults[unit]
        reason = _PDE if found.reason is Reason.NOT_PRESENT and not found.level else _REASONS.get(found.reason, _REGION)
        shown.instance.value = channel.instance >> 12
        shown.address_low.value, shown.address_high.value = found.address & 0xFFFF_F000, found.address >> 32
        shown.kind.value = fault.client << 8 | (_WRITE if found.write else 0) | _HUB | reason
        self.fault_units.value |= 1 << unit

    # Runlists.

    @property
    def blocked(self) -> int:
        """A bit for each runlist whose channels don't run now."""
        return self.runlist_block.value

    @runlist_block.on_write
    def block(self, value: int) -> None:
        """Channels of blocked runlists leave the engine; others may go on."""
        for channel in self.channels.known.values():
            if channel.runnable:
                channel.kick()
            else:
                channel.expire()

    @runlist_submit.on_write
    def submit_runlist(self, value: int) -> None:
        """Take over a runlist: bits 23:20 its number, 15:0 how many entries it has at 0x2270's address."""
        number, count = value >> 20 & 0xF, value & 0xFFFF
        if number >= PBDMAS:
            self.device.refuse("a runlist that no engine has")
            return
        self.channels.take_over(number, self.runlist_base.value, count)
        self.runlist_done.value |= 1 << number
        self.device.registers.pmc.evaluate()

    @preempt.on_write
    def start_preemption(self, value: int) -> None:
        """Bits 11:0 a channel, or with bit 24 a group of channels."""
        for channel in self.channels.named(value & 0xFFF, group=bool(value >> 24 & 1)):
            channel.preempt()

    @preempt.on_read
    def read_preemption(self) -> int:
        """Bit 20 until it has happened."""
        busy = any(channel.preempting for channel in self.channels.known.values())
        return self.preempt.value & ~_BUSY | (_BUSY if busy else 0)
