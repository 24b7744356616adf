"""Memory, resets and vGPUs that come and go while channels work."""

import gc
from pathlib import Path

from umdev_softgpu import Reason

from .conftest import (
    ALL_ONES,
    DATA,
    FENCE,
    GROWTH,
    MIB,
    PAGE,
    VIDEO,
    Attacker,
    Driver,
    bind_copy,
    copy,
    interrupt,
    resident,
)


class TestLife:
    def test_memory_goes_while_it_is_used(self, gpu, loopback_function):
        vgpus = [gpu.create("nvidia-36") for _ in range(2)]
        attacker, honest = (Attacker(loopback_function(vgpu)).start() for vgpu in vgpus)
        channel = attacker.prepare()
        attacker.poke(attacker.data, b"data")
        channel.go(*bind_copy(), *copy(DATA, VIDEO, PAGE, ALL_ONES), *interrupt())
        # Not by the engine's steps: on a busy machine some may end before the copy begins.
        attacker.wait_until(lambda: attacker.load(attacker.video) == int.from_bytes(b"data", "little"), "the copy")
        vgpus[0].address_space.unmap_all()
        attacker.wait_until(attacker.faulted, "the fault")
        assert attacker.mmio.read32(0x29BC) & 0xF == 0xD
        honest.prepare()
        honest.fence_comes()
        attacker.interrupts.close()
        honest.close()

    def test_a_reset_ends_a_copy(self, attack):
        attacker, vgpu = attack
        attacker.victim.go(*bind_copy(), *copy(VIDEO, VIDEO, PAGE, ALL_ONES))
        channel = vgpu.registers.fifo.channels.known[0]
        attacker.wait_until(lambda: channel.queue.steps, "its beginning")
        attacker.interrupts.close()
        attacker.function.reset()
        attacker.function.enable()
        attacker.wait_until(lambda: channel.queue.running is None and not channel.queue.waiting, "its end")
        assert vgpu.vram.memory[: 16 * MIB].strip(b"\0") == b""
        attacker.interrupts = attacker.function.enable_interrupts("msi")

    def test_a_step_that_is_late_reaches_nothing_of_the_next_life(self, attack):
        attacker, vgpu = attack
        attacker.fence_comes()
        late = vgpu.registers.fifo.channels.known[0]._execution
        attacker.interrupts.close()
        attacker.function.reset()
        attacker.function.enable()
        attacker.interrupts = attacker.function.enable_interrupts("msi")
        for register in (0x140, 0x2140):
            attacker.mmio.write32(register, ALL_ONES)
        late.user_page.show(7, 7 << 32 | 7)
        late.non_stall_interrupt()
        late.copy_done(1)
        assert late.space.write(FENCE, b"late").reason == Reason.CLOSED
        assert late.user_page.put == 0
        assert vgpu.vram.memory[: 16 * MIB].strip(b"\0") == b""
        assert attacker.mmio.read32(0x100) == 0

    def test_nothing_of_one_life_is_left_to_the_next(self, gpu, loopback_function):
        with gpu.create("nvidia-36") as first:
            driver = Driver(loopback_function(first)).start()
            driver.save(driver.vram(PAGE), 0x5EC7E7)
            driver.close()
            driver.function.close()
        with gpu.create("nvidia-36") as second:
            function = loopback_function(second)
            assert second.vram.memory[: 64 * MIB].strip(b"\0") == b""
            assert function.bars[0].read32(0x1704) == 0
            function.close()

    def test_vgpus_come_and_go(self, gpu):
        def cycle():
            gpu.create("nvidia-36").close()
            gc.collect()

        cycle()
        descriptors, before = len(list(Path("/proc/self/fd").iterdir())), resident()
        for _ in range(30):
            cycle()
        assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
        assert resident() - before <= GROWTH
