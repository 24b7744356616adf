"""Builds `umdev._native`: every C file of the core in one cffi module (abi3)."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
PACKAGE = HERE / "src" / "umdev"
NATIVE = PACKAGE / "native"
INCLUDE = PACKAGE / "include"

# Directive-free declarations, in the order in which they build on one another.
TOPICS = ("device", "trace", "memory", "protect", "irq", "doorbell", "python")

ffi = FFI()
ffi.cdef((INCLUDE / "umdev_decls.h").read_text())
for topic in TOPICS:
    ffi.cdef((NATIVE / f"{topic}_decls.h").read_text())
    callbacks = NATIVE / f"{topic}_callbacks.cdef"  # extern "Python" functions: cffi's own syntax
    if callbacks.exists():
        ffi.cdef(callbacks.read_text())

headers = '#include "umdev.h"\n' + "".join(f'#include "{topic}_decls.h"\n' for topic in TOPICS)
ffi.set_source(
    "umdev._native",
    headers,
    sources=[str(path.relative_to(HERE)) for path in sorted(NATIVE.rglob("*.c"))],
    include_dirs=["src/umdev/include", "src/umdev/native"],
    depends=[str(path) for folder in (INCLUDE, NATIVE) for path in sorted(folder.rglob("*.[hc]*"))],  # .h, .c, .cdef
    # Calls within the module go straight, and a thread's own variables are found without one: an access after an exit
    # of the guest finds little in the caches.
    extra_compile_args=[
        *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-pthread"),
        *("-fvisibility=hidden", "-ftls-model=initial-exec", "-fno-plt", "-flto"),
    ],
    extra_link_args=["-pthread", "-flto", "-O2"],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
