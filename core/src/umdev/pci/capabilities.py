"""PCI capabilities as declarations: each knows its registers and what the driver may change in them.

`ConfigSpace` chains them in the order given, at their own `offset` or in the first gap that fits.
"""

from __future__ import annotations

import abc
import enum
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, ClassVar

from ..errors import DeclarationError
from .registers import ConfigRegister

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Capability(abc.ABC):
    """One structure of the capability list (PCI Local Bus 3.0, 6.7)."""

    id: ClassVar[int]
    """Capability ID (PCI Code and ID Assignment, 2)."""
    name: ClassVar[str]
    """Prefix of its registers' names."""
    repeatable: ClassVar[bool] = False
    """May a function have two?"""

    _: KW_ONLY
    offset: int | None = None
    """Where it stands in configuration space, in bytes; None: the first gap that fits."""

    @property
    @abc.abstractmethod
    def length(self) -> int:
        """Bytes that it takes, ID and next pointer included."""

    @abc.abstractmethod
    def registers(self) -> Sequence[ConfigRegister]:
        """Its registers after ID and next pointer; offsets from the start of the structure."""


@dataclass(frozen=True)
class PowerManagement(Capability):
    """Power management with D0 and D3hot, without PME (PCI Bus Power Management 1.2, 3.2).

    `no_soft_reset`: the function keeps its state from D3hot to D0; otherwise that transition resets it (3.2.4).
    """

    id: ClassVar[int] = 0x01
    name: ClassVar[str] = "pm"

    no_soft_reset: bool = False

    @property
    def length(self) -> int:
        """As 3.2."""
        return 8

    def registers(self) -> Sequence[ConfigRegister]:
        """PMC says version 1.2, no D1, D2, PME (3.2.3); of PMCSR the PowerState is writable (3.2.4)."""
        return (
            ConfigRegister("capabilities", 2, 2, reset=0x0003),
            ConfigRegister("control_status", 4, 2, reset=self.no_soft_reset << 3, writable=0x0003),
        )


@dataclass(frozen=True)
class Msi(Capability):
    """Message Signalled Interrupts (PCI Local Bus 3.0, 6.8.1). `Interrupts` declares it for a device model.

    `vectors` is rounded up to a power of two, as 6.8.1.3 has it: who needs three asks for four.

    Raises: DeclarationError for none or for more than 32 vectors.
    """

    id: ClassVar[int] = 0x05
    name: ClassVar[str] = "msi"

    vectors: int = 1
    masking: bool = False
    """Per-vector mask and pending bits."""
    address64: bool = True
    """A 64-bit message address; PCI Express requires it (PCI Express Base 5.0, 7.7.1)."""

    def __post_init__(self) -> None:
        if not 1 <= self.vectors <= 32:
            raise DeclarationError(f"Msi: {self.vectors} vectors; MSI has 1 to 32 (PCI Local Bus 3.0, 6.8.1.3)")

    @property
    def allocatable(self) -> int:
        """What the function asks for: `vectors`, rounded up to a power of two."""
        return 1 << (self.vectors - 1).bit_length()

    @property
    def length(self) -> int:
        """One of the four layouts of 6.8.1."""
        return 10 + 4 * self.address64 + (10 if self.masking else 0)

    def registers(self) -> Sequence[ConfigRegister]:
        """6.8.1.3 to 6.8.1.8."""
        capable = self.allocatable.bit_length() - 1
        control = capable << 1 | self.address64 << 7 | self.masking << 8
        found = [
            ConfigRegister("control", 2, 2, reset=control, writable=0x0071),
            ConfigRegister("address_low", 4, 4, writable=0xFFFF_FFFC),
        ]
        at = 8
        if self.address64:
            found.append(ConfigRegister("address_high", at, 4, writable=0xFFFF_FFFF))
            at += 4
        found.append(ConfigRegister("data", at, 2, writable=0xFFFF))
        if self.masking:
            found.append(ConfigRegister("mask", at + 4, 4, writable=(1 << self.allocatable) - 1))
            found.append(ConfigRegister("pending", at + 8, 4))
        return found


@dataclass(frozen=True)
class Msix(Capability):
    """MSI-X: table and pending bit array in a memory BAR (PCI Local Bus 3.0, 6.8.2). `Interrupts` declares it.

    Without offsets both go to the top of the BAR, on pages of their own: the table first. With `table_offset` alone the
    pending bits follow the table. Offsets are multiples of 8 (6.8.2.4, 6.8.2.5). The BAR has nothing else there.

    Raises: DeclarationError for none or more than 2048 vectors, a BAR index that is none, a crooked offset.
    """

    id: ClassVar[int] = 0x11
    name: ClassVar[str] = "msix"

    vectors: int = 1
    bar: int = 0
    table_offset: int | None = None
    pba_offset: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.vectors <= 2048:
            raise DeclarationError(f"Msix: {self.vectors} vectors; MSI-X has 1 to 2048 (PCI Local Bus 3.0, 6.8.2.3)")
        if not 0 <= self.bar <= 5:
            raise DeclarationError(f"Msix: bar={self.bar}; a table stands in BAR 0 to 5")
        for name in ("table_offset", "pba_offset"):
            value: int | None = getattr(self, name)
            if value is not None and (value < 0 or value % 8):
                raise DeclarationError(f"Msix: {name}={value:#x} must be a multiple of 8 (PCI Local Bus 3.0, 6.8.2.4)")
        if self.table_offset is None and self.pba_offset is not None:
            raise DeclarationError("Msix: pba_offset needs a table_offset beside it")

    @property
    def table_length(self) -> int:
        """Bytes of the table: 16 for each vector."""
        return 16 * self.vectors

    @property
    def pba_length(self) -> int:
        """Bytes of the pending bit array: quadwords (6.8.2)."""
        return 8 * -(-self.vectors // 64)

    @property
    def length(self) -> int:
        """As 6.8.2."""
        return 12

    def place(self, bar_size: int) -> Msix:
        """The same with both offsets set, for a BAR of `bar_size` bytes.

        Raises: DeclarationError where they do not fit into the BAR or overlap.
        """
        table, pba = self.table_offset, self.pba_offset
        if table is None:
            table = (bar_size - self.table_length - self.pba_length) & ~0xFFF
        if pba is None:
            pba = table + self.table_length
        for what, start, length in (("table", table, self.table_length), ("PBA", pba, self.pba_length)):
            if start < 0 or start + length > bar_size:
                raise DeclarationError(
                    f"Msix: the {what} of {self.vectors} vectors ({length:#x} bytes at {start:#x}) does not fit into "
                    f"BAR {self.bar} of {bar_size:#x} bytes"
                )
        if table < pba + self.pba_length and pba < table + self.table_length:
            raise DeclarationError(f"Msix: table at {table:#x} and PBA at {pba:#x} of BAR {self.bar} overlap")
        return Msix(self.vectors, self.bar, table, pba, offset=self.offset)

    def registers(self) -> Sequence[ConfigRegister]:
        """6.8.2.3 to 6.8.2.5. Call it on what `place` returned."""
        assert self.table_offset is not None, "place() comes first"
        assert self.pba_offset is not None, "place() comes first"
        return (
            ConfigRegister("control", 2, 2, reset=self.vectors - 1, writable=0xC000),
            ConfigRegister("table", 4, 4, reset=self.table_offset | self.bar),
            ConfigRegister("pba", 8, 4, reset=self.pba_offset | self.bar),
        )


class PortType(enum.IntEnum):
    """Device/Port Type of an endpoint (PCI Express Base 5.0, 7.5.3.2)."""

    ENDPOINT = 0
    LEGACY_ENDPOINT = 1
    """One that needs I/O space."""
    INTEGRATED_ENDPOINT = 9
    """In the root complex: it has no link."""


@dataclass(frozen=True)
class PciExpress(Capability):
    """PCI Express endpoint, version 2, a x1 link at 2.5 GT/s (PCI Express Base 5.0, 7.5.3).

    It makes configuration space 4096 bytes. `flr`: the driver can reset the function by Function Level Reset (6.6.2).
    """

    id: ClassVar[int] = 0x10
    name: ClassVar[str] = "express"

    flr: bool = True
    port_type: PortType = PortType.ENDPOINT

    @property
    def length(self) -> int:
        """Version 2 has all registers, those of ports included (7.5.3)."""
        return 0x3C

    def registers(self) -> Sequence[ConfigRegister]:
        """7.5.3.2 to 7.5.3.20. Only the 128-byte payload is offered, so Max_Payload_Size is fixed at 0 (7.5.3.4)."""
        role_based_errors, flr_capable = 1 << 15, self.flr << 28
        no_snoop, read_request_512, relaxed = 1 << 11, 2 << 12, 1 << 4
        found = [
            ConfigRegister("capabilities", 0x02, 2, reset=2 | self.port_type << 4),
            ConfigRegister("device_capabilities", 0x04, 4, reset=role_based_errors | flr_capable),
            # Error reporting enables 3:0, relaxed ordering, no snoop, Max_Read_Request_Size; FLR reads 0 (7.5.3.4).
            ConfigRegister("device_control", 0x08, 2, reset=relaxed | no_snoop | read_request_512, writable=0x781F),
            ConfigRegister("device_status", 0x0A, 2, clears=0x000F),
            ConfigRegister("device_capabilities_2", 0x24, 4, reset=1 << 4),  # completion timeout can be disabled
            ConfigRegister("device_control_2", 0x28, 2, writable=1 << 4),
        ]
        if self.port_type is not PortType.INTEGRATED_ENDPOINT:
            found += [
                ConfigRegister("link_capabilities", 0x0C, 4, reset=1 | 1 << 4 | 1 << 22),
                # ASPM, RCB, common clock, extended synch: FLR leaves them alone (6.6.2).
                ConfigRegister("link_control", 0x10, 2, writable=0x00CB, survives=0x00CB),
                ConfigRegister("link_status", 0x12, 2, reset=1 | 1 << 4),
                ConfigRegister("link_capabilities_2", 0x2C, 4, reset=1 << 1),
                ConfigRegister("link_control_2", 0x30, 2, reset=1),
            ]
        return found


@dataclass(frozen=True)
class VendorSpecific(Capability):
    """A vendor's own structure (PCI Local Bus 3.0, appendix H): `data` follows ID, next pointer and length byte.

    `writable` is a mask for `data`, from its first byte on; what it does not reach is read-only. The value that the
    driver left is `config["vendor@OFFSET.data"]`, little-endian.

    Raises: DeclarationError when it does not fit or the mask is longer than the data.
    """

    id: ClassVar[int] = 0x09
    name: ClassVar[str] = "vendor"
    repeatable: ClassVar[bool] = True

    data: bytes = b""
    writable: bytes = b""

    def __post_init__(self) -> None:
        if len(self.data) > 0xC0 - 3:
            raise DeclarationError(f"VendorSpecific: {len(self.data)} bytes of data; at most {0xC0 - 3} fit")
        if len(self.writable) > len(self.data):
            raise DeclarationError(
                f"VendorSpecific: the mask has {len(self.writable)} bytes for {len(self.data)} bytes of data"
            )

    @property
    def length(self) -> int:
        """With the three bytes before `data`."""
        return 3 + len(self.data)

    def registers(self) -> Sequence[ConfigRegister]:
        """The length byte and the data as one wide register."""
        found = [ConfigRegister("length", 2, 1, reset=self.length)]
        if self.data:
            data, writable = (int.from_bytes(x, "little") for x in (self.data, self.writable))
            found.append(ConfigRegister("data", 3, len(self.data), reset=data, writable=writable))
        return found
