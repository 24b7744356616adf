"""What Python and C call in each other most, by CPython's own API instead of cffi's: `native/python/`."""

from __future__ import annotations

from umdev import _native

if _native.lib.umdev_python_start():
    raise ImportError("umdev._native does not take its functions; the reason is on stderr")


@_native.ffi.def_extern()  # type: ignore[untyped-decorator]  # cffi's handle has no types
def umdev_python_adopt() -> None:
    """Nothing: that cffi entered Python is what a thread of C needs once."""


bind_handlers = _native.bind_handlers
dma_read = _native.dma_read
dma_write = _native.dma_write
