"""EMULATE, TRAP and TRACK on a domain's pages."""

import struct
import threading
import time

import pytest
from umdev.device import ProtectMode
from umdev.errors import InvalidArgument, NotMapped, ProtectError, ProtectorBusy
from umdev_testkit.xen_payloads import payload

pytestmark = pytest.mark.xen
SECONDS = 200.0  # for what takes milliseconds on an idle machine
PAGE = 0x10_0000
BAR4, PORT = 0xF010_0000, 0xC100


@pytest.fixture
def memory(domain, sample):
    """The device's memory."""
    domain.plug(sample)
    with sample.locked():
        sample.config.write(4, b"\x07\x00")
    return sample.memory


def test_emulated_stores_come_once_with_address_and_value(guest, domain, memory):
    told = []

    def store(write):
        told.append((write.address - PAGE, write.value, write.width))
        if write.address - PAGE != 0x10:  # that one is dropped
            memory.write(write.address, write.value.to_bytes(write.width, "little"))

    guest.write(PAGE, b"before.." * 4)
    memory.protect(ProtectMode.EMULATE, [PAGE], store)
    guest.load(
        payload(
            f"mov eax, [{PAGE:#x}]\nmov [0x8000], eax\n"  # a read passes
            f"mov dword ptr [{PAGE:#x}], 0x11223344\nmov byte ptr [{PAGE + 5:#x}], 0x55\n"
            f"mov word ptr [{PAGE + 8:#x}], 0x6677\nmov dword ptr [{PAGE + 0x10:#x}], 0xdead\n"
            f"lock or dword ptr [{PAGE:#x}], 0x80\n"
            f"mov edi, {PAGE + 0x100:#x}\nmov eax, 0x99\nmov ecx, 5\nrep stosd\n"
            f"mov eax, [{PAGE:#x}]\nmov [0x8004], eax\nexit 1\n"
            f"mov dword ptr [{PAGE:#x}], 0x1234\nexit 2\n"
        )
    )
    assert guest.run(SECONDS) == 1
    assert told == [
        (0, 0x11223344, 4), (5, 0x55, 1), (8, 0x6677, 2), (0x10, 0xDEAD, 4), (0, 0x112233C4, 4),
        *[(0x100 + 4 * n, 0x99, 4) for n in range(5)],
    ]  # fmt: skip
    assert guest.read(0x8000, 8) == b"befo" + struct.pack("<I", 0x112233C4)
    assert guest.read(PAGE + 0x10, 8) == b"before..", "what the model drops does not land"
    memory.unprotect(ProtectMode.EMULATE, [PAGE])
    cool(domain)
    counted = domain.counters["requests"]
    assert guest.run(SECONDS) == 2
    assert guest.read(PAGE, 4) == struct.pack("<I", 0x1234)
    assert domain.counters["requests"] == counted, "ordinary memory again"
    assert len(told) == 10


def test_a_store_whose_model_fails_lands_and_is_counted(guest, domain, memory, sample):
    def fail(write):
        raise RuntimeError("on purpose")

    memory.protect(ProtectMode.EMULATE, [PAGE], fail)
    memory.protect(ProtectMode.TRAP, [PAGE + 0x1000], fail)
    guest.load(payload(f"mov dword ptr [{PAGE + 4:#x}], 0x11223344\nmov dword ptr [{PAGE + 0x1000:#x}], 5\nexit 1\n"))
    assert guest.run(SECONDS) == 1
    assert guest.read(PAGE + 4, 4) == struct.pack("<I", 0x11223344)
    assert guest.read(PAGE + 0x1000, 4) == struct.pack("<I", 5)
    assert sample.native.counters["faulted"] == 2


def cool(domain):
    """Wait until pages that nobody watches are ordinary."""
    deadline = time.monotonic() + SECONDS
    while domain.emulator.cooling:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert domain.emulator.pages == 0


def test_a_trapped_page_is_told_of_once_and_before(guest, memory, sample):
    told = []

    def look(write):
        told.append((write.address, memory.read(PAGE, 4)))
        with pytest.raises(ProtectError, match="lands first"):
            memory.protect(ProtectMode.TRAP, [PAGE], look)

    memory.protect(ProtectMode.TRAP, [PAGE, PAGE + 0x1000], look)
    guest.load(
        payload(
            f"mov dword ptr [{PAGE + 8:#x}], 1\nmov dword ptr [{PAGE:#x}], 2\nexit 1\n"
            f"mov edi, {PAGE:#x}\nmov eax, 7\nmov ecx, 1024\nrep stosd\nexit 2\n"
        )
    )
    assert guest.run(SECONDS) == 1
    assert told == [(PAGE, bytes(4))]
    assert guest.read(PAGE, 12) == struct.pack("<III", 2, 0, 1)
    memory.protect(ProtectMode.TRAP, [PAGE], look)
    assert guest.run(SECONDS) == 2
    assert told[1:] == [(PAGE, struct.pack("<I", 2))]
    assert guest.read(PAGE, 4096) == struct.pack("<I", 7) * 1024


def test_pages_that_cool_are_protected_again(guest, domain, memory, monkeypatch):
    """Xen refuses to give a page the type that it has."""
    monkeypatch.setattr("umdev_xen.emulate._COOLING", 3600)
    told = []
    memory.protect(ProtectMode.EMULATE, [PAGE, PAGE + 0x1000], told.append)
    memory.unprotect(ProtectMode.EMULATE, [PAGE, PAGE + 0x1000])
    assert domain.emulator.cooling == 2
    memory.protect(ProtectMode.TRAP, [PAGE, PAGE + 0x2000], told.append)
    assert domain.emulator.cooling == 1
    domain.emulator.renew()  # as after ballooning: both are still there
    assert told == []
    guest.load(payload(f"mov dword ptr [{PAGE:#x}], 1\nmov dword ptr [{PAGE + 0x2000:#x}], 2\nexit 1\n"))
    assert guest.run(SECONDS) == 1
    assert [write.address for write in told] == [PAGE, PAGE + 0x2000]
    assert guest.read(PAGE, 4) == struct.pack("<I", 1)


def test_bad_pages_are_refused_and_nothing_is_protected(domain, memory):
    with pytest.raises(InvalidArgument, match="multiple of 4096"):
        memory.protect(ProtectMode.EMULATE, [PAGE + 1], print)
    with pytest.raises(NotMapped, match="no ordinary memory"):
        memory.protect(ProtectMode.EMULATE, [PAGE, 0x2000_0000], print)
    assert domain.emulator.pages == 0


def test_tracking_is_exact(guest, domain, memory):
    """Ten thousand stores by a generator that the test repeats."""
    pages, first, state = 512, 0x20_0000, 12345
    memory.protect(ProtectMode.TRACK, [first + 4096 * n for n in range(pages)])
    assert domain.tracker.frames == pages
    guest.load(
        payload(
            f"mov ebx, {state}\n5: mov ecx, 1000\n6: imul ebx, ebx, 1103515245\nadd ebx, 12345\n"
            f"mov eax, ebx\nshr eax, 16\nand eax, {pages - 1}\nshl eax, 12\nadd eax, {first:#x}\nmov [eax], ebx\n"
            "loop 6b\nexit 1\njmp 5b\n"
        )
    )
    for _ in range(10):
        assert guest.run(SECONDS) == 1
        expected = set()
        for _ in range(1000):
            state = (state * 1103515245 + 12345) & 0xFFFFFFFF
            expected.add(first + ((state >> 16) & (pages - 1)) * 4096)
        assert list(memory.collect()) == sorted(expected)
    assert list(memory.collect()) == []
    memory.unprotect(ProtectMode.TRACK, [first + 4096 * n for n in range(pages)])
    assert domain.tracker.frames == 0


def test_tracking_beside_emulation(guest, domain, memory):
    told = []
    memory.protect(ProtectMode.EMULATE, [PAGE], told.append)
    memory.protect(ProtectMode.TRACK, [0x20_0000, 0x20_1000])
    guest.load(payload(f"mov dword ptr [0x201000], 5\nmov byte ptr [{PAGE:#x}], 1\nexit 1\n"))
    assert guest.run(SECONDS) == 1
    assert list(memory.collect()) == [0x20_1000]
    assert [(write.address, write.value) for write in told] == [(PAGE, 1)]


def from_device(slot: int, port_to: int, memory_to: int, count: int = 3) -> str:
    """`rep insb` of as many bytes, and `rep movsd` of as many doublewords, from the sample's FIFO to memory."""
    return (
        f"config_write {slot}, 0x20, {BAR4:#x}\nconfig_write {slot}, 0x24, {PORT:#x}\nconfig_write {slot}, 4, 7\n"
        f"mov dx, {PORT:#x}\nmov edi, {port_to:#x}\nmov ecx, {count}\nrep insb\n"
        f"mov esi, {BAR4:#x}\nmov edi, {memory_to:#x}\nmov ecx, {count}\nrep movsd\nexit 1\n"
    )


@pytest.mark.parametrize("mode", ["emulate", "trap"])
def test_what_a_device_gives_to_a_protected_page_is_told_of(guest, domain, sample, mode):
    """Xen has it stored by the device model, in data by pointer: for the guest it is a store like any other."""
    slot = domain.plug(sample)
    told = []
    with sample.locked():
        sample.queue.extend(range(1, 64))
    if mode == "emulate":
        sample.memory.protect(ProtectMode.EMULATE, [PAGE], lambda write: told.append((write.address, write.value)))
    else:
        sample.memory.protect(
            ProtectMode.TRAP, [PAGE], lambda write: told.append((write.address, sample.memory.read(PAGE, 4)))
        )
    guest.load(payload(from_device(slot, PAGE, PAGE + 0x100)))
    assert guest.run(SECONDS) == 1
    if mode == "emulate":
        words = [(PAGE + 0x100 + 4 * n, 0x07060504 + 0x04040404 * n) for n in range(3)]
        assert told == [(PAGE, 1), (PAGE + 1, 2), (PAGE + 2, 3), *words], "once, with address and value, in order"
        assert guest.read(PAGE, 0x200) == bytes(0x200), "the model dropped them all"
    else:
        assert told == [(PAGE, bytes(4))], "once, and before the first store"
        assert guest.read(PAGE, 3) == b"\1\2\3"
        assert guest.read(PAGE + 0x100, 12) == bytes(range(4, 16))


def test_what_a_device_gives_is_tracked(guest, domain, sample):
    slot = domain.plug(sample)
    with sample.locked():
        sample.queue.extend(range(1, 64))
    first = 0x20_0000
    sample.memory.protect(ProtectMode.TRACK, [first + 4096 * n for n in range(8)])
    assert domain.tracker.frames == 8
    guest.load(payload(from_device(slot, first + 0x1000, first + 0x3FFC)))
    assert guest.run(SECONDS) == 1
    assert guest.read(first + 0x3FFC, 12) == bytes(range(4, 16))
    assert list(sample.memory.collect()) == [first + 0x1000, first + 0x3000, first + 0x4000]
    assert list(sample.memory.collect()) == []


def test_what_xen_does_not_track_is_compared(make_guest, sample):
    """Pages more than 1 GiB apart."""
    from umdev_xen import Domain

    far = 2 << 30
    guest = make_guest(memory=[(0, 4 << 20), (far, 1 << 20)])
    with Domain(guest.domid) as domain:
        domain.plug(sample)
        with sample.locked():
            sample.config.write(4, b"\x07\x00")
        memory = sample.memory
        memory.protect(ProtectMode.TRACK, [0x20_0000, far])
        assert domain.tracker.frames == 0
        assert "comparison of 2 pages" in sample.attachment.services.mechanisms["protect[track]"]
        guest.load(payload(f"mov dword ptr [{far + 8:#x}], 5\nexit 1\n"))
        assert guest.run(SECONDS) == 1
        assert list(memory.collect()) == [far]
        memory.protect(ProtectMode.TRACK, [0x30_0000])
        assert domain.tracker.frames == 1, "what Xen can track it does"


def test_a_second_owner_of_emulated_pages_is_told_so(domain, memory):
    """Two device models of one domain; here both in this process."""
    from umdev_xen.emulate import Emulator
    from umdev_xen.native import Native
    from umdev_xen.server import IoreqServer

    memory.protect(ProtectMode.EMULATE, [PAGE], print)
    other = IoreqServer(domain.handles)
    try:
        native = Native(domain.handles, other.page)
        with pytest.raises(ProtectorBusy, match="another device model"):
            Emulator(domain.domid, native, other).watch([PAGE // 4096 + 1], None)
        native.free()
    finally:
        other.close()


def test_stores_of_two_processors_are_each_told_once(make_guest, sample):
    from umdev_xen import Domain

    guest = make_guest(vcpus=2)
    told, lock = [], threading.Lock()

    def count(write):
        with lock:
            told.append((write.address, write.value))

    with Domain(guest.domid) as domain:
        domain.plug(sample)
        sample.memory.protect(ProtectMode.EMULATE, [PAGE], count)
        guest.load(
            payload(
                f"mov ebx, edi\nshl ebx, 8\nadd ebx, {PAGE:#x}\nmov ecx, 200\n7: mov [ebx], ecx\nloop 7b\n"
                "lock inc dword ptr [0x9000]\n8: cmp dword ptr [0x9000], 2\njne 8b\n"
                "test edi, edi\njnz 9f\nexit 1\n9: hlt\njmp 9b\n"
            )
        )
        assert guest.run(SECONDS) == 1
        for number in (0, 1):
            assert [value for address, value in told if address == PAGE + number * 256] == list(range(200, 0, -1))
