"""Write-protection of a machine's own memory, in all three modes, with two processors that store."""

import subprocess
import sys
import threading
import time
from collections import defaultdict

import pytest
from umdev.device import Block, Device, Iova, MemoryBar, PciId, ProtectMode, Register, State
from umdev.errors import HypervisorError, InvalidArgument, NotMapped, ProtectError, StateError
from umdev_kvm import OutcomeKind
from umdev_kvm.emulate import RUNS_MAX
from umdev_testkit.payloads import assemble

pytestmark = pytest.mark.kvm

PAGE = 4096
PAGES = 0x100_0000
LOGS = 0x200_0000
MEMORY = 40 << 20
ALL = [Iova(PAGES + number * PAGE) for number in range(4096)]

# Each processor counts its stores, and stores the number to a word of its own in some page; the log beside has the last
# number of each page. A page is loaded from as well: what is there, its address, nobody changes.
STORM = f"""
    imul esi, edi, 0x1e3779b1
    inc esi
    xor ebx, ebx
again:
    imul esi, esi, 1664525
    add esi, 1013904223
    mov eax, esi
    shr eax, 8
    and eax, {{pages}} - 1
    inc ebx
    lea ecx, [eax * 2 + edi]
    mov [{LOGS:#x} + ecx * 4], ebx
    shl eax, 12
    mov [{PAGES:#x} + eax + edi * 8], ebx
    lea ecx, [{PAGES:#x} + eax]
    cmp [ecx + 128], ecx
    jne loaded_something_else
    cmp ebx, {{stores}}
    jne again
    mov byte ptr [0x9000 + edi], 1
    test edi, edi
    jnz park
wait:
    cmp word ptr [0x9000], 0x0101
    jne wait
    mov word ptr [0x9000], 0
    exit 5
park:
    jmp park
loaded_something_else:
    exit 6
"""


class Registers(Block["Watcher"]):
    """BAR 0."""

    ident = Register(0x00, reset=1)


class Watcher(Device):
    """Arms pages and keeps what it is told."""

    pci = PciId(vendor=0x1AF4, device=0x10FE, class_code=0xFF0000)
    bar0 = MemoryBar(0, Registers, size=4096)
    stores: State[list] = State(list, save=False)
    armed: State[dict] = State(dict, save=False)
    shadow: State[dict] = State(dict, save=False)
    faults: State[dict] = State(lambda: defaultdict(int), save=False)

    def emulate(self, pages, *, apply=True):
        def stored(write):
            self.stores.append((write.address, write.value, write.width))
            if apply:
                self.memory.write(write.address, write.value.to_bytes(write.width, "little"))

        self.memory.protect(ProtectMode.EMULATE, pages, stored)

    def trap(self, pages):
        """Device lock held: no notification comes between arming and looking."""
        self.memory.protect(ProtectMode.TRAP, pages, self.trapped)
        for page in pages:
            self.armed[page] = self.memory.read(page, PAGE)
            self.faults["arms"] += 1

    def trapped(self, write):
        page = write.address
        self.faults["events"] += 1
        before = self.armed.pop(page, None)
        if before is None:
            self.faults["unexpected"] += 1
        elif self.memory.read(page, PAGE) != before:
            self.faults["early"] += 1
        self.after(0, lambda: self.trap([page]))

    def collect(self):
        changed = list(self.memory.collect())
        for page in changed:
            self.shadow[page] = self.memory.read(page, PAGE)
        return changed


@pytest.fixture
def watcher():
    with Watcher() as device:
        yield device


@pytest.fixture
def storm(userfault, watcher, make_machine):  # in this order: the machine ends first
    """`storm(pages, stores)`: run it on a machine with two processors and the watcher; the machine."""
    machine = make_machine(memory=MEMORY, vcpus=2)
    machine.firmware.enable(machine.plug(watcher))
    for page in ALL:
        machine.ram.write(page + 128, page.to_bytes(4, "little"))

    def run(pages, stores, limit=300):
        machine.load(assemble(STORM.format(pages=pages, stores=stores)))
        outcome = machine.run(limit)
        assert outcome.kind is OutcomeKind.EXIT, str(outcome)
        assert outcome.value == 5

    run.machine = machine
    return run


def word(machine, address):
    return int.from_bytes(machine.ram.read(address, 4), "little")


def check_log(machine, pages, processors=(0, 1)):
    """Memory is what the guest's log says."""
    for page in range(pages):
        for processor in processors:
            assert word(machine, PAGES + page * PAGE + processor * 8) == word(
                machine, LOGS + (page * 2 + processor) * 4
            ), (page, processor)


def test_emulate_gives_every_store_once_in_order_with_its_value(storm, watcher):
    watcher.emulate(ALL)
    assert len(storm.machine.slots.slots) < 8  # neighbours share a slot
    stores = 50_000
    storm(4096, stores)
    assert watcher.memory.read(PAGES + 64, 8) == bytes(8)
    by_processor = defaultdict(list)
    for address, value, width in watcher.stores:
        assert width == 4
        by_processor[(address % PAGE) // 8].append((address, value))
    for processor in (0, 1):
        assert [value for _, value in by_processor[processor]] == list(range(1, stores + 1))
    assert storm.machine.protection.emulator.stores == 2 * stores
    check_log(storm.machine, 4096)


@pytest.mark.parametrize("instruction", ["fst dword ptr [{page}]", "fxsave [{page}]", "sgdt [{page}]"])
def test_a_store_that_kvm_can_not_emulate_is_neither_told_nor_lands(watcher, make_machine, instruction):
    """The run ends with an error, or by its time limit; both say where."""
    machine = make_machine(memory=MEMORY)
    machine.firmware.enable(machine.plug(watcher))
    watcher.emulate(ALL[:1])
    before = machine.ram.read(PAGES, PAGE)
    store = instruction.format(page=hex(PAGES))
    machine.load(
        assemble(
            "mov eax, cr4\n or eax, 0x200\n mov cr4, eax\n fninit\n call next\n next: pop eax\n add eax, after - next\n"
            f"mov [0x9004], eax\n mov byte ptr [0x9000], 1\n after: {store}\n exit 1"
        )
    )
    where = None
    while where is None:
        reached = machine.ram.read(0x9000, 1)[0]  # or the processor still has to wait for its turn
        try:
            outcome = machine.run(0.5)
        except HypervisorError as error:
            where = str(error)
        else:
            assert outcome.kind is OutcomeKind.TIME_LIMIT, str(outcome)
            where = outcome.where if reached else None
    assert f"rip={word(machine, 0x9004):#x} " in where
    assert watcher.stores == []
    assert machine.ram.read(PAGES, PAGE) == before


def test_what_a_forked_child_gives_up_stays_emulated():
    script = """
import os, signal, sys, warnings
from umdev.device import Block, Device, Iova, MemoryBar, PciId, ProtectMode, Register
from umdev.errors import StateError
from umdev_kvm import Machine
from umdev_testkit.payloads import assemble

class Registers(Block["Forks"]):
    ident = Register(0)

class Forks(Device):
    pci = PciId(vendor=0x1AF4, device=0x10FE, class_code=0xFF0000)
    bar0 = MemoryBar(0, Registers, size=4096)

warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads is what this is about
pages, told = [Iova(0x20_0000), Iova(0x20_2000)], []
with Forks() as device, Machine(memory=4 << 20) as machine:
    machine.firmware.enable(machine.plug(device))
    device.memory.protect(ProtectMode.EMULATE, pages, lambda write: told.append(write.value))
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        device.memory.unprotect(ProtectMode.EMULATE, pages[:1])
        try:
            device.memory.protect(ProtectMode.EMULATE, pages, print)
        except StateError as error:
            print(error, flush=True)
        os._exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    machine.load(assemble("mov dword ptr [0x200000], 8\\n mov dword ptr [0x202000], 9\\n exit 1"))
    machine.run(60)
    print(told)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, check=False)
    refused = "the machine belongs to the process that forked this one: make another one here"
    assert done.stdout.splitlines() == [refused, "7", "[8, 9]"], done


def test_emulate_drops_what_the_model_does_not_apply_and_leaves_neighbours_alone(storm, watcher):
    machine = storm.machine
    machine.ram.write(PAGES + 3 * PAGE, b"old.")
    odd = ALL[1:64:2]
    watcher.emulate(odd, apply=False)
    assert len(machine.slots.slots) >= 64
    storm(64, 500)
    assert {address & ~(PAGE - 1) for address, _, _ in watcher.stores} == set(odd)
    for number in range(64):
        for processor in (0, 1):
            expected = 0 if number % 2 else word(machine, LOGS + (number * 2 + processor) * 4)
            held = word(machine, PAGES + number * PAGE + processor * 8)
            assert held == (int.from_bytes(b"old.", "little") if (number, processor) == (3, 0) else expected)
    before = len(watcher.stores)
    watcher.memory.unprotect(ProtectMode.EMULATE, odd)
    assert len([slot for slot in machine.slots.slots if slot.guest < MEMORY]) <= 2  # merged again
    storm(64, 500)
    check_log(machine, 64)
    assert len(watcher.stores) == before


def test_a_store_whose_model_fails_lands_and_is_counted(storm, watcher):
    def fail(write):
        raise RuntimeError("on purpose")

    machine = storm.machine
    watcher.memory.protect(ProtectMode.EMULATE, ALL[:1], fail)
    code = f"mov dword ptr [{PAGES:#x}], 0x11223344\n mov byte ptr [{PAGES + 2:#x}], 5\n exit 1\n"
    machine.load(assemble(f"test edi, edi\n jnz park\n {code}park: jmp park"))
    assert machine.run(20).value == 1
    assert word(machine, PAGES) == 0x11053344
    assert watcher.native.counters["faulted"] == 2
    assert str(watcher.native.last_fault) == "on purpose"


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("mov byte ptr [{0}], 0x5a", [(0, 0x5A, 1)]),
        ("mov word ptr [{0} + 2], 0x1234", [(2, 0x1234, 2)]),
        ("mov eax, 0x89abcdef\n mov [{0} + 5], eax", [(5, 0x89ABCDEF, 4)]),
        ("add dword ptr [{0} + 8], 7", [(8, 0x0807_0605 + 7, 4)]),
        ("mov eax, 0x11223344\n mov [{0} + 4094], eax", [(4094, 0x3344, 2)]),
        ("mov eax, 0x11223344\n mov [{0} - 2], eax", [(0, 0x1122, 2)]),
        ("mov edi, {0}\n mov ecx, 3\n mov eax, 9\n cld\n rep stosd", [(0, 9, 4), (4, 9, 4), (8, 9, 4)]),
    ],
)
def test_stores_of_every_size_come_as_they_were_made(storm, watcher, instruction, expected):
    machine = storm.machine
    machine.ram.write(PAGES, bytes([0, 0, 0, 0, 0, 0, 0, 0, 5, 6, 7, 8]))
    watcher.emulate(ALL[:1])
    machine.load(assemble("test edi, edi\n jnz park\n" + instruction.format(hex(PAGES)) + "\n exit 1\npark: jmp park"))
    assert machine.run(20).value == 1
    assert [(address - PAGES, value, width) for address, value, width in watcher.stores] == expected
    assert word(machine, PAGES + PAGE) == (0x1122 if "4094" in instruction else 0)


def test_pages_come_and_go_while_the_guest_stores(storm, watcher):
    """No store is lost when a page turns into ordinary memory under it, or back."""
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            watcher.emulate(ALL[:16:2])
            watcher.memory.unprotect(ProtectMode.EMULATE, ALL[:16])

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        storm(16, 5000)
    finally:
        stop.set()
        thread.join()
    check_log(storm.machine, 16)


def test_two_devices_emulate_one_page(storm, watcher):
    machine = storm.machine
    with Watcher() as other:
        machine.firmware.enable(machine.plug(other))
        watcher.emulate(ALL[:4])
        other.emulate(ALL[2:6], apply=False)
        storm(8, 200)
        machine.unplug(2)
        for processor in (0, 1):  # each in order; between them the devices may differ
            mine = [store for store in watcher.stores if store[0] % PAGE // 8 == processor and store[0] >= ALL[2]]
            theirs = [store for store in other.stores if store[0] % PAGE // 8 == processor and store[0] < ALL[4]]
            assert mine == theirs != []
        watcher.stores.clear()
        storm(8, 200)
        assert {store[0] // PAGE for store in watcher.stores} == {page // PAGE for page in ALL[:4]}


def test_a_reset_keeps_pages_protected_and_added_memory_can_be(storm, watcher):
    machine = storm.machine
    watcher.emulate(ALL[:8])
    storm(8, 100)
    machine.reset()
    machine.firmware.enable(1)
    watcher.stores.clear()
    storm(8, 100)
    assert len(watcher.stores) == 200
    added = machine.add_memory(1 << 20)
    watcher.emulate([Iova(added)])
    slot = machine.slots.find(added)
    assert (slot.length, slot.flags) == (PAGE, 2)
    watcher.trap([Iova(added + PAGE)])
    assert watcher.attachment.services.mechanisms["protect[emulate]"] == "read-only memory slots: EMULATE"


def test_what_can_not_be_protected_is_named(storm, watcher):
    machine = storm.machine
    slots = machine.slots.slots
    with pytest.raises(InvalidArgument, match="not a multiple"):
        watcher.emulate([Iova(PAGES + 1)])
    with pytest.raises(NotMapped, match="is in no map"):
        watcher.emulate([ALL[0], Iova(0xFEC0_0000)])
    assert machine.slots.slots == slots
    with pytest.raises(InvalidArgument, match="needs a function"):
        watcher.memory.protect(ProtectMode.EMULATE, ALL[:1])
    with pytest.raises(StateError, match="collect is for TRACK"):
        watcher.attachment.services.protector(ProtectMode.EMULATE).collect()
    for mode in (ProtectMode.TRAP, ProtectMode.TRACK):
        with pytest.raises(NotMapped, match="is in no map"):
            watcher.memory.protect(mode, [ALL[0], Iova(0xFEC0_0000)], lambda _: None)
        assert watcher.attachment.services.protector(mode).pages == 0


def test_more_isolated_pages_than_slots_is_a_named_error(watcher, make_machine):
    machine = make_machine(memory=128 << 20)
    machine.firmware.enable(machine.plug(watcher))
    slots = len(machine.slots.slots)
    scattered = [Iova((2 << 20) + number * 2 * PAGE) for number in range(RUNS_MAX + 1)]
    with pytest.raises(ProtectError, match="12001 isolated pages"):
        watcher.emulate(scattered)
    assert len(machine.slots.slots) == slots
    watcher.emulate(scattered[:64])
    with pytest.raises(ProtectError, match="12001 isolated pages"):
        watcher.emulate(scattered[64:])
    watcher.memory.unprotect(ProtectMode.EMULATE, scattered)
    assert len(machine.slots.slots) == slots


def test_trap_tells_before_the_store_lands_and_of_no_neighbour(storm, watcher):
    odd = ALL[1:128:2]
    with watcher.locked():
        watcher.trap(odd)
    storm(128, 3000)
    with watcher.locked():
        assert watcher.faults["events"] >= 64
        assert watcher.faults["early"] == watcher.faults["unexpected"] == 0
        for page, content in watcher.armed.items():
            assert watcher.memory.read(page, PAGE) == content
    check_log(storm.machine, 128)
    watcher.memory.unprotect(ProtectMode.TRAP, odd)


@pytest.mark.parametrize("beside", [False, True])
def test_track_misses_nothing(storm, watcher, beside):
    watcher.memory.protect(ProtectMode.TRACK, ALL)
    for page in ALL:
        watcher.shadow[page] = watcher.memory.read(page, PAGE)
    if beside:
        with watcher.locked():
            watcher.trap(ALL[:4])
    elif "asynchronous" not in watcher.attachment.services.mechanisms["protect[track]"]:
        pytest.fail(watcher.attachment.services.mechanisms["protect[track]"])
    stop = threading.Event()

    def look():
        while not stop.is_set():
            watcher.collect()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        storm(4096, 4000)
    finally:
        stop.set()
        thread.join()
    watcher.collect()
    for page, content in watcher.shadow.items():
        assert watcher.memory.read(page, PAGE) == content
    assert watcher.collect() == []
    check_log(storm.machine, 4096)


def test_slots_that_wait_for_a_processor_that_waits_for_the_device_lock_are_a_named_error(storm, watcher):
    machine = storm.machine
    watcher.memory.protect(ProtectMode.TRAP, ALL[:1], lambda _: None)
    machine.load(assemble(f"test edi, edi\n jnz park\n mov byte ptr [{PAGES:#x}], 1\n exit 1\npark: jmp park"))
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(machine.run(20).value))
    with watcher.locked():
        thread.start()
        deadline = time.monotonic() + 10
        while not machine.protection.guest.faults:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        said = "TRAP and EMULATE at once"
        try:
            watcher.emulate(ALL[1:2])  # where signals end a processor's wait, it just works
        except StateError as error:
            said = str(error)
        assert "TRAP" in said
    thread.join()
    assert outcomes == [1]
    watcher.emulate(ALL[1:2])


def test_emulate_loses_nothing_while_bars_move(watcher, make_machine):
    """One processor stores to emulated pages; the other one moves the watcher's BAR about."""
    machine = make_machine(memory=MEMORY, vcpus=2)
    machine.firmware.enable(machine.plug(watcher))
    watcher.emulate(ALL[:4])
    count = 3000
    bar = 0xB000_8010
    moves = "".join(f"mov dword ptr [{bar:#x}], {place:#x}\n" for place in (0xD0000000, PAGES, 0xFEE00000, 0xC0000000))
    machine.load(
        assemble(
            f"test edi, edi\n jnz mover\n mov ecx, {count}\nagain: mov eax, ecx\n and eax, 3\n shl eax, 12\n"
            f"mov [{PAGES:#x} + eax], ecx\n loop again\n exit 5\nmover: {moves} jmp mover"
        )
    )
    assert machine.run(120).value == 5
    assert [value for _, value, _ in watcher.stores] == list(range(count, 0, -1))
    assert machine.counters["bad_placements"] > 0
