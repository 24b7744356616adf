"""BARs where the guest puts them: configuration space, windows that follow, and places that are refused."""

import pytest
from umdev.errors import Conflict

pytestmark = pytest.mark.kvm

ECAM = 0xB0000000
CONFIG = ECAM + (1 << 15)


def ports(offset, value=None):
    """Read or write a doubleword of slot 1 by CF8 and CFC."""
    address = 0x80000000 | 1 << 11 | offset
    access = "in eax, dx" if value is None else f"mov eax, {value:#x}\n out dx, eax"
    return f"mov dx, 0xcf8\n mov eax, {address:#x}\n out dx, eax\n mov dx, 0xcfc\n {access}\n"


def test_both_ways_into_configuration_space(run):
    assert run(f"{ports(0)} out 0xf4, eax") == 0x5A3B1234
    assert run(f"mov eax, [{CONFIG:#x}]\n out 0xf4, eax") == 0x5A3B1234
    assert run(f"movzx eax, word ptr [{CONFIG + 2:#x}]\n out 0xf4, eax") == 0x5A3B
    assert run(f"mov eax, [{ECAM:#x}]\n out 0xf4, eax") == 0x00081B36, "the host bridge"
    assert run(f"mov eax, [{ECAM + (2 << 15):#x}]\n out 0xf4, eax") == 0xFFFFFFFF, "an empty slot"
    assert run(f"mov eax, [{CONFIG + 0x1000:#x}]\n out 0xf4, eax") == 0xFFFFFFFF, "a second function"


def test_a_byte_of_the_data_port(run):
    source = f"mov dx, 0xcf8\n mov eax, {0x80000800:#x}\n out dx, eax\n mov dx, 0xcfe\n in ax, dx\n out 0xf4, ax"
    assert run(source) == 0x5A3B


def test_a_bar_moves(run, plugged):
    source = (
        f"{ports(0x10, 0xD0000000)} mov eax, [0xd0000000]\n cmp eax, 0x5a3b1e\n jne bad\n"
        "mov eax, [bar0]\n cmp eax, -1\n jne bad\n exit 1\nbad: exit 2"
    )
    assert run(source) == 1
    assert plugged.counters["unclaimed"] == 1


def test_io_ports(run, sample):
    assert run("mov dx, bar5\n mov eax, 0x1234\n out dx, eax\n in eax, dx\n out 0xf4, eax") == 0x1234
    assert sample.bar5.data.value == 0x1234


def test_memory_enable_gates_everything(run, plugged):
    source = f"{ports(4, 5)} mov eax, [bar2 + 0x4000]\n and eax, [bar0]\n out 0xf4, eax"
    assert run(source) == 0xFFFFFFFF
    assert [p.region for p in plugged.bridge.placements] == [5]


def test_a_window_costs_no_exit(run, plugged, sample):
    count = 1_000_000
    before = plugged.counters
    source = (
        f"mov ecx, {count}\nagain: mov [bar2 + 0x4000 + ecx], cl\n dec ecx\n jnz again\n"
        "mov eax, [bar2 + 0x4100]\n out 0xf4, eax"
    ).replace("+ ecx]", "]")
    assert run(source, limit=60) == 0
    assert sample.bar2.window.view[0] == 1
    after = plugged.counters
    assert after["memory_writes"] == before["memory_writes"]
    assert after["memory_reads"] == before["memory_reads"]


def test_window_bytes_are_shared_both_ways(run, sample):
    sample.bar2.window.view[0x123:0x127] = b"host"
    assert run(
        "mov eax, [bar2 + 0x4123]\n mov dword ptr [bar2 + 0x4200], 0x64636261\n out 0xf4, eax"
    ) == int.from_bytes(b"host", "little")
    assert sample.bar2.window.view[0x200:0x204] == b"abcd"


def test_windows_follow_their_bar(run, plugged, sample):
    source = (
        "mov dword ptr [bar2 + 0x4000], 0x11111111\n"
        f"{ports(0x18, 0xD1000000)}"
        "mov eax, [0xd1004000]\n cmp eax, 0x11111111\n jne bad\n mov dword ptr [0xd1004004], 0x22222222\n"
        "mov eax, [bar2 + 0x4000]\n cmp eax, -1\n jne bad\n exit 1\nbad: out 0xf4, eax"
    )
    assert run(source) == 1
    assert sample.bar2.window.view[4:8] == b"\x22" * 4
    guests = [slot.guest for slot in plugged.slots.slots]
    assert 0xD1004000 in guests
    assert plugged.firmware.address(1, 2) == 0xD1000000


@pytest.mark.parametrize(
    "address", [0x1000, 0xFEE00000, 0xFEC00000, ECAM, 0xC0000000], ids=["memory", "LAPIC", "IOAPIC", "ECAM", "BAR"]
)
def test_bad_places_are_counted_and_not_mapped(run, plugged, sample, address):
    other = plugged.firmware.address(1, 2)
    place = other if address == 0xC0000000 else address
    before = plugged.bridge.bad_placements
    assert run(f"{ports(0x10, place)} mov eax, [bar0]\n out 0xf4, eax") == 0xFFFFFFFF
    assert plugged.bridge.bad_placements == before + 1
    assert 0 not in [p.region for p in plugged.bridge.placements]
    assert run(f"{ports(0x10, 0xD0000000)} mov eax, [0xd0000000]\n out 0xf4, eax") == 0x5A3B1E


def test_a_refused_bar_comes_when_its_place_is_free(run, plugged):
    other = plugged.firmware.address(1, 2)
    source = f"{ports(0x10, other)} {ports(0x18, 0xD1000000)} mov eax, [{other:#x}]\n out 0xf4, eax"
    assert run(source) == 0x5A3B1E


def test_a_reset_takes_bars_away(run, plugged, sample):
    from umdev.bus import ResetKind

    sample.reset(ResetKind.BUS)
    assert plugged.bridge.placements == []
    assert run("mov eax, [0xc0000000]\n out 0xf4, eax") == 0xFFFFFFFF


def test_slots_refuse_what_overlaps(plugged):
    first = plugged.slots.slots[0]
    with pytest.raises(Conflict, match="overlaps"):
        plugged.slots.add(first.guest, 0x1000, first.host)


def test_a_failed_batch_is_undone(plugged):
    before = plugged.slots.slots
    first, second = before[:2]
    with pytest.raises(Conflict), plugged.slots.batch() as batch:
        batch.replace([first], [(first.guest, 0x1000, first.host, 0), (second.guest, 0x1000, first.host, 0)])
    assert [(s.guest, s.length) for s in plugged.slots.slots] == [(s.guest, s.length) for s in before]
