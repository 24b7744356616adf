"""A guest that has KVM, whatever this machine has: QEMU translates AMD's virtualization extensions, too.

The guest sees this machine's files read-only over 9p, so tests run there as they stand here: same checkout, same
interpreter. No pytest in here; the fixture is `kvm_guest`.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from umdev_testkit.cache import cache_folder
from umdev_testkit.guest import Completed, Guest, GuestConfig
from umdev_testkit.initramfs import busybox
from umdev_testkit.kernels import kernel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

__all__ = ["KvmGuest"]

ROOT = "/mnt/host"
_MODULES = ("9pnet_virtio", "9p", "kvm_amd")
# What this machine has fetched already, the guest finds in the cache folder.
# Its own /dev, /proc and /sys; scratch space where tests write. The checkout may lie in /tmp, so that stays the host's.
_MOUNT = f"""
set -e
mkdir -p {ROOT}
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=1048576,cache=loose hostroot {ROOT}
for folder in dev proc sys; do mount --rbind /$folder {ROOT}/$folder; done
mount -t tmpfs tmpfs {ROOT}/run
test -c /dev/kvm
"""
_ENVIRONMENT = {
    "HOME": "/run",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TMPDIR": "/run",
    "UMDEV_RUNTIME_DIR": "/run/umdev",
}


class KvmGuest:
    """Runs programs of this machine in a guest with /dev/kvm. A context manager; the guest is killed at its end."""

    def __init__(self, folder: Path, *, memory: int = 1536, cpus: int = 2, timeout: float = 300.0) -> None:
        """`memory` in MiB; `timeout`: seconds that the guest may live."""
        share = "local,path=/,mount_tag=hostroot,security_model=none,readonly=on,multidevs=remap"
        config = GuestConfig(
            kernel="full",
            memory=memory,
            cpus=cpus,
            timeout=timeout,
            modules=_MODULES,
            cpu="max",
            qemu_args=("-virtfs", share),
            shared_memory=False,
        )
        self.guest = Guest(config, folder)

    def __enter__(self) -> Self:
        """Raises: FetchError for what the programs in the guest may need: they can't fetch; as `Guest.start`."""
        kernel("cloud")
        busybox()
        self.guest.start()
        try:
            self.guest.run(_MOUNT)
        except BaseException:
            self.guest.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.guest.close()

    def execute(
        self,
        *command: str,
        folder: Path | None = None,
        timeout: float | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a program of this machine in the guest, in `folder` (the current one unless given).

        `environment`: more variables than those that a program always gets there.

        Raises:
            GuestTimedOut: it took longer than `timeout` seconds, or the guest's own time is over.
            GuestDied: QEMU ended.
        """
        variables = {**_ENVIRONMENT, "UMDEV_CACHE": str(cache_folder()), **(environment or {})}
        words = [f"{name}={value}" for name, value in variables.items()]
        inner = f"cd {shlex.quote(str(folder or Path.cwd()))} && exec env -i {shlex.join(words)} {shlex.join(command)}"
        return self.guest.execute(f"exec chroot {ROOT} /bin/sh -c {shlex.quote(inner)}", timeout=timeout)

    def python(self, *arguments: str, folder: Path | None = None, timeout: float | None = None) -> Completed:
        """Run this very interpreter in the guest. Raises: as `execute`."""
        return self.execute(sys.executable, *arguments, folder=folder, timeout=timeout)

    def pytest(
        self,
        *arguments: str,
        folder: Path | None = None,
        timeout: float | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run pytest in the guest, on files of this machine; its cache and temporary files stay in the guest.

        Raises: as `execute`.
        """
        options: Sequence[str] = ("-p", "no:cacheprovider", "--basetemp=/run/pytest", "--color=no")
        command = (sys.executable, "-m", "pytest", *options, *arguments)
        return self.execute(*command, folder=folder, timeout=timeout, environment=environment)
