"""Debian's Xen 4.17 from bookworm, unpacked: hypervisor, libraries, headers and tools for the test bed.

The libraries need no newer libc than bookworm's, so this machine's Python can load them in dom0. The tools are started
through their own dynamic loader with their own libraries, so they need nothing of this machine.
"""

from __future__ import annotations

import gzip
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from umdev_testkit.debian import Bundle, bundle

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["VERSION", "XenImage", "xen_image"]

VERSION = "4.17"
_PACKAGES = (f"xen-hypervisor-{VERSION}-amd64", f"xen-utils-{VERSION}", "xenstore-utils", "libxen-dev")
# Of all that these depend on: what the tools below are linked with.
_KEEP = (
    rf"libxen|xen-(hypervisor|utils)-{VERSION}|xenstore-utils|libyajl2"
    r"|libc6$|libgcc-s1|libuuid1|zlib1g|libbz2|liblzma5|libzstd1"
)
_BUNDLE = Bundle("xen-bookworm", _PACKAGES, ("bookworm",), keep=_KEEP)
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
_HYPERVISOR = "umdev-xen"
# Programs on this machine's libc may load these: they depend on each other and on libc alone.
_LOADABLE = ("call", "ctrl", "devicemodel", "evtchn", "foreignmemory", "gnttab", "store", "toolcore", "toollog")


@dataclass(frozen=True)
class XenImage:
    """Xen, unpacked into `folder`."""

    folder: Path

    @property
    def hypervisor(self) -> Path:
        """The multiboot image, as QEMU's -kernel takes it."""
        return self.folder / _HYPERVISOR

    @property
    def headers(self) -> Path:
        """The folder with xenctrl.h and its like."""
        return self.folder / "usr/include"

    @property
    def libraries(self) -> Path:
        """The folder to link against."""
        return self.folder / _LIBRARIES[0]

    @property
    def loadable(self) -> list[Path]:
        """The libraries that programs of this machine may load, under all their names."""
        return [path for name in _LOADABLE for path in sorted(self.libraries.glob(f"libxen{name}.so.[0-9]*"))]

    def tool(self, name: str, root: str = "") -> list[str]:
        """Return the first words of a command that starts a tool; `root`: where this machine's files are seen."""
        libraries = ":".join(f"{root}{self.folder / path}" for path in _LIBRARIES)
        paths = (self.folder / f"usr/lib/xen-{VERSION}/bin" / name, self.folder / "usr/bin" / name)
        program = next(path for path in paths if path.exists())
        loader = f"{root}{self.folder / _LIBRARIES[1]}/ld-linux-x86-64.so.2"
        return [loader, "--inhibit-cache", "--library-path", libraries, f"{root}{program}"]


def xen_image() -> XenImage:
    """Return Xen, fetched first if the cache has none; about 10 MB.

    Raises:
        FetchError: it cannot be fetched.
    """
    return XenImage(bundle(_BUNDLE, finish=_finish))


def _finish(prefix: Path) -> None:
    """Unpack the hypervisor: QEMU doesn't."""
    packed = prefix / f"boot/xen-{VERSION}-amd64.gz"
    with gzip.open(packed) as source, (prefix / _HYPERVISOR).open("wb") as target:
        shutil.copyfileobj(source, target)
