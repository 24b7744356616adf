"""Fetch all that guests need, before it is needed: `python -m umdev_testkit.fetch [KERNEL...]`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from umdev_testkit import initramfs, kernels, qemu, xen_image
from umdev_testkit.cache import cache_folder
from umdev_testkit.errors import GuestError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["fetch", "main"]

_NAMES = (*kernels.KERNELS, "xen")


def fetch(names: Sequence[str] = ("cloud",)) -> None:
    """Fetch QEMU, busybox and the named kernels, unless the cache has them; progress goes to stderr.

    "xen" among the names stands for the Xen test bed: the hypervisor, a QEMU that runs it and dom0's kernel.

    Raises:
        ValueError: there is no kernel of that name.
        FetchError: something cannot be fetched; what was complete before stays in the cache.
        QemuUnusable: `$UMDEV_QEMU` will not do.
    """
    qemu.find()
    initramfs.busybox()
    for name in names:
        if name == "xen":
            qemu.for_xen()
            xen_image.xen_image()
        kernels.kernel("full" if name == "xen" else name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m umdev_testkit.fetch", description=__doc__)
    parser.add_argument(
        "kernels", nargs="*", metavar="KERNEL", default=["cloud", "full"],
        help=f"{', '.join(_NAMES)} (default: cloud full)",
    )  # fmt: skip
    wanted = parser.parse_args(arguments).kernels
    if unknown := [name for name in wanted if name not in _NAMES]:
        parser.error(f"no kernel {unknown[0]!r}: there are {', '.join(_NAMES)}")
    try:
        fetch(wanted)
    except GuestError as error:
        sys.stderr.write(f"umdev: {error}\n")
        return 1
    sys.stdout.write(f"{cache_folder()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
