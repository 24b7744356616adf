"""The registers that C answers: as the model of them in Python answers, and without ever entering the interpreter."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from umdev_intel_gvt.engines import ENGINES as SPECS
from umdev_intel_gvt.interrupt_tree import EngineEvent

from .conftest import (
    BATCH,
    BLITTER,
    CSB,
    CSB_INDEX,
    DATA,
    MASTER,
    RENDER,
    SECONDS,
    Driver,
    batch_end,
    batch_start,
    endless,
    flush,
    store,
    user_interrupt,
)

ALL_ONES = 0xFFFF_FFFF
ENABLE = 1 << 31
GT, PCU = 0x44300, 0x444E0
IMR, IIR, IER = 4, 8, 12
BLOCKS = (GT, GT + 0x10, GT + 0x20, GT + 0x30, PCU)
EVENTS = (0, 3, 4, 8, 11)


class Tree:
    """What the interrupt tree is to do, in as few words as possible: bits have two places, messages are edges."""

    def __init__(self):
        self.master = 0
        self.imr = dict.fromkeys(BLOCKS, ALL_ONES)
        self.iir = dict.fromkeys(BLOCKS, 0)
        self.ier = dict.fromkeys(BLOCKS, 0)
        self.second = dict.fromkeys(BLOCKS, 0)
        self.masks = {spec.base: ALL_ONES for spec in SPECS}
        self.level, self.messages = False, 0

    @property
    def pending(self):
        found = 0
        for number, block in enumerate(BLOCKS[:4]):
            wanted = self.iir[block] & self.ier[block]
            found |= bool(wanted & 0xFFFF) << 2 * number | bool(wanted >> 16) << 2 * number + 1
        return found | bool(self.iir[PCU] & self.ier[PCU]) << 30

    def evaluate(self):
        level = bool(self.master and self.pending)
        self.messages += level and not self.level
        self.level = level

    def event(self, spec, event):
        block, bit = BLOCKS[spec.interrupt_block], 1 << event + spec.shift
        if not bit & (self.masks[spec.base] | self.imr[block]):
            self.second[block] |= self.iir[block] & bit
            self.iir[block] |= bit
        self.evaluate()

    def write(self, offset, value):
        if offset == MASTER:
            self.master = value & ENABLE
        elif offset & ~0xF in self.iir:
            block = offset & ~0xF
            if offset & 0xF == IIR:
                self.iir[block] &= ~value
                self.evaluate()
                self.iir[block] |= self.second[block] & value
                self.second[block] &= ~value
            else:
                (self.imr if offset & 0xF == IMR else self.ier)[block] = value
        elif offset - 0xA8 in self.masks:
            self.masks[offset - 0xA8] = value
        self.evaluate()

    def read(self, offset):
        block = offset & ~0xF
        if offset == MASTER:
            return self.master | self.pending
        return {IMR: self.imr, IIR: self.iir, IER: self.ier}[offset & 0xF][block]


PLACES = [MASTER, *(block + at for block in BLOCKS for at in (IMR, IIR, IER))]
EVERYTHING = [("read", place, None) for place in PLACES]
places = st.sampled_from(PLACES)
values = st.one_of(
    st.sampled_from([0, ALL_ONES, ENABLE, *(1 << event + shift for event in EVENTS for shift in (0, 16))]),
    st.integers(0, ALL_ONES),
)
steps = st.one_of(
    st.tuples(st.just("write"), places | st.sampled_from([spec.base + 0xA8 for spec in SPECS]), values),
    st.tuples(st.just("event"), st.sampled_from(SPECS), st.sampled_from(EVENTS)),
    st.tuples(st.just("again"), st.sampled_from(SPECS), st.sampled_from(EVENTS)),
    st.tuples(st.just("acknowledge"), st.sampled_from(BLOCKS), st.none()),
    st.tuples(st.just("read"), places, st.none()),
)


@pytest.fixture
def quiet(vgpu, loopback_function):
    """A driver that has done nothing yet."""
    driver = Driver(loopback_function(vgpu), start=False)
    yield driver
    driver.close()


OPENING = [
    *(("write", spec.base + 0xA8, 0) for spec in SPECS),
    *(("write", block + at, value) for block in BLOCKS for at, value in ((IMR, 0), (IER, ALL_ONES))),
    ("write", MASTER, ENABLE),
]
"""Nothing is masked."""


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.booleans(), st.lists(steps, max_size=60))
def test_the_tree_does_as_its_model(vgpu, quiet, opened, sequence):
    quiet.function.reset()
    quiet.function.enable()
    model = Tree()
    before = vgpu.messages_sent
    for what, where, value in [*(OPENING if opened else ()), *sequence, *EVERYTHING]:
        if what == "write":
            quiet.mmio.write32(where, value)
            model.write(where, value)
        elif what in ("event", "again"):
            for _ in range(2 if what == "again" else 1):
                with vgpu.locked():
                    vgpu.hot.raise_event(where, value)
                model.event(where, value)
        elif what == "acknowledge":  # as a driver does: what it has seen
            seen = quiet.mmio.read32(where + IIR)
            quiet.mmio.write32(where + IIR, seen)
            model.write(where + IIR, seen)
        else:
            assert quiet.mmio.read32(where) == model.read(where)
    assert vgpu.messages_sent - before == model.messages


def test_every_block_has_its_bits_in_the_master(quiet, vgpu):
    tree = vgpu.registers.interrupts
    for number, block in enumerate(tree.gt):
        for bits, shown in ((1, 1), (1 << 16, 2), (1 | 1 << 31, 3)):
            block.iir.value, block.ier.value = bits, ALL_ONES
            assert quiet.mmio.read32(MASTER) == shown << 2 * number
        block.iir.value = 0
    tree.pcu.iir.value = 1
    assert quiet.mmio.read32(MASTER) == 0
    tree.pcu.ier.value = 1
    assert quiet.mmio.read32(MASTER) == 1 << 30


def test_what_is_enabled_late_is_a_message_then(quiet, vgpu):
    quiet.mmio.write32(RENDER + 0xA8, 0)
    quiet.mmio.write32(GT + IMR, 0)
    quiet.mmio.write32(MASTER, ENABLE)
    with vgpu.locked():
        vgpu.engines[0].raise_event(EngineEvent.USER)
    assert vgpu.messages_sent == 0
    quiet.mmio.write32(GT + IER, 1)
    assert vgpu.messages_sent == 1


def test_blocks_that_no_event_comes_to_are_registers(quiet, vgpu):
    for block in (0x44400, 0x44440, 0x44460, 0xC4000):
        quiet.mmio.write32(block + IER, 0x1234_5678)
        quiet.mmio.write32(block + IIR, ALL_ONES)
        quiet.mmio.write32(block + IMR, 5)
        assert [quiet.mmio.read32(block + at) for at in (0, IMR, IIR, IER)] == [0, 5, 0, 0x1234_5678]
    assert vgpu.messages_sent == 0


def test_the_pin_follows_the_tree_where_there_are_no_messages(quiet, vgpu):
    lines = quiet.function.enable_interrupts("intx")
    quiet.mmio.write32(RENDER + 0xA8, 0)
    for at, value in ((IMR, 0), (IER, ALL_ONES)):
        quiet.mmio.write32(GT + at, value)
    quiet.mmio.write32(MASTER, ENABLE)
    with vgpu.locked():
        vgpu.engines[0].raise_event(EngineEvent.USER)
    assert lines.wait(timeout=SECONDS) == 1
    assert quiet.function.region_read(7, 6, 2)[0] & 1 << 3
    quiet.mmio.write32(GT + IIR, 1)
    assert not quiet.function.region_read(7, 6, 2)[0] & 1 << 3
    lines.close()


def test_a_reset_forgets_second_places_and_a_part_of_a_submission(loopback_driver, vgpu):
    driver = loopback_driver
    with vgpu.locked():
        vgpu.engines[0].raise_event(EngineEvent.USER)
        vgpu.engines[0].raise_event(EngineEvent.USER)
    driver.mmio.write32(RENDER + 0x230, ALL_ONES)
    driver.interrupts.close()
    driver.function.reset()
    driver.function.enable()
    driver.status.clear()
    driver.start()
    with vgpu.locked():
        vgpu.engines[0].raise_event(EngineEvent.USER)
    assert driver.interrupts.wait(timeout=SECONDS) == 1
    driver.mmio.write32(GT + IIR, 1)
    assert driver.mmio.read32(GT + IIR) == 0
    context = driver.context(RENDER)
    context.emit(user_interrupt())
    driver.submit(context)
    assert driver.wait_idle(RENDER)[-1] == (0x18, context.identity)


def handled_in_python(region):
    """Of a BAR, the registers whose handlers in Python have been called so far."""
    return {
        slot.path
        for number, slot in enumerate(region.registers())
        for handlers in (region.reads, region.writes)
        if handlers and handlers[number] is not None
    }


def test_a_submission_and_its_interrupt_call_no_handler_in_python(loopback_driver, vgpu):
    driver = loopback_driver
    context = driver.context(BLITTER)  # its table is announced: that is Python's
    bus, graphics = driver.status[BLITTER]
    before = handled_in_python(vgpu.regions[0])
    for number in range(1, 4):
        context.emit([*flush(graphics + 0x200, number), *user_interrupt()])
        driver.submit(context)
        driver.wait_idle(BLITTER)
        assert driver.load(bus + 0x200) == number
    assert handled_in_python(vgpu.regions[0]) == before
    assert vgpu.engines[1].submissions == 3
    assert before


def test_a_context_that_is_submitted_again_without_end_floods_nothing(loopback_driver, vgpu):
    """Each time is an event; of more than the status buffer holds, its last ones are left."""
    driver = loopback_driver
    table = driver.table()
    batch = driver.page()
    table.map(BATCH, batch)
    for number, dword in enumerate(endless()):
        driver.save(batch + 4 * number, dword)
    context = driver.context(RENDER, table)
    context.emit(endless())
    for _ in range(2000):
        driver.submit(context)
    native = vgpu.hot.native.engines[0]
    driver.wait_until(lambda: native.noted == 0 and not native.again, "an engine that has heard of all")
    slot = driver.load(driver.status[RENDER][0] + CSB_INDEX)
    assert slot == (5 + 2000) % 6  # one to active, 1999 times again
    entries = [driver.load(driver.status[RENDER][0] + CSB + 8 * entry) for entry in range(6)]
    assert entries == [0x8002] * 6
    driver.reset_engine(RENDER)


def test_work_that_is_added_to_a_ring_in_time_belongs_to_the_run(loopback_driver, vgpu):
    """Submitted again while it runs, a context goes on with what is new in its ring."""
    driver = loopback_driver
    table = driver.table()
    batch, data = driver.page(), driver.page()
    table.map(BATCH, batch)
    table.map(DATA, data)
    driver.save(batch, 0x1C << 23 | 4 << 12 | 2)  # MI_SEMAPHORE_WAIT: until the dword equals
    for number, dword in enumerate((1, DATA & ALL_ONES, DATA >> 32, *batch_end()), 1):
        driver.save(batch + 4 * number, dword)
    context = driver.context(RENDER, table)
    context.emit(batch_start(BATCH))
    driver.submit(context)
    driver.wait_until(lambda: vgpu.engines[0].queue.steps > 0)
    context.emit(store(DATA + 8, 7))
    driver.submit(context)
    driver.save(data, 1)
    events = driver.wait_idle(RENDER)
    assert driver.load(data + 8) == 7
    assert context.head == context.tail
    assert events[0] == (0x01, 0)
    assert events[-1] == (0x18, context.identity)
    assert {event for event, _ in events[1:-1]} <= {0x8002}
