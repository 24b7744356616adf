from collections.abc import Callable
from typing import Any

from typing_extensions import Buffer

# cffi's handles are untyped by nature; each concept wraps its own in one module.
ffi: Any
lib: Any

# Functions of native/python/, there once _calls.py has been imported.

# Fills the umdev_python_handlers at `address`. Who calls keeps all of them as long as that is used.
def bind_handlers(
    address: int, owner: object, reads: list[Callable[..., Any] | None], writes: list[Callable[..., Any] | None], /
) -> None: ...

# Bytes of one map; None: the long way does it, or says why not. `memory` is the address of an umdev_memory.
def dma_read(memory: int, iova: int, length: int, space: int, /) -> bytes | None: ...

# Stores to one map; False: the long way does it, or says why not.
def dma_write(memory: int, iova: int, data: Buffer, space: int, /) -> bool: ...
