"""A bare program on a KVM machine's processor brings a vGPU up and submits blits."""

import struct

import pytest

from .conftest import BLITTER, GGTT, PAGE, PVINFO, SECONDS, batch_end, batch_start, fill

pytestmark = pytest.mark.kvm

BAR = 0xE000_0000
RING, IMAGE, STATUS = 0x10_0000, 0x10_1000, 0x10_3000
"""Guest-physical; four pages that follow each other, as they do in graphics memory."""
TABLES, BATCH, SURFACE, OTHER = 0x11_0000, 0x12_0000, 0x13_0000, 0x14_0000
BATCH_ADDRESS, SURFACE_ADDRESS = 0x40_0000, 0x50_0000
COLOUR = 0x00C0_FFEE
IDENTITY = 7
MAGIC = 0x7654_4776
"""The low half of what PVINFO begins with."""


SHADOWS = ("off", "emulate", "trap", "track")


@pytest.fixture(params=SHADOWS)
def vgpu(gpu, request):
    """Its page tables walked, or shadowed by each of the machine's means."""
    device = gpu.create("i915-GVTg_V5_8", attributes={"shadow": request.param})
    yield device
    device.close()


@pytest.fixture
def machine(vgpu):
    from umdev.errors import HypervisorError, NotSupported
    from umdev_kvm import Machine

    try:
        machine = Machine(memory=4 << 20)
    except (NotSupported, HypervisorError) as error:
        pytest.skip(f"{error} (the same tests run inside a TCG guest: test_in_guest.py)")
    with machine:
        slot = machine.plug(vgpu)
        vgpu.native.write(7, 0x10, struct.pack("<II", BAR, 0))  # below 4 GiB, where the program can reach it
        machine.firmware.enable(slot)
        yield machine


def prepare(machine, hidden):
    """What a driver would have in memory: table, batch, ring, image."""
    write = machine.ram.write
    for level in range(3):
        write(TABLES + level * PAGE, struct.pack("<Q", TABLES + (level + 1) * PAGE | 3))
    for address, page in ((BATCH_ADDRESS, BATCH), (SURFACE_ADDRESS, SURFACE)):
        index = address >> 21 & 511
        write(TABLES + 2 * PAGE + 8 * index, struct.pack("<Q", TABLES + (3 + index) * PAGE | 3))
        write(TABLES + (3 + index) * PAGE + 8 * (address >> 12 & 511), struct.pack("<Q", page | 3))
    blit = [*fill(SURFACE_ADDRESS, 256, 0, 0, 64, 16, COLOUR), *batch_end()]
    write(BATCH, struct.pack(f"<{len(blit)}I", *blit))
    ring = [*batch_start(BATCH_ADDRESS), 0]
    write(RING, 2 * struct.pack(f"<{len(ring)}I", *ring))
    image = [0] * 0x60
    image[0x07], image[0x09], image[0x0B], image[0x33] = 4 * len(ring), hidden, 1, TABLES
    write(IMAGE + PAGE, struct.pack("<96I", *image))


def test_a_program_submits_blits(machine, vgpu):
    """The second one after the program has changed the table: the same address, another page."""
    from umdev_kvm import OutcomeKind
    from umdev_testkit.payloads import assemble

    hidden = vgpu.slice.hidden.base
    prepare(machine, hidden)
    descriptor = hidden + IMAGE - RING | 1 << 8 | 3 << 3 | 1
    entry = TABLES + (3 + (SURFACE_ADDRESS >> 21 & 511)) * PAGE + 8 * (SURFACE_ADDRESS >> 12 & 511)
    submit = "\n".join(
        f"mov dword ptr [{BAR + BLITTER + 0x230:#x}], {half:#x}" for half in (0, 0, IDENTITY, descriptor)
    )
    machine.load(
        assemble(
            f"""
            cmp dword ptr [{BAR + PVINFO:#x}], {MAGIC:#x}
            jne bad
            mov edi, {BAR + GGTT + hidden // PAGE * 8:#x}
            mov eax, {RING | 1:#x}
            mov ecx, 4
            map: mov [edi], eax
            mov dword ptr [edi + 4], 0
            add edi, 8
            add eax, {PAGE}
            loop map
            mov dword ptr [{BAR + BLITTER + 0x29C:#x}], 0x80008000
            mov dword ptr [{BAR + BLITTER + 0x80:#x}], {hidden + STATUS - RING:#x}
            {submit}
            wait: cmp dword ptr [{STATUS + 0x7C:#x}], 1
            jne wait
            mov eax, {OTHER | 3:#x}
            mov [{entry:#x}], eax
            mov dword ptr [{IMAGE + PAGE + 4 * 7:#x}], 32
            {submit}
            again: cmp dword ptr [{STATUS + 0x7C:#x}], 3
            jne again
            mov eax, [{OTHER:#x}]
            out 0xf4, eax
            bad: exit 1
            """
        ),
    )
    machine.ram.write(STATUS + 0x7C, struct.pack("<I", 5))
    outcome = machine.run(SECONDS)
    assert outcome.kind is OutcomeKind.EXIT, str(outcome)
    assert outcome.value == COLOUR
    for page in (SURFACE, OTHER):
        assert machine.ram.read(page, PAGE) == struct.pack("<I", COLOUR) * 1024
    assert machine.ram.read(STATUS + 0x40, 32) == 2 * struct.pack("<4I", 1, 0, 0x18, IDENTITY)
    assert vgpu.errors == 0
    if vgpu.shadows is not None:
        assert vgpu.shadows.state["mode"] == vgpu.context.attributes["shadow"]
        assert vgpu.shadows.state["reads"] > vgpu.shadows.state["tables"]
