"""The table of channels at 0x800000 of BAR 0, and the runlists that name them.

Facts: Linux, drivers/gpu/drm/nouveau (nvkm/engine/fifo/gk104.c): of a channel's two words the first has bit 31 (bound)
and the page of its instance block, the second bit 10 (start), 11 (stop) and, to be read, 0 (enabled). A runlist's
entries are two words: bits 11:0 a channel; with bit 13 the entry begins a group, whose number they are then, and bits
31:26 of the first word say how many of its channels follow (nvkm/engine/fifo/gk110.c).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from umdev.device import Block, Register, RegisterArray, State
from umdev_softgpu import Fault

from .channel import Channel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]

CHANNELS = 2048
ENTRIES = 2 * CHANNELS
"""The most that a runlist can hold: each channel, in a group of its own."""
_BOUND, _GROUP, _NUMBER = 1 << 31, 1 << 13, 0xFFF
_ENABLED, _START, _STOP = 1 << 0, 1 << 10, 1 << 11
_ENTRY = struct.Struct("<II")


def _channels(words: Iterable[int]) -> Iterator[tuple[int, int | None]]:
    """The channels of a runlist, each with the group that it is in. Groups that claim more than follows have those."""
    group, left = None, 0
    for word in words:
        if word & _GROUP:
            group, left = word & _NUMBER, word >> 26
        else:
            yield word & _NUMBER, group if left else None
            left = max(0, left - 1)


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
        listed = dict(_channels(word for word, _ in _ENTRY.iter_unpack(entries)))
        for number, group in listed.items():
            if number < CHANNELS:
                channel = self.channel(number)
                channel.runlists.add(runlist)
                channel.group = group
        for number, channel in self.known.items():
            if number not in listed:
                channel.runlists.discard(runlist)
                channel.expire()
            else:
                channel.kick()

    def named(self, number: int, *, group: bool) -> list[Channel]:
        """A channel, or those that were last listed in a group."""
        return [channel for channel in self.known.values() if (channel.group if group else channel.number) == number]

    def clear(self) -> None:
        """A reset: nothing is bound, enabled or listed, and what ran has ended."""
        for channel in self.known.values():
            channel.bind(None)
            channel.enabled = False
            channel.runlists.clear()
