"""What i915 did in a good boot, played again to a new vGPU with no guest: the same answers, the same memory."""

import ctypes
import os
import struct
import threading
import time

import pytest
from umdev._native import ffi

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

PAGE = 4096
MEMORY = 512 << 20
PAGE_MASK = 0x7F_FFFF_F000
ENGINES = (0x02000, 0x12000, 0x1A000, 0x22000)
SUBMIT, STATUS_PAGE = 0x230, 0x80
SECONDS = 120
MOMENTARY = {base + offset for base in ENGINES for offset in (0x358, 0x35C)}
"""What depends on the time."""
EVENTS = slice(0x40, 0x80)
"""Of a status page: the driver takes each event out of it."""


class Recorder:
    """Notes the guest memory that each submission can reach: pages of the global table, and of the process's tables."""

    def __init__(self, vgpu):
        self.vgpu = vgpu
        self.known = {}
        self.submissions = []

    def submission(self, elements):
        changed = {}
        for page in self.reachable(elements):
            content = self.vgpu.memory.read(page, PAGE)
            if self.known.get(page) != content:
                self.known[page] = changed[page] = content
        self.submissions.append(changed)

    def reachable(self, elements):
        found = {entry & PAGE_MASK for entry in self.entries(self.vgpu.table.entries[:]) if entry & 1}
        for element in elements:
            if not element.valid:
                continue
            image = self.vgpu.memory_of_driver.ggtt.read(element.image + PAGE, 0x34 * 4)
            level = {struct.unpack_from("<I", image, 4 * 0x33)[0] | struct.unpack_from("<I", image, 4 * 0x31)[0] << 32}
            for _ in range(4):
                found |= level
                tables = (self.vgpu.memory.read(table, PAGE) for table in level)
                level = {entry & PAGE_MASK for table in tables for entry in self.entries(table) if entry & 1}
            found |= level
        return found

    @staticmethod
    def entries(table):
        return struct.unpack(f"<{len(table) // 8}Q", table)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    from umdev_intel_gvt import IntelGpu

    monkeypatch.setenv("UMDEV_RUNTIME_DIR", str(tmp_path / "run"))
    gpu = IntelGpu()
    yield gpu
    gpu.close()


def results(vgpu, read):
    """Of each engine: its status page, as memory has it, and the events that it has reported."""
    found = []
    for engine in vgpu.engines:
        index = engine.ring.status_page.value // PAGE
        (entry,) = struct.unpack_from("<Q", vgpu.table.entries, 8 * index)
        page = bytearray(read(entry & PAGE_MASK, PAGE))
        del page[EVENTS]
        events = [register.value for register in engine.ring.status_buffer]
        found.append((bytes(page), events, engine.ring.status_pointer.write_pointer))
    return found


def one_thing_at_a_time(vgpu):
    """Let an access wait until the engines are idle, so that what it is answered does not depend on their speed."""

    @ctypes.CFUNCTYPE(
        ctypes.c_int, *[ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p], *[ctypes.c_uint32] * 2
    )
    def wait(*_):
        while any(engine.busy for engine in vgpu.engines):
            time.sleep(0.0001)
        return -1

    vgpu.native.set_intercept(
        ffi.cast("umdev_intercept", ctypes.cast(wait, ctypes.c_void_p).value), ffi.new_handle(wait)
    )
    return wait


def record(gpu, linux_guest, monkeypatch, tmp_path):
    """Boot a guest; the accesses to BAR 0, the memory of each submission, and the status pages at the end."""
    from umdev.device.trace import Trace
    from umdev_intel_gvt.context import Descriptor
    from umdev_intel_gvt.execlists import EngineState
    from umdev_vfio_user import bus

    take, recorders = EngineState._take, {}

    def recorded(engine):
        """The scheduler's thread fetches what was submitted: the engine was idle, since every access waits for that."""
        with engine.vgpu.locked():
            submitted = engine._submitted
            if submitted.fresh:
                elements = [Descriptor(element) for element in submitted.elements[0 : submitted.count]]
                recorders[engine.vgpu].submission(elements)
        take(engine)

    monkeypatch.setattr(EngineState, "_take", recorded)
    vgpu = gpu.create("i915-GVTg_V5_8")
    recorder = recorders[vgpu] = Recorder(vgpu)
    kept = one_thing_at_a_time(vgpu)
    with Trace(1 << 17) as trace, bus.serve(vgpu, path=str(tmp_path / "s")) as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            guest = linux_guest.start(
                kernel="full", modules=("i915",), memory=MEMORY >> 20, devices=[tmp_path / "s"], timeout=600
            )
            wait_for(lambda: vgpu.registers.pvinfo.display_ready.value == 1)
            guest.run("mount -t debugfs debugfs /sys/kernel/debug")
            assert guest.run("cat /sys/kernel/debug/dri/0/i915_wedged").strip() == "0"
            for engine in vgpu.engines:
                wait_for(lambda engine=engine: not engine.busy)
            found = results(vgpu, vgpu.memory.read)
            records = [entry for entry in trace.read() if entry.region == 0 and entry.device == vgpu.native.id]
            guest.close()
        finally:
            server.stop()
            thread.join()
    vgpu.close()
    del kept
    monkeypatch.setattr(EngineState, "_take", take)
    return records, recorder.submissions, found


def wait_for(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_boot_replays(gpu, linux_guest, monkeypatch, tmp_path):
    records, submissions, expected = record(gpu, linux_guest, monkeypatch, tmp_path)
    assert len(submissions) >= 12
    assert len(records) > 1000

    vgpu = gpu.create("i915-GVTg_V5_8")
    memory = os.memfd_create("replay", os.MFD_CLOEXEC)
    try:
        os.ftruncate(memory, MEMORY)
        vgpu.address_space.map(0, MEMORY, descriptor=memory)
        vgpu.native.write(7, 4, struct.pack("<H", 7))  # memory decoding, bus mastering
        parts = dict.fromkeys(ENGINES, 0)
        left = iter(submissions)
        compared = 0
        for entry in records:
            base = entry.offset - SUBMIT
            if entry.write and base in parts:
                parts[base] += 1
                if parts[base] % 4 == 0:
                    for page, content in next(left).items():
                        os.pwrite(memory, content, page)
            if entry.write:
                vgpu.native.write(0, entry.offset, entry.value.to_bytes(8, "little")[: entry.length])
                for engine in vgpu.engines:
                    wait_for(lambda engine=engine: not engine.busy)
                continue
            answer = int.from_bytes(vgpu.native.read(0, entry.offset, entry.length), "little")
            if entry.offset & ~3 not in MOMENTARY:
                assert (hex(entry.offset), hex(answer)) == (hex(entry.offset), hex(entry.value))
                compared += 1
        assert compared > 200
        assert results(vgpu, lambda page, length: os.pread(memory, length, page)) == expected
        assert vgpu.errors == 0
        assert vgpu.native.burn_down() == []
    finally:
        vgpu.close()
        os.close(memory)
