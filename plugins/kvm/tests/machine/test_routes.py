"""Interrupts that reach the guest: MSI, MSI-X, INTx with resampling."""

import pytest
from umdev_kvm import layout

pytestmark = pytest.mark.kvm

# A flat descriptor table is loaded; interrupt VECTOR runs `handler`, which counts at 0x9000 and ends the interrupt.
SETUP = """
    mov dword ptr [0xfee000f0], 0x1ff
    mov esi, offset idt + 0x50 * 8
    mov ecx, 4
fill:
    mov eax, offset handler
    mov [esi], ax
    mov word ptr [esi + 2], 0x10
    mov word ptr [esi + 4], 0x8e00
    shr eax, 16
    mov [esi + 6], ax
    add esi, 8
    loop fill
    lidt [idtr]
    jmp main
    .balign 8
idtr: .word 0x400
    .long idt
"""
HANDLER_EXIT = "handler: exit 0x77\n"
HANDLER = "handler: inc dword ptr [0x9000]\n mov dword ptr [0xfee000b0], 0\n iretd\n"
TABLE = "\n.balign 8\nidt: .fill 0x400, 1, 0\n"
CONFIG = 0xB0008000


def msi(sample, vector, log2=0):
    at = sample.config.registers["msi.control"][0]
    return (
        f"mov dword ptr [{CONFIG + at + 2:#x}], 0xfee00000\n mov dword ptr [{CONFIG + at + 6:#x}], 0\n"
        f"mov word ptr [{CONFIG + at + 10:#x}], {vector}\n mov word ptr [{CONFIG + at:#x}], {0x81 | log2 << 4}\n"
    )


def msix(sample, entry, vector):
    table = sample.config["msix.table"] & ~7
    at = sample.config.registers["msix.control"][0]
    base = f"bar3 + {table + 16 * entry}"
    return (
        f"mov dword ptr [{base}], 0xfee00000\n mov dword ptr [{base} + 4], 0\n"
        f"mov dword ptr [{base} + 8], {vector}\n mov dword ptr [{base} + 12], 0\n"
        f"mov word ptr [{CONFIG + at:#x}], 0x8002\n"
    )


def wait(count):
    return f"wait{count}: cmp dword ptr [0x9000], {count}\n jne wait{count}\n"


def test_msi_reaches_the_handler(run, plugged, sample):
    source = f"{SETUP} main: {msi(sample, 0x50)} sti\n mov dword ptr [bar0 + 0x30], 0\nl: jmp l\n{HANDLER_EXIT}{TABLE}"
    assert run(source) == 0x77
    assert sample.interrupts.counters["sent"] == 1


def test_msix_reaches_the_handler(run, plugged, sample):
    source = (
        f"{SETUP} main: {msix(sample, 2, 0x51)} sti\n mov dword ptr [bar0 + 0x30], 2\nl: jmp l\n{HANDLER_EXIT}{TABLE}"
    )
    assert run(source) == 0x77
    assert sample.interrupts.counters["sent"] == 1


@pytest.mark.complete_kvm
def test_messages_go_where_their_registers_say(run, plugged, sample):
    source = (
        f"{SETUP} main: {msi(sample, 0x50, 1)} sti\n"
        f"mov dword ptr [bar0 + 0x30], 0\n{wait(1)} mov dword ptr [bar0 + 0x30], 1\n{wait(2)}"
        f"{msi(sample, 0x52, 1)} mov dword ptr [bar0 + 0x30], 1\n{wait(3)} exit 0x66\n{HANDLER}{TABLE}"
    )
    assert run(source) == 0x66


@pytest.mark.complete_kvm
def test_a_masked_msix_vector_pends(run, plugged, sample):
    table = sample.config["msix.table"] & ~7
    mask = f"mov dword ptr [bar3 + {table + 12}], "
    source = (
        f"{SETUP} main: {msix(sample, 0, 0x50)} sti\n {mask}1\n mov dword ptr [bar0 + 0x30], 0\n"
        f"mov ecx, 1000\nspin: loop spin\n cmp dword ptr [0x9000], 0\n jne bad\n"
        f"mov dword ptr [bar3 + {table + 8}], 0x51\n {mask}0\n{wait(1)} exit 0x66\nbad: exit 1\n{HANDLER}{TABLE}"
    )
    assert run(source) == 0x66


HANDLER_SAYS = "handler: mov eax, [0x9004]\n out 0xf4, eax\n"
"""Ends the run with what the program has written down before."""


def test_a_masked_function_pends_and_delivers_when_its_mask_falls(run, plugged, sample):
    at = sample.config.registers["msix.control"][0]
    pending = sample.config["msix.pba"] & ~7
    source = (
        f"{SETUP} main: mov dword ptr [0x9004], 1\n {msix(sample, 1, 0x50)} mov word ptr [{CONFIG + at:#x}], 0xc002\n"
        f"sti\n mov dword ptr [bar0 + 0x30], 1\n mov ecx, 1000\nspin: loop spin\n"
        f"cmp dword ptr [bar3 + {pending}], 2\n jne bad\n"
        f"mov dword ptr [0x9004], 0x77\n mov word ptr [{CONFIG + at:#x}], 0x8002\nl: jmp l\nbad: exit 2\n"
        f"{HANDLER_SAYS}{TABLE}"
    )
    assert run(source) == 0x77
    assert sample.interrupts.counters["sent"] == 1


def test_a_vector_stays_masked_when_the_function_s_mask_falls(run, plugged, sample):
    """Both masks hold a vector back, and either may fall first."""
    table = sample.config["msix.table"] & ~7
    at = sample.config.registers["msix.control"][0]
    source = (
        f"{SETUP} main: mov dword ptr [0x9004], 1\n {msix(sample, 0, 0x50)}"
        f"mov dword ptr [bar3 + {table + 12}], 1\n mov word ptr [{CONFIG + at:#x}], 0xc002\n"
        f"sti\n mov dword ptr [bar0 + 0x30], 0\n mov word ptr [{CONFIG + at:#x}], 0x8002\n"
        f"mov ecx, 1000\nspin: loop spin\n mov dword ptr [0x9004], 0x77\n"
        f"mov dword ptr [bar3 + {table + 12}], 0\nl: jmp l\n{HANDLER_SAYS}{TABLE}"
    )
    assert run(source) == 0x77


def ioapic(pin, vector):
    """A level, as PCI has it, to processor 0."""
    return (
        f"mov dword ptr [0xfec00000], {0x11 + 2 * pin}\n mov dword ptr [0xfec00010], 0\n"
        f"mov dword ptr [0xfec00000], {0x10 + 2 * pin}\n mov dword ptr [0xfec00010], {0x8000 | vector}\n"
    )


def test_the_pin_reaches_the_handler(run, plugged, sample):
    source = f"{SETUP} main: {ioapic(17, 0x50)} sti\n mov dword ptr [bar0 + 0x30], 5\nl: jmp l\n{HANDLER_EXIT}{TABLE}"
    assert run(source) == 0x77


@pytest.mark.complete_kvm
def test_a_pin_that_stays_high_interrupts_again(run, plugged, sample):
    handler = (
        "handler: inc dword ptr [0x9000]\n cmp dword ptr [0x9000], 3\n jb over\n"
        "mov dword ptr [bar0 + 0x34], 5\nover: mov dword ptr [0xfee000b0], 0\n iretd\n"
    )
    source = (
        f"{SETUP} main: {ioapic(17, 0x50)} sti\n mov dword ptr [bar0 + 0x30], 5\n"
        f"wait: cmp dword ptr [0x9000], 3\n jb wait\n mov ecx, 100000\nspin: loop spin\n"
        f"mov eax, [0x9000]\n out 0xf4, eax\n{handler}{TABLE}"
    )
    assert run(source) == 3


@pytest.fixture
def sharing(plugged, sample):
    """Another sample, in slot 9, whose pin is the first one's; it outlives the machine. The base of its BAR 0."""
    with type(sample)() as other:
        plugged.firmware.enable(plugged.plug(other, slot=9))
        assert layout.intx_gsi(9, 1) == layout.intx_gsi(1, 1) == 17
        yield plugged.firmware.address(9, 0)
        plugged.close()


@pytest.mark.parametrize("first", [True, False])
def test_either_function_on_a_pin_reaches_the_handler(run, sharing, first):
    base = "bar0" if first else hex(sharing)
    source = f"{SETUP} main: {ioapic(17, 0x50)} sti\n mov dword ptr [{base} + 0x30], 5\nl: jmp l\n{HANDLER_EXIT}{TABLE}"
    assert run(source) == 0x77


@pytest.mark.complete_kvm
def test_a_pin_stays_high_until_the_last_function_on_it_is_served(run, sharing):
    """Both raise it; each interrupt serves one, so there are two."""
    handler = (
        "handler: inc dword ptr [0x9000]\n cmp dword ptr [0x9000], 1\n jne second\n"
        f"mov dword ptr [bar0 + 0x34], 5\n jmp over\nsecond: mov dword ptr [{sharing:#x} + 0x34], 5\n"
        "over: mov dword ptr [0xfee000b0], 0\n iretd\n"
    )
    source = (
        f"{SETUP} main: {ioapic(17, 0x50)} mov dword ptr [bar0 + 0x30], 5\n mov dword ptr [{sharing:#x} + 0x30], 5\n"
        f"sti\nwait: cmp dword ptr [0x9000], 2\n jb wait\n mov ecx, 100000\nspin: loop spin\n"
        f"mov eax, [0x9000]\n out 0xf4, eax\n{handler}{TABLE}"
    )
    assert run(source) == 2


@pytest.mark.complete_kvm
def test_a_halted_processor_wakes(run, plugged, sample):
    source = (
        f"{SETUP} main: {msi(sample, 0x50)}\n mov dword ptr [bar0 + 0x30], 0\n sti\n hlt\n"
        f"mov eax, [0x9000]\n out 0xf4, eax\n{HANDLER}{TABLE}"
    )
    assert run(source) == 1


def test_interrupts_work_after_a_reset(run, plugged, sample):
    source = f"{SETUP} main: {msi(sample, 0x50)} sti\n mov dword ptr [bar0 + 0x30], 0\nl: jmp l\n{HANDLER_EXIT}{TABLE}"
    assert run(source) == 0x77
    plugged.reset()
    plugged.firmware.enable(1)
    assert run(source) == 0x77
