"""Interrupts from the driver's side, against a real configuration space and port."""

import gc
import threading
from pathlib import Path

import pytest
from umdev.errors import InvalidArgument, NotSupported, StateError
from umdev.pci import BarInfo, Interrupts, IrqIndex

KINDS = ("msix", "msi", "intx")


def open_descriptors():
    gc.collect()  # what earlier tests left
    return {link.name for link in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_arrives_by_each_kind(function, kind):
    function.enable()
    with function.enable_interrupts(kind) as interrupts:
        assert function.port.mode == kind
        assert interrupts.wait(timeout=0) == 0
        function.port.raise_()
        assert interrupts.wait(timeout=5) == 1
        assert interrupts.wait(timeout=0) == 0
        function.port.lower()
        interrupts.acknowledge()
        assert interrupts.wait(timeout=0) == 0
    assert function.port.mode == "intx"
    with function.enable_interrupts(kind) as again:
        function.port.raise_()
        assert again.wait(timeout=5) == 1


@pytest.mark.parametrize("timeout", [1e7, 1e10, float("inf"), None])
def test_a_wait_may_be_of_any_length(function, timeout):
    """poll(2) takes 24 days at most."""
    function.enable()
    with function.enable_interrupts("msi") as interrupts:
        threading.Timer(0.01, function.port.raise_).start()
        assert interrupts.wait(timeout=timeout) == 1


@pytest.mark.parametrize("kind", ["msix", "msi"])
def test_vectors_are_told_apart(function, kind):
    function.enable()
    with function.enable_interrupts(kind, 3) as interrupts:
        assert len(interrupts.descriptors) == interrupts.count == 3
        for vector in (2, 0, 1):
            function.port.raise_(vector)
            function.port.raise_(vector)
            assert [interrupts.wait(v, timeout=0) for v in range(3)] == [2 * (v == vector) for v in range(3)]


@pytest.mark.parametrize("kind", ["msix", "msi"])
def test_masks_and_pending_bits(function, kind):
    function.enable()
    with function.enable_interrupts(kind, 2) as interrupts:
        interrupts.mask(1)
        assert not interrupts.pending(1)
        function.port.raise_(1)
        function.port.raise_(0)
        assert (interrupts.wait(1, timeout=0), interrupts.wait(0, timeout=0)) == (0, 1)
        assert interrupts.pending(1)
        assert not interrupts.pending(0)
        interrupts.unmask(1)
        assert interrupts.wait(1, timeout=5) == 1
        assert not interrupts.pending(1)


def test_intx_comes_again_while_the_level_is_high(function):
    with function.enable_interrupts("intx") as interrupts:
        assert function.config.command & 0x400 == 0
        function.port.raise_()
        assert interrupts.wait(timeout=5) == 1
        assert interrupts.pending()
        assert interrupts.wait(timeout=0) == 0
        interrupts.acknowledge()
        assert interrupts.wait(timeout=5) == 1
        interrupts.mask()
        interrupts.acknowledge()
        assert interrupts.wait(timeout=0) == 0
        interrupts.unmask()
        assert interrupts.wait(timeout=5) == 1
    assert function.config.command & 0x400, "closed: the pin stays down"


def test_messages_need_bus_mastering(function):
    with function.enable_interrupts("msi") as interrupts:
        function.port.raise_()
        assert interrupts.wait(timeout=0) == 0


def test_the_best_kind_is_taken(make_function):
    for declared, kind in (
        (Interrupts(msi=1, msix=1, msix_bar=0, intx=True), "msix"),
        (Interrupts(msi=1, intx=True), "msi"),
        (Interrupts(intx=True), "intx"),
    ):
        with make_function(declared) as made, made.enable_interrupts() as interrupts:
            assert (interrupts.kind, interrupts.index.name.lower()) == (kind, kind)
    with make_function(Interrupts()) as bare, pytest.raises(NotSupported, match="has no interrupts"):
        bare.enable_interrupts()


@pytest.mark.parametrize(
    ("kind", "count", "have"), [("msix", 4, 3), ("msi", 5, 4), ("intx", 2, 1), ("msi", 0, 4), ("err", 2, 1)]
)
def test_vectors_that_the_function_has_not(function, kind, count, have):
    with pytest.raises(NotSupported, match=f"has {have} {kind} vectors; {count} were asked for"):
        function.enable_interrupts(kind, count)


def test_a_word_that_is_no_kind_is_told_the_kinds(function):
    with pytest.raises(InvalidArgument, match="'msi-x' is no kind of interrupt: msix, msi, intx, err, req are"):
        function.enable_interrupts("msi-x")


def test_one_kind_at_a_time(function):
    with function.enable_interrupts("msi"):
        for kind in KINDS:
            with pytest.raises(StateError, match=r"msi interrupts .* are enabled: close them first"):
                function.enable_interrupts(kind)
        with function.enable_interrupts("err") as errors, function.enable_interrupts("req") as requests:
            assert function.port.report_error()
            assert function.port.request_release()
            assert errors.wait(timeout=5) == requests.wait(timeout=5) == 1
            with pytest.raises(StateError, match="err interrupts"):
                function.enable_interrupts("err")
            with pytest.raises(NotSupported, match="cannot be masked"):
                errors.mask()
            with pytest.raises(NotSupported, match="no pending bit"):
                errors.pending()
    function.enable_interrupts("intx").close()


def test_msi_without_masking_says_so(make_function):
    for wide in (True, False):
        with make_function(Interrupts(msi=1, msi_address64=wide)) as made, made.enable_interrupts("msi") as interrupts:
            made.enable()
            for call in (interrupts.mask, interrupts.unmask, interrupts.pending):
                with pytest.raises(NotSupported, match="no per-vector masking"):
                    call()
            made.port.raise_()
            assert interrupts.wait(timeout=5) == 1


def test_what_is_programmed_is_what_the_specification_says(function):
    function.enable()
    config = function.config
    with function.enable_interrupts("msi", 3):
        at = config.find_capability(5)
        assert config.read16(at + 2) & 0x71 == 0x21, "enabled, four messages"
        assert config.read64(at + 4) == 0xFEE00000
        assert config.read16(at + 12) & 3 == 0, "the function fills in the low bits"
    assert config.read16(at + 2) & 1 == 0
    function.accesses.clear()
    with function.enable_interrupts("msix", 2):
        at = config.find_capability(0x11)
        assert config.read16(at + 2) & 0xC000 == 0x8000
        words = [function.bars[0].read32(0xF000 + 4 * n) for n in range(12)]
        assert words == [0xFEE00000, 0, 0x20, 0, 0xFEE00000, 0, 0x21, 0, 0, 0, 0, 1]
    writes = [(index, data) for index, offset, data in function.accesses if isinstance(data, bytes)]
    assert writes[1] == (7, (0xC000 | 2).to_bytes(2, "little")), "enabled but masked before the table is written"
    assert writes[2][0] == 0
    assert config.read16(at + 2) & 0xC000 == 0


def test_enabling_clears_what_others_left(function):
    function.enable()
    mask = function.config.find_capability(5) + 16
    function.config.write32(mask, 0xF)
    with function.enable_interrupts("msi") as interrupts:
        function.port.raise_()
        assert interrupts.wait(timeout=5) == 1
    function.enable(memory=False)
    with function.enable_interrupts("msix") as interrupts:
        assert function.config.command & 2, "the table is in a memory BAR"
        function.port.raise_()
        assert interrupts.wait(timeout=5) == 1


def test_a_table_in_no_bar_is_an_error(make_function):
    with make_function() as made:
        del made.regions[0]
        with pytest.raises(NotSupported, match="in BAR 0"):
            made.enable_interrupts("msix")
        made.enable_interrupts("msi").close()


def test_a_failure_leaves_nothing_open(function, monkeypatch):
    before = open_descriptors()

    def fail(*_):
        raise InvalidArgument("refused")

    monkeypatch.setattr(function, "connect_irq", fail)
    with pytest.raises(InvalidArgument, match="refused"):
        function.enable_interrupts("msi", 2)
    monkeypatch.undo()
    assert open_descriptors() == before
    function.enable_interrupts("intx").close()


def test_after_close_and_for_other_vectors(function):
    interrupts = function.enable_interrupts("msi", 2)
    for call in (interrupts.wait, interrupts.mask, interrupts.unmask, interrupts.pending):
        with pytest.raises(InvalidArgument, match="2 msi vectors are enabled; there is no 2"):
            call(2)
        with pytest.raises(InvalidArgument):
            call(-1)
    interrupts.close()
    interrupts.close()
    for call in (interrupts.wait, interrupts.mask, interrupts.unmask, interrupts.pending):
        with pytest.raises(StateError, match="were closed"):
            call()


def test_wait_sleeps_until_it_comes(function):
    function.enable()
    with function.enable_interrupts("msi") as interrupts:
        got = []
        waiter = threading.Thread(target=lambda: got.append(interrupts.wait()))
        waiter.start()
        function.port.raise_()
        waiter.join(timeout=20)
        assert got == [1]


def test_reset_disables_and_enabling_anew_works(function):
    function.enable()
    interrupts = function.enable_interrupts("msix")
    function.reset()
    function.port.raise_()
    assert interrupts.wait(timeout=0) == 0
    interrupts.close()
    function.port.lower()
    function.enable()
    with function.enable_interrupts("msix") as again:
        function.port.raise_()
        assert again.wait(timeout=5) == 1


def test_bus_masks_hold_messages_back(function):
    function.enable()
    with function.enable_interrupts("msi") as interrupts:
        function.mask_irq(IrqIndex.MSI)
        function.port.raise_()
        assert interrupts.wait(timeout=0) == 0
        function.unmask_irq(IrqIndex.MSI)
        assert interrupts.wait(timeout=0) == 1


def test_only_the_bars_that_exist_can_hold_tables(make_function):
    bars = [BarInfo(0, 1 << 16, "memory32"), BarInfo(3, 4096, "memory32")]
    with make_function(bars=bars) as made:
        assert list(made.bars) == [0, 3]
