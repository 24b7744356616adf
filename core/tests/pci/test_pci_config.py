"""The type 0 header: PCI Local Bus 3.0, chapter 6."""

import pytest
from umdev.errors import DeclarationError, InvalidArgument, NotFound, SaveError
from umdev.pci import BarInfo, Msi, Msix, PciExpress, PciId, PowerManagement, ResetKind, VendorSpecific

COMMAND, STATUS = 0x04, 0x06
DISABLED = 8  # InterruptState.INTX_DISABLED
MASTER = 16


def test_identity_is_where_the_header_has_it(make_space):
    space = make_space()
    assert (space.get(0, 2), space.get(2, 2)) == (0x1234, 0x11E8)
    assert space.get(0x08, 4) == 0x00FF0010
    assert (space.get(0x2C, 2), space.get(0x2E, 2)) == (0x1AF4, 0x1100)
    assert (space.get(0x0E, 1), space.get(0x3D, 1)) == (0, 1)


@pytest.mark.parametrize("offset", [0x00, 0x02, 0x08, 0x0A, 0x0E, 0x0F, 0x28, 0x2C, 0x2E, 0x34, 0x38, 0x3D, 0x3E])
def test_what_is_read_only_takes_no_write(make_space, offset):
    space = make_space(PowerManagement())
    before = space.get(offset, 1)
    assert space.set(offset, before ^ 0xFF, 1) == []
    assert space.get(offset, 1) == before


def test_subsystem_repeats_the_ids_when_not_given():
    assert PciId(0x8086, 0x100E, 0x020000).subsystem == (0x8086, 0x100E)
    assert PciId(0x8086, 0x100E, 0x020000, subsystem_device=0).subsystem == (0x8086, 0)
    assert str(PciId(0x8086, 0x100E, 0x020000)) == "8086:100e"


@pytest.mark.parametrize(
    ("field", "value"),
    [("vendor", 0x10000), ("vendor", 0xFFFF), ("device", -1), ("class_code", 1 << 24), ("revision", 256),
     ("subsystem_vendor", 1 << 16), ("subsystem_device", -1)],
)  # fmt: skip
def test_identity_must_fit(field, value):
    with pytest.raises(DeclarationError, match=field):
        PciId(**{"vendor": 1, "device": 1, "class_code": 0, field: value})


def test_registers_that_software_may_use(make_space):
    space = make_space()
    for offset in (0x0C, 0x0D, 0x3C):
        space.set(offset, 0xA5, 1)
        assert space.get(offset, 1) == 0xA5
    express = make_space(PciExpress(), pin=0)
    for offset, expected in ((0x0C, 0xA5), (0x0D, 0), (0x3C, 0)):  # latency is hard-wired; no pin, so no line
        express.set(offset, 0xA5, 1)
        assert express.get(offset, 1) == expected


@pytest.mark.parametrize(
    ("bars", "pin", "writable"),
    [
        ([BarInfo(0, 16, "memory32")], 1, 0x546),
        ([BarInfo(0, 4, "io")], 1, 0x545),
        ([BarInfo(6, 2048, "rom")], 0, 0x146),
        ([], 0, 0x144),
    ],
)
def test_command_has_only_the_bits_of_what_the_function_has(make_space, bars, pin, writable):
    space = make_space(bars=bars, pin=pin)
    space.set(COMMAND, 0xFFFF, 2)
    assert space.get(COMMAND, 2) == space.config.command == writable


def test_enables_reach_the_function_once(make_space):
    space = make_space()
    moves = [("bar", 0, 0), ("bar", 1, 0), ("bar", 2, 0)]
    assert space.set(COMMAND, 0x7, 2) == [
        *moves,
        ("memory", True),
        ("io", True),
        ("bus_master", True),
        ("interrupts", MASTER),
    ]
    assert space.set(COMMAND, 0x7, 2) == []
    assert space.set(COMMAND, 0x403, 2) == [("bus_master", False), ("interrupts", DISABLED)]
    assert space.set(COMMAND, 0x0, 2) == [("memory", False), ("io", False), ("interrupts", 0)]


def test_status_shows_the_level_and_clears_errors_by_ones(make_space):
    space = make_space()
    assert space.get(STATUS, 2) == 0
    space.control.level = True
    assert space.get(STATUS, 2) == 0x8
    assert space.get(COMMAND, 4) == 0x8 << 16
    space.config.report_errors(0xF900)
    assert space.get(STATUS, 2) == 0xF908
    space.set(COMMAND, 0, 2)
    space.set(STATUS, 0x8008, 2)
    assert space.get(STATUS, 2) == 0x7908
    space.set(STATUS, 0, 2)
    assert space.get(STATUS, 2) == 0x7908
    space.set(STATUS + 1, 0xFF, 1)
    space.control.level = False
    assert space.get(STATUS, 2) == 0
    assert make_space(PowerManagement()).get(STATUS, 2) == 0x10
    with pytest.raises(InvalidArgument, match="0x0010"):
        space.config.report_errors(0x10)


@pytest.mark.parametrize(
    ("offset", "sized"),
    [(0x10, 0xFFF00000), (0x14, 0xFFFFFFE1), (0x18, 0x0000000C), (0x1C, 0xFFFFFFFE), (0x20, 0), (0x24, 0),
     (0x30, 0xFFFF0001)],
)  # fmt: skip
def test_sizing(make_space, offset, sized):
    space = make_space()
    assert space.set(offset, 0xFFFFFFFF, 4) == []
    assert space.get(offset, 4) == sized


def test_an_absent_rom_reads_zero_and_takes_no_write(make_space):
    space = make_space(bars=[BarInfo(0, 4096, "memory32")])
    space.set(0x30, 0xFFFFFFFF, 4)
    assert space.get(0x30, 4) == 0


def test_a_bar_decodes_from_its_enable_on(make_space):
    space = make_space()
    assert space.set(0x10, 0xE0000000, 4) == []
    assert space.config.bar_address(0) == 0xE0000000
    assert not space.config.bar_decodes(0)
    space.set(0x18, 0, 4), space.set(0x1C, 0x6, 4)
    space.set(0x14, 0xC041, 4)
    assert space.set(COMMAND, 2, 2) == [("bar", 0, 0xE0000000), ("bar", 2, 0x6_0000_0000), ("memory", True)]
    assert space.config.bar_decodes(0)
    assert not space.config.bar_decodes(1)
    assert space.set(COMMAND, 3, 2) == [("bar", 1, 0xC040), ("io", True)]
    assert space.set(0x10, 0xE0100000, 4) == [("bar", 0, 0xE0100000)]
    assert space.set(0x10, 0xE0100000, 4) == []
    # Off and on again: it begins to decode once more.
    space.set(COMMAND, 0, 2)
    assert ("bar", 0, 0xE0100000) in space.set(COMMAND, 2, 2)
    with pytest.raises(NotFound, match="BAR 3"):
        space.config.bar_address(3)
    with pytest.raises(NotFound, match="BAR 3"):
        space.config.bar_decodes(3)


def test_the_rom_needs_two_enables(make_space):
    space = make_space()
    assert space.set(0x30, 0xFEB00001, 4) == []
    assert not space.config.bar_decodes(6)
    told = space.set(COMMAND, 2, 2)
    assert told[-2:] == [("memory", True), ("rom", True)]
    assert ("bar", 6, 0xFEB00000) in told
    assert space.config.bar_decodes(6)
    assert space.set(0x30, 0xFEB00000, 4) == [("rom", False)]


def test_accesses_may_span_and_pass_the_end(make_space):
    space = make_space()
    assert space.config.read(1, 2) == b"\x12\xe8"
    assert space.config.read(254, 4) == b"\x00\x00\xff\xff"
    assert space.config.read(4096, 4) == b"\xff" * 4
    assert space.config.read(0, 0) == b""
    space.config.write(254, b"\xff" * 4)
    space.config.write(1 << 40, b"\xff")
    space.config.write(0, b"")
    whole = space.config.read(0, 256)
    assert whole[:4] == bytes.fromhex("3412e811")
    assert len(whole) == 256
    # One write over all of it is that of its doublewords: sizing and enabling at once.
    space.config.write(0, b"\xff" * 256)
    assert space.get(COMMAND, 2) == 0x547
    assert space.config.bar_address(0) == 0xFFF00000
    for bad in (
        lambda: space.config.read(-1, 4),
        lambda: space.config.read(0, -1),
        lambda: space.config.write(-1, b"x"),
    ):
        with pytest.raises(InvalidArgument):
            bad()


def test_a_long_write_is_cut_at_doublewords(make_space):
    space = make_space()
    space.set(COMMAND, 2, 2)
    assert space.set(0x0E, 0xE0000000_0000, 6) == [("bar", 0, 0xE0000000)], "the BAR never had half an address"


def test_extended_space_is_there_with_express_and_has_no_capability(make_space):
    assert make_space().config.size == 256
    space = make_space(PciExpress())
    assert space.config.size == 4096
    assert space.config.read(0x100, 4096 - 0x100) == bytes(4096 - 0x100)
    space.set(0x100, 0xFFFFFFFF, 4)
    assert space.get(0x100, 4) == 0
    assert make_space(PciExpress(), size=256).config.size == 256
    with pytest.raises(DeclarationError, match="512"):
        make_space(size=512)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0, 3000, "memory32"), "BAR 0: the size 0xbb8 is no power of two"),
        ((0, 0, "memory32"), "no power of two"),
        ((0, -16, "memory32"), "no power of two"),
        ((0, 8, "memory32"), "0x10 to 0x80000000 of memory32"),
        ((0, 1 << 32, "memory32"), "0x80000000 of memory32"),
        ((0, 1 << 64, "memory64"), "of memory64"),
        ((1, 2, "io"), "BAR 1"),
        ((1, 1 << 17, "io"), "of io"),
        ((6, 1024, "rom"), "the ROM"),
        ((6, 1 << 25, "rom"), "of rom"),
        ((5, 4096, "memory64"), "BAR 5 is the last"),
        ((6, 4096, "memory32"), "the ROM has 6"),
        ((0, 4096, "rom"), "the ROM has 6"),
        ((7, 4096, "memory32"), "index 0 to 5"),
        ((-1, 4096, "memory32"), "index 0 to 5"),
        ((0, 4096, "memory"), "'memory' is none of"),
        ((0, 16, "io", True), "only memory can be prefetchable"),
    ],
)
def test_bad_bars_are_named(arguments, text):
    with pytest.raises(DeclarationError, match=text):
        BarInfo(*arguments)


def test_two_bars_cannot_share_a_register(make_space):
    with pytest.raises(DeclarationError, match=r"BAR 1 and BAR 0 both claim register 1: BAR 0 is 64-bit"):
        make_space(bars=[BarInfo(0, 4096, "memory64"), BarInfo(1, 16, "io")])
    with pytest.raises(DeclarationError, match="BAR 0 and BAR 0 both claim register 0"):
        make_space(bars=[BarInfo(0, 4096, "memory32"), BarInfo(0, 16, "io")])


def test_pins(make_space):
    assert make_space(pin=4).get(0x3D, 1) == 4
    with pytest.raises(InvalidArgument, match="pin 5"):
        make_space(pin=5)


FULL = (PowerManagement(), Msi(4, masking=True), Msix(4, 0), PciExpress(), VendorSpecific(b"abcd", b"\xff"))


def dirty(space):
    for name, (offset, width) in space.config.registers.items():
        if name not in ("express.device_control", "pm.control_status"):
            space.config.write(offset, b"\xff" * width)
    space.set(space.at("express.device_control"), 0x7FFF, 2)
    space.config.report_errors(0xF900)
    space.control.take()


@pytest.mark.parametrize("kind", ResetKind)
def test_what_a_reset_leaves(make_space, kind):
    space, fresh = make_space(*FULL), make_space(*FULL)
    dirty(space)
    assert space.config["express.link_control"] == 0xCB
    space.config.reset(kind)
    told = space.control.take()
    assert told[:4] == [("memory", False), ("io", False), ("rom", False), ("bus_master", False)], "everything is told"
    assert told[4:] == [("msi", 1, 0), ("interrupts", 0)]
    kept = {name for name, value in space.config.save().items() if value != fresh.config.save()[name]}
    assert kept == ({"express.link_control"} if kind in (ResetKind.FLR, ResetKind.D3HOT) else set())


def test_save_and_restore_by_name(make_space):
    space, other = make_space(*FULL), make_space(*FULL)
    dirty(space)
    space.control.level = True
    space.control.pending = 5
    space.config.read(0, 4096)
    saved = space.config.save()
    assert saved["command"] == 0x547
    assert saved[f"vendor@{space.config.capabilities[-1].offset:#x}.data"] == 0x646362FF
    other.config.restore(saved)
    assert other.config.save() == saved
    told = other.control.take()
    assert told == space_applied(space)
    assert other.get(STATUS, 2) & 8 == 0, "a level is not configuration space's to keep"


def space_applied(space):
    """What the function would be told of the state as it is."""
    space.control.take()
    space.config.restore(space.config.save())
    return space.control.take()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"command": 0x8000}, "command cannot have the value 0x8000"),
        ({"status": 0}, "status"),
        ({"bar0": 4096}, "bar0"),
        ({"command": -1}, "command"),
        ({"command": 1 << 16}, "command"),
        ({"bar5": 0}, "bar5 is only on one side"),
    ],
)
def test_restore_refuses_what_cannot_be(make_space, change, text):
    space = make_space(PowerManagement())
    before = space.config.save()
    with pytest.raises(SaveError, match=text):
        space.config.restore({**before, **change})
    assert space.config.save() == before
    assert space.control.take() == []
    with pytest.raises(SaveError, match="command is only on one side"):
        space.config.restore({k: v for k, v in before.items() if k != "command"})


def test_registers_have_names(make_space):
    space = make_space(*FULL)
    assert space.config.registers["bar2"] == (0x18, 8)
    assert list(space.config.registers.values()) == sorted(space.config.registers.values())
    assert space.config["class_code"] == 0x00FF00
    space.control.pending = 2
    assert space.config["msi.pending"] == 2
    with pytest.raises(NotFound, match="nothing"):
        space.config["nothing"]
