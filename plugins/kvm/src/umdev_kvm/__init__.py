"""KVM for umdev: a machine of its own for payloads and Linux, and services that only the kernel has.

from umdev_kvm import Machine

with Machine(memory=16 << 20) as machine:
    slot = machine.plug(device)
    machine.load(payload, mode="protected")
    outcome = machine.run(limit=5)
"""

from .linux import boot_linux
from .machine import Machine
from .outcome import Outcome, OutcomeKind
from .plugin import KvmBus, KvmHypervisor, bus, hypervisor
from .posted import Posted
from .preload import preload_path
from .qemu import prepare_client
from .slots import MemorySlots, SlotBatch

__all__ = [
    "KvmBus",
    "KvmHypervisor",
    "Machine",
    "MemorySlots",
    "Outcome",
    "OutcomeKind",
    "Posted",
    "SlotBatch",
    "boot_linux",
    "bus",
    "hypervisor",
    "preload_path",
    "prepare_client",
]
