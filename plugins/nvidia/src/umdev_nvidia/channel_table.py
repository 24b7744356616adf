"""The table of channels at 0x800000 of BAR 0, and the runlists that name them.

Facts: Linux, drivers/gpu/drm/nouveau (nvkm/engine/fifo/gk104.c): of a channel's two words the first has bit 31 (bound)
and the page of its instance block, the second bit 10 (start), 11 (stop) and, to be read, 0 (enabled). A runlist's
entries are two words: bits 11:0 a channel; with bit 13 the entry begins a group, whose channels follow.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from umdev.device import Block, Register, RegisterArray, State
from umdev_softgpu import Fault

from .channel import Channel

if TYPE_CHECKING:
    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]

CHANNELS = 2048
ENTRIES = 2 * CHANNELS
"""The most that a runlist can hold: each channel, in a group of its own."""
_BOUND, _GROUP = 1 << 31, 1 << 13
_ENABLED, _START, _STOP = 1 << 0, 1 << 10, 1 << 11
_ENTRY = struct.Struct("<II")


class ChannelTable(Block["Vgpu"]):
    """Two registers for each channel."""

    instance = RegisterArray(0x0, Register, count=CHANNELS, stride=8)
    control = RegisterArray(0x4, Register, count=CHANNELS, stride=8)
    known: State[dict[int, Channel]] = State(dict, save=False)
    """Channels that were used since the device was made: each has a queue, whose life is the device's."""

    @instance.on_write
    def bind(self, index: int, value: int) -> None:
        """A channel becomes another one, or none."""
        self.channel(index).bind((value & 0x0FFF_FFFF) << 12 if value & _BOUND else None)

    @control.on_write
    def enable(self, index: int, value: int) -> None:
        """Start or stop it; the rest is stored."""
        channel, register = self.channel(index), self.control[index]
        on = bool(value & _START or (channel.enabled and not value & _STOP))
        register.value = value & ~(_START | _STOP | _ENABLED) | (_ENABLED if on else 0)
        channel.enable(on=on)

    def channel(self, number: int) -> Channel:
        """The one with a number; made when it is first asked for."""
        found = self.known.get(number)
        if found is None:
            queue = self.device.client.add_queue(f"channel {number}")
            found = self.known[number] = Channel(self.device, number, queue)
        return found

    def take_over(self, runlist: int, base: int, count: int) -> None:
        """Bits 31:28 of `base`: where the list is (0 video memory, else the system's), 27:0 its page."""
        space = self.device.port.system if base >> 28 else self.device.local
        entries = space.read((base & 0x0FFF_FFFF) << 12, _ENTRY.size * min(count, ENTRIES))
        if isinstance(entries, Fault):
            self.device.refuse("a runlist that can't be read")
            return
        listed = {word & 0xFFF for word, _ in _ENTRY.iter_unpack(entries) if not word & _GROUP}
        for number in listed:
            if number < CHANNELS:
                self.channel(number).runlists.add(runlist)
        for number, channel in self.known.items():
            if number not in listed:
                channel.runlists.discard(runlist)
                channel.expire()
            else:
                channel.kick()

    def clear(self) -> None:
        """A reset: nothing is bound, enabled or listed, and what ran has ended."""
        for channel in self.known.values():
            channel.queue.cancel()
            channel.bind(None)
            channel.enabled = False
            channel.runlists.clear()
