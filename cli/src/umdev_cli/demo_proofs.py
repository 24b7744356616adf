"""The seven services, each driven from the driver's side and proven from the other one."""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umdev.addresses import PAGE_SIZE
from umdev.errors import NotSupported, UmdevError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from umdev.driver import Function
    from umdev_seven import Seven

COMMAND_SECONDS = 10.0
SCRATCH, STATUS, COMMAND, ADDRESS, LENGTH, ARGUMENT, RESULT = 0x04, 0x08, 0x0C, 0x10, 0x18, 0x1C, 0x20
BUSY, FAILED = 1, 2
REGISTERS, WINDOW = 0, 2
NONCE_BYTES = 8


@dataclass(frozen=True, slots=True)
class Proof:
    """One service as it was seen to work, or not."""

    service: str
    bus: str
    mechanism: str
    proof: str
    ok: bool

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


class Demonstration:
    """Drives one `Seven` through one `Function`. Every check makes its own random nonce and returns (proof, ok)."""

    def __init__(self, device: Seven, function: Function, bus: str) -> None:
        self._device = device
        self._function = function
        self._bus = bus
        self._registers = function.bars[REGISTERS]

    def run(self) -> Iterator[Proof]:
        """One proof a service, in the order of DESIGN section 1; a failure is a proof that is not ok."""
        checks: dict[str, tuple[str, Callable[[], tuple[str, bool]]]] = {
            "passthrough": ("passthrough", self.passthrough),
            "trap": ("trap", self.trap),
            "interrupt": ("interrupt", self.interrupt),
            "map": ("map", self.map),
            "pin": ("pin", self.pin),
            "protect": ("protect", self.protect),
            "translate": ("translate", self.translate),
        }
        self._function.enable(memory=True, io=True, bus_master=True)
        for service, (prefix, check) in checks.items():
            try:
                proof, ok = check()
            except (UmdevError, OSError) as error:
                proof, ok = str(error), False
            yield Proof(service, self._bus, self._mechanism(prefix), proof, ok)

    def passthrough(self) -> tuple[str, bool]:
        """A store by the driver is in the device's memory, and no access reached the device."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        before = self._accesses()
        with self._function.map_area(WINDOW) as window:
            window.write(0, nonce)
            seen = self._proof()["window"][: len(nonce)]
        trapped = self._accesses() - before
        return f"driver stored {nonce.hex()}, device holds {seen.hex()}, {trapped} traps", (
            seen == nonce and trapped == 0
        )

    def trap(self) -> tuple[str, bool]:
        """A store by the driver reaches the model's handler."""
        nonce = secrets.randbits(32)
        self._registers.write32(SCRATCH, nonce)
        self._registers.read32(SCRATCH)  # a read returns after every write before it
        seen = self._proof()["trapped"][-1:]
        got = f"{seen[0]:#010x}" if seen else "nothing"
        return f"driver wrote {nonce:#010x}, handler got {got}", seen == [nonce]

    def interrupt(self) -> tuple[str, bool]:
        """The vector that the device signals is the one that the driver's eventfd reports."""
        from umdev_seven.device import VECTORS

        nonce = secrets.randbelow(VECTORS)
        with self._function.enable_interrupts("msi", VECTORS) as interrupts:
            self._registers.write32(ARGUMENT, nonce)
            self._command("INTERRUPT")
            counts = [interrupts.wait(vector, timeout=2.0 if vector == nonce else 0.0) for vector in range(VECTORS)]
        return f"device signalled vector {nonce}, driver's counts are {counts}", counts == [
            int(vector == nonce) for vector in range(VECTORS)
        ]

    def map(self) -> tuple[str, bool]:
        """The device reads the driver's buffer and writes it back reversed."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        with self._buffer(len(nonce)) as buffer:
            buffer.write(0, nonce)
            self._range(buffer.address, len(nonce))
            self._command("REVERSE")
            seen = buffer.read(0, len(nonce))
        return f"driver's buffer held {nonce.hex()}, device left {seen.hex()}", seen == nonce[::-1]

    def pin(self) -> tuple[str, bool]:
        """The kernel's count of locked memory grows by what was pinned, and shrinks again."""
        nonce = 1 + secrets.randbelow(16)
        with self._buffer(nonce * PAGE_SIZE) as buffer:
            self._range(buffer.address, nonce * PAGE_SIZE)
            before = locked_bytes()
            self._command("PIN")
            pinned = locked_bytes() - before
            self._command("UNPIN")
            after = locked_bytes() - before
        return f"{nonce} pages: VmLck and VmPin +{pinned >> 10} kB, unpinned +{after >> 10} kB", (
            pinned == nonce * PAGE_SIZE and after == 0
        )

    def protect(self) -> tuple[str, bool]:
        """A store by the driver to a protected page is reported with its address, a store beside it is not."""
        nonce = secrets.token_bytes(8)
        with self._buffer(8 * PAGE_SIZE) as buffer:
            page = 1 + secrets.randbelow(6)
            buffer.write(page * PAGE_SIZE, bytes(8))
            address = buffer.address + page * PAGE_SIZE
            self._range(address, PAGE_SIZE)
            mode = {1: "TRAP", 2: "TRACK"}[self._command("PROTECT")]
            buffer.write((page + 1) * PAGE_SIZE, nonce)
            quiet = self._command("COLLECT")
            buffer.write(page * PAGE_SIZE, nonce)
            reported = self._command("COLLECT") - 1
            self._command("UNPROTECT")
            landed = buffer.read(page * PAGE_SIZE, 8)
        return (
            f"{mode}: stored {nonce.hex()} at {address:#x}, reported {reported:#x}, landed {landed.hex()}",
            quiet == 0 and reported == address and landed == nonce,
        )

    def translate(self) -> tuple[str, bool]:
        """This process's memory at the address that the device got holds what the driver stored."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        with self._buffer(len(nonce)) as buffer:
            buffer.write(0, nonce)
            self._range(buffer.address, len(nonce))
            host = self._command("TRANSLATE")
            with Path("/proc/self/mem").open("rb", buffering=0) as memory:
                memory.seek(host)
                seen = memory.read(len(nonce))
        return f"{buffer.address:#x} is host {host:#x}: {nonce.hex()} stored, {seen.hex()} there", seen == nonce

    @contextlib.contextmanager
    def _buffer(self, size: int) -> Iterator[Any]:
        buffer = self._function.allocate(size)
        try:
            yield buffer
        finally:
            buffer.free()

    def _range(self, address: int, length: int) -> None:
        self._registers.write64(ADDRESS, address)
        self._registers.write32(LENGTH, length)

    def _command(self, name: str) -> int:
        """Run an operation to its end. Raises: TimeoutError, NotSupported with the device's reason."""
        from umdev_seven import Operation

        self._registers.write32(COMMAND, Operation[name])
        deadline = time.monotonic() + COMMAND_SECONDS
        while (status := self._registers.read32(STATUS)) & BUSY:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} took longer than {COMMAND_SECONDS:.0f} s")
            time.sleep(0.0002)
        if status & FAILED:
            raise NotSupported(str(self._proof()["failure"]))
        return self._registers.read64(RESULT)

    def _proof(self) -> dict[str, Any]:
        return self._device.query("proof")  # type: ignore[return-value]  # the query's own type

    def _accesses(self) -> int:
        counters = self._device.native.counters
        return int(counters["reads"] + counters["writes"])

    def _mechanism(self, prefix: str) -> str:
        named = self._proof()["mechanisms"]
        wanted = {"trap": f"trap[{REGISTERS}]"}.get(prefix, prefix)
        return next((text for name, text in named.items() if name.startswith(wanted)), "none")


def locked_bytes() -> int:
    """How much memory of this process the kernel holds locked or pinned (proc(5), VmLck and VmPin)."""
    found = re.findall(r"^Vm(?:Lck|Pin):\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return sum(int(kilobytes) << 10 for kilobytes in found)


def demonstrate(name: str | None = None) -> Iterator[Proof]:
    """Prove the services on the bus `name`, or on the best of this host: the first, by preference, that opens.

    Raises: NotSupported when no bus opens, with each one's reason; NotFound, PluginError for a bus that was named.
    """
    from umdev.plugins import plugins
    from umdev_seven import Seven, parent

    reasons: list[str] = []
    for bus in [plugins().load_bus(name)] if name is not None else _candidates(reasons):
        with parent.create("seven") as device:
            assert isinstance(device, Seven)
            try:
                function = bus.open_function(device)
            except UmdevError as error:
                reasons.append(f"{bus.name}: {error}")
                continue
            with function:
                yield from Demonstration(device, function, bus.name).run()
            return
    raise NotSupported("no bus can attach a device here:\n  " + "\n  ".join(reasons))


def _candidates(reasons: list[str]) -> list[Any]:
    """Every bus that loads, best first; of the others, why."""
    from umdev.plugins import plugins

    found = []
    for info in plugins().buses():
        try:
            found.append(plugins().load_bus(info.name))
        except UmdevError as error:
            reasons.append(f"{info.name}: {error}")
    return sorted(found, key=lambda bus: (-bus.preference, bus.name))
