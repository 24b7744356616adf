"""Guests that do what no sane one does: the machine goes on, and the devices see what a PC's would."""

import contextlib
import errno
import gc
import itertools
import os
import random
import threading
from pathlib import Path

import pytest
from umdev.bus import HostBridge
from umdev.device import Block, Device, MemoryBar, PciId, Window
from umdev.errors import HypervisorError, InvalidArgument
from umdev_kvm import Machine, OutcomeKind, Posted
from umdev_kvm.vm import failure
from umdev_testkit.payloads import assemble

pytestmark = pytest.mark.kvm

ECAM = 0xB0000000
CONFIG = ECAM + (1 << 15)
COMMAND = CONFIG + 4
BARS = CONFIG + 0x10


def open_things():
    gc.collect()  # what earlier tests left
    names = {entry.name for entry in Path("/proc/self/fd").iterdir()}
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if "kvm" in line or "memfd" in line]
    return len(names), len(maps)


def test_a_doorbell_is_heard_before_its_bar_goes(run, sample):
    count = 200
    source = (
        f"mov ecx, {count}\nagain: mov dword ptr [bar0 + 0x14], 1\n mov word ptr [{COMMAND:#x}], 0\n"
        f"mov word ptr [{COMMAND:#x}], 7\n loop again\n exit 1"
    )
    assert run(source, limit=60) == 1
    assert sample.log == [("every", 0)] * count


def test_a_doorbell_is_heard_before_the_run_ends(run, sample):
    run("mov dword ptr [bar0 + 0x14], 1\n exit 0")
    assert sample.log == [("every", 0)]


def test_a_string_of_stores_to_the_exit_port_ends_with_the_first(run):
    assert run("jmp go\nbytes: .byte 5, 6, 7\ngo: mov esi, offset bytes\n mov ecx, 3\n mov dx, 0xf4\n rep outsb") == 5


def test_a_string_of_stores_to_configuration_space_is_followed(run, plugged):
    source = (
        f"jmp go\n.balign 4\nplaces: .long 0xd0000000, 0xd1000000\ngo: mov dx, 0xcf8\n mov eax, {0x80000810:#x}\n"
        "out dx, eax\n mov esi, offset places\n mov ecx, 2\n mov dx, 0xcfc\n rep outsd\n"
        "mov eax, [0xd1000000]\n out 0xf4, eax"
    )
    assert run(source) == 0x5A3B1E


def test_no_message_goes_to_memory(run, plugged, sample):
    """KVM would make an interrupt of it: vector 0x50 of processor 0, whatever else the address says."""
    from .test_routes import HANDLER_EXIT, SETUP, TABLE, msix

    table = sample.config["msix.table"] & ~7
    for address in (0x9000, 0xFED00000, 0):
        source = (
            f"{SETUP} main: {msix(sample, 1, 0x50)} mov dword ptr [bar3 + {table + 16}], {address:#x}\n sti\n"
            "mov dword ptr [bar0 + 0x30], 1\n mov ecx, 20000\nspin: loop spin\n exit 0x66\n"
            f"{HANDLER_EXIT}{TABLE}"
        )
        assert run(source) == 0x66
        plugged.reset()
        plugged.firmware.enable(1)


def test_two_processors_write_one_vector(plugged, sample, monkeypatch):
    """One writes the address and the other the data: the route must be what the table says in the end."""
    table = sample.config["msix.table"] & ~7
    native = plugged.bridge.functions[0].attachment.native
    for offset, word in ((0, 0xFEE00000), (4, 0), (8, 0x40), (12, 0)):
        plugged.bridge.write_vector(1, 3, table + offset, word.to_bytes(4, "little"))
    write, held, let_go = native.write, threading.Event(), threading.Event()

    def slow(region, offset, data, **options):
        if offset == table:
            held.set()
            let_go.wait(0.5)
        return write(region, offset, data, **options)

    monkeypatch.setattr(native, "write", slow)
    bridge = plugged.bridge
    first = threading.Thread(target=bridge.write_vector, args=(1, 3, table, (0xFEE01000).to_bytes(4, "little")))
    second = threading.Thread(target=bridge.write_vector, args=(1, 3, table + 8, (0x41).to_bytes(4, "little")))
    first.start()
    assert held.wait(10)
    second.start()
    second.join(0.2)
    let_go.set()
    first.join(10)
    second.join(10)
    (route,) = plugged.bridge._routes._routes.values()
    assert (route.address, route.data) == (0xFEE01000, 0x41)


def test_more_messages_than_the_kernel_has_routes_end_no_machine(run, plugged, sample, monkeypatch):
    from .test_routes import msix

    monkeypatch.setattr(plugged.bridge._routes, "_limit", 25)  # one
    assert run(f"{''.join(msix(sample, entry, 0x50 + entry) for entry in range(3))} exit 5") == 5
    assert plugged.counters["refusals"] == 2 * 4, "each of the four words would have made a route"
    assert [route.data for route in plugged.bridge._routes._routes.values()] == [0x50]
    table = sample.config["msix.table"] & ~7
    assert sample.native.read(3, table + 2 * 16 + 8, 4) == b"\x52\0\0\0", "the table has it all the same"


def test_a_message_that_the_kernel_refuses_keeps_no_other_one_back(plugged, sample, monkeypatch):
    table = sample.config["msix.table"] & ~7
    vm, routes = plugged.vm, plugged.bridge._routes._routes

    def write(vector, word, value):
        plugged.bridge.write_vector(1, 3, table + 16 * vector + 4 * word, value.to_bytes(4, "little"))

    for vector in (0, 1):
        for word, value in ((0, 0xFEE00000), (1, 0), (2, 0x40 + vector), (3, 0)):
            write(vector, word, value)
    publish, published = vm.set_messages, []

    def refuse(messages):
        if any(data == 0x66 for _, data, _ in messages):
            raise failure("KVM_SET_GSI_ROUTING", -errno.EINVAL)
        publish(messages)
        published[:] = [data for _, data, _ in messages]

    monkeypatch.setattr(vm, "set_messages", refuse)
    write(0, 2, 0x66)
    assert plugged.counters["refusals"] == 1
    assert published == [0x41], "it leads nowhere"
    write(1, 2, 0x51)
    assert published == [0x51]
    write(0, 2, 0x50)
    assert sorted(published) == [0x50, 0x51]
    assert plugged.counters["refusals"] == 1
    assert len(routes) == 2


def test_a_device_that_can_not_be_plugged_leaves_nothing(machine, sample, monkeypatch):
    made = []

    def few():
        if len(made) == 1:
            raise OSError(errno.EMFILE, "too many open files")
        made.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        return made[-1]

    before = open_things()
    with monkeypatch.context() as patch:
        patch.setattr("umdev_kvm.interrupts._eventfd", few)
        with pytest.raises(OSError, match="too many"):
            machine.plug(sample)
    assert open_things() == before
    assert machine.bridge.functions == []
    assert machine.plug(sample) == 1


class Shared(Block["Wide"]):
    window = Window(0, 0x10000)


class Wide(Device):
    pci = PciId(vendor=0x1234, device=0x5A3C, class_code=0x00FF00)
    bar0 = MemoryBar(0, Shared, size=0x10000, width=64)


def test_memory_comes_where_a_bar_is(make_machine):
    with Wide() as wide:
        machine = make_machine(memory=1 << 20)
        machine.plug(wide)
        config = machine.bridge.functions[0].attachment.native
        config.write(7, 0x10, (1 << 32).to_bytes(8, "little"))
        machine.firmware.enable(1)
        assert [p.address for p in machine.bridge.placements] == [1 << 32]
        assert machine.add_memory(1 << 20) == 1 << 32
        assert machine.bridge.placements == []
        assert machine.bridge.bad_placements == 1
        assert [s.length for s in machine.slots.between(1 << 32, 1 << 33)] == [1 << 20]
        machine.unplug(1)


def test_memory_that_can_not_be_added_leaves_nothing(make_machine, monkeypatch):
    machine = make_machine(memory=1 << 20)
    monkeypatch.setattr(machine.slots, "limit", len(machine.slots.slots))
    with pytest.raises(Exception, match="memory slots"):
        machine.add_memory(1 << 20)
    monkeypatch.undo()
    assert [part.guest for part in machine.ram.parts if part.guest >= 1 << 32] == []
    settle, told = machine.bridge.settle, []

    def fail_once():
        told.append(True)
        if len(told) == 1:
            raise failure("KVM_SET_USER_MEMORY_REGION", -errno.ENOMEM)
        settle()

    monkeypatch.setattr(machine.bridge, "settle", fail_once)
    with pytest.raises(HypervisorError, match="no memory for its page tables"):
        machine.add_memory(1 << 20)
    assert [part.guest for part in machine.ram.parts if part.guest >= 1 << 32] == []
    assert machine.add_memory(1 << 20) == 1 << 32


@pytest.mark.parametrize("zone", [Posted(0, 0xFFC, 8), Posted(1, 0, 4), Posted(5, 0, 4), Posted(0, 0, 0)])
def test_stores_can_be_posted_to_memory_bars_only(machine, sample, zone):
    with pytest.raises(InvalidArgument, match="memory BAR"):
        machine.plug(sample, posted=(zone,))
    assert sample.attachment is None


def test_accesses_of_all_sizes_everywhere(run, plugged, sample):
    """Every size at every edge, aligned or not: a defined answer, and the machine goes on."""
    chance = random.Random(3)
    starts = [plugged.firmware.address(1, bar) for bar in (0, 2, 3)]
    edges = [start + size for start, size in zip(starts, (0x1000, 0x10000, 0x1000), strict=True)]
    memory = [*starts, *edges, starts[1] + 0x4000, ECAM, CONFIG, CONFIG + 0x1000, ECAM + (1 << 20), 0xFEE00000]
    ports = [0x60, 0xF4, 0x3F8, 0x400, 0x600, 0x610, 0xCF8, 0xCFC, 0xD00, 0xFFFF, plugged.firmware.address(1, 5)]
    for io, write in itertools.product((False, True), (False, True)):
        for _ in range(4000):
            address = max(0, chance.choice(ports if io else memory) + chance.randrange(-9, 17))
            length = chance.choice((1, 2, 4) if io else (1, 2, 3, 4, 5, 6, 7, 8))
            data = bytearray(chance.randbytes(length))
            decoded, changed = plugged.vm.access(address, data, io=io, write=write)
            if not write and not decoded:
                assert data == b"\xff" * length
            if changed:
                plugged.bridge.synchronise()
    plugged.reset()
    plugged.firmware.enable(1)
    assert run("mov eax, [bar0]\n out 0xf4, eax") == 0x5A3B1E


def test_the_data_port_without_the_enable_bit(run):
    source = "mov dx, 0xcf8\n mov eax, 0x800\n out dx, eax\n mov dx, 0xcfc\n "
    assert run(source + "in eax, dx\n out 0xf4, eax") == 0xFFFFFFFF
    assert run(source + f"mov eax, 0\n out dx, eax\n mov eax, [{CONFIG:#x}]\n out 0xf4, eax") == 0x5A3B1234
    other_bus = "mov dx, 0xcf8\n mov eax, 0x80010800\n out dx, eax\n mov dx, 0xcfc\n in eax, dx\n out 0xf4, eax"
    assert run(other_bus) == 0xFFFFFFFF
    assert run(f"mov eax, [{ECAM + (1 << 20):#x}]\n out 0xf4, eax") == 0xFFFFFFFF, "bus 1"


def test_bars_move_while_another_processor_stores(make_machine, sample, caplog):
    """One moves BARs over memory, controllers and each other; the other one stores wherever they may be."""
    machine = make_machine(memory=4 << 20, vcpus=2)
    machine.firmware.enable(machine.plug(sample, posted=(Posted(0, 0x20, 8),)))
    bar0, bar2, bar3 = (machine.firmware.address(1, bar) for bar in (0, 2, 3))
    places = [0x100000, 0xFEE00000, 0xFEC00000, ECAM, bar2, bar2 + 0x4000, bar3, 0xD0000000, 0xFFFFF000]
    moves = "".join(
        f"mov dword ptr [{BARS + 4 * bar:#x}], {place:#x}\n" for place in places for bar in (0, 2, 3)
    ) + "".join(f"mov dword ptr [{BARS + 4 * b:#x}], {a:#x}\n" for b, a in ((0, bar0), (2, bar2), (3, bar3)))
    stores = "".join(
        f"mov [{start + offset:#x}], ebx\n"
        for start, offset in ((bar0, 4), (bar0, 0x10), (bar0, 0x14), (bar0, 0x20), (bar2, 0x4000), (bar3, 0x10))
    )
    stores += f"mov [0xd0000014], ebx\n mov [0x100020], ebx\n mov eax, [{bar2 + 0x4000:#x}]\n"
    machine.load(
        assemble(
            f"test edi, edi\n jnz other\n mov ecx, 30\nagain:\n{moves} dec ecx\n jnz again\n mov byte ptr [0x9000], 1\n"
            f"park: jmp park\nother:\n{stores} cmp byte ptr [0x9000], 0\n je other\n exit 0x55"
        )
    )
    outcome = machine.run(60)
    assert (outcome.kind, outcome.value) == (OutcomeKind.EXIT, 0x55), str(outcome)
    assert machine.counters["bad_placements"] > HostBridge.WARNINGS
    assert len([record for record in caplog.records if "is not mapped" in record.message]) == HostBridge.WARNINGS
    assert {p.region: p.address for p in machine.bridge.placements if not p.io} == {0: bar0, 2: bar2, 3: bar3}
    sample.log.clear()
    machine.load(assemble(f"mov dword ptr [{bar0 + 0x14:#x}], 1\n exit 1"))
    assert machine.run(10).value == 1
    assert sample.log == [("every", 0)] or sample.log == [("every", 0)] * machine.vcpus


def test_keys_and_batches_while_the_machine_is_reset(plugged):
    """Both reach for kernel objects that a reset replaces."""
    over, failures = threading.Event(), []

    def busy(work):
        try:
            while not over.is_set():
                work()
        except Exception as error:  # noqa: BLE001 - asserted on below
            failures.append(error)

    def change():
        slot = plugged.slots.slots[0]
        with plugged.slots.batch() as batch:
            batch.replace([slot], [(slot.guest, slot.length, slot.host, slot.flags)])

    threads = [threading.Thread(target=busy, args=(work,)) for work in (lambda: plugged.send(b"key"), change)]
    for thread in threads:
        thread.start()
    for _ in range(30):
        plugged.reset()
    over.set()
    for thread in threads:
        thread.join(20)
    assert failures == []
    assert plugged.slots.slots[0].guest == 0


def test_a_console_that_nobody_reads_delays_no_limit(make_machine):
    end, full = os.pipe()
    os.set_blocking(full, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(full, bytes(4096))
    os.set_blocking(full, True)
    machine = make_machine(memory=1 << 20, console=full)
    machine.load(assemble("mov dx, 0x3f8\nagain: out dx, al\n jmp again"))
    assert machine.run(0.5).kind is OutcomeKind.TIME_LIMIT
    machine.close()
    os.close(end)
    os.close(full)


def test_many_machines_leave_nothing(make_machine, sample):
    def life(request):
        with Machine(memory=1 << 20, vcpus=2) as machine:
            machine.firmware.enable(machine.plug(sample, posted=(Posted(0, 0x20, 8),)))
            machine.load(assemble("exit 1"))
            assert machine.run(10).value == 1

    make_machine(memory=1 << 20).close()  # skips without KVM
    life(0)
    before = open_things()
    for number in range(20):
        life(number)
        with pytest.raises(InvalidArgument):
            Machine(memory=4096)
    assert open_things() == before
