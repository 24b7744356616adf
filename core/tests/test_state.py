"""Declared state: defaults, reset, save and restore."""

from collections import deque

import pytest
from umdev.device import state
from umdev.device.state import State
from umdev.errors import DeclarationError, SaveError


class Engine:
    buffer = State(lambda: bytearray(4))
    queue = State(lambda: deque([1], maxlen=9))
    serial = State(lambda: 7, keep=True)
    socket = State(lambda: None, save=False)
    seen: State[set[int]] = State(set)


class Turbo(Engine):
    serial = State(lambda: 8)


def test_each_instance_has_its_own():
    one, other = Engine(), Engine()
    one.buffer[0] = 1
    assert other.buffer[0] == 0


def test_reset_spares_what_is_kept_and_what_is_the_hosts():
    engine = Engine()
    engine.serial, engine.socket, engine.buffer[0] = 1, "s", 9
    state.reset({"": engine}, everything=False)
    assert (engine.serial, engine.socket, engine.buffer[0]) == (1, "s", 0)
    state.reset({"": engine}, everything=True)
    assert (engine.serial, engine.socket) == (7, "s")


def test_a_subclass_overrides():
    assert Turbo().serial == 8
    assert list(state.declared(Turbo)) == ["buffer", "queue", "serial", "socket", "seen"]


def test_save_and_restore_keep_values_and_types():
    engine = Engine()
    engine.buffer[:] = b"abcd"
    engine.queue.append(5)
    engine.seen |= {3, 1}
    saved = state.save({"bar0.engine": engine})
    assert saved["bar0.engine.buffer"] == b"abcd"
    assert "bar0.engine.socket" not in saved
    other = Engine()
    state.restore({"bar0.engine": other}, saved)
    assert (other.buffer, other.queue, other.seen) == (bytearray(b"abcd"), deque([1, 5]), {1, 3})
    assert other.queue.maxlen == 9


def test_what_is_no_plain_data_is_named():
    engine = Engine()
    engine.queue.append(object())
    with pytest.raises(SaveError, match=r"x\.queue\[1\] is a object"):
        state.save({"x": engine})


def test_nested_containers_come_back_as_the_default_has_them():
    class Ports:
        fifos = State(lambda: [bytearray(2), deque(maxlen=3)])
        pair = State(lambda: {"at": (1, 2)})

    saving = Ports()
    saving.fifos[0][:] = b"xy"
    saving.fifos[1].append(4)
    saving.fifos.append(5)
    state.restore({"": (ports := Ports())}, state.save({"": saving}))
    assert ports.fifos == [bytearray(b"xy"), deque([4]), 5]
    assert ports.fifos[1].maxlen == 3
    ports.fifos[0][0] = 1
    assert ports.pair == {"at": (1, 2)}


def test_a_set_without_an_order_is_named():
    engine = Engine()
    engine.seen = {1, "a"}
    with pytest.raises(SaveError, match=r"x\.seen is a set"):
        state.save({"x": engine})


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_restore_wants_exactly_the_declared_names(change):
    saved = state.save({"": Engine()})
    if change == "missing":
        del saved["buffer"]
    else:
        saved["cache"] = 1
    engine = Engine()
    engine.serial = 1
    with pytest.raises(SaveError, match="buffer" if change == "missing" else "cache"):
        state.restore({"": engine}, saved)
    assert engine.serial == 1


@pytest.mark.parametrize(("name", "value"), [("serial", "7"), ("serial", [7]), ("buffer", [1]), ("seen", {})])
def test_a_value_keeps_the_kind_of_its_default(name, value):
    saved = state.save({"": Engine()})
    engine = Engine()
    with pytest.raises(SaveError, match=f"x.{name} is of type {type(value).__name__}, its default "):
        state.restore({"x": engine}, {f"x.{key}": item for key, item in {**saved, name: value}.items()})
    assert engine.serial == 7
    setattr(engine, name, value)
    with pytest.raises(SaveError, match=f"x.{name} is of type"):
        state.save({"x": engine})
    for fitting in (None, getattr(Engine(), name)):
        setattr(engine, name, fitting)
        state.restore({"": engine}, state.save({"": engine}))
        assert getattr(engine, name) == fitting


def test_a_default_is_a_function():
    with pytest.raises(DeclarationError, match="lambda"):
        State(5)
