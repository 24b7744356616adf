"""Pins, the loopback guest, and what a model sees as `self.memory`."""

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from umdev.addresses import PAGE_SIZE, HostVirt, Iova
from umdev.device.memory import DeviceMemory
from umdev.errors import InvalidArgument, NotMapped, NotPermitted, StateError, UmdevError
from umdev.memory import AddressSpace, ComparisonProtector, GuestMemory, PinTable
from umdev.services import Protection, ProtectMode

SIZE = 64 * PAGE_SIZE


@pytest.fixture
def guest():
    with GuestMemory(SIZE) as guest:
        yield guest


@pytest.fixture
def space(guest):
    space = AddressSpace()
    space.map(0, SIZE, descriptor=guest.descriptor)
    yield space
    space.close()


def locked_pages() -> int:
    """The kernel's own count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmLck:"):
            return int(line.split()[1]) * 1024 // PAGE_SIZE
    raise AssertionError("no VmLck")


# Pins.


def test_pins_are_counted_per_page_and_the_kernel_agrees(space):
    pins = PinTable(space)
    host = space.translate(0, SIZE)
    before = locked_pages()
    pins.pin(host, 4)
    pins.pin(HostVirt(host + 2 * PAGE_SIZE), 4)
    assert pins.pages == 6
    assert locked_pages() - before == 6
    pins.unpin(host, 4)
    assert locked_pages() - before == 4
    pins.unpin(host, 4)  # two of them are pinned by the other, the rest is ignored
    assert pins.pages == 2
    pins.close()
    pins.close()
    assert locked_pages() == before


def test_unmap_drops_pins_after_the_model_was_told(guest, space):
    pins = PinTable(space)
    space.unmap(0, SIZE)
    space.map(0, 4 * PAGE_SIZE, descriptor=guest.descriptor)
    space.map(4 * PAGE_SIZE, 4 * PAGE_SIZE, descriptor=guest.descriptor, offset=4 * PAGE_SIZE)
    before = locked_pages()
    pins.pin(space.translate(0, PAGE_SIZE), 3)
    pins.pin(space.translate(4 * PAGE_SIZE, PAGE_SIZE), 1)
    told = []
    space.on_unmap(lambda mapping: told.append((mapping.iova, locked_pages() - before)))
    space.unmap(0, 4 * PAGE_SIZE)
    assert told == [(0, 4)]
    assert pins.pages == 1
    assert locked_pages() - before == 1
    pins.close()


def test_a_pin_outside_of_a_map_is_refused(space):
    pins = PinTable(space)
    host = space.translate(0, SIZE)
    for address, pages in ((host, 65), (host + 1, 1), (host, 0), (0x1000, 1)):
        with pytest.raises(InvalidArgument):
            pins.pin(HostVirt(address), pages)
    assert pins.pages == 0
    pins.close()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give up the capability that lifts RLIMIT_MEMLOCK")
def test_the_limit_is_a_named_error_that_says_how_to_raise_it():
    script = textwrap.dedent(
        """
        import os, resource
        from umdev.errors import PinLimit
        from umdev.memory import AddressSpace, GuestMemory, PinTable
        guest, space = GuestMemory(64 * 4096), AddressSpace()
        space.map(0, 64 * 4096, descriptor=guest.descriptor)
        pins, host = PinTable(space), space.translate(0, 4096)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 * 4096, 8 * 4096))
        os.setresuid(65534, 65534, 65534)
        pins.pin(host, 8)
        try:
            pins.pin(host + 8 * 4096, 2)
        except PinLimit as error:
            print(pins.pages, error.errno, error)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("8 12 2 pages can't be pinned: RLIMIT_MEMLOCK is 32768 bytes; raise it"), done


# The loopback guest.


def test_the_guests_processor_and_the_device_see_one_memory(guest, space):
    guest.store(0x1003, b"from the guest")
    assert space.read(0x1003, 14) == b"from the guest"
    space.write(0x2000, b"from the device")
    assert guest.load(0x2000, 15) == b"from the device"
    guest.fill(0x3000, 0x1000, 0x5A)
    assert space.read(0x3000, 0x1000) == b"\x5a" * 0x1000
    assert guest.add32(0x4000, 5) == 0
    assert guest.add32(0x4000, -1) == 5
    assert guest.add64(0x4008, 1 << 40) == 0
    assert guest.exchange64(0x4008, 7) == 1 << 40
    assert guest.compare_exchange64(0x4008, 8, 9) == 7
    assert guest.compare_exchange64(0x4008, 7, 9) == 7
    assert guest.load(0x4000, 16) == (4).to_bytes(8, "little") + (9).to_bytes(8, "little")
    assert guest.load(SIZE, 0) == b""


def test_the_guest_can_not_leave_its_memory(guest):
    for call in (
        lambda: guest.store(SIZE - 1, b"xy"),
        lambda: guest.load(-1, 1),
        lambda: guest.load(SIZE, 1),
        lambda: guest.fill(0, SIZE + 1),
        lambda: guest.add64(4, 1),
        lambda: guest.exchange64(SIZE, 1),
    ):
        with pytest.raises(InvalidArgument):
            call()
    for size in (0, 100, -PAGE_SIZE):
        with pytest.raises(InvalidArgument):
            GuestMemory(size)


def test_buffers_are_apart_aligned_and_used_again(guest):
    small = [guest.allocate(100, 64) for _ in range(4)]
    assert len({address // 64 for address in small}) == 4
    assert all(address >= PAGE_SIZE for address in small)
    big = guest.allocate(8 * PAGE_SIZE)
    assert big % PAGE_SIZE == 0
    guest.store(big, b"dirt")
    guest.free(big)
    assert guest.load(guest.allocate(8 * PAGE_SIZE), 4) == bytes(4)
    with pytest.raises(InvalidArgument, match="not allocated"):
        guest.free(big + 8)
    with pytest.raises(UmdevError, match="left"):
        guest.allocate(SIZE)
    for address in [*small, big]:
        guest.free(address)
    guest.free(guest.allocate(SIZE - PAGE_SIZE))  # everything has grown together again


def test_a_guest_that_is_too_large_leaves_no_descriptor():
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(UmdevError, match="address space"):
        GuestMemory(1 << 50)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_closed_guest_says_so():
    guest = GuestMemory(SIZE)
    guest.close()
    guest.close()
    with pytest.raises(StateError, match="closed"):
        guest.store(0, b"x")
    with pytest.raises(StateError, match="closed"):
        guest.protector()
    with pytest.raises(StateError, match="closed"):  # another file may have its number by now
        guest.descriptor  # noqa: B018 - it is a property


# What a model sees.


class Services:
    """As an attachment on the loopback bus answers, and a host that maps on demand."""

    def __init__(self, space, mapper=None):
        self.space = space
        self.pins = PinTable(space)
        self.compare = ComparisonProtector(space)
        self.on_demand = mapper

    def pinner(self):
        return self.pins

    def protector(self, mode):
        assert mode is ProtectMode.TRACK
        return self.compare

    def translator(self):
        return self

    def translate(self, address, length, protection, space):
        return self.space.translate(address, length, protection, space)

    def mapper(self):
        return self.on_demand


class OnDemand:
    """Maps one page for each request, up to a limit."""

    def __init__(self, space, guest, end):
        self.space, self.guest, self.end, self.asked = space, guest, end, []

    def map(self, address, length, protection, space):
        self.asked.append((address, length, protection))
        page = address & ~(PAGE_SIZE - 1)
        if page >= self.end:
            return False
        self.space.map(page, PAGE_SIZE, descriptor=self.guest.descriptor, offset=page, space=space)
        return True


def test_a_model_reads_and_writes_values_bytes_and_views(space):
    memory = DeviceMemory(space, Services(space))
    memory.write_u32(0x1000, 0x1_2345_6789)
    memory.write_u64(Iova(0x1008), -1)
    assert memory.read(0x1000, 16) == bytes.fromhex("89674523000000 00ffffffffffffffff")
    assert memory.read_u32(0x1000) == 0x2345_6789
    assert memory.read_u64(0x1008) == (1 << 64) - 1
    into = bytearray(4)
    memory.read_into(0x1000, into)
    assert into == b"\x89\x67\x45\x23"
    memory.write(0x2000, memoryview(b"0123456789")[2:5])
    with memory.view(0x2000, 3) as view:
        assert bytes(view) == b"234"
    with memory.view(0x2000, 3, write=True) as view:
        view[0] = 0x41
    assert memory.read(0x2000, 3) == b"A34"
    with pytest.raises(NotMapped) as error:
        memory.read(SIZE - 8, 16)
    assert error.value.iova == SIZE
    assert [mapping.length for mapping in memory.mappings] == [SIZE]


def test_a_model_pins_by_bus_address_and_an_unmap_unpins(guest, space):
    services = Services(space)
    memory = DeviceMemory(space, services)
    before = locked_pages()
    memory.pin(0x3000, 2)
    memory.pin(0x4000)
    assert (memory.pinned, locked_pages() - before) == (2, 2)
    memory.unpin(0x4000)
    assert memory.pinned == 2
    memory.unpin(0x4000)
    memory.unpin(0x4000)
    assert (memory.pinned, locked_pages() - before) == (1, 1)
    with pytest.raises(NotMapped):
        memory.pin(SIZE - PAGE_SIZE, 2)
    assert (memory.pinned, locked_pages() - before) == (1, 1)
    space.unmap(0, SIZE)
    assert (memory.pinned, services.pins.pages, locked_pages() - before) == (0, 0, 0)
    space.map(0, SIZE, descriptor=guest.descriptor)
    memory.unpin(0x3000)  # belongs to the old map
    memory.pin(0x3000)
    memory.close()
    memory.close()
    assert (memory.pinned, locked_pages() - before) == (0, 0)


def test_an_unmap_unpins_its_own_pages_alone_whether_they_or_the_pins_are_more(guest, space):
    memory = DeviceMemory(space, Services(space))
    space.unmap(0, SIZE)
    space.map(0, PAGE_SIZE, descriptor=guest.descriptor)
    space.map(PAGE_SIZE, SIZE - PAGE_SIZE, descriptor=guest.descriptor, offset=PAGE_SIZE)
    memory.pin(0, 4)
    space.unmap(0, PAGE_SIZE)
    assert memory.pinned == 3
    space.unmap(PAGE_SIZE, SIZE - PAGE_SIZE)
    assert memory.pinned == 0


def test_a_model_tracks_and_translates(guest, space):
    memory = DeviceMemory(space, Services(space))
    memory.protect(ProtectMode.TRACK, [Iova(0x1000), Iova(0x2000)])
    guest.store(0x2000, b"x")
    assert list(memory.collect()) == [0x2000]
    memory.unprotect(ProtectMode.TRACK, [Iova(0x2000)])
    guest.store(0x2000, b"y")
    assert list(memory.collect()) == []
    assert memory.translate(0x2010, 16) == space.translate(0x2010, 16)


def test_an_unmap_between_the_look_and_the_pin_leaves_no_pin(guest, space):
    """Another thread unmaps while a pin is under way: whoever comes first, nothing stays pinned or counted."""
    services = Services(space)
    memory = DeviceMemory(space, services)
    translate, before = services.translator().translate, locked_pages()

    class Racing:
        def translate(self, *arguments):
            if not unmapping.is_alive() and unmapping.ident is None:
                unmapping.start()  # it has to wait for the pin
                while space.find(0x3000) is not None:
                    pass
            return host

    host = translate(Iova(0x3000), PAGE_SIZE, Protection.READ, 0)
    services.translator = Racing
    unmapping = threading.Thread(target=space.unmap, args=(0, SIZE))
    with pytest.raises(InvalidArgument):
        memory.pin(0x3000)
    unmapping.join()
    assert (memory.pinned, services.pins.pages, locked_pages()) == (0, 0, before)


class Evicting:
    """Maps one page at a time, and takes the one before away."""

    def __init__(self, space, guest):
        self.space = space
        self.guest = guest

    def map(self, address, length, protection, space):
        page = address & -PAGE_SIZE
        for mapping in self.space.mappings:
            self.space.unmap(mapping.iova, mapping.length)
        self.space.map(page, PAGE_SIZE, descriptor=self.guest.descriptor, offset=page)
        return True


class Single:
    """Maps one page at a time, and keeps them."""

    def __init__(self, space, guest):
        self.space = space
        self.guest = guest

    def map(self, address, length, protection, space):
        page = address & -PAGE_SIZE
        self.space.map(page, PAGE_SIZE, descriptor=self.guest.descriptor, offset=page)
        return True


def test_a_transfer_over_thousands_of_maps_on_demand():
    with GuestMemory(2000 * PAGE_SIZE) as guest:
        space = AddressSpace()
        memory = DeviceMemory(space, Services(space, Single(space, guest)))
        assert memory.read(0, 1500 * PAGE_SIZE) == bytes(1500 * PAGE_SIZE)
        assert len(space.mappings) == 1500
        space.close()


def test_a_mapper_that_brings_nothing_further_is_no_endless_loop(guest):
    space = AddressSpace()
    memory = DeviceMemory(space, Services(space, Evicting(space, guest)))
    with pytest.raises(NotMapped):
        memory.write(0, bytes(2 * PAGE_SIZE))
    space.close()


def test_memory_is_mapped_on_demand_where_the_host_does_so(guest):
    space = AddressSpace()
    mapper = OnDemand(space, guest, 4 * PAGE_SIZE)
    memory = DeviceMemory(space, Services(space, mapper))
    guest.store(PAGE_SIZE - 2, b"across")
    assert memory.read(PAGE_SIZE - 2, 6) == b"across"
    assert mapper.asked == [(PAGE_SIZE - 2, 6, Protection.READ), (PAGE_SIZE, 4, Protection.READ)]
    memory.write(2 * PAGE_SIZE, bytes(PAGE_SIZE + 4))
    assert mapper.asked[-1] == (3 * PAGE_SIZE, 4, Protection.WRITE)
    with pytest.raises(NotMapped) as error:
        memory.read(4 * PAGE_SIZE - 4, 8)
    assert error.value.iova == 4 * PAGE_SIZE
    with pytest.raises(NotMapped):
        memory.translate(5 * PAGE_SIZE, 4)
    assert len(space.mappings) == 4
    space.unmap(0, PAGE_SIZE)
    with memory.view(0x10, 4) as view:
        assert len(view) == 4
    space.map(8 * PAGE_SIZE, PAGE_SIZE, descriptor=guest.descriptor, protection=Protection.READ)
    with pytest.raises(NotPermitted):
        memory.write(8 * PAGE_SIZE, b"x")
    space.close()
