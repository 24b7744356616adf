"""Everything in the register space that has no name: plain memory, which the burn-down list makes visible."""

from __future__ import annotations

from typing import Any

from umdev.device import At, Block, Native, Register, RegisterArray

_NATIVE = Native("umdev_intel_gvt._fast", "gvt_unlisted")
_DWORD = 4


def unlisted(listed: type[Block[Any]], size: int) -> type[Block[Any]]:
    """A block of plain registers wherever `listed` leaves dwords free below `size` bytes, named by their offset."""
    taken = sorted(_dwords(listed, 0))
    members: dict[str, Any] = {"__doc__": "Registers with no name.", "__module__": __name__}
    at = 0
    for dword in [*taken, size // _DWORD]:
        if dword > at:
            members[f"at_{at * _DWORD:06x}"] = RegisterArray(
                at * _DWORD, Register, count=min(dword, size // _DWORD) - at, native=_NATIVE
            )
        at = max(at, dword + 1)
    return type("Unlisted", (Block,), members)


def _dwords(block: type[Block[Any]], base: int) -> set[int]:
    """Numbers of the dwords that a block's registers touch."""
    found: set[int] = set()
    for declaration in block.declared.values():
        if isinstance(declaration, At):
            for _, offset in declaration.places():
                found |= _dwords(declaration.kind, base + offset)
            continue
        first = base + declaration.offset
        count, stride = getattr(declaration, "count", 1), getattr(declaration, "stride", 0)
        width = getattr(declaration, "element", declaration).width
        for start in range(first, first + count * (stride or 1), stride or 1):
            found |= set(range(start // _DWORD, (start + width - 1) // _DWORD + 1))
    return found
