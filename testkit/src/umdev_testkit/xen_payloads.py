"""What payloads of bare Xen domains have in common: configuration space, results, interrupts.

Macros: `config_write slot, offset, value`, `config_read slot, offset` (into EAX), `result n` (from EAX),
`wait_for address, value`, `interrupts_on`, and after it `handler n, label` for code of one's own at vector 0x20 + n,
which ends with `jmp handled`.
"""

from __future__ import annotations

from umdev_testkit.payloads import assemble

__all__ = ["COUNTS", "IO_APIC", "LOCAL_APIC", "RESULTS", "payload"]

COUNTS, RESULTS = 0x7000, 0x8000
"""Where interrupts of vector 0x20 + n are counted, and where `result n` puts EAX: at 4 n."""
IO_APIC, LOCAL_APIC = 0xFEC0_0000, 0xFEE0_0000
_IDT = 0x6000

# Configuration by ports 0xCF8 and 0xCFC; vector 0x20 + n counts at COUNTS + 4 n; the local APIC is on (Intel SDM 3A,
# "Spurious-Interrupt Vector Register").
_MACROS = f"""
.macro config_write slot, offset, value
    mov dx, 0xcf8
    mov eax, 0x80000000 + \\slot * 0x800 + \\offset
    out dx, eax
    mov dx, 0xcfc
    mov eax, \\value
    out dx, eax
.endm
.macro config_read slot, offset
    mov dx, 0xcf8
    mov eax, 0x80000000 + \\slot * 0x800 + \\offset
    out dx, eax
    mov dx, 0xcfc
    in eax, dx
.endm
.macro result number
    mov [{RESULTS:#x} + 4 * \\number], eax
.endm
.macro wait_for address, value
98: cmp dword ptr [\\address], \\value
    pause
    jne 98b
.endm
.macro interrupts_on
    call set_up_interrupts
.endm
.macro handler number, label
    mov eax, offset \\label
    mov ebx, eax
    and eax, 0xffff
    or eax, 0x100000
    mov [{_IDT + 0x100:#x} + 8 * \\number], eax
    and ebx, 0xffff0000
    or ebx, 0x8e00
    mov [{_IDT + 0x104:#x} + 8 * \\number], ebx
.endm
"""
_INTERRUPTS = f"""
    jmp past_handlers
    .align 16
handlers:
    .set vector, 0
    .rept 32
    .align 16
    lock inc dword ptr [{COUNTS:#x} + 4 * vector]
    jmp handled
    .set vector, vector + 1
    .endr
handled:
    mov dword ptr [{LOCAL_APIC + 0xB0:#x}], 0
    iretd
set_up_interrupts:
    mov ecx, 0
97: mov eax, ecx
    shl eax, 4
    add eax, offset handlers
    mov ebx, eax
    and eax, 0xffff
    or eax, 0x100000
    mov [{_IDT + 0x20 * 8:#x} + ecx * 8], eax
    and ebx, 0xffff0000
    or ebx, 0x8e00
    mov [{_IDT + 0x20 * 8 + 4:#x} + ecx * 8], ebx
    inc ecx
    cmp ecx, 32
    jne 97b
    mov word ptr [0x5f00], 0x7ff
    mov dword ptr [0x5f02], {_IDT:#x}
    lidt [0x5f00]
    mov dword ptr [{LOCAL_APIC + 0xF0:#x}], 0x1ff
    sti
    ret
past_handlers:
"""


def payload(source: str) -> bytes:
    """Code for a bare domain in "protected" mode: the macros at hand; `interrupts_on` takes interrupts from then on.

    Raises: CompileFailed.
    """
    return assemble(_MACROS + _INTERRUPTS + source)
