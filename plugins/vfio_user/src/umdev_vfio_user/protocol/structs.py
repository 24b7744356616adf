"""The fixed parts of the messages, as `struct` formats. Each names its section in the specification."""

from __future__ import annotations

from struct import Struct

HEADER = Struct("<HHIII")
"""id, command, size of the whole message, flags, errno."""

VERSION = Struct("<HH")
"""major, minor; then JSON, ended by a NUL."""

DMA_MAP = Struct("<IIQQQ")
"""argsz, flags, offset in the file, address, size."""

DMA_UNMAP = Struct("<IIQQ")
"""argsz, flags, address, size."""

DEVICE_INFO = Struct("<IIII")
"""argsz, flags, regions, interrupt types."""

REGION_INFO = Struct("<IIIIQQ")
"""argsz, flags, index, offset of the first capability, size, offset for mmap."""

CAPABILITY = Struct("<HHI")
"""id, version, offset of the next."""

SPARSE_MMAP = Struct("<II")
"""areas, reserved; then the areas."""

SPARSE_AREA = Struct("<QQ")
"""offset, size."""

REGION_IO_FDS = Struct("<IIII")
"""argsz, flags, index, count; then the sub-regions. argsz counts from itself."""

SUB_REGION = Struct("<QQIIIIQ")
"""offset, size, place among the descriptors, type, flags, padding, value to match."""

IRQ_INFO = Struct("<IIII")
"""argsz, flags, index, count."""

IRQ_SET = Struct("<IIIII")
"""argsz, flags, index, start, count; then booleans."""

REGION_ACCESS = Struct("<QII")
"""offset, region, count; then data."""

MULTI_COUNT = Struct("<Q")
"""entries; then the entries."""

MULTI_ENTRY = Struct("<QII8s")
"""offset, region, count, data."""

DMA_ACCESS = Struct("<QQ")
"""address, count; then data."""

DEVICE_FEATURE = Struct("<II")
"""argsz, flags; then data."""
