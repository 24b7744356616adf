from collections.abc import Callable

import pytest
from umdev.pci import BarInfo, Capability, ConfigSpace, PciId, ResetKind

BARS = (
    BarInfo(0, 1 << 20, "memory32"),
    BarInfo(1, 32, "io"),
    BarInfo(2, 1 << 33, "memory64", prefetchable=True),
    BarInfo(6, 1 << 16, "rom"),
)
IDENTITY = PciId(0x1234, 0x11E8, 0x00FF00, revision=0x10, subsystem_vendor=0x1AF4, subsystem_device=0x1100)


class Recorder:
    """A `FunctionControl` that writes down what it is told, and resets as a device does."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []
        self.level = False
        self.pending = 0
        self.config: ConfigSpace | None = None

    def take(self) -> list[tuple[object, ...]]:
        told, self.told = self.told, []
        return told

    def memory_enable(self, enabled: bool) -> None:
        self.told.append(("memory", enabled))

    def io_enable(self, enabled: bool) -> None:
        self.told.append(("io", enabled))

    def rom_enable(self, enabled: bool) -> None:
        self.told.append(("rom", enabled))

    def bus_master(self, enabled: bool) -> None:
        self.told.append(("bus_master", enabled))

    def bar_moved(self, index: int, address: int) -> None:
        self.told.append(("bar", index, address))

    def interrupt_state(self, flags: int) -> None:
        self.told.append(("interrupts", flags))

    def msi_state(self, allocated: int, mask: int) -> None:
        self.told.append(("msi", allocated, mask))

    def msi_pending(self) -> int:
        return self.pending

    def interrupt_level(self) -> bool:
        return self.level

    def function_reset(self) -> None:
        self.told.append(("function_reset",))
        assert self.config is not None
        self.config.reset(ResetKind.FLR)

    def power_state(self, state: int) -> None:
        self.told.append(("power", state))
        if state == 0:
            assert self.config is not None
            self.config.reset(ResetKind.D3HOT)


class Space:
    """A configuration space with its recorder, and accesses by width."""

    def __init__(self, *capabilities: Capability, bars=BARS, pin=1, identity=IDENTITY, size=None) -> None:
        self.control = Recorder()
        self.config = self.control.config = ConfigSpace(identity, bars, capabilities, pin, self.control, size=size)
        assert self.control.told == [], "the constructor calls nobody"
        self.config.reset(ResetKind.POWER_ON)
        self.control.take()

    def get(self, offset: int, width: int) -> int:
        return int.from_bytes(self.config.read(offset, width), "little")

    def set(self, offset: int, value: int, width: int) -> list[tuple[object, ...]]:
        """Write, and what the function was told of it."""
        self.config.write(offset, value.to_bytes(width, "little"))
        return self.control.take()

    def at(self, register: str) -> int:
        return self.config.registers[register][0]


@pytest.fixture(scope="session")
def make_space() -> Callable[..., Space]:
    return Space
