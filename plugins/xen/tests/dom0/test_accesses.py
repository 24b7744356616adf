"""Every size, repeated accesses with data by pointer, and requests that no processor makes."""

import ctypes
import struct
import time

import pytest
from umdev_testkit.xen_payloads import payload

pytestmark = pytest.mark.xen
SECONDS = 200.0  # for what takes milliseconds on an idle machine
BAR0, BAR4, PORT = 0xF000_0000, 0xF010_0000, 0xC100
COUNTS = (1, 2, 63, 64, 65, 1000, 4096)


def place(slot: int) -> str:
    return (
        f"config_write {slot}, 0x10, {BAR0:#x}\nconfig_write {slot}, 0x20, {BAR4:#x}\n"
        f"config_write {slot}, 0x24, {PORT:#x}\nconfig_write {slot}, 4, 7\n"
    )


def test_every_size(guest, domain, sample, results):
    slot = domain.plug(sample)
    guest.load(
        payload(
            f"{place(slot)}"
            f"mov dword ptr [{BAR0 + 4:#x}], 0x11223344\nmov byte ptr [{BAR0 + 5:#x}], 0xaa\n"
            f"mov word ptr [{BAR0 + 6:#x}], 0xbbcc\nmov eax, [{BAR0 + 4:#x}]\nresult 0\n"
            f"movzx eax, byte ptr [{BAR0 + 7:#x}]\nresult 1\nmovzx eax, word ptr [{BAR0 + 5:#x}]\nresult 2\n"
            f"movq mm0, [{BAR0 + 0:#x}]\nmovq [0x8010], mm0\n"
            f"config_read {slot}, 0\nmov dx, 0xcfe\nin ax, dx\nmovzx eax, ax\nresult 3\n"
            f"lock or dword ptr [{BAR0 + 4:#x}], 1\nmov eax, [{BAR0 + 8:#x}]\nresult 6\n"
            f"mov eax, [{BAR0 + 0xF00:#x}]\nresult 7\nexit 1\n"
        )
    )
    assert guest.run(SECONDS) == 1
    assert results(guest, 8) == [0xBBCCAA44, 0xBB, 0xCCAA, 0x5A3B, 0x5A3B1E, 0xBBCCAA44, 4, 0]
    assert domain.counters["malformed"] == 0


def test_repeated_port_accesses_move_through_a_fifo(guest, domain, sample):
    """`rep outsb` and `rep insb`, of 1 to 4096 bytes."""
    slot = domain.plug(sample)
    source = bytes(range(256)) * 16
    guest.write(0x10_0000, source)
    code = place(slot)
    for count in COUNTS:
        code += f"""
            mov dx, {PORT + 4:#x}
            out dx, eax
            mov dx, {PORT:#x}
            mov esi, 0x100000
            mov ecx, {count}
            rep outsb
            exit {count}
            mov dx, {PORT:#x}
            mov edi, 0x180000
            mov ecx, {count}
            rep insb
            exit {count}
        """
    guest.load(payload(code))
    for count in COUNTS:
        guest.write(0x18_0000, bytes(4096))
        assert guest.run(SECONDS) == count
        assert bytes(sample.pushed) == source[:count], "each byte once, in order"
        assert bytes(sample.queue) == source[: min(count, 64)]
        assert guest.run(SECONDS) == count
        expected = source[: min(count, 64)].ljust(count, b"\xff")
        assert guest.read(0x18_0000, 4096) == expected.ljust(4096, b"\0"), "not a byte more"
    assert domain.counters["unreachable"] == 0


def test_repeated_moves_to_and_from_memory(guest, domain, sample):
    """`rep movsl` both ways, forward and backward, 1 to 4096 doublewords."""
    slot = domain.plug(sample)
    source = b"".join(struct.pack("<I", n * 0x01010101 & 0xFFFFFFFF) for n in range(4096))
    guest.write(0x10_0000, source)
    code = place(slot)
    for count in COUNTS:
        code += f"""
            mov dx, {PORT + 4:#x}
            out dx, eax
            mov esi, 0x100000
            mov edi, {BAR4:#x}
            mov ecx, {count}
            rep movsd
            exit {count}
            mov esi, {BAR4:#x}
            mov edi, 0x180000
            mov ecx, {count}
            rep movsd
            exit {count}
        """
    code += f"""
        mov dx, {PORT + 4:#x}
        out dx, eax
        std
        mov esi, 0x10003c
        mov edi, {BAR4 + 60:#x}
        mov ecx, 16
        rep movsd
        cld
        exit 77
    """
    guest.load(payload(code))
    for count in COUNTS:
        guest.write(0x18_0000, bytes(16384))
        assert guest.run(SECONDS) == count
        assert bytes(sample.pushed) == source[: 4 * count]
        assert guest.run(SECONDS) == count
        expected = source[: min(4 * count, 64)].ljust(4 * count, b"\xff")
        assert guest.read(0x18_0000, 16384) == expected.ljust(16384, b"\0")
    assert guest.run(SECONDS) == 77
    assert bytes(sample.pushed) == b"".join(source[n : n + 4] for n in range(60, -4, -4))


class Request(ctypes.Structure):
    """struct ioreq (xen/hvm/ioreq.h)."""

    _fields_ = (
        ("address", ctypes.c_uint64),
        ("data", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("width", ctypes.c_uint32),
        ("port", ctypes.c_uint32),
        ("pad", ctypes.c_uint16),
        ("flags", ctypes.c_uint8),
        ("type", ctypes.c_uint8),
    )


READY, RESPONSE, READ, BY_POINTER, DOWN = 1, 3, 1 << 5, 1 << 4, 1 << 6
ONES = (1 << 64) - 1


def scribble(domain, *, flags=READ, **fields):
    """Write a request into the first processor's slot, as a domain that owns the page may; what comes back."""
    request = Request.from_address(domain.server.page)
    port = request.port
    for name, value in ({"address": 0, "data": 0, "count": 1, "width": 4, "type": 1} | fields).items():
        setattr(request, name, value)
    request.flags = flags | READY
    deadline = time.monotonic() + SECONDS
    while request.flags & 0xF != RESPONSE:
        assert time.monotonic() < deadline, "no answer"
        time.sleep(0.01)
    found = request.data
    request.flags = 0
    request.port = port
    return found


@pytest.mark.parametrize(
    "fields",
    [{"width": width} for width in (0, 3, 5, 16, 1 << 20, (1 << 32) - 1)]
    + [{"count": count, "flags": READ | BY_POINTER, "data": 0x10_0000} for count in (0, 4097, (1 << 32) - 1)]
    + [{"count": 2}, {"type": 3}, {"type": 255}, {"type": 0, "width": 8}, {"type": 0, "address": 1 << 16}],
    ids=str,
)
def test_requests_that_no_processor_makes_are_answered_and_counted(domain, sample, fields):
    domain.plug(sample)
    before = domain.counters
    found = scribble(domain, **{"flags": READ, **fields})
    if not fields.get("flags", 0) & BY_POINTER:
        assert found == ONES
    assert domain.counters["malformed"] == before["malformed"] + 1
    assert domain.counters["accesses"] == before["accesses"]


def test_addresses_that_lead_nowhere_are_answered(guest, domain, sample):
    domain.plug(sample)
    assert scribble(domain, address=ONES - 3) == 0xFFFFFFFF
    assert scribble(domain, address=0xE000_0000, width=8) == ONES
    assert scribble(domain, type=2, address=31 << 35) == 0xFFFFFFFF
    scribble(domain, address=0xE000_0000, flags=0)
    assert domain.counters["unclaimed"] == 4
    scribble(domain, address=0xE000_0000, flags=READ | BY_POINTER | DOWN, count=4096, data=ONES)
    scribble(domain, address=0xE000_0000, flags=BY_POINTER, count=4096, data=1 << 51)
    assert domain.counters["unreachable"] >= 4096
    for state in (0, 2, 3, 4, 9, 15):  # states that are no request
        Request.from_address(domain.server.page).flags = state
    Request.from_address(domain.server.page).flags = 0
    slot = next(iter(plugged.slot for plugged in domain.bridge.functions))
    guest.load(payload(f"{place(slot)}mov eax, [{BAR0:#x}]\nmov [0x8000], eax\nexit 5\n"))
    assert guest.run(SECONDS) == 5, "and the domain's own requests are served as before"
    assert guest.read(0x8000, 4) == b"\x1e\x3b\x5a\0"
