"""One channel: where its ring is, whether it may run, and what becomes of its work.

Layout of the instance block (RAMFC): NVIDIA, open-gpu-doc (manuals, dev_ram), and Linux, drivers/gpu/drm/nouveau
(nvkm/engine/fifo/gk104.c): 0x08 the user page, 0x48 the ring's address with log2 of its entries in bits 20:16 of the
high word.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from umdev_softgpu import Fault, Step

from .execution import Execution, Outcome
from .page_tables import address_space, tables_of
from .pusher import Pusher
from .topology import COPY_RUNLIST, GRAPHICS_RUNLIST
from .user_page import PUT, UserPage

if TYPE_CHECKING:
    from umdev_softgpu import Budget, Queue

    from .trouble import HostError, LaunchError
    from .vgpu import Vgpu

_USERD, _RING = 0x08, 0x48
_PAIR = struct.Struct("<II")


class Channel:
    """All but `step`, and what that calls, is called with the device lock held.

    A channel is what its instance block said when it first ran after a bind; a fault ends it until the next bind.
    """

    def __init__(self, vgpu: Vgpu, number: int, queue: Queue) -> None:
        self.vgpu, self.number, self.queue = vgpu, number, queue
        self.instance: int | None = None
        """Where its instance block is in video memory; None while it is not bound."""
        self.enabled = False
        self.runlists: set[int] = set()
        self.group: int | None = None
        """The group that it was last listed in."""
        self.killed = False
        """A fault ended it: only a new bind makes it run again."""
        self.generation = 0
        self._execution: Execution | None = None
        self._queued = False
        self._preempted = False

    # What the driver does.

    def bind(self, instance: int | None) -> None:
        """Become what an instance block says, from its beginning; None: nothing any more."""
        self.generation += 1
        self._execution, self._queued, self.killed, self._preempted = None, False, False, False
        self.queue.cancel()  # a turn under way ends, and turns of channels that it was do not pile up
        self.vgpu.vram.ignore(self.number)
        self.instance = instance

    def enable(self, *, on: bool) -> None:
        """May it run?"""
        self.enabled = on
        if on:
            self.kick()
        else:
            self.expire()

    def kick(self) -> None:
        """There may be something to do."""
        if not self.runnable:
            return
        if self._queued:
            self.queue.wake()
        else:
            self._queued = True
            self.queue.submit(Run(self, self.generation))

    def preempt(self) -> None:
        """Leave the engine as soon as it can be; `preempting` says when."""
        self._preempted = True
        self.expire()

    @property
    def preempting(self) -> bool:
        """It has not left the engine since `preempt`."""
        return self._preempted and self.queue.running is not None

    def expire(self) -> None:
        """End its turn early."""
        running = self.queue.running
        if running is not None:
            running.expire()

    @property
    def runnable(self) -> bool:
        """Bound, enabled, on a runlist that is not held up, and not killed."""
        blocked = self.vgpu.registers.fifo.blocked
        return (
            self.instance is not None
            and self.enabled
            and not self.killed
            and any(not blocked >> runlist & 1 for runlist in self.runlists)
        )

    @property
    def channel_state(self) -> dict[str, object]:
        """How far it is, and what it has taken."""
        execution = self._execution
        return {
            "busy_ns": self.queue.busy_ns,
            "runlist": self.runlist,
            "runnable": self.runnable,
            "killed": self.killed,
            "get": execution.pusher.get if execution else None,
            "put": execution.user_page.put if execution else None,
        }

    @property
    def runlist(self) -> int:
        """The one that it is on; of the graphics engine where it is on both."""
        return max(self.runlists, default=COPY_RUNLIST)

    def forget_translations(self) -> None:
        """Page tables may have changed."""
        if self._execution is not None:
            self._execution.space.invalidate()

    def _load(self) -> Execution | None:
        """Read the instance block; None: it makes no sense, which is counted."""
        assert self.instance is not None
        local = self.vgpu.local
        user, ring = local.read(self.instance + _USERD, 8), local.read(self.instance + _RING, 8)
        tables = tables_of(local, self.instance)
        if isinstance(user, Fault) or isinstance(ring, Fault) or isinstance(tables, Fault):
            self.vgpu.refuse("an instance block beyond video memory")
            return None
        user_low, user_high = _PAIR.unpack(user)
        ring_low, ring_high = _PAIR.unpack(ring)
        if user_low & 3:
            self.vgpu.refuse("a channel's user page outside of video memory")
            return None
        user_page = UserPage(local, (user_high & 0xFF) << 32 | user_low & ~0x1FF)
        space = address_space(self.vgpu.port, tables)
        address = (ring_high & 0xFF) << 32 | ring_low & ~7
        self._execution = Execution(self, space, Pusher(space, address, 1 << (ring_high >> 16 & 0x1F)), user_page)
        self.vgpu.vram.listen(self.number, user_page.address + PUT)
        return self._execution

    # Its work.

    def step(self, budget: Budget, generation: int) -> Step:
        """One turn on the scheduler's thread, without the device lock."""
        with self.vgpu.locked():
            if generation != self.generation or not self.runnable:
                return self._rest(generation)
            # Not in the driver's access, which may be for thousands of channels and keeps a step waiting for the lock.
            execution = self._execution or self._load()
            if execution is None:
                return self._rest(generation)
        outcome = execution.run(budget)
        with self.vgpu.locked():
            self._preempted = False
            if generation != self.generation or not self.runnable:
                return self._rest(generation)
            match outcome:
                case Outcome.MORE:
                    return Step.MORE
                case Outcome.BLOCKED:
                    return Step.BLOCKED
                case Outcome.FAULTED:
                    self._die(execution)
                case Outcome.DONE if execution.pusher.get != execution.user_page.put < execution.pusher.entries:
                    return Step.MORE
            return self._rest(generation)

    def _rest(self, generation: int) -> Step:
        """Until somebody kicks it."""
        if generation == self.generation:
            self._queued = False
        return Step.DONE

    def _die(self, execution: Execution) -> None:
        assert execution.fault is not None
        assert self.instance is not None
        self.killed = True
        self.vgpu.say(f"channel {self.number} ends: {execution.fault}")
        self.vgpu.registers.fifo.report_fault(self, execution.fault)

    # What its execution uses, without the device lock. The registers of another life are left alone.

    def non_stall_interrupt(self, execution: Execution) -> None:
        """Its work is done up to here; on the graphics runlist that ends a frame."""
        with self.vgpu.locked():
            if execution is self._execution:
                if self.runlist == GRAPHICS_RUNLIST:
                    self.vgpu.client.frame()
                self.vgpu.registers.fifo.non_stall()

    def copy_interrupt(self, execution: Execution, kind: int) -> None:
        """The copy engine's: 1 blocking, 2 not."""
        with self.vgpu.locked():
            if execution is self._execution:
                self.vgpu.registers.copy_engine.raise_event(kind)

    def report_host_error(self, execution: Execution, error: HostError) -> None:
        """A command was passed over."""
        with self.vgpu.locked():
            if execution is self._execution:
                self.vgpu.refuse(f"PBDMA error {error.error.name}")
                self.vgpu.registers.fifo.report_host_error(self, error)

    def report_launch_error(self, execution: Execution, error: LaunchError) -> None:
        """A launch was passed over."""
        with self.vgpu.locked():
            if execution is self._execution:
                self.vgpu.say(f"channel {self.number}: {error}")
                self.vgpu.refuse("copy engine launch")
                self.vgpu.registers.copy_engine.raise_launch_error()


class Run:
    """A channel's turn, as the scheduler sees it."""

    def __init__(self, channel: Channel, generation: int) -> None:
        self._channel, self._generation = channel, generation

    def step(self, budget: Budget) -> Step:
        """See `Channel.step`."""
        return self._channel.step(budget, self._generation)
