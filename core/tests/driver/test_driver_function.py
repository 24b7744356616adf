"""The driver's view: configuration space, BARs, DMA buffers, resets."""

import itertools

import pytest
from umdev.driver import Function
from umdev.errors import InvalidArgument, NotFound, NotSupported, ProtocolError, StateError, TimedOut
from umdev.pci import BarInfo, Interrupts, Msi, PciExpress, PowerManagement, VendorSpecific

PRIMITIVES = {
    "regions", "region_read", "region_write", "allocate", "irq_count", "connect_irq", "disable_irq", "mask_irq",
    "unmask_irq", "reset", "close",
}  # fmt: skip


def test_what_a_bus_implements_is_this():
    assert Function.__abstractmethods__ == PRIMITIVES
    assert all(getattr(Function, name).__doc__ for name in PRIMITIVES)


def test_the_header_by_name(function):
    config = function.config
    assert (config.vendor_id, config.device_id, config.revision) == (0x1234, 0x11E8, 0x10)
    assert (config.class_code, config.subsystem, config.interrupt_pin) == (0x00FF00, (0x1234, 0x11E8), 1)
    assert config.status == 0x10
    config.command = 6
    assert config.command == 6
    assert config.read64(0) == config.read32(4) << 32 | 0x11E81234
    config.write8(0x3C, 0x1FF)
    assert config.read8(0x3C) == 0xFF, "the width cuts the value"


def test_capabilities_are_found(function):
    offsets = {placed.declaration.id: placed.offset for placed in function.space.capabilities}
    assert dict(function.config.capabilities()) == offsets
    assert function.config.find_capability(Msi.id) == offsets[Msi.id]
    assert function.config.find_capability(VendorSpecific.id) is None
    with pytest.raises(NotSupported, match="has no Vendor capability"):
        function.config.require_capability(VendorSpecific.id, "Vendor")


def test_no_capabilities(make_function):
    with make_function(Interrupts(), ()) as bare:
        assert bare.config.capabilities() == []


@pytest.mark.parametrize("wrong", [0x40, 0x20])
def test_a_chain_that_never_ends_is_an_error(function, wrong):
    first = function.space.capabilities[0].offset
    function.space._image.values[first + 1] = wrong
    with pytest.raises(ProtocolError, match=f"chain leads to {wrong:#x}"):
        function.config.capabilities()


def test_enable_sets_and_clears_its_three_bits(function):
    function.config.command = 0x400
    function.enable()
    assert function.config.command == 0x407
    function.enable(bus_master=False)
    assert function.config.command == 0x403
    function.enable(memory=False, io=False, bus_master=False)
    assert function.config.command == 0x400


def test_probe_finds_what_was_declared_and_leaves_no_trace(function):
    function.config.write32(0x10, 0xE0000000)
    function.enable()
    found = function.probe_bars()
    assert {i: (b.size, b.kind, b.prefetchable) for i, b in found.items()} == {
        0: (1 << 16, "memory32", False),
        1: (32, "io", False),
        2: (1 << 33, "memory64", True),
        6: (1 << 12, "rom", False),
    }
    assert found[0].address == 0xE0000000
    assert function.config.command == 7
    assert {move for move in function.moves if move[0] == 0} == {(0, 0xE0000000)}, "it never decoded anywhere else"
    assert function.probe_bars() == found


def test_io_bars_may_decode_sixteen_bits(function, monkeypatch):
    read = function.region_read

    def read_short(index, offset, length):
        data = read(index, offset, length)
        return data[:2] + bytes(2) if (index, offset) == (7, 0x14) else data

    monkeypatch.setattr(function, "region_read", read_short)
    assert function.probe_bars()[1].size == 32


def test_a_bar_without_a_bit_that_can_be_written_is_none(function, monkeypatch):
    read = function.region_read

    def read_fixed(index, offset, length):
        return bytes([8, 0, 0, 0]) if (index, offset) == (7, 0x10) else read(index, offset, length)

    monkeypatch.setattr(function, "region_read", read_fixed)
    assert function.probe_bars().keys() == {1, 2, 6}
    assert function.assign_bars().keys() == {1, 2, 6}


@pytest.mark.parametrize("size", [1 << n for n in (4, 12, 31)])
def test_every_size_is_probed(make_function, size):
    with make_function(Interrupts(), (), bars=[BarInfo(4, size, "memory64"), BarInfo(0, size, "memory32")]) as made:
        assert {i: b.size for i, b in made.probe_bars().items()} == {4: size, 0: size}


def test_assign_gives_every_bar_its_own_aligned_place(function):
    function.enable()
    placed = function.assign_bars()
    assert placed.keys() == {0, 1, 2, 6}
    bars = function.probe_bars()
    for index, bar in bars.items():
        assert bar.address == placed[index]
        assert placed[index] % bar.size == 0
        assert placed[index] > 0
        assert placed[index] + bar.size <= {"io": 1 << 16, "memory64": 1 << 64}.get(bar.kind, 1 << 32)
    assert placed[2] >= 1 << 32
    assert not placed[0] < placed[6] + bars[6].size <= placed[0] + bars[0].size
    assert [function.gates[i] for i in (0, 1, 2)] == [placed[i] for i in (0, 1, 2)]
    assert function.gates["rom"] is False


def test_assign_keeps_64_bit_bars_low_where_it_is_asked_to(make_function):
    bars = [BarInfo(0, 1 << 20, "memory64"), BarInfo(2, 1 << 28, "memory64"), BarInfo(4, 1 << 12, "memory32")]
    with make_function(Interrupts(), (), bars=bars) as made:
        placed = made.assign_bars(low=True)
        memory = sorted((placed[bar.index], placed[bar.index] + bar.size) for bar in bars)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(memory))
    assert memory[-1][1] <= 1 << 32


def test_assign_says_when_there_is_no_room(make_function):
    bars = [BarInfo(0, 1 << 31, "memory32"), BarInfo(1, 1 << 31, "memory32")]
    with make_function(Interrupts(), (), bars=bars) as made, pytest.raises(NotSupported, match="no room for BAR 0"):
        made.assign_bars()


def test_bars_are_read_and_written_by_width(function):
    assert list(function.bars) == [0, 1, 2]
    bar = function.bars[0]
    assert (bar.index, bar.size) == (0, 1 << 16)
    assert bar.read32(0) == 0xFFFFFFFF, "memory does not decode yet"
    function.enable()
    for width, value in ((8, 0x12), (16, 0x1234), (32, 0x12345678), (64, 0x123456789ABCDEF0)):
        getattr(bar, f"write{width}")(0x20, value)
        assert getattr(bar, f"read{width}")(0x20) == value
        assert function.accesses[-2:] == [(0, 0x20, value.to_bytes(width // 8, "little")), (0, 0x20, width // 8)]
    assert bar.read(0x20, 3) == b"\xf0\xde\xbc"
    assert function.rom.size == 4096
    for bad in (lambda: bar.read32(0xFFFE), lambda: bar.write8(-1, 0), lambda: bar.read(0, -1)):
        with pytest.raises(InvalidArgument, match=r"not within BAR 0 of 0x10000 bytes"):
            bad()


def test_a_bar_that_is_not_there_names_those_that_are(function, make_function):
    with pytest.raises(NotFound, match="has no BAR 3: it has BAR 0, BAR 1, BAR 2"):
        function.bars[3]
    assert 3 not in function.bars
    assert function.bars.get(3) is None
    with make_function(Interrupts(), (), ()) as bare, pytest.raises(NotFound, match="has no BAR 0: it has none"):
        bare.bars[0]


def test_a_register_is_waited_for(function, monkeypatch):
    bar = function.bars[0]
    answers = iter([0x81, 0x81, 0x80])
    monkeypatch.setattr(bar, "read32", lambda offset: next(answers) if offset == 0x20 else None)
    assert bar.wait32(0x20, mask=1, value=0, timeout=60) == 0x80
    assert next(answers, None) is None


def test_a_wait_ends_and_says_what_is_there(function):
    bar, buffer = function.bars[0], function.allocate(4096)
    function.enable()
    bar.write32(0x20, 0x81)
    with pytest.raises(TimedOut, match=r"0x20 of <BAR 0 .*> still reads 0x81 after 0 s: under 0xf .* 0x1, not 0x0"):
        bar.wait32(0x20, mask=0xF, value=0, timeout=0)
    assert bar.wait32(0x20, mask=0xF0, value=0x80, timeout=0) == 0x81, "one look at least"
    with pytest.raises(TimedOut, match="DMA buffer"):
        buffer.wait32(0, mask=1, value=1, timeout=0)


def test_what_a_driver_holds_says_what_it_is(function):
    assert repr(function.bars[0]) == f"<BAR 0 of 0x10000 bytes, of {function}>"
    assert repr(function.rom) == f"<the ROM of 0x1000 bytes, of {function}>"
    assert repr(function.config) == f"<configuration space of {function}>"
    buffer = function.allocate(4096)
    assert repr(buffer) == f"<DMA buffer {buffer.address:#x}+0x1000>"
    buffer.free()
    assert repr(buffer).endswith(", freed>")


def test_a_function_without_rom(make_function):
    with make_function(bars=[BarInfo(0, 1 << 16, "memory32")]) as made:
        assert made.rom is None


def test_areas_are_mapped(function):
    with function.bars[2].map() as area:
        area.write(8, b"hello")
        assert function.peek(8, 5) == b"hello"
        assert area.read(7, 7) == b"\0hello\0"
        area.view[4095] = 1
        assert function.peek(4095, 1) == b"\1"
        for bad in (lambda: area.read(4095, 2), lambda: area.write(-1, b""), lambda: area.read(0, -1)):
            with pytest.raises(InvalidArgument, match="0x1000 bytes"):
                bad()
    area.close()
    with pytest.raises(NotSupported, match=r"region 0 .* every access is trapped"):
        function.map_area(0)
    with pytest.raises(InvalidArgument, match="has 1 areas; there is no 1"):
        function.bars[2].map(1)
    with pytest.raises(InvalidArgument, match="no region 5"):
        function.map_area(5)


def test_dma_buffers_keep_their_bounds(function):
    with function.allocate(100) as buffer:
        assert buffer.size == 4096
        buffer.write32(4092, 0xDEADBEEF)
        assert buffer.read(4092, 4) == b"\xef\xbe\xad\xde"
        assert buffer.read64(0) == 0
        for bad in (lambda: buffer.read32(4093), lambda: buffer.write(4096, b"x"), lambda: buffer.read(-1, 1)):
            with pytest.raises(InvalidArgument, match="buffer of 0x1000 bytes"):
                bad()
    buffer.free()
    assert buffer.released == 1
    with pytest.raises(StateError, match="at 0x1000 was freed"):
        buffer.read8(0)
    with pytest.raises(StateError):
        buffer.write8(0, 0)


def test_function_level_reset(function):
    function.enable()
    function.function_level_reset()
    assert function.config.command == 0


@pytest.mark.parametrize(
    ("capabilities", "text"),
    [((PciExpress(flr=False),), "Function Level Reset"), ((PowerManagement(),), "PCI Express")],
)
def test_without_flr_it_says_so(make_function, capabilities, text):
    with make_function(capabilities=capabilities) as made:
        made.enable()
        with pytest.raises(NotSupported, match=f"has no {text}"):
            made.function_level_reset()
        assert made.config.command == 7
