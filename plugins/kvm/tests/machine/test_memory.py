"""Memory for devices: maps, hot-add, translation, pins, pre-fault."""

import contextlib
import ctypes
import errno
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from umdev.bus import Protection
from umdev.errors import HypervisorError, InvalidArgument, NotMapped, NotSupported, PinLimit
from umdev.hypervisor import PAGE_SIZE, AddressSpace, GuestMemory
from umdev_kvm import Machine, payload
from umdev_kvm.pins import LongTermPins, new_ring
from umdev_testkit.payloads import assemble

from .conftest import ELSEWHERE

pytestmark = pytest.mark.kvm


@pytest.fixture
def attachment(plugged, sample):
    sample.address_space.bus_master = True
    return sample.attachment


def test_guest_and_device_see_the_same_bytes(run, attachment, sample):
    sample.memory.write(0x9000, b"\x78\x56\x34\x12")
    assert run("mov eax, [0x9000]\n mov dword ptr [0x9004], 0xabcd\n out 0xf4, eax") == 0x12345678
    assert sample.memory.read(0x9004, 4) == b"\xcd\xab\0\0"
    with pytest.raises(NotMapped):
        sample.memory.read(0xB0000, 4)


def test_memory_added_later(make_machine, sample):
    machine = make_machine(memory=1 << 20)
    machine.firmware.enable(machine.plug(sample))
    before = len(sample.address_space.mappings)
    guest = machine.add_memory(1 << 20)
    assert guest == 1 << 32
    assert len(sample.address_space.mappings) == before + 1
    machine.ram.write(guest + 8, b"added")
    assert sample.memory.read(guest + 8, 5) == b"added"
    translator = sample.attachment.services.translator()
    host = translator.translate(guest + 8, 5, Protection.READ, 0)
    assert ctypes.string_at(host, 5) == b"added"
    assert "hot-added" in translator.mechanism
    machine.reset()
    assert guest in [slot.guest for slot in machine.slots.slots]


def test_a_running_processor_uses_memory_that_is_added(make_machine):
    machine = make_machine(memory=1 << 20)
    source = (
        "wait: mov rbx, [0x9000]\n test rbx, rbx\n jz wait\n mov eax, [rbx + 0x1000]\n mov [rbx + 0x1ff000], eax\n"
        "out 0xf4, eax"
    )
    machine.load(assemble(source, "long"), "long")
    table = payload.PAGE_TABLES  # they map 4 GiB; one large page more, of a directory at 0xA000
    machine.ram.write(table + 0x1000 + 4 * 8, (0xA003).to_bytes(8, "little"))
    machine.ram.write(0xA000, ((1 << 32) | 0x83).to_bytes(8, "little"))
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(machine.run(60)))
    thread.start()
    while thread.is_alive() and not machine.running:
        pass
    guest = machine.add_memory(2 << 20)
    machine.ram.write(guest + 0x1000, b"\x44\x33\x22\x11")
    machine.ram.write(0x9000, guest.to_bytes(8, "little"))
    thread.join()
    assert outcomes[0].value == 0x11223344
    assert machine.ram.read(guest + 0x1F_F000, 4) == b"\x44\x33\x22\x11"
    assert machine.counters["unclaimed"] == 0


def test_there_is_an_end_to_memory(make_machine):
    machine = make_machine(memory=1 << 20)
    with pytest.raises(InvalidArgument, match="256 GiB"):
        machine.add_memory(1 << 44)
    for size in (1 << 44, 1 << 70):
        with pytest.raises(InvalidArgument, match="at most"):
            Machine(memory=size)
    with pytest.raises(TypeError):
        Machine(memory=65536.5)


def pinned_kib():
    """Pages under long-term pins, in KiB, for a process without CAP_IPC_LOCK; VmPin counts them for all."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmPin:")[1].split()[0])


def test_long_term_pins(attachment):
    pinner = attachment.services.pinner()
    if "io_uring" not in pinner.mechanism:
        pytest.skip(f"this kernel has no io_uring for us: {pinner.mechanism} {ELSEWHERE}")
    translator = attachment.services.translator()
    host = translator.translate(0x10_0000, 0x4000, Protection.READ | Protection.WRITE, 0)
    before = pinned_kib()
    pinner.pin(host, 4)
    assert pinned_kib() == before + 16
    pinner.pin(host + 0x1000, 1)
    pinner.unpin(host, 4)
    assert pinner.pages == 1
    assert pinned_kib() == before + 4, "the page that is pinned twice stays, the others go"
    pinner.unpin(host + 0x1000, 1)
    assert pinned_kib() == before
    pinner.unpin(host, 4)  # nothing left to undo
    assert pinner.pages == 0


@pytest.fixture
def few_pins():
    """Pins with room for two buffers, and the address of 16 pages."""
    ring, code = new_ring(2)
    if ring is None:
        pytest.skip(f"this kernel has no io_uring for us: errno {code} {ELSEWHERE}")
    space = AddressSpace()
    with GuestMemory(16 * PAGE_SIZE) as guest:
        space.map(0, 8 * PAGE_SIZE, descriptor=guest.descriptor)
        space.map(8 * PAGE_SIZE, 8 * PAGE_SIZE, descriptor=guest.descriptor, protection=Protection.READ)
        pins = LongTermPins(space, ring, 2)
        yield pins, space
        pins.close()
        space.close()


def test_a_buffer_that_can_not_be_divided_stays_until_nobody_wants_a_page_of_it(few_pins):
    pins, space = few_pins
    host = space.translate(0, PAGE_SIZE)
    before = pinned_kib()
    pins.pin(host, 8)
    pins.unpin(host + 3 * PAGE_SIZE, 1)  # what is left takes two buffers, beside the one that there is
    assert pins.pages == 7
    assert pinned_kib() == before + 32
    pins.pin(host + 3 * PAGE_SIZE, 1)
    pins.unpin(host + 3 * PAGE_SIZE, 1)
    pins.unpin(host, 3)
    assert pins.pages == 4
    assert pinned_kib() == before + 16, "now one buffer is enough"
    pins.unpin(host + 4 * PAGE_SIZE, 4)
    assert pinned_kib() == before


FORKS = """
import os, signal, warnings
from umdev.errors import StateError
from umdev.hypervisor import PAGE_SIZE, AddressSpace, GuestMemory
from umdev_kvm.pins import LongTermPins, new_ring

def pinned_kib():
    with open("/proc/self/status") as status:
        return int(status.read().split("VmPin:")[1].split()[0])

warnings.simplefilter("ignore", DeprecationWarning)  # there may be threads
space, guest = AddressSpace(), GuestMemory(8 * PAGE_SIZE)
space.map(0, 8 * PAGE_SIZE, descriptor=guest.descriptor)
host = space.translate(0, PAGE_SIZE)
pins = LongTermPins(space, new_ring(8)[0], 8)
pins.pin(host, 4)
print(pinned_kib(), flush=True)
child = os.fork()
if child == 0:
    signal.alarm(60)
    pins.unpin(host, 1)
    try:
        pins.pin(host + 4 * PAGE_SIZE, 1)
    except StateError as error:
        print(error, flush=True)
    pins.close()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), pinned_kib(), pins.pages, flush=True)
pins.unpin(host, 4)
print(pinned_kib())
"""


def test_what_a_forked_child_gives_up_stays_pinned(few_pins):
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=120, check=False)
    refused = "the pins belong to the process that forked this one: attach the device anew here"
    assert done.stdout.splitlines() == ["16", refused, "7 16 4", "0"], done.stderr


def test_a_map_that_is_to_be_read_only_takes_no_long_term_pin(few_pins):
    pins, space = few_pins
    with pytest.raises(NotSupported, match="written to"):
        pins.pin(space.translate(8 * PAGE_SIZE, PAGE_SIZE, protection=Protection.READ), 1)
    assert pins.pages == 0


def test_the_limit_of_locked_memory(attachment):
    host = attachment.services.translator().translate(0x10_0000, 0x10_0000, Protection.READ, 0)
    with dropped_capability(), limited(resource.RLIMIT_MEMLOCK, 64 << 10):
        pinner = attachment.services.pinner()
        with pytest.raises(PinLimit, match="RLIMIT_MEMLOCK is 65536"):
            pinner.pin(host, 256)
        assert pinner.pages == 0
        pinner.pin(host, 4)
        pinner.unpin(host, 4)


@contextlib.contextmanager
def limited(what, value):
    before = resource.getrlimit(what)
    resource.setrlimit(what, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


@contextlib.contextmanager
def dropped_capability():
    """CAP_IPC_LOCK out of this thread's effective set."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    saved = list(data)
    data[0] &= ~(1 << 14)
    assert libc.capset(header, data) == 0
    try:
        yield
    finally:
        data[:] = saved
        assert libc.capset(header, data) == 0


def nested_paging():
    """Whether KVM has second-level tables to fill: the kernel must know how (6.11), and the processor have them."""
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    places = [Path(f"/sys/module/{name}") for name in ("kvm_amd/parameters/npt", "kvm_intel/parameters/ept")]
    return release >= (6, 11) and any(place.exists() and place.read_text()[0] in "Y1" for place in places)


def test_prefault(machine):
    def populated():
        return os.fstat(machine.ram.main.descriptor).st_blocks * 512

    before = populated()
    if not nested_paging():
        with pytest.raises(NotSupported, match=r"6\.11"):
            machine.prefault(0x10_0000, 0x10_0000)
        assert populated() == before
        return
    machine.prefault(0x10_0000, 0x10_0000)
    assert populated() >= before + 0x10_0000, "an entry leads to a page, so there is one"
    machine.prefault(0x10_0000, 0x10_0000)
    with pytest.raises(HypervisorError, match=r"KVM_PRE_FAULT_MEMORY.*no memory of the machine") as caught:
        machine.prefault(0x8000_0000, 0x1000)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(HypervisorError, match=r"KVM_PRE_FAULT_MEMORY.*whole pages"):
        machine.prefault(0x10_0010, 0x1000)
