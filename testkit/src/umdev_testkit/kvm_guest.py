"""A guest that has KVM, whatever this machine has: QEMU translates AMD's virtualization extensions, too.

Programs and files are this machine's, see `host_root`. No pytest in here; the fixture is `kvm_guest`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev_testkit.guest import GuestConfig
from umdev_testkit.host_root import MODULES, SHARE, HostRootGuest
from umdev_testkit.initramfs import busybox
from umdev_testkit.kernels import kernel

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["KvmGuest"]


class KvmGuest(HostRootGuest):
    """Runs programs of this machine in a guest with /dev/kvm. A context manager; the guest is killed at its end."""

    def __init__(self, folder: Path, *, memory: int = 1536, cpus: int = 2, timeout: float = 300.0) -> None:
        """`memory` in MiB; `timeout`: seconds that the guest may live."""
        config = GuestConfig(
            kernel="full",
            memory=memory,
            cpus=cpus,
            timeout=timeout,
            modules=(*MODULES, "kvm_amd"),
            cpu="max",
            qemu_args=SHARE,
            shared_memory=False,
        )
        super().__init__(config, folder)

    def fetch(self) -> None:
        """Fetch the kernel and busybox that machines in the guest boot. Raises: FetchError."""
        kernel("cloud")
        busybox()

    def prepare(self) -> None:
        """Raises: ScriptFailed when the guest's processor can't virtualize."""
        self.guest.run("test -c /dev/kvm")
