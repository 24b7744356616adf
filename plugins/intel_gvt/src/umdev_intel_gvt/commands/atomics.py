"""MI_ATOMIC: read, change, write back, of a dword or two.

Format and operations: Intel Graphics PRM, Kaby Lake, volume 2a: bits 15:8 are the operation (from 0x00 on for dwords,
from 0x20 on for quadwords), 20:19 the size, 18 says that the operands are in the command, whose dwords alternate
between the first and the second from dword 3 on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev_softgpu import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .execution import Execution
    from .outcome import Outcome

GLOBAL, INLINE, RETURN = 1 << 22, 1 << 18, 1 << 16
SIZES = (4, 8)
FAMILY = 0x20
"""Operations of one size."""


def _signed(value: int, size: int) -> int:
    return value - (value >> 8 * size - 1 << 8 * size)


OPERATIONS: Mapping[int, Callable[[int, int, int, int], int]] = {
    0x1: lambda old, first, _second, _size: old & first,
    0x2: lambda old, first, _second, _size: old | first,
    0x3: lambda old, first, _second, _size: old ^ first,
    0x4: lambda _old, first, _second, _size: first,
    0x5: lambda old, _first, _second, _size: old + 1,
    0x6: lambda old, _first, _second, _size: old - 1,
    0x7: lambda old, first, _second, _size: old + first,
    0x8: lambda old, first, _second, _size: old - first,
    0x9: lambda old, first, _second, _size: first - old,
    0xA: lambda old, first, _second, size: max(old, first, key=lambda value: _signed(value, size)),
    0xB: lambda old, first, _second, size: min(old, first, key=lambda value: _signed(value, size)),
    0xC: lambda old, first, _second, _size: max(old, first),
    0xD: lambda old, first, _second, _size: min(old, first),
    0xE: lambda old, first, second, _size: second if old == first else old,
    0xF: lambda old, _first, _second, _size: old - 1,
}
"""By number in its family: what was there, both operands, bytes -> what is there then."""
WITHOUT_OPERANDS = (0x5, 0x6, 0xF)


def atomic(execution: Execution, command: tuple[int, ...]) -> Outcome | None:
    """Atomic against all engines, which one thread runs; not against the guest's processors.

    Operands from the general registers, results that go there, and operations of 16 bytes are passed over.
    """
    header = command[0]
    size_code, operation = header >> 19 & 3, header >> 8 & 0xFF
    inline = bool(header & INLINE)
    compute = OPERATIONS.get(operation % FAMILY)
    if size_code >= len(SIZES) or operation // FAMILY != size_code or compute is None:
        execution.pass_over(f"MI_ATOMIC {operation:#04x}")
        return None
    if header & RETURN or not (inline or operation % FAMILY in WITHOUT_OPERANDS):
        execution.pass_over("MI_ATOMIC with registers")
        return None
    size = SIZES[size_code]
    words = command[3:]
    if inline and len(words) < size // 2:
        return execution.fail(f"MI_ATOMIC of {len(command)} dwords with operands of {size} bytes")
    first, second = (sum(word << 32 * at for at, word in enumerate(words[number : size // 2 : 2])) for number in (0, 1))
    space = execution.space(global_=bool(header & GLOBAL))
    if space is None:
        execution.refuse("atomic in global memory")
        return None
    address = command[1] & ~(size - 1) | (command[2] & 0xFFFF) << 32
    found = space.read(address, size)
    if isinstance(found, Fault):
        return execution.fail(str(found))
    value = compute(int.from_bytes(found, "little"), first, second, size) & ((1 << 8 * size) - 1)
    return execution.check(space.write(address, value.to_bytes(size, "little")))
