"""What `umdev doctor` looks at: the host first, then the plugins, then the seven services. Nothing is changed."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
import re
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from umdev import runtime
from umdev.errors import UmdevError
from umdev.plugins import Group, Row, installed, plugins

from .failures import line

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["rows"]

QEMU_WANTED = (10, 1)
"""The first QEMU with vfio-user-pci."""
_QEMU_SECONDS = 20.0
_FETCH = "python -m umdev_testkit.qemu"
_KVM_MACHINE = "KVM machine"
"""The check of umdev-kvm that says all that `/dev/kvm` would."""
_MEMLOCK_WANTED = 64 << 20

SERVICES = {
    "passthrough": "umdev_passthrough_area",
    "trap": "umdev_trap_region",
    "interrupt": "umdev_connect_interrupts",
    "map": "umdev_map_memory",
    "pin": "umdev_pin_pages",
    "protect": "umdev_protect_pages",
    "translate": "umdev_translate",
}

# linux/userfaultfd.h
_UFFD_NEW = 0xAA00
_UFFD_API = 0xC018AA3F
_UFFD_API_VERSION = 0xAA
_UFFD_USER_MODE_ONLY = 1
_UFFD_WP_SHMEM = 1 << 12
_UFFD_WP_ASYNC = 1 << 15
_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_CAP_IPC_LOCK = 14


def rows() -> Iterator[Row]:
    """Everything, in the order of the table."""
    yield _python()
    yield Row("host", "kernel", ok=True, text=f"Linux {platform.release()}")
    contributed = list(_contributed())
    if not any(row.check == _KVM_MACHINE for row in contributed):
        yield _kvm()
    yield _qemu()
    yield _runtime()
    yield from _plugins()
    yield from _services()
    yield _memlock()
    yield from _userfaultfd()
    yield from contributed


def _python() -> Row:
    ok = sys.version_info >= (3, 11)
    return Row("host", "python", ok, platform.python_version(), "" if ok else "install Python 3.11 or later")


def _kvm() -> Row:
    path = Path("/dev/kvm")
    if not path.exists():
        remedy = "modprobe kvm_intel (or kvm_amd); in a virtual machine, enable nested virtualization"
        return Row("host", "/dev/kvm", None, "missing: guests run without acceleration, slower", remedy)
    if not os.access(path, os.R_OK | os.W_OK):
        return Row(
            "host", "/dev/kvm", None, "not accessible: guests run slower", "usermod -aG kvm $USER, then log in anew"
        )
    return Row("host", "/dev/kvm", ok=True, text="usable")


def _qemu() -> Row:
    """What guests would be started with, looked for as the test kit does: named, the system's, its own."""
    named = os.environ.get("UMDEV_QEMU")
    row = _qemu_at(named or shutil.which("qemu-system-x86_64"), ", or unset UMDEV_QEMU" if named else "")
    return row if row.ok or named else _fetched_qemu() or row


def _qemu_at(command: str | None, otherwise: str) -> Row:
    remedy = (
        "apt install -t trixie-backports qemu-system-x86 (Debian 13), or let the test kit (pip install umdev-testkit) "
        f"fetch one: {_FETCH} --version{otherwise}"
    )
    wanted = ".".join(map(str, QEMU_WANTED))
    if not command:
        return Row("host", "QEMU", None, f"not found; guests need {wanted} or later", remedy)
    try:
        shown = subprocess.run(
            [command, "--version"], capture_output=True, text=True, timeout=_QEMU_SECONDS, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return Row("host", "QEMU", None, f"{command} does not run: {error}", remedy)
    found = re.search(r"version (\d+)\.(\d+)(?:\.(\d+))?", shown)
    if found is None:
        return Row("host", "QEMU", None, f"{command} does not say its version", remedy)
    version = tuple(int(part) for part in found.groups(default="0"))
    text = f"{'.'.join(map(str, version))} at {command}"
    if version < QEMU_WANTED:
        return Row("host", "QEMU", None, f"{text}: too old, vfio-user came with {wanted}", remedy)
    return Row("host", "QEMU", ok=True, text=text)


def _fetched_qemu() -> Row | None:
    """The one in the test kit's cache, where both are there."""
    try:
        from umdev_testkit import qemu
    except ImportError:
        return None
    try:
        fetched = qemu.fetched()
    except UmdevError:
        return None
    if fetched is None:
        return None
    version = ".".join(map(str, fetched.version))
    return Row("host", "QEMU", ok=True, text=f"{version}, fetched by the test kit; start it by {_FETCH}")


def _runtime() -> Row:
    directory = runtime.runtime_directory()
    try:
        with runtime.locked(directory):
            runtime.prune(directory)
    except UmdevError as error:
        return Row(
            "host", "runtime dir", ok=False, text=line(error), remedy="set UMDEV_RUNTIME_DIR to a private folder"
        )
    return Row("host", "runtime dir", ok=True, text=str(directory))


def _plugins() -> Iterator[Row]:
    loaders = {
        Group.PARENTS: plugins().load_parent,
        Group.BUSES: plugins().load_bus,
        Group.HYPERVISORS: plugins().load_hypervisor,
        Group.ADDONS: plugins().load_addon,
    }
    for group, load in loaders.items():
        for info in installed(group):
            name = f"{group.short}/{info.name}"
            try:
                if info.error is None:
                    load(info.name)
                text = info.error
            except UmdevError as error:
                text = line(error)
            if text is None:
                yield Row("host", name, ok=True, text=info.source)
            else:
                yield Row("host", name, ok=False, text=text, remedy=f"pip install -U or uninstall {info.distribution}")


def _working() -> Iterator[tuple[str, object]]:
    for group, load in ((Group.BUSES, plugins().load_bus), (Group.HYPERVISORS, plugins().load_hypervisor)):
        for info in installed(group):
            if info.error is None:
                with contextlib.suppress(UmdevError):  # told by its own row already
                    yield f"{group.short}/{info.name}", load(info.name)


def _services() -> Iterator[Row]:
    for service, hook in SERVICES.items():
        providers = [name for name, plugin in _working() if hasattr(plugin, hook)]
        if service in ("pin", "protect", "translate"):
            providers.append("core")
        if providers:
            yield Row(service, "offered by", ok=True, text=", ".join(providers))
        elif service == "map":
            yield Row(service, "offered by", ok=True, text="buses map guest memory as their peer announces it")
        else:
            yield Row(service, "offered by", ok=False, text="no plugin", remedy="pip install umdev-vfio-user")


def _memlock() -> Row:
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    text = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    if soft == resource.RLIM_INFINITY or soft >= _MEMLOCK_WANTED or _has_capability(_CAP_IPC_LOCK):
        return Row("pin", "memlock limit", ok=True, text=text)
    remedy = "ulimit -l, LimitMEMLOCK= in a systemd unit, or `* - memlock unlimited` in /etc/security/limits.conf"
    return Row("pin", "memlock limit", None, f"{text}: few pages can be pinned", remedy)


def _has_capability(number: int) -> bool:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> number & 1)


def _userfaultfd() -> Iterator[Row]:
    remedy = "chmod 0660 /dev/userfaultfd and give its group to the user, or sysctl vm.unprivileged_userfaultfd=1"
    try:
        descriptor, how = _open_userfaultfd()
    except OSError as error:
        text = f"not available ({error.strerror}): stores can be found by comparison only"
        yield Row("protect", "userfaultfd", None, text, remedy)
        return
    try:
        answer = fcntl.ioctl(descriptor, _UFFD_API, struct.pack("<QQQ", _UFFD_API_VERSION, 0, 0))
        features = struct.unpack("<QQQ", answer)[1]
    finally:
        os.close(descriptor)
    full = how != "user mode only"
    yield Row("protect", "userfaultfd", True if full else None, how, "" if full else f"for KVM guests: {remedy}")
    for mode, bit, release in (("trap", _UFFD_WP_SHMEM, "5.19"), ("track", _UFFD_WP_ASYNC, "6.7")):
        if features & bit:
            yield Row("protect", mode, ok=True, text="stores to shared memory are reported by the kernel")
        else:
            yield Row("protect", mode, None, "the kernel can't", f"Linux {release} or later")


def _open_userfaultfd() -> tuple[int, str]:
    """A userfaultfd and how it was got. Raises: OSError."""
    with contextlib.suppress(OSError):
        device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
        try:
            return fcntl.ioctl(device, _UFFD_NEW, os.O_CLOEXEC), "by /dev/userfaultfd"
        finally:
            os.close(device)
    number = _SYS_USERFAULTFD.get(platform.machine(), 0)
    libc = ctypes.CDLL(None, use_errno=True)
    for flags, how in ((0, "by system call"), (_UFFD_USER_MODE_ONLY, "user mode only")):
        descriptor = int(libc.syscall(number, os.O_CLOEXEC | flags))
        if descriptor >= 0:
            return descriptor, how
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))


def _contributed() -> Iterator[Row]:
    for name, plugin in _working():
        doctor = getattr(plugin, "doctor", None)
        if doctor is not None:
            try:
                yield from list(doctor())
            except Exception as error:  # noqa: BLE001 - a plugin may raise anything; the other rows are still told
                yield Row("host", name, ok=False, text=f"its doctor() failed: {line(error)}")
