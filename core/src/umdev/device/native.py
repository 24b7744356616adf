"""`Native`: a register handler written in C, by name, and the table of functions that C gets."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from umdev._native import ffi, lib
from umdev.errors import DeclarationError


def api_address() -> int:
    """Address of the process's `umdev_api` (umdev.h), for a plugin's C; valid for the life of the process."""
    return int(ffi.cast("uintptr_t", lib.umdev_get_api()))


def give_way() -> None:
    """For a thread of a model's own that computes in Python: let what waits for the interpreter go first.

    Call it between pieces of work, as often as every few microseconds: it takes a fraction of one when nobody waits. As
    many handlers of registers as wait get the interpreter before it returns, unless that takes 10 ms; any other thread
    gets its turn within some 5 ms. Without it, a thread that makes many short calls of C keeps all others out for as
    long as it computes. Hold no lock that a handler takes: it would wait for you.
    """
    lib.umdev_python_give_way()


@dataclass(frozen=True, slots=True)
class Native:
    """A C function of type `umdev_handler` (umdev.h) in a cffi API-mode module, for a register's reads and writes.

    The module is imported when the first device of the class is made. lockless: the function is called without the
    device lock; it must not answer UMDEV_PENDING.
    """

    module: str
    symbol: str
    lockless: bool = False

    def resolve(self) -> Any:
        """The function pointer.

        Raises: DeclarationError when the module can't be imported, is not cffi's, or has no such function.
        """
        try:
            module = importlib.import_module(self.module)
        except ImportError as error:
            raise DeclarationError(f"{self}: {self.module} can't be imported: {error}") from error
        try:
            found = module.ffi.addressof(module.lib, self.symbol)
            kind = module.ffi.typeof(found)
        except AttributeError as error:
            raise DeclarationError(f"{self}: {error}") from error
        if kind.kind == "pointer" and kind.item.kind == "function":
            kind = kind.item
        if (
            kind.kind != "function"
            or kind.result.cname != "int"
            or len(kind.args) != len(("device", "access", "value"))
        ):
            raise DeclarationError(f"{self} is {kind.cname}, not int (void *, const umdev_access *, uint64_t *)")
        return ffi.cast("umdev_handler", int(module.ffi.cast("uintptr_t", found)))

    def __str__(self) -> str:
        return f"Native({self.module!r}, {self.symbol!r})"
