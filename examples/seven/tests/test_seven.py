"""What a driver may ask of the demonstration's device, and what none gets."""

import pytest
from umdev.device import PAGE_SIZE, DeviceContext, ManualClock
from umdev_seven import Operation, Seven
from umdev_seven.device import HITS_LIMIT, PINS_LIMIT, PROTECTED_LIMIT, TRANSFER_LIMIT

STATUS, COMMAND, ADDRESS, LENGTH = 0x08, 0x0C, 0x10, 0x18
BUSY, FAILED = 1, 2


@pytest.fixture
def device():
    return Seven()


@pytest.fixture
def run(loopback_function, device):
    """Carries an operation out on a page, or more, of the driver's memory; true if it did not fail."""
    function = loopback_function(device)
    registers = function.bars[0]
    buffer = function.allocate(2 * TRANSFER_LIMIT)

    def run(operation, length=PAGE_SIZE, page=0):
        registers.write64(ADDRESS, buffer.address + page * PAGE_SIZE)
        registers.write32(LENGTH, length)
        registers.write32(COMMAND, operation)
        registers.wait32(STATUS, mask=BUSY, value=0, timeout=60)
        return not registers.read32(STATUS) & FAILED

    run.store = lambda: buffer.write(0, b"x")
    return run


@pytest.mark.parametrize("operation", [0, 99, Operation.UNPIN, Operation.UNPROTECT])
def test_what_can_not_be_done_fails_and_ends(run, device, operation):
    assert not run(operation)
    assert device.failure
    assert device.last_fault is None


def test_a_transfer_has_a_limit(run, device):
    assert run(Operation.REVERSE, TRANSFER_LIMIT)
    assert not run(Operation.REVERSE, TRANSFER_LIMIT + 1)
    assert device.failure == f"{TRANSFER_LIMIT + 1} bytes at once: {TRANSFER_LIMIT} is the most"


def test_pins_have_a_limit(run, device):
    assert all(run(Operation.PIN) for _ in range(PINS_LIMIT))
    assert not run(Operation.PIN)
    assert run(Operation.UNPIN)
    assert run(Operation.PIN)


def test_protected_pages_have_a_limit(run):
    assert all(run(Operation.PROTECT, page=page) for page in range(PROTECTED_LIMIT))
    assert not run(Operation.PROTECT, page=PROTECTED_LIMIT)
    assert run(Operation.PROTECT)
    assert run(Operation.UNPROTECT)
    assert run(Operation.PROTECT, page=PROTECTED_LIMIT)


def test_one_command_at_a_time(loopback_function):
    clock = ManualClock()
    device = Seven(DeviceContext(clock=clock))
    function = loopback_function(device)
    registers = function.bars[0]
    registers.write64(ADDRESS, function.allocate(PAGE_SIZE).address)
    registers.write32(LENGTH, PAGE_SIZE)
    for operation in (Operation.INTERRUPT, Operation.PIN, Operation.PIN):
        registers.write32(COMMAND, operation)
    clock.advance(1)
    assert not registers.read32(STATUS)
    assert len(device.pinned) == 1


def test_stores_that_nobody_collects_have_a_limit(run, device):
    with device.locked():
        device._note(range(HITS_LIMIT))
    assert run(Operation.PROTECT)
    run.store()
    assert run(Operation.COLLECT)
    assert len(device.hits) == HITS_LIMIT - 1
    assert device.hits[0] == 2  # 0 has been forgotten, 1 collected
