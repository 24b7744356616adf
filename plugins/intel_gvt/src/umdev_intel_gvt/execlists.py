"""Execlists: what the driver submits to an engine, and how it hears of what became of it.

Format (gen8 and gen9): Intel Graphics PRM, Kaby Lake, volume 7. The status buffer has six entries of eight
bytes at 0x40 of the status page; the index of the last one written is the dword at 0x7c.
"""

from __future__ import annotations

import enum
from collections import Counter
from typing import TYPE_CHECKING

from umdev.device import PAGE_SIZE
from umdev_softgpu import Fault, Step

from .commands import Execution, Outcome
from .context import Context, Descriptor
from .graphics_memory import GraphicsMemory
from .interrupt_tree import EngineEvent
from .ring import CSB_ENTRIES

if TYPE_CHECKING:
    from umdev_softgpu import Budget, Queue

    from .engines import EngineSpec
    from .ring import RingRegisters
    from .vgpu import Vgpu

CSB_OFFSET = 0x40
CSB_WRITE_INDEX = 0x7C
PORT_WRITES = 4


class Switch(enum.IntFlag):
    """Context switch status, low dword; the high one is the context's identity."""

    IDLE_TO_ACTIVE = 1 << 0
    PREEMPTED = 1 << 1
    ELEMENT = 1 << 2
    ACTIVE_TO_IDLE = 1 << 3
    COMPLETE = 1 << 4
    LITE_RESTORE = 1 << 15


class EngineState:
    """One engine of one vGPU: its submissions and its life. All but `step` is called with the device lock held.

    An engine that met an error stops where it is, keeps its context, and tells the driver by EIR; only a reset ends
    that, as on hardware.
    """

    def __init__(self, vgpu: Vgpu, spec: EngineSpec, ring: RingRegisters, queue: Queue) -> None:
        self.vgpu, self.spec, self.ring, self.queue = vgpu, spec, ring, queue
        self.memory = GraphicsMemory(vgpu, vgpu.table, vgpu.shadows)
        self.generation = 0
        self.submissions = self.contexts = self.resets = 0
        self.executed: Counter[str] = Counter()
        """Commands by name, since the device was made; of a bounded number of kinds."""
        self._port: list[int] = []
        self._elements: list[Descriptor] = []
        self._waiting: list[Descriptor] = []
        self._noted: list[tuple[Switch, int]] = []
        self._execution: Execution | None = None
        self.error = ""

    @property
    def busy(self) -> bool:
        """Whether a context is loaded."""
        return bool(self._elements)

    def port_write(self, value: int) -> None:
        """A quarter of a submission."""
        self._port.append(value)
        if len(self._port) < PORT_WRITES:
            return
        high1, low1, high0, low0 = self._port
        self._port.clear()
        if not self.vgpu.handshake:
            self.vgpu.refuse("a submission by a driver that does not know that this is a vGPU")
        elif not self.ring.mode.run_list:
            self.vgpu.refuse("a submission to an engine whose run list is not enabled")
        else:
            self._submit([Descriptor(high0 << 32 | low0), Descriptor(high1 << 32 | low1)])

    def _submit(self, elements: list[Descriptor]) -> None:
        self.submissions += 1
        valid = [element for element in elements if element.valid]
        if not valid:
            return
        if not self._elements:
            self._start(valid)
        elif valid[0] == self._elements[0] or valid[0].identity == self._elements[0].identity:
            self._lite_restore(valid)
        else:  # a driver in vGPU mode does not preempt: it is told when what runs is through
            self._waiting = valid

    def _start(self, elements: list[Descriptor]) -> None:
        self._elements = elements
        self._execution = None
        self._show_running()
        self._noted.append((Switch.IDLE_TO_ACTIVE, 0))
        self.queue.submit(Run(self, self.generation))

    def _lite_restore(self, elements: list[Descriptor]) -> None:
        """The running context again, maybe with more in its ring, and another one after it."""
        if self._execution is not None and not self.error:
            self.forget_translations()
            self._execution.context.reload_tail(self.memory)
        self._elements = [self._elements[0], *elements[1:]]
        self._noted.append((Switch.PREEMPTED | Switch.LITE_RESTORE, elements[0].identity))

    def step(self, budget: Budget, generation: int) -> Step:
        """One turn on the scheduler's thread, without the device lock."""
        with self.vgpu.locked():
            if generation != self.generation:
                return Step.DONE
            self._report_noted()
            if self._execution is None and not self._load():
                return Step.DONE
            execution = self._execution
        if execution is None:  # reset while something of the above waited for a message
            return Step.DONE
        outcome = execution.run(budget)
        with self.vgpu.locked():
            if generation != self.generation:
                return Step.DONE
            self._report_noted()
            self._show_progress(execution)
            match outcome:
                case Outcome.MORE:
                    return Step.MORE
                case Outcome.BLOCKED:
                    return Step.BLOCKED
                case Outcome.DONE:
                    return self._complete(execution)
            self._stop(execution.trouble)
            return Step.DONE

    def forget_translations(self) -> None:
        """Tables may have changed since the last submission, or since a command that says so."""
        if self.vgpu.shadows is not None:
            self.vgpu.shadows.synchronise()
        self.memory.forget()

    def _pin(self, context: Context) -> None:
        """What the engine comes back to: ring, image, status page."""
        hold = self.vgpu.pinned.hold
        hold(self.memory.ggtt, context.start, context.size)
        hold(self.memory.ggtt, context.descriptor.image, 2 * PAGE_SIZE)
        hold(self.memory.ggtt, self.ring.status_page.value & 0xFFFF_F000, PAGE_SIZE)

    def _load(self) -> bool:
        """Load the first element's context; False: it can't be, and the engine has stopped."""
        self.contexts += 1
        generation = self.generation
        self.forget_translations()
        found = Context.load(self._elements[0], self.memory)
        if generation != self.generation:  # reset while it waited for a message
            return False
        if isinstance(found, Context):
            self._pin(found)
            self._execution = Execution(self, found)
            return True
        self._stop(f"context {self._elements[0].value:#x}: {found}")
        return False

    def _complete(self, execution: Execution) -> Step:
        """The ring is empty: save the context, tell the driver, and go on to what comes next."""
        if not execution.exhausted:  # more was submitted since
            return Step.MORE
        if isinstance(fault := execution.context.save(self.memory), Fault):
            self._stop(f"context can't be saved: {fault}")
            return Step.DONE
        identity = self._elements.pop(0).identity
        self._execution = None
        if self._elements:
            self._show_running()
            self._report(Switch.ELEMENT | Switch.COMPLETE, identity)
            return Step.MORE
        self._show_running()
        self._report(Switch.ACTIVE_TO_IDLE | Switch.COMPLETE, identity)
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._start(waiting)
        return Step.DONE

    def _report_noted(self) -> None:
        """What handlers have noted: they do no DMA themselves, since memory may be reached by message only."""
        while self._noted:
            self._report(*self._noted.pop(0))

    def _report(self, status: Switch, identity: int) -> None:
        """Entry, then index, then interrupt: the order in which the driver looks at them."""
        pointer = self.ring.status_pointer
        slot = (pointer.write_pointer + 1) % CSB_ENTRIES
        entry = identity << 32 | status
        page = self.ring.status_page.value & 0xFFFF_F000
        ggtt = self.memory.ggtt
        fault = ggtt.write(page + CSB_OFFSET + 8 * slot, entry.to_bytes(8, "little"))
        if fault is None:
            fault = ggtt.write(page + CSB_WRITE_INDEX, slot.to_bytes(4, "little"))
        if fault is not None:
            self.vgpu.refuse(f"an event of {self.spec.name}, whose status page can't be written")
        self.ring.status_buffer[slot].value = entry
        pointer.write_pointer = slot
        self.raise_event(EngineEvent.CONTEXT_SWITCH)

    def raise_event(self, event: EngineEvent) -> None:
        """An interrupt of this engine; the device lock is held."""
        self.vgpu.registers.interrupts.raise_event(self.ring, self.spec.interrupt_block, self.spec.shift, event)

    def _stop(self, why: str) -> None:
        """An error: the context stays, EIR says so, and the driver that asked for it hears of it."""
        self.error = why
        self.vgpu.say(f"{self.spec.name} stops: {why}")
        self.vgpu.errors += 1
        instruction_error = 1
        self.ring.eir.value |= instruction_error
        if not self.ring.emr.value & instruction_error:
            self.raise_event(EngineEvent.COMMAND_ERROR)

    def _show_running(self) -> None:
        """What a driver reads to find out who hangs."""
        running = bool(self._elements)
        self.ring.execlist_context.value = self._elements[0].identity if running else 0
        self.ring.execlist_status.active = running
        self.ring.execlist_status.slot0_active = running

    def _show_progress(self, execution: Execution) -> None:
        address = execution.address
        self.ring.acthd.value, self.ring.acthd_high.value = address & 0xFFFF_FFFF, address >> 32
        self.ring.start.value = execution.context.start
        self.ring.head.value = execution.context.head
        self.ring.tail.value = execution.context.tail
        self.ring.ipehr.value = execution.header

    def reset(self) -> None:
        """Take what runs and what waits; nothing of it writes memory or interrupts any more."""
        self.generation += 1
        self.resets += 1
        self.queue.cancel()
        self.memory.close()
        self.memory = GraphicsMemory(self.vgpu, self.vgpu.table, self.vgpu.shadows)
        self._port.clear()
        self._elements, self._waiting, self._noted = [], [], []
        self._execution = None
        self.error = ""
        for register in (self.ring.head, self.ring.tail, self.ring.start, self.ring.control, self.ring.mode):
            register.value = 0
        self.ring.mi_mode.value = 0
        self._show_running()

    def close(self) -> None:
        """The device is closed."""
        self.generation += 1
        self.memory.close()


class Run:
    """A submission as the scheduler sees it."""

    def __init__(self, engine: EngineState, generation: int) -> None:
        self._engine, self._generation = engine, generation

    def step(self, budget: Budget) -> Step:
        """See `EngineState.step`."""
        return self._engine.step(budget, self._generation)
