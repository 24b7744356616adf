"""What configuration space tells the rest of the function, and asks of it."""

from __future__ import annotations

from typing import Protocol


class FunctionControl(Protocol):
    """The function behind a `ConfigSpace`. Every call comes from within `ConfigSpace.write`, `reset` or `restore`
    (so with the device lock held), and only when something changed, except that `reset` and `restore` tell everything.

    In one write, what ends comes first (a gate closes), then BARs move, then gates open, then interrupts change.
    """

    def memory_enable(self, enabled: bool, /) -> None:
        """Memory BARs decode: Command bit 1, in D0."""

    def io_enable(self, enabled: bool, /) -> None:
        """I/O BARs decode: Command bit 0, in D0."""

    def rom_enable(self, enabled: bool, /) -> None:
        """The ROM decodes: its enable bit and Command bit 1, in D0 (PCI Local Bus 3.0, 6.2.5.2)."""

    def bus_master(self, enabled: bool, /) -> None:
        """The function may start transactions: Command bit 2, in D0."""

    def bar_moved(self, index: int, address: int, /) -> None:
        """BAR `index` (6: the ROM) decodes at `address` from now on: see `ConfigSpace`."""

    def interrupt_state(self, flags: int, /) -> None:
        """Flags of `InterruptState`."""

    def msi_state(self, allocated: int, mask: int, /) -> None:
        """How many MSI messages the driver allocated (1, 2, 4 ... 32), and its mask bits (0 without masking)."""

    def msi_pending(self) -> int:
        """The pending bits of MSI, read back by the driver."""

    def interrupt_level(self) -> bool:
        """Is an INTx source high? Status bit 3."""

    def function_reset(self) -> None:
        """The driver wrote Initiate Function Level Reset; calls `ConfigSpace.reset(ResetKind.FLR)` in the end."""

    def power_state(self, state: int, /) -> None:
        """3: the function went from D0 to D3hot. 0: it comes back and has to be reset, which calls
        `ConfigSpace.reset(ResetKind.D3HOT)`; with No_Soft_Reset there is no such call, for nothing is lost.
        """
