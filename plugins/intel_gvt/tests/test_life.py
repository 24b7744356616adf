"""Clients, memory, power and vGPUs that come and go while engines work."""

import gc
import time
from pathlib import Path

import pytest

from .conftest import (
    BATCH,
    BLITTER,
    DATA,
    ENGINES,
    GGTT,
    GROWTH,
    PAGE,
    RENDER,
    SECONDS,
    Attacker,
    Driver,
    batch_start,
    endless,
    fill,
    load_register,
    resident,
    store,
    user_interrupt,
)


class TestLife:
    def test_memory_goes_while_it_is_used(self, pair):
        attacker, vgpu, honest, _ = pair
        attacker.batch(*fill(DATA, 4096, 0, 0, 1024, 1, 7), *batch_start(BATCH))
        attacker.go(BLITTER, batch_start(BATCH))
        vgpu.address_space.unmap_all()
        engine = vgpu.engine_at(BLITTER)
        honest.wait_until(lambda: engine.error, "the error")
        # The page, or the table that leads to it: whichever the blit came to next.
        assert "unreachable" in engine.error or "bad table" in engine.error
        honest.run(BLITTER, user_interrupt())

    @pytest.mark.parametrize("bus", ["loopback", "vfio-user"])
    def test_the_client_goes_in_the_middle_of_a_batch(self, gpu, bus):
        from umdev_testkit.functions import attach

        vgpu = gpu.create("i915-GVTg_V5_8")
        for _ in range(3):
            attacker = Attacker(attach(vgpu, bus))
            attacker.prepare()
            for base in ENGINES.values():
                attacker.go_batch(base, *endless())
            attacker.close()
            attacker.function.close()
            deadline = time.monotonic() + SECONDS
            while any(engine.busy for engine in vgpu.engines) or vgpu.attachment is not None:
                assert time.monotonic() < deadline
                time.sleep(0.001)
        driver = Driver(attach(vgpu, bus))
        assert driver.run(RENDER, user_interrupt())[-1][0] == 0x18
        driver.close()
        driver.function.close()
        vgpu.close()

    def test_bus_mastering_and_power_go_in_the_middle(self, pair):
        attacker, vgpu, honest, _ = pair
        for off, on in (
            (lambda: attacker.function.enable(bus_master=False), attacker.function.enable),
            (lambda: attacker.function.region_write(7, 0xD4, b"\x03"), attacker.function.enable),
        ):
            attacker.batch(*store(DATA, 1), *endless())
            attacker.go(RENDER, batch_start(BATCH))
            off()
            honest.wait_until(lambda: vgpu.engines[0].error, "the error")
            attacker.function.region_write(7, 0xD4, b"\0")
            on()
            attacker.reset_engine(RENDER)
            attacker.events(RENDER)
            assert attacker.run(BLITTER, user_interrupt())[-1][0] == 0x18
            assert honest.run(BLITTER, user_interrupt())[-1][0] == 0x18

    def test_a_command_that_is_late_writes_no_register_of_the_next_life(self, pair):
        from umdev_intel_gvt.commands.memory_interface import execute

        attacker, vgpu, honest, _ = pair
        attacker.go_batch(RENDER, *endless())
        engine = vgpu.engine_at(RENDER)
        honest.wait_until(lambda: engine._execution, "its beginning")
        late = engine._execution
        attacker.interrupts.close()
        attacker.function.reset()
        registers = vgpu.registers.render.general
        registers[1].value = 0x1234
        for command in (
            load_register(RENDER + 0x600, 0x5EC7),
            [0x2A << 23 | 1, RENDER + 0x608, RENDER + 0x600],
            [0x1A << 23, 0x580 << 20 | 0x31],
        ):
            assert execute(late, tuple(command)) is None
        assert [register.value for register in registers] == [0, 0x1234, *[0] * 14]

    def test_messages_that_nobody_hears_and_memory_that_is_read_only(self, gpu, loopback_function):
        import os

        from umdev.services import Protection

        vgpu = gpu.create("i915-GVTg_V5_8")
        driver = Driver(loopback_function(vgpu))
        driver.interrupts.close()
        driver.interrupts = None
        driver.function.region_write(7, vgpu.config.registers["msi.control"][0], b"\x01\0")
        descriptor = os.memfd_create("read-only")
        os.ftruncate(descriptor, PAGE)
        far = 1 << 38
        vgpu.address_space.map(far, PAGE, descriptor=descriptor, protection=Protection.READ)
        os.close(descriptor)
        table = driver.table()
        table.map(DATA, far)
        context = driver.context(RENDER, table)
        context.emit([*user_interrupt(), *store(DATA, 1)])
        driver.submit(context)
        deadline = time.monotonic() + SECONDS
        while not vgpu.engines[0].error:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert "not permitted" in vgpu.engines[0].error
        driver.close()

    def test_nothing_of_one_life_is_left_to_the_next(self, gpu, loopback_function):
        first = gpu.create("i915-GVTg_V5_8")
        driver = Driver(loopback_function(first))
        driver.run(RENDER, load_register(RENDER + 0x600, 0x5EC7))
        driver.mmio.write64(0x100000, 1)
        assert driver.mmio.read32(RENDER + 0x600) == 0x5EC7
        driver.close()
        driver.function.close()
        first.close()
        second = gpu.create("i915-GVTg_V5_8")
        driver = Driver(loopback_function(second), start=False)
        driver.handshake()
        assert second.slice == first.slice
        assert driver.mmio.read32(RENDER + 0x600) == driver.mmio.read64(0x100000) == 0
        assert driver.mmio.read64(GGTT + 8 * (driver.top // PAGE - 1)) == 0
        assert second.table.entries[:].strip(b"\0") == b""
        driver.close()

    def test_vgpus_come_and_go(self, gpu, loopback_function):
        def cycle():
            device = gpu.create("i915-GVTg_V5_8")
            with device:
                pass
            del device
            gc.collect()

        cycle()
        gc.collect()
        descriptors, before = len(list(Path("/proc/self/fd").iterdir())), resident()
        for _ in range(50):
            cycle()
        gc.collect()
        assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors
        assert resident() - before <= GROWTH
        assert gpu.partition.used == {}
