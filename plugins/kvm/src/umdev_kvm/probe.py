"""What a host's KVM can run: some have no help from the processor, and emulate a part of its instructions."""

from __future__ import annotations

from umdev.errors import HypervisorError

from .machine import Machine
from .outcome import OutcomeKind
from .payload import DEFAULT_ADDRESS

_SECONDS = 60.0  # it takes milliseconds, unless the host is busy
_MEMORY = 1 << 20
_VALUE = 7
_CODE_SELECTOR = 0x10  # payload.py

# 32-bit: pushfd; push the selector; push the address behind the iretd; iretd; mov eax, _VALUE; out 0xF4, eax. Every
# return from an interrupt is an iret (Intel SDM volume 2A, IRET), so without it there is no operating system.
_BEFORE = bytes([0x9C, 0x6A, _CODE_SELECTOR, 0x68])
_RETURN = bytes([0xCF])
_AFTER = bytes([0xB8, _VALUE, 0, 0, 0, 0xE7, 0xF4])

REMEDY = (
    "use a host whose KVM has VT-x or AMD-V (in a virtual machine: nested virtualization), "
    "or QEMU, which needs no KVM: umdev serve TYPE prints its arguments"
)
"""What to do where KVM can't run an operating system."""


def why_partial() -> str | None:
    """What keeps this host's KVM from running an operating system, by a program of six instructions; None: nothing.

    It takes milliseconds, and a minute at most.

    Raises: NotSupported without a usable /dev/kvm; HypervisorError where no machine can be made.
    """
    address = DEFAULT_ADDRESS["protected"]
    behind = address + len(_BEFORE) + 4 + len(_RETURN)
    with Machine(memory=_MEMORY) as machine:
        machine.load(_BEFORE + behind.to_bytes(4, "little") + _RETURN + _AFTER)
        try:
            outcome = machine.run(_SECONDS)
        except HypervisorError as error:
            return str(error)
        return None if (outcome.kind, outcome.value) == (OutcomeKind.EXIT, _VALUE) else f"it ended by {outcome}"
