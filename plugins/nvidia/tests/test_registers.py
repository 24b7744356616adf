"""Registers without a channel: what the driver reads to find out what is there, and how an interrupt reaches it."""

import struct

import pytest
from umdev.device import SaveError
from umdev_nvidia import vbios
from umdev_nvidia.topology import ENGINES

from .conftest import PAGE, PROM, SECONDS, Driver

ALARM = 1 << 0
TIMER = 1 << 20


@pytest.fixture
def mmio(vgpu, loopback_function):
    return loopback_function(vgpu).bars[0]


def test_the_vbios_has_the_tables_that_nouveau_looks_for(mmio):
    image = mmio.read(PROM, PAGE)
    assert image == vbios.IMAGE
    assert sum(image) % 256 == 0
    pci_data, displays = (struct.unpack_from("<H", image, at)[0] for at in (0x18, 0x36))
    assert image[pci_data : pci_data + 8] == b"PCIR" + struct.pack("<HH", 0x10DE, 0x13BD)
    assert image[pci_data + 0x15] & 0x80
    assert struct.unpack_from("<I", image, displays + 6)[0] == 0x4EDC_BDCB
    directory = image.index(b"\xff\xb8BIT\0")
    size, count = image[directory + 9], image[directory + 10]
    tables = {}
    for entry in range(count):
        letter, _, length, offset = struct.unpack_from("<cBHH", image, directory + 12 + size * entry)
        tables[letter] = image[offset : offset + length]
    assert sorted(tables) == [b"I", b"P", b"i"]
    assert len(tables[b"i"]) >= 15
    timings, voltages = (struct.unpack_from("<I", tables[b"P"], at)[0] for at in (4, 12))
    assert image[timings] == 0x11
    assert image[voltages : voltages + 5] == bytes((0x12, 2, 0, 0, 0))


def test_the_topology_names_two_engines_on_two_runlists(mmio):
    words = [mmio.read32(0x22700 + 4 * number) for number in range(64)]
    numbers = (1 << 21 | 12 << 15 | 12 << 9, 1 << 26 | 7 << 15 | 21 << 9)
    assert words[:3] == [0x8040_0005, 0x8000_003E | numbers[0], 3]
    assert words[3:6] == [0x8010_6005 | 0x1B << 3, 0x8000_003E | numbers[1], 15]
    assert not any(words[6:])
    assert [engine.runlist for engine in ENGINES] == [1, 0]


@pytest.mark.parametrize(("type_", "megabytes"), [("nvidia-35", 512), ("nvidia-39", 1024), ("nvidia-45", 8192)])
def test_memory_is_the_type_s_frame_buffer(gpu, loopback_function, type_, megabytes):
    with gpu.create(type_) as vgpu:
        function = loopback_function(vgpu)
        driver = Driver(function)
        driver.identify()
        assert driver.megabytes == megabytes
        driver.close()
        function.close()


def test_what_reads_as_done(mmio):
    for register in (0x70000, 0x70004, 0x70010):
        mmio.write32(register, 1)
        assert mmio.read32(register) == 0
    mmio.write32(0x100C80, 0)
    assert mmio.read32(0x100C80) == 0x00FF_8000
    mmio.write32(0x204, 0xFFFF_FFFF)
    assert mmio.read32(0x204) == 3


def test_offsets_without_a_register_are_seen(vgpu, mmio):
    mmio.write32(0x41A100, 1)
    assert mmio.read32(0x41A100) == 0
    assert [(entry.offset, entry.writes, entry.reads) for entry in vgpu.native.burn_down()] == [(0x41A100, 1, 1)]


def ring_alarm(mmio):
    mmio.write32(0x9140, ALARM)
    mmio.write32(0x9420, mmio.read32(0x9400) + 64)


def test_no_second_message_before_the_driver_re_arms(vgpu, loopback_function):
    function = loopback_function(vgpu)
    mmio = function.bars[0]
    interrupts = function.enable_interrupts("msi")
    mmio.write32(0x140, 1)
    ring_alarm(mmio)
    assert interrupts.wait(timeout=SECONDS) == 1
    mmio.write32(0x9100, ALARM)
    ring_alarm(mmio)
    while not mmio.read32(0x100) & TIMER:
        pass
    assert interrupts.wait(timeout=0) == 0
    mmio.write8(0x88068, 0xFF)
    assert interrupts.wait(timeout=SECONDS) == 1
    interrupts.close()


@pytest.mark.parametrize(("register", "closed", "opened"), [(0x140, 0, 1), (0x640, 0, TIMER), (0x9140, 0, ALARM)])
def test_every_gate_holds_a_message_back(vgpu, loopback_function, register, closed, opened):
    function = loopback_function(vgpu)
    mmio = function.bars[0]
    interrupts = function.enable_interrupts("msi")
    mmio.write32(0x140, 1)
    mmio.write32(0x9140, ALARM)
    mmio.write32(register, closed)
    mmio.write32(0x9420, mmio.read32(0x9400) + 64)
    while not mmio.read32(0x9100) & ALARM:
        pass
    assert interrupts.wait(timeout=0) == 0
    mmio.write32(register, opened)
    assert interrupts.wait(timeout=SECONDS) == 1
    interrupts.close()


def test_a_pin_is_a_level(vgpu, loopback_function):
    function = loopback_function(vgpu)
    mmio = function.bars[0]
    interrupts = function.enable_interrupts("intx")
    mmio.write32(0x140, 1)
    for _ in range(3):
        ring_alarm(mmio)
        assert interrupts.wait(timeout=SECONDS) == 1
        assert function.config.status & 8
        mmio.write32(0x9100, ALARM)
        assert not function.config.status & 8
        function.unmask_irq(0)
    interrupts.close()


def test_a_vgpu_can_t_be_saved(vgpu):
    with pytest.raises(SaveError, match="in the middle of"):
        vgpu.save()
