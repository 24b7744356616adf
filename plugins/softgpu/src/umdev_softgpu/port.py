"""The memory port: the one object of a virtual GPU that touches guest memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from umdev.device import Device, InvalidArgument, api_address

from ._native import ffi, lib
from .space import Format, Masks, Space, Target, native_format, native_masks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

WHOLE = (1 << 64) - 1
_BYTES = ffi.typeof("uint8_t[]")


@dataclass(frozen=True, slots=True)
class Decoder:
    """A vendor's own decoder of page-table entries in C: a `softgpu_decode` (softgpu.h) and its context, as numbers."""

    function: int
    context: int = 0
    keep: object = None
    """What must live as long as the space."""


class MemoryPort:
    """Guest memory, and the device's own, for one life of a virtual GPU: make a new port after each reset.

    Everything is bounded by the maps of the device's DMA and by the buffers given here, is done page by page, and
    answers with values. Any thread.
    """

    def __init__(self, device: Device, *, local: Buffer | None = None, tables: Buffer | None = None) -> None:
        """local: this virtual GPU's share of the device's memory. tables: page tables that are no guest memory.

        The buffers are kept until `close`, and read-only ones stay so.
        """
        self._keep: list[Any] = [device]
        self._native = ffi.gc(
            lib.softgpu_port_new(
                ffi.cast("umdev_api *", api_address()), ffi.cast("umdev_device *", device.native.address)
            ),
            lib.softgpu_port_free,
        )
        if self._native == ffi.NULL:
            raise MemoryError("no memory for a port")
        self._buffers: list[Any] = []
        for target, buffer in ((Target.LOCAL, local), (Target.TABLES, tables)):
            if buffer is not None:
                view = memoryview(buffer)
                native = ffi.from_buffer(_BYTES, view)
                self._buffers.append(native)
                lib.softgpu_port_set_memory(self._native, target, native, len(native), not view.readonly)
        self.system = self.linear(Target.SYSTEM, 0, WHOLE)
        """Bus addresses, as the guest writes them into registers."""

    @property
    def pointer(self) -> int:
        """The `softgpu_port *` (softgpu.h), valid as long as this object."""
        return int(ffi.cast("uintptr_t", self._native))

    def linear(self, target: Target, base: int = 0, size: int = WHOLE) -> Space:
        """A window onto `size` bytes of a target from `base` on. Raises: InvalidArgument for one that wraps."""
        if not (0 <= base <= WHOLE and 0 < size <= WHOLE - base):
            raise InvalidArgument(f"a window of {size:#x} bytes at {base:#x} does not fit into 64 bits")
        return self._space(lib.softgpu_space_linear(self._native, target, base, size), [])

    def paged(self, format_: Format, decode: Sequence[Masks] | Decoder) -> Space:
        """A space behind page tables: one `Masks` per level, or a decoder in C. Nothing is present before `set_root`.

        Raises: InvalidArgument for a format that makes no sense.
        """
        shape = native_format(format_)
        if isinstance(decode, Decoder):
            function = ffi.cast("softgpu_decode", decode.function)
            context = ffi.cast("void *", decode.context)
            keep: object = decode
        else:
            keep = native_masks(format_, decode)
            function, context = lib.softgpu_masks_decoder(), ffi.cast("void *", keep)
        native = lib.softgpu_space_paged(self._native, shape, function, context)
        if native == ffi.NULL:
            raise InvalidArgument(
                f"{format_}: shifts are 12 to 63, bits 1 to 32, entries 4 or 8 bytes, addresses 12 to 64 bits"
            )
        return self._space(native, [keep])

    def close(self) -> None:
        """Final: when it returns, no access through this port is inside memory, and later ones are `Reason.CLOSED`.

        Call it at reset, with or without the device lock. May be called twice.
        """
        lib.softgpu_port_close(self._native)
        for buffer in self._buffers:
            ffi.release(buffer)
        self._buffers.clear()

    def _space(self, native: Any, keep: list[Any]) -> Space:
        if native == ffi.NULL:
            raise MemoryError("no memory for a space")
        return Space(ffi.gc(native, lib.softgpu_space_free), [*keep, self._native, self])
