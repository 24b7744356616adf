"""What no driver should do: the controller says so, stays bounded, and serves again after a reset."""

import random
import struct

import pytest

DOORBELLS = 0x1000
INTMS, CC, AQA, ASQ, ACQ = 0x0C, 0x14, 0x24, 0x28, 0x30
READY, FATAL = 1, 2
FLUSH, READ, ZEROES = 0, 2, 8
ENABLE = 1 | 6 << 16 | 4 << 20
NOWHERE = 0x7FFF_FFFF_0000
INVALID_DOORBELL, INVALID_VALUE = 0x01_00_00, 0x01_01_00


def works(driver):
    """A reset mends whatever it was."""
    driver.disable()
    assert driver.enable().create().command(FLUSH, 1).status == 0


@pytest.mark.parametrize(
    ("aqa", "asq", "acq", "cc"),
    [
        (0x001F_0000, 0x1000, 0x2000, ENABLE),
        (0x0000_001F, 0x1000, 0x2000, ENABLE),
        (0x001F_001F, 0x1000, 0x2000, ENABLE | 1 << 4),
        (0x001F_001F, 0x1000, 0x2000, ENABLE | 1 << 11),
        (0x001F_001F, 0x1000, 0x2000, ENABLE | 5 << 7),
        (0x001F_001F, 0x1000, 0x10000, ENABLE | 4 << 7),
    ],
)
def test_a_controller_enabled_wrongly_says_so(driver, aqa, asq, acq, cc):
    driver.bar.write32(AQA, aqa)
    driver.bar.write64(ASQ, asq)
    driver.bar.write64(ACQ, acq)
    driver.bar.write32(CC, cc)
    assert driver.status() == FATAL
    driver.bar.write32(DOORBELLS, 1)
    assert driver.status() == FATAL
    works(driver)


def test_reserved_bits_stay_clear(driver):
    for offset, kept in ((AQA, 0x0FFF_0FFF), (ASQ, 0xFFFF_F000), (ACQ, 0xFFFF_F000), (0x38, 0), (0x3C, 0), (0x20, 0)):
        driver.bar.write32(offset, 0xFFFF_FFFF)
        assert driver.bar.read32(offset) == kept
    driver.bar.write64(0, 0)
    driver.bar.write32(0x1C, 0xFFFF_FFFF)
    assert driver.bar.read32(8) == 0x10400
    assert driver.status() == 0
    assert driver.bar.read32(0) & 0xFFFF == 1023


@pytest.mark.parametrize("which", ["submissions", "completions"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_queue_that_can_not_be_reached_is_fatal(stepped, which, number):
    admin = stepped.enable().admin
    queue = stepped.create() if number else admin
    if number:  # once more, elsewhere
        for opcode in (0x00, 0x04):
            assert admin.command(opcode, 0, 0, 0, 1).status == 0
        places = {"completions": queue.completions.address, "submissions": queue.submissions.address, which: NOWHERE}
        assert admin.command(5, 0, places["completions"], 0, 1 | 15 << 16, 1).status == 0
        assert admin.command(1, 0, places["submissions"], 0, 1 | 15 << 16, 1 << 16 | 1).status == 0
        queue.tail = 0
    else:
        stepped.disable()
        stepped.bar.write64(ASQ if which == "submissions" else ACQ, NOWHERE)
        stepped.bar.write32(CC, ENABLE)
        queue.tail = 0
    queue.submit(FLUSH, 1)
    stepped.progress()
    assert stepped.status() == READY | FATAL
    works(stepped)


def test_without_bus_mastering_nothing_is_done(driver):
    queue = driver.enable().create()
    driver.function.enable(memory=True, io=True, bus_master=False)
    queue.submit(FLUSH, 1)
    while not driver.status() & FATAL:
        pass
    assert queue.poll() is None
    driver.function.enable(memory=True, io=True, bus_master=True)
    works(driver)


@pytest.mark.parametrize(
    ("offset", "value", "event"),
    [
        (8 * 1, 16, INVALID_VALUE),
        (8 * 1, 0xFFFF, INVALID_VALUE),
        (8 * 0, 32, INVALID_VALUE),
        (8 * 2, 0, INVALID_DOORBELL),
        (8 * 8, 1, INVALID_DOORBELL),
        (8 * 1 + 4, 5, INVALID_VALUE),
        (8 * 1 + 4, 16, INVALID_VALUE),
        (8 * 2 + 4, 0, INVALID_DOORBELL),
    ],
)
def test_a_wrong_doorbell_is_an_event(driver, offset, value, event):
    queue = driver.enable().create()
    admin = driver.admin
    asked = admin.submit(12)
    driver.bar.write32(DOORBELLS + offset, value)
    told = admin.wait()
    assert (told.command, told.status, told.result) == (asked, 0, event)
    again = admin.submit(12)
    driver.bar.write32(DOORBELLS + offset, value)
    log, *prps = driver.data(64)
    assert admin.command(2, 0, *prps, 1 | 15 << 16).status == 0, "no second event before the log was read"
    assert struct.unpack_from("<QHH", log.read(0, 64)) == (2, 0xFFFF, 0xFFFF)
    told = admin.wait()
    assert (told.command, told.result) == (again, event)
    assert queue.command(FLUSH, 1).status == 0
    assert not driver.status() & FATAL


def test_events_wait_for_requests_and_these_have_a_limit(stepped):
    admin = stepped.enable().admin
    for _ in range(100):
        stepped.bar.write32(DOORBELLS + 8 * 5, 1)
        stepped.bar.write32(DOORBELLS, 32)
    assert len(stepped.device.events) == 2
    assert len(stepped.device.errors) == 16
    first = admin.submit(12)
    stepped.progress()
    assert (admin.wait().command, stepped.device.events_masked) == (first, True)
    for _ in range(4):
        admin.submit(12)
    stepped.progress()
    assert admin.poll() is None
    assert admin.command(12).code == 0x105


def test_a_flood_takes_turns(stepped):
    """A queue of the longest commands, forever full, keeps nobody else waiting: neither a queue nor the lock."""
    stepped.enable()
    flood, other = stepped.create(1, entries=1024), stepped.create(2)
    for _ in range(1023):
        flood.submit(ZEROES, 1, 0, 0, 0, 0, 65535, ring=False)
    flood.ring()
    other.submit(FLUSH, 1)
    device = stepped.device
    steps = 0
    while other.poll() is None:
        (job,) = device.work.pending
        with device.locked():
            device.work.clear()
            job.job()
        steps += 1
    assert steps == 2, "a step ends with the first of the long commands"
    assert device.registers.submission[1].waiting == 1021
    stepped.disable()


def test_commands_go_round_robin(stepped):
    admin = stepped.enable().admin
    queues = [stepped.create(number, entries=128) for number in (1, 2, 3)]
    for queue in queues[1:]:  # their completions go to the first one's queue, which shows the order
        assert admin.command(0, 0, 0, 0, queue.number).status == 0
        where = queue.number | 127 << 16
        assert admin.command(1, 0, queue.submissions.address, 0, where, 1 << 16 | 1).status == 0
        queue.tail = 0
    stepped.device.turn = 1
    for queue in queues:
        for _ in range(20):
            queue.submit(FLUSH, 1)
    stepped.progress()
    order = [queues[0].wait().queue for _ in range(60)]
    assert order == [1] * 8 + [2] * 8 + [3] * 8 + [1] * 8 + [2] * 8 + [3] * 8 + [1] * 4 + [2] * 4 + [3] * 4


@pytest.mark.parametrize("seed", range(40))
def test_any_bytes_are_answered(stepped, seed):
    """Random entries, doorbells and registers: no command is lost, and nothing of the model fails."""
    chance = random.Random(seed)
    driver, page = stepped, stepped.page.address

    def word():
        return chance.choice([chance.randrange(5), chance.getrandbits(32), 1 << 16 | 1, 15 << 16 | 2, 127 << 16 | 1])

    for _ in range(5):
        queue = driver.enable().create()
        for _ in range(30):
            target = chance.choice([queue, driver.admin])
            opcode = chance.choice([0, 1, 2, 4, 5, 6, 8, 9, 10, 12, chance.getrandbits(8)])
            prps = chance.choices([0, page, page + 8, page + 2048, NOWHERE, chance.getrandbits(64)], k=2)
            flags = chance.choice([0, 0, 0, 1, 255])
            target.submit(opcode, chance.choice([0, 1, word()]), *prps, *(word() for _ in range(6)), flags=flags)
            if not chance.randrange(3):
                driver.bar.write32(DOORBELLS + 4 * chance.randrange(32), word())
            if not chance.randrange(5):
                driver.bar.write32(chance.choice([INTMS, INTMS + 4, CC, AQA]), chance.choice([word(), ENABLE]))
            driver.progress()
            while queue.poll() or driver.admin.poll():
                pass
        device = driver.device
        assert device.native.counters["faulted"] == 0
        assert not device.work.pending
        assert len(device.event_requests) <= 4
        works(driver)
        driver.disable()
