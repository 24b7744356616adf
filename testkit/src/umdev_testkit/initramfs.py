"""The guest's whole user space: busybox, an init that serves commands, the kernel modules and files of one test.

The init answers on a virtio-serial port named `umdev.agent`, so that the serial ports are left to the console and to
the device under test. Its side of the protocol (the host's is in `channel`):

    guest: "umdev-guest VERDICT\\n"            once per boot; "ready", or which module could not be loaded
    host:  "run NONCE LENGTH\\n" SCRIPT        guest: what the script printed, then "\\nNONCE STATUS\\n"
    host:  "put NONCE LENGTH PATH\\n" BYTES    guest: "\\nNONCE STATUS\\n"; the bytes are appended to the file
    host:  "reboot\\n", "poweroff\\n"          no answer

When the host closes the port or the time limit passes, the guest powers off: no guest outlives the process that
started it for long.
"""

from __future__ import annotations

import subprocess
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from umdev_testkit.cpio import CpioArchive
from umdev_testkit.debian import Bundle, bundle

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from umdev_testkit.kernels import Module

__all__ = ["applets", "build", "busybox"]

_BUSYBOX = Bundle("busybox-trixie", ("busybox-static",), ("trixie", "trixie-backports"), keep="busybox-static")
_FOLDERS = ("dev", "proc", "sys", "tmp", "run", "root", "etc", "mnt")
_LIST_TIME = 20.0  # seconds
_INIT = r"""#!/bin/sh
export PATH=/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
(sleep "$(cat /umdev/limit)"; echo "umdev: time limit, power off"; poweroff -f) &

verdict=ready
while read -r module parameters; do
    # Unquoted on purpose: parameters are words.
    insmod "/umdev/modules/$module.ko" $parameters || { verdict="cannot load module $module"; break; }
done </umdev/order

while :; do
    for port in /sys/class/virtio-ports/*; do
        [ "$(cat "$port/name" 2>/dev/null)" = umdev.agent ] && break 2
    done
    sleep 0.1
done
exec 3<>"/dev/${port##*/}"
# Output goes through a pipe that stays open: a script may open /dev/stdout, and what it leaves running in the
# background keeps nobody waiting.
mkfifo /run/umdev.output
cat /run/umdev.output >&3 &
exec 4<>/run/umdev.output
echo "umdev-guest $verdict" >&4

while read -r verb nonce length path <&3; do
    case $verb in
    run)
        : >/run/umdev.script
        [ "$length" = 0 ] || dd bs="$length" count=1 iflag=fullblock of=/run/umdev.script <&3 2>/dev/null
        cd /root
        sh /run/umdev.script </dev/null >&4 2>&1 3>&- 4>&-
        ;;
    put)
        dd bs="$length" count=1 iflag=fullblock <&3 2>/dev/null >>"$path"
        ;;
    reboot)
        reboot -f
        ;;
    *)
        break
        ;;
    esac
    printf '\n%s %s\n' "$nonce" "$?" >&4
done
poweroff -f
"""


def busybox() -> Path:
    """Return Debian's static busybox, fetched first if the cache has none; it runs on this machine, too.

    Raises:
        FetchError: it cannot be fetched.
    """
    return bundle(_BUSYBOX) / "usr/bin/busybox"


def build(modules: Iterable[Module], files: Mapping[str, bytes | Path], limit: float) -> bytes:
    """Return the initramfs; the guest powers itself off `limit` seconds after it booted.

    A file given as a path keeps its permission bits; one given as bytes is executable.

    Raises:
        ValueError: a name in `files` is no plain path or is taken.
        FetchError: busybox cannot be fetched.
    """
    program = busybox()
    archive = CpioArchive()
    for folder in _FOLDERS:
        archive.add_folder(folder)
    archive.add_character_device("dev/console", 5, 1)  # the kernel opens it for init before anything is mounted
    archive.add_file("bin/busybox", program.read_bytes(), 0o755)
    for applet in applets(program):
        archive.add_link(f"bin/{applet}", "busybox")
    archive.add_file("init", _INIT.encode(), 0o755)
    archive.add_file("umdev/limit", f"{limit:.0f}\n".encode())
    order = []
    for module in modules:
        archive.add_file(f"umdev/modules/{module.name}.ko", module.content)
        order.append(f"{module.name} {module.parameters}\n")
    archive.add_file("umdev/order", "".join(order).encode())
    for path, content in files.items():
        if isinstance(content, Path):
            archive.add_file(path, content.read_bytes(), content.stat().st_mode & 0o7777)
        else:
            archive.add_file(path, content, 0o755)
    return archive.finish()


@lru_cache(maxsize=2)
def applets(program: Path) -> tuple[str, ...]:
    """Names that busybox goes by."""
    listed = subprocess.run([str(program), "--list"], capture_output=True, text=True, timeout=_LIST_TIME, check=True)
    return tuple(name for name in listed.stdout.split() if name != "busybox")
