"""edu as a bare domain's processor sees it: registers, DMA, MSI and INTx."""

import pytest
from umdev_edu import Edu
from umdev_testkit.xen_payloads import COUNTS, IO_APIC, payload
from umdev_xen import Domain

pytestmark = pytest.mark.xen
SECONDS = 120.0  # for what takes milliseconds on an idle machine
BAR = 0xF000_0000
FACTORIAL = f"""
    mov dword ptr [{BAR + 8:#x}], 6
1:  mov eax, [{BAR + 0x20:#x}]
    test eax, 1
    jnz 1b
    mov eax, [{BAR + 8:#x}]
"""


def enable(slot: int) -> str:
    return f"config_write {slot}, 0x10, {BAR:#x}\nconfig_write {slot}, 4, 6\n"


def dma(source: int, target: int, command: int) -> str:
    return f"""
    mov dword ptr [{BAR + 0x80:#x}], {source:#x}
    mov dword ptr [{BAR + 0x88:#x}], {target:#x}
    mov dword ptr [{BAR + 0x90:#x}], 64
    mov dword ptr [{BAR + 0x98:#x}], {command}
2:  mov eax, [{BAR + 0x98:#x}]
    test eax, 1
    jnz 2b
"""


@pytest.fixture
def edu():
    with Edu() as device:
        yield device


def test_registers_and_dma(guest, edu, results):
    with Domain(guest.domid) as domain:
        slot = domain.plug(edu, slot=4)
        guest.write(0x20000, bytes(range(64)))
        guest.load(
            payload(
                f"config_read {slot}, 0\nresult 0\n{enable(slot)}"
                f"mov eax, [{BAR:#x}]\nresult 1\n"
                f"mov dword ptr [{BAR + 4:#x}], 0x12345678\nmov eax, [{BAR + 4:#x}]\nresult 2\n{FACTORIAL}result 3\n"
                + dma(0x20000, 0x40000, 1)
                + dma(0x40000, 0x30000, 3)
                + "exit 7\n"
            )
        )
        assert guest.run(SECONDS) == 7
        assert results(guest, 4) == [0x11E81234, 0x010000ED, 0xEDCBA987, 720]
        assert guest.read(0x30000, 64) == bytes(range(64))
        assert domain.counters["malformed"] == 0


def test_msi(guest, edu):
    with Domain(guest.domid) as domain:
        slot = domain.plug(edu)
        msi = edu.config.registers["msi.control"][0] - 2
        guest.load(
            payload(
                f"{enable(slot)} interrupts_on\n"
                f"config_write {slot}, {msi + 4}, 0xfee00000\nconfig_write {slot}, {msi + 12}, 0x25\n"
                f"config_write {slot}, {msi}, 0x10000\n"
                f"mov dword ptr [{BAR + 0x20:#x}], 0x80\n{FACTORIAL}"
                f"wait_for {COUNTS + 4 * 5:#x}, 1\nmov dword ptr [{BAR + 0x64:#x}], 1\n"
                f"mov dword ptr [{BAR + 0x60:#x}], 2\nwait_for {COUNTS + 4 * 5:#x}, 2\nexit 9\n"
            )
        )
        assert guest.run(SECONDS) == 9
        assert domain.counters["messages"] == 2


def test_intx_is_a_level(guest, edu):
    """It comes again and again until the device is answered. Pin 16 + (4 * slot + slot / 8 + intx) mod 32 (Xen)."""
    with Domain(guest.domid) as domain:
        slot = domain.plug(edu)
        entry = 0x10 + 2 * (16 + (4 * slot + (slot >> 3)) % 32)
        guest.load(
            payload(
                f"{enable(slot)} interrupts_on\nhandler 6, pin\n"
                f"mov dword ptr [{IO_APIC:#x}], {entry + 1}\nmov dword ptr [{IO_APIC + 0x10:#x}], 0\n"
                f"mov dword ptr [{IO_APIC:#x}], {entry}\nmov dword ptr [{IO_APIC + 0x10:#x}], 0xa026\n"
                f"mov dword ptr [{BAR + 0x60:#x}], 1\n"
                f"wait_for {COUNTS + 4 * 6:#x}, 3\nmov ecx, 20\n4: mov ebx, [{BAR + 0x24:#x}]\nloop 4b\n"
                f"exit [{COUNTS + 4 * 6:#x}]\n"
                f"pin: inc dword ptr [{COUNTS + 4 * 6:#x}]\ncmp dword ptr [{COUNTS + 4 * 6:#x}], 3\njb handled\n"
                f"mov dword ptr [{BAR + 0x64:#x}], 1\njmp handled\n"
            )
        )
        assert guest.run(SECONDS) == 3, "no more once the level is low"
        assert domain.counters["messages"] == 0
