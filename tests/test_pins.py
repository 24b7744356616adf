"""What every pinner promises, whatever it pins by."""

import threading

import pytest
from umdev.errors import InvalidArgument
from umdev.hypervisor import PAGE_SIZE, AddressSpace, GuestMemory
from umdev.memory import PinTable
from umdev_kvm.pins import LongTermPins, new_ring


def long_term_pins(space):
    ring, code = new_ring()
    if ring is None:
        pytest.skip(f"this kernel has no io_uring for us: errno {code}")
    return LongTermPins(space, ring)


class Raced(AddressSpace):
    """Calls `meanwhile` when a map has been looked up and before anything is made of it."""

    meanwhile = None

    @property
    def mappings(self):
        found = super().mappings
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile:
            meanwhile()
        return found


@pytest.mark.parametrize("kind", [PinTable, long_term_pins])
def test_a_pin_that_meets_an_unmap_outlives_no_map(kind):
    with GuestMemory(4 * PAGE_SIZE) as guest:
        space = Raced()
        space.map(0, 4 * PAGE_SIZE, descriptor=guest.descriptor)
        reached, gone = threading.Event(), threading.Event()
        space.on_unmap(lambda mapping: reached.set(), late=True)  # before the pinner's own
        pins = kind(space)
        host = space.translate(0, PAGE_SIZE)

        def unmap():
            space.unmap(0, 4 * PAGE_SIZE)
            gone.set()

        def meanwhile():
            thread.start()
            assert reached.wait(60)
            gone.wait(0.2)  # it should not come to that; where it does, the map is gone under a pin

        thread = threading.Thread(target=unmap)
        space.meanwhile = meanwhile
        pins.pin(host, 2)
        thread.join()
        assert pins.pages == 0
        with pytest.raises(InvalidArgument, match="in no map"):
            pins.pin(host, 2)
        pins.close()
        space.close()
