"""The example devices as a machine's own processors see them; their checks by the host's hand are in examples/."""

import pytest
from umdev_bochs_display import BochsDisplay
from umdev_edu import Edu
from umdev_mtty import Mtty1
from umdev_testkit.payloads import assemble

pytestmark = pytest.mark.kvm


def test_two_processors_hammer_edu(make_machine):
    """Each raises and answers its own half of edu's interrupt bits: a lost update shows in the other's half."""
    with Edu() as edu:
        machine = make_machine(memory=1 << 20, vcpus=2)
        machine.firmware.enable(machine.plug(edu))
        bar = machine.firmware.address(1, 0)
        machine.load(
            assemble(
                "mov ebx, 0xffff\n mov ecx, edi\n shl ecx, 4\n shl ebx, cl\n mov ecx, 1000\n"
                f"again: mov [{bar + 0x60:#x}], ebx\n mov eax, [{bar + 0x24:#x}]\n and eax, ebx\n"
                "cmp eax, ebx\n jne bad\n"
                f"mov [{bar + 0x64:#x}], ebx\n mov eax, [{bar + 0x24:#x}]\n test eax, ebx\n jnz bad\n loop again\n"
                "lock inc dword ptr [0x9000]\nwait: cmp dword ptr [0x9000], 2\n jne wait\n exit 1\nbad: exit 2"
            )
        )
        assert machine.run(60).value == 1
        assert machine.counters["memory_writes"] == 4000
        machine.close()


def test_a_processor_paints_without_exits(make_machine):
    with BochsDisplay() as display:
        machine = make_machine(memory=1 << 20)
        machine.firmware.enable(machine.plug(display))
        pixels, registers = machine.firmware.address(1, 0), machine.firmware.address(1, 2)
        machine.load(
            assemble(
                f"mov edi, {pixels:#x}\n mov eax, 0x123456\n mov ecx, 4096\n rep stosd\n"
                f"movzx eax, word ptr [{registers + 0x500:#x}]\n out 0xf4, eax"
            )
        )
        assert machine.run(30).value & 0xFFF0 == 0xB0C0
        assert machine.counters["memory_writes"] == 0
        assert machine.counters["memory_reads"] == 1
        assert bytes(display.vram.pixels.view[4095 * 4 : 4097 * 4]) == b"\x56\x34\x12\0" + bytes(4)
        machine.close()


def test_a_processor_talks_to_mtty(make_machine):
    with Mtty1() as card:
        machine = make_machine(memory=1 << 20)
        machine.firmware.enable(machine.plug(card))
        port = machine.firmware.address(1, 0)
        machine.load(
            assemble(
                f"mov dx, {port + 7:#x}\n mov al, 0x5a\n out dx, al\n mov al, 0\n in al, dx\n"
                "movzx eax, al\n out 0xf4, eax"
            )
        )
        assert machine.run(10).value == 0x5A, "the scratch register"
        assert machine.counters["port_reads"] == 1
        machine.close()
