"""Execlists: what the driver submits to an engine, and how it hears of what became of it.

Format (gen8 and gen9): Intel Graphics PRM, Kaby Lake, volume 7. The status buffer has six entries of eight
bytes at 0x40 of the status page; the index of the last one written is the dword at 0x7c.
"""

from __future__ import annotations

import enum
from collections import Counter
from typing import TYPE_CHECKING, Any

from umdev.device import PAGE_SIZE
from umdev_softgpu import Fault, Step

from ._fast import ffi, lib
from .commands import Execution, Outcome
from .context import Context, Descriptor
from .graphics_memory import GraphicsMemory
from .interrupt_tree import EngineEvent
from .ring import CSB_ENTRIES

if TYPE_CHECKING:
    from umdev_softgpu import Budget

    from .engines import EngineSpec
    from .ring import RingRegisters
    from .vgpu import Vgpu

CSB_OFFSET = 0x40
CSB_WRITE_INDEX = 0x7C


class Switch(enum.IntFlag):
    """Context switch status, low dword; the high one is the context's identity. submission.c notes the others."""

    ELEMENT = 1 << 2
    ACTIVE_TO_IDLE = 1 << 3
    COMPLETE = 1 << 4


class EngineState:
    """One engine of one vGPU: its submissions and its life. All but `step` is called with the device lock held.

    An engine that met an error stops where it is, keeps its context, and tells the driver by EIR; only a reset ends
    that, as on hardware.

    The driver's submissions stay in C (`gvt_engine`), where its writes have put them, until a step takes them.
    """

    def __init__(self, vgpu: Vgpu, spec: EngineSpec, ring: RingRegisters) -> None:
        self.vgpu, self.spec, self.ring = vgpu, spec, ring
        self.queue = vgpu.client.add_queue(spec.name, self._take)
        assert self.queue.bell is not None
        self._submitted: Any = vgpu.hot.engine(spec, ring, self.queue.bell)
        self.memory = GraphicsMemory(vgpu, vgpu.table, vgpu.shadows)
        self.generation = 0
        self.contexts = self.resets = 0
        self.executed: Counter[str] = Counter()
        """Commands by name, since the device was made; of a bounded number of kinds."""
        self._execution: Execution | None = None
        self.error = ""

    @property
    def busy(self) -> bool:
        """Whether a context is loaded."""
        return bool(self._submitted.count)

    @property
    def submissions(self) -> int:
        """Since the device was made."""
        return int(self._submitted.submissions)

    def _take(self) -> None:
        """The scheduler's thread asks, without the device lock: the driver has given something to an idle engine."""
        with self.vgpu.locked():
            if self._submitted.fresh:
                self._submitted.fresh = 0
                self.queue.submit(Run(self, self.generation))

    def step(self, budget: Budget, generation: int) -> Step:
        """One turn on the scheduler's thread, without the device lock."""
        with self.vgpu.locked():
            if generation != self.generation or not self._report_noted():
                return Step.DONE
            if self._execution is None and not self._load():
                return Step.DONE
            execution = self._execution
            if execution is not None:
                self._look_again(execution)
        if execution is None:  # reset while something of the above waited for a message
            return Step.DONE
        outcome = execution.run(budget)
        with self.vgpu.locked():
            if generation != self.generation or not self._report_noted():
                return Step.DONE
            self._show_progress(execution)
            match outcome:
                case Outcome.MORE:
                    return Step.MORE
                case Outcome.BLOCKED:
                    return Step.BLOCKED
                case Outcome.DONE:
                    return self._complete(execution, generation)
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
        self._submitted.again = 0
        self.forget_translations()
        descriptor = Descriptor(self._submitted.elements[0])
        found = Context.load(descriptor, self.memory)
        if generation != self.generation:  # reset while it waited for a message
            return False
        if isinstance(found, Context):
            self._pin(found)
            self._execution = Execution(self, found)
            return True
        self._stop(f"context {descriptor.value:#x}: {found}")
        return False

    def _look_again(self, execution: Execution) -> None:
        """The running context was submitted again, maybe with more in its ring."""
        while self._submitted.again and execution is self._execution:  # or once more, while this waited for a message
            self._submitted.again = 0
            self.forget_translations()
            execution.context.reload_tail(self.memory)

    def _complete(self, execution: Execution, generation: int) -> Step:
        """The ring is empty: save the context, tell the driver, and go on to what comes next."""
        self._look_again(execution)
        if generation != self.generation:  # reset while it waited for a message
            return Step.DONE
        if not execution.exhausted:  # more was submitted since
            return Step.MORE
        fault = execution.context.save(self.memory)
        if generation != self.generation:  # reset while it waited for a message
            return Step.DONE
        if isinstance(fault, Fault):
            self._stop(f"context can't be saved: {fault}")
            return Step.DONE
        if self._submitted.again:  # submitted again meanwhile
            return Step.MORE
        identity = int(lib.gvt_engine_next(self._submitted))
        self._execution = None
        if self.busy:
            self._report(Switch.ELEMENT | Switch.COMPLETE, identity)
            return Step.MORE
        if lib.gvt_engine_start_waiting(self._submitted):  # before a message lets the driver submit to an idle engine
            self.queue.submit(Run(self, generation))
        self._report(Switch.ACTIVE_TO_IDLE | Switch.COMPLETE, identity)
        return Step.DONE

    def _report_noted(self) -> bool:
        """What handlers have noted: they do no DMA themselves, since memory may be reached by message only.

        False: the engine was reset while this waited for a message.
        """
        generation = self.generation
        noted: Any = ffi.new("gvt_event *")
        while generation == self.generation and lib.gvt_engine_noted(self._submitted, noted):
            pointer = self.ring.status_pointer
            pointer.write_pointer = (pointer.write_pointer + noted.skipped) % CSB_ENTRIES
            self._report(noted.status, noted.context)
        return generation == self.generation

    def _report(self, status: int, identity: int) -> None:
        """Entry, then index, then interrupt: the order in which the driver looks at them."""
        generation = self.generation
        pointer = self.ring.status_pointer
        slot = (pointer.write_pointer + 1) % CSB_ENTRIES
        entry = identity << 32 | status
        page = self.ring.status_page.value & 0xFFFF_F000
        ggtt = self.memory.ggtt
        fault = ggtt.write(page + CSB_OFFSET + 8 * slot, entry.to_bytes(8, "little"))
        if fault is None:
            fault = ggtt.write(page + CSB_WRITE_INDEX, slot.to_bytes(4, "little"))
        if generation != self.generation:  # reset while it waited for a message
            return
        if fault is not None:
            self.vgpu.refuse(f"an event of {self.spec.name}, whose status page can't be written")
        self.ring.status_buffer[slot].value = entry
        pointer.write_pointer = slot
        self.raise_event(EngineEvent.CONTEXT_SWITCH)

    def raise_event(self, event: EngineEvent) -> None:
        """An interrupt of this engine; the device lock is held."""
        self.vgpu.hot.raise_event(self.spec, event)

    def _stop(self, why: str) -> None:
        """An error: the context stays, EIR says so, and the driver that asked for it hears of it."""
        self.error = why
        self.vgpu.say(f"{self.spec.name} stops: {why}")
        self.vgpu.errors += 1
        instruction_error = 1
        self.ring.eir.value |= instruction_error
        if not self.ring.emr.value & instruction_error:
            self.raise_event(EngineEvent.COMMAND_ERROR)

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
        lib.gvt_engine_reset(self._submitted)
        self._execution = None
        self.error = ""
        for register in (self.ring.head, self.ring.tail, self.ring.start, self.ring.control, self.ring.mode):
            register.value = 0
        self.ring.mi_mode.value = 0

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
