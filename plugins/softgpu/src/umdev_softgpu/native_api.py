"""What a vendor's C needs: the header's folder and the function table."""

from __future__ import annotations

from pathlib import Path

from ._native import ffi, lib


def get_include() -> str:
    """The folder of `softgpu.h`. It includes `umdev.h`, whose folder is `umdev.get_include()`."""
    return str(Path(__file__).parent / "include")


def api_address() -> int:
    """Address of the process's `softgpu_api` (softgpu.h), valid for the life of the process."""
    return int(ffi.cast("uintptr_t", lib.softgpu_get_api()))
