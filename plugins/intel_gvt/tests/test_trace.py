"""What a trace shows of an engine: its commands, among the accesses that led to them."""

from umdev.device import trace

from .conftest import RENDER, batch_end, batch_start, noop, store

DATA = 0x20_0000
BATCH = 0x10_0000


def test_commands_stand_among_the_accesses(vgpu, loopback_driver):
    driver = loopback_driver
    table, batch, data = driver.table(), driver.page(), driver.page()
    table.map(BATCH, batch)
    table.map(DATA, data)
    for number, dword in enumerate([*noop(5), *store(DATA, 7), *batch_end()]):
        driver.save(batch + 4 * number, dword)
    with trace.Trace() as traced:
        driver.run(RENDER, batch_start(BATCH), table)
    assert driver.load(data) == 7
    lines = [trace.line(record, vgpu.regions, vgpu.trace) for record in traced.read()]
    events = [text for text in lines if text.startswith("event")]
    assert [text.partition(" at ")[0] for text in events] == [
        "event render.MI_BATCH_BUFFER_START=0x18800101",
        "event render.without effect=0x5",
        "event render.MI_STORE_DATA_IMM=0x10000002",
        "event render.MI_BATCH_BUFFER_END=0x5000000",
        "event render.without effect=0x1",  # the ring's padding
    ]
    assert events[1].endswith(f" at {BATCH:#x}")
    assert events[2].endswith(f" at {BATCH + 20:#x} (16 bytes)")
    submitted = next(number for number, text in enumerate(lines) if "registers.render.submit_port=" in text)
    assert submitted < lines.index(events[0])
    assert vgpu.trace.wanted is False
