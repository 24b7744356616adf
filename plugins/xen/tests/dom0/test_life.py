"""Slots, BARs that move, pass-through, mappings, and the end of a domain."""

import gc
import subprocess
import threading
from pathlib import Path

import pytest
from umdev.errors import Conflict, HypervisorError, NotFound, NotMapped, NotSupported, StateError
from umdev_testkit.xen_payloads import COUNTS, payload
from umdev_xen import Domain, DomainType

pytestmark = pytest.mark.xen
SECONDS = 200.0  # for what takes milliseconds on an idle machine
BAR0, BAR2, BAR3 = 0xF000_0000, 0xF020_0000, 0xF030_0000
GIVE_BACK = (  # the page at 3 MiB
    # The hypercall page's address goes to MSR 0x40000000 (xen/arch-x86/cpuid.h: leaf 0x40000002, EBX).
    "mov ecx, 0x40000000\nmov eax, 0x20000\nxor edx, edx\nwrmsr\n"
    # struct xen_memory_reservation of a 32-bit domain: extents, count, order, flags, domid (DOMID_SELF).
    "mov dword ptr [0x21000], 0x21100\nmov dword ptr [0x21004], 1\nmov dword ptr [0x21008], 0\n"
    "mov dword ptr [0x2100c], 0\nmov dword ptr [0x21010], 0x7ff0\nmov dword ptr [0x21100], 0x300\n"
    "mov ebx, 1\nmov ecx, 0x21000\nmov eax, 0x20000 + 12 * 32\ncall eax\nmov [0x8000], eax\nexit 1\n"
)


def test_several_devices_and_bars_that_move(guest, domain, sample, results):
    from umdev_edu import Edu

    with Edu() as edu:
        first, second = domain.plug(sample), domain.plug(edu, slot=9)
        with pytest.raises(Conflict, match="slot 9"):
            domain.bridge.free_slot(9)
        guest.load(
            payload(
                f"config_write {first}, 0x10, {BAR0:#x}\nconfig_write {first}, 4, 2\n"
                f"config_write {second}, 0x10, {BAR2:#x}\nconfig_write {second}, 4, 2\n"
                f"mov eax, [{BAR0:#x}]\nresult 0\nmov eax, [{BAR2:#x}]\nresult 1\n"
                f"config_write {first}, 0x10, {BAR3:#x}\nmov eax, [{BAR3:#x}]\nresult 2\n"
                f"mov eax, [{BAR0:#x}]\nresult 3\n"
                f"config_write {first}, 4, 0\nmov eax, [{BAR3:#x}]\nresult 4\n"
                f"config_write {first}, 0x10, {BAR2 + 0x1000:#x}\nconfig_write {first}, 4, 2\n"
                f"mov eax, [{BAR2:#x}]\nresult 5\nexit 1\n"
                f"config_read {second}, 0\nresult 6\nexit 2\n"
            )
        )
        assert guest.run(SECONDS) == 1
        ones = 0xFFFFFFFF
        assert results(guest, 6) == [0x5A3B1E, 0x010000ED, 0x5A3B1E, ones, ones, 0x010000ED]
        assert [p.address for p in domain.bridge.placements] == [BAR2], "over another BAR it answers nothing"
        domain.unplug(9)
        with pytest.raises(NotFound, match="slot 9 is empty"):
            domain.unplug(9)
        assert guest.run(SECONDS) == 2
        assert results(guest, 7)[6] == ones, "nobody is there any more"
        assert edu.attachment is None


def test_msix_with_masks_and_pending_bits(guest, domain, sample, results):
    slot = domain.plug(sample)
    table, pba = (sample.config[f"msix.{name}"] & ~7 for name in ("table", "pba"))
    control = sample.config.registers["msix.control"][0] - 2
    guest.load(
        payload(
            f"config_write {slot}, 0x10, {BAR0:#x}\nconfig_write {slot}, 0x1c, {BAR3:#x}\nconfig_write {slot}, 4, 6\n"
            "interrupts_on\n"
            f"config_write {slot}, {control}, 0x80000000\nmov edi, {BAR3 + table + 16:#x}\n"
            "mov dword ptr [edi], 0xfee00000\nmov dword ptr [edi + 4], 0\nmov dword ptr [edi + 8], 0x23\n"
            f"mov dword ptr [{BAR0 + 0x30:#x}], 1\n"  # masked: it pends
            f"mov eax, [{BAR3 + pba:#x}]\nresult 0\nmov eax, [{COUNTS + 12:#x}]\nresult 1\n"
            f"mov dword ptr [edi + 12], 0\nwait_for {COUNTS + 12:#x}, 1\n"
            f"mov eax, [{BAR3 + pba:#x}]\nresult 2\nmov dword ptr [{BAR0 + 0x30:#x}], 1\n"
            f"wait_for {COUNTS + 12:#x}, 2\nexit 1\n"
        )
    )
    assert guest.run(SECONDS) == 1
    assert results(guest, 3) == [2, 0, 0]
    assert domain.counters["messages"] == 2


def test_messages_to_no_interrupt_are_lost_and_counted(domain, sample):
    slot = domain.plug(sample)
    with sample.locked():
        sample.config.write(4, b"\x06\x00")
        msi = sample.config.registers["msi.control"][0]
        sample.config.write(msi + 2, (0x1000).to_bytes(4, "little"))
        sample.config.write(msi, b"\x01\x00")
    domain.bridge.synchronise(slot)
    assert sample.interrupts.signal(0)
    assert domain.counters["lost"] == 1


def test_a_window_is_passed_through_and_follows_its_bar(guest, domain, sample, results):
    sample.bar2.window.view[0:4] = b"mine"
    slot = domain.plug(sample)
    assert "relocated" in sample.attachment.services.mechanisms["passthrough[2+0x4000]"]
    guest.load(
        payload(
            f"config_write {slot}, 0x18, {BAR2:#x}\nconfig_write {slot}, 4, 2\n"
            f"mov eax, [{BAR2 + 0x4000:#x}]\nresult 0\nmov dword ptr [{BAR2 + 0x4004:#x}], 0x12345678\nexit 1\n"
            f"mov eax, [{BAR2 + 0x4008:#x}]\nresult 1\n"
            f"config_write {slot}, 0x18, {BAR3:#x}\nmov eax, [{BAR3 + 0x4004:#x}]\nresult 2\n"
            f"mov eax, [{BAR2 + 0x4004:#x}]\nresult 3\nconfig_write {slot}, 4, 0\nmov eax, [{BAR3 + 0x4004:#x}]\n"
            "result 4\nexit 2\n"
        )
    )
    assert guest.run(SECONDS) == 1
    accesses = domain.counters["accesses"]
    assert results(guest, 1) == [int.from_bytes(b"mine", "little")]
    assert bytes(sample.bar2.window.view[4:8]) == b"\x78\x56\x34\x12"
    sample.bar2.window.view[8:12] = b"\x01\x02\x03\x04"
    assert guest.run(SECONDS) == 2
    assert results(guest, 5)[1:] == [0x04030201, 0x12345678, 0xFFFFFFFF, 0xFFFFFFFF]
    assert accesses <= 4, "no access to the window was a request"
    domain.unplug(slot)
    assert bytes(sample.bar2.window.view[0:12]) == bytes(12), "a lost client's device is reset"


def test_mappings_are_cached_evicted_pinned_and_flushed(make_guest, sample):
    guest = make_guest(memory=16 << 20)
    guest.write(0x123456, b"hello")
    with Domain(guest.domid, cache=4 << 20) as domain:
        domain.plug(sample)
        with sample.locked():
            sample.config.write(4, b"\x07\x00")
        memory = sample.memory
        mapper = domain.mapper(sample.attachment)
        assert memory.read(0x123456, 5) == b"hello"
        assert mapper.mapped == 1 << 20
        memory.write(0x123458, b"LL")
        assert guest.read(0x123456, 5) == b"heLLo"
        memory.pin(0x10_0000, 16)
        with memory.view(0x20_0000, 4096) as view:
            for number in range(16):
                memory.read(number << 20, 1)
            assert mapper.mapped <= 6 << 20, "the oldest go"
            kept = {mapping.iova for mapping in memory.mappings}
            assert {0x10_0000, 0x20_0000} <= kept, "what is pinned, and what is looked at, stays"
            assert bytes(view[:4]) == bytes(4)
        assert memory.read((16 << 20) - 1, 1) == b"\0"
        with pytest.raises(NotMapped):
            memory.read(16 << 20, 1)
        with pytest.raises(NotMapped):
            memory.read(1 << 50, 1)
        assert memory.read((1 << 20) - 2, 4) == bytes(4), "across two mappings"
        memory.unpin(0x10_0000, 16)


def test_memory_given_back_is_dropped(guest, domain, sample):
    """Ballooning: the hypercall is the domain's, the request to drop mappings is Xen's."""
    domain.plug(sample)
    with sample.locked():
        sample.config.write(4, b"\x07\x00")
    sample.memory.read(0x30_0000, 1)
    assert domain.mapper(sample.attachment).mapped
    guest.load(payload(GIVE_BACK))
    assert guest.run(SECONDS) == 1
    assert guest.read(0x8000, 4) == b"\x01\0\0\0", "one page given back"
    assert not domain.mapper(sample.attachment).mapped
    with pytest.raises(NotMapped):
        sample.memory.read(0x30_0000, 1)
    assert sample.memory.read(0x2F_F000, 1) == b"\0"


def test_what_a_model_raises_ends_neither_a_processor_nor_the_rest(guest, domain, sample, domains):
    """`sys.exit()` in `on_unmap`: it would end the processor's thread, and later the one that lets everything go."""
    from umdev_edu import Edu

    class Leaving(type(sample)):
        def on_unmap(self, mapping):
            raise SystemExit("on purpose")

    with Leaving() as first, Edu() as second:
        for device in (first, second):
            domain.plug(device)
            with device.locked():
                device.config.write(4, b"\x07\x00")
            device.memory.read(0x30_0000, 1)
        guest.load(payload(GIVE_BACK))
        assert guest.run(SECONDS) == 1, "the processor goes on"
        assert [domain.mapper(device.attachment).mapped for device in (first, second)] == [0, 0]
        for device in (first, second):
            device.memory.read(0x10_0000, 1)
        number = guest.domid
        guest.destroy()
        assert domain.wait(SECONDS)
        assert [first.attachment, second.attachment] == [None, None]
        assert number not in domains.domains(), "no zombie"


def test_a_handler_closes_nothing(guest, domain, sample):
    slot = domain.plug(sample)
    refused = []

    def hold():
        with pytest.raises(StateError, match=r"close\(\) waits for handlers, and this is one") as error:
            domain.close()
        refused.append(error)

    sample.hold = hold
    guest.load(
        payload(
            f"config_write {slot}, 0x10, {BAR0:#x}\nconfig_write {slot}, 4, 2\nmov dword ptr [{BAR0 + 0x44:#x}], 1\n"
            f"mov eax, [{BAR0:#x}]\nmov [0x8000], eax\nexit 1\n"
        )
    )
    assert guest.run(SECONDS) == 1
    assert len(refused) == 1
    assert guest.read(0x8000, 4) == b"\x1e\x3b\x5a\0", "and nothing has ended"


@pytest.mark.parametrize(
    ("error", "begun"), [(RuntimeError("can't start new thread"), False), (KeyboardInterrupt("now"), True)], ids=repr
)
def test_without_threads_nothing_is_left(make_guest, sample, monkeypatch, error, begun):
    guest = make_guest(vcpus=2)
    Domain(guest.domid).close()
    before = open_things()
    start = threading.Thread.start

    def fail(thread):
        last = thread.name.endswith("processor 1")
        if begun or not last:
            start(thread)
        if last:
            raise error

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        with pytest.raises(type(error), match=str(error)):
            Domain(guest.domid)
    assert open_things() == before
    with Domain(guest.domid) as domain:
        assert domain.plug(sample) == 1


def test_qemus_slots_are_left_alone(guest, sample, results):
    """Xen sends accesses to the device model that came last: QEMU's ISA bridge, slot 1, would vanish, or the device."""
    path = f"/libxl/{guest.domid}"
    subprocess.run(["xenstore-write", f"{path}/type", "hvm"], check=True)
    try:
        with Domain(guest.domid) as domain:
            assert domain.plug(sample) == 31
            guest.load(payload("config_read 31, 0\nresult 0\nconfig_read 1, 0\nresult 1\nexit 1\n"))
            assert guest.run(SECONDS) == 1
            assert results(guest, 2) == [0x5A3B1234, 0xFFFFFFFF]
    finally:
        subprocess.run(["xenstore-rm", path], check=True)


def test_intx_where_no_controller_is(make_guest):
    from umdev_mtty import Mtty1

    guest = make_guest(pvh=True)
    with Domain(guest.domid, intx=False, host_bridge=True) as domain, Mtty1() as card:
        assert domain.type is DomainType.PVH
        with pytest.raises(NotSupported, match=r"INTx alone.*MSI or MSI-X, use an HVM domain, or plug it polled"):
            domain.plug(card)
        assert card.attachment is None
        domain.plug(card, polled=True)
        domain.close()


def test_a_domain_that_is_not_there():
    with pytest.raises(HypervisorError, match="no such domain"):
        Domain(4242)


def test_one_domain_for_one_process(domain, make_guest):
    other = make_guest()
    with pytest.raises(Conflict, match=f"restricted to domain {domain.domid}"):
        Domain(other.domid)


def test_a_restricted_process_reaches_no_other_domain(domain, make_guest):
    from umdev_xen.memory import foreign_map, foreign_unmap

    other = make_guest()
    assert domain.restricted
    handles = domain.handles
    handles.domain = other.domid
    try:
        assert foreign_map(handles, [16]) is None
    finally:
        handles.domain = domain.domid
    address, errors = foreign_map(handles, [16])
    assert errors == [0]
    foreign_unmap(handles, address, 1)


def test_a_domain_gone_in_the_middle_of_a_request(guest, sample, domains):
    domain = Domain(guest.domid)
    number = guest.domid
    slot = domain.plug(sample)
    with sample.locked():
        sample.config.write(4, b"\x07\x00")
    sample.memory.read(0x10_0000, 1)
    inside, go = threading.Event(), threading.Event()

    def hold():
        inside.set()
        assert go.wait(SECONDS)

    sample.hold = hold
    guest.load(
        payload(
            f"config_write {slot}, 0x10, {BAR0:#x}\nconfig_write {slot}, 4, 6\nmov dword ptr [{BAR0 + 0x44:#x}], 1\n"
            "9: hlt\njmp 9b\n"
        )
    )
    guest.unpause()
    assert inside.wait(SECONDS)
    guest.destroy()
    go.set()
    assert domain.wait(SECONDS)
    assert domain.reason == f"domain {number} has gone"
    assert sample.attachment is None
    assert sample.resets[-1] == "CLIENT_LOST"
    assert number not in domains.domains(), "no zombie"
    with pytest.raises(StateError, match="has gone"):
        domain.plug(sample)
    domain.close()


def open_things() -> tuple[list[str], int]:
    """Descriptors and mappings of Xen's of this process."""
    gc.collect()  # what earlier tests left
    maps = Path("/proc/self/maps").read_text()
    paths = list(Path("/proc/self/fd").iterdir())
    names = [str(path.readlink()) for path in paths if path.is_symlink()]  # the folder's own is closed
    return sorted(names), maps.count("privcmd")


@pytest.mark.timeout(600)
def test_200_cycles_leave_nothing(make_guest, sample, domains):
    """Domain and device, made and destroyed. Every tenth time the domain goes first, every twentieth has a window."""
    from umdev_edu import Edu

    guest = make_guest(memory=1 << 20)
    before = set(domains.domains()) - {guest.domid}
    counts = None
    with Edu() as edu:
        for cycle in range(200):
            device = sample if cycle % 20 == 5 else edu
            domain = Domain(guest.domid)
            domain.plug(device)
            with device.locked():
                device.config.write(4, b"\x07\x00")
            device.memory.write(0x8_0000, b"x")
            if cycle % 10 == 9:
                guest.destroy()
                assert domain.wait(SECONDS)
            domain.close()
            assert device.attachment is None
            guest.recreate()
            found = open_things()
            if cycle == 20:
                counts = found
            elif counts:
                assert found == counts, f"after {cycle} cycles"
    assert found[1] == 0, "not one mapping"
    assert set(domains.domains()) - {guest.domid} == before, "not one zombie"
