"""edu on every bus: factorial, DMA both ways, interrupts, gates and resets."""

import ast
import io
import math
import random
import threading
import time
import tokenize
from pathlib import Path

import pytest
import umdev_edu.device
from umdev.device import Device, DeviceContext, ManualClock, StateError
from umdev_edu import Edu

IDENT, LIVENESS, FACTORIAL, STATUS, IRQ_STATUS, IRQ_RAISE, IRQ_ACK = 0x00, 0x04, 0x08, 0x20, 0x24, 0x60, 0x64
SOURCE, TARGET, COUNT, COMMAND = 0x80, 0x88, 0x90, 0x98
START, TO_GUEST, RAISE = 1, 2, 4
BUFFER = 0x40000


@pytest.fixture
def edu(any_function):
    return any_function(Edu())


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


def factorial(bar, n):
    bar.write32(FACTORIAL, n)
    until(lambda: not bar.read32(STATUS) & 1)
    return bar.read32(FACTORIAL)


def dma(bar, source, target, count, flags=0):
    bar.write64(SOURCE, source)
    bar.write64(TARGET, target)
    bar.write64(COUNT, count)
    bar.write32(COMMAND, START | flags)


def test_identity_and_liveness(edu):
    bar = edu.bars[0]
    assert bar.read32(IDENT) == 0x010000ED
    bar.write32(LIVENESS, 0x12345678)
    assert bar.read32(LIVENESS) == 0xEDCBA987


@pytest.mark.parametrize("n", [0, 1, 5, 12, 13, 33, 34, 1000, 0xFFFF_FFFF])
def test_factorial_is_modulo_a_register(edu, n):
    expected = math.factorial(n) % 2**32 if n < 1000 else 0
    assert factorial(edu.bars[0], n) == expected


def test_what_is_asked_for_again_meanwhile_is_done_once(loopback_function):
    clock = ManualClock()
    function = loopback_function(Edu(DeviceContext(clock=clock)))
    bar, page = function.bars[0], function.allocate(4096)
    bar.write32(STATUS, 0x80)
    with function.enable_interrupts("msi") as interrupts:
        for n in (9, 7, 5):
            bar.write32(FACTORIAL, n)
        for _ in range(3):
            dma(bar, BUFFER, page.address, 4, TO_GUEST | RAISE)
            bar.write32(COMMAND, 0)
        clock.advance(1)
        assert bar.read32(FACTORIAL) == 120
        assert interrupts.wait(timeout=0) == 2


def test_a_transfer_that_could_not_be_begun_is_no_transfer(loopback_function, monkeypatch):
    device = Edu(DeviceContext(clock=ManualClock()))
    function = loopback_function(device)
    bar, page = function.bars[0], function.allocate(4096)
    page.write(0, b"\x5a" * 4)

    def refuse(*_arguments):
        raise StateError("too much work")

    with monkeypatch.context() as patch:
        patch.setattr(Device, "after", refuse)
        dma(bar, BUFFER, page.address, 4, TO_GUEST)
    assert bar.read32(COMMAND) == 0
    dma(bar, BUFFER, page.address, 4, TO_GUEST)
    device.context.clock.advance(1)
    assert page.read(0, 4) == bytes(4)


def test_factorial_interrupts_when_asked(edu):
    bar = edu.bars[0]
    with edu.enable_interrupts("msi") as interrupts:
        bar.write32(STATUS, 0x80)
        assert factorial(bar, 5) == 120
        assert interrupts.wait(timeout=60) == 1
        assert bar.read32(IRQ_STATUS) == 1
        bar.write32(IRQ_ACK, 1)
        assert bar.read32(IRQ_STATUS) == 0


def test_intx_is_a_level(edu):
    bar = edu.bars[0]
    with edu.enable_interrupts("intx") as interrupts:
        bar.write32(IRQ_RAISE, 0x10)
        assert interrupts.wait(timeout=60) == 1
        assert edu.config.read16(6) & 8, "Status bit 3 shows the level"
        interrupts.acknowledge()
        assert interrupts.wait(timeout=60) == 1, "still high: unmasking signals again"
        bar.write32(IRQ_ACK, 0x10)
        bar.read32(IRQ_STATUS)
        interrupts.acknowledge()
        assert interrupts.wait(timeout=0.05) == 0
        assert not edu.config.read16(6) & 8


def test_dma_out_and_back(edu):
    bar, data = edu.bars[0], random.randbytes(1024)
    buffer = edu.allocate(8192)
    with edu.enable_interrupts("msi") as interrupts:
        buffer.write(100, data)
        dma(bar, buffer.address + 100, BUFFER + 16, len(data), RAISE)
        assert interrupts.wait(timeout=60) == 1
        assert bar.read32(IRQ_STATUS) == 0x100
        bar.write32(IRQ_ACK, 0x100)
        dma(bar, BUFFER + 16, buffer.address + 5000, len(data), RAISE | TO_GUEST)
        assert interrupts.wait(timeout=60) == 1
    assert buffer.read(5000, len(data)) == data


@pytest.mark.parametrize(
    ("at", "count"), [(BUFFER - 1, 8), (BUFFER + 4090, 8), (BUFFER, 4097), (0, 8), (BUFFER, 2**63)]
)
def test_dma_outside_the_buffer_moves_nothing(edu, at, count):
    bar, buffer = edu.bars[0], edu.allocate(8192)
    buffer.write(0, b"\x5a" * 8192)
    dma(bar, at, buffer.address, count, TO_GUEST)
    until(lambda: not bar.read32(COMMAND) & START)
    assert buffer.read(0, 8192) == b"\x5a" * 8192


def test_without_bus_mastering_no_byte_changes(edu):
    bar, buffer = edu.bars[0], edu.allocate(4096)
    buffer.write(0, b"\x5a" * 4096)
    edu.enable(memory=True, io=True, bus_master=False)
    dma(bar, BUFFER, buffer.address, 4096, TO_GUEST)
    until(lambda: not bar.read32(COMMAND) & START)
    assert buffer.read(0, 4096) == b"\x5a" * 4096
    edu.enable(memory=True, io=True, bus_master=True)
    dma(bar, BUFFER, buffer.address, 4096, TO_GUEST)
    until(lambda: not bar.read32(COMMAND) & START)
    assert buffer.read(0, 4096) == bytes(4096)


def test_dma_to_an_address_that_is_not_mapped_ends(edu):
    bar = edu.bars[0]
    dma(bar, BUFFER, 0x7FFF_FFFF_0000, 64, TO_GUEST)
    until(lambda: not bar.read32(COMMAND) & START)


@pytest.mark.parametrize("kind", ["flr", "bus"])
def test_a_reset_during_dma_is_followed_by_no_write_and_no_interrupt(edu, kind):
    bar, buffer = edu.bars[0], edu.allocate(4096)
    buffer.write(0, b"\x5a" * 4096)
    with edu.enable_interrupts("msi") as interrupts:
        dma(bar, BUFFER, buffer.address, 4096, TO_GUEST | RAISE)
        if kind == "flr":
            edu.function_level_reset()
        else:
            edu.reset()
        over = interrupts.wait(timeout=0)  # on a slow bus the transfer ends before the reset begins
        before = buffer.read(0, 4096)
        edu.enable(memory=True, io=True, bus_master=True)
        assert bar.read32(COMMAND) == 0
        assert interrupts.wait(timeout=0.3) == 0
    assert buffer.read(0, 4096) == before
    assert over or before == b"\x5a" * 4096


def test_four_drivers_lose_no_update(edu):
    bar = edu.bars[0]

    def hammer(bit):
        for _ in range(300):
            bar.write32(IRQ_RAISE, 1 << bit)
            bar.write32(IRQ_ACK, 1 << bit)
        bar.write32(IRQ_RAISE, 1 << (bit + 8))

    threads = [threading.Thread(target=hammer, args=(bit,)) for bit in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bar.read32(IRQ_STATUS) == 0xF00


def test_state_survives_save_and_restore():
    from umdev_testkit.functions import attached

    device = Edu()
    with attached(device, "loopback") as edu:
        edu.bars[0].write32(LIVENESS, 7)
        edu.bars[0].write32(IRQ_RAISE, 0x30)
        saved = device.save()
    device = Edu()
    with attached(device, "loopback") as other:
        device.restore(saved)
        other.enable(memory=True, io=True, bus_master=True)
        assert other.bars[0].read32(LIVENESS) == 0xFFFF_FFF8
        assert other.bars[0].read32(IRQ_STATUS) == 0x30


def test_the_model_is_at_most_80_lines():
    """Neither blank, comment nor docstring, as the formatter lays them out."""
    text = Path(umdev_edu.device.__file__).read_text()
    docstrings = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
        for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    ignored = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in ignored
        for line in range(token.start[0], token.end[0] + 1)
    }
    assert len(lines - docstrings) <= 80
