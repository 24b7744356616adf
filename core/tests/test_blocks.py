"""Blocks: placement, inheritance, handlers by name, windows, BARs, save and restore, and what mypy finds."""

from __future__ import annotations

import fcntl
import gc
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from umdev.device.arrays import RegisterArray
from umdev.device.bars import Bar, IoBar, MemoryBar, Rom
from umdev.device.blocks import At, Block, Window
from umdev.device.dispatch import NativeDevice
from umdev.device.layout import Layout
from umdev.device.region import Region
from umdev.device.registers import RO, WO, Flag, Register, Register8, Register64
from umdev.errors import DeclarationError, SaveError, StateError
from umdev.services import Area


class Harness:
    """A device of one region, without a Device."""

    def __init__(self, bar: Bar[Any]) -> None:
        bar.name = "bar0"
        self.native = NativeDevice()
        self.native.raise_faults = True
        self.region = Region(self.native, bar.index, bar, self)
        self.bar0: Any = self.region.block

    def read(self, offset: int, width: int = 4) -> int:
        return int.from_bytes(self.native.read(self.region.index, offset, width), "little")

    def write(self, offset: int, value: int, width: int = 4) -> None:
        self.native.write(self.region.index, offset, value.to_bytes(width, "little"))


def make(block: type[Block[Any]], size: int = 1 << 20) -> Harness:
    return Harness(MemoryBar(0, block, size=size))


class Ring(Block[Any]):
    tail = Register(0x30)
    status = Register(0x34, RO, reset=1)
    slots = RegisterArray(0x40, Register8, count=4)

    @tail.on_write
    def kick(self, value: int) -> None:
        self.status.value += value


class Engine(Block[Any]):
    ring = At(0, Ring)
    memory = Window(0x1000, 0x1000)


class Gpu(Block[Any]):
    ident = Register(0, RO, reset=0x1234)
    render = At(0x2000, Ring)
    engines = At(0x10000, Engine, count=3, stride=0x4000)
    address = Register64(0x40, commit="high")


def test_blocks_nest_and_repeat() -> None:
    device = make(Gpu)
    device.write(0x2030, 5)
    assert device.bar0.render.status.value == 6
    device.write(0x14030, 9)
    assert [engine.ring.status.value for engine in device.bar0.engines] == [1, 10, 1]
    assert device.bar0.engines[1].ring.tail.path == "bar0.engines[1].ring.tail"
    assert device.bar0.engines[1].ring.base == 0x14000
    assert device.bar0.engines[2].ring.device is device
    assert isinstance(device.bar0.engines, tuple)
    assert repr(device.bar0.render) == "<Ring bar0.render at 0x2000>"
    assert list(device.region.blocks()) == [
        "bar0",
        "bar0.render",
        *(path for n in range(3) for path in (f"bar0.engines[{n}]", f"bar0.engines[{n}].ring")),
    ]
    with pytest.raises(AttributeError, match="render is a At: it can't be set"):
        device.bar0.render = None


def test_registers_are_enumerated_and_named() -> None:
    region = make(Gpu).region
    slots = list(region.registers())
    assert [(slot.path, slot.offset, slot.width, slot.count) for slot in slots[:5]] == [
        ("ident", 0, 4, 1),
        ("address", 0x40, 8, 1),
        ("render.tail", 0x2030, 4, 1),
        ("render.status", 0x2034, 4, 1),
        ("render.slots", 0x2040, 1, 4),
    ]
    assert region.name_at(0x2042) == "bar0.render.slots[2]"
    assert region.name_at(0x18037) == "bar0.engines[2].ring.status"
    assert region.name_at(0x2044) is None
    assert region.text(0x2034, 7) == "bar0.render.status=0x7"
    assert region.text(0x8, 7) is None


def test_inheritance_never_touches_the_base() -> None:
    class Better(Ring):
        extra = Register(0x50, RO, reset=7)

        def kick(self, value: int) -> None:  # overrides the handler by overriding the method
            self.status.value = 100 + value

    class Decorated(Ring):
        @Ring.tail.on_write
        def other(self, value: int, old: int) -> None:
            self.status.value = 200 + old

    class Without(Ring):
        status = Register(0x34, reset=3)
        slots = None  # type: ignore[assignment]  # taken away on purpose

    base, better, decorated, without = make(Ring), make(Better), make(Decorated), make(Without)
    for device in (base, better, decorated, without):
        device.write(0x30, 5)
    assert [device.read(0x34) for device in (base, better, decorated, without)] == [6, 105, 200, 8]
    assert (base.read(0x50), better.read(0x50)) == (0, 7)
    base.write(0x41, 9, 1)
    without.write(0x41, 9, 1)
    assert (base.read(0x41, 1), without.read(0x41, 1)) == (9, 0)


def test_mixins_bring_their_registers_and_handlers() -> None:
    class Left(Block[Any]):
        a = Register(0)

        @a.on_write
        def wrote_a(self, value: int) -> None:
            self.a.value = value + 1

    class Right(Block[Any]):
        b = Register(4)

        @b.on_write
        def wrote_b(self, value: int) -> None:
            self.b.value = value + 2

    class Both(Left, Right):
        pass

    device = make(Both)
    device.write(0, 10)
    device.write(4, 10)
    assert (device.read(0), device.read(4)) == (11, 12)


def test_a_sparse_bar_stays_small() -> None:
    names = {f"r{n}": Register(n * 8192, reset=n) for n in range(2000)}
    device = make(type("Sparse", (Block,), names), 16 << 20)
    assert device.read(1999 * 8192) == 1999
    assert device.region.layout.size == 8000
    assert device.region.layout.bytes < 3 << 20
    doorbells = type("Doorbells", (Block,), {"bells": RegisterArray(0, Register, WO, count=1 << 18, stride=4096)})
    assert Layout.of(doorbells, (4,)).bytes < 1 << 20


def test_layouts_die_with_their_class() -> None:
    class Short(Block[Any]):
        a = Register(0)

    device = make(Short)
    assert Layout.of(Short, (1, 2, 4, 8)) is device.region.layout

    class Derived(Short):
        b = Register(4)

    assert make(Derived).region.layout is not device.region.layout
    gc.collect()


def test_windows_are_shared_memory_that_reset_may_clear() -> None:
    device = make(Gpu)
    window = device.bar0.engines[1].memory
    device.native.write(0, 0x15000, b"from the driver")
    assert bytes(window.view[:15]) == b"from the driver"
    window.view[0x100:0x105] = b"model"
    assert device.native.read(0, 0x15100, 5) == b"model"
    assert os.pread(window.descriptor, 5, 0x15100) == b"model"
    assert device.region.descriptor == window.descriptor
    assert device.region.areas == [Area(0, 0x11000 + n * 0x4000, 0x1000) for n in range(3)]  # type: ignore[arg-type]
    seals = fcntl.fcntl(window.descriptor, fcntl.F_GET_SEALS)
    assert seals & (fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW) == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    device.region.reset(windows=False)
    assert bytes(window.view[:4]) == b"from"
    device.region.reset(windows=True)
    assert bytes(window.view) == bytes(0x1000)
    assert window.path == "bar0.engines[1].memory"
    device.region.close()
    with pytest.raises(StateError, match="closed"):
        _ = window.view
    with pytest.raises(StateError, match="closed"):
        _ = window.descriptor
    assert device.native.read(0, 0x15000, 1) == b"\0"  # a late access finds memory
    with pytest.raises(StateError, match="declaration"):
        _ = Engine.memory.view


def test_small_windows_are_copied_not_mapped() -> None:
    class Small(Block[Any]):
        before = Register(0)
        ram = Window(4, 0x1234, passthrough=False)
        after = Register(0x1238)

    device = make(Small)
    device.write(0, 0x1111_1111)
    device.write(0x1238, 0x3333_3333)
    device.native.write(0, 4, bytes(range(256)) * 18)
    assert device.region.areas == []
    assert device.native.read(0, 0, 8) == b"\x11\x11\x11\x11\0\1\2\3"  # half register, half window
    device.region.reset(windows=True)
    assert bytes(device.bar0.ram.view) == bytes(0x1234)


def test_rom_reads_its_image_and_takes_no_write() -> None:
    rom = Rom(b"\x55\xaa" + bytes(3000))
    device = Harness(rom)
    assert (rom.size, rom.kind, rom.index) == (4096, "rom", 6)
    assert device.read(0) == 0xAA55
    device.write(0, 0)
    assert device.read(0) == 0xAA55
    assert device.native.read(6, 3002, 4) == b"\xff" * 4
    device.region.reset(windows=True)
    assert device.read(0) == 0xAA55
    assert Rom(2048).size == 2048


def test_save_is_by_path_and_restores_another_instance() -> None:
    device, other = make(Gpu), make(Gpu)
    device.write(0x14030, 9)
    device.write(0x2042, 3, 1)
    device.write(0x40, 0xAAAA_AAAA)  # waits for the upper half
    device.native.write(0, 0x11010, b"data")
    saved = device.region.save()
    assert saved["engines[1].ring.status"] == 10
    assert saved["render.slots"] == [0, 0, 3, 0]
    assert saved["engines[0].memory"] == bytes(16) + b"data"
    other.native.write(0, 0x11800, b"old")
    other.region.restore(saved)
    assert other.region.save() == saved
    other.write(0x44, 1)
    assert other.bar0.address.value == 0x1_AAAA_AAAA


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nothing": 1}, r"bar0\.nothing is not declared any more"),
        ({"ident": None}, r"bar0\.ident"),
        ({"ident": 1 << 32}, "does not fit"),
        ({"render.slots": [1, 2]}, "has 4 elements"),
        ({"render.slots": 5}, "has 4 elements"),
        ({"engines[0].memory": bytes(0x1001)}, "is a window of 4096 bytes"),
        ({"engines[0].memory": 3}, "is a window"),
    ],
)
def test_restore_refuses_what_does_not_fit_and_changes_nothing(change: dict[str, Any], message: str) -> None:
    device = make(Gpu)
    device.write(0x2030, 5)
    before = device.region.save()
    with pytest.raises(SaveError, match=message):
        device.region.restore({**before, "render.tail": 77, **change})
    missing = dict(before)
    del missing["render.tail"]
    with pytest.raises(SaveError, match=r"bar0\.render\.tail is missing"):
        device.region.restore(missing)
    assert device.region.save() == before


def test_errors_name_class_attribute_and_offset() -> None:
    with pytest.raises(DeclarationError, match=r"Bad\.b at 0x4 overlaps a, which ends at 0x8"):

        class Bad(Block[Any]):
            a = Register64(0)
            b = Register(4)

    with pytest.raises(DeclarationError, match=r"Nested\.inner\.tail at 0x34 overlaps x, which ends at 0x38"):

        class Nested(Block[Any]):
            x = Register64(0x30)
            inner = At(4, Ring)

    with pytest.raises(DeclarationError, match=r"Crooked\.inner\.tail at 0x32 is not aligned"):

        class Crooked(Block[Any]):
            inner = At(2, Ring)

    with pytest.raises(DeclarationError, match=r"Windowed\.a at 0x1010 overlaps ram, which ends at 0x2000"):

        class Windowed(Block[Any]):
            ram = Window(0x1000, 0x1000)
            a = Register(0x1010)

    with pytest.raises(DeclarationError, match=r"Comb\.bells at 0x0 overlaps a"):

        class Comb(Block[Any]):
            bells = RegisterArray(0, Register, count=100, stride=64)
            a = Register(0x80)

    with pytest.raises(DeclarationError, match=r"Combs\.two at 0x8 overlaps one"):

        class Combs(Block[Any]):
            one = RegisterArray(0, Register, count=100, stride=64)
            two = RegisterArray(8, Register, count=100, stride=24)


def test_interleaved_arrays_are_fine() -> None:
    class Doorbells(Block[Any]):
        tail = RegisterArray(0x1000, Register, count=1000, stride=8)
        head = RegisterArray(0x1004, Register, count=1000, stride=8)
        status = Register(0)

        @head.on_write
        def wrote(self, index: int, value: int) -> None:
            self.status.value = index

    device = make(Doorbells)
    device.write(0x1000 + 8 * 999, 5)
    device.write(0x1004 + 8 * 500, 6)
    assert (device.bar0.tail[999].value, device.bar0.head[500].value, device.bar0.status.value) == (5, 6, 500)


def test_handler_mistakes_are_declaration_errors() -> None:
    with pytest.raises(DeclarationError, match="handler of a, was replaced by a namesake"):

        class Namesakes(Block[Any]):
            a = Register(0)
            b = Register(4)

            @a.on_write
            def wrote(self, value: int) -> None: ...

            @b.on_write
            def wrote(self, value: int) -> None: ...  # type: ignore[no-redef]  # noqa: F811  # the mistake

    with pytest.raises(DeclarationError, match="one and two both handle a write of a"):

        class Twice(Block[Any]):
            a = Register(0)

            @a.on_write
            def one(self, value: int) -> None: ...

            @a.on_write
            def two(self, value: int) -> None: ...

    with pytest.raises(DeclarationError, match=r"Foreign\.wrote handles tail, no register of this class"):

        class Foreign(Block[Any]):
            a = Register(0)

            @Ring.tail.on_write
            def wrote(self, value: int) -> None: ...

    class Shape(Block[Any]):
        a = Register(0)

        @a.on_write  # type: ignore[type-var]  # the mistake
        def wrote(self) -> None: ...

    with pytest.raises(DeclarationError, match=r"Shape\.wrote, write handler of a, must take \(self, value\)"):
        make(Shape)


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: MemoryBar(0, Ring, size=0x180), "no power of two"),
        (lambda: MemoryBar(0, Ring, size=8), r"outside the region|no power of two"),
        (lambda: MemoryBar(6, Ring, size=256), "no such index"),
        (lambda: MemoryBar(5, Ring, size=256, width=64), "no such index"),
        (lambda: MemoryBar(0, Ring, size=1 << 32), "no power of two"),
        (lambda: MemoryBar(0, Ring, size=256, sizes=(3,)), "access sizes"),
        (lambda: MemoryBar(0, Ring, size=256, sizes=()), "access sizes"),
        (lambda: MemoryBar(0, Ring, size=0x40), "slots ends at 0x44, outside the region of 0x40 bytes"),
        (lambda: IoBar(0, Ring, size=512), "no power of two from 0x4 to 0x100"),
        (lambda: IoBar(7, Ring, size=128), "no such BAR"),
        (lambda: Rom(1 << 30), "no power of two"),
        (lambda: Window(0x100, 0x1000), "passthrough needs multiples of a page"),
        (lambda: Window(0, 0), "must not be empty"),
        (lambda: At(0, Ring, count=2, stride=0), "not possible"),
    ],
)
def test_bad_bars_and_windows_are_refused(declare: Any, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        declare()


def test_bar_kinds() -> None:
    assert MemoryBar(0, Ring, size=256).kind == "memory32"
    assert MemoryBar(4, Ring, size=1 << 40, width=64, prefetchable=True).kind == "memory64"
    assert IoBar(0, Ring, size=128).sizes == (1, 2, 4)

    class Holder:
        bar = MemoryBar(0, Ring, size=256)

    assert Holder.bar.name == "bar"
    with pytest.raises(AttributeError, match="not there yet"):
        _ = Holder().bar


class Typed(Block["Harness"]):
    flag = Flag(0)  # no register: blocks take no fields, and ignore them
    a = Register(0)


def test_mypy_finds_mistakes() -> None:
    """Each line of typing_mistakes.txt that says so is an error, and no other line is."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed: sync the lint group")
    source = Path(__file__).parent / "typing_mistakes.txt"
    core = Path(__file__).parent.parent / "src"
    expected = {n for n, line in enumerate(source.read_text().splitlines(), 1) if "# mistake" in line}
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--no-incremental", "--config-file="]
    result = subprocess.run(
        [*command, "-c", source.read_text()],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MYPYPATH": str(core)},
        timeout=280,
    )
    found = {
        int(line.split(":")[1])
        for line in result.stdout.splitlines()
        if line.startswith("<string>:") and " error:" in line
    }
    assert found == expected, result.stdout + result.stderr
