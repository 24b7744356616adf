"""Where blocks are kept, and what is kept of a device: its state by name, its blocks in their file."""

import os
import random
from pathlib import Path

import pytest
from umdev.device import DeviceContext, InvalidArgument, ManualClock, NoInstanceLeft
from umdev_nvme import Nvme64M, parent
from umdev_testkit.functions import attached

SIZE = 64 << 20
FLUSH, WRITE, READ = 0, 1, 2


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "disk"


@pytest.fixture
def disk(loopback_function, file, make_driver):
    """A driver of a device that keeps its blocks in `file`."""
    device = parent.create("nvme-64m", attributes={"store": f"file:{file}"})
    return make_driver(loopback_function(device), device)


def test_a_file_keeps_the_blocks(disk, file, make_driver):
    assert file.stat().st_mode & 0o777 == 0o600
    queue = disk.enable().create()
    data = random.randbytes(4096)
    disk.page.write(0, data)
    assert queue.command(WRITE, 1, disk.page.address, 0, 8, 0, 7).status == 0
    assert file.read_bytes()[4096:8192] == data
    assert file.stat().st_size == SIZE
    assert file.stat().st_blocks < 100, "sparse"
    assert disk.device.query("blocks") == str(file)
    disk.function.close()
    disk.device.close()
    device = parent.create("nvme-64m", attributes={"store": f"file:{file}"})
    with attached(device, "loopback") as function:
        again = make_driver(function, device)
        assert again.enable().create().command(READ, 1, again.page.address, 0, 8, 0, 7).status == 0
        assert again.page.read(0, 4096) == data


def test_a_file_that_will_not_do(disk, file, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(bytes(4096))
    for where, text in (
        (f"file:{file}", "in use"),
        (f"file:{other}", "has 4096 bytes, this type needs 67108864"),
        ("file:/dev/null", "no regular file"),
        ("file:", "'memory' or 'file:PATH'"),
        ("tape", "'memory' or 'file:PATH'"),
    ):
        before = open_descriptors()
        with pytest.raises(InvalidArgument, match=text):
            parent.create("nvme-64m", attributes={"store": where})
        assert open_descriptors() == before
    with pytest.raises(FileNotFoundError):
        parent.create("nvme-64m", attributes={"store": f"file:{tmp_path}/nowhere/disk"})
    assert other.read_bytes() == bytes(4096)


def test_a_file_that_shrinks_is_a_media_error(disk, file):
    queue = disk.enable().create()
    os.truncate(file, 1 << 20)
    completion = queue.command(READ, 1, disk.page.address, 0, 2048, 0, 7)
    assert completion.status == 0x281, "worth another try"
    assert queue.command(READ, 1, disk.page.address, 0, 0, 0, 7).status == 0


def test_a_full_disk_is_a_write_fault(stepped, monkeypatch):
    import errno

    def no_room(*arguments):
        raise OSError(errno.ENOSPC, "no room")

    queue = stepped.enable().create()
    monkeypatch.setattr(os, "pwrite", no_room)
    for opcode in (WRITE, 8):
        assert queue.command(opcode, 1, stepped.page.address, 0, 0, 0, 7).status == 0x280
    assert queue.command(FLUSH, 1).status == 0


def test_storage_is_shared_out(tmp_path, monkeypatch):
    monkeypatch.setenv("UMDEV_RUNTIME_DIR", str(tmp_path / "run"))  # instances are this test's own
    devices = [parent.create("nvme-1g") for _ in range(3)]
    try:
        assert parent.available_instances("nvme-1g") == 1
        assert parent.available_instances("nvme-64m") == 16
        devices.append(parent.create("nvme-64m"))
        assert parent.available_instances("nvme-1g") == 0
        with pytest.raises(NoInstanceLeft):
            parent.create("nvme-1g")
        assert devices[0].capacity == 1 << 30
        assert Path(devices[0].query("blocks")).stat().st_blocks == 0
    finally:
        for device in devices:
            device.close()
    assert parent.available_instances("nvme-1g") == 4


def test_a_device_goes_on_where_it_was_saved(loopback_function, make_driver, file):
    """Queues, features, waiting requests, and commands that were submitted but not yet carried out."""

    def make():
        return Nvme64M(DeviceContext(clock=ManualClock(), attributes={"store": f"file:{file}"}))

    device = make()
    with attached(device, "loopback") as function:
        driver = make_driver(function, device)
        driver.enable()
        queue = driver.create(vector=3, entries=4)
        driver.admin.submit(12)
        for _ in range(5):
            assert queue.command(FLUSH, 1).status == 0
        driver.admin.command(9, 0, 0, 0, 4, 333)
        data = random.randbytes(4096)
        driver.page.write(0, data)
        written = queue.submit(WRITE, 1, driver.page.address, 0, 16, 0, 7)
        assert device.work.pending
        saved = device.save()
        buffers = [driver.page, *driver.admin.buffers, *queue.buffers]
        memory = [buffer.read(0, buffer.size) for buffer in buffers]
    device = make()
    function = driver.function = loopback_function(device)
    driver.device, driver.bar = device, function.bars[0]
    moved = [function.allocate(buffer.size) for buffer in buffers]
    assert [buffer.address for buffer in moved] == [buffer.address for buffer in buffers]
    for buffer, content in zip(moved, memory, strict=True):
        buffer.write(0, content)
    driver.page, driver.admin.buffers, queue.buffers = moved[0], moved[1:3], moved[3:5]
    device.restore(saved)
    device.clock.advance()
    completion = queue.wait()
    assert (completion.command, completion.status) == (written, 0)
    assert file.read_bytes()[8192:12288] == data
    assert queue.command(FLUSH, 1).status == 0
    assert driver.admin.command(10, 0, 0, 0, 4).result == 333
    driver.bar.write32(0x1000 + 8 * 7, 1)
    device.clock.advance()
    assert driver.admin.wait().result == 0x01_00_00
    assert device.registers.completion[1].vector == 3
