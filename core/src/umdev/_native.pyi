from collections.abc import Callable
from typing import Any

# cffi's handles are untyped by nature; each concept wraps its own in one module.
ffi: Any
lib: Any

# Functions of native/python/, there once _calls.py has been imported.

# Fills the umdev_python_handlers at `address`. Who calls keeps all of them as long as that is used.
def bind_handlers(
    address: int, owner: object, reads: list[Callable[..., Any] | None], writes: list[Callable[..., Any] | None], /
) -> None: ...
