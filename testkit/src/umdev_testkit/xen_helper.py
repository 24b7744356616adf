"""The test bed's helper library: what it takes to build domains without `xl`. Compiled here, loaded in dom0."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from umdev.errors import HypervisorError, NotSupported

from umdev_testkit.programs import shared_library
from umdev_testkit.xen_image import xen_image

__all__ = ["NAME", "build", "check", "load"]

NAME = "libumdev-xen-testbed.so"
_FOLDER = Path(__file__).parent / "native"
_LIBRARIES = ("xenctrl", "xendevicemodel", "xenforeignmemory", "xenevtchn")


def build() -> Path:
    """Compile the library, against the headers and libraries of the test bed's Xen; the cache keeps it.

    Raises:
        FetchError: Xen cannot be fetched.
        CompileFailed: there is no gcc, or it refused.
    """
    image = xen_image()
    flags = ["-Werror", "-isystem", str(image.headers), f"-L{image.libraries}", *(f"-l{name}" for name in _LIBRARIES)]
    return shared_library([_FOLDER / "xen_domain.c", _FOLDER / "xen_model.c"], NAME, flags=flags)


@lru_cache(maxsize=1)
def load() -> tuple[Any, Any]:
    """Return cffi's `ffi` and `lib` for the library that the test bed offers.

    Raises: NotSupported outside the test bed.
    """
    from cffi import FFI

    ffi = FFI()
    ffi.cdef((_FOLDER / "xen_decls.h").read_text())
    try:
        return ffi, ffi.dlopen(NAME)
    except OSError as error:
        raise NotSupported(
            f"{error}: domains are built inside the Xen test bed only (the fixture xen_guest, "
            "`xen_guest.pytest(...)` or `xen_guest.python(...)`)"
        ) from error


def check(code: int, what: str) -> None:
    """Raises: HypervisorError where the helper returned a negative errno."""
    if code < 0:
        error = HypervisorError(f"{what}: {os.strerror(-code)}")
        error.errno = -code
        raise error
