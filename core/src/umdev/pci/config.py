"""The configuration space of one function, type 0, as its driver sees it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import InvalidArgument, NotFound, SaveError
from . import layout
from .bars import BarInfo, check_bars
from .capabilities import Capability, Msi, Msix, PciExpress, PowerManagement
from .registers import RegisterImage
from .reset import ResetKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .control import FunctionControl
    from .ids import PciId
    from .layout import PlacedCapability

D0, D3HOT = 0, 3
_FLR = 1 << 15


class InterruptState(enum.IntFlag):
    """What configuration space says about interrupts; the values of C's `enum umdev_irq_state`."""

    MSI_ENABLED = 1
    MSIX_ENABLED = 2
    MSIX_MASKED = 4
    INTX_DISABLED = 8
    BUS_MASTER = 16


@dataclass
class _Applied:
    """What `FunctionControl` was told last; None: nothing yet."""

    gates: dict[str, bool | None]
    bars: dict[int, int] = field(default_factory=dict)
    interrupts: int | None = None
    msi: tuple[int, int] | None = None


class ConfigSpace:
    """Configuration space that behaves as hardware does.

    Accesses have any offset and length. A write longer than a doubleword takes effect doubleword by doubleword in
    ascending order, as the transactions that it stands for. Bytes past the end read as ones and take no write.
    Writes to read-only bits are dropped.

    BARs: a BAR *decodes* while its enable (Command bit 0 or 1; the ROM's own bit as well) is on in D0. `bar_moved`
    comes when a BAR begins to decode, and at each write that changes the address of one that decodes: a driver that
    sizes a BAR without turning decoding off, which PCI Local Bus 3.0, 6.2.5.1 (implementation note) warns of, is seen
    to move it twice. While decoding is off, addresses change unnoticed.

    The caller holds the device lock for everything but the properties that never change; no call blocks. Exceptions
    from `control` pass through, and the write has then been stored.

    Raises: DeclarationError from the constructor where declarations do not fit together. It does not call `control`;
    `reset(POWER_ON)` does so first.
    """

    def __init__(
        self,
        identity: PciId,
        bars: Sequence[BarInfo],
        capabilities: Sequence[Capability],
        interrupt_pin: int,
        control: FunctionControl,
        *,
        size: int | None = None,
    ) -> None:
        if not 0 <= interrupt_pin <= 4:
            raise InvalidArgument(f"interrupt pin {interrupt_pin}: 0 is none, 1 to 4 are INTA to INTD")
        check_bars(bars)
        self.identity = identity
        self.bars = {bar.index: bar for bar in bars}
        self.size = layout.config_size(capabilities, size)
        self.capabilities: tuple[PlacedCapability, ...] = tuple(layout.place(capabilities, bars))
        first = self.capabilities[0].offset if self.capabilities else 0
        self._express = self._find(PciExpress)
        self._msi = self._find(Msi)
        self._msix = self._find(Msix)
        self._power = self._find(PowerManagement)
        registers = layout.header(identity, bars, interrupt_pin, first, express=self._express is not None)
        self._image = RegisterImage(self.size, [*registers, *layout.chain(self.capabilities)])
        self._control = control
        self._applied = self._nothing_applied()

    # The driver's side.

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`. Has no side effect. Raises: InvalidArgument for negative numbers."""
        if offset < 0 or length < 0:
            raise InvalidArgument(f"a read of {length} bytes at {offset}")
        inside = max(0, min(length, self.size - offset))
        self._refresh(offset, offset + inside)
        return self._image.read(offset, inside) + b"\xff" * (length - inside)

    def write(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset`, with all that follows from it. Raises: InvalidArgument for a negative offset."""
        if offset < 0:
            raise InvalidArgument(f"a write at {offset}")
        data = data[: max(0, self.size - offset)]
        while data:
            step = 4 - offset % 4
            self._write_doubleword(offset, data[:step])
            offset, data = offset + step, data[step:]

    # The device's side.

    @property
    def command(self) -> int:
        """The Command register."""
        return self._image["command"]

    @property
    def power_state(self) -> int:
        """0 for D0, 3 for D3hot."""
        return self._image["pm.control_status"] & 3 if self._power else D0

    def bar_address(self, index: int) -> int:
        """The address in BAR `index` (6: the ROM), whether it decodes or not. Raises: NotFound."""
        if index not in self.bars:
            raise NotFound(f"this function has no BAR {index}")
        bar = self.bars[index]
        return self._image[bar.name] & bar.address_mask

    def bar_decodes(self, index: int) -> bool:
        """Does BAR `index` answer? Raises: NotFound."""
        if index not in self.bars:
            raise NotFound(f"this function has no BAR {index}")
        return self._gates()[_GATE_OF_KIND[self.bars[index].kind]]

    def report_errors(self, bits: int) -> None:
        """Set error bits of the Status register (bits 8 and 15:11), which the driver clears by writing ones.

        Raises: InvalidArgument for other bits.
        """
        if bits & ~layout.STATUS_ERRORS:
            raise InvalidArgument(f"{bits:#06x} has bits beside the error bits {layout.STATUS_ERRORS:#06x} of Status")
        self._image["status"] |= bits

    def __getitem__(self, register: str) -> int:
        """A register by its name, as in `registers`, as the driver would read it. Raises: NotFound."""
        found = self._image.registers.get(register)
        if found is None:
            raise NotFound(f"no register {register!r} in configuration space")
        return int.from_bytes(self.read(found.offset, found.width), "little")

    @property
    def registers(self) -> dict[str, tuple[int, int]]:
        """Name -> (offset, width in bytes), in ascending order; for traces."""
        found = sorted(self._image.registers.values(), key=lambda r: r.offset)
        return {r.name: (r.offset, r.width) for r in found}

    def reset(self, kind: ResetKind) -> None:
        """Every register to its reset value, then tell `control` everything.

        Over FLR and D3hot the controls of the link survive (PCI Express Base 5.0, 6.6.2). BARs, Command and the enables
        of MSI and MSI-X survive no reset; a driver or VMM writes them anew.
        """
        self._image.reset(keep_survivors=kind in (ResetKind.FLR, ResetKind.D3HOT))
        self._applied = self._nothing_applied()
        self._synchronise()

    def save(self) -> dict[str, int]:
        """Every register that can change, by name."""
        return {
            r.name: self._image[r.name] & r.changeable | r.reset & ~r.changeable
            for r in self._image.registers.values()
            if r.changeable
        }

    def restore(self, saved: Mapping[str, int]) -> None:
        """Become what was saved, then tell `control` everything.

        Raises: SaveError, and nothing has changed, if a register is only on one side or a value is not one that this
        function can have.
        """
        known = self.save()
        if wrong := known.keys() ^ saved.keys():
            raise SaveError(f"configuration register {min(wrong)} is only on one side")
        for name, value in saved.items():
            register = self._image.registers[name]
            if not 0 <= value < 1 << 8 * register.width or (value ^ register.reset) & ~register.changeable:
                raise SaveError(f"configuration register {name} cannot have the value {value:#x} here")
        for name, value in saved.items():
            self._image[name] = value
        self._applied = self._nothing_applied()
        self._synchronise()

    # Inside.

    def _find(self, kind: type[Capability]) -> PlacedCapability | None:
        return next((c for c in self.capabilities if isinstance(c.declaration, kind)), None)

    def _refresh(self, start: int, end: int) -> None:
        """Bring in the bits that live elsewhere, if the access touches them."""
        status = self._image.registers["status"]
        if start < status.end and status.offset < end:
            level = layout.STATUS_INTERRUPT if self._control.interrupt_level() else 0
            self._image["status"] = self._image["status"] & ~layout.STATUS_INTERRUPT | level
        pending = self._image.registers.get("msi.pending")
        if pending and start < pending.end and pending.offset < end:
            self._image["msi.pending"] = self._control.msi_pending()

    def _write_doubleword(self, offset: int, data: bytes) -> None:
        power = self._image["pm.control_status"] if self._power else 0
        self._image.write(offset, data)
        state = self._settle_power(power)
        if state == D0 and power & 3 == D3HOT and not power & 1 << 3:
            self._control.power_state(D0)
            return
        self._synchronise()
        if state != power & 3 and state == D3HOT:
            self._control.power_state(D3HOT)
        if self._flr_requested(offset, data):
            self._control.function_reset()

    def _settle_power(self, before: int) -> int:
        """D1 and D2 are not supported: writing them changes no state (PCI Bus Power Management 1.2, 3.2.4)."""
        if not self._power:
            return D0
        state = self._image["pm.control_status"] & 3
        if state not in (D0, D3HOT):
            self._image["pm.control_status"] = before
            state = before & 3
        return state

    def _flr_requested(self, offset: int, data: bytes) -> bool:
        """Was 1 written to Initiate Function Level Reset? It stores nothing (PCI Express Base 5.0, 7.5.3.4)."""
        if self._express is None or not self._express.declaration.flr:  # type: ignore[attr-defined]  # it is PciExpress
            return False
        at = self._image.registers["express.device_control"].offset + 1 - offset
        return 0 <= at < len(data) and bool(data[at] & _FLR >> 8)

    @staticmethod
    def _nothing_applied() -> _Applied:
        return _Applied(gates=dict.fromkeys(("memory", "io", "rom", "bus_master")))

    def _gates(self) -> dict[str, bool]:
        command = self.command if self.power_state == D0 else 0  # D3hot: configuration only (PCI PM 1.2, 5.4.1)
        memory = bool(command & layout.COMMAND_MEMORY)
        return {
            "memory": memory,
            "io": bool(command & layout.COMMAND_IO),
            "rom": memory and "rom" in self._image.registers and bool(self._image["rom"] & 1),
            "bus_master": bool(command & layout.COMMAND_BUS_MASTER),
        }

    def _interrupts(self) -> int:
        state = InterruptState(0)
        if self._gates()["bus_master"]:
            state |= InterruptState.BUS_MASTER
        if self.command & layout.COMMAND_INTX_DISABLE or self.power_state != D0:
            state |= InterruptState.INTX_DISABLED
        if self._msi and self._image["msi.control"] & 1:
            state |= InterruptState.MSI_ENABLED
        if self._msix and self._image["msix.control"] & 1 << 15:
            state |= InterruptState.MSIX_ENABLED
        if self._msix and self._image["msix.control"] & 1 << 14:
            state |= InterruptState.MSIX_MASKED
        return int(state)

    def _msi_state(self) -> tuple[int, int]:
        """More messages than the function asked for are not given (PCI Local Bus 3.0, 6.8.1.3: undefined)."""
        if not self._msi:
            return 1, 0
        control = self._image["msi.control"]
        allocated = 1 << min(control >> 4 & 7, control >> 1 & 7)
        return allocated, self._image["msi.mask"] if "msi.mask" in self._image.registers else 0

    def _synchronise(self) -> None:
        """Tell `control` what changed: ends, moves, begins, interrupts."""
        gates, applied = self._gates(), self._applied
        changed = [gate for gate, on in gates.items() if applied.gates[gate] is not on]
        applied.gates.update(gates)
        for gate in changed:
            if not gates[gate]:
                self._tell_gate(gate, on=False)
        self._tell_moves(gates)
        for gate in changed:
            if gates[gate]:
                self._tell_gate(gate, on=True)
        if (msi := self._msi_state()) != applied.msi:
            applied.msi = msi
            self._control.msi_state(*msi)
        if (interrupts := self._interrupts()) != applied.interrupts:
            applied.interrupts = interrupts
            self._control.interrupt_state(interrupts)

    def _tell_gate(self, gate: str, *, on: bool) -> None:
        match gate:
            case "memory":
                self._control.memory_enable(on)
            case "io":
                self._control.io_enable(on)
            case "rom":
                self._control.rom_enable(on)
            case _:
                self._control.bus_master(on)

    def _tell_moves(self, gates: Mapping[str, bool]) -> None:
        decoding = {i: self.bar_address(i) for i, bar in self.bars.items() if gates[_GATE_OF_KIND[bar.kind]]}
        before, self._applied.bars = self._applied.bars, decoding
        for index, address in decoding.items():
            if before.get(index) != address:
                self._control.bar_moved(index, address)


_GATE_OF_KIND = {"memory32": "memory", "memory64": "memory", "io": "io", "rom": "rom"}
