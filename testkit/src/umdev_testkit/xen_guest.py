"""The Xen test bed: a real Xen and its dom0 in QEMU, whatever this machine has.

QEMU translates AMD's virtualization extensions, nested paging included, so that Xen runs HVM and PVH domains. dom0 is
Debian's stock kernel; its programs and files are this machine's, see `host_root`. No pytest in here; the fixture is
`xen_guest`.

In dom0, programs are root and find /dev/xen and /proc/xen, Xen's libraries (`$LD_LIBRARY_PATH`), `xl` and `xenstore-*`
(`$PATH`), and `$UMDEV_XEN_BED` set. `umdev_testkit.xen_domain` and `umdev_testkit.xen_linux` make guests there.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from umdev_testkit import qemu
from umdev_testkit.errors import GuestFailed
from umdev_testkit.guest import GuestConfig
from umdev_testkit.host_root import MODULES, ROOT, SHARE, HostRootGuest
from umdev_testkit.initramfs import busybox
from umdev_testkit.xen_helper import build
from umdev_testkit.xen_image import xen_image

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BED", "XenGuest"]

BED = "UMDEV_XEN_BED"
"""The variable that programs in dom0 have set."""

_DOM0_MEMORY = 768  # MiB: Linux, Python and pytest; the rest is Xen's and the domains'
_MODULES = ("xen_evtchn", "xen_gntdev", "xen_gntalloc", "xen_privcmd", "xenfs")
_TOOLS = ("xl", "xenstore-exists", "xenstore-list", "xenstore-ls", "xenstore-read", "xenstore-rm", "xenstore-write")
_FOLDERS = "/etc/xen /run/lock /run/xen /var/lib/xen /var/lib/xenstored /var/log/xen"  # that the tools want
_LIBRARIES = "/run/xen-libraries"
_PROGRAMS = "/run/xen-programs"
CONSOLES = "/run/xen-consoles"
"""The folder in dom0 where the consoles of domains are logged, as `guest-NAME.log`."""
_ENVIRONMENT = {
    BED: "1",
    "LD_LIBRARY_PATH": _LIBRARIES,
    "PATH": f"{_PROGRAMS}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}


@dataclass(frozen=True)
class _XenConfig(GuestConfig):
    """A guest whose kernel is dom0's, below Xen."""

    def program(self) -> qemu.Qemu:
        """Return the QEMU that runs Xen. Raises: FetchError."""
        return qemu.for_xen()

    def arguments(self, image: Path, initrd: Path) -> list[str]:
        """QEMU's -kernel takes Xen's multiboot image, its -initrd the modules of it: dom0's kernel and initramfs."""
        hypervisor = xen_image().hypervisor
        arguments = super().arguments(image, initrd)
        modules = f"{_module(image)} console=hvc0 quiet panic=-1 {self.append}".strip() + f",{_module(initrd)}"
        xen = f"com1=115200,8n1 console=com1 dom0=pv dom0_mem={_DOM0_MEMORY}M"
        for option, value in (("-kernel", str(hypervisor)), ("-initrd", modules), ("-append", xen)):
            arguments[arguments.index(option) + 1] = value
        return arguments


def _module(path: Path) -> str:
    if " " in str(path):
        raise GuestFailed(
            f"QEMU gives Xen no file with a space in its path, as {path} has: name another cache folder in "
            "$UMDEV_CACHE, or another --basetemp for pytest"
        )
    return str(path).replace(",", ",,")


class XenGuest(HostRootGuest):
    """Runs programs of this machine in Xen's dom0. A context manager; all of it is killed at its end."""

    def __init__(self, folder: Path, *, memory: int = 1536, cpus: int = 1, timeout: float = 300.0) -> None:
        """`memory`: MiB of the whole machine, of which dom0 has 768. `timeout`: seconds that it may live."""
        config = _XenConfig(
            kernel="full",
            memory=memory,
            cpus=cpus,
            timeout=timeout,
            modules=(*MODULES, *_MODULES),
            # "max" and "EPYC" have features that the dom0 kernel of a PV guest can't take.
            cpu="qemu64,+svm,+npt",
            qemu_args=SHARE,
            shared_memory=False,
            # VMRUN adds to the pending interrupts without QEMU's lock (7.2: helper_vmrun), so another thread's is lost
            # if both write at once. Where that was the timer's, Xen stands still.
            one_processor=True,
        )
        super().__init__(config, folder, _ENVIRONMENT)

    def fetch(self) -> None:
        """Fetch Xen and the busybox that domains run; compile the helper that builds domains.

        Raises: FetchError, CompileFailed.
        """
        build()
        busybox()

    def prepare(self) -> None:
        """Start what `xl` needs. Raises: ScriptFailed when there is no Xen below, or its daemons don't come up."""
        self.guest.run(_prepare())


def _prepare() -> str:
    """The script that runs in dom0's own root folder.

    The tools run there, too, as it is writable: in this machine's, a link of their name enters it.
    """
    image = xen_image()
    lines = ["set -e", "test -d /sys/hypervisor || { echo no Xen below; exit 1; }"]
    lines += [f"mount -t xenfs xenfs {root}/proc/xen" for root in ("", ROOT)]
    lines += [f"mkdir -p {_LIBRARIES} {_PROGRAMS} {CONSOLES} {_FOLDERS}"]
    lines += ["ln -s /run /var/run", ": >/etc/xen/xl.conf"]
    lines += [f"ln -s {shlex.quote(str(path))} {_LIBRARIES}/" for path in (*image.loadable, build())]
    for tool in (*_TOOLS, "xenstored", "xen-init-dom0", "xenconsoled"):
        command = f'exec chroot /proc/1/root {shlex.join(image.tool(tool, ROOT))} "$@"'
        lines += [f"printf '%s\\n' '#!/bin/sh' {shlex.quote(command)} >{_PROGRAMS}/{tool}"]
    lines += [
        f"chmod 755 {_PROGRAMS}/*",
        f"export PATH={_PROGRAMS}:$PATH",
        "xenstored --pid-file=/run/xenstored.pid",
        "for attempt in $(seq 100); do xenstore-exists / 2>/dev/null && break; sleep 0.1; done",
        "xen-init-dom0 >/dev/null",
        f"xenconsoled --log=guest --log-dir={CONSOLES}",
        "for attempt in $(seq 100); do [ -s /run/xen/xenconsoled.pid ] && break; sleep 0.1; done",
        "kill -0 $(cat /run/xenstored.pid) $(cat /run/xen/xenconsoled.pid)",
        "xl info >/dev/null",
    ]
    return "\n".join(lines)
