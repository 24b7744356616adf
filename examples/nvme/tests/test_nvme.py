"""nvme on every bus: a driver's whole life with it."""

import random
import struct
from pathlib import Path

import pytest
from umdev.device import ResetKind

ADMIN, IO = "admin", "io"
INTMS, INTMC, CC, CSTS, AQA, ASQ, ACQ = 0x0C, 0x10, 0x14, 0x1C, 0x24, 0x28, 0x30
READY, FATAL, SHUT_DOWN = 1, 2, 2 << 2
BLOCKS = 64 * 2048
FLUSH, WRITE, READ, ZEROES = 0, 1, 2, 8


def put(queue, lba, prp1, prp2, blocks):
    return queue.command(WRITE, 1, prp1, prp2, lba, lba >> 32, blocks - 1)


def get(queue, lba, prp1, prp2, blocks):
    return queue.command(READ, 1, prp1, prp2, lba, lba >> 32, blocks - 1)


def test_identity(driver, device):
    low, high = driver.bar.read32(0), driver.bar.read32(4)
    assert low & 0xFFFF == 1023, "queue entries, less one"
    assert low & 1 << 16, "queues are contiguous"
    assert high & 1 << 5, "the NVM command set"
    assert driver.bar.read64(0) == low | high << 32
    assert driver.bar.read32(8) == 0x10400
    driver.enable()
    controller, namespace = driver.identify(1), driver.identify(0, 1)
    assert controller[24:64].decode().strip() == "umdev NVMe"
    assert controller[512:514] == b"\x66\x44"
    assert controller[516:520] == b"\1\0\0\0"
    assert controller[768:].split(b"\0")[0].decode() == f"nqn.2014-08.org.nvmexpress:uuid:{device.context.uuid}"
    assert struct.unpack_from("<QQQ", namespace) == (BLOCKS,) * 3
    assert struct.unpack_from("<I", namespace, 128) == (9 << 16,)
    assert struct.unpack_from("<II", driver.identify(2)) == (1, 0)
    assert struct.unpack_from("<I", driver.identify(2, 1)) == (0,)
    assert driver.identify(3, 1)[:20] == bytes([3, 16, 0, 0]) + device.context.uuid.bytes
    assert controller[4:24].decode() == device.context.uuid.hex[:20]
    assert device.native.burn_down() == []


@pytest.mark.parametrize("blocks", [1, 8, 9, 16, 17, 1024])
def test_blocks_out_and_back(driver, device, blocks):
    """One page, the second in PRP2, and lists of them up to the longest transfer."""
    queue = driver.enable().create()
    data = random.randbytes(512 * blocks)
    out, *prps_out = driver.data(len(data))
    back, *prps_back = driver.data(len(data))
    out.write(0, data)
    assert put(queue, 100, *prps_out, blocks).status == 0
    assert get(queue, 100, *prps_back, blocks).status == 0
    assert back.read(0, len(data)) == data
    with Path(device.query("blocks")).open("rb") as file:
        file.seek(100 * 512)
        assert file.read(len(data)) == data
    assert queue.command(ZEROES, 1, 0, 0, 101, 0, blocks - 1).status == 0
    assert queue.command(FLUSH, 1).status == 0
    assert get(queue, 100, *prps_back, blocks).status == 0
    assert back.read(0, len(data)) == data[:512] + bytes(len(data) - 512)


def test_a_list_that_goes_on_in_another_page(driver):
    """It begins with the last entry of its page but one, and the pages are neither neighbours nor in order."""
    queue = driver.enable().create()
    data = random.randbytes(5 * 4096)
    lists, pages = driver.function.allocate(8192), driver.function.allocate(16 * 4096)
    at = [pages.address + 4096 * number for number in (9, 3, 12, 4, 5, 1)]
    lists.write(4096 - 16, struct.pack("<QQ", at[1], lists.address + 4096))
    lists.write(4096, struct.pack("<4Q", *at[2:]))
    prps = at[0] + 512, lists.address + 4096 - 16
    rest = data
    for number, page in enumerate(at):
        offset = 0 if number else 512
        part, rest = rest[: 4096 - offset], rest[4096 - offset :]
        pages.write(page - pages.address + offset, part)
    assert put(queue, 7, *prps, 40).status == 0
    back, *prps_back = driver.data(len(data))
    assert get(queue, 7, *prps_back, 40).status == 0
    assert back.read(0, len(data)) == data


@pytest.mark.parametrize(
    ("queue", "arguments", "code"),
    [
        (IO, (READ, 1, "page", 0, BLOCKS, 0, 0), 0x80),
        (IO, (READ, 1, "page", 0, BLOCKS - 1, 0, 1), 0x80),
        (IO, (WRITE, 1, "page", 0, 0xFFFF_FFFF, 0xFFFF_FFFF, 0), 0x80),
        (IO, (ZEROES, 1, 0, 0, BLOCKS - 65535, 0, 65535), 0x80),
        (IO, (READ, 1, "page", 0, 0, 0, 1024), 0x02),
        (IO, (READ, 2, "page", 0, 0, 0, 0), 0x0B),
        (IO, (WRITE, 0, "page", 0, 0, 0, 0), 0x0B),
        (IO, (FLUSH, 2), 0x0B),
        (IO, (0x7F, 1), 0x01),
        (IO, (READ, 1, "page+2", 0, 0, 0, 0), 0x13),
        (IO, (READ, 1, "page", "page+8", 0, 0, 15), 0x13),
        (IO, (READ, 1, "page", "page+4", 0, 0, 63), 0x13),
        (IO, (READ, 1, 0x7FFF_FFFF_0000, 0, 0, 0, 0), 0x04),
        (IO, (WRITE, 1, "page", 0x7FFF_FFFF_0000, 0, 0, 63), 0x04),
        (ADMIN, (0x7F,), 0x01),
        (ADMIN, (6, 0, "page", 0, 0), 0x0B),
        (ADMIN, (6, 0xFFFF_FFFF, "page", 0, 0), 0x0B),
        (ADMIN, (6, 0xFFFF_FFFF, "page", 0, 2), 0x0B),
        (ADMIN, (6, 2, "page", 0, 3), 0x0B),
        (ADMIN, (6, 1, "page", 0, 0x55), 0x02),
        (ADMIN, (6, 1, 0, 0, 0), 0x04),
        (ADMIN, (0, 0, 0, 0, 0), 0x101),
        (ADMIN, (0, 0, 0, 0, 2), 0x101),
        (ADMIN, (0, 0, 0, 0, 0xFFFF), 0x101),
        (ADMIN, (4, 0, 0, 0, 1), 0x10C),
        (ADMIN, (4, 0, 0, 0, 3), 0x101),
        (ADMIN, (5, 0, "page", 0, 1 | 15 << 16, 1), 0x101),
        (ADMIN, (5, 0, "page", 0, 9 | 15 << 16, 1), 0x101),
        (ADMIN, (5, 0, "page", 0, 2, 1), 0x102),
        (ADMIN, (5, 0, "page", 0, 2 | 1024 << 16, 1), 0x102),
        (ADMIN, (5, 0, "page", 0, 2 | 15 << 16, 0), 0x02),
        (ADMIN, (5, 0, "page+8", 0, 2 | 15 << 16, 1), 0x13),
        (ADMIN, (5, 0, "page", 0, 2 | 15 << 16, 9 << 16 | 1), 0x108),
        (ADMIN, (1, 0, "page", 0, 1 | 15 << 16, 1 << 16 | 1), 0x101),
        (ADMIN, (1, 0, "page", 0, 2 | 15 << 16, 1), 0x101),
        (ADMIN, (1, 0, "page", 0, 2 | 15 << 16, 3 << 16 | 1), 0x100),
        (ADMIN, (2, 0, "page", 0, 0x77 | 127 << 16), 0x109),
        (ADMIN, (2, 0, "page", 0, 1 | 127 << 16, 0xFFFF), 0x02),
        (ADMIN, (2, 0, "page", 0, 1 | 127 << 16, 0, 0x2000), 0x02),
        (ADMIN, (2, 3, "page", 0, 1 | 127 << 16), 0x0B),
        (ADMIN, (9, 0, 0, 0, 7), 0x0C),
        (ADMIN, (9, 0, 0, 0, 7, 0xFFFF), 0x02),
        (ADMIN, (9, 0, 0, 0, 1 << 31 | 1), 0x10D),
        (ADMIN, (9, 0, 0, 0, 0xC0), 0x02),
        (ADMIN, (9, 0, 0, 0, 2, 1), 0x02),
        (ADMIN, (10, 0, 0, 0, 9, 9), 0x02),
    ],
)
def test_what_is_refused_and_how(stepped, queue, arguments, code):
    driver = stepped.enable()
    queue = {IO: driver.create(), ADMIN: driver.admin}[queue]
    places = {"page": driver.page.address}
    driver.page.write(0, b"\x5a" * 4096)
    words = [eval(word, places) if isinstance(word, str) else word for word in arguments]
    completion = queue.command(*words)
    assert completion.code == code, hex(completion.code)
    assert completion.status & 1 << 14, "the same again would end the same"
    assert not driver.status() & FATAL
    assert driver.page.read(0, 4096) == b"\x5a" * 4096
    log, *prps = driver.data(4096)
    assert driver.admin.command(2, 0, *prps, 1 | 15 << 16).status == 0
    count, where, command, status = struct.unpack_from("<QHHH", log.read(0, 64))
    assert (count, where, command, status >> 1) == (1, queue.number, completion.command, completion.status)


@pytest.mark.parametrize("flags", [0x01, 0x40, 0x80])
def test_fused_commands_and_scatter_gather_lists_are_not_offered(stepped, flags):
    queue = stepped.enable().create()
    assert queue.command(READ, 1, stepped.page.address, 0, 0, 0, 0, flags=flags).code == 0x02


def test_features(stepped):
    admin = stepped.enable().admin
    assert admin.command(9, 0, 0, 0, 7, 99 | 2 << 16).result == 7 | 2 << 16
    assert admin.command(10, 0, 0, 0, 7).result == 7 | 2 << 16
    assert admin.command(5, 0, stepped.page.address, 0, 4 | 15 << 16, 1).code == 0x101, "three were granted"
    for feature, value in ((1, 0x0102_0305), (4, 333), (5, 7), (8, 0x0105), (10, 1), (11, 0x1F)):
        assert admin.command(9, 0, 0, 0, feature, value).status == 0
        assert admin.command(10, 0, 0, 0, feature).result == value
    assert admin.command(10, 0, 0, 0, 9, 3).result == 3 | 1 << 16
    assert admin.command(8, 0, 0, 0, 1 << 16).result == 1, "nothing was aborted"
    stepped.disable()
    assert stepped.enable().admin.command(10, 0, 0, 0, 7).result == 7 | 7 << 16, "a reset forgets"


def test_health_tells_what_was_moved(stepped):
    queue = stepped.enable().create()
    for _ in range(3):
        assert get(queue, 0, stepped.page.address, 0, 8).status == 0
    log, *prps = stepped.data(512)
    assert stepped.admin.command(2, 0xFFFF_FFFF, *prps, 2 | 127 << 16).status == 0
    data = log.read(0, 512)
    assert data[0] == 0
    assert struct.unpack_from("<H", data, 1) == (300,)
    assert int.from_bytes(data[32:48], "little") == 1, "thousands of 512 bytes, rounded up"
    assert int.from_bytes(data[64:80], "little") == 3
    assert stepped.admin.command(2, 0, *prps, 3 | 127 << 16).status == 0
    assert log.read(8, 8) == b"1       "


def test_message_interrupts_of_several_queues(driver):
    with driver.function.enable_interrupts("msix", 9) as interrupts:
        driver.enable()

        def interrupted(queue, vector, *command):
            # First the interrupt: there is none for a completion that the driver has acknowledged already.
            queue.submit(*command)
            assert interrupts.wait(vector, timeout=60) == 1
            return queue.wait()

        assert interrupted(driver.admin, 0, 10, 0, 0, 0, 1).status == 0
        queues = [driver.create(number, vector=9 - number) for number in (1, 2, 3)]
        for queue in queues:
            assert interrupted(queue, 9 - queue.number, FLUSH, 1).status == 0
        silent = driver.create(4, vector=1, interrupts=False)
        assert silent.command(FLUSH, 1).status == 0
        assert interrupted(queues[0], 8, FLUSH, 1).status == 0
        assert interrupts.wait(1, timeout=0) == 0


def test_the_pin_is_high_while_completions_are_unread(driver):
    admin = driver.enable().admin
    with driver.function.enable_interrupts("intx") as interrupts:
        admin.submit(10, 0, 0, 0, 1)
        assert interrupts.wait(timeout=60) == 1
        assert admin.wait(acknowledge=False).status == 0
        interrupts.acknowledge()
        assert interrupts.wait(timeout=60) == 1, "still high"
        driver.bar.write32(INTMS, 1)
        assert driver.bar.read32(INTMC) == 1
        interrupts.acknowledge()
        assert interrupts.wait(timeout=0.05) == 0, "masked"
        driver.bar.write32(INTMC, 1)
        assert driver.bar.read32(INTMS) == 0
        assert interrupts.wait(timeout=60) == 1, "not masked any more"
        admin.seen()
        driver.bar.read32(CSTS)
        interrupts.acknowledge()
        assert interrupts.wait(timeout=0.05) == 0


def test_a_masked_message_comes_when_it_is_unmasked(driver):
    admin = driver.enable().admin
    with driver.function.enable_interrupts("msi") as interrupts:
        driver.bar.write32(INTMS, 1)
        admin.submit(10, 0, 0, 0, 1)
        assert admin.wait(acknowledge=False).status == 0
        assert interrupts.wait(timeout=0.05) == 0
        driver.bar.write32(INTMC, 1)
        assert interrupts.wait(timeout=60) == 1


def test_rings_wrap_and_a_full_completion_queue_holds_commands_back(driver):
    driver.enable()
    queue = driver.create(entries=4)
    for turn in range(11):
        commands = [queue.submit(FLUSH, 1, ring=False) for _ in range(1 + turn % 3)]
        queue.ring()
        assert [queue.wait().command for _ in commands] == commands

    many, few = driver.create(2, entries=64), driver.create(3, entries=4)
    # A submission queue of 64 entries whose completion queue has room for three.
    assert driver.admin.command(0, 0, 0, 0, 2).status == 0
    assert driver.admin.command(1, 0, many.submissions.address, 0, 2 | 63 << 16, 3 << 16 | 1).status == 0
    many.tail = 0
    commands = [many.submit(FLUSH, 1, ring=False) for _ in range(40)]
    many.ring()
    assert [few.wait() for _ in range(40)][-1].head == 40
    assert commands[-1] == 40


def test_two_queues_share_a_completion_queue(driver):
    driver.enable()
    first, second = driver.create(1, entries=32), driver.create(2, entries=32)
    assert driver.admin.command(0, 0, 0, 0, 2).status == 0
    assert driver.admin.command(1, 0, second.submissions.address, 0, 2 | 31 << 16, 1 << 16 | 1).status == 0
    second.tail = 0
    for _ in range(10):
        first.submit(FLUSH, 1)
        second.submit(FLUSH, 1)
    queues = [first.wait().queue for _ in range(20)]
    assert sorted(queues) == [1] * 10 + [2] * 10
    assert driver.admin.command(4, 0, 0, 0, 1).code == 0x10C, "in use"


@pytest.mark.parametrize("how", ["controller", "flr", "bus"])
def test_a_reset_while_commands_run(driver, how):
    """When it is over, no byte of the driver's memory changes any more."""
    queue = driver.enable().create(entries=64)
    data, *prps = driver.data(512 << 10)
    for lba in range(0, 63 * 1024, 1024):
        queue.submit(READ, 1, *prps, lba, 0, 1023)
    if how == "controller":
        driver.disable()
    elif how == "flr":
        driver.function.function_level_reset()
    else:
        driver.function.reset()
    driver.function.enable(memory=True, io=True, bus_master=True)
    data.write(0, b"\x5a" * data.size)
    queue.completions.write(0, bytes(queue.completions.size))
    assert driver.status() == 0
    queue.ring()  # there is no such queue any more
    again = driver.enable().create()
    assert driver.device.events == []
    assert put(again, 0, *prps, 1024).status == 0
    assert data.read(0, data.size) == b"\x5a" * data.size
    assert queue.completions.read(0, queue.completions.size) == bytes(queue.completions.size)


def test_shutdown(driver):
    driver.enable()
    driver.bar.write32(CC, driver.bar.read32(CC) | 1 << 14)
    assert driver.status() == SHUT_DOWN | READY
    driver.disable()
    assert driver.status() == 0
    assert driver.enable().create().command(FLUSH, 1).status == 0


def test_after_shutdown_no_command_is_carried_out(stepped):
    queue = stepped.enable().create()
    queue.submit(FLUSH, 1)
    stepped.bar.write32(CC, stepped.bar.read32(CC) | 1 << 14)
    queue.submit(FLUSH, 1)
    stepped.progress()
    assert queue.poll() is None
    stepped.disable()
    assert stepped.enable().create().command(FLUSH, 1).status == 0


@pytest.mark.parametrize("device_reset", [ResetKind.BUS, ResetKind.FLR, ResetKind.POWER_ON])
def test_counters_survive_but_a_power_cycle(stepped, device_reset):
    queue = stepped.enable().create()
    assert get(queue, 0, stepped.page.address, 0, 1).status == 0
    stepped.device.reset(device_reset)
    assert stepped.device.reads == (0 if device_reset is ResetKind.POWER_ON else 1)
    assert stepped.device.registers.submission[1].size == 0
