"""One context's run: a stack of streams, and the commands in them, a turn at a time."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from umdev_softgpu import Fault, Step

from . import blits, memory_interface, render
from .alu import compute
from .names import name
from .outcome import Outcome
from .register_access import CommandRegisters
from .stream import Batch, Limited, Ring, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from umdev_softgpu import Blit, Budget, Rect, Space

    from ..context import Context
    from ..execlists import EngineState
    from ..interrupt_tree import EngineEvent
    from .patterns import Setup

PASSED = "without effect"
"""How commands are counted that are passed over: no-operations, and state of pipelines that do not exist."""
DEEPEST = 3
"""A ring, a batch, and a second-level batch."""
COMMAND_COST = 16384
"""Budget units of a command, beside its bytes: what it takes to look at it, as bytes that could be copied meanwhile."""


class Execution:
    """Runs on the scheduler's thread alone; registers and interrupts take the device lock by themselves."""

    def __init__(self, engine: EngineState, context: Context) -> None:
        self.engine, self.context = engine, context
        self.memory = engine.memory
        self._trace = engine.vgpu.trace
        self.generation = engine.generation
        self.registers = CommandRegisters(engine)
        self.ring = Ring(self.memory.ggtt, context.start, context.size, context.head, context.tail)
        self._streams: list[Stream] = [self.ring]
        if context.indirect_bytes and engine.spec.name == "render":
            self._streams.append(Limited(self.memory.ggtt, context.indirect, context.indirect_bytes))
        self._blit: Blit | None = None
        self._again: tuple[int, ...] | None = None
        self.setup: Setup | None = None
        """The blitter's, for commands that draw by it."""
        self.clip: Rect | None = None
        self.header = 0
        self.trouble = ""
        self.refused: Counter[str] = Counter()

    @property
    def stream(self) -> Stream:
        """What commands come from now."""
        return self._streams[-1]

    @property
    def address(self) -> int:
        """Of the next command."""
        return self.stream.address

    @property
    def exhausted(self) -> bool:
        """Nothing is left in the ring as it is known now; tells the ring of a new tail. Device lock held."""
        self.ring.tail = self.context.tail
        return len(self._streams) == 1 and self.ring.ended and self.ring.head == self.context.tail

    def run(self, budget: Budget) -> Outcome:
        """Until the ring is empty, the budget is spent, a semaphore blocks, or something is wrong."""
        self.ring.tail = self.context.tail
        outcome: Outcome | None = None
        while outcome is None:
            if budget.stopped or not budget.left:
                outcome = Outcome.MORE
            elif self._blit is not None:
                outcome = self._continue_blit(self._blit, budget)
            else:
                outcome = self._next(budget)
        self.context.head = self.ring.head
        return outcome

    def _next(self, budget: Budget) -> Outcome | None:
        command, self._again = self._again, None
        stream = self.stream
        if command is None:
            passed, start = stream.passed, stream.address
            taken = stream.take()
            budget.spend(4 * (stream.passed - passed))
            self.engine.executed[PASSED] += stream.passed - passed
            if stream.passed != passed and self._trace.wanted:
                self._trace.tell(self.engine.spec.name, PASSED, stream.passed - passed, address=start)
            if isinstance(taken, Fault):
                return self.fail(f"commands can't be read: {taken}")
            if taken is None:
                return None
            command = taken
        if not command:
            return self._ended(stream)
        self.header = command[0]
        named = name(command[0])
        self.engine.executed[named] += 1
        if self._trace.wanted:
            length = 4 * len(command)
            self._trace.tell(self.engine.spec.name, named, command[0], address=stream.address - length, length=length)
        budget.spend(COMMAND_COST + 4 * len(command))
        outcome = HANDLERS[command[0] >> 29](self, command)
        if outcome is Outcome.BLOCKED:
            self._again = command
        return outcome

    def _ended(self, stream: Stream) -> Outcome | None:
        if stream.unknown:
            return self.fail(f"{stream.unknown:#010x} at {stream.address:#x} is no command")
        if len(self._streams) > 1:
            self._streams.pop()
            return None
        return Outcome.DONE

    def _continue_blit(self, blit: Blit, budget: Budget) -> Outcome | None:
        step = blit.step(budget)
        if isinstance(step, Fault):
            return self.fail(f"blit: {step}")
        if step is Step.MORE:
            return Outcome.MORE
        self._blit = None
        return None

    # What commands use.

    def fail(self, why: str) -> Outcome:
        """Stop the engine."""
        self.trouble = why
        return Outcome.FAILED

    def refuse(self, what: str) -> None:
        """A command that its stream has no privilege for is passed over, and counted."""
        self.refused[what] += 1
        self.engine.vgpu.refused_commands[what] += 1

    def pass_over(self, what: str) -> None:
        """Hardware does something here that this engine does not: go on, as it would, and count it."""
        self.engine.vgpu.refused_commands[f"{what} is not done here"] += 1

    def space(self, *, global_: bool) -> Space | None:
        """Where a command stores: None where it asks for the global table without the privilege."""
        if not global_:
            return self.context.ppgtt
        return self.memory.ggtt if self.stream.privileged else None

    def check(self, result: Fault | None) -> Outcome | None:
        """A store's result."""
        return None if result is None else self.fail(str(result))

    def start_blit(self, blit: Blit | Fault) -> Outcome | None:
        """Begin it; turns continue it before anything else."""
        if isinstance(blit, Fault):
            return self.fail(f"blit: {blit}")
        self._blit = blit
        return None

    def raise_event(self, event: EngineEvent) -> None:
        """Interrupt the driver, unless the engine was reset meanwhile."""
        with self.engine.vgpu.locked():
            if self.lives:
                self.engine.raise_event(event)

    def forget_translations(self) -> None:
        """The driver changed its tables and says so in its ring."""
        with self.engine.vgpu.locked():
            if self.lives:
                self.engine.forget_translations()

    def write_registers(self, values: Iterable[tuple[int, int]]) -> None:
        """Offsets and values, unless the engine was reset meanwhile: the next life's registers are its own."""
        with self.engine.vgpu.locked():
            if self.lives:
                for offset, value in values:
                    self.registers.write(offset, value)

    def compute(self, instructions: Sequence[int]) -> str:
        """MI_MATH, likewise; returns what is wrong, or an empty text."""
        with self.engine.vgpu.locked():
            return compute(self.engine.ring.general, instructions) if self.lives else ""

    @property
    def lives(self) -> bool:
        """The engine was not reset since. The device lock is held."""
        return self.generation == self.engine.generation

    def enter_batch(self, address: int, *, process: bool, second_level: bool) -> Outcome | None:
        """Go on in a batch: called from the ring or as second level, else instead of the batch that this is in."""
        privileged = not process and self.stream.privileged
        if not process and not privileged:
            self.refuse("batch in global memory")
            process = True
        batch = Batch(self.context.ppgtt if process else self.memory.ggtt, address, privileged=privileged)
        if isinstance(self.stream, Batch) and not second_level:
            self._streams[-1] = batch
        elif len(self._streams) == DEEPEST:
            return self.fail("batches are nested too deeply")
        else:
            self._streams.append(batch)
        return None

    def leave_batch(self) -> Outcome | None:
        """The end of a batch."""
        if len(self._streams) == 1:
            return self.fail("the end of a batch in a ring")
        self._streams.pop()
        return None


def _no_client(execution: Execution, command: tuple[int, ...]) -> Outcome | None:
    return execution.fail(f"{command[0]:#010x} is no command")


HANDLERS: tuple[Callable[[Execution, tuple[int, ...]], Outcome | None], ...] = (
    memory_interface.execute,
    _no_client,
    blits.execute,
    render.execute,
    _no_client,
    _no_client,
    _no_client,
    _no_client,
)
"""By the client in bits 31:29."""
