"""The capability chain and what each capability does."""

import pytest
from umdev.errors import DeclarationError
from umdev.pci import (
    BarInfo,
    InterruptState,
    Msi,
    Msix,
    PciExpress,
    PortType,
    PowerManagement,
    VendorSpecific,
)

COMMAND = 0x04


def walk(space):
    """(ID, offset) as a driver finds them."""
    found, at = [], space.get(0x34, 1)
    while at:
        found.append((space.get(at, 1), at))
        at = space.get(at + 1, 1)
    return found


def test_the_chain_is_in_the_order_declared(make_space):
    space = make_space(PowerManagement(), Msi(), Msix(1, 0), PciExpress(), VendorSpecific(b"x"), VendorSpecific(b"y"))
    assert walk(space) == [(0x01, 0x40), (0x05, 0x48), (0x11, 0x58), (0x10, 0x64), (0x09, 0xA0), (0x09, 0xA4)]
    assert make_space().get(0x34, 1) == 0


def test_offsets_of_their_own_and_gaps(make_space):
    space = make_space(VendorSpecific(b"12345"), PowerManagement(offset=0x44), Msi(offset=0x50), Msix(1, 0))
    assert walk(space) == [(0x09, 0x60), (0x01, 0x44), (0x05, 0x50), (0x11, 0x68)]
    fits = make_space(VendorSpecific(b"1"), PowerManagement(offset=0x44))
    assert walk(fits) == [(0x09, 0x40), (0x01, 0x44)]


@pytest.mark.parametrize(
    ("capabilities", "text"),
    [
        ((PowerManagement(offset=0x40), Msi(offset=0x44)), r"Msi at 0x44 overlaps PowerManagement, 0x40 to 0x47"),
        ((PowerManagement(offset=0x42),), "PowerManagement: offset 0x42"),
        ((PowerManagement(offset=0x3C),), "offset 0x3c"),
        ((PciExpress(offset=0xC8),), "PciExpress at 0xc8 ends at 0x104"),
        ((PowerManagement(), PowerManagement()), "two PowerManagement capabilities"),
        ((VendorSpecific(bytes(180)), PciExpress()), r"PciExpress \(60 bytes\) finds no room"),
        ((Msix(1, 1),), "BAR 1, which is no memory BAR"),
        ((Msix(1, 4),), "BAR 4, which is no memory BAR"),
        ((Msix(2048, 0, 0xFC000),), "the table of 2048 vectors .* does not fit into BAR 0"),
        ((Msix(1, 0, 0xFFFF0, 0x100000),), "the PBA of 1 vectors"),
        ((Msix(2, 0, 0, 0x18),), "table at 0x0 and PBA at 0x18 of BAR 0 overlap"),
    ],
)
def test_bad_layouts_are_named(make_space, capabilities, text):
    with pytest.raises(DeclarationError, match=text):
        make_space(*capabilities)


@pytest.mark.parametrize(
    ("declare", "text"),
    [
        (lambda: Msi(0), "0 vectors"),
        (lambda: Msi(33), "33 vectors"),
        (lambda: Msix(0, 0), "0 vectors"),
        (lambda: Msix(2049, 0), "2049 vectors"),
        (lambda: Msix(1, 6), "bar=6"),
        (lambda: Msix(1, 0, 4), "table_offset=0x4"),
        (lambda: Msix(1, 0, 0, 0x12), "pba_offset=0x12"),
        (lambda: Msix(1, 0, -8), "table_offset=-0x8"),
        (lambda: Msix(1, 0, None, 8), "needs a table_offset"),
        (lambda: VendorSpecific(bytes(190)), "190 bytes"),
        (lambda: VendorSpecific(b"a", b"ab"), "the mask has 2 bytes for 1"),
    ],
)
def test_bad_declarations_are_named(declare, text):
    with pytest.raises(DeclarationError, match=text):
        declare()


# Power management: PCI Bus Power Management 1.2.


def test_d3hot_closes_everything_and_the_way_back_resets(make_space):
    space = make_space(PowerManagement())
    at = space.at("pm.control_status")
    assert (space.get(at - 2, 2), space.get(at, 2)) == (3, 0)
    space.set(0x10, 0xE0000000, 4)
    space.set(COMMAND, 7, 2)
    assert space.set(at, 3, 2) == [
        ("memory", False),
        ("io", False),
        ("bus_master", False),
        ("interrupts", InterruptState.INTX_DISABLED),
        ("power", 3),
    ]
    assert space.config.power_state == 3
    assert space.get(COMMAND, 2) == 7, "configuration space is still there"
    assert space.set(at, 0, 2)[0] == ("power", 0)
    assert (space.get(COMMAND, 2), space.get(0x10, 4), space.config.power_state) == (0, 0, 0)


def test_no_soft_reset_keeps_the_state(make_space):
    space = make_space(PowerManagement(no_soft_reset=True))
    at = space.at("pm.control_status")
    assert space.get(at, 2) == 8
    space.set(0x10, 0xE0000000, 4)
    space.set(COMMAND, 2, 2)
    assert space.set(at, 3, 1)[-1] == ("power", 3)
    told = space.set(at, 0, 1)
    assert ("bar", 0, 0xE0000000) in told
    assert ("memory", True) in told
    assert not [t for t in told if t[0] == "power"]


@pytest.mark.parametrize("state", [1, 2])
def test_states_that_are_not_supported_change_nothing(make_space, state):
    space = make_space(PowerManagement())
    at = space.at("pm.control_status")
    assert space.set(at, state, 2) == []
    assert space.get(at, 2) == 0
    space.set(at, 3, 2)
    assert space.set(at, state, 2) == []
    assert space.get(at, 2) == 3


def test_writes_to_the_rest_of_pmcsr_change_nothing(make_space):
    space = make_space(PowerManagement())
    at = space.at("pm.control_status")
    assert space.set(at, 0xFFFC, 2) == []
    assert space.get(at, 2) == 0


# MSI: PCI Local Bus 3.0, 6.8.1.


@pytest.mark.parametrize(
    ("msi", "length", "control"),
    [
        (Msi(address64=False), 10, 0x0000),
        (Msi(), 14, 0x0080),
        (Msi(masking=True, address64=False), 20, 0x0100),
        (Msi(32, masking=True), 24, 0x018A),
        (Msi(3), 14, 0x0084),
        (Msi(17), 14, 0x008A),
    ],
)
def test_msi_layouts(make_space, msi, length, control):
    space = make_space(msi)
    at = space.at("msi.id")
    assert msi.length == length
    assert space.get(at + 2, 2) == control
    names = {name for name in space.config.registers if name.startswith("msi.")}
    assert ("msi.address_high" in names) is bool(control & 0x80)
    assert ({"msi.mask", "msi.pending"} <= names) is bool(control & 0x100)
    assert max(space.config.registers[n][0] + space.config.registers[n][1] for n in names) == at + length


def test_msi_registers(make_space):
    space = make_space(Msi(3, masking=True))
    at = space.at("msi.id")
    for offset, width, value in (
        (4, 4, 0xFFFFFFFC),
        (8, 4, 0xFFFFFFFF),
        (12, 2, 0xFFFF),
        (14, 2, 0),
        (16, 4, 0xF),
        (20, 4, 0),
    ):
        space.set(at + offset, (1 << 8 * width) - 1, width)
        assert space.get(at + offset, width) == value, offset
    space.control.pending = 0b1010
    assert space.get(at + 20, 4) == 0b1010
    assert space.get(at + 21, 1) == 0


def test_msi_enable_and_allocation(make_space):
    space = make_space(Msi(4, masking=True))
    at = space.at("msi.control")
    assert space.set(at, 0x0011, 2) == [("msi", 2, 0), ("interrupts", InterruptState.MSI_ENABLED)]
    assert space.get(at, 2) == 0x0195
    assert space.set(at, 0x0071, 2) == [("msi", 4, 0)], "no more than it asked for"
    assert space.set(space.at("msi.mask"), 0x6, 4) == [("msi", 4, 6)]
    assert space.set(at, 0, 2) == [("msi", 1, 6), ("interrupts", 0)]


# MSI-X: PCI Local Bus 3.0, 6.8.2.


def test_msix_registers(make_space):
    space = make_space(Msix(5, 2, 0x2000, 0x3000))
    at = space.at("msix.id")
    assert (space.get(at + 2, 2), space.get(at + 4, 4), space.get(at + 8, 4)) == (4, 0x2002, 0x3002)
    enabled, masked = InterruptState.MSIX_ENABLED, InterruptState.MSIX_MASKED
    assert space.set(at + 2, 0xFFFF, 2) == [("interrupts", enabled | masked)]
    assert space.get(at + 2, 2) == 0xC004
    assert space.set(at + 3, 0x80, 1) == [("interrupts", enabled)]
    space.set(at + 4, 0xFFFFFFFF, 4)
    assert space.get(at + 4, 4) == 0x2002


@pytest.mark.parametrize(
    ("msix", "size", "expected"),
    [
        (Msix(1, 0), 1 << 20, (0xFF000, 0xFF010)),
        (Msix(2048, 0), 1 << 20, (0xF7000, 0xFF000)),
        (Msix(256, 0), 1 << 13, (0, 0x1000)),
        (Msix(3, 0, 0x800), 4096, (0x800, 0x830)),
        (Msix(3, 0, 0x800, 0x7F8), 4096, (0x800, 0x7F8)),
    ],
)
def test_msix_places(msix, size, expected):
    placed = msix.place(size)
    assert (placed.table_offset, placed.pba_offset) == expected
    assert placed.place(size) == placed


def test_msix_needs_room_in_a_small_bar():
    with pytest.raises(DeclarationError, match=r"256 vectors .* BAR 0 of 0x1000 bytes"):
        Msix(256, 0).place(4096)


# PCI Express: PCI Express Base 5.0, 7.5.3.


@pytest.mark.parametrize("port", PortType)
def test_express_registers(make_space, port):
    space = make_space(PciExpress(port_type=port))
    at = space.at("express.id")
    assert space.get(at + 2, 2) == 2 | port << 4
    assert space.get(at + 4, 4) == 1 << 28 | 1 << 15
    assert space.get(at + 8, 2) == 0x2810
    linked = port is not PortType.INTEGRATED_ENDPOINT
    assert space.get(at + 0x12, 2) == (0x11 if linked else 0)
    space.set(at + 0x10, 0xFFFF, 2)
    assert space.get(at + 0x10, 2) == (0xCB if linked else 0)
    space.set(at + 8, 0x7FFF, 2)
    assert space.get(at + 8, 2) == 0x781F


def test_flr(make_space):
    space = make_space(PciExpress())
    at = space.at("express.device_control")
    space.set(COMMAND, 6, 2)
    space.set(at - 0x08 + 0x10, 0x0040, 2)
    assert space.set(at, 0x8000 | space.get(at, 2), 2)[0] == ("function_reset",)
    assert space.get(at, 2) == 0x2810, "reads back 0"
    assert space.get(COMMAND, 2) == 0
    assert space.get(at + 8, 2) == 0x0040, "the link is not the function's"
    assert space.set(at, 0x7FFF, 2) == []
    assert space.set(at + 1, 0x80, 1)[0] == ("function_reset",)
    assert space.set(at, 0x80, 1) == []


def test_a_function_without_flr_ignores_it(make_space):
    space = make_space(PciExpress(flr=False))
    at = space.at("express.device_control")
    assert space.get(at - 4, 4) >> 28 & 1 == 0
    assert space.set(at, 0xFFFF, 2) == []
    assert space.get(at, 2) == 0x781F


def test_flr_works_in_d3hot(make_space):
    space = make_space(PowerManagement(), PciExpress())
    space.set(space.at("pm.control_status"), 3, 2)
    assert ("function_reset",) in space.set(space.at("express.device_control"), 0x8000, 2)
    assert space.config.power_state == 0


def test_vendor_specific(make_space):
    space = make_space(VendorSpecific(b"\x11\x22\x33\x44", b"\x0f\x00\xff"), bars=[BarInfo(0, 16, "memory32")])
    assert space.config.read(0x40, 7) == b"\x09\x00\x07\x11\x22\x33\x44"
    space.config.write(0x40, b"\xff" * 7)
    assert space.config.read(0x40, 7) == b"\x09\x00\x07\x1f\x22\xff\x44"
    assert space.config["vendor@0x40.data"] == 0x44FF221F
    assert make_space(VendorSpecific()).config.read(0x40, 4) == b"\x09\x00\x03\x00"
