"""Bare domains. Runs inside the test bed."""

import struct

import pytest
from umdev.errors import HypervisorError, InvalidArgument, NotMapped, StateError
from umdev_testkit.errors import GuestDied, GuestTimedOut
from umdev_testkit.payloads import assemble
from umdev_testkit.xen_domain import PAGE, ShutdownReason, XenDomain, domains

pytestmark = pytest.mark.xen

COUNTER = 0xF000_0000
SECONDS = 120  # for what takes milliseconds on an idle machine


def test_a_payload_runs_and_says_how_it_ends():
    with XenDomain() as domain:
        domain.load(assemble("exit 42\nexit 43\n"))
        assert domain.run(SECONDS) == 42
        assert domain.run(SECONDS) == 43


def test_memory_both_ways():
    with XenDomain(memory=[(0, 1 << 20), (16 << 20, 2 * PAGE)]) as domain:
        edge = (16 << 20) + PAGE - 2
        domain.write(edge, b"abcd")  # over the border of two pages
        domain.load(assemble(f"mov eax, [{edge:#x}]\nnot eax\nmov [{edge + 4:#x}], eax\nexit 0\n"))
        assert domain.run(SECONDS) == 0
        assert domain.read(edge, 8) == b"abcd" + bytes(byte ^ 0xFF for byte in b"abcd")
        with pytest.raises(NotMapped, match="at 0x200000"):
            domain.read(2 << 20, 1)
        with pytest.raises(NotMapped, match="at 0x1002000"):
            domain.write((16 << 20) + 2 * PAGE, b"x")
        domain.populate(2 << 20, PAGE)
        assert domain.read(2 << 20, PAGE) == bytes(PAGE)


def test_parts_of_pages_are_refused():
    with pytest.raises(InvalidArgument, match="pages of 4096"):
        XenDomain(memory=5000)
    with XenDomain() as domain, pytest.raises(InvalidArgument, match="0x10 at 0x0"):
        domain.populate(0, 16)


def test_more_memory_than_there_is_is_an_error_and_leaves_no_domain():
    before = domains()
    with pytest.raises(HypervisorError, match="populate"):
        XenDomain(memory=8 << 30)
    assert domains() == before


def test_every_processor_runs_with_its_number():
    source = """
        lock inc dword ptr [0x2000]
        mov dword ptr [0x3000 + edi * 4], esp
        test edi, edi
        jnz rest
    all:
        pause
        cmp dword ptr [0x2000], 3
        jb all
        exit 7
    rest:
        hlt
        jmp rest
    """
    with XenDomain(vcpus=3) as domain:
        domain.load(assemble(source))
        assert domain.run(SECONDS) == 7
        assert struct.unpack("<3I", domain.read(0x3000, 12)) == (0x9_0000, 0x8_F000, 0x8_E000)


@pytest.mark.parametrize("pvh", [False, True])
def test_reads_of_the_counter_reach_the_small_device_model(pvh):
    source = f"""
        mov ebx, {COUNTER:#x}
        mov ecx, 100
    again:
        mov eax, [ebx]
        dec ecx
        jnz again
        out 0xf4, eax
    """
    with XenDomain(pvh=pvh, counter=(COUNTER, PAGE)) as domain:
        domain.load(assemble(source))
        assert domain.run(SECONDS) == 99


def test_a_payload_that_does_not_end():
    with XenDomain() as domain:
        domain.load(assemble("again: pause\njmp again\n"))
        with pytest.raises(GuestTimedOut, match=r"not said `exit` within 0\.1 s"):
            domain.run(0.1)
        domain.pause()
        assert domain.shutdown_reason is None


def test_a_domain_that_shuts_down():
    with XenDomain() as domain:
        domain.load(assemble("cli\nhlt\n"))  # no processor can wake up again
        with pytest.raises(GuestDied, match="poweroff"):
            domain.run(SECONDS)
        assert domain.shutdown_reason is ShutdownReason.POWEROFF


def test_a_processor_that_crashes():
    with XenDomain() as domain:
        domain.load(assemble("ud2\n"))  # with no handler for anything: a triple fault
        with pytest.raises(GuestDied, match="reboot"):
            domain.run(SECONDS)


def test_a_reboot_gives_a_new_number():
    with XenDomain() as domain:
        domain.load(assemble("mov eax, [0x2000]\ninc dword ptr [0x2000]\nout 0xf4, eax\n"))
        first = domain.domid
        assert domain.run(SECONDS) == 0
        domain.shutdown(ShutdownReason.REBOOT)
        assert domain.wait_shutdown(SECONDS) is ShutdownReason.REBOOT
        assert domain.recreate() != first
        assert first not in domains()
        assert domain.run(SECONDS) == 0  # memory is new, too


def test_nothing_stays():
    before = domains()
    for _ in range(5):
        with XenDomain() as domain:
            domain.load(assemble("exit 1\n"))
            assert domain.run(SECONDS) == 1
    assert domains() == before
    with pytest.raises(StateError, match="destroyed"):
        domain.read(0, 1)
    domain.close()
