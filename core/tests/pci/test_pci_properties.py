"""What holds for every access, whoever makes it and however it is cut."""

from hypothesis import given, settings
from hypothesis import strategies as st
from umdev.pci import Msi, Msix, PciExpress, PowerManagement, VendorSpecific

FULL = (PowerManagement(), Msi(8, masking=True), Msix(4, 0), PciExpress(), VendorSpecific(b"abcdef", b"\xff\x0f\xf0"))
offsets = st.one_of(st.integers(0, 0x110), st.integers(4090, 4100))
# Ones meet enables, sizing and write-one-to-clear far more often than random bytes do.
bytes_of_drivers = st.one_of(st.binary(min_size=1, max_size=20), st.integers(1, 20).map(lambda n: b"\xff" * n))
writes = st.lists(st.tuples(offsets, bytes_of_drivers), max_size=12)


def gates(space):
    """What the function believes after all it was told."""
    state = {}
    for what, *values in space.control.take():
        if what == "bar":
            state[what, values[0]] = values[1]
        else:
            state[what] = values
    return state


@settings(deadline=None)  # a busy machine is no failure
@given(writes)
def test_a_wide_write_is_its_bytes(make_space, script):
    wide, narrow = make_space(*FULL), make_space(*FULL)
    for space in (wide, narrow):
        space.config.report_errors(0xF900)
    told = {}, {}
    for offset, data in script:
        wide.config.write(offset, data)
        for at, byte in enumerate(data, offset):
            narrow.config.write(at, bytes([byte]))
        for space, state in zip((wide, narrow), told, strict=True):
            state.update(gates(space))
        assert wide.config.read(0, 4096) == narrow.config.read(0, 4096)
    # A BAR that moved twice where one write moved it once was still told the same in the end.
    assert told[0] == {k: v for k, v in told[1].items() if k in told[0]}


@settings(deadline=None)  # a busy machine is no failure
@given(writes, offsets, st.integers(0, 40))
def test_a_wide_read_is_its_bytes(make_space, script, offset, length):
    space = make_space(*FULL)
    space.control.level, space.control.pending = True, 0xA5
    for at, data in script:
        space.config.write(at, data)
    whole = space.config.read(offset, length)
    assert len(whole) == length
    assert whole == b"".join(space.config.read(at, 1) for at in range(offset, offset + length))


@settings(deadline=None)  # a busy machine is no failure
@given(writes)
def test_nothing_read_only_ever_changes(make_space, script):
    space, fresh = make_space(*FULL), make_space(*FULL)
    for at, data in script:
        space.config.write(at, data)
    saved = space.config.save()
    for name, (offset, width) in space.config.registers.items():
        if name not in saved:
            assert space.get(offset, width) == fresh.get(offset, width), name
    fresh.config.restore(saved)
    assert fresh.config.read(0, 4096) == space.config.read(0, 4096)


@settings(deadline=None)  # a busy machine is no failure
@given(writes)
def test_what_the_function_was_told_is_what_the_registers_say(make_space, script):
    space = make_space(*FULL)
    state = {"memory": [False], "io": [False], "bus_master": [False], "rom": [False], "msi": [1, 0], "interrupts": [0]}
    for at, data in script:
        space.config.write(at, data)
        state.update(gates(space))
    awake = space.config.power_state == 0
    assert state["memory"] == [awake and bool(space.config.command & 2)]
    assert state["io"] == [awake and bool(space.config.command & 1)]
    assert state["bus_master"] == [awake and bool(space.config.command & 4)]
    for index in space.config.bars:
        if space.config.bar_decodes(index):
            assert state["bar", index] == space.config.bar_address(index)
