"""A guest's user space for machines with nothing but a serial port: it runs one script and powers off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev_testkit.cpio import CpioArchive
from umdev_testkit.initramfs import applets, busybox

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from umdev_testkit.kernels import Module

__all__ = ["build_serial"]

_INIT = """#!/bin/sh
export PATH=/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
while read -r module parameters; do
    insmod "/modules/$module.ko" $parameters || echo "cannot load module $module"
done </modules/order
sh /script
echo "umdev: the script ended with status $?"
sync
poweroff -f
"""


def build_serial(script: str, modules: Iterable[Module] = (), files: Mapping[str, bytes | Path] | None = None) -> bytes:
    """Return an initramfs whose init loads the modules, runs the script (busybox sh) on the console and powers off.

    `files`: absolute paths in the guest to their content, all executable. "umdev: the script ended with status N" comes
    last. Needs `console=ttyS0` on the kernel's command line.

    Raises:
        FetchError: busybox cannot be fetched.
    """
    program = busybox()
    archive = CpioArchive()
    for folder in ("dev", "proc", "sys", "tmp", "root"):
        archive.add_folder(folder)
    archive.add_character_device("dev/console", 5, 1)
    archive.add_file("bin/busybox", program.read_bytes(), 0o755)
    for applet in applets(program):
        archive.add_link(f"bin/{applet}", "busybox")
    archive.add_file("init", _INIT.encode(), 0o755)
    order = ""
    for module in modules:
        archive.add_file(f"modules/{module.name}.ko", module.content)
        order += f"{module.name} {module.parameters}\n"
    archive.add_file("modules/order", order.encode())
    archive.add_file("script", script.encode())
    for path, content in (files or {}).items():
        archive.add_file(path, content if isinstance(content, bytes) else content.read_bytes(), 0o755)
    return archive.finish()
