"""Each conformance check finds what it is for."""

import pytest
from umdev.device import Block, Device, MemoryBar, PciId, Register, ResetKind, State
from umdev_testkit import conformance


class Counter(Block["Forgetful"]):
    value = Register(0)
    writes = State(lambda: 0)

    @value.on_write
    def count(self, value: int) -> None:
        self.writes += 1


class Forgetful(Device):
    pci = PciId(vendor=0x1234, device=1, class_code=0xFF0000)
    bar0 = MemoryBar(0, Counter, size=4096)


@pytest.fixture
def device():
    return Forgetful()


@pytest.fixture
def function(device, loopback_function):
    return loopback_function(device)


def test_a_model_conforms(device, function):
    device.save()  # else the checks would compare nothing
    conformance.check(function, device)
    assert device.bar0.writes == 0


def test_what_a_reset_leaves_is_found(loopback_function):
    class Sticky(Forgetful):
        def on_reset(self, kind):
            self.bar0.value.value = next(kept)

    kept = iter([0, 0, 0, 0, 7, 0])
    device = Sticky()
    with pytest.raises(AssertionError, match="compared with power-on"):
        conformance.check_reset(loopback_function(device), device)


def test_what_a_restore_loses_is_found(loopback_function):
    class Lossy(Forgetful):
        def restore(self, saved_state):
            self.reset(ResetKind.POWER_ON)

    device = Lossy()
    device.bar0.value.value = 5
    with pytest.raises(AssertionError, match="saved again"):
        conformance.check_save(device)


def test_a_refusal_to_be_saved_is_no_failure():
    class Undeclared(Forgetful):
        def on_open(self):
            self.beside = 1

    with Undeclared() as device:
        conformance.check_save(device)


def test_a_function_that_answers_though_it_is_off_is_found(function, monkeypatch):
    monkeypatch.setattr(function.bars[0], "read", lambda offset, length: bytes(length))
    with pytest.raises(AssertionError, match="BAR 0 answers 00000000 though its decoding is disabled"):
        conformance.check_decoding(function)


def test_sizes_that_disagree_are_found(function, monkeypatch):
    monkeypatch.setattr(type(function.bars[0]), "size", 8192)
    with pytest.raises(AssertionError, match="BAR 0: 0x1000 bytes by sizing, 0x2000 else"):
        conformance.check_bars(function)
